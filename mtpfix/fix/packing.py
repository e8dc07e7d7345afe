"""NVFP4 out of weights where they lie: which matrices share a global scale, and what becomes of stacked experts.

Leaves every number, and the reading, to `nvfp4.stream`, which takes weights of any size in pieces. Knows tensors as
they are held; knows nothing of operations, and of files only how they are opened.
"""

from __future__ import annotations

import math
import struct
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import IO

from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import DTYPE_BITS
from mtpfix.fix.holding import Held
from mtpfix.nvfp4.dialects import reciprocal as inverted
from mtpfix.nvfp4.format import FP8_BLOCK, WeightError
from mtpfix.nvfp4.stream import KEPT, File, QuantizedGroup, StoredTensor


@dataclass(slots=True)
class Packing:
    """How weights are quantized, and what came of it.

    `device` is the CPU unless it names a CUDA device. `errors` are those of the weights whose scales were searched, by
    name, in the order in which they were written.
    """

    device: str | None = None
    errors: dict[str, WeightError] = field(default_factory=dict)


class Group:
    """Weights that share one global scale, stacked experts expert by expert; measured once, when first asked for.

    `tables` are the `weight_scale_inv` of FP8 weights, None of plain ones. With `search` scales are searched, and the
    errors of both noted in `packing`.
    """

    def __init__(
        self, weights: Sequence[Held], tables: Sequence[Held | None], packing: Packing, *, search: bool
    ) -> None:
        self.weights = tuple(weights)
        self._tables = tuple(tables)
        self._packing = packing
        self._search = search
        self._spooled: list[IO[bytes]] = []

    def codes(self, index: int) -> Iterator[memoryview]:
        """Yield the codes of one of the weights."""
        error: WeightError | None = None
        for group in self._experts:
            yield from group.codes(index)
            found = group.error(index)
            error = found if error is None or found is None else error + found
        if error is not None:
            self._packing.errors[self.weights[index].name] = error

    def block_scales(self, index: int) -> Iterator[memoryview]:
        """Yield the block scales of one of the weights."""
        for group in self._experts:
            yield from group.block_scales(index)

    def global_scale(self, *, reciprocal: bool) -> Iterator[bytes]:
        """Yield the global scales, one for each stacked expert. Raises TensorError for one without a reciprocal."""
        for group in self._experts:
            scale = group.global_scale()
            yield struct.pack("<f", inverted(scale, self.weights[0].name) if reciprocal else scale)

    @cached_property
    def _experts(self) -> list[QuantizedGroup]:
        members = [self._matrices(*pair) for pair in zip(self.weights, self._tables, strict=True)]
        return [
            QuantizedGroup(
                matrices,
                scale_search=self._search,
                measure_errors=self._search,
                device=self._packing.device,
                kept=KEPT // len(members[0]),
            )
            for matrices in zip(*members, strict=True)
        ]

    def _matrices(self, weight: Held, table: Held | None) -> list[StoredTensor]:
        """Return the matrices of a weight, one for each stacked expert."""
        *front, rows, columns = weight.shape
        count = math.prod(front)
        lies = self._lies(weight)
        scales = None if table is None else self._lies(table)
        blocks = -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)
        found = []
        for expert in range(count):
            name = f"{weight.name}[{expert}]" if front else weight.name
            inverse = None
            if table is not None and scales is not None:
                begin = scales[1] + expert * _size(blocks, table.dtype)
                inverse = StoredTensor(scales[0], begin, table.dtype, blocks, table.name)
            begin = lies[1] + expert * _size((rows, columns), weight.dtype)
            found.append(StoredTensor(lies[0], begin, weight.dtype, (rows, columns), name, inverse))
        return found

    def _lies(self, held: Held) -> tuple[File, int]:
        """Return where a tensor's bytes can be read: its file and its first byte there."""
        place = held.place or held.origin
        if place is not None:
            return partial(opened, place.folder, place.file), place.begin
        spool = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the group; what is computed is read twice
        self._spooled.append(spool)
        for chunk in held.chunks():
            spool.write(chunk)
        spool.flush()
        return spool.fileno(), 0


def _size(shape: tuple[int, int], dtype: str) -> int:
    return math.prod(shape) * DTYPE_BITS[dtype] // 8
