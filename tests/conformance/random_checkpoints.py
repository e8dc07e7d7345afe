"""Hold predictions against a real release on checkpoints made at random.

    python -m tests.conformance.random_checkpoints vllm-0.32.0 --family qwen3_5 --cases 40 --seed 1

With `--sizes` a case is an unquantized checkpoint in which every size of the configuration has a value of its own
(`sizes.py`). With `--without-each` each case lacks another module of the checkpoint as published, and no two lack the
same (of experts, only those of the first). Otherwise a case is one tiny checkpoint of a family with one to three
changes that no variant has: modules stored in another format, entries of lists added, removed or altered in one file or
both, tensors dropped, renamed, or of another dtype or shape. Every difference between what the release did and what was
predicted is written with the changes that led to it; the same seed makes the same cases.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines import load
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.model import ModelPrediction, Role
from mtpfix.probe.answer import observation
from mtpfix.probe.compare import by_path, differences
from tests.checkpoints import VARIANTS, Plan, Tensor, engine_name, plan, tensors_of, write
from tests.conformance.record import ask, unnamed
from tests.conformance.sizes import sized
from tests.families import FAMILIES
from tests.modules import Kind, text_of

STARTS = (
    "published",
    "excluded-glob",
    "excluded-exact",
    "nothing-excluded",
    "branch-nvfp4",
    "all-nvfp4",
    "mixed",
    "compressed-tensors",
    "weights-only",
)
FORMATS = (None, "NVFP4", "FP8", "FP8_BLOCK")
DTYPES = ("BF16", "F32", "F16", "F8_E4M3", "U8")
LATER_EXPERT = re.compile(r"\.experts\.[1-9]")
LISTS = (("quantization_config", "ignore"), ("quantization", "exclude_modules"))


@dataclass(frozen=True)
class Case:
    """A checkpoint's plan, and in sentences how it came about."""

    planned: Plan
    changes: tuple[str, ...]


def case(family: str, random: Random, kinds: Sequence[str] = ()) -> Case:
    """Return a random checkpoint of a family; `kinds` are the names of the changes it may have, default all."""
    choices = [CHANGES[kind] for kind in kinds or ("store", "store", "list", "list", "list", "drop", "alter")]
    start = random.choice([name for name in STARTS if family in VARIANTS[name].families])
    planned = plan(family, start)
    changes = [start]
    for _ in range(random.randint(1, 3)):
        planned, text = random.choice(choices)(planned, random)
        changes.append(text)
    return Case(planned, tuple(changes))


def cases(family: str, seed: int, count: int, kinds: Sequence[str] = ()) -> list[Case]:
    """Return so many random checkpoints of a family; the same seed makes the same."""
    return [case(family, Random(f"{seed} {family} {one}"), kinds) for one in range(count)]  # noqa: S311


def sized_cases(family: str, seed: int, count: int) -> list[Case]:
    """Return so many checkpoints of a family whose sizes all differ, undamaged; the same seed makes the same."""
    made = (sized(family, Random(f"{seed} {family} {one}")) for one in range(count))  # noqa: S311
    return [Case(planned, (planned.variant, str(planned.config))) for planned in made]


def _store(planned: Plan, random: Random) -> tuple[Plan, str]:
    """Store a module, or all of its name in the layers of its part, in another format."""
    numbers = [
        number
        for number, module in enumerate(planned.modules)
        if module.kind is not Kind.PLAIN and (module.weight or module.amax) and module.shape[-1] % 16 == 0
        if len(module.shape) == 2 or module.amax
    ]
    if random.random() < 0.7:
        numbers = [number for number in numbers if planned.modules[number].part == "branch"] or numbers
    chosen = planned.modules[random.choice(numbers)]
    stored = random.choice(FORMATS)
    groups = list(planned.groups)
    for number in numbers:
        module = planned.modules[number]
        same = module.name.rpartition(".")[2] == chosen.name.rpartition(".")[2] and module.part == chosen.part
        if module is chosen or (same and chosen.kind is Kind.EXPERT):
            groups[number] = tuple(tensors_of(module, stored, VARIANTS[planned.variant]))
    return replace(planned, groups=tuple(groups)), f"{chosen.name} stored as {stored}"


