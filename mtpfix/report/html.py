"""The report as one HTML file that asks for nothing: a map of the branch and the main model, releases, findings.

Everything foreign is escaped text or JSON; a content security policy lets run only the script that stands in this
package, so that nothing can run from a tensor's name. Without scripts the page shows the newest release.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files
from itertools import groupby
from typing import Any

from mtpfix import __version__
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import MtpfixError
from mtpfix.model import EngineReport, Finding, Format, Outcome, Report, Severity, Verdict
from mtpfix.report.chart import Cell, Chart, Side, draw_sides
from mtpfix.report.summary import deciding, plural, releases_ascending, repair_command, size_text, verdict_clauses

LONGEST = 2000
LETTERS: Mapping[Format, str] = {
    Format.BF16: "B",
    Format.FP16: "H",
    Format.FP32: "F",
    Format.FP8: "8",
    Format.FP8_CHANNEL: "8c",
    Format.FP8_BLOCK: "8b",
    Format.NVFP4: "4",
    Format.NVFP4_A16: "4a",
    Format.MXFP4: "m4",
    Format.MXFP8: "m8",
    Format.INT4: "i4",
    Format.INT8: "i8",
    Format.UNKNOWN: "?",
}
NOT_STORED = "-"
OUTCOMES = tuple(Outcome)
FORMATS = tuple(Format)
MARKS: Mapping[Outcome, str] = {Outcome.OK: "", Outcome.CRASH: "!", Outcome.SILENT: "~"}
SAYS: Mapping[Outcome, str] = {Outcome.OK: "as stored", Outcome.CRASH: "raises", Outcome.SILENT: "silently wrong"}
WORDS: Mapping[Verdict, str] = {
    Verdict.LOADS: "loads",
    Verdict.FAILS: "FAILS",
    Verdict.SILENT: "SILENT",
    Verdict.ABSENT: "none",
    Verdict.UNKNOWN: "unknown",
}
ROLES = {"draft": "MTP branch", "target": "Main model"}


def render(reports: Sequence[Report], failures: Sequence[tuple[str, MtpfixError]] = ()) -> str:
    """Return the page for one checkpoint or several; `failures` are those that could not be scanned."""
    style, script = _part("page.css"), _part("page.js")
    policy = (
        f"default-src 'none'; style-src 'sha256-{_digest(style)}'; script-src 'sha256-{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = f"mtpfix: {reports[0].checkpoint.ref}" if len(reports) == 1 else f"mtpfix: {len(reports):,} checkpoints"
    sections = [_report(report, number) for number, report in enumerate(reports)]
    sections += [_failure(ref, error) for ref, error in failures]
    return "\n".join(
        (
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            f'<meta name="generator" content="mtpfix {__version__}">',
            f"<title>{_text(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            *(_contents(reports) if len(reports) > 1 else ()),
            "<main>",
            *sections,
            "</main>",
            f"<footer>Written by mtpfix {__version__}. Headers and configurations only: no weight was read.</footer>",
            f"<script>{script}</script>",
            "</body>",
            "</html>\n",
        )
    )


def _part(name: str) -> str:
    return (files("mtpfix.report") / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _text(text: str) -> str:
    """Return foreign text as HTML: what is not printable spelt out, then everything escaped."""
    return escape(shown(text, LONGEST), quote=True)


def _json(value: Any) -> str:
    """Return JSON that may stand in a script element: nothing in it can end the element or open a comment."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _contents(reports: Sequence[Report]) -> Iterable[str]:
    yield '<nav aria-label="Checkpoints"><ul>'
    for number, report in enumerate(reports):
        errors = sum(finding.severity is Severity.ERROR for finding in report.findings)
        yield f'<li><a href="#report-{number}">{_text(report.checkpoint.ref)}</a>: {plural(errors, "error")}</li>'
    yield "</ul></nav>"


def _failure(ref: str, error: MtpfixError) -> str:
    return (
        f'<section class="report"><h1>{_text(ref)}</h1><p class="verdict crash">Not scanned: {_text(error.message)}</p>'
        f"<p>{_text(error.hint)}</p></section>"
    )


# --------------------------------------------------------------------------------------------- one checkpoint


