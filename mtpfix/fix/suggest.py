"""Attach to each finding the smallest repair that its judged releases accept, and the bytes it would write.

A repair by list entries is tried on the prediction before it is offered: it must mend what it is for, and nothing else
may become worse. Nothing is written here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from mtpfix.checkpoint.names import describe_names
from mtpfix.engines.blueprint import SLOTS
from mtpfix.families import branch_prefixes
from mtpfix.model import Declaration, Finding, Fix, Operation, Outcome, Role, Stored
from mtpfix.rules.context import ROLES, Context, Release, occurrences

CONFIG = "config.json"
INDEX = "model.safetensors.index.json"
ENTRY_OVERHEAD = 8  # quotes, comma, newline and indentation of one more entry in a JSON list
Bad = frozenset[tuple[str, str, str, str]]


def suggest(context: Context, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings with their repairs."""
    entries: dict[tuple[str, Role | None], tuple[Fix, ...]] = {}
    done = []
    for found in findings:
        if found.rule in LISTED:
            key = (LISTED[found.rule], found.role)
            if key not in entries:
                entries[key] = tuple(_exclude(context, *key))
            fixes = (*entries[key], *_quantize(context, found))
        elif found.rule == "MTP207":
            key = ("quantized-into-plain", found.role)
            if key not in entries:
                entries[key] = tuple(_remove(context, found.role))
            fixes = (*entries[key], *_dequantize(context, found))
        else:
            fixes = tuple(_REPAIRS[found.rule](context, found)) if found.rule in _REPAIRS else ()
        done.append(replace(found, fixes=fixes))
    return tuple(done)


LISTED = {"MTP201": "plain-into-quantized", "MTP202": "plain-into-quantized", "MTP204": "fused-partly-listed"}
"""Rules whose findings list entries mend, with the kind of event: one set of entries serves a whole model."""


def file_bytes(context: Context, name: str) -> int:
    """Return the size of a file of the checkpoint in bytes, 0 where it is not there."""
    if context.checkpoint.root is None:
        return 0
    try:
        return (context.checkpoint.root / name).stat().st_size
    except OSError:
        return 0


# ------------------------------------------------------------------------------------------------- list entries


def _list_blocks(context: Context) -> list[Declaration]:
    """Return the blocks a repair edits: the top-level one of every file, never a nested copy."""
    return [block for block in context.checkpoint.declarations if len(block.path) <= 1]


def with_entries(context: Context, add: Sequence[str], remove: Sequence[str] = ()) -> list[Declaration]:
    """Return the checkpoint's quantization blocks after entries were added to, and removed from, every list."""
    edited = []
    for block in context.checkpoint.declarations:
        if len(block.path) > 1:
            edited.append(block)
            continue
        kept = [entry for entry in block.excludes if entry not in remove]
        edited.append(replace(block, excludes=(*kept, *(entry for entry in add if entry not in kept))))
    return edited


def _bad(releases: Iterable[Release]) -> Bad:
    """Return what goes wrong, as (release, role, module, kind)."""
    return frozenset(
        (f"{release.engine.name} {release.version}", role, event.module, event.kind)
        for release in releases
        for role in ROLES
        for event in release.model(role).events
        if event.outcome is not Outcome.OK
    )


def _exclude(context: Context, kind: str, role: Role | None) -> Iterator[Fix]:
    """Offer the fewest entries that make every release concerned build the modules of one model plain."""
    mine = [one for one in occurrences(context, [kind]) if one.role == role]
    before = _bad(context.releases)
    fused = kind == "fused-partly-listed"
    names = (name for one in mine for name in (one.built.modules if fused and one.built else (one.event.module,)))
    modules = list(dict.fromkeys(names))
    prefixes = list(dict.fromkeys(one.built.prefix for one in mine if one.built is not None and one.built.prefix))
    best: tuple[int, list[str], Bad] | None = None
    for entries in _candidates(context, modules, prefixes):
        after = _bad(context.try_declarations(with_entries(context, entries)))
        mended = len(before - after)
        if after - before or not mended or (best is not None and mended <= best[0]):
            continue
        best = (mended, entries, after)
        if not any(bad[2] in modules and bad[3] == kind for bad in after):
            break
    if best is not None:
        rest = sorted({bad[0] for bad in best[2] if bad[2] in modules and bad[3] == kind})
        yield _entries_fix(context, best[1], rest)


