"""Several checkpoints in one table: a line for each, the newest release judged, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import EXIT_FINDINGS, EXIT_NOTHING, EXIT_OK, EXIT_UNABLE, MtpfixError
from mtpfix.model import Report, Severity, Verdict
from mtpfix.report.summary import counts, releases_ascending

HEADINGS = ("CHECKPOINT", "MTP TENSORS", "NEWEST RELEASE", "MAIN", "DRAFT", "E/W/N", "RESULT")
_LEAST = ("E/W/N", "MTP TENSORS", "NEWEST RELEASE")  # left out in this order where the lines would be too wide
_WORDS = {EXIT_OK: "clean", EXIT_FINDINGS: "findings", EXIT_UNABLE: "incomplete", EXIT_NOTHING: "nothing to check"}
_NARROWEST = 24  # characters of a checkpoint's name
_NONE = "-"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table, as texts under `HEADINGS`."""

    cells: tuple[str, ...]


def line_of(ref: str, result: Report | MtpfixError, level: Severity | None) -> Line:
    """Return the line of one checkpoint; the result is by the level that makes the exit code 1."""
    if isinstance(result, MtpfixError):
        word = "nothing to check" if result.exit_code == EXIT_NOTHING else "not read"
        return Line((shown(ref), *[_NONE] * (len(HEADINGS) - 2), word))
    rows = releases_ascending(result)
    newest = rows[-1].prediction if rows else None
    found = counts(result)
    return Line(
        (
            shown(ref),
            f"{result.mtp.tensors:,}" if result.mtp.present else "none",
            f"{newest.engine} {newest.version}" if newest else _NONE,
            _word(newest.target.verdict) if newest else _NONE,
            _word(newest.draft.verdict) if newest else _NONE,
            "/".join(str(found[severity]) for severity in Severity),
            _WORDS[result.exit_code(level)],
        )
    )


def _word(verdict: Verdict) -> str:
    return verdict.value


def render(lines: Sequence[Line], width: int) -> str:
    """Return the table; where it is wider than `width` the least of its columns go, then the middles of names."""
    table = [HEADINGS, *(line.cells for line in lines)]
    shown_columns = list(range(len(HEADINGS)))
    widths = [max(len(row[column]) for row in table) for column in shown_columns]
    widths[0] = min(widths[0], _NARROWEST)
    for heading in _LEAST:
        if _sum(widths, shown_columns) > width:
            shown_columns.remove(HEADINGS.index(heading))
    longest = max(len(row[0]) for row in table)
    widths[0] = min(longest, max(width - _sum(widths, shown_columns) + widths[0], _NARROWEST))
    texts = []
    for row in table:
        cells = [_cut(row[0], widths[0]), *row[1:]]
        texts.append("  ".join(cells[column].ljust(widths[column]) for column in shown_columns).rstrip())
    return "\n".join(texts) + "\n"


def _sum(widths: Sequence[int], columns: Sequence[int]) -> int:
    return sum(widths[column] for column in columns) + 2 * (len(columns) - 1)


def _cut(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    half = (width - 3) // 2
    return f"{text[: width - 3 - half]}...{text[-half:]}"