def _report(report: Report, number: int) -> str:
    columns = releases_ascending(report)
    steps = _steps(columns)
    sides = draw_sides(report)
    initial = columns.index(_newest(columns)) if columns else None
    cells: list[Cell] = []
    parts = [
        f'<section class="report" id="report-{number}" aria-labelledby="title-{number}">',
        f'<h1 id="title-{number}">{_text(report.checkpoint.ref)}</h1>',
        *_verdict(report),
        f'<p class="facts">{_facts(report)}</p>',
    ]
    if columns:
        parts += _releases(steps, columns, number)
    if sides:
        parts.append(_legend(sides))
    for side in sides:
        parts += _side(side, initial, cells) if side.role == "draft" else ()
    parts += [*_findings(report, number), *_commands(report), *_notes(report)]
    for side in sides:
        parts += _side(side, initial, cells) if side.role == "target" else ()
    data = {
        "formats": [form.value for form in FORMATS],
        "outcomes": [SAYS[outcome] for outcome in OUTCOMES],
        "marks": [MARKS[outcome] for outcome in OUTCOMES],
        "classes": [outcome.value for outcome in OUTCOMES],
        "steps": steps,
        "columns": [_column(column) for column in columns],
        "cells": [_cell_data(cell) for cell in cells],
        "findings": [
            sorted({f"{each.engine} {version}" for each in finding.engines for version in each.versions})
            for finding in report.findings
        ],
    }
    parts += [f'<script type="application/json" class="data">{_json(data)}</script>', "</section>"]
    return "\n".join(parts)


def _newest(columns: Sequence[EngineReport]) -> EngineReport:
    first = columns[0].prediction.engine
    return [column for column in columns if column.prediction.engine == first][-1]


def _verdict(report: Report) -> Iterable[str]:
    yield '<ul class="verdict">'
    for clause in verdict_clauses(report):
        yield f'<li class="{clause.outcome.value if clause.outcome else "plain"}">{_text(clause.text)}</li>'
    yield "</ul>"


def _facts(report: Report) -> str:
    checkpoint, block = report.checkpoint, deciding(report)
    facts = [report.architecture or "no architecture named"]
    declared = " ".join(filter(None, (block.method, block.algo))) if block else ""
    facts.append(f"{declared} by {block.file}" if block else "no quantization declared")
    facts += [plural(len(checkpoint.shards), "file"), plural(checkpoint.tensor_count, "tensor")]
    return _text(", ".join((*facts, size_text(checkpoint.bytes))))


def _steps(columns: Sequence[EngineReport]) -> list[Mapping[str, Any]]:
    """Return every release with the column that tells what it does, by engine, ascending."""
    steps: list[Mapping[str, Any]] = []
    for engine in dict.fromkeys(column.prediction.engine for column in columns):
        own = [
            (version, position, version in column.verified)
            for position, column in enumerate(columns)
            if column.prediction.engine == engine
            for version in column.versions
        ]
        own.sort(key=lambda step: _version_key(step[0]))
        steps += [
            {"engine": engine, "version": version, "column": position, "run": run} for version, position, run in own
        ]
    return steps


def _version_key(version: str) -> Any:
    from packaging.version import InvalidVersion, Version

    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")


def _column(column: EngineReport) -> Mapping[str, Any]:
    prediction = column.prediction
    raising = next((one for one in (prediction.target, prediction.draft) if one.error is not None), None)
    return {
        "range": shown(column.range),
        "target": prediction.target.verdict.value,
        "draft": prediction.draft.verdict.value,
        "error": shown(raising.error, LONGEST) if raising and raising.error else "",
        "tensor": shown(raising.error_tensor, LONGEST) if raising and raising.error_tensor else "",
        "reason": shown("; ".join(dict.fromkeys(filter(None, (prediction.target.reason, prediction.draft.reason))))),
    }


def _releases(steps: Sequence[Mapping[str, Any]], columns: Sequence[EngineReport], number: int) -> Iterable[str]:
    newest = max((position for position, step in enumerate(steps) if step["engine"] == steps[0]["engine"]), default=0)
    yield f'<h2 id="releases-{number}">Releases</h2>'
    yield (
        f'<p class="slider"><label for="slider-{number}">Release</label> '
        f'<input type="range" id="slider-{number}" min="0" max="{len(steps) - 1}" value="{newest}" step="1"> '
        f'<output for="slider-{number}" aria-live="polite">{_text(_step_text(steps[newest], columns))}</output></p>'
    )
    yield f'<div class="scroll" tabindex="0" role="region" aria-labelledby="releases-{number}"><table class="releases">'
    yield '<thead><tr><th rowspan="2"></th>'
    for engine, own in groupby(steps, key=lambda step: step["engine"]):
        yield f'<th scope="colgroup" colspan="{len(list(own))}"><span>{_text(engine)}</span></th>'
    yield "</tr><tr>"
    for position, step in enumerate(steps):
        chosen = ' aria-current="true"' if position == newest else ""
        run = "run" if step["run"] else "read"
        yield (
            f'<th scope="col"><button type="button" data-step="{position}" class="{run}"{chosen}>'
            f'<span class="hidden">{_text(step["engine"])} </span>{_text(step["version"])}</button></th>'
        )
    yield "</tr></thead><tbody>"
    for role, title in (("target", "main model"), ("draft", "MTP draft")):
        yield f'<tr><th scope="row">{title}</th>'
        for step in steps:
            prediction = columns[step["column"]].prediction
            verdict = prediction.target.verdict if role == "target" else prediction.draft.verdict
            yield f'<td class="v-{verdict.value}">{WORDS[verdict]}</td>'
        yield "</tr>"
    yield "</tbody></table></div>"
    yield ('<p class="hint">Releases in bold were run on test checkpoints; the others were read in their source.</p>')


