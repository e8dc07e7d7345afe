"""A folder's files as they are at one time, and whether they are still so: nothing is repaired on shifting ground.

Knows names, sizes, times and hashes. A shard is known by its header, as its data are too long to hash: that these did
not change is told by its size, time and inode.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from mtpfix.checkpoint.folder import kind_of, opened
from mtpfix.checkpoint.header import PREFIX, read_at
from mtpfix.checkpoint.ref import safe_member, shown
from mtpfix.errors import FormatError, MtpfixError, UsageError
from mtpfix.fix.changes import FileMark, Snapshot

SHARD_SUFFIX = ".safetensors"
MANIFEST_FILE = "mtpfix.json"

LEFT_OUT = frozenset({".git", ".cache", "__pycache__"})
"""Folders that belong to the tool that made them, not to the checkpoint."""

OWN_PREFIX = ".mtpfix-"
"""How the names of this tool's own folders begin."""

_LARGEST_HASHED = 256_000_000  # bytes of a file that is not a shard
_CHUNK = 1 << 20


def take_snapshot(folder: Path, names: Collection[str] | None = None) -> Snapshot:
    """Return the marks of all files in `folder` and below, or of those in `names`.

    Folders of version control, caches and this tool's own are left out. Raises FormatError for what is neither a file
    nor a folder, for a link that leads out of the folder or to a folder, and for a name that is refused; UsageError if
    the folder or a file cannot be read.
    """
    marks = {}
    for name in sorted(_files(folder, "") if names is None else names):
        try:
            with opened(folder, name) as descriptor:
                marks[name] = _mark(descriptor, name)
        except OSError as error:
            raise UsageError(
                f"{shown(name)} cannot be read: {error.strerror}", "check that it is there, and its permissions"
            ) from None
    return Snapshot(folder, marks, whole=names is None)


def check_snapshot(before: Snapshot) -> None:
    """Raise MtpfixError if a file is no longer as it was or gone, or, in a snapshot of the whole folder, is new."""
    folder = shown(str(before.folder))
    try:
        now = take_snapshot(before.folder, None if before.whole else before.files.keys())
    except MtpfixError as error:
        raise _changed(f"{folder} changed while it was worked on: {error.message}") from None
    for name in sorted(before.files.keys() | now.files.keys()):
        old, new = before.files.get(name), now.files.get(name)
        if old == new:
            continue
        what = "is new" if old is None else "is gone" if new is None else "was written"
        raise _changed(f"{folder} changed while it was worked on: {shown(name)} {what}")


def content_digest(snapshot: Snapshot) -> str:
    """Return the SHA-256 of all names, sizes and hashes: the same for a copy with other times and inodes."""
    rows = [[name, mark.size, mark.digest] for name, mark in sorted(snapshot.files.items())]
    return hashlib.sha256(json.dumps(rows, separators=(",", ":")).encode()).hexdigest()


def read_file(folder: Path, name: str) -> bytes:
    """Return the bytes of a file of the folder. Raises as `take_snapshot` does."""
    try:
        with opened(folder, name) as descriptor:
            return read_at(descriptor, os.fstat(descriptor).st_size, 0, name)
    except OSError as error:
        raise UsageError(
            f"{shown(name)} cannot be read: {error.strerror}", "check that it is there, and its permissions"
        ) from None


def is_shard(name: str) -> bool:
    """Return whether a file is a safetensors file, by its name."""
    return name.endswith(SHARD_SUFFIX)


def _changed(message: str) -> MtpfixError:
    return MtpfixError(message, "nothing was published; let the folder rest, and run the command again")


def _files(folder: Path, below: str) -> Iterator[str]:
    """Yield the names of the files in a folder and below, relative to it."""
    try:
        with os.scandir(folder / below) as found:
            entries = list(found)
    except OSError as error:
        where = shown(str(folder / below))
        raise UsageError(f"{where} cannot be listed: {error.strerror}", "check its permissions") from None
    for entry in entries:
        if entry.name.startswith(OWN_PREFIX) or entry.name in LEFT_OUT:
            continue
        name = safe_member(f"{below}/{entry.name}" if below else entry.name)
        mode = entry.stat(follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            yield from _files(folder, name)
        elif stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            yield name
        else:
            raise FormatError(f"{shown(name)} is {kind_of(mode)}, not a file", "move it out of the folder")


def _mark(descriptor: int, name: str) -> FileMark:
    found = os.fstat(descriptor)
    if is_shard(name):
        length = min(found.st_size, PREFIX)
        if length == PREFIX:
            length = min(found.st_size, PREFIX + int.from_bytes(read_at(descriptor, PREFIX, 0, name), "little"))
    else:
        length = found.st_size
    digest = hashlib.sha256()
    for begin in range(0, length if length <= _LARGEST_HASHED else 0, _CHUNK):
        digest.update(read_at(descriptor, min(_CHUNK, length - begin), begin, name))
    known = digest.hexdigest() if length <= _LARGEST_HASHED else ""
    return FileMark(found.st_size, found.st_mtime_ns, found.st_ino, known)
