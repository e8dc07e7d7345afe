"""Ways to write weights otherwise: dequantized, quantized, twice, or not at all."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

from mtpfix.checkpoint.names import describe_names, split_name
from mtpfix.facts import Table, covers
from mtpfix.families import fill
from mtpfix.fix.entries import edited_blocks, find_entries
from mtpfix.fix.groups import fused_parts
from mtpfix.fix.inputs import input_scale_of
from mtpfix.fix.operations import CopyModule, Dequantize, DropTensors, Quantize, ShareScale
from mtpfix.fix.repairs.declarations import restate_mixed
from mtpfix.fix.repairs.files import full_names
from mtpfix.fix.repairs.formats import NVFP4, packable, restorable
from mtpfix.fix.repairs.repair import DERIVED, Repair, Wishes, made
from mtpfix.fix.repairs.scales import without_input_scale
from mtpfix.fix.stacks import packed_dialect, stacked_name, unstacked
from mtpfix.fix.trial import Trial, modules_of
from mtpfix.model import Dialect, Format

MISBUILT = ("quantized-into-plain", "other-format", "scale-missing", "scale-shape", "scale-partly-written")
"""Events of modules that are stored quantized, and that plain weights would not have."""
ORDER = "g_idx"
"""The suffix of what tells the order of GPTQ's columns: without activation order it says nothing that is not known."""


