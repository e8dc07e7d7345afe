"""The `scan` command."""

from __future__ import annotations

from typing import Annotated

import typer

from mtpfix.cli.app import Color, Debug, Json, command
from mtpfix.cli.judging import (
    Choices,
    Config,
    Engines,
    FailOn,
    Ignored,
    Isolated,
    NoProgress,
    Output,
    Quiet,
    Ranks,
    Select,
    Shape,
    Verbose,
    judge_all,
)


@command("scan", "What is stored, what each engine builds, where they clash.")
def scan(
    refs: Annotated[list[str], typer.Argument(metavar="FOLDER", help="Folders that hold a checkpoint.")],
    engine: Engines = None,
    tp: Ranks = 1,
    form: Shape = "text",
    as_json: Json = False,
    output: Output = None,
    fail_on: FailOn = None,
    select: Select = None,
    ignore: Ignored = None,
    config: Config = None,
    isolated: Isolated = False,
    color: Color = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
    debug: Debug = False,  # noqa: ARG001 - its callback does it
) -> int:
    """Say what is stored, what each engine release will build from it, and where the two clash.

    Exit code: 0 everything read and nothing found at or above --fail-on; 1 findings; 2 it could not be done, or
    something stayed unread; 3 nothing to check; 130 interrupted. Of several folders the worst counts: 2, 1, 3, 0.
    """
    choices = Choices(
        engine=engine,
        form="json" if as_json else form,
        output=output,
        fail_on=fail_on,
        select=select,
        ignore=ignore,
        config=config,
        isolated=isolated,
        color=color,
        quiet=quiet,
        verbose=verbose,
        progress=not no_progress,
        ranks=tp,
    )
    return judge_all(refs, choices)
