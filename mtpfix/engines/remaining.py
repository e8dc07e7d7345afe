"""What remains when every module has its tensors: tensors of no module, and layers, shards and parameters without any.

Knows what a release does about each. Which modules there are, and what becomes of their own tensors, is decided before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, chain, groupby, islice

from mtpfix.engines import Engine
from mtpfix.engines.blueprint import Blueprint, full_names
from mtpfix.engines.loading import (
    CACHE_SCALES,
    COMPLETE,
    CONSTRUCT,
    FIRST,
    LOAD,
    Kind,
    Loader,
    Module,
    Unnamed,
    elements_of,
    is_excepted,
    refuse,
    shard_key,
    unharmed,
    unknown_part,
)
from mtpfix.engines.subject import Subject
from mtpfix.facts import Table
from mtpfix.families import Numbers, fill
from mtpfix.model import Event, Fault, Outcome, Part, Role, Stored


def judge_unplaced(
    subject: Subject, blueprint: Blueprint, modules: Sequence[Module], loader: Loader
) -> Iterator[Event]:
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
        for suffix, name in sorted(full_names(item), key=lambda pair: _turn(item.parts[pair[0]].order)):
            if (stopped := _stopped(item, suffix, name, loader)) is not None:
                yield stopped
                break
            if not loader.looks_at(name):
                continue
            above, _, rest = module.rpartition(".")
            if not suffix and above in blueprint.claimed:
                yield from _part_of(subject, modules, above, rest, item, loader)
                break
            if is_excepted(name, loader.unknown) or suffix in CACHE_SCALES:
                continue
            mapper = loader.mappers.get(str(loader.unknown.get("unplaced") or loader.unknown.get("renames")))
            path = mapper.map(name) if mapper is not None else name
            path = _cut(path or name, loader.unknown, paths) if loader.unknown.get("cut") else path or name
            words = {"name": path, "prefix": module, "tensor": name, "below": suffix}
            part = item.parts[suffix]
            found = Unnamed("unknown-tensor", module, name, part.order[0], (), elements=elements_of(part.shape))
            yield unharmed(refuse(loader.unknown, words, loader, found))
            break


def _turn(order: tuple[str, str]) -> tuple[str, str]:
    """Return a sort key that puts tensors in the order in which engines read them."""
    return shard_key(order[0]), order[1]


def _part_of(
    subject: Subject, modules: Sequence[Module], name: str, suffix: str, item: Stored, loader: Loader
) -> Iterator[Event]:
    for module in modules:
        for place in module.planned.places:
            if place.module != name:
                continue
            others = (f"{other.module}.{suffix}" for other in module.planned.places)
            if not module.planned.joins or all(other in subject.loadable for other in others):
                yield from unknown_part(module, place, suffix, item.parts[""], "same", loader)
            return


def _stopped(item: Stored, suffix: str, name: str, loader: Loader) -> Event | None:
    """Return what is raised where a name ends at a class, around the one that loads it, which has nothing of it.

    A level of a `number` is a component of names that the loader takes for one.
    """
    path = name
    for level in loader.levels:
        mapper = loader.mappers.get(level.get("renames", ""))
        renamed = mapper.map(path) if mapper is not None else path
        if renamed is None:  # dropped before any class looks at it
            return None
        path = renamed
        if "number" in level:
            if (raised := _unnumbered(item, suffix, path, level, loader)) is not None:
                return raised
            continue
        if not path.startswith(level["below"]):
            break
        first = path.removeprefix(level["below"]).partition(".")[0]
        if first not in level["has"]:
            found = Unnamed("unknown-tensor", item.module, name, item.parts[suffix].order[0], ())
            return refuse(level, {"name": first}, loader, found)
    return None


def _unnumbered(item: Stored, suffix: str, name: str, level: Table, loader: Loader) -> Event | None:
    """Return what is raised where the component of a name that a loader takes for a layer's number is none."""
    parts = name.split(".")
    if not all(text in name for text in level["holds"]) or len(parts) <= level["number"]:
        return None
    component = parts[level["number"]]
    if component.isdecimal():
        return None
    shard, tensor = item.parts[suffix].order
    found = Unnamed("unknown-tensor", item.module, tensor, shard, ())
    raised = refuse(level, {"name": name, "component": component}, loader, found)
    return replace(raised, tensor="", order=(COMPLETE, "", "")) if level.get("late") else raised


def _cut(name: str, fact: Table, paths: frozenset[str]) -> str:
    """Return a name up to its first component that no module of the model has, as loaders that descend report it."""
    root = fact.get("strip", "")
    parts = name.removeprefix(root).split(".")
    for length in range(1, len(parts)):
        beginning = ".".join(parts[:length])
        if not any(path == beginning or path.endswith(f".{beginning}") for path in paths):
            return root + beginning if name.startswith(root) else beginning
    return name


