"""Repositories on the Hub as folders of sparse files, so that they are read as folders are, without downloading them.

Every shard is there with its size and its header, and single numbers beside it; all else is a hole until it is asked
for. Knows which bytes a repair reads, of the checkpoint that is repaired and of one that tensors are taken from. A
folder is named as the Hub's cache names its own, which says what it is of.

    .mtpfix-mirror-OUT/     beside OUT, while a result is written; else with other temporary files
        lock                as in a stage
        journal             the pieces that were fetched, each with its hash: the same command fetches them no more
        models--ORG--NAME/snapshots/COMMIT/
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mtpfix.checkpoint.assemble import CONFIG_FILE, LARGEST_CONFIG, QUANT_FILE
from mtpfix.checkpoint.folder import opened, snapshot_folder
from mtpfix.checkpoint.header import DTYPE_BITS, PREFIX
from mtpfix.checkpoint.index import INDEX_FILE, LARGEST_INDEX
from mtpfix.checkpoint.names import split_name
from mtpfix.checkpoint.opening import HF, Access, meant, open_any
from mtpfix.checkpoint.ref import safe_member, shown
from mtpfix.checkpoint.remote import Remote
from mtpfix.errors import MtpfixError, UsageError
from mtpfix.fix.changes import Changes, EditedShard, Progress, WrittenFile
from mtpfix.fix.disk import free_bytes, told
from mtpfix.fix.journal import Journal
from mtpfix.fix.judge import is_complete
from mtpfix.fix.operations import QUANTIZE_CONFIG, AddScale, Dequantize, Graft, Operation, Quantize, ShareScale
from mtpfix.fix.shard import Span, edit_layout
from mtpfix.fix.snapshot import OWN_PREFIX
from mtpfix.fix.stage import Stage, held, stage_path
from mtpfix.model import Checkpoint, Tensor

PIECE = 32 << 20
"""Bytes of one request."""
THREADS = 8
"""Requests at a time."""
NEIGHBOURS = 64 << 10
"""Bytes between two tensors that are read along, as a request of their own would cost more."""

_DOWNLOAD = "download it with `hf download`, and patch the folder"

_INDEX = (INDEX_FILE, LARGEST_INDEX)
Spans = list[tuple[int, int]]
"""Where runs of bytes begin and end in a file."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A folder that stands for a commit.

    `name` is what a user calls it, `reference` that in one spelling (`hf://org/name@revision`), `called` the repository
    with the commit (`org/name@0123…`).
    """

    folder: Path
    name: str
    reference: str
    remote: Remote

    @property
    def called(self) -> str:
        """Return the repository and the commit."""
        return str(self.remote.repository.reference)

    def needed_for(self, changes: Changes, operations: Sequence[Operation]) -> dict[str, Spans]:
        """Return the bytes of each shard that a repair of this very checkpoint reads."""
        return _needed(self.remote.checkpoint, self.folder, changes, operations)

    def taken_by(self, operations: Sequence[Operation]) -> dict[str, Spans]:
        """Return the bytes of each shard that operations take into another checkpoint."""
        found: dict[str, Spans] = {}
        for operation in operations:
            if isinstance(operation, Graft) and Path(operation.folder) == self.folder:
                for tensor in operation.tensors:
                    size = math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8
                    found.setdefault(tensor.file, []).append((tensor.begin, tensor.begin + size))
        return {name: _merged(spans) for name, spans in found.items()}


@dataclass(frozen=True, slots=True)
class _Piece:
    """A run of bytes of one file of a mirror, no longer than one request."""

    mirror: Mirror
    file: str
    begin: int
    end: int

    @property
    def key(self) -> str:
        """Return what it is called in the journal."""
        return f"{self.mirror.called}/{self.file}:{self.begin}"

    def is_there(self, kept: WrittenFile | None) -> bool:
        """Return whether an earlier run filled it in, and it is still as it was then."""
        if kept is None or kept.size != self.end - self.begin:
            return False
        data = _read(self.mirror.folder / self.file, self.begin, kept.size)
        return hashlib.sha256(data).hexdigest() == kept.sha256

    def fill(self) -> WrittenFile:
        """Fetch it. Raises HubError, OSError."""
        data = self.mirror.remote.repository.read_range(self.file, self.begin, self.end - self.begin)
        _write(self.mirror.folder / self.file, self.begin, data)
        return WrittenFile(self.key, len(data), hashlib.sha256(data).hexdigest())


@dataclass(slots=True)
class Mirrors:
    """The repositories that one run reads: of each commit one folder, made when it is first asked for."""

    access: Access
    out: Path | None
    lasting: ExitStack
    made: list[Mirror] = field(default_factory=list)
    stage: Stage | None = None
    journal: Journal | None = None
    fetching: bool = False
    _place: Path | None = None

    def source(self, ref: str | os.PathLike[str], *, overlay: bool) -> Mirror | None:
        """Return the mirror of the repository that a user wants repaired; None where a folder is meant.

        `overlay` says that nothing but changed files is wanted. Raises UsageError where more is, as `open_any` does,
        and MtpfixError where part of the checkpoint cannot be read.
        """
        if meant(ref, self.access.revision) is None:
            return None
        name = os.fspath(ref)
        if not overlay:
            raise UsageError(
                f"{shown(name)} is a repository on the Hub, of which only what changes is written",
                "give --out DIR with --overlay, or --dry-run; or download it, and patch the folder",
            )
        return self._mirror(name, self.access, f"{shown(name)} is not repaired while part of it cannot be read")

    def base(self, ref: str | os.PathLike[str]) -> Mirror | None:
        """Return the mirror of the repository that tensors are to be taken from; None where a folder is meant.

        Raises as `source` does.
        """
        if meant(ref) is None:
            return None
        name = os.fspath(ref)
        access = Access(self.access.token, self.access.offline)
        return self._mirror(name, access, f"the base model {shown(name)} cannot be read whole")

    def base_of(self, operations: Sequence[Operation], reference: str) -> Mirror:
        """Return the mirror that operations of a plan take tensors from, by its `reference`.

        Raises MtpfixError where that names another commit now, UsageError where it names no repository.
        """
        found = self.base(reference)
        wanted = next((one.base for one in operations if isinstance(one, Graft) and one.folder == reference), "")
        commit = wanted.rpartition("@")[2]
        if found is None or not commit:
            raise UsageError("the plan takes tensors from nowhere", "make the plan anew")
        if found.remote.repository.commit != commit:
            raise MtpfixError(
                f"{shown(reference)} is at {found.remote.repository.commit} now, and the plan was made for {commit}",
                f"make the plan anew, with --graft {shown(wanted)} for the same commit",
            )
        return found

    def _mirror(self, name: str, access: Access, incomplete: str) -> Mirror:
        reference, remote = meant(name, access.revision), open_any(name, access).remote
        if remote is None:
            raise UsageError(f"{shown(name)} is not on the Hub", "check the name")
        if not is_complete(remote.checkpoint):
            unread = ", ".join(remote.checkpoint.unread[:3]) or "its index or configuration"
            raise MtpfixError(f"{incomplete}: {unread}", "`mtpfix scan` says what is wrong")
        with told(f"keep the headers of {shown(name)}"):
            folder = snapshot_folder(self._ready(), remote.repository.reference.repository, remote.repository.commit)
            folder.mkdir(parents=True, exist_ok=True)
            _make(folder, remote)
        self.made.append(Mirror(folder, name, f"{HF}{reference}", remote))
        return self.made[-1]

    def _ready(self) -> Path:
        """Return the folder for all mirrors; where a result is written, it waits beside that for the next run."""
        if self._place is not None:
            return self._place
        if self.out is None:
            root = tempfile.TemporaryDirectory(prefix=f"{OWN_PREFIX}mirror-", ignore_cleanup_errors=True)
            self._place = Path(self.lasting.enter_context(root))
            return self._place
        if not self.out.parent.is_dir():
            raise UsageError(f"there is no folder {shown(str(self.out.parent))} to put the result in", "make it first")
        path = stage_path(self.out, "mirror")
        self.stage = self.lasting.enter_context(held(path, self.out))
        self.journal, _ = self.stage.begin({"mirror": 1})
        self._place = path
        return path

    def fetch(self, wanted: Sequence[tuple[Mirror, Mapping[str, Spans]]], progress: Progress | None = None) -> int:
        """Fill in runs of bytes of mirrors, and return how many bytes these are.

        What an earlier run fetched is taken from there. Raises HubError where some cannot be had, MtpfixError where
        they cannot be kept.
        """
        pieces = [
            _Piece(mirror, name, begin, end)
            for mirror, files in wanted
            for name, spans in files.items()
            for begin, end in _cut(spans)
        ]
        total, done = sum(piece.end - piece.begin for piece in pieces), 0
        kept = {} if self.journal is None else self.journal.done
        self.fetching = True
        with told("keep what is read of the Hub", None if self.stage is None else self.stage.path):
            left = [piece for piece in pieces if not piece.is_there(kept.get(piece.key))]
            self._check_room(sum(piece.end - piece.begin for piece in left))
            done = total - sum(piece.end - piece.begin for piece in left)
            for found in _filled(left):
                if self.journal is not None:
                    self.journal.record(found)
                done += found.size
                if progress is not None:
                    progress(done, total)
        self.fetching = False
        return total

    def _check_room(self, needed: int) -> None:
        free = None if self._place is None else free_bytes(self._place)
        if free is not None and needed > free:
            raise MtpfixError(
                f"{needed:,} bytes are to be read of the Hub, and there is room for {free:,}",
                "free some space, or choose another place; then run the same command again",
            )

    def leave(self, *, failed: bool) -> None:
        """Remove the folder, unless the run stopped while it was needed and what was fetched can serve the next one."""
        if self.stage is None or self.out is None or self.journal is None:
            return
        waits = self.fetching or stage_path(self.out).is_dir()
        if not (failed and waits and self.journal.done):
            self.stage.remove()


@contextmanager
def mirrors(access: Access, out: Path | None = None) -> Iterator[Mirrors]:
    """Yield a place for the mirrors of one run: beside `out`, the result that is to be written, if there is to be one.

    Raises MtpfixError where another run writes the same result.
    """
    with ExitStack() as lasting:
        found = Mirrors(access, out, lasting)
        try:
            yield found
        except BaseException:
            found.leave(failed=True)
            raise
        found.leave(failed=False)


def _filled(pieces: Sequence[_Piece]) -> Iterator[WrittenFile]:
    """Fetch pieces, some at a time, and yield each that is there; the first that cannot be had ends it."""
    hubs = {id(piece.mirror): piece.mirror.remote.repository.hub for piece in pieces}.values()
    pool = ThreadPoolExecutor(THREADS)
    try:
        for future in as_completed([pool.submit(piece.fill) for piece in pieces]):
            yield future.result()
    finally:
        for hub in hubs:
            hub.stop.set()
        pool.shutdown(cancel_futures=True)
        for hub in hubs:
            hub.stop.clear()


def _make(folder: Path, remote: Remote) -> None:
    """Write configurations, index, and of shards their headers and single numbers. Raises OSError, HubError.

    What is there already, just so, is not written again: its time stays, by which the writer knows it.
    """
    repository, checkpoint = remote.repository, remote.checkpoint
    documents = (*((name, LARGEST_CONFIG) for name in (CONFIG_FILE, QUANT_FILE, QUANTIZE_CONFIG)), _INDEX)
    for name, largest in documents:
        data = repository.read_whole(name, largest)
        if data is not None and not ((folder / name).is_file() and (folder / name).read_bytes() == data):
            (folder / name).write_bytes(data)
    for one in checkpoint.shards:
        path = folder / safe_member(one.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.stat().st_size != one.size:
            with path.open("wb") as file:
                file.truncate(one.size)
        _put(path, 0, repository.read_beginning(one.name, max(one.header, PREFIX))[: one.header])
    singles = [tensor for tensor in checkpoint.tensors if tensor.dtype == "F32" and set(tensor.shape) <= {1}]
    starts = {shard.name: shard.header for shard in checkpoint.shards}
    values = remote.read_scalars(singles)
    for tensor in singles:
        found = values.get((tensor.shard, tensor.name))
        if found is None or not remote.complete:
            hint = remote.notes[-1] if remote.notes else _DOWNLOAD
            raise MtpfixError(f"the numbers of {shown(tensor.name)} cannot be read by range", f"{hint}; {_DOWNLOAD}")
    for shard, rows in _by_shard(checkpoint, singles).items():
        for tensor in rows:
            data = values[tensor.shard, tensor.name].tobytes()
            for place, begin in enumerate(tensor.begins):
                _put(folder / shard, starts[shard] + begin, data[4 * place : 4 * place + 4])


def _by_shard(checkpoint: Checkpoint, tensors: Iterable[Tensor]) -> dict[str, list[Tensor]]:
    rows: dict[str, list[Tensor]] = {shard.name: [] for shard in checkpoint.shards}
    for tensor in tensors:
        rows[tensor.shard].append(tensor)
    return rows


def _put(path: Path, begin: int, data: bytes) -> None:
    """Write into a file that is there, unless it has these bytes. Raises OSError."""
    if _read(path, begin, len(data)) != data:
        _write(path, begin, data)


def _read(path: Path, begin: int, count: int) -> bytes:
    """Return bytes of a file, fewer where it ends. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = b""
        while len(found) < count and (data := os.pread(descriptor, count - len(found), begin + len(found))):
            found += data
        return found
    finally:
        os.close(descriptor)


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
    """Return spans in order, those that touch or nearly do as one."""
    merged: Spans = []
    for begin, end in sorted(spans):
        if begin < end and merged and begin <= merged[-1][1] + NEIGHBOURS:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        elif begin < end:
            merged.append((begin, end))
    return merged


def _cut(spans: Spans) -> Iterator[tuple[int, int]]:
    for begin, end in spans:
        for start in range(begin, end, PIECE):
            yield start, min(start + PIECE, end)
