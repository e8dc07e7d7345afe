"""What happens while an engine copies stored tensors into the parameters it built, tensor by tensor.

Reads shapes and dtypes only. Each event says which tensor, what the engine does, and the text it prints; events carry
the engine's own loading order, so that the first that raises is the one a user sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any, Literal

from mtpfix.checkpoint.conventions import CONVENTIONS
from mtpfix.checkpoint.names import WEIGHTS
from mtpfix.checkpoint.stored import variants
from mtpfix.engines.blueprint import Place, Planned
from mtpfix.engines.mapping import NameMapper
from mtpfix.engines.parameters import PLAIN_DTYPES, Parameter, parameters_of, shape_of
from mtpfix.engines.shapes import NOTHING, Shape, Shapes, evaluate
from mtpfix.facts import Table
from mtpfix.model import EXPERT, Dialect, Event, Format, Outcome, Part, Stored

CONSTRUCT, LOAD, COMPLETE, AFTER = range(4)
"""Phases of loading, in order: constructing the model, copying tensors, counting what came, post-load checks."""

Kind = Literal[
    "same",
    "plain-into-quantized",
    "quantized-into-plain",
    "other-format",
    "scale-missing",
    "scale-partly-written",
    "scale-shape",
    "shape-differs",
    "unknown-tensor",
    "weight-missing",
    "layer-absent",
    "array-short",
    "fused-partly-listed",
    "declaration-refused",
    "class-broken",
    "shard-absent",
    "unsplittable",
]
"""Causes of events: a closed vocabulary that the rules read."""

FIRST = "!"
"""What sorts before every name of a shard."""

LAST = "~"
"""What sorts after every name of a shard, the more of it the later."""

CACHE_SCALES = frozenset({"k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "k_zero_point", "v_zero_point"})
SCALES = frozenset(
    {"weight_scale", "weight_scale_2", "weight_scale_inv", "weight_global_scale", "input_scale", "input_global_scale"}
)
"""Scales beside a weight: a parameter that is never quantized has none."""
NVFP4 = (Format.NVFP4, Format.NVFP4_A16)
EIGHT_BIT = (Format.FP8, Format.FP8_CHANNEL, Format.FP8_BLOCK, Format.MXFP8)
BLOCK_SUFFIXES = ("weight", "weight_scale_inv")
"""What a loader looks for that turns 8-bit weights in blocks into 16-bit ones; other scales are unknown to it."""
TORCH_DTYPES: Mapping[str, str] = {
    "BF16": "torch.bfloat16",
    "F16": "torch.float16",
    "F32": "torch.float32",
    "F64": "torch.float64",
    "U8": "torch.uint8",
    "I8": "torch.int8",
    "F8_E4M3": "torch.float8_e4m3fn",
    "F8_E8M0": "torch.float8_e8m0fnu",
}
"""How torch prints the types of safetensors."""
UNLIKE_PLAIN = frozenset({"U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"})
"""Types that a parameter which is never quantized does not have: their numbers are misread."""
CONCATENATED: Mapping[str, str] = {
    "BF16": "BFloat16",
    "F16": "Half",
    "F32": "Float",
    "F64": "Double",
    "U8": "Byte",
    "I8": "Char",
    "F8_E4M3": "Float8_e4m3fn",
    "F8_E8M0": "Float8_e8m0fnu",
}
"""How torch calls them in the text about types that it cannot join."""


@dataclass(frozen=True, slots=True)
class Loader:
    """The facts of one model's loader at one release: tables as in docs/knowledge.md, picked for the release.

    `unread`: parameters that weight-only layers have and never read. `dropped`: suffixes of tensors that the engine
    passes over, whatever is built; `unplaced`: those that no layer has a parameter for. `deferred`: tensors are copied
    by other threads, and what fails there is raised after all were handed out, or, where it is `lost`, by nobody.
    `levels` are the classes that a name passes through first; `shapes` are those that the configuration gives the
    tensors; `shared` are the formats that the target builds its modules in, by their names on disk, where it is known.
    """

    model_class: str
    unknown: Table
    unknown_experts: Table
    incomplete: Table
    absent: Table
    mismatch: Sequence[Table]
    experts_infix: str
    never_loaded: Table | None
    layer_names: Mapping[str, str]
    takes: re.Pattern[str] | None
    skips: re.Pattern[str] | None
    cache_scales: Table
    mappers: Mapping[str, NameMapper]
    unread: Sequence[str] = ()
    dropped: tuple[str, ...] = ()
    unplaced: tuple[str, ...] = ()
    deferred: bool = False
    lost: bool = False
    levels: Sequence[Table] = ()
    shapes: Shapes = field(default_factory=Shapes)
    shared: Mapping[str, Format] = field(default_factory=dict)
    uneventful: set[object] = field(default_factory=set)

    def looks_at(self, name: str) -> bool:
        """Return whether this loader looks at a tensor of this name, rather than dropping it without a word."""
        if self.skips is not None and self.skips.search(name):
            return False
        return self.takes is None or self.takes.search(name) is not None


def shard_key(shard: str) -> str:
    """Return a sort key that orders shard names as vLLM's natural sort does."""
    return re.sub(r"\d+", lambda digits: digits.group().zfill(12), shard)


