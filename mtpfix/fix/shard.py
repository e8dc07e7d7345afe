"""A safetensors file that is to be written: its header, and where each byte behind it comes from.

Untouched tensors keep their bytes, their order and their place in the header, and `__metadata__` stays. Every tensor
that began at a multiple of its element's size does so afterwards. Knows the file format; opens nothing itself, and
holds no more of a tensor at once than one chunk.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import DTYPE_BITS, PREFIX, Entry, parse_tensors, read_raw
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError, MtpfixError
from mtpfix.fix.changes import Buffer, EditedShard, NewShard, NewTensor

CHUNK = 8 << 20
"""Bytes read or written at once."""

_METADATA = "__metadata__"
_ALIGNMENT = 8  # the official writer pads the header to a multiple of this
_PLAN = "make the plan anew: it does not fit this file"


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of the source's data that go into the result as they are: from `begin` to `end`, behind its header."""

    begin: int
    end: int

    @property
    def bytes(self) -> int:
        """How many bytes these are."""
        return self.end - self.begin


@dataclass(frozen=True, slots=True)
class Layout:
    """A file to be written: `header` with its length in front, then `parts` in order; `start` is the source's."""

    name: str
    header: bytes
    parts: tuple[Span | NewTensor, ...]
    start: int = 0

    @property
    def size(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + self.data_size

    @property
    def data_size(self) -> int:
        """Bytes behind the header."""
        return sum(part.bytes for part in self.parts)


@dataclass(frozen=True, slots=True)
class _Place:
    """One tensor of a file: its name, bits of an element, and where its bytes come from."""

    name: str
    bits: int
    origin: Span | NewTensor

    @property
    def bytes(self) -> int:
        return self.origin.bytes


def edit_layout(descriptor: int, change: EditedShard) -> Layout:
    """Return the layout of a shard, open for reading, after a change.

    Raises FormatError where its header is malformed, MtpfixError where the change names a tensor it does not have, or
    one tensor twice.
    """
    raw, data_size = read_raw(descriptor, change.name)
    entries = parse_tensors(raw, data_size, change.name)
    _check_names(change, entries)
    put = {tensor.name: tensor for tensor in change.put}
    drop = frozenset(change.drop)
    places = []
    for name, entry in entries.items():
        if name in drop:
            continue
        bits = DTYPE_BITS[entry.dtype]
        new = put.get(name)
        if new is None:
            places.append(_Place(name, bits, Span(entry.begin, entry.end)))
        elif DTYPE_BITS[new.dtype] == bits:
            places.append(_Place(name, bits, put.pop(name)))
    _insert(places, put.values())
    if not _are_aligned(places, entries):
        places.sort(key=lambda place: -place.bits)  # as the official writer does: it aligns them all
    return Layout(change.name, _header(raw, places), _parts(places), PREFIX + len(raw))


def new_layout(change: NewShard) -> Layout:
    """Return the layout of a new shard: large elements first and names in order, as the official writer does."""
    names = [tensor.name for tensor in change.tensors]
    if len(set(names)) != len(names):
        raise MtpfixError(f"{shown(change.name)} would hold a tensor twice", _PLAN)
    for tensor in change.tensors:
        _check_tensor(tensor)
    places = [
        _Place(tensor.name, DTYPE_BITS[tensor.dtype], tensor)
        for tensor in sorted(change.tensors, key=lambda tensor: (-DTYPE_BITS[tensor.dtype], tensor.name))
    ]
    raw = json.dumps({_METADATA: dict(change.metadata)}, ensure_ascii=False).encode()
    return Layout(change.name, _header(raw, places), _parts(places))


def produce(layout: Layout, source: int | None) -> Iterator[Buffer]:
    """Yield the bytes of a file in order; `source` is the open file that its spans are read from.

    A buffer is only valid until the next is asked for. Raises MtpfixError if a tensor yields more or fewer bytes than
    it has, FormatError if the source became shorter, and whatever reading a tensor raises.
    """
    yield layout.header
    buffer = memoryview(bytearray(CHUNK))
    for part in layout.parts:
        if isinstance(part, NewTensor):
            yield from _read(part)
            continue
        if source is None:
            raise MtpfixError(f"{shown(layout.name)} is new, and cannot hold bytes of another file", _PLAN)
        place, end = layout.start + part.begin, layout.start + part.end
        while place < end:
            count = os.preadv(source, [buffer[: min(CHUNK, end - place)]], place)
            if not count:
                raise FormatError(f"{shown(layout.name)} became shorter while it was read", "run the command again")
            yield buffer[:count]
            place += count


def stored_tensor(folder: Path, file: str, name: str, *, as_name: str | None = None, origin: str = "") -> NewTensor:
    """Return a tensor with the bytes that `name` has in a shard of a folder, under its own or another name.

    `origin` says in the recipe where the folder comes from (`org/name@revision`). Raises FormatError where the header
    is malformed or does not hold the tensor, OSError where the file cannot be read.
    """
    with opened(folder, file) as descriptor:
        raw, data_size = read_raw(descriptor, file)
    entry = parse_tensors(raw, data_size, file).get(name)
    if entry is None:
        raise FormatError(f'{shown(file)} holds no tensor "{shown(name)}"', "check the name, and that it is this file")
    return stored_entry(folder, file, name, entry, PREFIX + len(raw), as_name=as_name, origin=origin)


def stored_entry(
    folder: Path, file: str, name: str, entry: Entry, start: int, *, as_name: str | None = None, origin: str = ""
) -> NewTensor:
    """Return what `stored_tensor` does, of a header that was read before; `start` is where its data begin."""
    place = f"{origin}:{file}" if origin else file
    recipe = f"the bytes of {name} in {place} at {entry.begin}"
    read = partial(_stored_bytes, folder, file, start + entry.begin, start + entry.end)
    return NewTensor(as_name or name, entry.dtype, entry.shape, recipe, read)


def _stored_bytes(folder: Path, file: str, begin: int, end: int) -> Iterator[bytes]:
    with opened(folder, file) as descriptor:
        while begin < end:
            data = os.pread(descriptor, min(CHUNK, end - begin), begin)
            if not data:
                raise FormatError(f"{shown(file)} became shorter while it was read", "run the command again")
            yield data
            begin += len(data)


def _read(tensor: NewTensor) -> Iterator[Buffer]:
    left = tensor.bytes
    for data in tensor.read():
        left -= len(data)
        if left < 0:
            break
        for begin in range(0, len(data), CHUNK):
            yield memoryview(data)[begin : begin + CHUNK]
    if left:
        raise MtpfixError(
            f'the tensor "{shown(tensor.name)}" yields {"more" if left < 0 else "fewer"} than its {tensor.bytes} bytes',
            "this is a defect of mtpfix: nothing was published",
        )


def _check_names(change: EditedShard, entries: Mapping[str, Entry]) -> None:
    names = [*change.drop, *(tensor.name for tensor in change.put)]
    if len(set(names)) != len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise MtpfixError(f'{shown(change.name)}: the tensor "{shown(twice)}" is changed twice', _PLAN)
    for name in change.drop:
        if name not in entries:
            raise MtpfixError(f'{shown(change.name)} holds no tensor "{shown(name)}" to remove', _PLAN)
    for tensor in change.put:
        _check_tensor(tensor)


def _check_tensor(tensor: NewTensor) -> None:
    if tensor.dtype not in DTYPE_BITS or tensor.name == _METADATA or any(size < 0 for size in tensor.shape):
        raise MtpfixError(f'"{shown(tensor.name)}" is no tensor that safetensors can hold', _PLAN)


def _insert(places: list[_Place], tensors: Iterable[NewTensor]) -> None:
    """Put each tensor behind the last whose elements are at least as large: in an aligned file all stays aligned."""
    groups: dict[int, list[_Place]] = {}
    for tensor in tensors:
        bits = DTYPE_BITS[tensor.dtype]
        groups.setdefault(bits, []).append(_Place(tensor.name, bits, tensor))
    for bits, group in groups.items():
        behind = max((number for number, place in enumerate(places) if place.bits >= bits), default=-1)
        places[behind + 1 : behind + 1] = group


def _are_aligned(places: Iterable[_Place], entries: Mapping[str, Entry]) -> bool:
    """Return whether every tensor that is new, or began at a multiple of its element's size, does so now."""
    position = 0
    for place in places:
        size = max(1, place.bits // 8)
        before = entries[place.name].begin if isinstance(place.origin, Span) else 0
        if position % size and not before % size:
            return False
        position += place.bytes
    return True


def _parts(places: Iterable[_Place]) -> tuple[Span | NewTensor, ...]:
    """Return where the bytes come from, neighbouring spans joined."""
    parts: list[Span | NewTensor] = []
    for place in places:
        last = parts[-1] if parts else None
        if isinstance(place.origin, Span) and isinstance(last, Span) and last.end == place.origin.begin:
            parts[-1] = Span(last.begin, place.origin.end)
        else:
            parts.append(place.origin)
    return tuple(parts)


def _header(raw: bytes, places: Sequence[_Place]) -> bytes:
    """Return the header with its length in front: what `raw` says, in its order, with the places of now.

    New tensors stand in it behind the one that they follow in the data.
    """
    old: dict[str, Any] = json.loads(raw)
    offsets: dict[str, tuple[int, int]] = {}
    behind: dict[str | None, list[str]] = {}
    position, ahead = 0, None
    for place in places:
        offsets[place.name] = (position, position + place.bytes)
        position += place.bytes
        if place.name in old:
            ahead = place.name
        else:
            behind.setdefault(ahead, []).append(place.name)
    order: list[str] = []
    first = behind.get(None, [])
    for number, name in enumerate(old):
        if number == 0 and name != _METADATA:
            order += first
        if name == _METADATA or name in offsets:
            order.append(name)
        if number == 0 and name == _METADATA:
            order += first
        order += behind.get(name, ())
    origins = {place.name: place.origin for place in places}
    written = {
        name: old[name] if name == _METADATA else _entry(old.get(name), origins[name], offsets[name])
        for name in (order or first)
    }
    text = json.dumps(written, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(PREFIX, "little") + text


def _entry(value: Any, origin: Span | NewTensor, offsets: tuple[int, int]) -> Any:
    if isinstance(origin, NewTensor):
        return {"dtype": origin.dtype, "shape": list(origin.shape), "data_offsets": list(offsets)}
    if isinstance(value, list):  # the official reader also takes the three fields as an array
        return [*value[:2], list(offsets)]
    return {**value, "data_offsets": list(offsets)}
