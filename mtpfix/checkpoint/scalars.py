"""Single float32 numbers among the data of a shard: where they lie, and how few reads fetch them.

Knows offsets, not files: a function that reads comes from outside.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError
from mtpfix.model import Checkpoint, Shard, Tensor

Read: TypeAlias = Callable[[int, int], bytes]
"""Returns so many bytes of a shard, from an offset in the file."""

Values: TypeAlias = "dict[tuple[str, str], array[float]]"
"""By (shard, name) the numbers of a tensor: one for each of its `begins`."""

_LONGEST_READ = 1 << 20  # bytes held at once
_WIDEST_GAP = 1 << 12  # bytes between two numbers that are read along rather than left out


def by_shard(checkpoint: Checkpoint, tensors: Iterable[Tensor]) -> list[tuple[Shard, list[Tensor]]]:
    """Return tensors by the shard that holds them.

    Raises FormatError if one is not a single float32 number, or if the header of its shard was not read.
    """
    shards = {shard.name: shard for shard in checkpoint.shards}
    wanted: dict[str, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.dtype != "F32" or any(size != 1 for size in tensor.shape):
            raise FormatError(f'{shown(tensor.shard)}: the tensor "{shown(tensor.name)}" is not one float32 number')
        if tensor.shard not in shards:
            raise FormatError(f"{shown(tensor.shard)}: its header was not read, so that its values cannot be")
        wanted.setdefault(tensor.shard, []).append(tensor)
    return [(shards[name], group) for name, group in wanted.items()]


def gather(read: Read, shard: Shard, tensors: Sequence[Tensor]) -> Iterator[array[float]]:
    """Yield the values of each tensor; numbers that lie close together are read at once."""
    lowest = min(min(tensor.begins) for tensor in tensors)
    span = max(max(tensor.begins) for tensor in tensors) + 4 - lowest
    places = [[begin - lowest for begin in tensor.begins] for tensor in tensors]
    count = sum(map(len, places))
    aligned = not any(any(map((3).__and__, row)) for row in places)
    if aligned and span <= min(_LONGEST_READ, _WIDEST_GAP * count):  # the official writer puts float32 side by side
        numbers: Sequence[float] | dict[int, float] = _floats(read(span, shard.header + lowest))
        for row in places:
            yield array("f", [numbers[place >> 2] for place in row])
        return
    numbers = dict(_scattered(read, shard, sorted({begin for tensor in tensors for begin in tensor.begins})))
    for tensor in tensors:
        yield array("f", [numbers[begin] for begin in tensor.begins])


def _scattered(read: Read, shard: Shard, begins: Sequence[int]) -> Iterator[tuple[int, float]]:
    """Yield (begin, number) for ascending `begins`."""
    run: list[int] = []
    for begin in (*begins, None):
        if run and (begin is None or begin - run[-1] > _WIDEST_GAP or begin + 4 - run[0] > _LONGEST_READ):
            data = read(run[-1] + 4 - run[0], shard.header + run[0])
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
