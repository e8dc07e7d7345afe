"""A checkpoint in a local folder: which files are opened, and what they say together.

Knows files: what may be opened, what a link may point to, and what to say when one cannot be read. Reads headers,
the index and two configurations, and single scales where a rule asks for them; never a weight.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from mtpfix.checkpoint.document import parse_document
from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import Header, LfsPointerError, is_odd, read_at, read_header
from mtpfix.checkpoint.index import (
    INDEX_FILE,
    LARGEST_INDEX,
    SAMPLE,
    Index,
    absent_shards,
    compare,
    lost_names,
    parse_index,
)
from mtpfix.checkpoint.quant import read_declarations
from mtpfix.checkpoint.ref import PathRefusedError, resolve, shown
from mtpfix.errors import FormatError, NothingToCheck, UsageError
from mtpfix.model import Checkpoint, Fault, Problem, Shard, Tensor

CONFIG_FILE = "config.json"
QUANT_FILE = "hf_quant_config.json"

LARGEST_CONFIG = 64_000_000
"""Bytes; published ones reach six million."""

_SUFFIX = ".safetensors"
_LONGEST_READ = 1 << 20  # bytes held at once when scales are read
_WIDEST_GAP = 1 << 12  # bytes between two scales that are read along rather than left out
_AGAIN = "download the file again"


Progress: TypeAlias = Callable[[int, int], None]
"""Told after each shard how many of how many are read."""


@dataclass(slots=True)
class _Reading:
    """What has been read of one folder so far; `pointers` are git-lfs pointers in place of weights."""

    headers: dict[str, Header] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    pointers: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, name: str, fault: Fault, message: str, hint: str) -> None:
        self.unread.append(name)
        self.problems.append(Problem(fault, message, (name,), hint=hint))

    def close(self) -> None:
        """Tell all pointers at once."""
        if self.pointers:
            first, count = shown(self.pointers[0]), len(self.pointers)
            more = f", and {count - 1:,} more are too" if count > 1 else ""
            message = f"{first} is a git-lfs pointer, not the weights{more}"
            files, hint = tuple(self.pointers[:SAMPLE]), "run `git lfs pull` in the folder"
            self.problems.append(Problem(Fault.LFS_POINTER, message, files, (), count, hint))
            self.unread += self.pointers


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
    if not headers or (pointers and _only_pointers(root, shards, trusted)):
        return _open_metadata(ref, root, shards, trusted)
    reading = _Reading()
    with ThreadPoolExecutor(1) as pool:  # the compiled reader parses the index while the headers are read
        pending = pool.submit(_read_index, root, trusted)
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
    reading.close()
    config, quant, problems = _read_configs(root, trusted)
    tensors = tuple(tensor for name in sorted(reading.headers) for tensor in reading.headers[name].tensors)
    data_sizes = {name: reading.headers[name].size - reading.headers[name].start for name in sorted(reading.headers)}
    indexed = frozenset(index.files if index else ())
    return Checkpoint(
        ref=os.fspath(ref),
        root=root,
        revision=_revision(root),
        config=config,
        declarations=read_declarations(config, quant),
        shards=tuple(
            Shard(name, header.size, header.start, header.count, name in indexed, header.metadata)
            for name, header in sorted(reading.headers.items())
        ),
        tensors=tensors,
        problems=(
            *problems,
            *(index.problems if index else ()),
            *reading.problems,
            *compare(index, tensors, data_sizes, reading.unread),
            *_odd_names(tensors),
        ),
        unread=tuple(sorted(reading.unread)),
        has_index=index is not None and index.usable,
        trusted=tuple(trusted),
        lost=lost_names(index, tensors, reading.unread),
    )


def _only_pointers(root: Path, shards: Sequence[str], trusted: Sequence[Path]) -> bool:
    """Return whether there are shards and every one of them is a git-lfs pointer; the first that is none decides."""
    reading = _Reading()
    for shard in shards:
        _read_shard(root, shard, reading, trusted)
        if reading.headers or reading.problems:
            return False
    return bool(reading.pointers)


def _open_metadata(
    ref: str | os.PathLike[str], root: Path, shards: Sequence[str], trusted: Sequence[Path]
) -> Checkpoint:
    """Return what the configurations and the index say: of every name in it no file was seen to hold it."""
    has_index, index = _read_index(root, trusted)
    config, quant, problems = _read_configs(root, trusted)
    if not shards and not has_index and not config:
        _fail_empty(root)
    absent = [file for file in index.files if file not in shards] if index else []
    return Checkpoint(
        ref=os.fspath(ref),
        root=root,
        revision=_revision(root),
        config=config,
        declarations=read_declarations(config, quant),
        shards=(),
        tensors=(),
        problems=(*problems, *(index.problems if index else ()), *absent_shards(absent)),
        unread=(),
        has_index=index is not None and index.usable,
        lost=lost_names(index, (), ()),
        trusted=tuple(trusted),
        headers=False,
    )


def read_scalars(checkpoint: Checkpoint, tensors: Iterable[Tensor]) -> dict[tuple[str, str], array[float]]:
    """Return the values of single float32 numbers by (shard, name): one for each of the tensor's `begins`.

    Neighbouring numbers are read together, at most a megabyte at a time. Raises FormatError if a tensor is not one
    float32 number, if its file cannot be read, or if the file changed since its header was read.
    """
    root, trusted = checkpoint.root, checkpoint.trusted
    shards = {shard.name: shard for shard in checkpoint.shards}
    wanted: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.dtype != "F32" or any(size != 1 for size in tensor.shape):
            raise FormatError(f'{shown(tensor.shard)}: the tensor "{shown(tensor.name)}" is not one float32 number')
        wanted.setdefault(tensor.shard, []).append(tensor)
    values: dict[tuple[str, str], array[float]] = {}
    for name, group in wanted.items():
        shard = shards.get(name)
        if root is None or shard is None:
            raise FormatError(f"{shown(name)}: its header was not read, so that its values cannot be")
        try:
            with opened(root, name, trusted) as descriptor:
                if os.fstat(descriptor).st_size != shard.size:
                    raise FormatError(f"{shown(name)}: the file changed while it was read", "scan it again")
                for tensor, numbers in zip(group, _gather(descriptor, shard, group), strict=True):
                    values.setdefault((name, tensor.name), array("f")).extend(numbers)
        except OSError as error:
            raise FormatError(f"{shown(name)} cannot be read: {error.strerror}", _AGAIN) from None
    return values


def _gather(descriptor: int, shard: Shard, tensors: Sequence[Tensor]) -> Iterator[array[float]]:
    """Yield the values of each tensor; numbers that lie close together are read at once."""
    lowest = min(min(tensor.begins) for tensor in tensors)
    span = max(max(tensor.begins) for tensor in tensors) + 4 - lowest
    places = [[begin - lowest for begin in tensor.begins] for tensor in tensors]
    count = sum(map(len, places))
    aligned = not any(any(map((3).__and__, row)) for row in places)
    if aligned and span <= min(_LONGEST_READ, _WIDEST_GAP * count):  # the official writer puts float32 side by side
        numbers: Sequence[float] | dict[int, float] = _floats(
            read_at(descriptor, span, shard.header + lowest, shard.name)
        )
        for row in places:
            yield array("f", [numbers[place >> 2] for place in row])
        return
    numbers = dict(_scattered(descriptor, shard, sorted({begin for tensor in tensors for begin in tensor.begins})))
    for tensor in tensors:
        yield array("f", [numbers[begin] for begin in tensor.begins])


def _scattered(descriptor: int, shard: Shard, begins: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Yield (begin, number) for ascending `begins`."""
    run: list[int] = []
    for begin in (*begins, None):
        if run and (begin is None or begin - run[-1] > _WIDEST_GAP or begin + 4 - run[0] > _LONGEST_READ):
            data = read_at(descriptor, run[-1] + 4 - run[0], shard.header + run[0], shard.name)
            for place in run:
                yield place, _floats(data[place - run[0] : place - run[0] + 4])[0]
            run = []
        if begin is not None:
            run.append(begin)