def _list(planned: Plan, random: Random) -> tuple[Plan, str]:
    """Add, remove or alter an entry, in one file or in both."""
    lists = list(_lists(planned))
    if not lists:
        return planned, "no list"
    wanted = random.choice([lists, lists, lists[:1], lists[-1:]])
    entries = sorted({entry for _, entry_list in wanted for entry in entry_list})
    what = random.choice(("add", "add", "remove", "alter"))
    new = _entry(planned, random)
    if what == "add" or not entries:
        place = random.random()
        for _, found in wanted:
            found.insert(int(place * (len(found) + 1)), new)
        return planned, f"{new} added to {[name for name, _ in wanted]}"
    old = random.choice(entries)
    new = _altered(old, random)
    for _, found in wanted:
        found[:] = [new if entry == old else entry for entry in found if entry != old or what == "alter"]
    return planned, f"{old} {'became ' + new if what == 'alter' else 'removed'} in {[name for name, _ in wanted]}"


def _lists(planned: Plan) -> Iterator[tuple[str, list[str]]]:
    for source, (block, key) in zip((planned.config, planned.hf_quant_config), LISTS, strict=True):
        if source is not None and isinstance(found := source.get(block, {}).get(key), list):
            yield key, found


def _entry(planned: Plan, random: Random) -> str:
    """Return an entry as somebody might write it for a module of the checkpoint."""
    modules = [module for module in planned.modules if module.kind is not Kind.PLAIN]
    if random.random() < 0.8:
        modules = [module for module in modules if module.part == "branch"] or modules
    module = random.choice(modules)
    name = random.choice(module.names) if module.names else module.name
    text = text_of(planned.config)
    parts = name.split(".")
    dialect = "re:" if VARIANTS[planned.variant].dialect == "compressed-tensors" else ""
    return random.choice(
        (
            name,
            name,
            engine_name(FAMILIES[planned.family], module, text),
            ".".join(parts[: random.randint(1, len(parts))]) + "*",
            ".".join(parts[: random.randint(1, len(parts))]) + ".*",
            ".".join(parts[: random.randint(1, len(parts))]),
            "*" + ".".join(parts[-random.randint(1, len(parts)) :]),
            "*" + random.choice(parts) + "*",
            parts[-1],
            f"{dialect}.*{random.choice(parts)}.*",
            f"{dialect}.*{parts[-1]}$",
            f"{dialect}^{'.'.join(parts[: random.randint(1, len(parts))])}",
            f"model.{name}",
            name.removeprefix("model."),
            name.replace("model.", "model.language_model.", 1),
            name + ".weight",
            name[:-1] + "?",
        )
    )


def _altered(entry: str, random: Random) -> str:
    return random.choice(
        (
            entry + "*",
            entry.rstrip("*"),
            entry.replace("*", ".*"),
            "*" + entry,
            "model." + entry,
            entry.removeprefix("model."),
            entry.upper(),
            entry.replace("language_model.", ""),
            entry.rpartition(".")[0] or entry,
            entry.replace(".", "?", 1),
        )
    )


def lacking_cases(family: str) -> list[Case]:
    """Return the checkpoint of a family as published once for each of its modules, without that module."""
    planned = plan(family, "published")
    return [
        Case(_with_groups(planned, number), (f"{module.name} dropped",))
        for number, (module, group) in enumerate(zip(planned.modules, planned.groups, strict=True))
        if group and not LATER_EXPERT.search(module.name)
    ]


def _with_groups(planned: Plan, without: int) -> Plan:
    return replace(planned, groups=(*planned.groups[:without], (), *planned.groups[without + 1 :]))


def _drop(planned: Plan, random: Random) -> tuple[Plan, str]:
    """Drop a tensor, or rename it."""
    tensor = _tensor(planned, random)
    if random.random() < 0.7:
        return _with(planned, tensor, ()), f"{tensor.name} dropped"
    name = random.choice((tensor.name + "_old", "model." + tensor.name, tensor.name.removeprefix("model.")))
    if any(other.name == name for other in planned.tensors):
        return planned, "nothing renamed"
    return _with(planned, tensor, (replace(tensor, name=name),)), f"{tensor.name} renamed to {name}"


