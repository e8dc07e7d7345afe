"""The `check` command: `scan` as a gate, for hooks and pipelines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mtpfix.cli.app import Color, Debug, Json, command, show
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
from mtpfix.errors import EXIT_OK


@command("check", "The gate: scan a folder before it is published.")
def check(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PATH",
            help="Folders that hold a checkpoint, or files of it, as a hook passes them. Default: this folder.",
            show_default=False,
        ),
    ] = None,
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
    metadata_only: Annotated[
        bool, typer.Option("--metadata-only", help="Judge configurations and index alone; open no weights file.")
    ] = False,
    color: Color = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
    debug: Debug = False,  # noqa: ARG001 - its callback does it
) -> int:
    """Stop a checkpoint that will not load before it is published. Uses no network and no engine.

    Settings stand in mtpfix.toml in the model's folder, or in the nearest mtpfix.toml or [tool.mtpfix] of a
    pyproject.toml above the working directory. Where all weights are git-lfs pointers, configurations and index are
    judged alone, and the report says so. Exit codes as of `scan`.
    """
    folders = _folders(paths or ["."])
    if not folders:
        show("Nothing to check: none of these files belongs to a checkpoint.\n")
        return EXIT_OK
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
        metadata_only=True if metadata_only else None,
        trusting=True,
    )
    return judge_all(folders, choices)


def _folders(paths: Sequence[str]) -> list[str]:
    """Return the folders meant: of a file the one it lies in, if that holds a config.json."""
    folders: dict[str, None] = {}
    for path in paths:
        if not Path(path).is_file():
            folders[path] = None
        elif (Path(path).parent / "config.json").is_file():
            folders[str(Path(path).parent)] = None
    return list(folders)
