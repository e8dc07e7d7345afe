"""Where a report goes: standard output, or a file that appears whole or not at all."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import UsageError


def print_text(text: str) -> None:
    """Write to standard output; a reader who has gone away (`| head`) is no error, what is left is dropped."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def write_file(path: Path, text: str) -> None:
    """Write a file under a temporary name beside it, then rename it into place; pipes and devices are written directly.

    A link is replaced, never written through. Raises UsageError where that is not possible.
    """
    try:
        if path.exists() and not stat.S_ISREG(path.stat().st_mode):
            with path.open("w", encoding="utf-8") as stream:
                stream.write(text)
            return
        _replace(path, text)
    except OSError as error:
        raise UsageError(
            f"the report cannot be written to {shown(str(path))}: {error.strerror or error}",
            "name a file in a folder that is there and can be written to",
        ) from error


def _replace(path: Path, text: str) -> None:
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        Path(name).chmod(0o666 & ~_umask())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
