"""The `diff` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtpfix.cli.app import Debug, Json, command, show
from mtpfix.cli.judging import Engines
from mtpfix.errors import EXIT_FINDINGS, EXIT_OK, UsageError

if TYPE_CHECKING:
    from mtpfix.report.difference import Snapshot

LARGEST = 1_000_000_000  # bytes of a report


@command("diff", "What differs between two checkpoints, or two reports.")
def diff(
    before: Annotated[str, typer.Argument(metavar="BEFORE", help="A checkpoint's folder, or a JSON report.")],
    after: Annotated[str, typer.Argument(metavar="AFTER", help="Another.")],
    engine: Engines = None,
    form: Annotated[Literal["text", "json"], typer.Option("--format", help="How the result is written.")] = "text",
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - its callback does it
) -> int:
    """Say what changed in stored formats, quantization lists, verdicts and findings.

    Exit code: 0 nothing, 1 something, 2 it could not be done.
    """
    import json

    from mtpfix.report import difference

    found = difference.compare(_snapshot(before, engine), _snapshot(after, engine))
    if as_json or form == "json":
        show(json.dumps(found, indent=2) + "\n")
    else:
        show(difference.render(found))
    return EXIT_OK if found["same"] else EXIT_FINDINGS


def _snapshot(ref: str, engine: list[str] | None) -> Snapshot:
    from mtpfix.api import scan
    from mtpfix.checkpoint.ref import shown
    from mtpfix.report import difference

    path = Path(ref)
    if not path.is_file():
        return difference.of_report(scan(ref, engines=engine))
    try:
        if path.stat().st_size > LARGEST:
            raise UsageError(f"{shown(ref)} is larger than any report", "pass a checkpoint's folder, or a report")
        return difference.of_document(path.read_text(encoding="utf-8"), ref)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{shown(ref)} cannot be read: {error}", "pass a checkpoint's folder, or a report") from None