def _quantize(context: Context, found: Finding) -> Iterator[Fix]:
    modules = _modules_of(context, found, ["plain-into-quantized"]) if found.rule != "MTP204" else []
    if modules:
        size = sum(_packed_bytes(context.subject.stored[name]) for name in modules if name in context.subject.stored)
        operations = tuple(Operation("quantize", "", name) for name in modules)
        yield Fix("quantize the tensors to NVFP4", safe=False, operations=operations, bytes_written=size)


def _entries_fix(context: Context, entries: Sequence[str], rest: Sequence[str]) -> Fix:
    blocks = _list_blocks(context)
    entries = [entry for entry in entries if not all(entry in block.excludes for block in blocks)]
    operations = tuple(
        Operation("add-entry", block.file, entry)
        for block in blocks
        for entry in entries
        if entry not in block.excludes
    )
    written = sum(
        file_bytes(context, file) + sum(len(op.value) + ENTRY_OVERHEAD for op in operations if op.file == file)
        for file in dict.fromkeys(operation.file for operation in operations)
    )
    where = " and ".join(dict.fromkeys(f"{block.exclude_key} of {block.file}" for block in blocks))
    shown = ", ".join(entries[:4]) + (f" and {len(entries) - 4} more" if len(entries) > 4 else "")
    title = f"add {shown} to {where}"
    if rest:
        title += f" (still fails in {rest[0]}" + (f" and {len(rest) - 1} more releases)" if len(rest) > 1 else ")")
    return Fix(title, safe=True, operations=operations, bytes_written=written)


def _candidates(context: Context, modules: Sequence[str], prefixes: Sequence[str]) -> Iterator[list[str]]:
    """Yield sets of entries, from the shortest list upwards, in the dialect of the checkpoint's lists."""
    patterns = _pattern_dialect(context)
    family, numbers = context.subject.family, context.subject.numbers
    exact = list(dict.fromkeys(prefixes))
    if len(modules) == 1 and len(exact) == 1:
        yield [_without_expert(modules[0])] if patterns else exact
        yield exact
    inside = [name for name in modules if context.subject.in_branch(name)]
    if family is not None and numbers is not None and inside:
        roots = [
            root.rstrip(".")
            for root in branch_prefixes(family, numbers)
            if any(name.startswith(root) for name in inside)
        ]
        outside = [prefix for prefix in exact if not any(prefix.startswith(root) for root in roots)]
        for spell in _spellings(patterns, compressed=_compressed(context)):
            globs = [spell(root) for root in roots]
            yield globs
            yield [*globs, *outside]
        both = [spell(root) for root in roots for spell in _spellings(patterns, compressed=_compressed(context))]
        yield both
        yield [*both, *outside]
        yield [*both, *exact]
    parents = list(dict.fromkeys(_without_expert(name) for name in modules))
    yield parents
    yield exact
    yield [*parents, *exact]


def _without_expert(module: str) -> str:
    head, found, _ = module.partition(".{}")
    return head if found else module


def _compressed(context: Context) -> bool:
    return any(block.method == "compressed-tensors" for block in _list_blocks(context))


def _pattern_dialect(context: Context) -> bool:
    return any(block.method in ("modelopt", "compressed-tensors") for block in _list_blocks(context))


def _spellings(patterns: bool, *, compressed: bool) -> list[Callable[[str], str]]:
    if compressed:
        return [lambda root: "re:.*" + root.rpartition("model.")[2].replace(".", r"\.") + r"\..*"]
    if patterns:
        return [lambda root: f"{root}*", lambda root: "*" + root.rpartition("model.")[2] + "*"]
    return []


