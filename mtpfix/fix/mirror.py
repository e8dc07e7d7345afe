"""A repository on the Hub as a folder of sparse files, so that it is repaired as a folder is, without downloading it.

Every shard is there with its size and its header, and single numbers beside it; all else is a hole until it is asked
for. Knows which bytes a repair reads. The folder is named as the Hub's cache names its own, which says what it is of.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtpfix.checkpoint.assemble import CONFIG_FILE, LARGEST_CONFIG, QUANT_FILE
from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import DTYPE_BITS, PREFIX
from mtpfix.checkpoint.index import INDEX_FILE, LARGEST_INDEX
from mtpfix.checkpoint.names import split_name
from mtpfix.checkpoint.opening import Access, meant, open_any
from mtpfix.checkpoint.ref import safe_member, shown
from mtpfix.checkpoint.remote import Remote
from mtpfix.errors import MtpfixError, UsageError
from mtpfix.fix.changes import Changes, EditedShard, Progress
from mtpfix.fix.disk import told
from mtpfix.fix.judge import is_complete
from mtpfix.fix.operations import AddScale, Dequantize, Operation, Quantize, ShareScale
from mtpfix.fix.shard import Span, edit_layout
from mtpfix.fix.snapshot import OWN_PREFIX
from mtpfix.model import Checkpoint, Tensor

PIECE = 32 << 20
"""Bytes of one request."""
THREADS = 8
"""Requests at a time."""

_DOWNLOAD = "download it with `hf download`, and patch the folder"


@dataclass(frozen=True, slots=True)
class Mirror:
    """A folder that stands for a commit; `name` is what a user calls it."""

    folder: Path
    name: str
    remote: Remote

    def fetch(self, changes: Changes, operations: Sequence[Operation], progress: Progress | None = None) -> int:
        """Fill in all that the writing of changes reads, and return how many bytes that was.

        Raises HubError where it cannot be had, MtpfixError where it cannot be written.
        """
        needed = _needed(self.remote.checkpoint, self.folder, changes, operations)
        wanted = [piece for name, spans in needed.items() for piece in _cut(name, spans)]
        total, done = sum(end - begin for _, begin, end in wanted), 0
        with told(f"keep what is read of {shown(self.name)}"), ThreadPoolExecutor(THREADS) as pool:
            for count in pool.map(self._fill, wanted):
                done += count
                if progress is not None:
                    progress(done, total)
        return total

    def _fill(self, piece: tuple[str, int, int]) -> int:
        name, begin, end = piece
        _write(self.folder / name, begin, self.remote.repository.read_range(name, begin, end - begin))
        return end - begin


@contextmanager
def mirrored(
    ref: str | os.PathLike[str], access: Access, beside: Path | None, *, overlay: bool
) -> Iterator[Mirror | None]:
    """Yield the mirror of the repository that a user names, in a folder that lasts as long; None where it is a folder.

    It is made in `beside`, or with other temporary files. `overlay` says that nothing but changed files is wanted.
    Raises UsageError where more is, as `open_any` does, and MtpfixError where part of the checkpoint cannot be read.
    """
    reference = meant(ref, access.revision)
    if reference is None:
        yield None
        return
    if not overlay:
        raise UsageError(
            f"{shown(os.fspath(ref))} is a repository on the Hub, of which only what changes is written",
            "give --out DIR with --overlay, or --dry-run; or download it, and patch the folder",
        )
    name = os.fspath(ref)
    remote = open_any(ref, access).remote
    if remote is None:
        raise UsageError(f"{shown(name)} is not on the Hub", "check the name")
    if not is_complete(remote.checkpoint):
        unread = ", ".join(remote.checkpoint.unread[:3]) or "its index or configuration"
        raise MtpfixError(
            f"{shown(name)} is not repaired while part of it cannot be read: {unread}",
            "`mtpfix scan` says what is wrong",
        )
    with tempfile.TemporaryDirectory(prefix=f"{OWN_PREFIX}mirror-", dir=beside, ignore_cleanup_errors=True) as root:
        named = f"models--{remote.repository.reference.repository.replace('/', '--')}"
        folder = Path(root) / named / "snapshots" / remote.repository.commit
        with told(f"keep the headers of {shown(name)}"):
            folder.mkdir(parents=True)
            _make(folder, remote)
        yield Mirror(folder, name, remote)


def _make(folder: Path, remote: Remote) -> None:
    """Write configurations, index, and of shards their headers and single numbers. Raises OSError, HubError."""
    repository, checkpoint = remote.repository, remote.checkpoint
    for name, largest in ((CONFIG_FILE, LARGEST_CONFIG), (QUANT_FILE, LARGEST_CONFIG), (INDEX_FILE, LARGEST_INDEX)):
        data = repository.read_whole(name, largest)
        if data is not None:
            (folder / name).write_bytes(data)
    for one in checkpoint.shards:
        path = folder / safe_member(one.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(one.size)
        _write(path, 0, repository.read_beginning(one.name, max(one.header, PREFIX))[: one.header])
    singles = [tensor for tensor in checkpoint.tensors if tensor.dtype == "F32" and set(tensor.shape) <= {1}]
    starts = {shard.name: shard.header for shard in checkpoint.shards}
    values = remote.read_scalars(singles)
    for tensor in singles:
        found = values.get((tensor.shard, tensor.name))
        if found is None or not remote.complete:
            hint = remote.notes[-1] if remote.notes else _DOWNLOAD
            raise MtpfixError(f"the numbers of {shown(tensor.name)} cannot be read by range", f"{hint}; {_DOWNLOAD}")
    for shard, rows in _by_shard(checkpoint, singles).items():
        descriptor = os.open(folder / shard, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for tensor in rows:
                data = values[tensor.shard, tensor.name].tobytes()
                for place, begin in enumerate(tensor.begins):
                    os.pwrite(descriptor, data[4 * place : 4 * place + 4], starts[shard] + begin)
        finally:
            os.close(descriptor)


def _by_shard(checkpoint: Checkpoint, tensors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    rows: dict[str, list[Tensor]] = {shard.name: [] for shard in checkpoint.shards}
    for tensor in tensors:
        rows[tensor.shard].append(tensor)
    return rows


def _write(path: Path, begin: int, data: bytes) -> None:
    """Write into a file that is there, however much the system takes at a time. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        rest = memoryview(data)
        while rest:
            count = os.pwrite(descriptor, rest, begin)
            rest, begin = rest[count:], begin + count
    finally:
        os.close(descriptor)


