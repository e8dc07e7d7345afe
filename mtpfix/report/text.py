"""The report for a terminal: the verdict, then modules against releases, then each finding with its repair.

Every piece of foreign text goes through `shown` and stands in a `Text`, never in markup. Colour only repeats what a
word or a letter already says.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from io import StringIO

from rich.box import Box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from mtpfix.checkpoint.names import collapse_names, natural_key
from mtpfix.checkpoint.ref import shown
from mtpfix.model import Confidence, EngineReport, Finding, Fix, Outcome, Report, Severity, Verdict
from mtpfix.report.rows import Row, rows_of
from mtpfix.report.summary import (
    counts,
    deciding,
    plural,
    releases_ascending,
    repair_command,
    size_text,
    verdict_clauses,
)

NARROWEST, WIDEST, WIDEST_PROSE = 40, 200, 120
MODULE_WIDTH, CELL_WIDTH, GAP = 20, 13, 2
INDENT = 2
NOT_THERE = "-"  # the cell of a release that neither builds the module nor looks at it
MODELS = 2  # the first rows of the matrix: main model, MTP draft
MOST_ROWS, MOST_NAMES, LONGEST = 40, 4, 2000

STYLES: Mapping[Outcome | None, str] = {
    Outcome.OK: "green",
    Outcome.CRASH: "bold red",
    Outcome.SILENT: "bold yellow",
    None: "",
}
LETTERS: Mapping[Outcome, str] = {Outcome.CRASH: "C", Outcome.SILENT: "S"}
SEVERITY_STYLES: Mapping[Severity, str] = {
    Severity.ERROR: "bold red",
    Severity.WARNING: "bold yellow",
    Severity.NOTE: "cyan",
}
CELLS: Mapping[Verdict, tuple[str, Outcome | None]] = {
    Verdict.LOADS: ("loads", Outcome.OK),
    Verdict.FAILS: ("FAILS", Outcome.CRASH),
    Verdict.SILENT: ("SILENT", Outcome.SILENT),
    Verdict.ABSENT: ("none", None),
    Verdict.UNKNOWN: ("unknown", None),
}
RULED = Box("    \n    \n -- \n    \n    \n -- \n    \n    \n", ascii=True)

Line = tuple[str, str, tuple[tuple[str, Outcome | None], ...]]
"""A row of the matrix: the module, its stored format, and a cell for each release."""


def render(report: Report, *, width: int = 80, color: bool = False, verbose: bool = False) -> str:
    """Return the report as text of at most `width` columns; `verbose` leaves no row and no evidence out."""
    written = StringIO()
    console = _console(written, max(width, NARROWEST), color=color)
    for part in (_title(report), _verdict(report), _facts(report)):
        console.print(part, width=min(console.width, WIDEST_PROSE))
    for table in _matrix(report, min(console.width, WIDEST), verbose=verbose):
        console.print()
        console.print(table, width=min(console.width, WIDEST if isinstance(table, Table) else WIDEST_PROSE))
    for finding in report.findings:
        console.print()
        _print_finding(console, finding, verbose=verbose)
    _print_end(console, report)
    return "\n".join(line.rstrip(" ") for line in written.getvalue().split("\n"))


def render_verdict(report: Report, *, color: bool = False) -> str:
    """Return the verdict alone, in one line behind the checkpoint's name."""
    written = StringIO()
    _console(written, 80, color=color).print(Text.assemble(_title(report), ": ", _verdict(report)), soft_wrap=True)
    return written.getvalue()


def _console(file: StringIO, width: int, *, color: bool) -> Console:
    return Console(
        file=file,
        width=width,
        force_terminal=color,
        color_system="standard" if color else None,
        no_color=not color,
        highlight=False,
        markup=False,
        emoji=False,
        legacy_windows=False,
    )


def _title(report: Report) -> Text:
    revision = report.checkpoint.revision
    return Text(shown(report.checkpoint.ref) + (f"@{shown(revision)}" if revision else ""), "bold", overflow="fold")


def _facts(report: Report) -> Text:
    checkpoint = report.checkpoint
    block = deciding(report)
    facts = [shown(report.architecture)] if report.architecture else []
    if block is None:
        facts.append("no quantization declared")
    else:
        facts.append(shown(" ".join(filter(None, (block.method, block.algo)))) + f" by {shown(block.file)}")
    facts.append(plural(len(checkpoint.shards), "file"))
    facts.append(plural(checkpoint.tensor_count, "tensor"))
    facts.append(size_text(checkpoint.bytes))
    return Text(", ".join(facts), "dim", overflow="fold")


def _verdict(report: Report) -> Text:
    verdict = Text(overflow="fold")
    for clause in verdict_clauses(report):
        verdict.append(shown(clause.text, LONGEST), STYLES[clause.outcome])
        verdict.append(" ")
    verdict.rstrip()
    return verdict


# ---------------------------------------------------------------------------------------------- the matrix