def dequantize(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Store in BF16, and exclude, modules that are quantized in a way that an engine does not build."""
    built = {name for _, _, built in trial.built() for name in built.modules}
    unread = [name for name in modules_of(trial.occurrences(["unknown-tensor"])) if name in built]
    asked = {one.built.prefix for one in trial.occurrences(["weight-missing"]) if one.built}
    unread += _asked_as(trial, asked | {one.event.module for one in trial.occurrences(["class-broken"])})
    misbuilt = trial.occurrences(MISBUILT)
    modules = [*modules_of(misbuilt), *unread]
    yield from dequantized(trial, modules, wishes)
    for release in trial.context.releases:  # another may want what is left packed, and only under another name
        mine = modules_of(one for one in misbuilt if one.release is release)
        if mine and not set(mine).issuperset(modules):
            yield from dequantized(trial, mine, wishes)


def free_names(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Store in BF16 what makes an engine build plain modules quantized, because it asks for both by one name."""
    plain = trial.occurrences(["plain-into-quantized"])
    modules = _asked_as(trial, {one.built.prefix for one in plain if one.built})
    title = f"dequantize {{modules}} to BF16, asked for by the names of {describe_names(modules_of(plain))}"
    yield from dequantized(trial, modules, wishes, title)


def _asked_as(trial: Trial, prefixes: Collection[str]) -> list[str]:
    """Return the modules that are stored and built quantized and that an engine asks for by one of these names."""
    stored = trial.context.subject.stored
    found = (built.modules for _, _, built in trial.built() if built.prefix in prefixes and not built.format.plain)
    return [name for names in found for name in names if name in stored and not stored[name].format.plain]


def dequantized(trial: Trial, modules: Sequence[str], wishes: Wishes, title: str = "") -> Iterator[Repair]:
    """Offer to store modules, and those that an engine fuses with them, in BF16."""
    stored = trial.context.subject.stored
    wanted = [name for name in with_fused(trial, modules) if name in stored and restorable(stored[name])]
    if wishes.mtp == "keep":
        wanted = [name for name in wanted if not trial.context.subject.in_branch(name)]
    if not wanted:
        return
    bare = trial.plus([Dequantize(name) for name in wanted])
    found = find_entries(bare, before=trial)
    after = found.trial if found is not None and found.trial.gain(trial) > bare.gain(trial) else bare
    title = (title or "dequantize {modules} to BF16").replace("{modules}", describe_names(wanted))
    if any(bad[2] in wanted for bad in after.bad):  # no entry of a list names them all
        for mixed in restate_mixed(bare, wishes):
            named = bare.plus(mixed.operations)
            if named.gain(trial) > after.gain(trial):
                after, title = named, f"{title}, and {mixed.title}"
                break
    elsewhere = any(
        role == "target" and not built.format.plain and not set(modules).isdisjoint(built.modules)
        for _, role, built in trial.built()
    )  # a head that the main model builds quantized is not made plain lightly for the draft alone
    yield made(trial, after, title, safe=not elsewhere)


def with_fused(trial: Trial, modules: Iterable[str]) -> list[str]:
    """Return modules with the quantized ones that an engine fuses with them into one layer."""
    wanted = dict.fromkeys(modules)
    stored = trial.context.subject.stored
    for _, _, built in trial.built():
        if not wanted.keys().isdisjoint(built.modules):
            wanted.update(dict.fromkeys(name for name in built.modules if name in stored))
    return list(wanted)


def quantize(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Store modules in NVFP4 that an engine builds so whatever is listed."""
    found = trial.occurrences(["plain-into-quantized", "other-format"])
    yield from quantized(trial, modules_of(one for one in found if one.built and one.built.format in NVFP4), wishes)


def quantized(trial: Trial, modules: Sequence[str], wishes: Wishes) -> Iterator[Repair]:
    """Offer to store plain modules in NVFP4, one global scale for those that an engine fuses."""
    stored = trial.context.subject.stored
    wanted = {name for name in with_fused(trial, modules) if packable(stored.get(name))}
    if wishes.mtp in ("keep", "bf16"):
        wanted = {name for name in wanted if not trial.context.subject.in_branch(name)}
    family = trial.context.subject.family
    apart = unstacked(family.table, stored, sorted(wanted)) if family is not None else []
    single = trial.plus(apart)
    wanted -= {one.module for one in apart}
    wanted.update(name for one in apart for name in one.names)
    operations = _quantizing(single, wanted, wishes, ())
    read = without_input_scale(single.plus(operations)) if operations else []
    if not wanted.isdisjoint(read):
        operations = _quantizing(single, wanted, wishes, read)
    if operations:
        packed = {name for name, item in stored.items() if item.format in NVFP4}
        mixed = [
            ShareScale(group)
            for group in fused_parts(single, packed | wanted)
            if not wanted.issuperset(group) and not packed.issuperset(group)
        ]
        title = f"quantize {describe_names(wanted)} to NVFP4, {_inputs_text(operations, wishes)}"
        yield made(trial, single.plus([*operations, *mixed]), title, safe=False)


def _quantizing(trial: Trial, wanted: set[str], wishes: Wishes, read: Collection[str]) -> list[Quantize]:
    """Return the operations that quantize modules, none where a scale of inputs is needed and not known.

    `read` are modules whose input scale is asked for, however they are built.
    """
    operations = []
    for group in fused_parts(trial, wanted):
        dialect, inputs = _built_as(trial, group)
        value: float | None = None
        if inputs or not set(group).isdisjoint(read):
            values = [input_scale_of(trial, name, wishes.input_scale) for name in group]
            if None in values:
                return []
            value = max(one for one in values if one is not None)
        operations.append(Quantize(group, dialect, value, wishes.scale_search))
    return operations


def _inputs_text(operations: Iterable[Quantize], wishes: Wishes) -> str:
    """Say in words which scales the inputs get, and where those are from."""
    values = sorted({one.input_scale for one in operations if one.input_scale is not None})
    if not values:
        return "inputs in 16 bits"
    if wishes.input_scale is not None:
        return f"input scales {wishes.input_scale:g} as given"
    numbers = f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g} to {values[-1]:.3g}"
    return f"input scales {numbers}: {DERIVED}"


def _built_as(trial: Trial, group: Sequence[str]) -> tuple[Dialect, bool]:
    """Return whose names a module's scales need, and whether any judged release quantizes its inputs."""
    methods = {block.method for block in edited_blocks(trial.context.checkpoint)}
    dialect = Dialect.COMPRESSED_TENSORS if "compressed-tensors" in methods else Dialect.MODELOPT
    if (family := trial.context.subject.family) is not None:
        dialect = packed_dialect(family.table, group[0], dialect)
    mine = [built for _, _, built in trial.built() if not set(group).isdisjoint(built.modules)]
    return dialect, any(built.format is not Format.NVFP4_A16 for built in mine)


def drop_unknown(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Take out tensors that no judged release has a parameter for, GPTQ's `g_idx` also of modules that are built.

    Experts stay that a release misses where it looks for them in one tensor.
    """
    del wishes
    found = trial.occurrences(["unknown-tensor"])
    missing = set(modules_of(trial.occurrences(["weight-missing"])))
    family = trial.context.subject.family
    table = family.table if family is not None else {}
    modules = {name for name in modules_of(found) if missing.isdisjoint((stacked_name(table, name),))}
    ordered = set(modules_of(one for one in found if one.event.tensor.endswith(f".{ORDER}")))
    used = {name for _, _, built in trial.built() for name in built.modules}
    by_shard: dict[str, list[str]] = {}
    for tensor in trial.context.checkpoint.tensors:
        module, suffix = split_name(tensor.name)
        if (module in modules and module not in used) or (module in ordered and suffix == ORDER):
            by_shard.setdefault(tensor.shard, []).extend(full_names(tensor))
    if by_shard:
        names = [name for shard in by_shard.values() for name in shard]
        operations = [DropTensors(shard, tuple(found)) for shard, found in by_shard.items()]
        yield made(trial, trial.plus(operations), f"drop {describe_names(names)}", safe=False)


def copy_namesakes(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Store modules once more, under the name by which a release looks for what others find under their own."""
    del wishes
    subject = trial.context.subject
    if subject.family is None or subject.numbers is None:
        return
    operations: dict[str, CopyModule] = {}
    for one in trial.occurrences(["weight-missing"]):
        for entry in namesakes(subject.family.table["modules"], one.event.module):
            origin = fill(entry["same_as"], subject.numbers)
            there = origin in subject.stored and one.event.module not in subject.stored
            if there and covers(entry.get("versions", "*"), one.release.version):
                operations[one.event.module] = CopyModule(origin, one.event.module)
    if operations:
        title = f"copy {describe_names(one.module for one in operations.values())} to {describe_names(operations)}"
        yield made(trial, trial.plus(operations.values()), title, safe=True)


def namesakes(listings: Mapping[str, Sequence[Table]], module: str) -> Iterator[Table]:
    """Yield the entries of a family's modules that have this name on disk, and say what else it is called."""
    for entries in listings.values():
        yield from (entry for entry in entries if entry["name"] == module and "same_as" in entry)