Spans = list[tuple[int, int]]
"""Where runs of bytes begin and end in a file."""


def _needed(
    checkpoint: Checkpoint, folder: Path, changes: Changes, operations: Sequence[Operation]
) -> dict[str, Spans]:
    """Return the bytes of each shard that are read: what rewritten ones keep, and what new numbers are made from."""
    found: dict[str, Spans] = {shard.name: [] for shard in checkpoint.shards}
    for change in changes.files:
        if isinstance(change, EditedShard):
            with opened(folder, change.name) as descriptor:
                layout = edit_layout(descriptor, change)
            found[change.name] += [
                (layout.start + part.begin, layout.start + part.end) for part in layout.parts if isinstance(part, Span)
            ]
    modules = frozenset(_modules(operations))
    starts = {shard.name: shard.header for shard in checkpoint.shards}
    for tensor in checkpoint.tensors:
        if split_name(tensor.name)[0] in modules:
            size = math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8
            begins = (starts[tensor.shard] + begin for begin in tensor.begins)
            found[tensor.shard] += [(begin, begin + size) for begin in begins]
    return {name: _merged(spans) for name, spans in found.items() if spans}


def _modules(operations: Sequence[Operation]) -> Iterator[str]:
    """Yield the modules whose tensors operations read."""
    for operation in operations:
        match operation:
            case Dequantize() | AddScale():
                yield operation.module
            case Quantize() | ShareScale():
                yield from operation.modules
            case _:
                pass


def _merged(spans: Spans) -> Spans:
    """Return spans in order, those that touch or overlap as one."""
    merged: Spans = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif begin < end:
            merged.append((begin, end))
    return merged


def _cut(name: str, spans: Spans) -> Iterator[tuple[str, int, int]]:
    for begin, end in spans:
        for start in range(begin, end, PIECE):
            yield name, start, min(start + PIECE, end)