def _matrix(report: Report, width: int, *, verbose: bool) -> Iterable[Table | Text]:
    columns = [column for column in reversed(releases_ascending(report)) if _predicted(column)]
    if not columns:
        return
    lines, hidden = _lines(report, columns, verbose=verbose)
    stored = max(len("stored"), *(len(line[1]) for line in lines))
    longest = max(len(line[0]) for line in lines)
    start = 0
    while start < len(columns):
        cells = _widths(columns, lines, start, width - stored - GAP)
        part = slice(start, start + len(cells))
        names = min(longest, width - stored - GAP - GAP - sum(cells) - GAP * len(cells))
        table = _table(names, stored, cells)
        for column, release in zip(table.columns[2:], columns[part], strict=True):
            column.header = _release(release)
        here = [line for line in lines if any(text != NOT_THERE for text, _ in line[2][part])]
        for number, (name, form, outcomes) in enumerate(here):
            written = [Text(text, STYLES[outcome]) for text, outcome in outcomes[part]]
            last = number == MODELS - 1 and len(here) > MODELS
            table.add_row(Text(_folded(shown(name), names)), Text(form), *written, end_section=last)
        yield table
        start = part.stop
    yield _legend(lines, hidden, columns)


def _predicted(column: EngineReport) -> bool:
    verdicts = (column.prediction.target.verdict, column.prediction.draft.verdict)
    return any(verdict not in (Verdict.UNKNOWN, Verdict.ABSENT) for verdict in verdicts)


def _widths(columns: Sequence[EngineReport], lines: Sequence[Line], start: int, room: int) -> list[int]:
    """Return the widths of the next columns that fit beside the module names: at least one, however narrow the room."""
    widths: list[int] = []
    for position in range(start, len(columns)):
        texts = [*_release(columns[position]).plain.split("\n"), *(line[2][position][0] for line in lines)]
        widths.append(min(CELL_WIDTH, max(map(len, texts))))
        if len(widths) > 1 and room - sum(widths) - GAP * (len(widths) + 1) < MODULE_WIDTH:
            return widths[:-1]
    return widths


def _lines(report: Report, columns: Sequence[EngineReport], *, verbose: bool) -> tuple[list[Line], int]:
    """Return the matrix's rows (all of the MTP branch, and what is wrong elsewhere), and how many are left out."""
    by_name: dict[tuple[str, str], dict[int, Row]] = {}
    for position, column in enumerate(columns):
        for model in (column.prediction.target, column.prediction.draft):
            for row in rows_of(model, report):
                by_name.setdefault((model.role, row.name), {})[position] = row
    alike: dict[tuple[str, bool, str, tuple[tuple[str, Outcome | None], ...]], list[str]] = {}
    for (role, name), rows in by_name.items():
        if role == "target" and all(row.outcome is Outcome.OK for row in rows.values()):
            continue
        cells = tuple(_cell(rows.get(position)) for position in range(len(columns)))
        formats = [row.stored for row in rows.values() if row.stored]
        wrong = any(row.outcome is not Outcome.OK for row in rows.values())
        alike.setdefault((role, wrong, formats[0].value if formats else "absent", cells), []).append(name)
    lines = [
        (role, wrong, pattern.text, stored, cells)
        for (role, wrong, stored, cells), names in alike.items()
        for pattern in collapse_names(names)
    ]
    lines.sort(key=lambda line: (line[0] == "target", natural_key(line[2]), line[3]))
    kept = lines if verbose or len(lines) <= MOST_ROWS else [line for line in lines if line[1]]
    kept = kept if verbose else kept[:MOST_ROWS]
    models: list[Line] = [
        ("main model", "", tuple(CELLS[column.prediction.target.verdict] for column in columns)),
        ("MTP draft", "", tuple(CELLS[column.prediction.draft.verdict] for column in columns)),
    ]
    return models + [(text, stored, cells) for _, _, text, stored, cells in kept], len(lines) - len(kept)


def _cell(row: Row | None) -> tuple[str, Outcome | None]:
    if row is None:
        return NOT_THERE, None
    if row.outcome is Outcome.OK:
        return "ok", Outcome.OK
    return f"{LETTERS[row.outcome]} {row.built.value if row.built else 'no place'}", row.outcome


def _table(names: int, stored: int, cells: Sequence[int]) -> Table:
    table = Table(box=RULED, show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), header_style="bold")
    table.add_column("\n\nmodule", overflow="fold", width=max(names, len("main model")))
    table.add_column("\n\nstored", overflow="fold", width=stored)
    for width in cells:
        table.add_column(overflow="fold", width=width)
    return table


def _release(column: EngineReport) -> Text:
    engine, _, releases = shown(column.range).partition(" ")
    releases = releases.replace(" - ", "-") or "all"
    return Text.assemble(f"{engine}\n{releases}\n", (_trust(column), "not bold dim"))


def _trust(column: EngineReport) -> str:
    """Return whether the releases of a column were run: all of them, some, or none."""
    if len(column.versions) > len(column.verified) > 0:
        return "partly run"
    return column.prediction.confidence.value


