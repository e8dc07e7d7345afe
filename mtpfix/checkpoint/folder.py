"""Files of a checkpoint's folder: what may be opened, and what a link may lead to.

Knows paths and kinds of files, and refuses to know what is in them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from mtpfix.checkpoint.ref import PathRefusedError, Reference, safe_member, shown
from mtpfix.errors import FormatError

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
_AGAIN = "download the file again"
_MODELS = "models--"


@contextmanager
def opened(root: Path, name: str, trusted: Sequence[Path] = ()) -> Iterator[int]:
    """Open a regular file of the folder; a link is followed inside it, and into the `blobs` of a Hub cache.

    `trusted` are other folders that links may lead into, on the same terms. Raises PathRefusedError for a path or link
    that leads elsewhere, FormatError for what is no regular file, OSError.
    """
    descriptor = _open(root, root / safe_member(name), name, trusted)
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            raise FormatError(f"{shown(name)} is {kind_of(mode)}, not a file", "only regular files are read")
        yield descriptor
    finally:
        os.close(descriptor)


def target_of(root: Path, name: str, trusted: Sequence[Path] = ()) -> Path:
    """Return the absolute path of the file itself that `name` is or leads to, if that may be read.

    Raises as `opened` does.
    """
    target = _target(root, root / safe_member(name), name, trusted)
    mode = target.lstat().st_mode
    if not stat.S_ISREG(mode):
        raise FormatError(f"{shown(name)} is {kind_of(mode)}, not a file", "only regular files are read")
    return target


def kind_of(mode: int) -> str:
    """Return what a file that is not regular is, by its mode."""
    if stat.S_ISDIR(mode):
        return "a folder"
    return "a pipe" if stat.S_ISFIFO(mode) else "a device or socket"


def _open(root: Path, path: Path, name: str, trusted: Sequence[Path]) -> int:
    if "/" not in name:  # else the folders on the way may be links
        try:
            return os.open(path, _FLAGS)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.EMLINK):
                raise
    return os.open(_target(root, path, name, trusted), _FLAGS)


def _target(root: Path, path: Path, name: str, trusted: Sequence[Path]) -> Path:
    """Return where a link leads, if that is inside a folder or a blob of the Hub cache the folder lies in."""
    try:
        target = path.resolve(strict=True)
        folders = [folder.resolve(strict=True) for folder in (root, *trusted)]
    except FileNotFoundError:
        if path.is_symlink():
            raise FormatError(f"{shown(name)} is a link to a file that is not there", _AGAIN) from None
        raise
    except RuntimeError:  # until Python 3.12 a loop of links is not an OSError
        raise FormatError(f"{shown(name)} is a loop of links", _AGAIN) from None
    if not any(target.is_relative_to(folder) or target.parent in _blobs(folder) for folder in folders):
        raise PathRefusedError(
            f"{shown(name)} is a link out of the folder", "nothing outside it is read: put the file itself there"
        )
    return target


def published(folder: Path) -> Reference | None:
    """Return what a folder of a Hub cache holds, its commit included: models--ORG--NAME/snapshots/COMMIT."""
    whole = folder.resolve()
    if whole.parent.name != "snapshots" or not whole.parent.parent.name.startswith(_MODELS):
        return None
    found = Reference.of_repository(whole.parent.parent.name.removeprefix(_MODELS).replace("--", "/", 1))
    return None if found is None else Reference(found.repository, whole.name)


def snapshot_folder(place: Path, repository: str, commit: str) -> Path:
    """Return the folder below `place` that a Hub cache would hold a commit in."""
    return place / f"{_MODELS}{repository.replace('/', '--')}" / "snapshots" / commit


def _blobs(folder: Path) -> Iterator[Path]:
    """Yield the `blobs` beside the `snapshots` that a folder lies in: ORG--NAME/snapshots/REVISION/…"""
    for parent in (folder, *folder.parents):
        if parent.parent.name == "snapshots":
            yield parent.parent.parent / "blobs"
