"""How an unchanged file comes into a folder without being read into memory, and without harm to the source.

Knows reflinks, links and copies. What is made never leads through a relative link, and is never opened for writing
where it shares an inode with the source.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import assert_never

from mtpfix.errors import MtpfixError
from mtpfix.fix.changes import Link
from mtpfix.fix.disk import Tell, created

_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)
_STEP = 1 << 28  # bytes of one copy_file_range; between two of them progress is told
_CHUNK = 8 << 20
_SOURCE = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_NO_REFLINK = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)
_NO_HARDLINK = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.EACCES, errno.ENOSYS)
_NO_RANGE = (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EBADF)

_IMPOSSIBLE = "use --link auto, which takes the best that works, or --link copy"


def place(source: Path, target: Path, part: Path, link: Link, unable: set[Link], tell: Tell) -> Link:
    """Let the file `source` stand at `target`, which is not there yet, and return how it came.

    `source` is a file itself, no link, by an absolute path. What takes time is made at `part`, on the same file system,
    and renamed when it is on the device. `unable` collects what AUTO found not to work, so that it is tried once.
    Raises MtpfixError where the way asked for does not work here, OSError.
    """
    match link:
        case Link.AUTO:
            for way in (Link.REFLINK, Link.HARDLINK):
                if way not in unable:
                    with suppress(_Unable):
                        return _ways(way)(source, target, part, tell)
                    unable.add(way)
            return _copy(source, target, part, tell)
        case Link.REFLINK | Link.HARDLINK | Link.SYMLINK | Link.COPY:
            return _ways(link)(source, target, part, tell)
        case _:
            assert_never(link)


class _Unable(MtpfixError):
    """This way of linking does not work between these two places."""


def _ways(link: Link) -> Callable[[Path, Path, Path, Tell], Link]:
    return {Link.REFLINK: _reflink, Link.HARDLINK: _hardlink, Link.SYMLINK: _symlink}.get(link, _copy)


def _reflink(source: Path, target: Path, part: Path, tell: Tell) -> Link:
    part.unlink(missing_ok=True)
    descriptor = os.open(source, _SOURCE)
    try:
        with created(part, 0) as new:
            fcntl.ioctl(new, _FICLONE, descriptor)
            tell(os.fstat(new).st_size)
    except OSError as error:
        if error.errno not in _NO_REFLINK:
            raise
        part.unlink(missing_ok=True)
        raise _Unable(
            "reflinks do not work here: the file system has none, or it is another one", _IMPOSSIBLE
        ) from None
    finally:
        os.close(descriptor)
    part.rename(target)
    return Link.REFLINK


def _hardlink(source: Path, target: Path, part: Path, tell: Tell) -> Link:
    del part
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _NO_HARDLINK:
            raise
        raise _Unable(f"{source.name} cannot be hard-linked to there: {error.strerror}", _IMPOSSIBLE) from None
    tell(target.lstat().st_size)
    return Link.HARDLINK


def _symlink(source: Path, target: Path, part: Path, tell: Tell) -> Link:
    del part
    target.symlink_to(source)
    tell(source.lstat().st_size)
    return Link.SYMLINK


def _copy(source: Path, target: Path, part: Path, tell: Tell) -> Link:
    part.unlink(missing_ok=True)
    descriptor = os.open(source, _SOURCE)
    try:
        found = os.fstat(descriptor)
        sparse = found.st_blocks * 512 < found.st_size
        with created(part, 0 if sparse else found.st_size) as new:
            os.ftruncate(new, found.st_size)
            for begin, end in _data(descriptor, found.st_size) if sparse else [(0, found.st_size)]:
                _copy_range(descriptor, new, begin, end, tell)
    finally:
        os.close(descriptor)
    part.rename(target)
    return Link.COPY


def _data(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield where the file has data: what lies between are holes, and read as zeros."""
    end = 0
    while end < size:
        try:
            begin = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole is left
                return
            raise
        end = os.lseek(descriptor, begin, os.SEEK_HOLE)
        yield begin, end


def _copy_range(source: int, target: int, begin: int, end: int, tell: Tell) -> None:
    place, in_kernel = begin, True
    while place < end:
        if in_kernel:
            try:
                count = os.copy_file_range(source, target, min(_STEP, end - place), place, place)
            except OSError as error:
                if error.errno not in _NO_RANGE:
                    raise
                in_kernel = False
                continue
        else:
            count = os.pwrite(target, os.pread(source, min(_CHUNK, end - place), place), place)
        if not count:
            raise MtpfixError("a file of the source became shorter while it was copied", "run the command again")
        place += count
        tell(count)
