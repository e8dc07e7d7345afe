"""The shapes that a configuration gives the tensors of a family, before anything is quantized.

Reads `[shapes]` of a family file. Says nothing of a tensor that no row names, or where the configuration lacks a
number that the row needs, or says 0: engines have defaults of their own for those.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import inf
from typing import Any

from mtpfix.checkpoint.names import split_name
from mtpfix.engines.blueprint import Condition, holds
from mtpfix.families import Family, Numbers, value_of
from mtpfix.model import DIGITS

Shape = tuple[int, ...]
NOTHING: Mapping[str, Shape] = {}
_LAYER = re.compile(rf"(?:^|(?<!mtp)\.)layers\.(\d{{1,{DIGITS}}})(?:\.|$)")
"""The number of a decoder layer; layers of a branch that counts its own are not those of the per-layer arrays."""


@dataclass(frozen=True, slots=True)
class Row:
    """Tensors of one shape: `formula` has a sum of products for each dimension."""

    formula: str
    when: Condition | None


@dataclass(slots=True)
class Shapes:
    """The shapes of a checkpoint's tensors by its configuration; `rows` by the end of a module's name, then suffix.

    Nothing is said of names that begin as one of `other`.
    """

    rows: Mapping[str, Mapping[str, Sequence[Row]]] = field(default_factory=dict)
    numbers: Numbers | None = None
    other: tuple[str, ...] = ()
    _known: dict[str, Mapping[str, Shape]] = field(default_factory=dict)
    _shared: dict[str, Mapping[str, Shape]] = field(default_factory=dict)

    def of(self, module: str) -> Mapping[str, Shape]:
        """Return the shapes of a module's tensors by their suffixes, by its name on disk; those that are known.

        Modules whose names end alike share one mapping, unless their layers differ, or have numbers of their own.
        """
        found = self._known.get(module)
        if found is None:
            found = self._known[module] = self._find(module)
        return found

    def _find(self, module: str) -> Mapping[str, Shape]:
        if module.startswith(self.other):
            return NOTHING
        end = module
        while end not in self.rows:
            _, dot, end = end.partition(".")
            if not dot:
                return NOTHING
        numbers = self.numbers.at(module) if self.numbers is not None else None
        if numbers is not self.numbers:
            return dict(self._shapes(end, None, numbers))
        ranged = any(row.when is not None for rows in self.rows[end].values() for row in rows)
        layer = _LAYER.search(module) if ranged else None
        index = int(layer[1]) if layer else None
        key = end if index is None else f"{index} {end}"
        if key not in self._shared:
            self._shared[key] = dict(self._shapes(end, index, numbers))
        return self._shared[key]

    def _shapes(self, end: str, index: int | None, numbers: Numbers | None) -> Iterator[tuple[str, Shape]]:
        if numbers is None:
            return
        for suffix, rows in self.rows[end].items():
            row = next((row for row in rows if holds(row.when, numbers, index)), None)
            shape = evaluate(row.formula, numbers) if row is not None else None
            if shape is not None:
                yield suffix, shape


def read_shapes(family: Family, numbers: Numbers, engine: str) -> Shapes:
    """Return the shapes that a family's rows and a configuration's numbers make in an engine."""
    rows: dict[str, dict[str, list[Row]]] = {}
    for name, fact in family.table.get("shapes", {}).items():
        module, suffix = split_name(name)
        tables = fact if isinstance(fact, list) else [fact]
        held = [Row(table["is"], table.get("when")) for table in tables if table.get("engine", engine) == engine]
        if held:
            rows.setdefault(module, {})[suffix] = held
    return Shapes(rows, numbers, tuple(family.table["disk"].get("unshaped", ())))


def evaluate(formula: str, numbers: Numbers) -> Shape | None:
    """Return the shape that a formula gives, None where the configuration lacks a number.

    Dimensions are parted by commas, terms by `+`, factors by `*`, and divisors follow a `/`; each is an integer or a
    key of the decoder's configuration, else of the whole one (`outer.inner` is a key inside an object). None, too,
    where a product is no whole number.
    """
    shape = []
    for dimension in formula.split(","):
        total = 0
        for term in dimension.split("+"):
            product = _product(term, numbers)
            if product is None:
                return None
            total += product
        shape.append(total)
    return tuple(shape)


def _product(term: str, numbers: Numbers) -> int | None:
    factors, *divisors = term.split("/")
    product = Fraction(1)
    for factor in factors.split("*"):
        value = _value(factor.strip(), numbers)
        if value is None:
            return None
        product *= value
    for divisor in divisors:
        value = _value(divisor.strip(), numbers)
        if value is None:
            return None
        product /= value
    return product.numerator if product.denominator == 1 else None


def _value(factor: str, numbers: Numbers) -> Fraction | None:
    if factor.isdigit():
        return Fraction(factor)
    place = numbers.decoder if factor.partition(".")[0] in numbers.decoder else numbers.config
    value: Any = value_of(place, factor)
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < inf
    return Fraction(value) if usable else None
