"""What the commands that judge checkpoints share: their options, their settings, and how their results are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtpfix.cli.app import (
    WORST_FIRST,
    complain,
    complete_engine,
    complete_rule,
    defect_of,
    progress_bar,
    screen,
    writer,
)
from mtpfix.errors import MtpfixError, UsageError

if TYPE_CHECKING:
    from mtpfix.checkpoint.assemble import Progress
    from mtpfix.model import Report, Severity
    from mtpfix.report.overview import Line
    from mtpfix.settings import Settings

Form = Literal["text", "json", "sarif", "github", "markdown", "html"]
Level = Literal["error", "warning", "note", "never"]
Result = "Report | MtpfixError"

Engines = Annotated[
    list[str] | None,
    typer.Option(
        "--engine",
        "-e",
        metavar="ENGINE",
        help="Releases to judge: vllm, vllm==0.19.*, 'vllm>=0.20,<0.24'. Repeatable; default: all that are known.",
        autocompletion=complete_engine,
    ),
]
Shape = Annotated[Form, typer.Option("--format", help="How the report is written.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the report there instead.")]
FailOn = Annotated[
    Level | None,
    typer.Option("--fail-on", help="The least severe finding that makes the exit code 1.", show_default="error"),
]
Ranks = Annotated[
    int,
    typer.Option("--tp", metavar="N", min=1, help="Tensor-parallel size: also find shapes it cannot split."),
]
Select = Annotated[
    list[str] | None,
    typer.Option(
        metavar="RULE",
        help="Only these rules: code, its beginning, or name. Repeatable.",
        autocompletion=complete_rule,
    ),
]
Ignored = Annotated[
    list[str] | None,
    typer.Option(metavar="RULE", help="Not these rules. Repeatable.", autocompletion=complete_rule),
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Settings: an mtpfix.toml or a pyproject.toml.")
]
Isolated = Annotated[bool, typer.Option("--isolated", help="Read no settings file.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only the verdict of each checkpoint; no progress.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Every row and every source line.")]
Token = Annotated[
    str | None,
    typer.Option(
        "--token", metavar="TOKEN", help="Hub token, in place of HF_TOKEN and of the one you are logged in with."
    ),
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Ask nothing of the Hub: use what was read or downloaded before.")
]
Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="REVISION", help="A branch, a tag, refs/pr/1 or a commit; or write org/name@it."
    ),
]
NoProgress = Annotated[bool, typer.Option("--no-progress", help="No progress bar.")]


@dataclass(frozen=True, slots=True)
class Choices:
    """The options of one call; `trusting` says whether the model's own folder may hold settings.

    `remote` says whether what is no folder may be a repository on the Hub; `several` that the result is an array, even
    of one.
    """

    engine: list[str] | None
    form: Form
    output: Path | None
    fail_on: Level | None
    select: list[str] | None
    ignore: list[str] | None
    config: Path | None
    isolated: bool
    color: Literal["auto", "always", "never"]
    quiet: bool
    verbose: bool
    progress: bool
    metadata_only: bool | None = False
    trusting: bool = False
    ranks: int = 1
    remote: bool = False
    scope: Literal["all", "mtp"] = "all"
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    offline: bool = False
    several: bool = False


def judge_all(refs: Sequence[str | tuple[str, MtpfixError]], choices: Choices) -> int:
    """Scan every checkpoint, write the report, and return the exit code: of several the worst.

    What is known to fail already stands beside its error.
    """
    from mtpfix.engines import resolve_requests
    from mtpfix.model import Severity

    if choices.config is not None and choices.isolated:
        raise UsageError("--config and --isolated contradict each other", "leave one of them out")
    resolve_requests(choices.engine)
    deliver = _delivery(choices, several=choices.several or len(refs) > 1)
    codes = []
    for given in refs:
        ref, result, settings = (*given, None) if isinstance(given, tuple) else (given, *_judge(given, choices))
        said = choices.fail_on or (settings.fail_on if settings else None) or "error"
        level = None if said == "never" else Severity(said)
        if isinstance(result, MtpfixError):
            complain(result.message, result.hint)
        codes.append(result.exit_code if isinstance(result, MtpfixError) else result.exit_code(level))
        deliver(ref, result, level)
    deliver(None, None, None)
    return next(code for code in WORST_FIRST if code in codes)


def _judge(ref: str, choices: Choices) -> tuple[Report | MtpfixError, Settings | None]:
    with progress_bar(wanted=choices.progress and not choices.quiet) as progress:
        return _judge_one(ref, choices, progress)


def _judge_one(ref: str, choices: Choices, progress: Progress | None) -> tuple[Report | MtpfixError, Settings | None]:
    from mtpfix.api import check_rules, choose_rules, scan

    settings = None
    try:
        settings = _settings(ref, choices)
        check_rules(one.rule for one in settings.ignores)
        report = scan(
            ref if choices.remote else Path(ref),  # a path is never taken for a repository
            engines=choices.engine or list(settings.engines) or None,
            ignores=settings.ignores,
            metadata_only=choices.metadata_only,
            tp=choices.ranks,
            scope=choices.scope,
            revision=choices.revision,
            token=choices.token,
            offline=choices.offline,
            progress=progress,
        )
        select, ignore = choices.select or settings.select, (*(choices.ignore or ()), *settings.ignore)
        return choose_rules(report, select, ignore), settings
    except MtpfixError as error:
        return error, settings
    except Exception as error:  # noqa: BLE001 - the other checkpoints are scanned all the same
        return defect_of(error), settings


def _settings(ref: str, choices: Choices) -> Settings:
    from mtpfix.settings import Settings, find_settings, read_settings

    if choices.isolated:
        return Settings()
    if choices.config is not None:
        return read_settings(choices.config)
    return find_settings(Path(ref) if choices.trusting else None)


Delivery = Callable[["str | None", "Report | MtpfixError | None", "Severity | None"], None]


def _delivery(choices: Choices, *, several: bool) -> Delivery:
    """Return what takes each result as it comes, and three times None at the end."""
    deliver = writer(choices.output)
    width, colored = screen(choices.color, choices.output)
    codes: list[int] = []
    lines: list[Line] = []
    kept: list[tuple[str, Report | MtpfixError, Severity | None]] = []

    def take(ref: str | None, result: Report | MtpfixError | None, level: Severity | None) -> None:
        if ref is not None and result is not None:
            codes.append(result.exit_code if isinstance(result, MtpfixError) else result.exit_code(level))
            if several and choices.form == "text":
                from mtpfix.report.overview import line_of

                lines.append(line_of(ref, result, level))
            piece = _piece(ref, result, choices, width=width, colored=colored, several=several)
            if piece is None:
                kept.append((ref, result, level))
            else:
                deliver(piece)
            return
        if kept:
            deliver(_whole(kept, choices.form, several=several))
        elif several and choices.form == "text":
            from mtpfix.report.overview import render
            from mtpfix.report.summary import closing_text

            deliver(f"{render(lines, width)}\n{closing_text(codes)}")
        deliver(None)

    return take


def _piece(
    ref: str, result: Report | MtpfixError, choices: Choices, *, width: int, colored: bool, several: bool
) -> str | None:
    """Return what is written of one result as soon as it is there, None where a format is one whole."""
    match choices.form:
        case "text":
            if isinstance(result, MtpfixError):
                return ""
            from mtpfix.report import text

            if choices.quiet:
                return text.render_verdict(result, color=colored)
            return text.render(result, width=width, color=colored, verbose=choices.verbose) + "\n\n" * several
        case "github":
            from mtpfix.report import github

            return github.render_failure(ref, result) if isinstance(result, MtpfixError) else github.render(result)
        case "markdown":
            from mtpfix.report import markdown

            return markdown.render_failure(ref, result) if isinstance(result, MtpfixError) else markdown.render(result)
        case "json" | "sarif" | "html":
            return None


def _whole(results: Sequence[tuple[str, Report | MtpfixError, Severity | None]], form: Form, *, several: bool) -> str:
    reports = [result for _, result, _ in results if not isinstance(result, MtpfixError)]
    failures = [(ref, result) for ref, result, _ in results if isinstance(result, MtpfixError)]
    if form == "sarif":
        from mtpfix.report import sarif

        return sarif.render(reports, failures)
    if form == "html":
        from mtpfix.report import html

        return html.render(reports, failures)
    from mtpfix.report import json_v1

    documents: list[json_v1.DocumentV1] = [
        json_v1.to_failure(ref, result) if isinstance(result, MtpfixError) else json_v1.to_document(result, level)
        for ref, result, level in results
    ]
    return json_v1.render(documents, several=several)
