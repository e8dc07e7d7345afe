"""Attach to each finding the repairs that its judged releases accept, cheapest first, and the bytes they would write.

Offers what a plan is made of (`repairs`), each tried on the prediction alone: it must mend what it is for, and nothing
else may become worse. Nothing is written here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from mtpfix.engines.blueprint import SLOTS
from mtpfix.fix.cost import file_bytes
from mtpfix.fix.entries import entries_title, find_entries
from mtpfix.fix.operations import CONFIG, described
from mtpfix.fix.repairs import FILES
from mtpfix.fix.repairs.configuration import extend_arrays
from mtpfix.fix.repairs.declarations import restate_mixed
from mtpfix.fix.repairs.files import drop_copies, drop_nested, reindex, synchronise
from mtpfix.fix.repairs.lists import allow_packed, relist
from mtpfix.fix.repairs.repair import Repair, Way, Wishes, made
from mtpfix.fix.repairs.scales import add_input_scales, share_scales, weight_only
from mtpfix.fix.repairs.weights import drop_unknown
from mtpfix.fix.trial import Trial
from mtpfix.model import DIGITS, ROLES, Finding, Fix, Operation, Role, Stored
from mtpfix.rules.context import Context, occurrences

ANYTHING = Wishes(unsafe=True)


def suggest(context: Context, findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """Return the findings with their repairs."""
    trial = Trial(context)
    entries: dict[tuple[str, Role | None], tuple[Fix, ...]] = {}
    done = []
    for found in findings:
        if found.rule in LISTED:
            key = (LISTED[found.rule], found.role)
            if key not in entries:
                entries[key] = tuple(_exclude(trial, *key))
            fixes = (*entries[key], *_quantize(context, found))
        elif found.rule == "MTP207":
            key = ("quantized-into-plain", found.role)
            if key not in entries:
                entries[key] = tuple(_tried(trial, relist, key[0]))
            fixes = (*entries[key], *_dequantize(context, found))
        elif found.rule in _WAYS:
            fixes = tuple(fix for way in _WAYS[found.rule] for fix in _tried(trial, way))
        else:
            fixes = tuple(_REPAIRS[found.rule](context, found)) if found.rule in _REPAIRS else ()
        done.append(replace(found, fixes=fixes))
    return tuple(done)


LISTED = {"MTP201": "plain-into-quantized", "MTP202": "plain-into-quantized", "MTP204": "fused-partly-listed"}
"""Rules whose findings list entries mend, with the kind of event: one set of entries serves a whole model."""


def _tried(trial: Trial, way: Way, kind: str = "") -> Iterator[Fix]:
    """Yield the repairs of a way that help: judged releases fail less, or the files alone were at fault.

    Where events of a `kind` remain, the title says in which releases.
    """
    for repair in way(trial, ANYTHING):
        after = trial.plus(repair.operations)
        if after.gain(trial) or (way in FILES and not after.bad - trial.bad):
            rest = sorted({bad[0] for bad in after.bad if bad[3] == kind})
            yield fix_of(replace(repair, title=repair.title + _still(rest)))


def _still(rest: Sequence[str]) -> str:
    """Return how a title ends where some releases fail still."""
    more = f" and {len(rest) - 1} more releases" if len(rest) > 1 else ""
    return f" (still fails in {rest[0]}{more})" if rest else ""


def fix_of(repair: Repair) -> Fix:
    """Return a repair as a report offers it."""
    return Fix(repair.title, repair.safe, tuple(map(described, repair.operations)), repair.bytes_written)


def _exclude(trial: Trial, kind: str, role: Role | None) -> Iterator[Fix]:
    """Offer the fewest entries that make every release concerned build the modules of one model plain."""
    found = find_entries(trial, role, (kind,))
    if found is not None:
        title = entries_title(trial.context.checkpoint, found.entries) + _still(sorted({bad[0] for bad in found.rest}))
        yield fix_of(made(trial, found.trial, title, safe=True))


def _quantize(context: Context, found: Finding) -> Iterator[Fix]:
    modules = _modules_of(context, found, ["plain-into-quantized"]) if found.rule != "MTP204" else []
    gptq = any(block.method == "gptq" for block in context.deciding)  # beside it no engine takes NVFP4
    if modules and not gptq and not _is_table(context, modules):
        size = sum(_packed_bytes(context.subject.stored[name]) for name in modules if name in context.subject.stored)
        operations = tuple(Operation("quantize", "", name) for name in modules)
        yield Fix("quantize the tensors to NVFP4", safe=False, operations=operations, bytes_written=size)


def _is_table(context: Context, modules: Sequence[str]) -> bool:
    """Return whether any of the modules is a part of a table of embeddings, which no engine reads packed."""
    wanted = set(modules)
    return any(
        one.built is not None and one.built.layer == "table" and one.event.module in wanted
        for one in occurrences(context, ["plain-into-quantized"])
    )


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
            bytes_written=file_bytes(context.checkpoint, CONFIG),
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


_LAYER = re.compile(rf"layers\.(\d{{1,{DIGITS}}})\.(.+)")


def _branch_parts(context: Context) -> set[str]:
    """Return the names, below its layer, of the modules that the newest judged release builds for the branch."""
    family, architecture = context.subject.family, context.subject.served_as
    parts: set[str] = set()
    if family is None or not context.releases:
        return parts
    newest = context.releases[-1]
    for block in family.models(newest.engine.name, "draft", architecture, newest.version):
        for group in block.get("group", ()):
            for listing in group["modules"]:
                for entry in family.modules(listing, newest.version):
                    given = entry.get("from") or entry["name"]
                    parts.update([given] if isinstance(given, str) else given)
                    parts.update(name for slot in SLOTS for name in entry.get(slot, ()))
    return parts


def _glue_bytes(context: Context) -> int:
    numbers = context.subject.numbers
    hidden = numbers.decoder.get("hidden_size") if numbers else None
    return 4 * hidden * hidden if isinstance(hidden, int) else 0


_REPAIRS: dict[str, Callable[[Context, Finding], Iterator[Fix]]] = {
    "MTP101": _graft,
    "MTP104": _graft_modules,
    "MTP203": _dequantize,
}
_WAYS: dict[str, tuple[Way, ...]] = {
    "MTP103": (extend_arrays,),
    "MTP205": (allow_packed, restate_mixed),
    "MTP206": (drop_unknown,),
    "MTP301": (weight_only, add_input_scales),
    "MTP303": (share_scales,),
    "MTP401": (synchronise,),
    "MTP402": (drop_nested,),
    "MTP506": (drop_copies,),
    **dict.fromkeys(("MTP501", "MTP502", "MTP503", "MTP504", "MTP505", "MTP507", "MTP508"), (reindex,)),
}
