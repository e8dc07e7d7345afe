"""The private folder in which a result is made: who holds it, what is in it, and how it becomes the result.

    .mtpfix-stage-OUT/      beside OUT, mode 0700
        lock                held with flock by the run that works here; a dead process holds nothing
        journal             what the run is for, and what it has done
        part                the one file that is being written
        files/              what is finished, under its own names: this folder becomes OUT
        view/               where a result is only part of a checkpoint: links that show the whole one

Knows paths, and nothing of what is in the files.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import socket
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtpfix.checkpoint.ref import LONGEST_PART, shown
from mtpfix.errors import MtpfixError
from mtpfix.fix.disk import sync_folder
from mtpfix.fix.journal import Journal, read_journal, start_journal
from mtpfix.fix.snapshot import OWN_PREFIX

_LOCK, _JOURNAL = "lock", "journal"
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Stage:
    """A private folder that this process holds."""

    path: Path

    @property
    def files(self) -> Path:
        """The folder that becomes the result."""
        return self.path / "files"

    @property
    def part(self) -> Path:
        """The file that is being written."""
        return self.path / "part"

    @property
    def view(self) -> Path:
        """The folder of links that shows a whole checkpoint."""
        return self.path / "view"

    def journal(self) -> Journal | None:
        """Return the journal, None if there is none that can be read. Raises OSError."""
        return read_journal(self.path / _JOURNAL)

    def begin(self, purpose: Mapping[str, Any]) -> tuple[Journal, bool]:
        """Return the journal of a run for `purpose`, and whether it goes on; what another was for is discarded.

        Raises OSError.
        """
        journal = read_journal(self.path / _JOURNAL, mend=True)
        resumed = journal is not None and journal.purpose == purpose
        if journal is None or not resumed:
            self.empty()
            journal = start_journal(self.path / _JOURNAL, purpose)
        self.files.mkdir(exist_ok=True)
        return journal, resumed

    def empty(self) -> None:
        """Remove everything but the lock, the journal last: without it the rest is nothing. Raises OSError."""
        with os.scandir(self.path) as found:
            entries = sorted(found, key=lambda entry: entry.name == _JOURNAL)
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            elif entry.name != _LOCK:
                os.unlink(entry.path)  # noqa: PTH108 - an entry of a folder is a text

    def remove(self) -> None:
        """Remove the folder; what cannot be removed stays for the next run."""
        with suppress(OSError):
            self.empty()
            (self.path / _LOCK).unlink()
            self.path.rmdir()


def stage_path(out: Path, kind: str = "stage") -> Path:
    """Return where the stage of a result lies: beside it, so that a rename can publish it; or a folder of a kind."""
    name = f"{OWN_PREFIX}{kind}-{out.name}"
    if len(os.fsencode(name)) > LONGEST_PART:
        name = f"{OWN_PREFIX}{kind}-{hashlib.sha256(os.fsencode(out.name)).hexdigest()}"
    return out.with_name(name)


@contextmanager
def held(path: Path, what: Path) -> Iterator[Stage]:
    """Hold the stage at `path`, made where it is not there; `what` is the result it is for, in errors.

    Raises MtpfixError if another run holds it, or if it is not this user's own folder; OSError.
    """
    for _ in range(_TRIES):
        descriptor = _try_to_hold(path, what)
        if descriptor is not None:
            break
    else:
        raise MtpfixError(f"{shown(str(path))} comes and goes", "another program removes it: find out which")
    try:
        yield Stage(path)
    finally:
        os.close(descriptor)


def _try_to_hold(path: Path, what: Path) -> int | None:
    """Return the descriptor of a lock that is held, None if a run that ended took the lock away meanwhile."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise MtpfixError(
            f"{shown(str(path))} is needed, and is not a folder of yours", "remove it, or choose another place"
        )
    lock = path / _LOCK
    try:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except FileNotFoundError:
        return None
    try:
        _lock(descriptor, what)
        if os.fstat(descriptor).st_ino != lock.lstat().st_ino:
            os.close(descriptor)
            return None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
    except FileNotFoundError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _lock(descriptor: int, what: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        holder = shown(os.pread(descriptor, 200, 0).decode("utf-8", "replace")) or "another process"
        raise MtpfixError(
            f"another run is writing {shown(str(what))}: {holder}", "wait until it is done, or end it"
        ) from None


def publish(stage: Stage, out: Path) -> None:
    """Give the finished files their name, all at once: `out` is not there, or is an empty folder. Raises OSError."""
    for folder, _, _ in os.walk(stage.files, topdown=False):
        sync_folder(Path(folder))
    stage.files.rename(out)
    sync_folder(out.parent)
