"""What a run has done so far, one line of JSON for each thing, on the device before it is relied on.

The first line says what the run is for; a stage is only continued by a run for the very same. Knows lines, not files.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpfix.fix.changes import WrittenFile
from mtpfix.fix.disk import sync_folder, write_new

_LARGEST = 1 << 28


@dataclass(slots=True)
class Journal:
    """The journal at `path`: `purpose` is its first line, `done` what is written, `commit` whether it was decided."""

    path: Path
    purpose: Mapping[str, Any]
    done: dict[str, WrittenFile] = field(default_factory=dict)
    commit: bool = False

    def record(self, file: WrittenFile) -> None:
        """Remember a file that is on the device but has not got its name yet. Raises OSError."""
        self._append({"file": file.name, "size": file.size, "sha256": file.sha256})
        self.done[file.name] = file

    def decide(self) -> None:
        """Remember that what is staged will take its place, whatever happens from now on. Raises OSError."""
        self._append({"commit": True})
        self.commit = True

    def _append(self, row: Mapping[str, Any]) -> None:
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            line = json.dumps(row).encode() + b"\n"
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def start_journal(path: Path, purpose: Mapping[str, Any]) -> Journal:
    """Write a new journal, whole or not at all. Raises OSError."""
    line = json.dumps(purpose).encode() + b"\n"
    fresh = path.with_name(path.name + ".part")
    fresh.unlink(missing_ok=True)
    write_new(fresh, len(line), [line])
    fresh.rename(path)
    sync_folder(path.parent)
    return Journal(path, json.loads(line))


def read_journal(path: Path, *, mend: bool = False) -> Journal | None:
    """Return the journal at a path, None if there is none that can be read. A last line cut short is left out.

    With `mend`, for the run that holds the stage, such a line is cut off the file, so that the next one begins a line
    of its own. Raises OSError.
    """
    try:
        descriptor = os.open(path, (os.O_RDWR if mend else os.O_RDONLY) | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        raw = os.read(descriptor, min(_LARGEST, os.fstat(descriptor).st_size))
        whole = raw[: raw.rfind(b"\n") + 1]
        if mend and len(whole) < len(raw):
            os.ftruncate(descriptor, len(whole))
    finally:
        os.close(descriptor)
    try:
        purpose, *rows = [json.loads(line) for line in whole.splitlines()]
        journal = Journal(path, purpose)
        for row in rows:
            if "commit" in row:
                journal.commit = True
            else:
                journal.done[row["file"]] = WrittenFile(row["file"], row["size"], row["sha256"])
    except (ValueError, KeyError, TypeError):
        return None
    return journal if isinstance(purpose, dict) else None
