"""The frame of the command line: the program, its shared options, and what becomes of an error. Judges nothing.

Only what `--help` needs is imported at the top. Each command is a module beside this one.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, ParamSpec

import typer
from typer.core import TyperGroup

from mtpfix import __version__
from mtpfix.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_NOTHING, EXIT_OK, EXIT_UNABLE, MtpfixError

if TYPE_CHECKING:
    from mtpfix.checkpoint.assemble import Progress

P = ParamSpec("P")
FALLBACK_WIDTH = 100
LONGEST = 2000  # characters of a message
PATIENCE = 0.3  # seconds before a progress bar appears
WORST_FIRST = (EXIT_UNABLE, EXIT_FINDINGS, EXIT_NOTHING, EXIT_OK)

ORDER = ("scan", "check", "patch", "verify", "push", "diff", "engines", "families", "explain", "schema", "doctor")


class InOrder(TyperGroup):
    """Commands in the order in which a person needs them."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands."""
        return sorted(super().list_commands(ctx), key=ORDER.index)


app = typer.Typer(
    name="mtpfix",
    cls=InOrder,
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


def command(name: str, short: str) -> Callable[[Callable[P, int]], Callable[P, None]]:
    """Register a function that returns an exit code as a command; whatever it raises becomes a sentence and a code."""

    def register(run: Callable[P, int]) -> Callable[P, None]:
        @wraps(run)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                code = run(*args, **kwargs)
            except MtpfixError as error:
                complain(error.message, error.hint)
                code = error.exit_code
            except KeyboardInterrupt:
                complain("interrupted")
                code = EXIT_INTERRUPTED
            except Exception as error:  # noqa: BLE001 - nobody who scans a file should have to read a traceback
                defect = defect_of(error)
                complain(defect.message, defect.hint)
                code = defect.exit_code
            raise typer.Exit(code)

        guarded.__annotations__ = {**run.__annotations__, "return": None}
        app.command(name, short_help=short)(guarded)
        return guarded

    return register


def defect_of(error: Exception) -> MtpfixError:
    """Return what a person is told of an exception nobody foresaw; its traceback is shown if MTPFIX_DEBUG is set."""
    if os.environ.get("MTPFIX_DEBUG", "0") not in ("", "0"):
        import traceback

        traceback.print_exception(error)
    what = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return MtpfixError(
        f"mtpfix met something it was not written for: {what}",
        "this is a defect of mtpfix, not of the checkpoint; run it again with MTPFIX_DEBUG=1 and report what it shows",
    )


def complain(message: str, hint: str = "") -> None:
    """Write a sentence and a next step to standard error."""
    from mtpfix.checkpoint.ref import shown

    sys.stderr.write(f"mtpfix: {shown(message, LONGEST)}\n")
    if hint:
        sys.stderr.write(f"  {shown(hint, LONGEST)}\n")


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


# ------------------------------------------------------------------------------------- for several commands


def complete_engine(incomplete: str) -> list[str]:
    """Return the engines and releases that begin as typed, for the shell."""
    from mtpfix.engines import load, names

    every = [*names(), *(f"{name}=={release}" for name in names() for release in load(name).releases)]
    return [text for text in every if text.startswith(incomplete)]


def complete_rule(incomplete: str) -> list[str]:
    """Return the codes of rules that begin as typed, for the shell."""
    from mtpfix.rules.registry import registered

    return [code for code in registered() if code.startswith(incomplete)]


def show(text: str) -> None:
    """Write a piece of a result to standard output."""
    from mtpfix.report.output import print_text

    print_text(text)


def writer(output: Path | None) -> Callable[[str | None], None]:
    """Return what takes the report piece by piece, and None at its end: the screen, or a file written then."""
    if output is None or str(output) == "-":
        return lambda text: show(text or "")
    pieces: list[str] = []

    def write(text: str | None) -> None:
        from mtpfix.report.output import write_file

        if text is None:
            write_file(output, "".join(pieces))
        else:
            pieces.append(text)

    return write


def screen(color: Literal["auto", "always", "never"], output: Path | None) -> tuple[int, bool]:
    """Return the width and whether there is colour: the option decides, then NO_COLOR, FORCE_COLOR, the terminal."""
    width = shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns
    if color != "auto":
        return width, color == "always"
    if os.environ.get("NO_COLOR") or os.environ.get("AI_AGENT") or output is not None:
        return width, False
    if os.environ.get("FORCE_COLOR", "0") not in ("", "0"):
        return width, True
    return width, sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


@contextmanager
def progress_bar(*, wanted: bool, doing: str = "reading headers", of_bytes: bool = False) -> Iterator[Progress | None]:
    """Show a bar on standard error where that is a terminal and it takes long enough to see.

    With `of_bytes` it tells how many are done, how many in a second, and how long the rest will take.
    """
    plain = os.environ.get("TERM") == "dumb" or os.environ.get("AI_AGENT")
    if not wanted or plain or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    of = (*columns, TimeRemainingColumn(elapsed_when_finished=True)) if of_bytes else Bar.get_default_columns()
    bar = Bar(*of, console=Console(stderr=True, force_terminal=True), transient=True)
    task = bar.add_task(doing, total=None)
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
