"""A checkpoint in a repository on the Hub, read without downloading it: one range of each shard holds its header.

Knows how much of a shard to ask for, and that files of a commit which cannot be had leave the checkpoint incomplete.
Whatever is wrong in the files themselves is told as of a folder.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from mtpfix.checkpoint.answers import AccessError, HubError
from mtpfix.checkpoint.assemble import (
    CONFIG_FILE,
    LARGEST_CONFIG,
    QUANT_FILE,
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
from mtpfix.checkpoint.header import PREFIX, Header, LfsPointerError, header_length, parse_header
from mtpfix.checkpoint.hub import Hub
from mtpfix.checkpoint.index import INDEX_FILE, LARGEST_INDEX, Index
from mtpfix.checkpoint.ref import Reference, shown
from mtpfix.checkpoint.repository import Repository, open_repository
from mtpfix.checkpoint.scalars import Values, by_shard, gather
from mtpfix.errors import FormatError, NothingToCheck
from mtpfix.model import Checkpoint, Fault, Shard, Tensor

THREADS = 16
"""Requests at a time: the client keeps twenty idle connections open, and each shard takes two hosts in turn."""

MOST_HEADERS = 2_000_000_000
"""Bytes of all headers of a checkpoint together."""

MOST_RANGES = 4
"""Further requests that are made for the scales of one shard."""

_DOCUMENTS = {CONFIG_FILE: LARGEST_CONFIG, QUANT_FILE: LARGEST_CONFIG, INDEX_FILE: LARGEST_INDEX}
_ENTRY = 82  # bytes of a tensor's entry in a header, without its name
_MARGIN = 4096  # bytes of metadata, of padding, and of the single float32 numbers that most writers put first
_UNKNOWN = 128 * 1024  # bytes first asked for of a shard that no index names
_MOST_AT_ONCE = 8 << 20

Choose: TypeAlias = Callable[[Mapping[str, Any], Index], "Collection[str] | None"]
"""Returns the files that are wanted, by configuration and index; None: all of them."""


@dataclass(slots=True)
class Remote:
    """A checkpoint and its repository; `notes` are sentences about the reading itself, `complete` turns False with one.

    `tails` are the bytes that were read behind the headers.
    """

    checkpoint: Checkpoint
    repository: Repository
    tails: Mapping[str, bytes]
    notes: list[str] = field(default_factory=list)
    complete: bool = True

    def read_scalars(self, tensors: Iterable[Tensor]) -> Values:
        """Return the values of single float32 numbers, as of a folder; those that lie too far apart are left out."""
        values: Values = {}
        left_out = []
        groups = by_shard(self.checkpoint, tensors)
        with ThreadPoolExecutor(THREADS) as pool:
            for (shard, group), rows in zip(groups, pool.map(self._shard_scalars, groups), strict=True):
                if rows is None:
                    left_out.append(shard.name)
                    continue
                for tensor, numbers in zip(group, rows, strict=True):
                    values.setdefault((shard.name, tensor.name), array("f")).extend(numbers)
        if left_out:
            more = f" and {len(left_out) - 1} more files" if len(left_out) > 1 else ""
            self.notes.append(f"the global scales in {shown(left_out[0])}{more} were not read, nor compared")
        return values

    def _shard_scalars(self, wanted: tuple[Shard, list[Tensor]]) -> list[array[float]] | None:
        shard, tensors = wanted
        tail, asked = self.tails.get(shard.name, b""), 0

        def read(count: int, offset: int) -> bytes:
            nonlocal asked
            begin = offset - shard.header
            if begin + count <= len(tail):
                return tail[begin : begin + count]
            asked += 1
            if asked > MOST_RANGES:
                raise _TooScatteredError
            return self.repository.read_range(shard.name, offset, count)

        try:
            return list(gather(read, shard, tensors))
        except _TooScatteredError:
            return None
        except HubError as error:
            self.complete = False
            self.notes.append(f"{error.message}: the scales in {shown(shard.name)} could not be compared")
            return None


class _TooScatteredError(Exception):
    """The scales of a shard lie so far apart that each would take a request."""


def open_remote(
    reference: Reference,
    hub: Hub,
    *,
    ref: str,
    progress: Progress | None = None,
    headers: bool = True,
    choose: Choose | None = None,
) -> Remote:
    """Return everything that headers and configurations in a repository say; `ref` is what the user called it.

    Its shards are all files `*.safetensors` at the top of the commit, and those the index names and the commit has; no
    other name is ever asked for. With `choose` only the shards it wants are read, and those no index names.

    Raises AccessError or HubError where the repository cannot be read at all, NothingToCheck where no checkpoint is.
    """
    repository = open_repository(reference, hub)
    origin = Origin(ref, None, repository.commit)
    pool = ThreadPoolExecutor(THREADS)
    try:
        top = [name for name in sorted(repository.files) if "/" not in name and is_shard(name)]
        pending = {name: pool.submit(repository.read_whole, name, largest) for name, largest in _DOCUMENTS.items()}
        early = [name for name in top if headers and choose is None and repository.must_ask(name)]
        located = {name: pool.submit(repository.locate, name) for name in early}  # that takes no index
        documents, lost = _read_documents(pending)
        index = documents.index
        if not top and not documents.has_index and (headers or not documents.config):
            raise NothingToCheck(
                f"there is no checkpoint in {shown(ref)}: no *{SUFFIX} file, and no {INDEX_FILE}",
                "pass a repository that holds a model's weights as safetensors",
            )
        if not headers:
            checkpoint = assemble_metadata(origin, repository.files, documents)
            return Remote(replace(checkpoint, unread=tuple(lost)), repository, {})
        named = [name for name in (index.files if index else ()) if name not in top]
        there = [name for name in named if name in repository.files]
        wanted = None if choose is None or index is None or not index.usable else choose(documents.config, index)
        shards, left_out = _divided([*top, *there], index, wanted)
        expected = expected_sizes(index)
        begun = {
            pool.submit(_read_shard, repository, name, expected.get(name, _UNKNOWN), located.get(name)): name
            for name in shards
        }
        reading, tails = _gather_shards(begun, progress)
        reading.unread += lost
        if index:
            reading.unread += index.refused
        if not repository.whole:
            for name in named:
                if name not in there:
                    text = f"{shown(name)} was never downloaded here, and nothing is asked offline"
                    reading.refuse(name, Fault.SHARD_UNREADABLE, text, "leave out --offline")
        return Remote(assemble(origin, reading, documents, left_out), repository, tails)
    finally:
        hub.stop.set()
        pool.shutdown(cancel_futures=True)
        hub.stop.clear()


def _read_documents(pending: Mapping[str, Future[bytes | None]]) -> tuple[Documents, list[str]]:
    """Return what configurations and index say, and which of them could not be had."""
    lost: list[str] = []

    def read(name: str, _largest: int) -> bytes | None:
        try:
            return pending[name].result()
        except AccessError:
            raise  # then no other file can be read either
        except HubError as error:
            lost.append(name)
            raise FormatError(f"{name} cannot be read: {error.message}", error.hint) from None

    has_index, index = read_index(read)
    return Documents(*read_configs(read), has_index, index), lost


def _divided(shards: Sequence[str], index: Index | None, wanted: Collection[str] | None) -> tuple[list[str], list[str]]:
    """Return the shards to read and those to leave out: what the index names and nobody wants."""
    if wanted is None or index is None:
        return list(shards), []
    named = frozenset(index.files)
    left_out = [name for name in shards if name in named and name not in wanted]
    return [name for name in shards if name not in left_out], left_out


def _gather_shards(
    pending: Mapping[Future[tuple[Header, bytes]], str], progress: Progress | None
) -> tuple[Reading, dict[str, bytes]]:
    """Return the headers that are being read, and the bytes behind each."""
    reading, tails = Reading(), {}
    budget = MOST_HEADERS
    for done, future in enumerate(as_completed(pending), 1):
        name = pending[future]
        try:
            header, tails[name] = future.result()
            budget -= header.start
            if budget >= 0:
                reading.headers[name] = header
            else:
                text = f"{shown(name)}: all headers together have more than {MOST_HEADERS:,} bytes"
                reading.refuse(name, Fault.SHARD_UNREADABLE, text, "download the repository and look at it")
        except AccessError:
            raise  # then no other file can be read either
        except LfsPointerError:
            reading.pointers.append(name)
        except (FormatError, HubError) as error:
            reading.refuse(name, Fault.SHARD_UNREADABLE, error.message, error.hint)
        if progress:
            progress(done, len(pending))
    reading.pointers.sort()
    reading.problems.sort(key=lambda problem: problem.files)
    return reading, tails


def _read_shard(repository: Repository, name: str, wanted: int, located: Future[None] | None) -> tuple[Header, bytes]:
    """Return a shard's header, and the bytes that were read behind it; waits until it is located, if it is asked."""
    if located is not None:
        located.result()
    data = repository.read_beginning(name, wanted)
    size = repository.files[name].size
    start = PREFIX + header_length(data, size, name)
    metadata, tensors = parse_header(data[PREFIX:start], size - start, name)
    repository.keep_beginning(name, data)
    return Header(size, start, metadata, tuple(tensors)), data[start:]


def expected_sizes(index: Index | None) -> dict[str, int]:
    """Return by file how many bytes its header and the single numbers behind it may take, by the names in the index."""
    sizes: dict[str, int] = defaultdict(lambda: PREFIX + _MARGIN)
    for (name, numbered), places in (index.places if index else {}).items():
        length = len(name) + _ENTRY + 4 * name.endswith(("scale", "scale_2"))
        for file, experts in places:
            if numbered and experts is not None:
                digits = sum(len(str(number)) for number in experts)
                sizes[file] += len(experts) * (length - 2) + digits
            else:
                sizes[file] += length
    return {file: min(-(-size // 4096) * 4096, _MOST_AT_ONCE) for file, size in sizes.items()}