def _step_text(step: Mapping[str, Any], columns: Sequence[EngineReport]) -> str:
    prediction = columns[step["column"]].prediction
    how = "run" if step["run"] else "read"
    return (
        f"{step['engine']} {step['version']} ({how}): main model {WORDS[prediction.target.verdict]}, "
        f"MTP draft {WORDS[prediction.draft.verdict]}"
    )


# ----------------------------------------------------------------------------------------------- the map


def _legend(sides: Sequence[Side]) -> str:
    cells = [
        cell
        for side in sides
        for cell in (*side.outside, *(cell for chart in side.charts for row in chart.layers for cell in row.cells))
        if cell is not None
    ]
    used = dict.fromkeys(cell.stored for cell in cells)
    keys = [
        f'<li><span class="key f-{form.value}">{LETTERS[form]}</span> {form.value}</li>'
        for form in FORMATS
        if form in used
    ]
    if None in used:
        keys.append(f'<li><span class="key f-none">{NOT_STORED}</span> not stored</li>')
    keys.append('<li><span class="key crash">!</span> the engine raises here</li>')
    keys.append('<li><span class="key silent">~</span> silently wrong here</li>')
    if any(cell.clashes for cell in cells):
        keys.append('<li><span class="key disagrees"></span> wrong in some release</li>')
    return (
        f'<h2>Map</h2><ul class="legend">{"".join(keys)}</ul>'
        '<p class="hint">One row per layer, one column per projection: what is stored, and what the chosen '
        "release makes of it. Arrow keys move from cell to cell.</p>"
        '<p class="detail" role="status">Choose a cell to see its module.</p>'
    )


def _side(side: Side, initial: int | None, cells: list[Cell]) -> Iterable[str]:
    sizes = [len(chart.layers) for chart in side.charts]
    opened = " open" if side.role == "draft" or sum(sizes) <= 120 else ""
    said = " + ".join(f"{size:,}" for size in sizes) or "0"
    title = f"{ROLES[side.role]}: {said} {'layer' if sum(sizes) == 1 else 'layers'}"
    yield f'<details class="side"{opened}><summary><h3>{title}</h3></summary>'
    for chart in side.charts:
        yield from _chart(chart, initial, cells)
    if side.outside:
        yield '<table class="map" role="grid"><caption>Outside the layers</caption><tbody>'
        for cell in side.outside:
            yield f'<tr><th scope="row">{_text(cell.module)}</th>{_cell(cell, initial, cells)}</tr>'
        yield "</tbody></table>"
    yield "</details>"


def _chart(chart: Chart, initial: int | None, cells: list[Cell]) -> Iterable[str]:
    name = _text(chart.stack)
    yield f'<div class="scroll" tabindex="0" role="region" aria-label="{name}"><table class="map" role="grid">'
    yield f"<caption>{name}</caption><thead><tr><th></th>"
    for parent, group in groupby(chart.projections, key=lambda projection: projection.rpartition(".")[0]):
        yield f'<th scope="colgroup" colspan="{len(list(group))}">{_breakable(parent)}</th>'
    yield "</tr><tr><th></th>"
    yield from (f'<th scope="col">{_breakable(one.rpartition(".")[2])}</th>' for one in chart.projections)
    yield "</tr></thead><tbody>"
    for layer in chart.layers:
        short = layer.name.removeprefix(f"{chart.stack}.")
        row = [f'<tr><th scope="row">{_text(short)}</th>']
        row += ["<td></td>" if cell is None else _cell(cell, initial, cells) for cell in layer.cells]
        yield "".join((*row, "</tr>"))
    yield "</tbody></table></div>"


def _breakable(name: str) -> str:
    return _text(name).replace(".", ".<wbr>").replace("_", "_<wbr>")


