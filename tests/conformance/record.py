"""Record what engine releases do with the tiny checkpoints: `python -m tests.conformance.record vllm-0.32.0 …`.

Each release is asked in its own environment (see `environment.py`); the answers, shortened to what a prediction can be
held against, go to `golden/ENGINE-RELEASE/FAMILY.json`. Two recordings of one release are equal: texts that print a set
are cut where it begins. The file of a family that a release does not know is empty.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtpfix import probe
from mtpfix.engines import load
from mtpfix.facts import covers
from mtpfix.families import match
from mtpfix.model import ROLES
from mtpfix.probe.compare import unwrap
from mtpfix.probe.interpreter import probe_of
from tests.checkpoints import VARIANTS, build
from tests.conformance.environment import VARIABLE, interpreter, sglang_interpreter, unpacked
from tests.families import FAMILIES

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
UNREADABLE = "Transformers does not recognize this architecture"
"""What an environment says whose transformers is too old for a family: the engine itself was then never asked."""

ABOUT = ("vllm", "sglang", "torch", "transformers", "patches")
Answer = dict[str, Any]


def cases() -> Iterator[tuple[str, str]]:
    """Yield family and variant of every checkpoint that is recorded: all that declare an MTP branch."""
    for family in FAMILIES:
        for variant in VARIANTS.values():
            if family in variant.families and variant.declares:
                yield family, variant.name


def is_asked(release: str, family: str) -> bool:
    """Return whether a release can be asked about a family: whether its loader here is the one that users get.

    Of another engine than vLLM: whether anything is predicted of the architecture there.
    """
    engine, _, version = release.partition("-")
    if engine == "vllm":
        return covers(FAMILIES[family].asked, version)
    architecture = FAMILIES[family].config("tiny")["architectures"][0]
    if (known := match(architecture)) is None:
        return False
    blocks = (block for block in known.table.get(engine, ()) if "*" not in block.get("unpredicted", ()))
    return any(architecture in block.get("architectures", known.architectures) for block in blocks)


def ask(release: str, checkpoints: Sequence[Path], runner: str | None = None, *, ranks: int = 1) -> Iterator[Answer]:
    """Yield the engine's answer for each checkpoint, from the environment of one release (`vllm-0.32.0`).

    With more than one of `ranks` the model is split over them; only vLLM's probe knows that.
    """
    engine, _, version = release.partition("-")
    python = sglang_interpreter(version) if engine == "sglang" else interpreter(version)
    if python is None:
        raise SystemExit(f"there is no environment for {release}; set {VARIABLE}, or make one")
    source = unpacked(version) if engine == "sglang" else None
    yield from probe.ask(python, probe_of(load(engine)), checkpoints, runner=runner, ranks=ranks, source=source)


def collapse(names: Iterable[str]) -> list[str]:
    """Join names that differ in their first number only: `layers.{0,1}.mlp`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        found = re.search(r"(?<=\.)\d+(?=\.)", name)
        if found is None:
            groups.setdefault(name, [])
        else:
            groups.setdefault(f"{name[: found.start()]}{{}}{name[found.end() :]}", []).append(int(found[0]))
    joined = {name: ",".join(map(str, sorted(set(numbers)))) for name, numbers in groups.items()}
    return sorted(
        name.replace("{}", f"{{{numbers}}}" if "," in numbers else numbers) for name, numbers in joined.items()
    )


def expand(names: Iterable[str]) -> Iterator[str]:
    """Undo `collapse`."""
    for name in names:
        found = re.search(r"\{([\d,]+)\}", name)
        numbers = found[1].split(",") if found else [""]
        yield from (name[: found.start()] + number + name[found.end() :] if found else name for number in numbers)


