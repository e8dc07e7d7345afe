"""The command line: options to calls, results to reports, outcomes to exit codes. Judges and formats nothing.

Only what `--help` needs is imported at the top.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn, ParamSpec

import typer

from mtpfix import __version__
from mtpfix.errors import (
    EXIT_FINDINGS,
    EXIT_INTERRUPTED,
    EXIT_NOTHING,
    EXIT_OK,
    EXIT_UNABLE,
    MtpfixError,
)

if TYPE_CHECKING:
    from mtpfix.checkpoint.local import Progress
    from mtpfix.model import Report, Severity
    from mtpfix.report.json_v1 import DocumentV1
    from mtpfix.report.tables import Listing

P = ParamSpec("P")
FALLBACK_WIDTH = 100
LONGEST = 2000  # characters of a message
PATIENCE = 0.3  # seconds before a progress bar appears
WORST_FIRST = (EXIT_UNABLE, EXIT_FINDINGS, EXIT_NOTHING, EXIT_OK)

app = typer.Typer(
    name="mtpfix",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Shape = Annotated[Literal["text", "json"], typer.Option("--format", help="How the result is written.")]
Table = Annotated[Literal["text", "json", "markdown"], typer.Option("--format", help="How the list is written.")]
Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]
Color = Annotated[
    Literal["auto", "always", "never"],
    typer.Option(help="Colour; auto asks the terminal, NO_COLOR and FORCE_COLOR."),
]


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    app()
    sys.exit(EXIT_OK)


def command(name: str, short: str) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Register a function that returns an exit code as a command; whatever it raises becomes a sentence and a code."""

    def register(run: Callable[P, int]) -> Callable[P, None]:
        @wraps(run)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                code = run(*args, **kwargs)
            except MtpfixError as error:
                _complain(error.message, error.hint)
                code = error.exit_code
            except KeyboardInterrupt:
                _complain("interrupted")
                code = EXIT_INTERRUPTED
            except Exception as error:  # noqa: BLE001 - nobody who scans a file should have to read a traceback
                defect = _defect(error)
                _complain(defect.message, defect.hint)
                code = defect.exit_code
            raise typer.Exit(code)

        guarded.__annotations__ = {**run.__annotations__, "return": None}
        app.command(name, short_help=short)(guarded)
        return guarded

    return register


def _defect(error: Exception) -> MtpfixError:
    if os.environ.get("MTPFIX_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return MtpfixError(
        f"mtpfix met something it was not written for: {what}",
        "this is a defect of mtpfix, not of the checkpoint; run it again with MTPFIX_DEBUG=1 and report what it shows",
    )


def _complain(message: str, hint: str = "") -> None:
    from mtpfix.checkpoint.ref import shown

    sys.stderr.write(f"mtpfix: {shown(message, LONGEST)}\n")
    if hint:
        sys.stderr.write(f"  {shown(hint, LONGEST)}\n")


# ------------------------------------------------------------------------------------------------ commands


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"mtpfix {__version__}")
        raise typer.Exit


def _debug(value: bool) -> None:
    if value:
        os.environ["MTPFIX_DEBUG"] = "1"


Debug = Annotated[
    bool,
    typer.Option("--debug", callback=_debug, is_eager=True, help="Show the traceback of a defect."),
]


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Find out whether a checkpoint's MTP branch will load, in which engine releases, and why not.

    Start with: mtpfix scan FOLDER
    """


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
    deliver = _writer(output)
    machine = as_json or shape == "json"
    width, colored = _screen(color, output)
    documents: list[DocumentV1] = []
    codes = []
    for ref in refs:
        with _progress(wanted=not (quiet or no_progress)) as progress:
            result = _scan_one(ref, engine, select or (), ignore or (), progress)
        if isinstance(result, MtpfixError):
            _complain(result.message, result.hint)
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


@command("engines", "The engines and releases that mtpfix knows.")
def list_engines(shape: Table = "text", as_json: Json = False) -> int:
    """List the engines and releases that mtpfix knows: verified were run, derived were read."""
    from mtpfix.report import tables

    return _list(tables.engines(), "json" if as_json else shape)


@command("families", "The model families that mtpfix knows.")
def list_families(shape: Table = "text", as_json: Json = False) -> int:
    """List the model families that mtpfix knows, their architectures, and the releases that load them."""
    from mtpfix.report import tables

    return _list(tables.families(), "json" if as_json else shape)


@command("explain", "What a rule means, or all rules.")
def explain(
    rule: Annotated[
        str | None, typer.Argument(metavar="[RULE]", help="A code or a name; without it, all rules.")
    ] = None,
    shape: Table = "text",
    as_json: Json = False,
) -> int:
    """Explain a rule, or list all rules."""
    from mtpfix.report import tables

    if rule is None:
        return _list(tables.rules(), "json" if as_json else shape)
    _print(tables.explain(rule, "json" if as_json else shape))
    return EXIT_OK


@command("schema", "The JSON Schema of the JSON report.")
def schema(shape: Shape = "json", as_json: Json = False) -> int:  # noqa: ARG001 - one shape only, asked for like others
    """Print the JSON Schema of what `scan --format json` prints."""
    import json

    from mtpfix.report.schema import json_schema

    _print(json.dumps(json_schema(), indent=2) + "\n")
    return EXIT_OK


# ------------------------------------------------------------------------------------------- between them


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
        return _defect(error)


def _document(ref: str, result: Report | MtpfixError, level: Severity | None) -> DocumentV1:
    from mtpfix.report.json_v1 import to_document, to_failure

    return to_failure(ref, result) if isinstance(result, MtpfixError) else to_document(result, level)


def _text(report: Report, *, width: int, colored: bool, quiet: bool, verbose: bool, more: bool) -> str:
    from mtpfix.report.text import render, render_verdict

    if quiet:
        return render_verdict(report, color=colored)
    return render(report, width=width, color=colored, verbose=verbose) + ("\n\n" if more else "")


def _list(listing: Listing, shape: Literal["text", "json", "markdown"]) -> int:
    _print(listing.render(shape, shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns))
    return EXIT_OK


def _print(text: str) -> None:
    from mtpfix.report.output import print_text

    print_text(text)


def _writer(output: Path | None) -> Callable[[str | None], None]:
    """Return what takes the report piece by piece, and None at its end: the screen, or a file written then."""
    if output is None or str(output) == "-":
        return lambda text: _print(text or "")
    pieces: list[str] = []

    def write(text: str | None) -> None:
        from mtpfix.report.output import write_file

        if text is None:
            write_file(output, "".join(pieces))
        else:
            pieces.append(text)

    return write


def _screen(color: Literal["auto", "always", "never"], output: Path | None) -> tuple[int, bool]:
    """Return the width and whether there is colour: the option decides, then NO_COLOR, FORCE_COLOR, the terminal."""
    width = shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns
    if color != "auto":
        return width, color == "always"
    if os.environ.get("NO_COLOR") or output is not None:
        return width, False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return width, True
    return width, sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def _progress(*, wanted: bool) -> Iterator[Progress | None]:
    """Show a bar on standard error while files are read, where that is a terminal and it takes long enough to see."""
    if not (wanted and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"):
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    bar = Bar(console=Console(stderr=True, force_terminal=True), transient=True)
    task = bar.add_task("reading headers", total=None)
    begun = time.monotonic()

    def tell(done: int, total: int) -> None:
        if not bar.live.is_started and time.monotonic() - begun > PATIENCE:
            bar.start()
        bar.update(task, completed=done, total=total)

    try:
        yield tell
    finally:
        if bar.live.is_started:
            bar.stop()
