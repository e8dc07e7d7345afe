"""A checkpoint in a local folder: which files are opened, and what they say together.

Knows files: what may be opened, what a link may point to, and what to say when one cannot be read. Reads headers,
the index and two configurations, and single scales where a rule asks for them; never a weight.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NoReturn

from mtpfix.checkpoint.assemble import (
    SUFFIX,
    Documents,
    Origin,
    Progress,
    Reading,
    assemble,
    assemble_metadata,
    is_shard,
    read_configs,
    read_index,
)
from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import LfsPointerError, read_at, read_header
from mtpfix.checkpoint.index import INDEX_FILE
from mtpfix.checkpoint.ref import PathRefusedError, resolve, shown
from mtpfix.checkpoint.scalars import Values, by_shard, gather
from mtpfix.errors import FormatError, NothingToCheck, UsageError
from mtpfix.model import Checkpoint, Fault, Tensor

_AGAIN = "download the file again"


def open_checkpoint(
    ref: str | os.PathLike[str],
    *,
    progress: Progress | None = None,
    trusted: Sequence[Path] = (),
    headers: bool = True,
    pointers: bool = False,
) -> Checkpoint:
    """Return everything that the headers and configurations in the folder `ref` say.

    Its shards are all files `*.safetensors` in the folder, and those the index names. Whatever is wrong with a file or
    between files stands in `problems`. `progress` is told after each shard how many of how many are read.
    `trusted` are folders that links in this one may lead into, besides itself and its Hub cache. Without `headers` no
    shard is opened; with `pointers` none where all are git-lfs pointers.

    Raises UsageError if `ref` is no folder that can be listed, NothingToCheck if there is neither a shard nor an index.
    """
    root = resolve(ref)
    shards = _listed(root)
    origin = Origin(os.fspath(ref), root, _revision(root), tuple(trusted))
    read = partial(_read_whole, root, trusted=trusted)
    if not headers or (pointers and _only_pointers(root, shards, trusted)):
        has_index, index = read_index(read)
        documents = Documents(*read_configs(read), has_index, index)
        if not shards and not has_index and not documents.config:
            _fail_empty(root)
        return assemble_metadata(origin, shards, documents)
    reading = Reading()
    with ThreadPoolExecutor(1) as pool:  # the compiled reader parses the index while the headers are read
        pending = pool.submit(read_index, read)
        for done, shard in enumerate(shards, 1):
            _read_shard(root, shard, reading, trusted)
            if progress:
                progress(done, len(shards))
        has_index, index = pending.result()
    if not shards and not has_index:
        _fail_empty(root)
    if index:
        listed = frozenset(shards)
        for file in index.files:
            if file not in listed:
                _read_shard(root, file, reading, trusted, may_be_absent=True)
        reading.unread += [file for file in index.refused if file not in listed]
    return assemble(origin, reading, Documents(*read_configs(read), has_index, index))


def _only_pointers(root: Path, shards: Sequence[str], trusted: Sequence[Path]) -> bool:
    """Return whether there are shards and every one of them is a git-lfs pointer; the first that is none decides."""
    reading = Reading()
    for shard in shards:
        _read_shard(root, shard, reading, trusted)
        if reading.headers or reading.problems:
            return False
    return bool(reading.pointers)


def read_scalars(checkpoint: Checkpoint, tensors: Iterable[Tensor]) -> Values:
    """Return the values of single float32 numbers by (shard, name): one for each of the tensor's `begins`.

    Neighbouring numbers are read together, at most a megabyte at a time. Raises FormatError if a tensor is not one
    float32 number, if its file cannot be read, or if the file changed since its header was read.
    """
    root, trusted = checkpoint.root, checkpoint.trusted
    values: Values = {}
    for shard, group in by_shard(checkpoint, tensors):
        name = shard.name
        if root is None:
            raise FormatError(f"{shown(name)} is not in a folder")
        try:
            with opened(root, name, trusted) as descriptor:
                if os.fstat(descriptor).st_size != shard.size:
                    raise FormatError(f"{shown(name)}: the file changed while it was read", "scan it again")
                read = partial(_read_part, descriptor, name)
                for tensor, numbers in zip(group, gather(read, shard, group), strict=True):
                    values.setdefault((name, tensor.name), array("f")).extend(numbers)
        except OSError as error:
            raise FormatError(f"{shown(name)} cannot be read: {error.strerror}", _AGAIN) from None
    return values


def _read_part(descriptor: int, name: str, count: int, offset: int) -> bytes:
    return read_at(descriptor, count, offset, name)


# ----------------------------------------------------------------------------------------------- files


def _listed(root: Path) -> list[str]:
    """Return the names of the folder's safetensors files, in order; hidden ones are none, as for the engines."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise UsageError(f"{shown(str(root))} cannot be listed: {error.strerror}", "check its permissions") from None
    return sorted(filter(is_shard, names))


def _read_whole(root: Path, name: str, largest: int, trusted: Sequence[Path]) -> bytes | None:
    """Return a file's bytes, or None if it is not there."""
    try:
        with opened(root, name, trusted) as descriptor:
            size = os.fstat(descriptor).st_size
            if size > largest:
                raise FormatError(f"{name} has {size} bytes, and more than {largest} are not read", _AGAIN)
            return read_at(descriptor, size, 0, name)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FormatError(f"{name} cannot be read: {error.strerror}", "check its permissions") from None


def _read_shard(
    root: Path, name: str, reading: Reading, trusted: Sequence[Path], *, may_be_absent: bool = False
) -> None:
    try:
        with opened(root, name, trusted) as descriptor:
            reading.headers[name] = read_header(descriptor, name)
    except FileNotFoundError:
        if not may_be_absent:
            reading.refuse(
                name, Fault.SHARD_UNREADABLE, f"{shown(name)} vanished while the folder was read", "scan again"
            )
    except OSError as error:
        text = f"{shown(name)} cannot be read: {error.strerror}"
        reading.refuse(name, Fault.SHARD_UNREADABLE, text, "check its permissions")
    except LfsPointerError:
        reading.pointers.append(name)
    except PathRefusedError as error:
        reading.refuse(name, Fault.PATH_REFUSED, error.message, error.hint)
    except FormatError as error:
        reading.refuse(name, Fault.SHARD_UNREADABLE, error.message, error.hint)


def _revision(root: Path) -> str | None:
    """Return the revision of a Hub cache's snapshot."""
    folder = root.resolve()
    return folder.name if folder.parent.name == "snapshots" else None


def _fail_empty(root: Path) -> NoReturn:
    where = shown(str(root))
    raise NothingToCheck(
        f"there is no checkpoint in {where}: no *{SUFFIX} file, and no {INDEX_FILE}",
        "pass the folder that holds the model's files",
    )
