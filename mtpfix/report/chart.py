"""The map of a checkpoint: one row per layer, one column per projection, and what each run of releases makes of a cell.

Knows nothing of colours or of HTML. Only matrices stand in it, and whatever else an engine clashes with.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mtpfix.checkpoint.names import natural_key
from mtpfix.model import EngineReport, Format, Outcome, Report, Role
from mtpfix.report.names import with_experts
from mtpfix.report.rows import Row, rows_of
from mtpfix.report.summary import releases_ascending

_NUMBERED = re.compile(r"((?:[^.{}]+\.)*?[0-9]+)\.(.+)")
_NUMBERS_OF_EXPERTS = re.compile(r"\.(?:[0-9]+|\*|\{[0-9.,]+\})(?=\.)")


@dataclass(frozen=True, slots=True)
class State:
    """What a run of releases makes of one module: the format it builds (None: it builds none) and what happens."""

    built: Format | None
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Cell:
    """One module: `stored` is None where nothing is; `states` has an entry for each column of engines.

    An entry is None where those releases neither build the module nor look at it.
    """

    module: str
    shape: tuple[int, ...]
    stored: Format | None
    states: tuple[State | None, ...]

    @property
    def clashes(self) -> bool:
        """Whether any release raises at this module, or is silently wrong."""
        return any(state is not None and state.outcome is not Outcome.OK for state in self.states)


@dataclass(frozen=True, slots=True)
class Layer:
    """One row: the layer's name, and a cell for each projection of the chart, None where the layer has none."""

    name: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """Layers of one stack (`model.layers`, `model.visual.blocks`) against their projections."""

    stack: str
    projections: tuple[str, ...]
    layers: tuple[Layer, ...]


@dataclass(frozen=True, slots=True)
class Side:
    """The MTP branch or the main model: its stacks of layers, and the modules that stand outside any layer."""

    role: Role
    charts: tuple[Chart, ...]
    outside: tuple[Cell, ...]


def draw_sides(report: Report) -> tuple[Side, ...]:
    """Return the MTP branch and the main model as charts; a side that has no cell is left out."""
    cells = _cells(report, releases_ascending(report))
    roles: tuple[Role, Role] = ("draft", "target")
    sides = (_side(role, [cell for cell, owner in cells if owner == role]) for role in roles)
    return tuple(side for side in sides if side.charts or side.outside)


def _cells(report: Report, columns: Sequence[EngineReport]) -> list[tuple[Cell, Role]]:
    drawn: dict[str, dict[int, list[Row]]] = {}
    for position, column in enumerate(columns):
        for model in (column.prediction.target, column.prediction.draft):
            for row in rows_of(model, report):
                drawn.setdefault(row.name, {}).setdefault(position, []).append(row)
    shapes: dict[str, tuple[int, ...]] = {}
    formats: dict[str, Format] = {}
    for stored in report.stored.values():
        name = with_experts(stored.module, stored.experts)
        shapes[name], formats[name] = stored.shape, stored.format
    result = []
    for name in sorted({*shapes, *drawn}, key=natural_key):
        rows = drawn.get(name, {})
        states = tuple(_state(rows.get(position, ())) for position in range(len(columns)))
        cell = Cell(name, shapes.get(name, ()), formats.get(name), states)
        if len(cell.shape) > 1 or cell.clashes or (name not in shapes and any(states)):
            result.append((cell, _role(name, rows, report.mtp.prefixes)))
    return result


def _state(rows: Sequence[Row]) -> State | None:
    """Return what both models of one run of releases make of a module together: the worst counts."""
    if not rows:
        return None
    order = (Outcome.CRASH, Outcome.SILENT, Outcome.OK)
    worst = min(rows, key=lambda row: order.index(row.outcome))
    return State(worst.built, worst.outcome)


def _role(name: str, rows: Mapping[int, Sequence[Row]], prefixes: tuple[str, ...]) -> Role:
    if prefixes and name.startswith(prefixes):
        return "draft"
    roles = {row.role for group in rows.values() for row in group}
    return "draft" if roles == {"draft"} and not prefixes else "target"


def _side(role: Role, cells: Iterable[Cell]) -> Side:
    stacks: dict[str, dict[str, dict[str, Cell]]] = {}
    outside = []
    for cell in cells:
        hit = _NUMBERED.fullmatch(cell.module)
        if hit is None:
            outside.append(cell)
            continue
        stack = hit[1].rpartition(".")[0]
        row = stacks.setdefault(stack, {}).setdefault(hit[1], {})
        column = _NUMBERS_OF_EXPERTS.sub("", hit[2])
        row[column if column not in row else hit[2]] = cell
    charts = []
    for stack, layers in stacks.items():
        projections = tuple(_in_order(layers.values()))
        rows = tuple(Layer(name, tuple(row.get(one) for one in projections)) for name, row in layers.items())
        charts.append(Chart(stack, projections, rows))
    return Side(role, tuple(charts), tuple(outside))


def _in_order(rows: Iterable[Mapping[str, Cell]]) -> list[str]:
    """Return the projections of all layers, those of one parent together."""
    names = dict.fromkeys(name for row in rows for name in row)
    parents = {parent: number for number, parent in enumerate(dict.fromkeys(map(_parent, names)))}
    return sorted(names, key=lambda name: (parents[_parent(name)], natural_key(name)))


def _parent(name: str) -> str:
    return name.rpartition(".")[0]
