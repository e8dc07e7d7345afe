"""The `scan` command."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtpfix.cli.app import (
    WORST_FIRST,
    Color,
    Debug,
    Json,
    Shape,
    command,
    complain,
    defect_of,
    progress_bar,
    screen,
    writer,
)
from mtpfix.errors import MtpfixError

if TYPE_CHECKING:
    from mtpfix.checkpoint.local import Progress
    from mtpfix.model import Report, Severity
    from mtpfix.report.json_v1 import DocumentV1


@command("scan", "What is stored, what each engine builds, where they clash.")
def scan(
    refs: Annotated[list[str], typer.Argument(metavar="FOLDER", help="Folders that hold a checkpoint.")],
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--engine",
            "-e",
            metavar="ENGINE",
            help="Releases to judge: vllm, vllm==0.19.*, 'vllm>=0.20,<0.24'. Repeatable; default: all that are known.",
        ),
    ] = None,
    shape: Shape = "text",
    as_json: Json = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the report there instead.")
    ] = None,
    fail_on: Annotated[
        Literal["error", "warning", "note", "never"],
        typer.Option("--fail-on", help="The least severe finding that makes the exit code 1."),
    ] = "error",
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="RULE", help="Only these rules: code, its beginning, or name. Repeatable."),
    ] = None,
    ignore: Annotated[list[str] | None, typer.Option(metavar="RULE", help="Not these rules. Repeatable.")] = None,
    color: Color = "auto",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only the verdict of each checkpoint; no progress.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every row and every source line.")] = False,
    no_progress: Annotated[bool, typer.Option("--no-progress", help="No progress bar.")] = False,
    debug: Debug = False,  # noqa: ARG001 - its callback does it
) -> int:
    """Say what is stored, what each engine release will build from it, and where the two clash.

    Exit code: 0 everything read and nothing found at or above --fail-on; 1 findings; 2 it could not be done, or
    something stayed unread; 3 nothing to check; 130 interrupted. Of several folders the worst counts: 2, 1, 3, 0.
    """
    from mtpfix.engines import resolve_requests
    from mtpfix.model import Severity

    level = None if fail_on == "never" else Severity(fail_on)
    resolve_requests(engine)
    deliver = writer(output)
    machine = as_json or shape == "json"
    width, colored = screen(color, output)
    documents: list[DocumentV1] = []
    codes = []
    for ref in refs:
        with progress_bar(wanted=not (quiet or no_progress)) as progress:
            result = _scan_one(ref, engine, select or (), ignore or (), progress)
        if isinstance(result, MtpfixError):
            complain(result.message, result.hint)
        codes.append(result.exit_code if isinstance(result, MtpfixError) else result.exit_code(level))
        if machine:
            documents.append(_document(ref, result, level))
        elif not isinstance(result, MtpfixError):
            deliver(_text(result, width=width, colored=colored, quiet=quiet, verbose=verbose, more=len(refs) > 1))
    if machine:
        from mtpfix.report.json_v1 import render

        deliver(render(documents))
    elif len(codes) > 1:
        from mtpfix.report.summary import closing_text

        deliver(closing_text(codes))
    deliver(None)
    return next(code for code in WORST_FIRST if code in codes)


def _scan_one(
    ref: str, engines: Sequence[str] | None, select: Sequence[str], ignore: Sequence[str], progress: Progress | None
) -> Report | MtpfixError:
    from mtpfix.api import choose_rules
    from mtpfix.api import scan as scan_checkpoint

    try:
        return choose_rules(scan_checkpoint(ref, engines=engines, progress=progress), select, ignore)
    except MtpfixError as error:
        return error
    except Exception as error:  # noqa: BLE001 - the other checkpoints are scanned all the same
        return defect_of(error)


def _document(ref: str, result: Report | MtpfixError, level: Severity | None) -> DocumentV1:
    from mtpfix.report.json_v1 import to_document, to_failure

    return to_failure(ref, result) if isinstance(result, MtpfixError) else to_document(result, level)


def _text(report: Report, *, width: int, colored: bool, quiet: bool, verbose: bool, more: bool) -> str:
    from mtpfix.report.text import render, render_verdict

    if quiet:
        return render_verdict(report, color=colored)
    return render(report, width=width, color=colored, verbose=verbose) + ("\n\n" if more else "")
