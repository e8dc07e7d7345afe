"""The `scan` command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

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
    Offline,
    Output,
    Quiet,
    Ranks,
    Revision,
    Select,
    Shape,
    Token,
    Verbose,
    judge_all,
)
from mtpfix.errors import MtpfixError, UsageError


@command("scan", "What is stored, what each engine builds, where they clash.")
def scan(
    refs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CHECKPOINT",
            help="Folders, or repositories on the Hub: org/name, org/name@revision, hf://org/name, 'org/*'.",
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
    from_file: Annotated[
        Path | None,
        typer.Option("--from-file", metavar="FILE", help="Also what this file names, one a line; - is standard input."),
    ] = None,
    scope: Annotated[
        Literal["all", "mtp"],
        typer.Option(help="mtp: of a repository read only the shards of the MTP branch, and judge the branch alone."),
    ] = "all",
    revision: Revision = None,
    token: Token = None,
    offline: Offline = False,
    config: Config = None,
    isolated: Isolated = False,
    color: Color = "auto",
    quiet: Quiet = False,
    verbose: Verbose = False,
    no_progress: NoProgress = False,
    debug: Debug = False,  # noqa: ARG001 - its callback does it
) -> int:
    """Say what is stored, what each engine release will build from it, and where the two clash.

    Of a repository on the Hub only headers, configurations and the index are read; no weight is downloaded.

    Exit code: 0 everything read and nothing found at or above --fail-on; 1 findings; 2 it could not be done, or
    something stayed unread; 3 nothing to check; 130 interrupted. Of several the worst counts: 2, 1, 3, 0.
    """
    given = [*(refs or ()), *(_lines(from_file) if from_file else ())]
    if not given:
        raise UsageError("there is nothing to scan", "name a folder or a repository: mtpfix scan org/name")
    if revision is not None and len(given) > 1:
        raise UsageError("--revision is for one repository", "write org/name@revision for each")
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
        remote=True,
        scope=scope,
        revision=revision,
        token=token,
        offline=offline,
        several=bool(from_file) or any(map(_is_pattern, given)),
    )
    return judge_all(list(_expanded(given, token, offline=offline)), choices)


def _lines(file: Path) -> Iterator[str]:
    """Yield what a file names: blank lines and what follows a # are left out."""
    from mtpfix.checkpoint.ref import shown

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown(str(file))} cannot be read: {error}", "name a text file, one name a line") from None
    for line in text.splitlines():
        name = line.partition("#")[0].strip()
        if name:
            yield name


def _is_pattern(ref: str) -> bool:
    return any(mark in ref for mark in "*?[") and not Path(ref).exists()


def _expanded(given: list[str], token: str | None, *, offline: bool) -> Iterator[str | tuple[str, MtpfixError]]:
    """Yield each name, those on the Hub that a pattern matches in its place, or why that cannot be told."""
    from mtpfix.api import match_models

    for ref in given:
        if not _is_pattern(ref):
            yield ref
            continue
        try:
            yield from match_models(ref, token=token, offline=offline)
        except MtpfixError as error:
            yield ref, error