def kind_of(stored: Stored, built: Format, dialect: Dialect) -> Kind:
    """Return how a stored module relates to what the engine builds for it."""
    if stored.format.plain:
        return "same" if built.plain else "plain-into-quantized"
    if built.plain:
        return "quantized-into-plain"
    if stored.format in NVFP4 and built in NVFP4 and stored.dialect == dialect:
        return "same"
    if stored.format == built and (stored.dialect == dialect or Dialect.OTHER in (stored.dialect, dialect)):
        return "same"
    return "other-format"


@dataclass(frozen=True, slots=True)
class Module:
    """A planned module with the format the engine builds it in; `because` cites why, `position` orders construction."""

    planned: Planned
    built: Format
    dialect: Dialect
    because: tuple[str, ...]
    position: int


def load_module(module: Module, stored: Mapping[str, Stored], loader: Loader) -> Iterator[Event]:
    """Yield what happens to one module: mismatches and unknown tensors while loading, then what stayed unwritten."""
    planned = module.planned
    stored_at = ((place, item) for place in planned.places for item in variants(stored, place.module))
    seen = ((place, _spelled(_seen(item, loader), planned)) for place, item in stored_at)
    present = [(place, item) for place, item in seen if item.parts]
    alike = _likeness(module, present, loader)
    if alike in loader.uneventful:
        return
    events = list(_load(module, present, stored, loader))
    if not events:
        loader.uneventful.add(alike)
    yield from events


def _likeness(module: Module, present: Sequence[tuple[Place, Stored]], loader: Loader) -> object:
    """Return what loading a module depends on but its names: layers of one kind are loaded alike."""
    planned = module.planned
    return (
        planned.name,
        planned.layer,
        str(planned.copied),
        len(planned.places),
        planned.absent,
        module.built,
        module.dialect,
        tuple((place.slot, item.format, item.dialect, item.shape, _whole(item)) for place, item in present),
        tuple(id(loader.shapes.of(place.module)) for place in planned.places),
    )


def _whole(item: Stored) -> tuple[object, ...]:
    return tuple(
        (suffix, part.dtype, part.shape, part.others, part.experts is item.experts or part.experts == item.experts)
        for suffix, part in item.parts.items()
    )


def _load(
    module: Module, present: Sequence[tuple[Place, Stored]], stored: Mapping[str, Stored], loader: Loader
) -> Iterator[Event]:
    planned = module.planned
    table = parameters_of(module.built, module.dialect)
    written: dict[str, int] = {}
    if planned.scalars_joined is not None:
        yield from _unjoinable(module, planned.scalars_joined, present, table)
    expected = _expected(planned, loader)
    for place, item in _join(present, len(planned.places)) if planned.joins else present:
        turned = module.built.plain and place.part in planned.dequantizes and item.format in EIGHT_BIT
        if turned:
            written["weight"] = written.get("weight", 0) + 1
        kind = kind_of(item, module.built, module.dialect)
        known = expected.get(place.module, NOTHING)
        misfit: Kind = "shape-differs" if kind == "same" and _is_resized(item, known) else kind
        for suffix, part in item.parts.items():
            if (turned and suffix in BLOCK_SUFFIXES) or suffix in loader.dropped:
                continue
            if suffix in CACHE_SCALES:
                if loader.cache_scales["does"] == "refuse":
                    yield from unknown_part(module, place, suffix, part, "same", loader)
                elif loader.cache_scales["does"] != "skip":
                    found = Unnamed("unknown-tensor", place.module, part.order[1], part.order[0], module.because)
                    yield refuse(loader.cache_scales, {"name": part.order[1]}, loader, found)
                continue
            if planned.layer == "norm" and suffix not in SCALES:
                written[suffix] = written.get(suffix, 0) + 1
                shape = known.get(suffix)
                whole = Parameter(PLAIN_DTYPES if part.dtype in UNLIKE_PLAIN else (part.dtype,), "")
                if planned.scalars_joined is None:  # else it is joined, and dropped then
                    wanted = part.shape if shape is None else shape
                    yield from _compare(module, place, suffix, part, wanted, whole, loader, misfit)
                continue
            parameter = table.get(suffix) or (table.get("weight") if suffix == "" else None)
            if suffix in loader.unplaced or (planned.suffixes and suffix not in planned.suffixes):
                parameter = None
            if _is_misspelled(part.suffix or suffix, planned):
                parameter = None
            if parameter is None:
                yield from unknown_part(module, place, suffix, part, kind, loader)
                continue
            if parameter.shape == "1" and place.part in planned.no_slot.get("parts", ()):
                cause: Kind = "scale-shape" if kind == "same" else kind
                found = Unnamed(cause, place.module, part.order[1], part.order[0], module.because)
                yield refuse(planned.no_slot, {"name": part.order[1]}, loader, found)
                continue
            written[suffix or "weight"] = written.get(suffix or "weight", 0) + 1
            shape = _unquantized(item, known)
            for one in (part, *part.others):
                yield from _copy(module, place, suffix, one, parameter, misfit, shape, loader)
    yield from _unwritten(module, present, stored, table, written, expected, loader)