def _floats(data: bytes) -> array[float]:
    numbers = array("f", data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


# ----------------------------------------------------------------------------------------------- files


def _listed(root: Path) -> list[str]:
    """Return the names of the folder's safetensors files, in order; hidden ones are none, as for the engines."""
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries]
    except OSError as error:
        raise UsageError(f"{shown(str(root))} cannot be listed: {error.strerror}", "check its permissions") from None
    return sorted(name for name in names if name.endswith(_SUFFIX) and not name.startswith("."))


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
    root: Path, name: str, reading: _Reading, trusted: Sequence[Path], *, may_be_absent: bool = False
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


def _read_index(root: Path, trusted: Sequence[Path]) -> tuple[bool, Index | None]:
    """Return whether there is an index, and what it says."""
    try:
        raw = _read_whole(root, INDEX_FILE, LARGEST_INDEX, trusted)
    except FormatError as error:
        problem = Problem(Fault.INDEX_UNREADABLE, error.message, (INDEX_FILE,), hint=error.hint)
        return True, Index(usable=False, problems=(problem,))
    return (False, None) if raw is None else (True, parse_index(raw))


def _read_configs(
    root: Path, trusted: Sequence[Path]
) -> tuple[Mapping[str, Any], Mapping[str, Any] | None, list[Problem]]:
    """Return the two configurations, and what is wrong with them; the second is None where there is none."""
    problems: list[Problem] = []
    config = _read_config(root, CONFIG_FILE, trusted, problems)
    if config is None and not problems:
        hint = "add the model's config.json: without it the engines load nothing"
        problems.append(Problem(Fault.CONFIG_UNREADABLE, f"There is no {CONFIG_FILE}", (CONFIG_FILE,), hint=hint))
    return config or {}, _read_config(root, QUANT_FILE, trusted, problems), problems


