"""The report as annotations of a GitHub Actions job. Foreign text can neither end a command nor begin one.

Source: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

from collections.abc import Mapping

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import MtpfixError
from mtpfix.model import Finding, Report, Severity
from mtpfix.report.summary import file_to_open, verdict_text

COMMANDS: Mapping[Severity, str] = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
MOST = 10  # of each kind: GitHub shows no more of one step
LONGEST = 2000


def render(report: Report) -> str:
    """Return one annotation for each finding, the most severe first, and one with the verdict."""
    lines = [_verdict(report)]
    order = list(Severity)
    for severity in order:
        found = [finding for finding in report.findings if finding.severity is severity]
        room = MOST if len(found) <= MOST else MOST - 1
        lines += [_annotation(report, finding) for finding in found[:room]]
        if len(found) > room:
            rules = ", ".join(dict.fromkeys(finding.rule for finding in found[room:]))
            text = f"{len(found) - room:,} more of these in {report.checkpoint.ref}: {rules}"
            lines.append(_command(COMMANDS[severity], text, title="mtpfix"))
    return "".join(f"{line}\n" for line in lines)


def render_failure(ref: str, error: MtpfixError) -> str:
    """Return the annotation of a checkpoint that could not be scanned."""
    return _command("error", f"{ref}: {error.message}\n{error.hint}", title="mtpfix could not scan this") + "\n"


def _verdict(report: Report) -> str:
    unread = report.checkpoint.unread or not report.complete
    return _command("error" if unread else "notice", f"{report.checkpoint.ref}: {verdict_text(report)}", title="mtpfix")


def _annotation(report: Report, finding: Finding) -> str:
    where = f"{finding.module}: " if finding.module else ""
    lines = [f"{where}{finding.message}"]
    if finding.engines:
        lines.append(f"in {', '.join(each.text for each in finding.engines)}")
    if finding.error:
        lines.append(f"raises: {finding.error}")
    lines += [f"repair: {fix.title}" for fix in finding.fixes]
    return _command(
        COMMANDS[finding.severity],
        "\n".join(lines),
        file=f"{report.checkpoint.ref}/{file_to_open(report, finding)}",
        line="1",
        title=f"{finding.rule} {finding.name}",
    )


def _command(name: str, text: str, **properties: str) -> str:
    """Return a workflow command; what stands in it is first made printable, then escaped as the runner unescapes."""
    given = ",".join(f"{key}={_property(value)}" for key, value in properties.items())
    return f"::{name} {given}::{_data(text)}"


def _data(text: str) -> str:
    lines = (_printable(line) for line in text.strip("\n").split("\n"))
    return "%0A".join(lines)


def _property(text: str) -> str:
    return _printable(text).replace(":", "%3A").replace(",", "%2C")


def _printable(text: str) -> str:
    """Return text without a line's end and without the older form of a command, `##[...]`, which counts anywhere."""
    return shown(text, LONGEST).replace("##[", "# #[").replace("%", "%25")
