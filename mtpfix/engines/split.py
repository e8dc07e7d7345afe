"""What a tensor-parallel size does to the layers an engine constructs: shapes that it cannot split.

Knows where an engine raises because a share would not be whole, or not be whole quantization blocks; which checks
there are is data (`[[split]]` and `[[split_numbers]]` of an engine's file, `splits` of a model block). What an engine
pads or replicates is no fault and yields nothing. Messages about stored tensors keep the whole sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtpfix.engines.blueprint import Planned
from mtpfix.engines.loading import CONSTRUCT, Module
from mtpfix.facts import Table, covers
from mtpfix.families import Numbers
from mtpfix.model import Dialect, Event, Format, Outcome, Stored

VOCABULARY_PADDING = 64
"""Embeddings and heads are padded to a multiple of this: layers/vocab_parallel_embedding.py:35@0.32.0."""


def split_module(
    module: Module, stored: Mapping[str, Stored], rows: Sequence[Table], numbers: Numbers, ranks: int
) -> Iterator[Event]:
    """Yield the first check of a layer's constructor that a tensor-parallel size of `ranks` fails, if any does."""
    planned = module.planned
    own = planned.groups if "does" in planned.groups else None
    if own is not None and (event := _own_groups(own, module, numbers, ranks)) is not None:
        yield event
        return
    if not planned.split:
        return
    for row in rows:
        if planned.layer not in _list(row["layer"]) or not _concerns(row, module.built, module.dialect):
            continue
        if own is not None and row["of"] == "groups":
            continue
        for size, divisor in _shares(row, planned, stored, numbers, ranks):
            words = _fault(row, size, divisor, ranks)
            if words is None:
                continue
            text = str(planned.groups.get("text", row["text"]) if row["of"] == "groups" else row["text"])
            yield _event(row, text, words, planned.places[0].module if planned.places else "", module.position)
            return


def split_numbers(
    facts: Sequence[Table], numbers: Numbers, version: str, ranks: int, *, position: str = ""
) -> Iterator[Event]:
    """Yield the checks of numbers in the configuration that a tensor-parallel size of `ranks` fails.

    Each fact has `keys`, of which the first that is there counts, and `must`: `divide` (the number is a multiple of the
    ranks), `divide-or-one` (or is 1), or `reach` (is not below them).
    """
    for place, fact in enumerate(facts):
        size = _number(fact["keys"], numbers)
        if size is None or not covers(fact.get("versions", "*"), version):
            continue
        fine = size >= ranks if fact["must"] == "reach" else size % ranks == 0
        if fine or (fact["must"] == "divide-or-one" and size == 1):
            continue
        yield _event(fact, str(fact["text"]), {"size": size}, "", f"{position}{place:04d}", ranks=ranks)


def _event(
    row: Table, text: str, words: Mapping[str, object], module: str, position: int | str, *, ranks: int | None = None
) -> Event:
    for word, value in {**words, **({"ranks": ranks} if ranks is not None else {})}.items():
        text = text.replace("{" + word + "}", str(value))
    where = position if isinstance(position, str) else f"{position:08d}"
    because = (str(row["source"]),) if row.get("source") else ()
    return Event("unsplittable", Outcome.CRASH, module, "", row["does"], text, because, (CONSTRUCT, where, "~"))


def _own_groups(fact: Table, module: Module, numbers: Numbers, ranks: int) -> Event | None:
    """Return what a class raises that asks itself whether ranks divide its heads, or several can keep each."""
    groups = _number(fact.get("key") or GROUPS, numbers)
    if not groups or groups % ranks == 0 or ("replicated" in fact and ranks % groups == 0):
        return None
    planned = module.planned
    text = str(fact["replicated"] if groups < ranks and "replicated" in fact else fact["text"])
    module_name = planned.places[0].module if planned.places else ""
    return _event(fact, text, {"size": groups}, module_name, module.position, ranks=ranks)


def _concerns(row: Table, built: Format, dialect: Dialect) -> bool:
    formats, dialects = row.get("formats"), row.get("dialects")
    return (formats is None or built.value in formats) and (dialects is None or dialect.value in dialects)


def _fault(row: Table, size: int, divisor: int, ranks: int) -> Mapping[str, object] | None:
    """Return the words of the message where a size does not split, or a share is not whole blocks; else None."""
    larger, smaller = max(size, divisor), min(size, divisor)
    whole = larger % smaller == 0 if row["of"] == "groups" else size % divisor == 0
    share = size // divisor
    multiple = row.get("multiple", 1)
    if whole and share % multiple == 0:
        return None
    if multiple > 1 and not whole:
        return None  # an earlier check of the same constructor says so
    if "padded" in row and size % row["padded"] == 0:
        return None
    return {"size": size, "ranks": ranks, "share": share, "larger": larger, "smaller": smaller, "multiple": multiple}


def _shares(
    row: Table, planned: Planned, stored: Mapping[str, Stored], numbers: Numbers, ranks: int
) -> Iterator[tuple[int, int]]:
    """Yield sizes that a check looks at, each with the number it is divided by."""
    groups = _number(planned.groups.get("key") or GROUPS, numbers)
    match row["of"]:
        case "groups":
            if groups:
                yield groups, ranks
        case "vocabulary":
            size = next((item.shape[0] for item in _stored(planned, stored) if item.shape), None)
            if size:
                yield -(-size // VOCABULARY_PADDING) * VOCABULARY_PADDING, ranks
        case "parts":
            sizes = [item.shape[0] for item in _stored(planned, stored) if item.shape]
            if sizes:
                yield sum(sizes), ranks
        case "rows":
            for place in planned.places:
                item = stored.get(place.module)
                if item is None or len(item.shape) < 2 or place.slot == "whole":
                    continue
                replicated = planned.layer == "qkv" and place.slot != "0" and groups and ranks >= groups
                yield item.shape[-2], groups if replicated and groups else ranks
        case "columns" | "width":
            slots = ("w2",) if row["of"] == "width" else ("0", "whole")
            for place in planned.places:
                item = stored.get(place.module)
                if item is not None and place.slot in slots and len(item.shape) >= 2:
                    yield item.shape[-1], ranks


GROUPS = ("num_key_value_heads", "num_attention_groups")
"""Keys of the number of key and value heads."""


def _stored(planned: Planned, stored: Mapping[str, Stored]) -> Iterator[Stored]:
    yield from (stored[place.module] for place in planned.places if place.module in stored)


def _number(keys: str | Sequence[str], numbers: Numbers) -> int | None:
    found: Any = next((value for key in _list(keys) if (value := numbers.value(key)) is not None), None)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else None


def _list(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value