def _join(present: Sequence[tuple[Place, Stored]], count: int) -> Iterator[tuple[Place, Stored]]:
    """Yield the parts of a module as one: its rows follow each other, and it is there when its last part is.

    A loader that joins `count` parts keeps what it has while any is missing, and loads nothing of it.
    """
    if len(present) < count:
        return
    place, last = max(present, key=lambda one: one[0].module)
    parts = {}
    for suffix, pieces in _pieces(present):
        if _join_error(pieces):
            continue
        rows = sum(piece.shape[0] for piece in pieces if piece.shape)
        shape = (rows, *pieces[-1].shape[1:]) if all(piece.shape for piece in pieces) else ()
        order = max((piece.order for piece in pieces), key=lambda one: (shard_key(one[0]), one[1]))
        parts[suffix] = replace(pieces[-1], dtype=_promoted(pieces), shape=shape, order=order)
    shape = (sum(item.shape[0] if item.shape else 0 for _, item in present), *last.shape[1:])
    yield place, replace(last, shape=shape, parts=parts)


def _promoted(pieces: Sequence[Part]) -> str:
    """Return the type of number that torch gives tensors when it joins them."""
    kinds = {piece.dtype for piece in pieces}
    if len(kinds) == 1 or not kinds <= set(PLAIN_DTYPES):
        return pieces[-1].dtype
    return "F64" if "F64" in kinds else "F32"


def _pieces(present: Sequence[tuple[Place, Stored]]) -> Iterator[tuple[str, list[Part]]]:
    """Yield the suffixes that all parts of a module have, each with its tensors in the order of the parts."""
    for suffix in sorted(set.intersection(*(set(item.parts) for _, item in present))):
        yield suffix, [item.parts[suffix] for _, item in present]


def _join_error(pieces: Sequence[Part]) -> str:
    """Return what torch says of tensors that cannot be joined along their rows, empty where they can be.

    Numbers without a dimension are left to the loader, where all are such.
    """
    scalars = [number for number, piece in enumerate(pieces) if not piece.shape]
    if scalars:
        apart = len(scalars) < len(pieces)
        return f"zero-dimensional tensor (at position {scalars[0]}) cannot be concatenated" if apart else ""
    first = pieces[0]
    for number, piece in enumerate(pieces):
        if piece.dtype != first.dtype and any(one.dtype.startswith("F8") for one in (piece, first)):
            names = f"{CONCATENATED.get(first.dtype, first.dtype)} and {CONCATENATED.get(piece.dtype, piece.dtype)}"
            return f"Promotion for Float8 Types is not supported, attempted to promote {names}"
        if piece.shape[1:] != first.shape[1:] and len(piece.shape) == len(first.shape) == 2:
            return (
                f"Sizes of tensors must match except in dimension 0. Expected size {first.shape[1]} but got size "
                f"{piece.shape[1]} for tensor number {number} in the list."
            )
    return ""


def _unjoinable(
    module: Module, fact: Table, present: Sequence[tuple[Place, Stored]], table: Mapping[str, Parameter]
) -> Iterator[Event]:
    """Yield what a loader raises that joins the parts of a module, of tensors that cannot be joined.

    Where the loader looks for a parameter first (`sought`), those that the whole has none for are never joined.
    """
    if len(present) < len(module.planned.places):
        return
    kinds = [kind_of(item, module.built, module.dialect) for _, item in present]
    kind = next((one for one in kinds if one != "same"), "scale-shape")
    for suffix, pieces in _pieces(present):
        if fact.get("sought") and suffix not in table:
            continue
        text = _join_error(pieces)
        error, part = "RuntimeError", ""
        if not text and fact["does"] != "first" and not any(piece.shape for piece in pieces):
            error, text, part = fact["does"], fact["text"], fact.get("part", "")
        if text:
            shard, tensor, name = max(
                (shard_key(piece.order[0]), piece.order[1], item.module)
                for piece, (place, item) in zip(pieces, present, strict=True)
                if part in ("", place.part)
            )
            because = (*module.because, fact["source"])
            yield Event(kind, Outcome.CRASH, name, tensor, error, text, because, (LOAD, shard, tensor))


