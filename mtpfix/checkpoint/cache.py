"""What was read of the Hub before: contents and beginnings of files by their hash, lists of files by their commit.

A content never changes, so nothing here grows stale; the one thing that may, which commit a revision was when it was
last asked for, is believed offline alone. Each file holds a hash of what it keeps and is read only where that holds.
A folder that cannot be written is no fault: then nothing is kept. Knows nothing of networks, users and tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_MARK = b"mtpfix 1 "
_LARGEST = 600_000_000  # bytes of one file here


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder; `read` and `write` take the kind of a thing and its name, which is a hash or a path without dots."""

    folder: Path

    def read(self, kind: str, name: str) -> bytes | None:
        """Return what is kept under a name, None where nothing is, or where it is not what was written."""
        try:
            with (self.folder / kind / name).open("rb") as file:
                if os.fstat(file.fileno()).st_size > _LARGEST:
                    return None
                line, data = file.readline(200), file.read()
        except OSError:
            return None
        return data if line == _line(data) else None

    def write(self, kind: str, name: str, data: bytes) -> None:
        """Keep bytes under a name: whole or not at all. An empty name keeps nothing."""
        if not name:
            return
        target = self.folder / kind / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            descriptor, part = tempfile.mkstemp(prefix=".part-", dir=target.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_line(data))
                    file.write(data)
                Path(part).replace(target)
            except BaseException:
                Path(part).unlink(missing_ok=True)
                raise
        except OSError:
            return

    def read_document(self, kind: str, name: str) -> Mapping[str, Any] | None:
        """Return the JSON object that is kept under a name, None where there is none."""
        data = self.read(kind, name)
        try:
            value = None if data is None else json.loads(data)
        except (ValueError, RecursionError):
            return None
        return value if isinstance(value, dict) else None

    def write_document(self, kind: str, name: str, value: Mapping[str, Any]) -> None:
        """Keep a JSON object under a name."""
        self.write(kind, name, json.dumps(value).encode())


def _line(data: bytes) -> bytes:
    return _MARK + hashlib.sha256(data).hexdigest().encode() + b"\n"


def name_of(text: str) -> str:
    """Return a name to keep something under that is known by a text of any form."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
