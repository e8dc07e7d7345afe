"""Start a probe in an engine's interpreter, watch its time and its memory, and read what it wrote.

The probe is a session of its own, so that whatever it starts ends with it. It runs in an empty folder, that no folder
of the user's hides a package; its answer goes to a file, that nothing printed is taken for one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import MtpfixError, UsageError

START = Path(__file__).parent / "inside" / "start.py"
PAUSE = 0.1
LINES = 3
"""Last lines of what a probe printed that are told."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a probe ended: the lines of its answer, its exit code, what it printed last, and its peak memory in bytes."""

    answers: tuple[dict[str, Any], ...]
    code: int
    printed: str
    memory: int


def run(python: Path, module: str, arguments: Sequence[str], *, timeout: float, memory: int | None = None) -> Outcome:
    """Run one module of the probe and return how it ended; `timeout` is in seconds, `memory` in bytes.

    Raises UsageError where the interpreter cannot be started, MtpfixError where time or memory ran out.
    """
    with tempfile.TemporaryDirectory(prefix="mtpfix-") as place:
        folder = Path(place)
        answer, log = folder / "answer.jsonl", folder / "log"
        empty = folder / "empty"
        empty.mkdir()
        head = [str(python), str(START), module]
        command = [*head, str(answer), *arguments] if module == "detect" else [*head, "--out", str(answer), *arguments]
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TMPDIR": str(folder)}
        with log.open("wb") as output:
            try:
                process = subprocess.Popen(  # noqa: S603 - the interpreter that the user names
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd=empty,
                    env=environment,
                    start_new_session=True,
                )
            except OSError as error:
                raise UsageError(
                    f"{shown(str(python))} cannot be started: {error.strerror or error}",
                    "name the Python that has the engine, such as VENV/bin/python",
                ) from error
            try:
                peak = _wait(process, timeout, memory)
            finally:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        return Outcome(tuple(_lines(answer)), process.returncode, _tail(log), peak)


def _wait(process: subprocess.Popen[bytes], timeout: float, memory: int | None) -> int:
    """Wait for a probe and return its peak memory in bytes."""
    begun, peak = time.monotonic(), 0
    while process.poll() is None:
        time.sleep(PAUSE)
        used = _memory(process.pid)
        peak = max(peak, used)
        if memory is not None and used > memory:
            raise MtpfixError(
                f"the engine took more than {memory / 1e9:.1f} GB of memory and was stopped",
                "allow it more with --memory-limit",
            )
        if time.monotonic() - begun > timeout:
            raise MtpfixError(
                f"the engine did not answer within {timeout:.0f} seconds and was stopped",
                "allow it more with --timeout",
            )
    return peak


def _memory(session: int) -> int:
    """Return the largest memory that a process of a session holds, in bytes; 0 where the system does not tell."""
    most = 0
    system = Path("/proc")
    processes = [path for path in system.iterdir() if path.name.isdigit()] if system.is_dir() else []
    for process in processes:  # each may end at any moment
        status = process / "stat"
        with suppress(OSError, ValueError, IndexError):
            if int(status.read_text(errors="replace").rpartition(")")[2].split()[3]) == session:
                lines = (status.parent / "status").read_text(errors="replace").splitlines()
                sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss")}
                most = max(most, sizes.get("RssAnon", 0) + sizes.get("RssShmem", 0))
    return most


def _lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of an answer, as far as it was written."""
    found = []
    with suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            with suppress(ValueError):
                if isinstance(content := json.loads(line), dict):
                    found.append(content)
    return found


def _tail(path: Path) -> str:
    """Return the last lines that a probe printed."""
    with suppress(OSError):
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            text = file.read().decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " / ".join(lines[-LINES:])
    return ""
