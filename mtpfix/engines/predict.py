"""Predict what one engine release does with a checkpoint: what it builds, what it loads, and where it breaks.

Pure: reads the knowledge files and the checkpoint's description, touches no file and runs no engine. Where the
knowledge ends the verdict is `unknown`, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtpfix.checkpoint.names import describe_names
from mtpfix.checkpoint.quant import HF_QUANT_CONFIG
from mtpfix.engines import Engine, load
from mtpfix.engines.blueprint import Planned, draw, holds
from mtpfix.engines.construction import construct_class, construct_module, look_at_weight, read_arrays
from mtpfix.engines.decide import Decider, Lists, prepare_lists
from mtpfix.engines.gptq import METHODS as GPTQ
from mtpfix.engines.gptq import odd_experts, packed_names
from mtpfix.engines.loading import (
    CONSTRUCT,
    LAST,
    LOAD,
    Loader,
    Module,
    load_module,
)
from mtpfix.engines.mapping import from_toml
from mtpfix.engines.remaining import (
    judge_absent_layers,
    judge_absent_shards,
    judge_accounted,
    judge_unplaced,
    judge_unquantized,
    judge_unwritten,
)
from mtpfix.engines.resolve import resolve, resolve_other_file
from mtpfix.engines.resolved import Resolved
from mtpfix.engines.shapes import Shapes
from mtpfix.engines.split import split_module, split_numbers
from mtpfix.engines.subject import Subject
from mtpfix.facts import Table, covers, pick
from mtpfix.families import (
    Family,
    Numbers,
    count_of,
    fill,
    fill_mapper,
)
from mtpfix.model import (
    Built,
    Checkpoint,
    Declaration,
    Event,
    ModelPrediction,
    Outcome,
    Prediction,
    Role,
    Verdict,
)

SILENT: Table = {"does": "silent"}

LEFT_OUT = "only the shards of the MTP branch were read"
"""Why nothing is said of the main model where nobody asked for it."""

UNSURE = "{module} is quantized or built so, the draft takes it from the main model, and it was not read"
PLAIN_PARTS = frozenset(("weight", "bias"))


def predict(
    checkpoint: Checkpoint | Subject,
    engine: str | Engine,
    version: str,
    declarations: Sequence[Declaration] | None = None,
    *,
    ranks: int = 1,
) -> Prediction:
    """Predict one release that splits the model over `ranks`.

    `declarations`, where given, stand in for the checkpoint's own (to try a repair).
    """
    subject = checkpoint if isinstance(checkpoint, Subject) else Subject(checkpoint)
    known = engine if isinstance(engine, Engine) else load(engine)
    blocks = tuple(subject.checkpoint.declarations if declarations is None else declarations)
    resolved = _with_packed(resolve(blocks, known, version, subject.architecture), subject)
    target, lists = _predict_role(subject, known, version, resolved, "target", None, ranks)
    own = _for_draft(subject, known, version, blocks, resolved)
    draft, _ = _predict_role(subject, known, version, own, "draft", lists, ranks, target.built)
    return Prediction(
        engine=known.name,
        version=version,
        confidence=subject.confidence(known, version),
        target=target,
        draft=draft,
        method=resolved.method,
        deciding=resolved.declaration,
    )


def _for_draft(
    subject: Subject, engine: Engine, version: str, declarations: Sequence[Declaration], resolved: Resolved
) -> Resolved:
    """Return what a draft makes of the declarations: the same as the target, unless its configuration has no block."""
    family = subject.family
    blocks = family.models(engine.name, "draft", subject.served_as, version) if family is not None else []
    lists = pick(blocks[0].get("lists"), version) if blocks else None
    if lists == "without-block":
        beside = [one for one in declarations if one.file != "config.json"]
        return _with_packed(resolve(beside, engine, version, subject.architecture), subject)
    if family is None or lists != "other-file":
        return resolved
    return resolve_other_file(declarations, engine, version, resolved, family.table.get("text", ()))


def _with_packed(resolved: Resolved, subject: Subject) -> Resolved:
    """Return a resolved block of GPTQ with the names that an engine takes for packed where the block says none."""
    if resolved.method not in GPTQ or resolved.error is not None or not resolved.simulated:
        return resolved
    if subject.checkpoint.left_out:
        return replace(resolved, simulated=False, reason=f"{LEFT_OUT}, and which modules are packed is not known")
    group = resolved.scheme.group_size if resolved.scheme else None
    odd = odd_experts(subject.stored.values(), group or 0)
    if odd:
        reason = f"what is built for experts as wide as {odd} is not predicted"
        return replace(resolved, simulated=False, reason=reason)
    if resolved.within is None:
        return replace(resolved, within=packed_names(subject.checkpoint.tensors))
    return resolved


def knowledge_key(subject: Subject, engine: Engine, version: str) -> str:
    """Return a text that is equal for two releases exactly when all facts that a prediction reads are equal."""
    family, architecture = subject.family, subject.served_as
    parts: list[object] = [{name: pick(value, version) for name, value in engine.table["facts"].items()}]
    parts.extend(
        [row for row in engine.table.get(name, ()) if covers(row["versions"], version)]
        for name in ("mismatch", "split", "split_numbers")
    )
    if family is not None:
        blocks = family.models(engine.name, "target", architecture, version)
        blocks += family.models(engine.name, "draft", architecture, version)
        parts.append([_picked(block, version) for block in blocks])
        parts.append(_picked(family.table.get("modules", {}), version))
    return json.dumps(parts, sort_keys=True, default=str)


def _picked(value: object, version: str) -> object:
    """Return a value with every ranged fact picked and every entry of another release dropped."""
    if isinstance(value, dict):
        return {
            key: _picked(pick(below, version) if key != "versions" else "", version) for key, below in value.items()
        }
    if isinstance(value, list):
        return [
            _picked(below, version)
            for below in value
            if not isinstance(below, dict) or covers(below.get("versions", "*"), version)
        ]
    return value


def _unpredicted(role: Role, reason: str, verdict: Verdict = Verdict.UNKNOWN) -> ModelPrediction:
    return ModelPrediction(role, verdict, None, None, (), (), reason)


def _predict_role(
    subject: Subject,
    engine: Engine,
    version: str,
    resolved: Resolved,
    role: Role,
    target_lists: Lists | None,
    ranks: int,
    target_built: Sequence[Built] = (),
) -> tuple[ModelPrediction, Lists | None]:
    family, numbers = subject.family, subject.numbers
    if family is None or numbers is None:
        return _unpredicted(role, f"no family file knows the architecture {subject.architecture}"), None
    if role == "draft" and (numbers.mtp == 0 or (not numbers.declared and not subject.mtp.present)):
        return _unpredicted(role, "no MTP layer is declared", Verdict.ABSENT), None
    beside = role == "target" and "beside" in family.table
    blocks = family.models(engine.name, "draft" if beside else role, subject.served_as, version)
    if engine.name not in family.table:
        return _unpredicted(role, f"what {engine.title} does with {family.title} is not known here"), None
    if not blocks:
        return _unpredicted(
            role, f"{engine.title} has no class for {subject.architecture} there that is known here"
        ), None
    if beside:
        return _unpredicted(role, "the main model is a checkpoint of its own", Verdict.ABSENT), None
    block = blocks[0]
    for fact in block.get("unpredicted_when", ()):
        if covers(fact.get("versions", "*"), version) and holds(fact["when"], numbers, None):
            return _unpredicted(role, fact["reason"]), None
    refused, because = resolved.error, resolved.because
    if refused is None and (fact := pick(block.get("unlisted"), version)) is not None and _is_unlisted(resolved):
        refused, because = (fact["does"], fact["text"]), (*because, fact["source"])
    if refused is not None:
        error, text = refused
        order = (CONSTRUCT, "", "")
        event = Event("declaration-refused", Outcome.CRASH, "", "", error, text, because, order)
        earlier = [replace(one, order=order) for one in read_arrays(block, numbers, version, unset_first=True)]
        return _verdict(role, (), [*earlier, event]), None
    if not resolved.simulated:
        reason = resolved.reason or f"the quantization method {resolved.method} is not predicted"
        return _unpredicted(role, reason), None
    if resolved.method in GPTQ and engine.name not in family.table.get("gptq", {}):
        return _unpredicted(role, f"what {engine.title} does with {family.title} in GPTQ is not predicted"), None
    unpredicted = pick(block.get("unpredicted"), version) or ()
    if not {"*", resolved.method}.isdisjoint([unpredicted] if isinstance(unpredicted, str) else unpredicted):
        reason = f"what {pick(block['class'], version)} does here is not predicted"
        return _unpredicted(role, block.get("unpredicted_reason", reason)), None
    patterns = block.get("undescribed", ())
    undescribed = [one for one in subject.checkpoint.tensors if any(re.search(each, one.name) for each in patterns)]
    if undescribed:
        what = block.get("undescribed_reason", f"what {pick(block['class'], version)} does with some tensors")
        named = describe_names((one.name for one in undescribed), limit=2)
        return _unpredicted(role, f"{what} is not described here: {named}"), None
    lists = _lists(family, block, engine, version, resolved, target_lists, numbers)
    if role == "target" and subject.checkpoint.left_out:
        return _unpredicted(role, LEFT_OUT), lists
    decider = Decider(lists, engine, version, _packed(family, block, subject, engine, version))
    return _simulate(subject, engine, version, block, decider, role, resolved, ranks, target_built), lists


def _is_unlisted(resolved: Resolved) -> bool:
    """Return whether the obeyed block stands in a file of its own, and its inner one has no list."""
    block = resolved.declaration
    inner = block.raw.get("quantization") if block is not None and block.file == HF_QUANT_CONFIG else None
    return isinstance(inner, Mapping) and "exclude_modules" not in inner


def _lists(
    family: Family,
    block: Table,
    engine: Engine,
    version: str,
    resolved: Resolved,
    target_lists: Lists | None,
    numbers: Numbers,
) -> Lists:
    own = block["role"] == "target" or pick(block.get("lists", "shared"), version) in (
        "own",
        "other-file",
        "without-block",
    )
    lists = prepare_lists(resolved, engine, version) if own or target_lists is None else target_lists
    for name in pick(block.get("mappers", ()), version) or ():
        table = family.table["mappers"][name]
        if resolved.method not in table.get("not_for", ()):
            lists = lists.mapped(fill_mapper(table, numbers))
    return lists


def _packed(
    family: Family, block: Table, subject: Subject, engine: Engine, version: str
) -> Mapping[str, Sequence[str]]:
    packed: Any = pick(block.get("packed", {}), version)
    if packed == "target":
        targets = family.models(engine.name, "target", subject.served_as, version)
        packed = pick(targets[0].get("packed", {}), version) if targets else {}
    if isinstance(packed, dict):
        return {name: parts for name, parts in packed.items() if isinstance(parts, list)}
    return {}


def _loader(
    family: Family,
    block: Table,
    engine: Engine,
    version: str,
    numbers: Numbers,
    resolved: Resolved,
    shapes: Shapes,
    target_built: Sequence[Built],
) -> Loader:
    unknown = pick(block.get("unknown", {"does": "skip"}), version)
    beside = tuple(engine.fact("gptq_dropped", version)[0] or ()) if resolved.method in GPTQ else ()
    refused = block.get("g_idx") == "refused"
    return Loader(
        model_class=str(pick(block["class"], version)),
        unknown=unknown,
        unknown_experts=pick(block.get("unknown_experts", unknown), version),
        incomplete=pick(block.get("incomplete", SILENT), version),
        absent=pick(block.get("absent", SILENT), version),
        mismatch=[row for row in engine.table.get("mismatch", ()) if covers(row["versions"], version)],
        experts_infix=engine.fact("experts_infix", version)[0] or "",
        never_loaded=engine.fact("scale_never_loaded", version)[0] or None,
        unread=engine.fact("unread_parameters", version)[0] or (),
        dropped=() if refused else beside,
        unplaced=beside if refused else (),
        takes=_pattern(block, "takes", version, numbers),
        skips=_pattern(block, "skips", version, numbers),
        mappers={
            name: from_toml(fill_mapper(table, numbers)) for name, table in family.table.get("mappers", {}).items()
        },
        cache_scales=_as_table(pick(block.get("cache_scales", "skip"), version)),
        layer_names=engine.fact("layer_names", version)[0] or {},
        deferred=bool(pick(block.get("deferred"), version)),
        lost=pick(block.get("deferred"), version) == "lost",
        levels=[level for level in block.get("levels", ()) if covers(level.get("versions", "*"), version)],
        shapes=shapes,
        shared={name: one.format for one in target_built for name in one.modules},
    )


def _as_table(value: Any) -> Table:
    return value if isinstance(value, dict) else {"does": value}


def _pattern(block: Table, key: str, version: str, numbers: Numbers) -> re.Pattern[str] | None:
    """Return one pattern for all regular expressions under a key, None where there is none."""
    found: list[str] = []
    for template in pick(block.get(key, ()), version) or ():
        layers = range(numbers.mtp) if "{N+k}" in template or "{k}" in template else (None,)
        found += (fill(template, numbers, index) for index in layers)
    return re.compile("|".join(f"(?:{one})" for one in found)) if found else None


def _counted(numbers: Numbers, family: Family, block: Table, version: str) -> Numbers:
    """Return the numbers as a class counts layers that takes another number of them than is declared."""
    decoder = pick(block.get("decoder_layers"), version)
    if decoder:
        counted = count_of(numbers, decoder["key"], decoder.get("default"))
        numbers = numbers if counted is None else replace(numbers, layers=counted // decoder.get("each", 1))
    experts = pick(block.get("experts"), version)
    if experts and holds(experts.get("when"), numbers, None):
        numbers = replace(numbers, experts=count_of(numbers, experts["key"], 0) or 0)
    layers = pick(block.get("layers"), version)
    if not layers:
        return numbers
    each = 1
    for key in family.table["numbers"].get("K_length", ()):
        value = numbers.value(key)
        each = len(value) if isinstance(value, (str, list)) and value else each
    return replace(numbers, mtp=min(numbers.mtp, layers["count"] * each))


def _skipping(
    skips: re.Pattern[str] | None, block: Table, declared: Numbers, counted: Numbers
) -> re.Pattern[str] | None:
    """Return the pattern of tensors that are dropped, with those of MTP layers that are declared and not built."""
    roots = [root for group in block.get("group", ()) for root in _listed(group["disk"]) if "k}" in root]
    beyond = [
        rf"^{re.escape(fill(root, declared, index))}\."
        for root in dict.fromkeys(roots)
        for index in range(counted.mtp, declared.mtp)
    ]
    if not beyond:
        return skips
    return re.compile("|".join(f"(?:{one})" for one in ([skips.pattern] if skips is not None else []) + beyond))


def _listed(value: Any) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


def _simulate(
    subject: Subject,
    engine: Engine,
    version: str,
    block: Table,
    decider: Decider,
    role: Role,
    resolved: Resolved,
    ranks: int,
    target_built: Sequence[Built],
) -> ModelPrediction:
    family, numbers = subject.family, subject.numbers
    if family is None or numbers is None:
        return _unpredicted(role, "no family file knows this architecture")
    declared, numbers = numbers, _counted(numbers, family, block, version)
    loader = _loader(family, block, engine, version, numbers, resolved, subject.shapes_in(engine.name), target_built)
    loader = replace(loader, skips=_skipping(loader.skips, block, declared, numbers))
    blueprint = draw(family, block, numbers, subject.names, version)
    events: list[Event] = [
        *construct_class(block, version, resolved.method or "", numbers),
        *read_arrays(block, numbers, version),
    ]
    checks: list[Table] = []
    if ranks > 1:
        refused = [*split_numbers(engine.table.get("split_numbers", ()), numbers, version, ranks)]
        events += refused
        if not refused:  # else nothing is constructed
            events += split_numbers(block.get("splits", ()), numbers, version, ranks, position="0")
            checks = [row for row in engine.table.get("split", ()) if covers(row["versions"], version)]
    built: list[Built] = []
    unsure: list[str] = []
    modules: list[Module] = []
    for position, planned in enumerate(blueprint.modules):
        if not _is_there(planned, decider, resolved.method):
            continue
        plain = (
            planned.never
            or ((resolved.method or "") in planned.plain_for and not _is_listed(planned, resolved))
            or (resolved.method == "compressed-tensors" and planned.plain_if_listed in decider.lists.excludes.names)
            or (resolved.method in GPTQ and _is_hinted(planned, resolved))
        )
        decision = decider.decide(planned.prefix, planned.layer, plain=plain)
        because = tuple(dict.fromkeys(source for source in (*decision.because, planned.source) if source))
        names = tuple(dict.fromkeys(place.module for place in planned.places))
        asked = (decider.decide(name, "column", plain=False) for name in planned.asks)
        for error, text in (one.error for one in (*asked, decision) if one.error is not None):
            order = (CONSTRUCT, f"{position:08d}", "")
            first = names[0] if names else planned.prefix
            events.append(Event("fused-partly-listed", Outcome.CRASH, first, "", error, text, because, order))
        events += construct_module(planned, decision.format, resolved.method or "", position)
        unread = [name for name in names if name in subject.elsewhere]
        if unread:  # the draft shares it with the main model: it is harmless where both keep it in 16 bits
            if not decision.format.plain or any(subject.elsewhere[name] - PLAIN_PARTS for name in unread):
                unsure += unread
            continue
        events += look_at_weight(planned, decision, position)
        if planned.layer != "norm":
            built.append(Built(names, planned.prefix, planned.layer, decision.format, because, decision.entry))
        module = Module(planned, decision.format, decision.dialect, because, position)
        modules.append(module)
        if checks:
            events += split_module(module, subject.loadable, checks, numbers, ranks)
        events += load_module(module, subject.loadable, loader)
    events += judge_unplaced(subject, blueprint, modules, loader)
    events += judge_accounted(subject, modules, loader, _pattern(block, "runs", version, numbers))
    events += judge_absent_shards(subject, engine, version, role)
    events += judge_absent_layers(blueprint, loader, numbers)
    events += judge_unwritten(events, modules, loader, resolved.method or "", numbers)
    if resolved.method is None:
        events += judge_unquantized(events, modules, engine, version)
    judged = _verdict(role, tuple(built), _as_seen(block, events))
    if unsure and judged.verdict is Verdict.LOADS:
        return replace(judged, verdict=Verdict.UNKNOWN, reason=UNSURE.replace("{module}", unsure[0]))
    return judged


def _as_seen(block: Table, events: Sequence[Event]) -> Sequence[Event]:
    """Return events with no tensor at errors that a class raises when it has gathered all tensors before."""
    if not block.get("gathers"):
        return events
    late = (event.order[0] == LOAD and event.order[1].startswith(LAST) for event in events)
    return [
        replace(one, tensor="") if one.error and gathered else one for one, gathered in zip(events, late, strict=True)
    ]


def _is_there(planned: Planned, decider: Decider, method: str | None) -> bool:
    """Return whether a module is constructed that the engine fuses, or not, after what its lists say of the parts."""
    for asked, wanted in ((planned.if_plain, True), (planned.unless_plain, False)):
        if asked is None:
            continue
        known = method is None or method in asked.methods
        plain = known and all(decider.decide(name, "column", plain=False).format.plain for name in asked.names)
        if plain is not wanted:
            return False
    return True


def _is_hinted(planned: Planned, resolved: Resolved) -> bool:
    """Return whether a pattern that excludes holds the text for which the engine builds all of a group plain."""
    text = planned.plain_if_pattern
    return bool(text) and any(text in pattern for pattern in resolved.excludes)


def _is_listed(planned: Planned, resolved: Resolved) -> bool:
    """Return whether an allow-list has a name for which the engine builds the module as the list says."""
    beginning = planned.unless_listed
    return bool(beginning) and any(name.startswith(beginning) for name in resolved.layers)


def _verdict(role: Role, built: tuple[Built, ...], events: Sequence[Event]) -> ModelPrediction:
    ordered = tuple(sorted(events, key=lambda event: event.order))
    crash = next((event for event in ordered if event.outcome is Outcome.CRASH), None)
    if crash is not None:
        error = f"{crash.error}: {crash.text}" if crash.text else crash.error
        return ModelPrediction(role, Verdict.FAILS, error, crash.tensor or None, built, ordered)
    silent = any(event.outcome is Outcome.SILENT for event in ordered)
    return ModelPrediction(role, Verdict.SILENT if silent else Verdict.LOADS, None, None, built, ordered)


__all__ = ["knowledge_key", "predict"]
