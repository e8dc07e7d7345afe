"""What is raised before any tensor is loaded: by a whole class, for one module, for an array that is too short.

Knows the errors that the knowledge files tell. What a module is built as is decided before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mtpfix.engines.blueprint import Planned, holds
from mtpfix.engines.decide import Decision
from mtpfix.engines.loading import AFTER, CONSTRUCT, LOAD, Kind
from mtpfix.engines.parameters import parameters_of
from mtpfix.facts import Table, covers, pick
from mtpfix.families import Numbers, fill
from mtpfix.model import Event, Format, Outcome


def construct_class(block: Table, version: str, method: str, numbers: Numbers) -> Iterator[Event]:
    """Yield the error of a class that cannot be constructed, loads nothing or shares nothing, whatever is stored."""
    for key, phase, last in (("broken", CONSTRUCT, ""), ("refuses", LOAD, ""), ("unshared", AFTER, "~~~")):
        fact = pick(block.get(key), version)
        if not fact or fact["does"] == "silent" or method not in fact.get("methods", (method,)):
            continue
        if holds(fact.get("when"), numbers, None):
            because = (str(fact.get("source", "")),)
            text = fill(fact["text"], numbers)
            if "when" in fact:
                last_one = fact["when"] if isinstance(fact["when"], Mapping) else fact["when"][-1]
                text = text.replace("{value}", str(numbers.value(last_one["key"])))
                text = text.replace("{of}", str(numbers.value(last_one.get("of", ""))))
            yield Event("class-broken", Outcome.CRASH, "", "", fact["does"], text, because, (phase, last, ""))


def construct_module(planned: Planned, built: Format, method: str, position: int) -> Iterator[Event]:
    """Yield what the constructor of a module raises that cannot be quantized so, unless its lists leave it plain."""
    fact = planned.refused
    if method in fact.get("methods", {}) and (not built.plain or method in fact.get("unasked", ())):
        text = fact["text"].replace("{config}", fact["methods"][method]).replace("{prefix}", planned.prefix)
        first = planned.places[0].module if planned.places else planned.prefix
        kind: Kind = "class-broken" if built.plain else "plain-into-quantized"
        order = (CONSTRUCT, f"{position:08d}", "")
        yield Event(kind, Outcome.CRASH, first, "", fact["does"], text, (fact["source"],), order)


def look_at_weight(planned: Planned, decision: Decision, position: int) -> Iterator[Event]:
    """Yield the error of a class that looks at the `weight` of a module whose weight has another name."""
    fact = planned.reads_weight
    if fact and "weight" not in parameters_of(decision.format, decision.dialect):
        order = (CONSTRUCT, f"{position:08d}", "~")
        because = (str(fact.get("source", "")),)
        yield Event("class-broken", Outcome.CRASH, planned.prefix, "", fact["does"], fact["text"], because, order)


def read_arrays(block: Table, numbers: Numbers, version: str, *, unset_first: bool = False) -> Iterator[Event]:
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
            if "branch" in fact:
                yield from _other_kinds(fact, key, value, numbers)
                continue
            kept = (
                min(len(value), numbers.layers) if fact.get("cut") == "N" and isinstance(value, (list, str)) else None
            )
            if isinstance(value, (list, str)) and value and (len(value) if kept is None else kept) < needed:
                first = numbers.layers if block["role"] == "draft" else 0
                words = {"key": key, "length": len(value), "needed": needed, "layer": max(len(value), first)}
                text = str(fact["text"])
                for word, number in words.items():
                    text = text.replace("{" + word + "}", str(number))
                because = (str(fact.get("source", "")),)
                yield Event("array-short", Outcome.CRASH, key, "", fact["does"], text, because, (CONSTRUCT, "", key))
                break


def _other_kinds(fact: Table, key: str, value: object, numbers: Numbers) -> Iterator[Event]:
    """Yield what is raised for MTP layers of another kind than the class can build, or of none."""
    entries = value[numbers.layers : numbers.layers + numbers.mtp] if isinstance(value, list) else [None]
    if any(entry != fact["branch"] for entry in entries):
        because = (str(fact.get("source", "")),)
        yield Event("class-broken", Outcome.CRASH, "", "", fact["does"], fact["text"], because, (CONSTRUCT, "", key))


def _length(length: str | int, numbers: Numbers) -> int:
    """Return how many entries of a per-layer array are read: all decoder layers, the MTP layers too, or a number."""
    return length if isinstance(length, int) else numbers.layers + (numbers.mtp if length == "N+K" else 0)