def _seen(item: Stored, loader: Loader) -> Stored:
    """Return a stored module without the tensors that this loader drops."""
    parts = {suffix: part for suffix, part in item.parts.items() if loader.looks_at(part.order[1])}
    return item if len(parts) == len(item.parts) else replace(item, parts=parts)


def _spelled(item: Stored, planned: Planned) -> Stored:
    """Return a stored module with its tensors under the suffixes of the parameters that this loader finds for them.

    Those that it drops are left out. Of two for one parameter the later is among the `others` of the first.
    """
    if not planned.spelled:
        return item
    parts: dict[str, Part] = {}
    for suffix, part in item.parts.items():
        called = planned.spelled.get(suffix, suffix)
        if suffix in planned.spelled and not called:
            continue
        parts[called] = replace(parts[called], others=(*parts[called].others, part)) if called in parts else part
    return replace(item, parts=parts, dialect=Dialect.MODELOPT if item.dialect is Dialect.AMAX else item.dialect)


def _is_misspelled(suffix: str, planned: Planned) -> bool:
    """Return whether a loader that knows suffixes from a table of its own knows another for this tensor, or none."""
    return bool(planned.spelled) and bool(suffix) and suffix not in planned.spelled


def unknown_part(module: Module, place: Place, suffix: str, part: Part, kind: Kind, loader: Loader) -> Iterator[Event]:
    """Yield what is done with a tensor of a module that has no parameter for it."""
    planned = module.planned
    fact = planned.unknown or (loader.unknown_experts if planned.layer == "experts" else loader.unknown)
    tensor = part.order[1]
    if is_excepted(tensor, fact) and not planned.spelled:
        return
    name = parameter_name(planned, place, suffix, loader)
    if "renames" in fact and suffix not in planned.suffixes:
        renamed = loader.mappers[fact["renames"]].map(_joined(planned.root, place.part, suffix))
        name = renamed if renamed is not None else name
    elif planned.unfused:
        name = _joined(planned.root, place.part, suffix)
    below = tensor.removeprefix(place.module.partition(f".{EXPERT}")[0]).removeprefix(".")
    key = f"{place.part.rpartition('.')[2]}.{below}" if _is_misspelled(part.suffix or suffix, planned) else ""
    event = refuse(
        fact,
        {"name": name, "prefix": planned.prefix, "tensor": tensor, "below": below, "key": key},
        loader,
        Unnamed(
            kind="unknown-tensor" if kind == "same" else kind,
            module=place.module,
            tensor=tensor,
            shard=part.order[0],
            because=module.because,
            count=len(part.experts) if part.experts else 1,
            elements=elements_of(part.shape),
        ),
    )
    if planned.last:
        event = replace(event, order=(LOAD, _turn(planned, loader) + shard_key(part.order[0]), tensor))
    yield unharmed(event) if kind == "same" or planned.layer == "norm" else event


def unharmed(event: Event) -> Event:
    """Return an event with no harm done where the loader passes over a tensor that it looks for nowhere.

    What it does look for, and does not find, is an event of its own.
    """
    return replace(event, outcome=Outcome.OK) if event.outcome is Outcome.SILENT else event


def is_excepted(tensor: str, fact: Table) -> bool:
    """Return whether a loader passes over a tensor without a parameter all the same: a bias, or a listed ending."""
    return tensor.endswith(".bias") or any(tensor.endswith(end) for end in fact.get("except", ()))


@dataclass(frozen=True, slots=True)
class Unnamed:
    """A stored tensor that names no parameter: where it lies, and what the event about it is to say."""

    kind: Kind
    module: str
    tensor: str
    shard: str
    because: tuple[str, ...]
    count: int = 1
    elements: int = 1


