"""The command that tells what this machine can do: `doctor`."""

from __future__ import annotations

from mtpfix.cli.app import Json, Shape, command, show
from mtpfix.errors import EXIT_OK


@command("doctor", "Which code converts tensors on this machine, and why.")
def doctor(shape: Shape = "text", as_json: Json = False) -> int:
    """Tell which code converts tensors to NVFP4 on this machine, and why: CUDA, the CPU library, or plain PyTorch."""
    from mtpfix.nvfp4.paths import survey
    from mtpfix.report.paths import render

    show(render(survey(), "json" if as_json else shape))
    return EXIT_OK