# ------------------------------------------------------------------------------------------------- other repairs


def _modules_of(context: Context, found: Finding, kinds: Sequence[str]) -> list[str]:
    concerned = {(engine.engine, version) for engine in found.engines for version in engine.versions}
    hits = (
        one.event.module
        for one in occurrences(context, kinds)
        if (one.release.engine.name, one.release.version) in concerned and one.role == found.role
    )
    stored = context.subject.stored
    return [name for name in dict.fromkeys(hits) if name not in stored or stored[name].format.value == found.stored]


def _elements(stored: Stored) -> int:
    return math.prod(stored.shape) * (len(stored.experts) if stored.experts else 1)


def _packed_bytes(stored: Stored) -> int:
    elements = _elements(stored)
    return elements // 2 + elements // 16


def _dequantize(context: Context, found: Finding) -> Iterator[Fix]:
    modules = _modules_of(context, found, ["quantized-into-plain"])
    size = sum(2 * _elements(context.subject.stored[name]) for name in modules)
    operations = tuple(Operation("dequantize", "", name) for name in modules)
    elsewhere = any(
        not built.format.plain and not set(modules).isdisjoint(built.modules)
        for release in context.releases
        for role in ROLES
        for built in release.model(role).built
    )  # a head that the main model builds quantized must not be made plain for the draft alone
    yield Fix("dequantize these tensors to BF16", safe=not elsewhere, operations=operations, bytes_written=size)


def _remove(context: Context, role: Role | None) -> Iterator[Fix]:
    """Offer to take out the entries that exclude quantized modules, where nothing else then becomes worse."""
    mine = [one for one in occurrences(context, ["quantized-into-plain"]) if one.role == role and one.built]
    entries = list(dict.fromkeys(one.built.excluded_by for one in mine if one.built and one.built.excluded_by))
    before = _bad(context.releases)
    after = _bad(context.try_declarations(with_entries(context, (), entries)))
    if entries and after < before:
        blocks = _list_blocks(context)
        operations = tuple(
            Operation("remove-entry", block.file, entry)
            for block in blocks
            for entry in entries
            if entry in block.excludes
        )
        size = sum(file_bytes(context, file) for file in dict.fromkeys(operation.file for operation in operations))
        title = f"remove {describe_names(entries)} from the list"
        yield Fix(title, safe=True, operations=operations, bytes_written=size)


def _graft_modules(context: Context, found: Finding) -> Iterator[Fix]:
    modules = _modules_of(context, found, ["weight-missing"])
    size = 0
    for module in modules:
        hit = _LAYER.search(module)
        alike = (stored for name, stored in context.subject.stored.items() if hit and name.endswith(f".{hit[2]}"))
        size += 2 * max((_elements(stored) for stored in alike), default=0)
    operations = tuple(Operation("graft", "", module) for module in modules)
    yield Fix("graft these modules from the base model", safe=True, operations=operations, bytes_written=size)


def _graft(context: Context, _: Finding) -> Iterator[Fix]:
    numbers = context.subject.numbers
    layers = numbers.mtp if numbers else 0
    size = layers * (_layer_elements(context) * 2 + _glue_bytes(context))
    operation = (Operation("graft", "", "the MTP branch of the base model"),)
    yield Fix(
        "graft the MTP branch from the base model, in BF16 and listed",
        safe=True,
        operations=operation,
        bytes_written=size,
    )
    family = context.subject.family
    if family is not None:
        known = family.table["numbers"].get("K", ())
        keys = [key for key in known if numbers and (key in numbers.decoder or key in numbers.config)]
        off = tuple(Operation("remove-key", CONFIG, key) for key in keys)
        yield Fix(
            f"switch the branch off: remove {', '.join(keys) or 'the MTP keys'} from config.json",
            safe=False,
            operations=off,
            bytes_written=file_bytes(context, CONFIG),
        )