def refuse(fact: Table, words: Mapping[str, str], loader: Loader, found: Unnamed) -> Event:
    """Return the event of a tensor that names no parameter, as the loader's `unknown` fact has it.

    `words` fill the text; see docs/knowledge.md for which there are.
    """
    fact = next((one for one in fact.get("endings", ()) if _is_such(found, one)), fact)
    name = words["name"].removeprefix(fact.get("strip", ""))
    layer, _, leaf = name.rpartition(".")
    said = {**words, "name": name, "leaf": leaf, "layer": layer, "class": loader.model_class}
    said |= {"key": words.get("key") or leaf, "elements": str(found.elements)}
    does = fact.get("does", "skip")
    crash = does != "skip"
    sources = tuple(dict.fromkeys((*found.because, *([fact["source"]] if fact.get("source") else []))))
    return Event(
        kind=found.kind,
        outcome=Outcome.CRASH if crash else Outcome.SILENT,
        module=found.module,
        tensor=found.tensor,
        error=does if crash else "",
        text=_fill(fact.get("text", "'{name}'" if does == "KeyError" else ""), **said),
        because=sources,
        order=(
            LOAD,
            FIRST * bool(fact.get("apart")) + LAST * fact.get("last", 0) + shard_key(found.shard),
            found.tensor,
        ),
        count=found.count,
    )


def _is_such(found: Unnamed, fact: Table) -> bool:
    """Return whether a tensor's name begins and ends as a fact about some says, holds one of its texts, and is so."""
    tensor = found.tensor
    held = "holds" not in fact or any(text in tensor for text in fact["holds"])
    if fact.get("numbers") == "many" and found.elements == 1:
        return False
    return held and tensor.startswith(fact.get("begins", "")) and tensor.endswith(fact.get("ends", ""))


def parameter_name(planned: Planned, place: Place, suffix: str, loader: Loader) -> str:
    """Return the parameter path an engine's message shows for one tensor of a module."""
    if planned.layer == "experts":
        side = "w2" if place.slot == "w2" else "w13"
        return f"{planned.param}.{loader.experts_infix}{side}_{suffix or 'weight'}"
    return _joined(planned.param, "", suffix)


def _joined(*parts: str) -> str:
    return ".".join(part for part in parts if part)


def _expected(planned: Planned, loader: Loader) -> Mapping[str, Mapping[str, Shape]]:
    """Return the shapes that the configuration gives each place, by suffix; of joined parts, of their whole."""
    found = {place.module: loader.shapes.of(place.module) for place in planned.places}
    if not planned.joins or not found:
        return found
    weights = [shapes.get("weight") for shapes in found.values()]
    known = [shape for shape in weights if shape]
    whole = {"weight": (sum(shape[0] for shape in known), *known[0][1:])} if known and len(known) == len(found) else {}
    return dict.fromkeys(found, whole)


def _is_resized(item: Stored, expected: Mapping[str, Shape]) -> bool:
    """Return whether a module is not of the shape that the configuration gives it, however it is stored."""
    known = expected.get("weight") or expected.get("")
    return known is not None and item.shape[-len(known) :] != known


def _unquantized(item: Stored, expected: Mapping[str, Shape]) -> Shape:
    """Return the shape of a module's weight before it was quantized: by the configuration, else by what is stored."""
    known = expected.get("weight") or expected.get("")
    if known is None:
        return item.shape
    return known if len(known) >= 2 or len(item.shape) < 2 else item.shape


def _copy(
    module: Module,
    place: Place,
    suffix: str,
    part: Part,
    parameter: Parameter,
    kind: Kind,
    shape: Shape,
    loader: Loader,
) -> Iterator[Event]:
    planned = module.planned
    rows, columns = shape[-2:] if len(shape) >= 2 else (shape[0] if shape else 1, 1)
    expected = shape_of(parameter, rows, columns)
    if planned.whole:
        expected = (planned.whole,) if expected == () else expected
    if planned.counted and planned.experts and part.shape[:1] != (planned.experts,):
        yield _miscounted(module, place, suffix, part, loader, kind)
        return
    if len(shape) <= 2:
        yield from _compare(module, place, suffix, part, expected, parameter, loader, kind)
        return
    one = replace(part, shape=part.shape[1:]) if part.shape else part
    short = list(_count(module, place, part, loader, kind))
    found = list(_compare(module, place, suffix, one, expected, parameter, loader, kind))
    stopped = short if expected == () else [event for event in found if event.outcome is Outcome.CRASH]
    yield from stopped or [*found, *short]


def _count(module: Module, place: Place, part: Part, loader: Loader, kind: Kind) -> Iterator[Event]:
    """Yield what is done with a tensor of stacked experts that holds fewer than the engine looks for."""
    count = part.shape[0] if part.shape else 0
    if part.suffix == CONVENTIONS[Dialect.AMAX].input_scale or count >= module.planned.experts:
        return  # one number for all experts
    row = _mismatch(_layer(module, place), module.built, ["few-experts" if part.shape else "uncounted"], loader)
    if row is not None:
        cause: Kind = "scale-shape" if kind == "same" else kind
        found = Unnamed(cause, place.module, part.order[1], part.order[0], module.because)
        text = _fill(row["text"], stored_experts=count)
        yield refuse({**row, "does": row["error"], "text": text}, {"name": part.order[1]}, loader, found)


