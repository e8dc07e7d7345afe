"""The `verify` command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtpfix.cli.app import Debug, Json, Shape, command, screen, writer
from mtpfix.errors import UsageError


@command("verify", "Ask the real, installed engine; no GPU needed.")
def verify(
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="The folder that holds the checkpoint.")],
    engine_python: Annotated[
        str,
        typer.Option(
            "--engine-python",
            metavar="PATH",
            help="The Python that has the engine: VENV/bin/python, or the folder of the environment.",
        ),
    ],
    engine: Annotated[
        str | None,
        typer.Option("--engine", "-e", metavar="ENGINE", help="Which engine, where that Python has several."),
    ] = None,
    target_only: Annotated[bool, typer.Option("--target-only", help="Only the main model.")] = False,
    draft_only: Annotated[bool, typer.Option("--draft-only", help="Only the MTP draft.")] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds before the engine is stopped.")] = 3600.0,
    memory_limit: Annotated[
        float, typer.Option("--memory-limit", metavar="GB", min=0.1, help="Memory before the engine is stopped.")
    ] = 4.0,
    shape: Shape = "text",
    as_json: Json = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Write the result there instead.")
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Every module, and all that was replaced.")] = False,
    debug: Debug = False,  # noqa: ARG001 - its callback does it
) -> int:
    """Run the loader of an installed engine on a checkpoint, without a GPU, and compare with the prediction.

    Builds and loads main model and MTP draft with the engine's own code, in a process of its own. Large weights are
    not read, whatever their size; code in the checkpoint is not run; nothing is written into the folder.

    Exit code: 0 all loads; 1 a model fails or is silently wrong; 2 the engine could not be asked; 3 it has no class
    for the model; 130 interrupted. Whether the prediction agrees is told, and changes no exit code.
    """
    from mtpfix.api import verify as verify_checkpoint

    if target_only and draft_only:
        raise UsageError("--target-only and --draft-only exclude each other", "leave both out to ask for both models")
    deliver = writer(output)
    result = verify_checkpoint(
        folder,
        engine_python=engine_python,
        engine=engine,
        target=not draft_only,
        draft=not target_only,
        timeout=timeout,
        memory=round(memory_limit * 1e9),
    )
    if as_json or shape == "json":
        from mtpfix.report.verification_v1 import render as render_json

        deliver(render_json(result))
    else:
        from mtpfix.report.verification import render

        width, _ = screen("never", output)
        deliver(render(result, width=width, verbose=verbose))
    deliver(None)
    return result.exit_code
