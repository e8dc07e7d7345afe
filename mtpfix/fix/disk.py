"""Writing to disk so that it lasts: a file is whole and on the device before its name appears.

Knows descriptors, and how an error of the system is told. Never opens an existing file for writing.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeAlias

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import MtpfixError
from mtpfix.fix.changes import Buffer

Tell: TypeAlias = Callable[[int], None]
"""Told of each run of bytes that was written, how many they are."""

FLUSHED = 16 << 20
"""Bytes after which the device begins to take what is written."""

_FLUSH: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has the latter alone
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_NEXT = {
    errno.ENOSPC: ("there is no space left on the device", "free some space"),
    errno.EDQUOT: ("your disk quota is used up", "free some space"),
    errno.EFBIG: (
        "the file is larger than the file system or this process may write",
        "check `ulimit -f`, or use another file system",
    ),
    errno.EROFS: ("the file system is read-only", "choose a place that can be written"),
    errno.EACCES: ("permission denied", "check the permissions of the folder"),
    errno.EPERM: ("the operation is not permitted", "check the owner and permissions of the folder"),
    errno.EIO: ("the device reports an input/output error", "check the disk and the system's log"),
    errno.EXDEV: ("the two places lie on different file systems", "use --link copy, or a place on the same one"),
}


@contextmanager
def told(doing: str, kept: Path | None = None) -> Iterator[None]:
    """Turn an error of the system into a MtpfixError; `doing` is what could not be done (`copy model.safetensors`).

    `kept` is the folder in which what was done so far waits for the next run.
    """
    try:
        yield
    except OSError as error:
        text, hint = _NEXT.get(error.errno or 0, (error.strerror or str(error), "check the folder"))
        if kept is not None and kept.is_dir():
            hint += (
                "; then run the same command again: it goes on where this one stopped"
                f" (what is done so far is in {shown(str(kept))})"
            )
        raise MtpfixError(f"cannot {doing}: {text}", hint) from error


def write_new(path: Path, size: int, pieces: Iterable[Buffer], tell: Tell | None = None) -> str:
    """Write a new file of `size` bytes, wait until it is on the device, and return its SHA-256.

    Its mode is 0666 less the umask. Raises OSError, and MtpfixError if the pieces are not `size` bytes.
    """
    digest = hashlib.sha256()
    written = 0
    with created(path, size) as descriptor, _flushing(descriptor) as flush:
        for piece in pieces:
            rest = memoryview(piece)
            digest.update(rest)
            while rest:
                count = os.write(descriptor, rest)
                rest = rest[count:]
                written += count
                if tell is not None:
                    tell(count)
            flush(written)
        if written != size:
            raise MtpfixError(
                f"{shown(path.name)} came out with {written} bytes, not {size}",
                "this is a defect of mtpfix: nothing was published",
            )
    return digest.hexdigest()


@contextmanager
def _flushing(descriptor: int) -> Iterator[Callable[[int], None]]:
    """Have the device take what is written while the rest is made; what is yielded is told how many bytes there are.

    Raises OSError, as soon as it is known, where the device could not take them.
    """
    begun = 0
    running: Future[None] | None = None

    def flush(written: int) -> None:
        nonlocal begun, running
        if written - begun < FLUSHED or not (running is None or running.done()):
            return
        if running is not None:
            running.result()
        begun, running = written, beside.submit(_FLUSH, descriptor)

    with ThreadPoolExecutor(1, thread_name_prefix="flush") as beside:  # a thread only where there is much to write
        yield flush
        if running is not None:
            running.result()


@contextmanager
def created(path: Path, size: int) -> Iterator[int]:
    """Open a new file in which `size` bytes are reserved; at the end it is on the device. Raises OSError."""
    descriptor = os.open(path, _NEW, 0o666)
    try:
        if size:
            reserve(descriptor, size)
        yield descriptor
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reserve(descriptor: int, size: int) -> None:
    """Reserve room for a file, so that a full device is noticed before it is written. Raises OSError."""
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the device. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:  # some network file systems have nothing to wait for
            raise
    finally:
        os.close(descriptor)


def free_bytes(path: Path) -> int | None:
    """Return how many bytes may be written to the file system of a folder; None where it does not say."""
    with suppress(OSError):
        found = os.statvfs(path)
        if found.f_blocks:
            return found.f_bavail * found.f_frsize
    return None