def judge_accounted(
    subject: Subject, modules: Sequence[Module], loader: Loader, runs: re.Pattern[str] | None
) -> Iterator[Event]:
    """Yield what a class raises that keeps account of the parts of a module, where one of them never came.

    A wrapper hands it what matches `runs` in runs, as the tensors follow each other, and it asks after each.
    """
    accounted = [module for module in modules if module.planned.accounted]
    if not accounted:
        return
    if runs is None:
        come = {name for name, item in subject.loadable.items() if _has_weight(item, loader)}
        yield from islice(_unaccounted(accounted, come, (COMPLETE, " ", ""), ""), 1)
        return
    stream = sorted((shard_key(part.order[0]), part.order[1], name, item) for name, item, part in _parts(subject))
    groups = [(inside, list(group)) for inside, group in groupby(stream, lambda one: runs.search(one[1]) is not None)]
    for place, (inside, group) in enumerate(groups):
        shard, last, *_ = group[-1]
        following = groups[place + 1][1][0][1] if place + 1 < len(groups) else ""
        come = {name for *_, name, item in group if _has_weight(item, loader)}
        if inside:
            yield from islice(_unaccounted(accounted, come, (LOAD, shard, last + FIRST), following), 1)


def _parts(subject: Subject) -> Iterator[tuple[str, Stored, Part]]:
    for name, item in subject.loadable.items():
        yield from ((name, item, part) for part in item.parts.values())


def _has_weight(item: Stored, loader: Loader) -> bool:
    return any(suffix in item.parts and loader.looks_at(item.parts[suffix].order[1]) for suffix in ("weight", ""))


def _unaccounted(
    modules: Sequence[Module], come: set[str], order: tuple[int, str, str], tensor: str
) -> Iterator[Event]:
    for module in modules:
        fact, places = module.planned.accounted, module.planned.places
        missing = sorted(which for which, place in zip(fact["parts"], places, strict=True) if place.module not in come)
        if missing:
            text = fact["text"].replace("{name}", f"{module.planned.param}.weight").replace("{missing}", str(missing))
            first = next(place.module for place in places if place.module not in come)
            because = (*module.because, fact["source"])
            kind: Kind = "layer-absent" if module.planned.absent else "weight-missing"
            yield Event(kind, Outcome.CRASH, first, tensor, fact["does"], text, because, order)


def judge_absent_shards(subject: Subject, engine: Engine, version: str, role: Role) -> Iterator[Event]:
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


def judge_unquantized(
    events: Sequence[Event], modules: Sequence[Module], engine: Engine, version: str
) -> Iterator[Event]:
    """Yield what an engine raises for parameters without a tensor where the model counts as unquantized."""
    fact, source = engine.fact("missing_parameters_unquantized", version)
    missing = {event.module for event in events if event.kind == "weight-missing"}
    begun = _begun(modules, missing).union(
        place.module for module in modules if module.planned.layer == "experts" for place in module.planned.places
    )
    passed = _with_method(modules, fact.get("counted") if fact else None)
    absent = (event for event in events if event.kind == "layer-absent")
    unwritten = (event for event in events if event.kind == "weight-missing")
    counted = (event for event in unwritten if event.module not in begun | passed)
    first = next(chain(absent, counted), None)
    if fact and fact["does"] != "silent" and first is not None:
        text = str(fact["text"]).replace("{names}", "{…}")
        order = (COMPLETE, "~~", "")
        yield Event(first.kind, Outcome.CRASH, first.module, "", fact["does"], text, (source,), order)


def _begun(modules: Sequence[Module], missing: set[str]) -> frozenset[str]:
    """Return the names on disk of modules into whose parameter a part that is not `missing` was copied."""
    shares = (
        [place.module for place in module.planned.places if (place.slot == "w2") is second]
        for module in modules
        for second in (False, True)
    )
    return frozenset(name for share in shares if not missing.issuperset(share) for name in share)


def _with_method(modules: Sequence[Module], counted: Sequence[str] | None) -> frozenset[str]:
    """Return the names of parameters whose layer has a quantization method, or hangs on one that has.

    `counted` are the layer classes without one; None where the release counts every parameter.
    """
    if counted is None:
        return frozenset()
    with_method = {module.planned.param for module in modules if module.planned.layer not in counted}
    return frozenset(
        place.module
        for module in modules
        if with_method.intersection((module.planned.param, module.planned.param.rpartition(".")[0]))
        for place in module.planned.places
    )


def judge_absent_layers(blueprint: Blueprint, loader: Loader, numbers: Numbers) -> Iterator[Event]:
    """Yield what a loader does with MTP layers of which no tensor is stored."""
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


def judge_unwritten(
    events: Sequence[Event], modules: Sequence[Module], loader: Loader, method: str, numbers: Numbers
) -> Iterator[Event]:
    """Yield what a loader that counts its parameters raises where one stayed unwritten.

    A parameter counts as written where any part of it was.
    """
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
    silent = [event for event in events if event.outcome is Outcome.SILENT and event.order[0] == COMPLETE]
    begun = _begun(modules, {event.module for event in silent})
    for row in fact.get("of", (fact,)):
        counted = (event for event in silent if event.module not in begun)
        first = next((event for event in counted if re.search(row.get("names", ""), event.module)), None)
        if first is not None:
            text = str(row.get("text", "")).replace("{name}", "…")  # the engine names one of a set, at random
            because = (*first.because, fact.get("source", ""))
            yield Event(first.kind, Outcome.CRASH, first.module, "", fact["does"], text, because, (COMPLETE, "~", ""))
            return