def _read_config(root: Path, file: str, trusted: Sequence[Path], problems: list[Problem]) -> Mapping[str, Any] | None:
    try:
        raw = _read_whole(root, file, LARGEST_CONFIG, trusted)
        if raw is None:
            return None
        document = parse_document(raw, file, nan=True)
    except FormatError as error:
        problems.append(Problem(Fault.CONFIG_UNREADABLE, error.message, (file,), hint=error.hint))
        return None
    if document.repeated:
        names, count = document.repeated[:SAMPLE], len(document.repeated)
        message = f'{file} holds "{shown(names[0])}" twice in one object: the last one is taken'
        hint = "remove the one that is not meant"
        problems.append(Problem(Fault.CONFIG_UNREADABLE, message, (file,), names, count, hint))
    return document.value


def _odd_names(tensors: Iterable[Tensor]) -> Iterator[Problem]:
    odd = [tensor for tensor in tensors if tensor.experts is None and is_odd(tensor.name)]
    if odd:
        message = f'{shown(odd[0].shard)}: the name "{shown(odd[0].name)}" holds braces or invisible characters'
        if len(odd) > 1:
            message += f", and so do {len(odd) - 1:,} more"
        files, names = dict.fromkeys(tensor.shard for tensor in odd), tuple(tensor.name for tensor in odd[:SAMPLE])
        hint = "no engine has such a parameter: write the file anew without it"
        yield Problem(Fault.ODD_NAME, message, tuple(files)[:SAMPLE], names, len(odd), hint)


def _revision(root: Path) -> str | None:
    """Return the revision of a Hub cache's snapshot."""
    folder = root.resolve()
    return folder.name if folder.parent.name == "snapshots" else None


def _fail_empty(root: Path) -> NoReturn:
    where = shown(str(root))
    raise NothingToCheck(
        f"there is no checkpoint in {where}: no *{_SUFFIX} file, and no {INDEX_FILE}",
        "pass the folder that holds the model's files",
    )
