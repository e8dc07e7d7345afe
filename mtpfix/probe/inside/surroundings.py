"""The process that a probe runs in: no GPU, no network, no plugin, one thread, and one answer for each checkpoint."""

from __future__ import annotations

import os
import socket
from typing import Any

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
}


def set_environment(more: dict[str, str]) -> None:
    """Set what engines read from the environment, over whatever the user has set there."""
    os.environ.update({**ENVIRONMENT, **more})


def refuse_network() -> None:
    """Let no connection leave this machine."""
    original = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        host = str(address[0]) if isinstance(address, tuple) and address else ""
        if host and not (host.startswith("127.") or host in ("localhost", "::1")):
            raise OSError(f"the probe opens no connection to {host}")
        original(self, address)

    setattr(socket.socket, "connect", connect)  # noqa: B010 - a method of a class, which mypy rightly guards
