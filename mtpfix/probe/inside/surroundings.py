"""The process that a probe runs in: no GPU, no network, no plugin, one thread, and no life longer than its parent's."""

from __future__ import annotations

import os
import signal
import socket
import sys
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


SET_PARENT_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of Linux's prctl."""


def end_with_parent() -> None:
    """Let the system end this process when the one that started it ends, however that happens; on Linux alone."""
    if sys.platform != "linux":
        return
    import ctypes

    parent = os.getppid()
    ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


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