def _folded(name: str, width: int) -> str:
    """Return a name in lines of at most `width`, broken behind a dot outside braces, or a comma, where there is one."""
    lines = []
    while len(name) > width:
        dots = [at + 1 for at in range(width) if name[at] == "." and name[:at].count("{") == name[:at].count("}")]
        cut = dots[-1] if dots else name.rfind(",", 0, width) + 1 or width
        lines.append(name[:cut])
        name = name[cut:]
    return "\n".join([*lines, name])


def _legend(lines: Sequence[Line], hidden: int, columns: Sequence[EngineReport]) -> Text:
    used = {outcome for _, _, cells in lines[MODELS:] for _, outcome in cells}
    parts = []
    if Outcome.CRASH in used:
        parts.append("C: raises while loading, built in that format")
    if Outcome.SILENT in used:
        parts.append("S: loads without a word, but weights are missing, unwritten or misread")
    if any(column.prediction.confidence is Confidence.DERIVED for column in columns):
        parts.append("derived: read from the engine's source, not run")
    if any(_trust(column) == "partly run" for column in columns):
        parts.append("partly run: some of these releases were run, the others read")
    if hidden:
        parts.append(f"{plural(hidden, 'more row')} with -v")
    return Text("; ".join(parts) + ("." if parts else ""), "dim")


# -------------------------------------------------------------------------------------------- the findings


def _print_finding(console: Console, finding: Finding, *, verbose: bool) -> None:
    head = Text(overflow="fold")
    head.append(finding.severity.value, SEVERITY_STYLES[finding.severity])
    head.append(f" {shown(finding.rule)} {shown(finding.name)}", "bold")
    where = ", ".join(shown(each.text) for each in finding.engines)
    if where:
        derived = ", derived" if finding.confidence is Confidence.DERIVED else ""
        head.append(f"  {where}{derived}", "dim")
    console.print(head, width=min(console.width, WIDEST_PROSE))
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(min_width=len("evidence"), style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    width = min(console.width, WIDEST_PROSE) - INDENT - len("evidence") - 2
    for label, text in _details(finding, width, verbose=verbose):
        table.add_row(label, text)
    console.print(Padding(table, (0, 0, 0, INDENT)), width=min(console.width, WIDEST_PROSE))


def _details(finding: Finding, width: int, *, verbose: bool) -> Iterable[tuple[str, Text]]:
    yield "what", Text(shown(finding.message, LONGEST))
    if finding.module:
        count = f" ({finding.count:,} modules)" if finding.count > 1 and "(" not in finding.module else ""
        pieces = shown(finding.module, LONGEST).replace("), ", "),\n").split("\n")
        yield "where", Text("\n".join(_folded(piece, width) for piece in pieces) + count)
    if finding.module and (finding.stored or finding.built):
        sides = [(finding.stored, "stored"), (finding.built, "built")]
        yield "formats", Text(", ".join(f"{side} {shown(text)}" for text, side in sides if text))
    if finding.error:
        yield "raises", Text(shown(finding.error, LONGEST), "red")
    if finding.evidence:
        most = len(finding.evidence) if verbose else MOST_NAMES
        yield "evidence", Text(_first(finding.evidence, most, "\n"), "dim")
    for fix in finding.fixes:
        yield "repair", _repair(fix)


def _repair(fix: Fix) -> Text:
    manner = "safe" if fix.safe else "your decision"
    return Text.assemble(
        (shown(fix.title, 600), "green"), (f" ({manner}, writes {size_text(fix.bytes_written)})", "dim")
    )


def _print_end(console: Console, report: Report) -> None:
    width = min(console.width, WIDEST_PROSE)
    if report.notes:
        console.print()
    for note in report.notes:
        console.print(Text(f"note: {shown(note, LONGEST)}", "dim"), width=width)
    unread = sorted(report.checkpoint.unread)
    console.print()
    if unread or not report.complete:
        names = ", ".join(shown(name) for name in unread[:5]) + (
            f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        )
        console.print(
            Text(
                f"INCOMPLETE, so nothing here is called clean. Not read: {names or 'part of the checkpoint'}",
                "bold red",
            ),
            width=width,
        )
    tally = counts(report)
    said = ", ".join(plural(count, severity.value) for severity, count in tally.items() if count)
    ignored = f" {plural(report.ignored, 'finding')} ignored by settings." if report.ignored else ""
    if not said:
        console.print(Text(f"No findings.{ignored}"), width=width)
        return
    command = repair_command(report)
    if command is not None:
        console.print(Text(f"Repair: {command}", "bold"), width=width, soft_wrap=True)
    rules = dict.fromkeys(finding.rule for finding in report.findings)
    console.print(
        Text(f"{said}. {ignored and ignored[1:] + ' '}More on a rule: mtpfix explain {shown(next(iter(rules)))}"),
        width=width,
    )


def _first(texts: Sequence[str], most: int, between: str) -> str:
    more = f" and {len(texts) - most:,} more" if len(texts) > most else ""
    return between.join(shown(text) for text in texts[:most]) + more
