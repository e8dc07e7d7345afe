"""Which entries of the quantization lists make an engine build each module as it is stored, and no other differently.

Knows how each dialect spells an entry, and the names an engine asks with. What an entry matches is never decided here:
every set of entries is tried on the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtpfix.checkpoint.document import parse_document
from mtpfix.checkpoint.names import describe_names
from mtpfix.engines.gptq import NOT
from mtpfix.errors import MtpfixError
from mtpfix.families import branch_prefixes
from mtpfix.fix.operations import (
    QUANTIZE_CONFIG,
    AddEntry,
    Operation,
    Path,
    RemoveEntry,
    RemoveKey,
    SetValue,
    set_value,
)
from mtpfix.fix.snapshot import read_file
from mtpfix.fix.trial import Bad, Trial, modules_of
from mtpfix.model import EXPERT, Checkpoint, Declaration, Format, Role, Stored
from mtpfix.rules.context import Occurrence

TO_PLAIN = ("plain-into-quantized", "fused-partly-listed", "weight-missing")
"""Events that an entry of an exclude list mends; of weights that are missing only those whose scales are missed too."""
DEFAULT_KEYS: Mapping[str, str] = {"compressed-tensors": "ignore", "fp8": "modules_to_not_convert"}
ALGORITHMS: Mapping[Format, str] = {
    Format.NVFP4: "NVFP4",
    Format.NVFP4_A16: "W4A16_NVFP4",
    Format.FP8: "FP8",
    Format.FP8_CHANNEL: "FP8_PER_CHANNEL_PER_TOKEN",
    Format.FP8_BLOCK: "FP8_PB_WO",
    Format.MXFP8: "MXFP8",
}
"""How ModelOpt calls a stored format in `quantized_layers`."""


def edited_blocks(checkpoint: Checkpoint) -> list[Declaration]:
    """Return the blocks that a repair edits: the top-level one of every file, never a nested copy."""
    return [block for block in checkpoint.declarations if len(block.path) <= 1]


def block_path(block: Declaration) -> Path:
    """Return where the keys of a block stand in its file."""
    return (*block.path, "quantization") if block.dialect == "nested" else block.path


def list_path(block: Declaration) -> Path | None:
    """Return where a block's exclude list stands, None where this package does not know its method's list."""
    key = block.exclude_key or DEFAULT_KEYS.get(block.method, "")
    return (*block_path(block), key) if key and block.method in SPELLINGS else None


def additions(checkpoint: Checkpoint, entries: Iterable[str]) -> tuple[Operation, ...]:
    """Return the operations that put entries into the list of every file that lacks them."""
    wanted = list(entries)
    return tuple(
        operation
        for block in edited_blocks(checkpoint)
        if (path := list_path(block)) is not None
        for entry in wanted
        if entry not in block.excludes
        for operation in _added_to(block, checkpoint, path, entry)
    )


def _added_to(block: Declaration, checkpoint: Checkpoint, path: Path, entry: str) -> Iterator[Operation]:
    """Yield what puts an entry into a list; GPTQ's is an object, of which a second file has a copy."""
    if block.method != "gptq":
        yield AddEntry(block.file, path, entry)
        return
    yield set_value(block.file, (*path, entry), {})
    if entry not in _copied(checkpoint, {entry: {}}):
        yield set_value(QUANTIZE_CONFIG, (path[-1], entry), {})


def _removed_from(block: Declaration, checkpoint: Checkpoint, path: Path, entry: str) -> Iterator[Operation]:
    if block.method != "gptq":
        yield RemoveEntry(block.file, path, entry)
        return
    yield RemoveKey(block.file, (*path, entry))
    if entry in _copied(checkpoint, {}):
        yield RemoveKey(QUANTIZE_CONFIG, (path[-1], entry))