def _miscounted(module: Module, place: Place, suffix: str, part: Part, loader: Loader, kind: Kind) -> Event:
    """Return what a class raises itself of a tensor of stacked experts that are not as many as the configuration's."""
    fact = module.planned.counted
    name = parameter_name(module.planned, place, suffix, loader)
    text = _fill(fact["text"], experts=module.planned.experts, stored=part.shape)
    cause: Kind = "scale-shape" if kind == "same" else kind
    found = Unnamed(cause, place.module, part.order[1], part.order[0], module.because)
    return refuse({**fact, "text": text}, {"name": name}, loader, found)


def _compare(
    module: Module,
    place: Place,
    suffix: str,
    part: Part,
    expected: Shape | None,
    parameter: Parameter,
    loader: Loader,
    kind: Kind = "same",
) -> Iterator[Event]:
    """Yield what is done with a tensor that is not as the parameter that it is copied into."""
    planned, actual = module.planned, part.shape
    relations = _relations(expected, actual, part.dtype, parameter)
    if not relations:
        return
    row = _mismatch(_layer(module, place), module.built, relations, loader)
    if row is None or row["does"] == "ok":
        return
    sizes = _piece_sizes(planned, loader)
    rows = (actual or (1,))[0]
    first = (sizes[0], sum(sizes)) if sizes else planned.first
    expected, actual = _of_first(expected or (), first), _of_first(actual, first)
    words = {
        "built": list(expected or ()),
        "stored": list(actual),
        "built_first": (expected or (1,))[0],
        "stored_first": (actual or (1,))[0],
        "built_last": (expected or (1,))[-1],
        "stored_last": (actual or (1,))[-1],
        "built_second": (*expected, 1, 1)[1],
        "stored_second": (*actual, 1, 1)[1],
        "name": parameter_name(planned, place, suffix, loader),
        "stored_rows": rows,
        **_missing_piece(sizes, rows),
        "stored_dtype": TORCH_DTYPES.get(part.dtype, part.dtype),
        "built_tuple": expected,
        "stored_tuple": actual,
        "value": loader.shapes.numbers.value(row["key"]) if "key" in row and loader.shapes.numbers else None,
        "built_dtype": TORCH_DTYPES.get(parameter.dtypes[0], parameter.dtypes[0]),
    }
    crash = row["does"] == "crash" and not loader.lost
    yield Event(
        kind="scale-shape" if kind == "same" else kind,
        outcome=Outcome.CRASH if crash else Outcome.SILENT,
        module=place.module,
        tensor=part.order[1],
        error=row.get("error", "") if crash else "",
        text=_fill(row.get("text", ""), **words) if crash else "",
        because=tuple(dict.fromkeys((*module.because, *([row["source"]] if row.get("source") else [])))),
        order=(LOAD, _turn(planned, loader) + shard_key(part.order[0]), part.order[1]),
        count=len(part.experts) if part.experts else 1,
    )


def _layer(module: Module, place: Place) -> str:
    """Return what the engine's file calls the loader that copies a tensor."""
    planned = module.planned
    copied = planned.copied if isinstance(planned.copied, str) else planned.copied.get(place.part)
    layer = copied or ("linear" if planned.whole else planned.layer)
    return f"{layer}_{'w2' if place.slot == 'w2' else 'w13'}" if planned.layer == "experts" else layer


def _piece_sizes(planned: Planned, loader: Loader) -> Shape:
    """Return the rows of the parts that a tensor is copied in, nothing where it is copied whole."""
    numbers = loader.shapes.numbers
    return (evaluate(planned.pieces, numbers) or ()) if planned.pieces and numbers is not None else ()


def _missing_piece(sizes: Shape, rows: int) -> Mapping[str, int]:
    """Return where the first part begins that a tensor has too few rows for, and how many it should have."""
    short = [(end - size, size) for size, end in zip(sizes, accumulate(sizes), strict=True) if end > rows]
    return dict(zip(("piece_start", "piece_size"), short[0], strict=True)) if short else {}


def _turn(planned: Planned, loader: Loader) -> str:
    """Return what sorts a module's tensors before or after those that are copied in their own order."""
    return FIRST if planned.apart else LAST * (loader.deferred + planned.last)


