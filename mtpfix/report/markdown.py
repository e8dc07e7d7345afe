"""The report as GitHub-flavoured Markdown: a job's summary, a model card, a discussion on the Hub.

Foreign text stands in code spans or is escaped, so that it is neither markup, nor a link, nor a mention of anybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from mtpfix.checkpoint.names import collapse_names, natural_key
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import MtpfixError
from mtpfix.model import EngineReport, Finding, Outcome, Report, Verdict
from mtpfix.report.rows import rows_of
from mtpfix.report.summary import counts, releases_ascending, repair_command, verdict_clauses

LONGEST = 2000
MOST_FINDINGS, MOST_ROWS, MOST_COLUMNS = 100, 40, 8
MARKS: Mapping[Outcome, str] = {Outcome.OK: "ok", Outcome.CRASH: "**raises**", Outcome.SILENT: "**silent**"}
WORDS: Mapping[Verdict, str] = {
    Verdict.LOADS: "loads",
    Verdict.FAILS: "**fails**",
    Verdict.SILENT: "**silent**",
    Verdict.ABSENT: "none",
    Verdict.UNKNOWN: "unknown",
}
_SPECIAL = re.compile(r"([\\`*_{}\[\]()#!|<>~&$]|^[-+=])")
_BACKTICKS = re.compile("`+")


def render(report: Report) -> str:
    """Return the report as a section that begins with a second-level heading."""
    parts = [f"## mtpfix: {_code(report.checkpoint.ref)}", *_verdict(report)]
    columns = [column for column in reversed(releases_ascending(report)) if _predicted(column)]
    if columns:
        parts.append(_table(report, columns))
    parts += [_finding(finding) for finding in report.findings[:MOST_FINDINGS]]
    if len(report.findings) > MOST_FINDINGS:
        parts.append(f"{len(report.findings) - MOST_FINDINGS:,} more findings are left out.")
    command = repair_command(report)
    if command is not None:
        parts.append(f"Repair it:\n\n{_fenced(command)}")
    parts += [f"Note: {_plain(note)}" for note in report.notes]
    return "\n\n".join(parts) + "\n"


def render_failure(ref: str, error: MtpfixError) -> str:
    """Return the section of a checkpoint that could not be scanned."""
    return f"## mtpfix: {_code(ref)}\n\n**Not scanned.** {_plain(error.message)}\n\n{_plain(error.hint)}\n"


def _verdict(report: Report) -> Iterable[str]:
    clauses = verdict_clauses(report)
    yield "\n".join(f"- {_plain(clause.text)}" for clause in clauses)
    tally = counts(report)
    said = ", ".join(
        f"{count:,} {severity.value}{'' if count == 1 else 's'}" for severity, count in tally.items() if count
    )
    yield f"**{said}**" if said else "**No findings.**"


def _predicted(column: EngineReport) -> bool:
    verdicts = (column.prediction.target.verdict, column.prediction.draft.verdict)
    return any(verdict not in (Verdict.UNKNOWN, Verdict.ABSENT) for verdict in verdicts)


def _table(report: Report, columns: Sequence[EngineReport]) -> str:
    kept = columns[:MOST_COLUMNS]
    head = ["module", "stored", *(_plain(column.range) for column in kept)]
    rows = [
        ["main model", "", *(WORDS[column.prediction.target.verdict] for column in kept)],
        ["MTP draft", "", *(WORDS[column.prediction.draft.verdict] for column in kept)],
        *_clashes(report, kept),
    ]
    left_out = len(rows) - MOST_ROWS
    lines = [head, ["---"] * len(head), *rows[:MOST_ROWS]]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    said = []
    if len(columns) > len(kept):
        said.append(f"{len(columns) - len(kept):,} older runs of releases")
    if left_out > 0:
        said.append(f"{left_out:,} rows")
    return text + (f"\n\nLeft out: {', '.join(said)}." if said else "")


def _clashes(report: Report, columns: Sequence[EngineReport]) -> list[list[str]]:
    """Return a row for each set of modules that the same thing happens to, where anything does."""
    by_name: dict[str, dict[int, tuple[str, Outcome]]] = {}
    formats: dict[str, str] = {}
    for position, column in enumerate(columns):
        for model in (column.prediction.target, column.prediction.draft):
            for row in rows_of(model, report):
                built = row.built.value if row.built else "no place"
                old = by_name.setdefault(row.name, {}).get(position)
                if old is None or old[1] is Outcome.OK:
                    by_name[row.name][position] = (built, row.outcome)
                formats[row.name] = row.stored.value if row.stored else "absent"
    alike: dict[tuple[str, ...], list[str]] = {}
    for name, states in by_name.items():
        if any(outcome is not Outcome.OK for _, outcome in states.values()):
            cells = tuple(_cell(states.get(position)) for position in range(len(columns)))
            alike.setdefault((formats[name], *cells), []).append(name)
    rows = [(pattern.text, cells) for cells, names in alike.items() for pattern in collapse_names(names)]
    rows.sort(key=lambda row: natural_key(row[0]))
    return [[_code(name, table=True), *cells] for name, cells in rows]


def _cell(state: tuple[str, Outcome] | None) -> str:
    if state is None:
        return "-"
    built, outcome = state
    return MARKS[outcome] if outcome is Outcome.OK else f"{MARKS[outcome]}, builds {built}"


def _finding(finding: Finding) -> str:
    concerned = ", ".join(_plain(each.text) for each in finding.engines)
    head = f"### {finding.severity.value} {_plain(finding.rule)} {_plain(finding.name)}"
    lines = [_plain(finding.message)]
    if finding.module:
        lines.append(
            f"- where: {_code(finding.module)}" + (f" ({finding.count:,} modules)" if finding.count > 1 else "")
        )
    if concerned:
        lines.append(f"- engines: {concerned} ({finding.confidence.value})")
    if finding.error:
        lines.append(f"- raises: {_code(finding.error)}")
    if finding.evidence:
        lines.append(f"- evidence: {', '.join(_code(source) for source in finding.evidence[:4])}")
    for fix in finding.fixes:
        manner = "safe" if fix.safe else "your decision"
        lines.append(f"- repair ({manner}, writes {fix.bytes_written:,} bytes): {_plain(fix.title)}")
    return head + "\n\n" + lines[0] + ("\n\n" + "\n".join(lines[1:]) if len(lines) > 1 else "")


def _plain(text: str) -> str:
    """Return text in which nothing is markup, a link or a mention."""
    escaped = _SPECIAL.sub(r"\\\1", shown(text, LONGEST))
    escaped = escaped.replace("@", "@\u200b").replace("://", ":&#47;&#47;").replace("www.", "www&#46;")
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", escaped)


def _code(text: str, *, table: bool = False) -> str:
    """Return text in a code span whose fence is longer than any run of backticks in it."""
    inner = shown(text, LONGEST) or " "
    fence = "`" * (max((len(run) for run in _BACKTICKS.findall(inner)), default=0) + 1)
    pad = " " if inner.startswith("`") or inner.endswith("`") or fence != "`" else ""
    span = f"{fence}{pad}{inner}{pad}{fence}"
    return span.replace("|", "\\|") if table else span


def _fenced(text: str) -> str:
    fence = "`" * max(3, max((len(run) for run in _BACKTICKS.findall(text)), default=0) + 1)
    return f"{fence}sh\n{text}\n{fence}"
