"""Where the tensors of a checkpoint are while operations are carried out: in a file, or still to be made.

Follows names: which tensor of which module, expert by expert, lies in which shard. Reads bytes when asked, knows no
numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import DTYPE_BITS, read_at
from mtpfix.checkpoint.names import split_name
from mtpfix.errors import FormatError
from mtpfix.fix.changes import NewTensor
from mtpfix.fix.preview import belongs
from mtpfix.model import DIGITS, EXPERT, Checkpoint

CHUNK = 1 << 24  # bytes of a copied tensor held at once


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor's bytes begin in a file of a folder, whose links may lead into `trusted` folders too."""

    folder: Path
    file: str
    begin: int
    trusted: tuple[Path, ...] = ()

    def read(self, size: int) -> Iterator[bytes]:
        """Yield `size` bytes from there. Raises FormatError where the file is shorter, OSError."""
        with opened(self.folder, self.file, self.trusted) as descriptor:
            for start in range(0, size, CHUNK):
                yield read_at(descriptor, min(CHUNK, size - start), self.begin + start, self.file)

    def at(self, offset: int, count: int) -> bytes:
        """Return `count` bytes, `offset` bytes behind the first. Raises as `read` does."""
        with opened(self.folder, self.file, self.trusted) as descriptor:
            return read_at(descriptor, count, self.begin + offset, self.file)


@dataclass(frozen=True, slots=True)
class Held:
    """One tensor as it stands: its shard, and either where it lies in a file or how it is made.

    `origin` is where the bytes of one that is made by copying lie now.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    place: Place | None = None
    made: NewTensor | None = None
    origin: Place | None = None

    @property
    def size(self) -> int:
        """Return how many bytes it takes."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8

    def chunks(self) -> Iterable[bytes | bytearray | memoryview]:
        """Yield its bytes in order."""
        if self.made is not None:
            return self.made.read()
        if self.place is None:
            raise FormatError(f"{self.name} is nowhere", "write the plan again")
        return self.place.read(self.size)

    def bytes(self) -> bytearray:
        """Return all of its bytes."""
        found = bytearray()
        for chunk in self.chunks():
            found += chunk
        return found


@dataclass(slots=True)
class Holding:
    """The tensors that operations touch, by their full names, and which of each shard's own are gone."""

    checkpoint: Checkpoint
    held: dict[str, Held] = field(default_factory=dict)
    dropped: dict[str, list[str]] = field(default_factory=dict)
    _opened: set[str] = field(default_factory=set)

    def module(self, module: str) -> Mapping[int | None, dict[str, Held]]:
        """Return a module's weight and scales by suffix, for each of its experts (None where it has none)."""
        if module not in self._opened:
            self._opened.add(module)
            self._open(module)
        found: dict[int | None, dict[str, Held]] = {}
        pattern = module.partition(EXPERT)
        for held in self.held.values():
            number = _number(held.name, pattern)
            here = module if number is None else module.replace(EXPERT, str(number), 1)
            if (EXPERT in module) == (number is not None) and belongs(held.name, here):
                found.setdefault(number, {})[split_name(held.name)[1]] = held
        return found

    def _open(self, module: str) -> None:
        folder = self.checkpoint.root
        if folder is None:
            raise FormatError("the checkpoint is not in a folder")
        starts = {shard.name: shard.header for shard in self.checkpoint.shards}
        for tensor in self.checkpoint.tensors:
            if not belongs(tensor.name, module):
                continue
            numbers: Sequence[int | None] = tensor.experts if tensor.experts is not None else (None,)
            for number, begin in zip(numbers, tensor.begins, strict=True):
                name = tensor.name if number is None else tensor.name.replace(EXPERT, str(number), 1)
                place = Place(folder, tensor.shard, starts[tensor.shard] + begin, self.checkpoint.trusted)
                self.held.setdefault(name, Held(name, tensor.dtype, tensor.shape, tensor.shard, place))

    def drop(self, held: Held) -> None:
        """Take a tensor out of the shard it lies in."""
        if self.held.get(held.name) is held:
            del self.held[held.name]
        if held.place is not None:
            self.dropped.setdefault(held.shard, []).append(held.name)

    def put(self, tensor: NewTensor, shard: str, origin: Place | None = None) -> None:
        """Put a new tensor into a shard."""
        self.held[tensor.name] = Held(tensor.name, tensor.dtype, tensor.shape, shard, made=tensor, origin=origin)


def _number(name: str, pattern: tuple[str, str, str]) -> int | None:
    """Return the expert number of a name that begins as a pattern does, None where it is another name."""
    before, found, after = pattern
    if not found or not name.startswith(before):
        return None
    digits = name[len(before) :].partition(".")[0]
    known = digits.isdecimal() and len(digits) <= DIGITS and name[len(before) + len(digits) :].startswith(after)
    return int(digits) if known else None