def _cell(cell: Cell, initial: int | None, cells: list[Cell]) -> str:
    cells.append(cell)
    state = cell.states[initial] if initial is not None else None
    stored = cell.stored.value if cell.stored else "none"
    letter = LETTERS[cell.stored] if cell.stored else NOT_STORED
    outcome = state.outcome if state is not None else Outcome.OK
    crossing = " disagrees" if cell.clashes else ""
    classes = f"f-{stored}{crossing}" + ("" if outcome is Outcome.OK else f" {outcome.value}")
    label = stored if cell.stored else "not stored"
    return (
        f'<td class="{classes}" data-cell="{len(cells) - 1}" tabindex="-1"><span aria-hidden="true">{letter}'
        f'<b>{MARKS[outcome]}</b></span><span class="hidden">{label}, {SAYS[outcome]}</span></td>'
    )


def _cell_data(cell: Cell) -> list[Any]:
    """Return [module, format's number or -1, shape, for each column -1 or 16 * outcome + format built + 1]."""
    states = [
        -1
        if state is None
        else 16 * OUTCOMES.index(state.outcome) + (FORMATS.index(state.built) + 1 if state.built is not None else 0)
        for state in cell.states
    ]
    stored = FORMATS.index(cell.stored) if cell.stored is not None else -1
    same = states[:1] if len(set(states)) == 1 else states
    return [shown(cell.module, LONGEST), stored, " x ".join(f"{size:,}" for size in cell.shape), same]


# ------------------------------------------------------------------------------------------- the findings


def _findings(report: Report, number: int) -> Iterable[str]:
    yield f'<h2 id="findings-{number}">Findings</h2>'
    if not report.findings:
        yield "<p>No findings.</p>"
        return
    yield '<form class="filter" role="search" aria-label="Findings">'
    for severity in Severity:
        count = sum(finding.severity is severity for finding in report.findings)
        if count:
            yield (
                f'<label><input type="checkbox" name="severity" value="{severity.value}" checked> '
                f"{plural(count, severity.value)}</label>"
            )
    yield '<label><input type="checkbox" name="release"> only of the chosen release</label>'
    yield '<label>Find <input type="search" name="text" autocomplete="off"></label>'
    yield '<output aria-live="polite"></output></form>'
    for position, finding in enumerate(report.findings):
        yield _finding(finding, position)


def _finding(finding: Finding, position: int) -> str:
    engines = ", ".join(each.text for each in finding.engines) or "whatever engine loads it"
    opened = " open" if finding.severity is Severity.ERROR and position < 20 else ""
    rows = [("what", _text(finding.message))]
    if finding.module:
        count = f" ({finding.count:,} modules)" if finding.count > 1 else ""
        rows.append(("where", f"<code>{_text(finding.module)}</code>{count}"))
    formats = ", ".join(
        f"{side} {text}" for side, text in (("stored", finding.stored), ("built", finding.built)) if text
    )
    if formats:
        rows.append(("formats", _text(formats)))
    rows.append(("releases", f"{_text(engines)} ({finding.confidence.value})"))
    if finding.error:
        rows.append(("raises", f"<code>{_text(finding.error)}</code>"))
    if finding.evidence:
        rows.append(("evidence", "<br>".join(f"<code>{_text(source)}</code>" for source in finding.evidence)))
    for fix in finding.fixes:
        manner = "safe" if fix.safe else "your decision"
        rows.append(("repair", f"{_text(fix.title)} ({manner}, writes {size_text(fix.bytes_written)})"))
    body = "".join(f"<dt>{label}</dt><dd>{value}</dd>" for label, value in rows)
    return (
        f'<details class="finding {finding.severity.value}" data-finding="{position}"{opened}>'
        f'<summary><span class="severity">{finding.severity.value}</span> <strong>{_text(finding.rule)} '
        f"{_text(finding.name)}</strong> <span>{_text(finding.module) or _text(engines)}</span></summary>"
        f"<dl>{body}</dl>{_command(f'mtpfix explain {shown(finding.rule)}')}</details>"
    )


def _commands(report: Report) -> Iterable[str]:
    command = repair_command(report)
    if command is not None:
        yield f"<h2>Repair</h2>{_command(command)}"


def _command(command: str) -> str:
    return (
        f'<p class="command"><code>{_text(command)}</code> '
        f'<button type="button" class="copy" hidden>Copy<span class="hidden"> this command</span></button></p>'
    )


def _notes(report: Report) -> Iterable[str]:
    unread = sorted(report.checkpoint.unread)
    if unread or not report.complete:
        names = ", ".join(unread[:20]) or "part of the checkpoint"
        yield f'<p class="verdict crash">Incomplete, so nothing here is called clean. Not read: {_text(names)}</p>'
    if report.notes:
        yield "<h2>Notes</h2><ul>" + "".join(f"<li>{_text(note)}</li>" for note in report.notes) + "</ul>"