def built(modules: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return prefixes by format and layer class."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(f"{module['format']} {module['layer']}", []).append(module["prefix"])
    return {key: collapse(names) for key, names in sorted(groups.items())}


def unnamed(text: str, stand_ins: Iterable[str]) -> str:
    """Return a text without the names that no engine's class has."""
    for name in stand_ins:
        text = text.replace(f"'{name}'", "'…'")
    return text


def digest(found: Answer | None, stand_ins: Iterable[str] = ()) -> Answer | None:
    """Return what is kept of one model's answer; `stand_ins` are names that no engine's class has."""
    if found is None:
        return None
    kept: Answer = {"verdict": found["verdict"]}
    if found["error"] is not None:
        kept["phase"] = found["phase"]
        kept["error"], kept["text"] = unwrap(found["error"]["class"], found["error"]["text"])
        kept["text"] = unnamed(kept["text"], stand_ins)
        if found["tensor"] is not None:
            kept["tensor"] = found["tensor"]
    if found["verdict"] == "silent":
        for key in ("unwritten", "partial", "misread"):
            if found[key]:
                kept[key] = collapse(found[key])
    kept["built"] = built(found["modules"])
    return kept


def undigested(kept: Answer) -> Answer:
    """Return a digest in the form in which a probe writes what a model did."""
    modules = [
        {"prefix": prefix, "path": prefix, "layer": key.split()[1], "format": key.split()[0]}
        for key, names in kept["built"].items()
        for prefix in expand(names)
    ]
    error = {"class": kept["error"], "text": kept["text"]} if "error" in kept else None
    return {**kept, "error": error, "modules": modules}


def merge(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """Return one family's answers with each table of built modules written once, and named by its first variant."""
    first: dict[tuple[str, str], str] = {}
    for variant, answer in answers.items():
        for role in ROLES:
            if (found := answer[role]) is None:
                continue
            key = (role, json.dumps(found["built"]))
            if key in first:
                found["built"] = first[key]
            else:
                first[key] = variant
    return dict(answers)


def separate(merged: Mapping[str, Answer]) -> dict[str, Answer]:
    """Undo `merge`: every variant with its own table of built modules."""
    answers = copy.deepcopy(dict(merged))
    for answer in answers.values():
        for role in ROLES:
            if answer[role] is not None and isinstance(name := answer[role]["built"], str):
                answer[role]["built"] = merged[name][role]["built"]
    return answers


def golden(release: str, family: str) -> dict[str, Answer] | None:
    """Return what a release did with each variant of a family; None where that was never asked.

    A family that the release has no class for has no answers.
    """
    path = GOLDEN / release / f"{family}.json"
    return separate(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else None


def record(release: str, wanted: Sequence[tuple[str, str]], folder: Path) -> None:
    """Ask one release for the wanted cases and write a file for each of their families; checkpoints lie in `folder`."""
    start = time.monotonic()
    families = list(dict.fromkeys(family for family, _ in wanted))
    answers = {family: golden(release, family) or {} for family in families}
    place = GOLDEN / release
    place.mkdir(parents=True, exist_ok=True)
    whole = place / "release.json"
    about: Answer = json.loads(whole.read_text(encoding="utf-8")) if whole.exists() else {}
    paths = [folder / family / variant for family, variant in wanted]
    for (family, variant), found in zip(wanted, ask(release, paths), strict=True):
        if "broken" in found:
            raise SystemExit(f"{family}/{variant}: {found['broken']}")
        patches = dict.fromkeys([*about.get("patches", ()), *found.get("patches", ())])  # some cases need more
        about = {key: found[key] for key in ABOUT if key in found} | {"patches": list(patches)}
        if UNREADABLE in ((found.get("target") or {}).get("error") or {}).get("text", ""):
            answers.pop(family, None)
        elif "unsupported" not in found:
            answers[family][variant] = {role: digest(found[role], found.get("stand_ins", ())) for role in ROLES}
    _write(whole, about)
    for family, known in answers.items():
        _write(place / f"{family}.json", merge({name: known[name] for name in VARIANTS if name in known}))
    sys.stdout.write(f"{release}: {len(wanted)} cases in {time.monotonic() - start:.0f} s\n")


def _write(path: Path, content: Answer) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> None:
    """Build the tiny checkpoints once and record the releases on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.record", description=main.__doc__)
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--only", action="append", help="record these variants alone and keep the others")
    parser.add_argument("--family", action="append", help="record these families alone")
    options = parser.parse_args()
    wanted = [
        (family, variant)
        for family, variant in cases()
        if (options.only is None or variant in options.only) and (options.family is None or family in options.family)
    ]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for family, variant in wanted:
            build(folder / family / variant, family, variant)
        for release in options.releases:
            asked = [case for case in wanted if is_asked(release, case[0])]
            if asked:
                record(release, asked, folder)


if __name__ == "__main__":
    main()
