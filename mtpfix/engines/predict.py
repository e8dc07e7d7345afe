"""Predict what one engine release does with a checkpoint: what it builds, what it loads, and where it breaks.

Pure: reads the knowledge files and the checkpoint's description, touches no file and runs no engine. Where the
knowledge ends the verdict is `unknown`, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

from mtpfix.checkpoint.names import split_name
from mtpfix.checkpoint.stored import stored_modules
from mtpfix.engines import Engine, load
from mtpfix.engines.blueprint import Blueprint, Names, Planned, draw, full_names, holds
from mtpfix.engines.decide import Decider, Decision, Lists, prepare_lists
from mtpfix.engines.gptq import METHODS as GPTQ
from mtpfix.engines.gptq import odd_experts, packed_names
from mtpfix.engines.loading import (
    CACHE_SCALES,
    COMPLETE,
    CONSTRUCT,
    Kind,
    Loader,
    Module,
    Unnamed,
    is_excepted,
    load_module,
    refuse,
    unknown_part,
)
from mtpfix.engines.mapping import from_toml
from mtpfix.engines.parameters import parameters_of
from mtpfix.engines.resolve import resolve
from mtpfix.engines.resolved import Resolved
from mtpfix.engines.shapes import Shapes, read_shapes
from mtpfix.engines.split import split_module, split_numbers
from mtpfix.facts import Table, covers, pick
from mtpfix.families import (
    Family,
    Numbers,
    architecture_of,
    branch_prefixes,
    fill,
    fill_mapper,
    match,
    read_numbers,
    served_as,
)
from mtpfix.model import (
    Built,
    Checkpoint,
    Confidence,
    Declaration,
    Dialect,
    Event,
    Fault,
    Format,
    ModelPrediction,
    MtpSummary,
    Outcome,
    Prediction,
    Role,
    Stored,
    Verdict,
)

SILENT: Table = {"does": "silent"}

LEFT_OUT = "only the shards of the MTP branch were read"
"""Why nothing is said of the main model where nobody asked for it."""

UNSURE = "{module} is quantized or built so, the draft takes it from the main model, and it was not read"
PLAIN_PARTS = frozenset(("weight", "bias"))


@dataclass(frozen=True)
class Subject:
    """A checkpoint with everything that every engine release looks at, computed once."""

    checkpoint: Checkpoint

    @cached_property
    def architecture(self) -> str | None:
        """Return `architectures[0]` of the configuration."""
        return architecture_of(self.checkpoint.config)

    @cached_property
    def family(self) -> Family | None:
        """Return the family that knows the architecture."""
        return match(self.architecture)

    @cached_property
    def served_as(self) -> str:
        """Return the architecture that engines serve it as: its own, unless its family knows a configuration better."""
        if self.family is None or self.numbers is None:
            return self.architecture or ""
        return served_as(self.family, self.architecture or "", self.numbers)

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        """Return the stored modules by name."""
        return stored_modules(self.checkpoint.tensors)

    @cached_property
    def loadable(self) -> Mapping[str, Stored]:
        """Return the stored modules that engines get to see: where there is an index, only files it names."""
        shards = self.checkpoint.shards if self.checkpoint.has_index else ()
        dropped = {shard.name for shard in shards if shard.tensors and not shard.indexed}
        if not dropped:
            return self.stored
        return stored_modules(tensor for tensor in self.checkpoint.tensors if tensor.shard not in dropped)

    @cached_property
    def names(self) -> Names:
        """Return the index of the names that engines get to see."""
        unseen = {name: Stored(name, Format.UNKNOWN, Dialect.OTHER, (), {}) for name in self.elsewhere}
        return Names({**unseen, **self.loadable} if unseen else self.loadable)

    @cached_property
    def elsewhere(self) -> Mapping[str, frozenset[str]]:
        """Return the modules that lie in shards nobody asked for, and how the names of their tensors end."""
        found: dict[str, set[str]] = {}
        for name in self.checkpoint.elsewhere:
            module, suffix = split_name(name)
            found.setdefault(module, set()).add(suffix)
        return {module: frozenset(suffixes) for module, suffixes in found.items()}

    @cached_property
    def numbers(self) -> Numbers | None:
        """Return the layer counts, where the family is known."""
        return read_numbers(self.family, self.checkpoint.config) if self.family else None

    @cached_property
    def shapes(self) -> Shapes:
        """Return the shapes that the configuration gives the tensors, where the family says."""
        return read_shapes(self.family, self.numbers) if self.family and self.numbers else Shapes()

    @cached_property
    def mtp(self) -> MtpSummary:
        """Return what is declared and stored of the MTP branch."""
        if self.family is None or self.numbers is None:
            return MtpSummary(0, present=False, tensors=0)
        prefixes = branch_prefixes(self.family, self.numbers)
        count = sum(tensor.count for tensor in self.checkpoint.tensors if tensor.name.startswith(prefixes))
        if not self.checkpoint.headers:
            count = sum(name.startswith(prefixes) for name in self.checkpoint.lost)
        declared = self.numbers.mtp if self.numbers.declared else 0
        return MtpSummary(declared, present=count > 0, tensors=count, prefixes=prefixes)

    def confidence(self, engine: Engine, version: str) -> Confidence:
        """Return whether a release was run with checkpoints of this architecture, of GPTQ where it is that, or read."""
        if self.family is None:
            return Confidence.DERIVED
        run = self.family.table.get("gptq", {}).get(engine.name, ())
        if version not in run and any(block.method == "gptq" for block in self.checkpoint.declarations):
            return Confidence.DERIVED
        return engine.confidence(version, self.family, self.served_as)

    @property
    def branch_is_loadable(self) -> bool:
        """Return whether engines get to see any tensor of the branch."""
        return any(module.startswith(self._branch) for module in self.loadable) if self._branch else False

    def in_branch(self, module: str) -> bool:
        """Return whether a module, by its name on disk, belongs to the MTP branch."""
        return self.family is not None and self.numbers is not None and module.startswith(self._branch)

    @cached_property
    def _branch(self) -> tuple[str, ...]:
        return branch_prefixes(self.family, self.numbers) if self.family and self.numbers else ()


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
    draft, _ = _predict_role(subject, known, version, resolved, "draft", lists, ranks)
    return Prediction(
        engine=known.name,
        version=version,
        confidence=subject.confidence(known, version),
        target=target,
        draft=draft,
        method=resolved.method,
        deciding=resolved.declaration,
    )


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
        return _unpredicted(role, f"{engine.title} has no class for {subject.architecture} there"), None
    if beside:
        return _unpredicted(role, "the main model is a checkpoint of its own", Verdict.ABSENT), None
    block = blocks[0]
    for fact in block.get("unpredicted_when", ()):
        if covers(fact.get("versions", "*"), version) and holds(fact["when"], numbers, None):
            return _unpredicted(role, fact["reason"]), None
    if resolved.error is not None:
        error, text = resolved.error
        order = (CONSTRUCT, "", "")
        event = Event("declaration-refused", Outcome.CRASH, "", "", error, text, resolved.because, order)
        earlier = [replace(one, order=order) for one in _short_arrays(block, numbers, version, unset_first=True)]
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
    if any(
        re.search(one, tensor.name) for one in block.get("undescribed", ()) for tensor in subject.checkpoint.tensors
    ):
        return _unpredicted(
            role, f"what {pick(block['class'], version)} does with these tensors is not predicted"
        ), None
    lists = _lists(family, block, engine, version, resolved, target_lists, numbers)
    if role == "target" and subject.checkpoint.left_out:
        return _unpredicted(role, LEFT_OUT), lists
    decider = Decider(lists, engine, version, _packed(family, block, subject, engine, version))
    return _simulate(subject, engine, version, block, decider, role, resolved, ranks), lists


def _lists(
    family: Family,
    block: Table,
    engine: Engine,
    version: str,
    resolved: Resolved,
    target_lists: Lists | None,
    numbers: Numbers,
) -> Lists:
    own = block["role"] == "target" or pick(block.get("lists", "shared"), version) == "own"
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
    family: Family, block: Table, engine: Engine, version: str, numbers: Numbers, resolved: Resolved, shapes: Shapes
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


def _simulate(
    subject: Subject,
    engine: Engine,
    version: str,
    block: Table,
    decider: Decider,
    role: Role,
    resolved: Resolved,
    ranks: int,
) -> ModelPrediction:
    family, numbers = subject.family, subject.numbers
    if family is None or numbers is None:
        return _unpredicted(role, "no family file knows this architecture")
    loader = _loader(family, block, engine, version, numbers, resolved, subject.shapes)
    blueprint = draw(family, block, numbers, subject.names, version)
    broken = _broken(block, version, resolved.method or "", numbers)
    events: list[Event] = [*broken, *_short_arrays(block, numbers, version)]
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
        if decision.error is not None:
            error, text = decision.error
            order = (CONSTRUCT, f"{position:08d}", "")
            first = names[0] if names else planned.prefix
            events.append(Event("fused-partly-listed", Outcome.CRASH, first, "", error, text, because, order))
        events += _refused(planned, decision.format, resolved.method or "", position)
        unread = [name for name in names if name in subject.elsewhere]
        if unread:  # the draft shares it with the main model: it is harmless where both keep it in 16 bits
            if not decision.format.plain or any(subject.elsewhere[name] - PLAIN_PARTS for name in unread):
                unsure += unread
            continue
        events += _nameless(planned, decision, position)
        if planned.layer != "norm":
            built.append(Built(names, planned.prefix, planned.layer, decision.format, because, decision.entry))
        module = Module(planned, decision.format, decision.dialect, because, position)
        modules.append(module)
        if checks:
            events += split_module(module, subject.loadable, checks, numbers, ranks)
        events += load_module(module, subject.loadable, loader)
    events += _leftovers(subject, blueprint, modules, loader)
    events += _absent_shards(subject, engine, version, role)
    events += _absent_layers(blueprint, loader, numbers)
    events += _incomplete(events, loader, resolved.method or "", numbers)
    if resolved.method is None:
        events += _unquantized(events, engine, version)
    judged = _verdict(role, tuple(built), events)
    if unsure and judged.verdict is Verdict.LOADS:
        return replace(judged, verdict=Verdict.UNKNOWN, reason=UNSURE.replace("{module}", unsure[0]))
    return judged


def _refused(planned: Planned, built: Format, method: str, position: int) -> Iterator[Event]:
    """Yield what the constructor of a module raises that cannot be quantized so, unless its lists leave it plain."""
    fact = planned.refused
    if method in fact.get("methods", {}) and (not built.plain or method in fact.get("unasked", ())):
        text = fact["text"].replace("{config}", fact["methods"][method])
        first = planned.places[0].module if planned.places else planned.prefix
        kind: Kind = "class-broken" if built.plain else "plain-into-quantized"
        order = (CONSTRUCT, f"{position:08d}", "")
        yield Event(kind, Outcome.CRASH, first, "", fact["does"], text, (fact["source"],), order)


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


def _broken(block: Table, version: str, method: str, numbers: Numbers) -> Iterator[Event]:
    """Yield the error of a model class that cannot be constructed at a release, whatever the checkpoint holds."""
    fact = pick(block.get("broken"), version)
    if not fact or fact["does"] == "silent" or method not in fact.get("methods", (method,)):
        return
    if holds(fact.get("when"), numbers, None):
        because = (str(fact.get("source", "")),)
        text = fill(fact["text"], numbers)
        if "when" in fact:
            text = text.replace("{value}", str(numbers.value(fact["when"]["key"])))
        yield Event("class-broken", Outcome.CRASH, "", "", fact["does"], text, because, (CONSTRUCT, "", ""))


def _nameless(planned: Planned, decision: Decision, position: int) -> Iterator[Event]:
    """Yield the error of a class that looks at the `weight` of a module whose weight has another name."""
    fact = planned.reads_weight
    if fact and "weight" not in parameters_of(decision.format, decision.dialect):
        order = (CONSTRUCT, f"{position:08d}", "~")
        because = (str(fact.get("source", "")),)
        yield Event("class-broken", Outcome.CRASH, planned.prefix, "", fact["does"], fact["text"], because, order)


def _short_arrays(block: Table, numbers: Numbers, version: str, *, unset_first: bool = False) -> Iterator[Event]:
    """Yield what is raised for arrays that are shorter than what is read of them, or absent.

    With `unset_first` only for absent ones that are missed before anybody asks how the checkpoint is quantized.
    """
    for fact in block.get("arrays", ()):
        if not covers(fact.get("versions", "*"), version) or (unset_first and not fact.get("unset_first")):
            continue
        needed = _length(fact["length"], numbers)
        for key in fact["keys"]:
            value = numbers.decoder.get(key)
            if value is None and "unset" in fact:
                because = (str(fact.get("source", "")),)
                order = (CONSTRUCT, "", key)
                yield Event("array-short", Outcome.CRASH, key, "", fact["unset"], fact["unset_text"], because, order)
            if unset_first:
                continue
            kept = (
                min(len(value), numbers.layers) if fact.get("cut") == "N" and isinstance(value, (list, str)) else None
            )
            if isinstance(value, (list, str)) and value and (len(value) if kept is None else kept) < needed:
                text = str(fact["text"]).replace("{key}", key)
                because = (str(fact.get("source", "")),)
                yield Event("array-short", Outcome.CRASH, key, "", fact["does"], text, because, (CONSTRUCT, "", key))
                break


def _length(length: str | int, numbers: Numbers) -> int:
    """Return how many entries of a per-layer array are read: all decoder layers, the MTP layers too, or a number."""
    return length if isinstance(length, int) else numbers.layers + (numbers.mtp if length == "N+K" else 0)


def _leftovers(subject: Subject, blueprint: Blueprint, modules: Sequence[Module], loader: Loader) -> Iterator[Event]:
    """Yield what the loader does with tensors of modules that it does not construct.

    A name below one that it does construct is a part of that, which it has no parameter for.
    """
    paths = frozenset(
        path for planned in blueprint.modules for path in accumulate(planned.param.split("."), "{}.{}".format)
    )
    for item in subject.loadable.values():
        module = item.module
        if module in blueprint.claimed:
            continue
        for suffix, name in full_names(item):
            if (stopped := _stopped(item, suffix, name, loader)) is not None:
                yield stopped
                break
            if not loader.looks_at(name):
                continue
            above, _, rest = module.rpartition(".")
            if not suffix and above in blueprint.claimed:
                yield from _part_of(modules, above, rest, item, loader)
                break
            if is_excepted(name, loader.unknown) or suffix in CACHE_SCALES:
                continue
            mapper = loader.mappers.get(str(loader.unknown.get("unplaced") or loader.unknown.get("renames")))
            path = mapper.map(name) if mapper is not None else name
            path = _cut(path or name, loader.unknown, paths) if loader.unknown.get("cut") else path or name
            words = {"name": path, "prefix": module, "tensor": name, "below": suffix}
            found = Unnamed("unknown-tensor", module, name, item.parts[suffix].order[0], ())
            yield refuse(loader.unknown, words, loader, found)
            break


def _part_of(modules: Sequence[Module], name: str, suffix: str, item: Stored, loader: Loader) -> Iterator[Event]:
    for module in modules:
        for place in module.planned.places:
            if place.module == name:
                yield from unknown_part(module, place, suffix, item.parts[""], "same", loader)
                return


def _stopped(item: Stored, suffix: str, name: str, loader: Loader) -> Event | None:
    """Return what is raised where a name ends at a class, around the one that loads it, which has nothing of it."""
    path = name
    for level in loader.levels:
        mapper = loader.mappers.get(level.get("renames", ""))
        path = (mapper.map(path) or path) if mapper is not None else path
        if not path.startswith(level["below"]):
            break
        first = path.removeprefix(level["below"]).partition(".")[0]
        if first not in level["has"]:
            found = Unnamed("unknown-tensor", item.module, name, item.parts[suffix].order[0], ())
            return refuse(level, {"name": first}, loader, found)
    return None


def _cut(name: str, fact: Table, paths: frozenset[str]) -> str:
    """Return a name up to its first component that no module of the model has, as loaders that descend report it."""
    root = fact.get("strip", "")
    parts = name.removeprefix(root).split(".")
    for length in range(1, len(parts)):
        beginning = ".".join(parts[:length])
        if not any(path == beginning or path.endswith(f".{beginning}") for path in paths):
            return root + beginning if name.startswith(root) else beginning
    return name


def _absent_shards(subject: Subject, engine: Engine, version: str, role: Role) -> Iterator[Event]:
    """Yield what an engine does when the index names files that are not there, or tensors that no file holds."""
    fact, source = engine.fact("index_shard_absent", version)
    absent = any(problem.fault is Fault.SHARD_ABSENT for problem in subject.checkpoint.problems)
    if absent and fact and fact["does"] != "silent":
        text = str(fact["text"]).replace("{files}", "{…}")
        yield Event("shard-absent", Outcome.CRASH, "", "", fact["does"], text, (source,), (CONSTRUCT, "~", ""))
        return
    mine = [name for name in subject.checkpoint.lost if subject.in_branch(name) == (role == "draft")]
    if mine:
        order = (COMPLETE, "", "")
        yield Event("shard-absent", Outcome.SILENT, "", mine[0], "", "", (source,), order, len(mine))


def _unquantized(events: Sequence[Event], engine: Engine, version: str) -> Iterator[Event]:
    """Yield what an engine raises for parameters without a tensor where the model counts as unquantized."""
    fact, source = engine.fact("missing_parameters_unquantized", version)
    first = next((event for event in events if event.kind in ("layer-absent", "weight-missing")), None)
    if fact and fact["does"] != "silent" and first is not None:
        text = str(fact["text"]).replace("{names}", "{…}")
        order = (COMPLETE, "~~", "")
        yield Event(first.kind, Outcome.CRASH, first.module, "", fact["does"], text, (source,), order)


def _absent_layers(blueprint: Blueprint, loader: Loader, numbers: Numbers) -> Iterator[Event]:
    for index, name in blueprint.absent:
        fact = loader.absent
        layer = numbers.layers + index
        because = tuple(filter(None, (fact.get("source"),)))
        crash = fact["does"] != "silent"
        yield Event(
            "layer-absent",
            Outcome.CRASH if crash else Outcome.SILENT,
            name,
            "",
            fact["does"] if crash else "",
            str(fact.get("text", "")).replace("{layer}", str(layer)).replace("{index}", str(index)) if crash else "",
            because,
            (COMPLETE, f"{index:08d}", ""),
        )


def _incomplete(events: Sequence[Event], loader: Loader, method: str, numbers: Numbers) -> Iterator[Event]:
    """Yield what a loader that counts its parameters raises where one stayed unwritten."""
    fact = loader.incomplete
    if fact["does"] == "silent" or (method and fact.get("unquantized")):
        return
    always = fact.get("always_for", {}).get(method)
    if always is not None:
        name = fill(always, numbers)
        text = str(fact.get("text", "")).replace("{name}", name)
        order = (COMPLETE, "", "")
        yield Event("class-broken", Outcome.CRASH, "", "", fact["does"], text, (fact.get("source", ""),), order)
        return
    first = next(
        (event for event in events if event.outcome is Outcome.SILENT and event.order[0] == COMPLETE),
        None,
    )
    if first is not None:
        text = str(fact.get("text", "")).replace("{name}", "…")  # the engine names one of a set, at random
        because = (*first.because, fact.get("source", ""))
        yield Event(first.kind, Outcome.CRASH, first.module, "", fact["does"], text, because, (COMPLETE, "~", ""))


def _verdict(role: Role, built: tuple[Built, ...], events: Sequence[Event]) -> ModelPrediction:
    ordered = tuple(sorted(events, key=lambda event: event.order))
    crash = next((event for event in ordered if event.outcome is Outcome.CRASH), None)
    if crash is not None:
        error = f"{crash.error}: {crash.text}" if crash.text else crash.error
        return ModelPrediction(role, Verdict.FAILS, error, crash.tensor or None, built, ordered)
    silent = any(event.outcome is Outcome.SILENT for event in ordered)
    return ModelPrediction(role, Verdict.SILENT if silent else Verdict.LOADS, None, None, built, ordered)


__all__ = ["Subject", "knowledge_key", "predict"]
