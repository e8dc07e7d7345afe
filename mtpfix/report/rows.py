"""The rows of a report: each module on disk against what one engine release builds for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtpfix.model import Built, Event, Format, ModelPrediction, Outcome, Report, Role
from mtpfix.report.names import with_experts


@dataclass(frozen=True, slots=True)
class Row:
    """One module at one release: `name` as on disk, experts collapsed; `stored` or `built` is None where it is not.

    `prefix` is the name the engine asks its lists for, `because` cites `file:line@version`.
    """

    name: str
    role: Role
    prefix: str | None
    stored: Format | None
    built: Format | None
    outcome: Outcome
    because: tuple[str, ...]


def rows_of(model: ModelPrediction, report: Report) -> list[Row]:
    """Return the modules of one model by name: those the engine builds, and those stored that something happens to."""
    happening: dict[str, list[Event]] = {}
    for event in model.events:
        happening.setdefault(event.module, []).append(event)
    rows: dict[str, Row] = {}
    for built in model.built:
        for name in built.modules:
            rows[name] = _row(name, model.role, built, happening.get(name, ()), report)
    for name, events in happening.items():
        if name not in rows and name in report.stored:
            rows[name] = _row(name, model.role, None, events, report)
    return [rows[name] for name in sorted(rows)]


def _row(name: str, role: Role, built: Built | None, events: Sequence[Event], report: Report) -> Row:
    stored = report.stored.get(name)
    outcomes = {event.outcome for event in events}
    because = (*(built.because if built else ()), *(source for event in events for source in event.because))
    return Row(
        name=with_experts(name, stored.experts if stored else None),
        role=role,
        prefix=built.prefix if built else None,
        stored=stored.format if stored else None,
        built=built.format if built else None,
        outcome=next((worst for worst in (Outcome.CRASH, Outcome.SILENT) if worst in outcomes), Outcome.OK),
        because=tuple(dict.fromkeys(source for source in because if source)),
    )