def _copied(checkpoint: Checkpoint, absent: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return `dynamic` of the copy of GPTQ's block, or what stands for it where there is no copy that can be read."""
    if checkpoint.root is None or not (checkpoint.root / QUANTIZE_CONFIG).is_file():
        return absent
    try:
        document = parse_document(read_file(checkpoint.root, QUANTIZE_CONFIG), QUANTIZE_CONFIG, nan=True).value
    except MtpfixError:
        return absent
    found = document.get("dynamic") or {}
    return found if isinstance(found, Mapping) else absent


def removals(checkpoint: Checkpoint, entries: Iterable[str]) -> tuple[Operation, ...]:
    """Return the operations that take entries out of every list that has them."""
    unwanted = list(entries)
    return tuple(
        operation
        for block in edited_blocks(checkpoint)
        if (path := list_path(block)) is not None
        for entry in unwanted
        if entry in block.excludes
        for operation in _removed_from(block, checkpoint, path, entry)
    )


# -------------------------------------------------------------------------------------------------- exclude lists


@dataclass(frozen=True, slots=True)
class Listed:
    """A trial with the entries found, those entries, and what they were to mend and did not."""

    trial: Trial
    entries: tuple[str, ...]
    rest: Bad


def find_entries(
    trial: Trial, role: Role | None = None, kinds: Sequence[str] = TO_PLAIN, before: Trial | None = None
) -> Listed | None:
    """Return the fewest entries that mend the most events of some kinds, None where none helps.

    `before` is what the result is held against (default: the trial itself), where operations of the trial make worse
    what entries then make better.
    """
    found = [one for one in trial.occurrences(kinds, role) if one.built is not None]
    mine = [one for one in found if one.event.kind != "weight-missing" or (one.built and not one.built.format.plain)]
    if not mine:
        return None
    modules = list(dict.fromkeys(name for one in mine for name in names_of(one)))
    best: Listed | None = None
    best_gain = 0
    for entries in candidates(trial, modules, prefixes_of(mine)):
        operations = additions(trial.context.checkpoint, entries)
        if not operations:
            continue
        after = trial.plus(operations)
        gain = after.gain(before or trial)
        if gain <= best_gain or after.changed_beyond(trial, modules):
            continue
        rest = frozenset(bad for bad in after.bad if bad[2] in modules and bad[3] in kinds)
        best, best_gain = Listed(after, _added(operations), rest), gain
        if not rest:
            break
    return best


def _added(operations: Iterable[Operation]) -> tuple[str, ...]:
    found = (
        one.entry if isinstance(one, AddEntry) else one.path[-1]
        for one in operations
        if isinstance(one, (AddEntry, SetValue))
    )
    return tuple(dict.fromkeys(found))


def names_of(one: Occurrence) -> tuple[str, ...]:
    """Return the names on disk that an event concerns: all parts of a fused layer that is listed in part."""
    fused = one.event.kind == "fused-partly-listed" and one.built is not None
    return one.built.modules if fused and one.built is not None else (one.event.module,)


def prefixes_of(found: Iterable[Occurrence]) -> list[str]:
    """Return the names that engines ask with for the modules of events."""
    return list(dict.fromkeys(one.built.prefix for one in found if one.built is not None and one.built.prefix))


def candidates(trial: Trial, modules: Sequence[str], prefixes: Sequence[str]) -> Iterator[list[str]]:
    """Yield sets of entries, from the shortest list upwards, in the dialect of the checkpoint's lists."""
    subject = trial.context.subject
    methods = {block.method for block in edited_blocks(subject.checkpoint)}
    spellings = next((SPELLINGS[method] for method in SPELLINGS if method in methods), ())
    literal = next((LITERALS[method] for method in methods if method in LITERALS), str)
    exact = list(dict.fromkeys(map(literal, prefixes)))
    parents = list(dict.fromkeys(literal(without_expert(name)) for name in modules))
    if len(modules) == 1 and len(exact) == 1:
        yield parents
        yield exact
    inside = [name for name in modules if subject.in_branch(name)]
    if subject.family is not None and subject.numbers is not None and inside:
        roots = [
            root.rstrip(".")
            for root in branch_prefixes(subject.family, subject.numbers)
            if any(name.startswith(root) for name in inside)
        ]
        outside = [
            literal(prefix) for prefix in dict.fromkeys(prefixes) if not any(prefix.startswith(root) for root in roots)
        ]
        others = {root for root in roots for name in subject.stored if _begins_another(name, root)}
        globs = [[spell(root, root in others) for root in roots] for spell in spellings]
        for entries in globs:
            yield entries
            yield [*entries, *outside]
        both = [entry for pair in zip(*globs, strict=True) for entry in pair]
        if both:
            yield both
            yield [*both, *outside]
            yield [*both, *exact]
    yield parents
    yield exact
    yield [*parents, *exact]
    names = dict.fromkeys(without_expert(name) for name in modules)
    containers = list(dict.fromkeys(name.rpartition(".")[0] for name in names if "." in name))
    for spell in spellings:  # a fused layer may be asked for by the names of parts that are not on disk
        yield [spell(name, any(_begins_another(one, name) for one in subject.stored)) for name in containers]
    anywhere = next((ANYWHERE[method] for method in methods if method in ANYWHERE), None)
    if anywhere is not None:  # a mapper may rewrite every name in full to one that the draft never asks with
        yield list(dict.fromkeys(map(anywhere, prefixes)))


def without_expert(module: str) -> str:
    """Return a module's name up to the experts it belongs to."""
    head, found, _ = module.partition(f".{EXPERT}")
    return head if found else module


def _begins_another(name: str, root: str) -> bool:
    """Return whether a name begins with a root but lies elsewhere: `model.layers.60.mlp` with `model.layers.6`."""
    return name.startswith(root) and name[len(root) : len(root) + 1].isdigit()


def _tail(root: str) -> str:
    return root.rpartition("model.")[2]


def _escaped(name: str) -> str:
    return name.replace(".", r"\.")


LITERALS: Mapping[str, Callable[[str], str]] = {"gptq": lambda name: f"{NOT}{_escaped(name)}$"}
"""How a method's list spells one name where that is not the name itself."""
ANYWHERE: Mapping[str, Callable[[str], str]] = {
    "compressed-tensors": lambda name: "re:.*" + _escaped(_tail(name)) + r"(\..*)?$",  # experts: what is below them
    "modelopt": lambda name: f"*{_tail(name)}",
    "gptq": lambda name: f"{NOT}.*{_escaped(_tail(name))}$",
}
"""How a method's list names one module whatever comes before its layer."""
Spell = Callable[[str, bool], str]
SPELLINGS: Mapping[str, tuple[Spell, ...]] = {
    "compressed-tensors": (lambda root, _: "re:.*" + _tail(root).replace(".", r"\.") + r"\..*",),
    "modelopt": (
        lambda root, dotted: f"{root}.*" if dotted else f"{root}*",
        lambda root, dotted: f"*{_tail(root)}.*" if dotted else f"*{_tail(root)}*",
    ),
    "fp8": (),
    "gptq": (
        lambda root, _: f"{NOT}{_escaped(root)}" + r"\..*",
        lambda root, _: f"{NOT}.*{_escaped(_tail(root))}" + r"\..*",
    ),
}
"""How each method's list names everything below a root, with a dot where another name begins with the root.

A method that is not here has no list that is edited.
"""


# ---------------------------------------------------------------------------------------------------- allow-list


def allow(trial: Trial, modules: Sequence[str]) -> tuple[Trial, list[str]] | None:
    """Return the trial with modules, as they are stored, named in every `quantized_layers`; None where none helps.

    Modules that an engine asks for by the same name as for plain ones are left out where all together do not help; the
    second is those that are named.
    """
    subject = trial.context.subject
    wanted = {name: entry for name in modules if (entry := layer_entry(subject.stored.get(name))) is not None}
    blocks = [block for block in edited_blocks(subject.checkpoint) if block.layers]
    if not wanted or not blocks:
        return None
    asked: dict[str, list[str]] = {}
    for _, _, built in trial.built():
        for name in wanted.keys() & set(built.modules):
            asked.setdefault(name, []).append(built.prefix)
    spelled = {name: list(spelled_out(subject.stored[name])) for name in wanted}
    plain = {name for name, item in subject.stored.items() if item.format.plain}
    shared = {built.prefix for _, _, built in trial.built() if not plain.isdisjoint(built.modules)}
    apart = [name for name in wanted if shared.isdisjoint(asked.get(name, ()))]
    best: tuple[Trial, list[str]] | None = None
    for names, entries in (
        (wanted, {layer: wanted[name] for name in wanted for layer in spelled[name]}),
        (wanted, {layer: wanted[name] for name in wanted for layer in asked.get(name, ())}),
        (wanted, {layer: wanted[name] for name in wanted for layer in (*spelled[name], *asked.get(name, ()))}),
        (apart, {layer: wanted[name] for name in apart for layer in asked.get(name, ())}),
    ):
        after = trial.plus(
            set_value(block.file, (*block_path(block), "quantized_layers", name), entry)
            for block in blocks
            for name, entry in entries.items()
            if name not in block.layers
        )
        if after.operations != trial.operations and after.gain(trial) > (best[0].gain(trial) if best else 0):
            best = after, list(names)
    return best


def layer_entry(stored: Stored | None) -> dict[str, object] | None:
    """Return what `quantized_layers` says of a stored module, None where ModelOpt has no name for its format."""
    if stored is None or stored.format not in ALGORITHMS:
        return None
    entry: dict[str, object] = {"quant_algo": ALGORITHMS[stored.format]}
    if stored.format in (Format.NVFP4, Format.NVFP4_A16):
        entry["group_size"] = 16
    return entry


def spelled_out(stored: Stored) -> Iterator[str]:
    """Yield a module's names on disk, one for each expert."""
    if stored.experts is None:
        yield stored.module
    else:
        for expert in sorted(stored.experts):
            yield stored.module.replace(EXPERT, str(expert), 1)


def entries_title(checkpoint: Checkpoint, added: Sequence[str], removed: Sequence[str] = ()) -> str:
    """Return in words which entries go into, and come out of, which lists."""
    blocks = [block for block in edited_blocks(checkpoint) if list_path(block) is not None]
    where = " and ".join(dict.fromkeys(f"{block.exclude_key or 'the list'} of {block.file}" for block in blocks))
    shown = ", ".join(added[:4]) + (f" and {len(added) - 4} more" if len(added) > 4 else "")
    if removed and added:
        return f"replace {describe_names(removed)} by {shown} in {where}"
    return f"remove {describe_names(removed)} from the list" if removed else f"add {shown} to {where}"


def without_branch_entries(trial: Trial) -> Trial:
    """Return the trial without the entries that make a module of the branch plain."""
    after = trial
    while True:
        subject = after.context.subject
        listed = dict.fromkeys(
            built.excluded_by
            for _, _, built in after.built()
            if built.excluded_by and any(subject.in_branch(name) for name in built.modules)
        )
        unwanted = removals(after.context.checkpoint, [entry for entry in listed if entry])
        if not unwanted:
            return after
        after = after.plus(unwanted)  # behind one that goes another may come to light


__all__ = [
    "TO_PLAIN",
    "Listed",
    "additions",
    "allow",
    "block_path",
    "edited_blocks",
    "entries_title",
    "find_entries",
    "modules_of",
    "removals",
    "without_branch_entries",
    "without_expert",
]
