"""Per-layer arrays of a configuration, extended to the MTP layers where an exporter cut them off.

An MTP layer gets the entry of the decoder layers whose attention has its stored shapes. Where those have different
entries it gets the last one's, and the words say that this is a guess.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from mtpfix.families import Numbers
from mtpfix.fix.operations import CONFIG, Operation, set_value
from mtpfix.fix.trial import Trial
from mtpfix.model import DIGITS, ROLES, Stored

_LAYER = re.compile(rf"layers\.(\d{{1,{DIGITS}}})\.(.+)")
Shapes = dict[str, tuple[int, ...]]


def extended(trial: Trial, keys: Sequence[str]) -> tuple[list[Operation], str]:
    """Return the operations that extend arrays, none where there is no entry to take, and in words whose it is."""
    subject = trial.context.subject
    numbers, family = subject.numbers, subject.family
    if numbers is None or family is None:
        return [], ""
    keys = [
        *keys,
        *dict.fromkeys(
            key for key in indexed_keys(trial) if key not in keys and _is_short(numbers.decoder.get(key), numbers)
        ),
    ]
    inner = next((key for key in family.table.get("text", ()) if numbers.config.get(key) is numbers.decoder), None)
    layers = _shapes(subject.stored)
    operations: list[Operation] = []
    guessed = False
    needed = numbers.layers + numbers.mtp
    for key in keys:
        value = numbers.decoder.get(key)
        if not isinstance(value, list) or not numbers.layers <= len(value) < needed:
            return [], ""
        longer: list[Any] = list(value)
        for index in range(len(value), needed):
            entry = _entry(value, layers, index, numbers.layers)
            if entry is None:
                return [], ""
            longer.append(entry[0])
            guessed = guessed or not entry[1]
        operations.append(set_value(CONFIG, (inner, key) if inner else (key,), longer))
    how = "as of the last decoder layer, a guess: compare with the base model's" if guessed else "by the layers' shapes"
    return operations, how


def indexed_keys(trial: Trial) -> Iterator[str]:
    """Yield the names of all arrays that a judged engine indexes by layer."""
    subject = trial.context.subject
    for release in trial.context.releases:
        for role in ROLES:
            if subject.family is None:
                continue
            for block in subject.family.models(release.engine.name, role, subject.served_as, release.version):
                for fact in block.get("arrays", ()):
                    yield from fact["keys"]


def _is_short(value: object, numbers: Numbers) -> bool:
    return isinstance(value, list) and len(value) == numbers.layers


def _shapes(stored: dict[str, Stored] | Any) -> dict[int, Shapes]:
    """Return the logical shapes of each layer's modules, by the layer's number."""
    found: dict[int, Shapes] = {}
    for name, item in stored.items():
        hit = _LAYER.search(name)
        if hit is not None:
            found.setdefault(int(hit[1]), {})[hit[2]] = item.shape
    return found


def _entry(values: Sequence[Any], layers: dict[int, Shapes], index: int, count: int) -> tuple[Any, bool] | None:
    """Return the entry of decoder layers whose attention has the shapes of this layer's, and if all have the same."""
    mine = {name: shape for name, shape in layers.get(index, {}).items() if "attn" in name}
    alike = [
        values[number]
        for number, shapes in sorted(layers.items())
        if number < min(count, len(values)) and mine and all(shapes.get(name) == shape for name, shape in mine.items())
    ]
    return (alike[-1], all(one == alike[0] for one in alike)) if alike else None