def _layer_elements(context: Context) -> int:
    """Return the weights of the decoder layer that a layer of the branch resembles most, by its modules' names."""
    numbers, family = context.subject.numbers, context.subject.family
    if numbers is None or family is None:
        return 0
    layers: dict[int, dict[str, int]] = {}
    for name, stored in context.subject.stored.items():
        hit = _LAYER.search(name)
        if hit is not None and int(hit[1]) < numbers.layers:
            layers.setdefault(int(hit[1]), {})[hit[2]] = _elements(stored)
    wanted = _branch_parts(context)
    if not layers:
        return 0
    resembling = max(
        layers.values(),
        key=lambda parts: (len(wanted & parts.keys()) / len(wanted | parts.keys()), sum(parts.values())),
    )
    return sum(resembling.values())


_LAYER = re.compile(r"layers\.(\d+)\.(.+)")


def _branch_parts(context: Context) -> set[str]:
    """Return the names, below its layer, of the modules that the newest judged release builds for the branch."""
    family, architecture = context.subject.family, context.subject.architecture or ""
    parts: set[str] = set()
    if family is None or not context.releases:
        return parts
    newest = context.releases[-1]
    for block in family.models(newest.engine.name, "draft", architecture, newest.version):
        for group in block.get("group", ()):
            for listing in group["modules"]:
                for entry in family.table["modules"][listing]:
                    given = entry.get("from", entry["name"])
                    parts.update([given] if isinstance(given, str) else given)
                    parts.update(name for slot in SLOTS for name in entry.get(slot, ()))
    return parts


def _glue_bytes(context: Context) -> int:
    numbers = context.subject.numbers
    hidden = numbers.decoder.get("hidden_size") if numbers else None
    return 4 * hidden * hidden if isinstance(hidden, int) else 0


def _synchronise(context: Context, _: Finding) -> Iterator[Fix]:
    file = "hf_quant_config.json"
    operation = (Operation("synchronise", file, CONFIG),)
    yield Fix(
        f"write the list of {CONFIG} into {file}",
        safe=False,
        operations=operation,
        bytes_written=file_bytes(context, file),
    )


def _drop_block(context: Context, found: Finding) -> Iterator[Fix]:
    operation = (Operation("remove-key", CONFIG, found.module),)
    yield Fix(f"delete {found.module}", safe=True, operations=operation, bytes_written=file_bytes(context, CONFIG))


def _reindex(context: Context, _: Finding) -> Iterator[Fix]:
    size = file_bytes(context, INDEX)
    yield Fix(
        "rebuild the index from the shards",
        safe=True,
        operations=(Operation("reindex", INDEX, ""),),
        bytes_written=size,
    )


def _extend_arrays(context: Context, found: Finding) -> Iterator[Fix]:
    numbers = context.subject.numbers
    if numbers is None:
        return
    keys = _modules_of(context, found, ["array-short"])
    short = [key for key in keys if len(numbers.decoder.get(key) or ()) < numbers.layers + numbers.mtp]
    if short:
        operations = tuple(Operation("extend-array", CONFIG, key) for key in short)
        title = f"extend {', '.join(short)} to the MTP layers, as in the base model's config.json"
        yield Fix(title, safe=False, operations=operations, bytes_written=file_bytes(context, CONFIG))


def _share_scale(_: Context, found: Finding) -> Iterator[Fix]:
    size = found.count * 4
    operation = (Operation("share-scale", "", found.module),)
    yield Fix("share one global scale within each group", safe=False, operations=operation, bytes_written=size)


_REPAIRS: dict[str, Callable[[Context, Finding], Iterator[Fix]]] = {
    "MTP101": _graft,
    "MTP103": _extend_arrays,
    "MTP104": _graft_modules,
    "MTP203": _dequantize,
    "MTP303": _share_scale,
    "MTP401": _synchronise,
    "MTP402": _drop_block,
    "MTP501": _reindex,
    "MTP502": _reindex,
    "MTP503": _reindex,
    "MTP504": _reindex,
    "MTP505": _reindex,
    "MTP507": _reindex,
    "MTP508": _reindex,
}