def _of_first(shape: tuple[int, ...], first: tuple[int, int]) -> tuple[int, ...]:
    """Return the shape of the part of a fused tensor that is copied first, which is what messages show."""
    share, whole = first
    return (shape[0] * share // whole, *shape[1:]) if len(shape) > 1 else shape


def _relations(expected: Shape | None, actual: Shape, dtype: str, parameter: Parameter) -> tuple[str, ...]:
    """Return how a stored tensor differs from the parameter, the most telling word first; nothing where it fits."""
    if expected is None:
        return ()
    fits = dtype in parameter.dtypes or (dtype in PLAIN_DTYPES and parameter.dtypes[0] in PLAIN_DTYPES)
    misread = () if fits else ("dtype",)
    if elements_of(expected) == elements_of(actual) == 1:
        return ("nested", *misread) if len(actual) > max(1, len(expected)) else misread
    if expected == actual or (parameter.blocked and _squeeze(expected) == _squeeze(actual)):
        return misread
    if len(expected) > 1 and len(actual) < 2 and elements_of(actual) == 1:
        return ("single" if actual else "scalar", "shape")
    if len(expected) == len(actual) > 1 and expected[:-1] == actual[:-1]:
        return ("wider" if actual[-1] > expected[-1] else "narrower",)
    if len(expected) == len(actual) and expected[1:] == actual[1:]:
        return ("taller" if actual[0] > expected[0] else "shorter",)
    if not expected or not actual:
        return ("pair", "several", "shape") if len(actual) == 1 and actual[0] == 2 else ("several", "shape")
    second = min(len(expected), len(actual)) > 1
    return (
        *(("lifted",) if actual == (1, *expected) else ()),
        *(("flat",) if expected[0] == actual[0] and _squeeze(expected) == _squeeze(actual) else ()),
        *(("more-columns",) if second and actual[1] > expected[1] else ()),
        *(("more-rows",) if actual[0] > expected[0] else ()),
        *(("few-columns",) if second and actual[1] < expected[1] else ()),
        *(("few-rows",) if actual[0] < expected[0] else ()),
        "shape",
    )


def elements_of(shape: tuple[int, ...]) -> int:
    """Return how many numbers a tensor of this shape holds."""
    total = 1
    for size in shape:
        total *= size
    return total


def _squeeze(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _mismatch(layer: str, built: Format, relations: Sequence[str], loader: Loader) -> Table | None:
    forms = {"plain"} if built.plain else {"nvfp4"} if built in NVFP4 else {"other"}
    if built is Format.NVFP4_A16:
        forms.add("nvfp4-a16")
    return next(
        (
            row
            for relation in relations
            for row in loader.mismatch
            if layer in _names(row["layer"])
            and relation in _names(row["stored"])
            and ("built" not in row or forms.intersection(_names(row["built"])))
        ),
        None,
    )


def _names(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _is_weight_only(module: Module) -> bool:
    """Return whether a module is a linear layer or head of a ModelOpt method with packed weights and 16-bit inputs."""
    linear = module.planned.layer in ("column", "merged", "qkv", "row", "replicated", "head")
    return linear and module.built is Format.NVFP4_A16 and module.dialect == Dialect.MODELOPT


def _unwritten(
    module: Module,
    present: Sequence[tuple[Place, Stored]],
    stored: Mapping[str, Stored],
    table: Mapping[str, Parameter],
    written: Mapping[str, int],
    expected: Mapping[str, Mapping[str, Shape]],
    loader: Loader,
) -> Iterator[Event]:
    planned = module.planned
    order = (AFTER if planned.apart else COMPLETE, f"{module.position:08d}", "")
    if planned.layer == "table" and present:
        return  # its parts have no scales of their own
    there = {place.module for place, _ in present}
    dropped = [place for place in planned.places if place.module not in there and place.part in planned.unread]
    missing = [place for place in planned.places if place.module not in there and place not in dropped]
    excused = planned.shared or planned.absent or (planned.optional and module.built.plain)
    if missing and not excused:
        for place in missing:
            yield _silent("weight-missing", place.module, place.module, module, order)
    if not planned.shared:
        for place, item in present:
            for suffix in expected.get(place.module, NOTHING):
                if suffix not in item.parts and (planned.layer == "norm" or suffix == "bias"):
                    yield _silent("weight-missing", place.module, f"{place.module}.{suffix}", module, order)
    if planned.layer == "norm":
        return
    if planned.shares_weight and not module.built.plain:
        yield from _half_shared(module, stored, loader, order)
    for place, item in present:
        kind = kind_of(item, module.built, module.dialect)
        lacking = [suffix for suffix, parameter in table.items() if parameter.needed and not _has(item, suffix)]
        if _is_counted(place.module, loader) and _is_weight_only(module):
            lacking += [suffix for suffix in loader.unread if not _has(item, suffix)]
        if lacking and planned.shared:
            continue  # the target's own module takes its place
        if lacking:
            name = f"{place.module}.{_on_disk(lacking[0], planned)}"
            yield _silent("scale-missing" if kind == "same" else kind, place.module, name, module, order)
        elif kind == "same" and item.experts:
            holes = [
                name for name, part in item.parts.items() if part.experts is not None and part.everyone != item.experts
            ]
            if holes:
                yield _silent("scale-missing", place.module, f"{place.module}.{holes[0]}", module, order)
    yield from _without_experts(module, present)
    if (
        planned.partial_scalars is not None
        and (dropped or not planned.unread)
        and module.built in planned.partial_scalars.get("formats", (module.built,))
        and module.dialect in planned.partial_scalars.get("dialects", (module.dialect,))
        and present
        and any(parameter.shape == "1" and parameter.needed for parameter in table.values())
    ):
        name = present[0][0].module
        yield _silent("scale-partly-written", name, f"{name}.weight_scale_2", module, order)
    scales = "weight_scale"
    if (
        loader.never_loaded is not None
        and module.built in NVFP4
        and module.dialect == Dialect.MODELOPT
        and planned.layer in ("column", "merged", "qkv", "row", "replicated", "head")
        and written.get(scales, 0) < len(planned.places)
    ):
        fact = loader.never_loaded
        first = next((item for _, item in present), None)
        absent: Kind = "layer-absent" if planned.absent else "weight-missing"
        kind = kind_of(first, module.built, module.dialect) if first is not None else absent
        yield Event(
            kind="scale-missing" if kind == "same" else kind,
            outcome=Outcome.CRASH,
            module=planned.places[0].module if planned.places else planned.prefix,
            tensor="",
            error=fact["does"],
            text=_fill(fact["text"], name=loader.layer_names.get(planned.layer, planned.layer)),
            because=(*module.because, fact.get("source", "")),
            order=(AFTER, f"{module.position:08d}", ""),
        )


def _on_disk(suffix: str, planned: Planned) -> str:
    """Return the first suffix on disk that the loader finds a parameter with, given that of the parameter."""
    return next((name for name, called in planned.spelled.items() if called == suffix), suffix)


def _is_counted(name: str, loader: Loader) -> bool:
    """Return whether a loader raises where something of a module stayed unwritten."""
    fact = loader.incomplete
    rows = fact.get("of", (fact,))
    return bool(fact["does"] != "silent" and any(re.search(row.get("names", ""), name) for row in rows))


def _without_experts(module: Module, present: Sequence[tuple[Place, Stored]]) -> Iterator[Event]:
    """Yield what stays unwritten where experts are stored one by one, and some are not.

    Engines that count what was written count parameters, and all experts share one.
    """
    found: dict[str, frozenset[int]] = {}
    for place, item in present:
        if item.experts:
            having = next((part.everyone for suffix, part in item.parts.items() if _holds_numbers(suffix)), None)
            found[place.module] = found.get(place.module, frozenset()) | (having or frozenset())
    everyone = frozenset(range(module.planned.experts)) or frozenset[int]().union(*found.values())
    order = (AFTER, f"{module.position:08d}", "")
    for name, experts in found.items():
        if lacking := everyone - experts:
            expert = name.replace(EXPERT, str(min(lacking)), 1)
            yield _silent("weight-missing", name, expert, module, order, len(lacking))


def _holds_numbers(suffix: str) -> bool:
    return suffix.startswith("weight") or suffix in WEIGHTS


def _half_shared(
    module: Module, stored: Mapping[str, Stored], loader: Loader, order: tuple[int, str, str]
) -> Iterator[Event]:
    """Yield what stays unwritten where a quantized module gets the target's packed weight, but not its scales.

    Where it is not known what the target builds, its own is taken for packed where what is stored is.
    """
    for place in module.planned.places:
        item = stored.get(place.module)
        if item is None:
            continue
        theirs = loader.shared.get(place.module, item.format)
        if not theirs.plain or (module.planned.shares_packed and place.module not in loader.shared):
            yield _silent("scale-missing", place.module, f"{place.module}.weight_scale", module, order)


def _has(item: Stored, suffix: str) -> bool:
    return suffix in item.parts or (suffix == "weight" and "" in item.parts)


def _silent(kind: Kind, name: str, tensor: str, module: Module, order: tuple[int, str, str], count: int = 1) -> Event:
    return Event(kind, Outcome.SILENT, name, tensor.replace(EXPERT, "0"), "", "", module.because, order, count)


def _fill(text: str, **words: Any) -> str:
    for word, value in words.items():
        text = text.replace("{" + word + "}", str(value))
    return text