def _alter(planned: Plan, random: Random) -> tuple[Plan, str]:
    """Give a tensor another dtype or shape."""
    tensor = _tensor(planned, random)
    if random.random() < 0.6:
        dtype = random.choice([dtype for dtype in DTYPES if dtype != tensor.dtype])
        return _with(planned, tensor, (replace(tensor, dtype=dtype),)), f"{tensor.name} is {dtype}"
    shape = tensor.shape
    shapes = {(1,), (1, 1)}
    if shape:
        shapes = {(*shape[:-1], shape[-1] * 2), (*shape[:-1], shape[-1] // 2 or 1), (1, *shape), shape[::-1]}
    new = random.choice(sorted(shapes - {shape}) or [(*shape, 1)])
    return _with(planned, tensor, (replace(tensor, shape=new),)), f"{tensor.name} is {tensor.dtype} {list(new)}"


def _tensor(planned: Plan, random: Random) -> Tensor:
    """Return a tensor, most often of the branch."""
    pairs = list(zip(planned.modules, planned.groups, strict=True))
    if random.random() < 0.8:
        pairs = [(module, group) for module, group in pairs if module.part == "branch"] or pairs
    return random.choice(random.choice([group for _, group in pairs if group]))


def _with(planned: Plan, tensor: Tensor, instead: Sequence[Tensor]) -> Plan:
    groups = tuple(
        tuple(new for old in group for new in (instead if old is tensor else (old,))) for group in planned.groups
    )
    return replace(planned, groups=groups)


CHANGES = {"store": _store, "list": _list, "drop": _drop, "alter": _alter}


def compare(release: str, made: Sequence[Case], folder: Path) -> Iterator[tuple[Case, list[str]]]:
    """Yield each case with what the release does other than predicted."""
    engine, _, version = release.partition("-")
    places = []
    for number, one in enumerate(made):
        places.append(folder / f"{number:04}")
        write(places[-1], one.planned)
    for one, place, answer in zip(made, places, ask(release, places), strict=True):
        if "broken" in answer or "unsupported" in answer:
            yield one, [f"not asked: {answer.get('broken') or answer['unsupported']}"]
            continue
        prediction = predict(Subject(open_checkpoint(place)), engine, version)
        wrong = []
        pairs: tuple[tuple[Role, ModelPrediction], ...] = (("target", prediction.target), ("draft", prediction.draft))
        for role, ours in pairs:
            if answer[role] is None or ours.reason.endswith("is not predicted"):
                continue
            if error := answer[role]["error"]:
                error["text"] = unnamed(error["text"], answer.get("stand_ins", ()))
            theirs = observation(role, answer[role], (), "", "")
            wrong += [f"{role}: {text}" for text in differences(ours, theirs, by_path=by_path(load(engine)))]
        yield one, wrong


def main() -> int:
    """Compare random checkpoints; the exit code is 1 where any differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.random_checkpoints", description=main.__doc__)
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--family", action="append", choices=sorted(FAMILIES), help="default: all")
    parser.add_argument("--cases", type=int, default=20, help="of each family")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--change", action="append", choices=sorted(CHANGES), help="only changes of this kind")
    parser.add_argument("--sizes", action="store_true", help="undamaged checkpoints whose sizes all differ, instead")
    parser.add_argument("--without-each", action="store_true", help="lack one module after the other, instead")
    options = parser.parse_args()
    bad = count = 0
    for release in options.releases:
        for family in options.family or FAMILIES:
            if options.sizes:
                made = sized_cases(family, options.seed, options.cases)
            elif options.without_each:
                made = lacking_cases(family)
            else:
                made = cases(family, options.seed, options.cases, options.change or ())
            with tempfile.TemporaryDirectory() as folder:
                for number, (one, wrong) in enumerate(compare(release, made, Path(folder))):
                    count += 1
                    bad += bool(wrong)
                    if wrong:
                        told = "\n".join(f"    {text}" for text in (*one.changes, *(f"!! {text}" for text in wrong)))
                        sys.stdout.write(f"{release} {family} {number}:\n{told}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{count} cases, {bad} with differences\n")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
