"""NVFP4 from file to file: tensors of any size read, converted and handed on in pieces, in bounded memory.

    weight = StoredTensor(path_or_descriptor, begin, "BF16", (rows, columns), "model.layers.61.mlp.gate_proj.weight")
    group = QuantizedGroup([weight, ...])       # one global scale for all; opens nothing yet
    group.global_scale()                        # weight_scale_2, a binary32 number; reads the weights once
    for piece in group.codes(0): ...            # weight: uint8 [rows, columns / 2], in order
    for piece in group.block_scales(0): ...     # weight_scale: float8_e4m3fn [rows, columns / 16], in order
    for piece in dequantize(codes, block_scales, global_scale, "BF16"): ...

    group.error(0)                              # WeightError, of a group made with measure_errors=True

A piece is a memoryview that is valid until the next is asked for. While the caller writes one, threads read and convert
those after it. Everything may be asked for again and gives the same bytes. Block scales come with the codes: they are
kept (1/32 of a BF16 weight) from the end of `codes` until `block_scales` has handed them out; where they would be too
many, and when asked for again, they are worked out anew.

Stopping is always safe: a caller that stops asking, or an exception such as KeyboardInterrupt, ends the threads and
closes the files. Knows bytes at offsets; knows nothing of checkpoints, headers or the names that scales have in one.
"""

from __future__ import annotations

import math
import os
import struct
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, TypeVar

from mtpfix.errors import FormatError, TensorError
from mtpfix.nvfp4 import cpu
from mtpfix.nvfp4.format import (
    BLOCK,
    FP8_BLOCK,
    WeightError,
    called,
    check_global_scale,
    check_shape,
    refuse_numbers,
    require_torch,
    scale_of,
)
from mtpfix.nvfp4.workspace import Workspace, open_workspace

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1}
"""Bytes of one number of the dtypes that can be quantized, as a safetensors header spells them."""

TABLES = {"F32": 4, "BF16": 2, "F8_E8M0": 1, "U8": 1}
"""Bytes of one number of the dtypes that `weight_scale_inv` may have."""

PIECE = 1 << 20
"""Bytes of a source read at a time: long for a disk, short for a processor's cache."""

PIECE_OF_DEVICE = 16 << 20
"""The same for a CUDA device, which is behind a bus."""

MEMORY = 256 << 20
"""Bytes of buffers, unless another bound is given."""

KEPT = 64 << 20
"""Bytes of block scales that a group keeps from `codes` for `block_scales`; those of larger weights are made twice."""

BF16_OVERFLOW = 3.3961775292304597e38
"""The least magnitude that rounds to infinity in BF16."""

Progress: TypeAlias = Callable[[int], None]
"""Told how many more bytes of the sources are dealt with; quantizing deals with each twice: measuring, then packing."""

Result = TypeVar("Result")


File: TypeAlias = Path | int | Callable[[], AbstractContextManager[int]]
"""A path, a descriptor that stays open, or what opens the file and yields a descriptor."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A row-major tensor in a file: `shape` from byte `offset` on.

    An FP8 weight (F8_E4M3) has its `weight_scale_inv` in `scale_inv`: F32, BF16 or F8_E8M0 (which some files call U8)
    [rows / 128, columns / 128].
    """

    file: File
    offset: int
    dtype: str
    shape: tuple[int, ...]
    name: str = ""
    scale_inv: StoredTensor | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a tensor: `count` numbers from number `first` on."""

    first: int
    count: int


class QuantizedGroup:
    """Matrices that share one global scale, quantized when their results are asked for.

    `weights` are BF16, F16, F32 or F8_E4M3, [rows, columns] with columns a multiple of 16; an engine's fused modules
    (q, k and v; gate and up) belong into one group. `global_scale` is amax / 2688 of all of them unless given;
    `scale_search` chooses block scales by squared error; with `measure_errors` the errors of plain and chosen scales
    are added up on the way. `device` is the CPU unless it names a CUDA device; `memory` and `kept` bound, in bytes, the
    buffers and the block scales that wait to be asked for. Raises TensorError for what cannot be quantized: when made,
    or when measured for numbers that are not finite; FormatError where a file ends too early.
    """

    def __init__(
        self,
        weights: Sequence[StoredTensor],
        *,
        global_scale: float | None = None,
        scale_search: bool = False,
        measure_errors: bool = False,
        device: str | None = None,
        memory: int = MEMORY,
        kept: int = KEPT,
        progress: Progress | None = None,
    ) -> None:
        for weight in weights:
            check_weight(weight)
        if global_scale is not None:
            check_global_scale(global_scale, weights[0].name if weights else None)
        self._weights = tuple(weights)
        self._search = scale_search
        self._errors: dict[int, WeightError] | None = {} if measure_errors else None
        self._device = device
        self._memory = memory
        self._kept = kept
        self._progress = progress
        self._amax: float | None = None
        self._scale = global_scale
        self._scales: dict[int, list[bytes]] = {}

    def amax(self) -> float:
        """Return the largest magnitude in the group; the weights are read once for it."""
        if self._amax is None:
            self._amax = max((self._measure(weight) for weight in self._weights), default=0.0)
        return self._amax

    def global_scale(self) -> float:
        """Return `weight_scale_2`, a binary32 number: the given one, or amax / 2688, positive even for zeros."""
        amax = self.amax()  # of a given scale, too: numbers that are not finite are refused
        if self._scale is None:
            self._scale = scale_of(amax)
        return self._scale

    def codes(self, index: int) -> Iterator[memoryview]:
        """Yield the codes of one weight, two to a byte, the even column in the low nibble."""
        keeps = math.prod(self._weights[index].shape) // BLOCK <= self._kept
        kept: list[bytes] = []
        for workspace, span in self._quantized(index):
            if keeps:
                kept.append(bytes(workspace.scales(span.count)))
            yield workspace.codes(span.count)
        if keeps:
            self._scales[index] = kept

    def block_scales(self, index: int) -> Iterator[memoryview]:
        """Yield the block scales of one weight, E4M3, row by row."""
        kept = self._scales.pop(index, None)
        if kept is not None:
            yield from (memoryview(scales) for scales in kept)
            return
        for workspace, span in self._quantized(index):
            yield workspace.scales(span.count)

    def error(self, index: int) -> WeightError | None:
        """Return the errors of one weight, None before all its codes were handed out or where none are measured."""
        return None if self._errors is None else self._errors.get(index)

    def _measure(self, weight: StoredTensor) -> float:
        def measure(workspace: Workspace, span: Span, scales: memoryview | None) -> float:
            return workspace.measure(weight.dtype, span.count, weight.shape[1], scales)

        largest = 0.0
        for _, _, amax in self._run(weight, measure):
            if not math.isfinite(amax):
                raise find_numbers(weight)
            largest = max(largest, amax)
        return largest

    def _quantized(self, index: int) -> Iterator[tuple[Workspace, Span]]:
        weight, scale = self._weights[index], self.global_scale()

        def quantize(workspace: Workspace, span: Span, scales: memoryview | None) -> WeightError:
            what = weight.dtype, span.count, weight.shape[1], scales, scale
            squares = plain = 0.0
            if self._errors is not None and self._search:
                workspace.quantize(*what, search=False)
                squares, plain = workspace.measure_error(*what)
            workspace.quantize(*what, search=self._search)
            if self._errors is None:
                return nothing
            squares, chosen = workspace.measure_error(*what)
            return WeightError(squares, plain if self._search else chosen, chosen)

        nothing = whole = WeightError()
        for workspace, span, error in self._run(weight, quantize):
            whole += error
            yield workspace, span
        if self._errors is not None:
            self._errors[index] = whole

    def _run(
        self, weight: StoredTensor, work: Callable[[Workspace, Span, memoryview | None], Result]
    ) -> Iterator[tuple[Workspace, Span, Result]]:
        width = WIDTHS[weight.dtype]
        spans = spans_of(weight, piece_of(self._device))
        with opened(weight.file) as file:
            table = None if weight.scale_inv is None else read_scales(weight.scale_inv)

            def read_and_work(workspace: Workspace, span: Span) -> Result:
                read_exactly(file, weight.offset + span.first * width, workspace.source(span.count * width), weight)
                return work(workspace, span, None if table is None else scales_of_span(table, weight, span))

            for done in in_order(self._device, spans, width, self._memory, read_and_work):
                yield done
                if self._progress is not None:
                    self._progress(done[1].count * width)


def dequantize(
    codes: StoredTensor,
    block_scales: StoredTensor,
    global_scale: float,
    dtype: str = "BF16",
    *,
    device: str | None = None,
    memory: int = MEMORY,
    progress: Progress | None = None,
) -> Iterator[memoryview]:
    """Yield the bytes of the weight [rows, columns] that stored codes and scales stand for, in order.

    `codes` are U8 [rows, columns / 2], `block_scales` F8_E4M3 [rows, columns / 16], `dtype` BF16, F16 or F32. Raises
    TensorError for shapes and dtypes that do not belong together or scales that are not numbers, FormatError where a
    file ends too early. `device`, `memory` and `progress` (told bytes of the codes) as for QuantizedGroup.
    """
    check_stored(codes, block_scales, dtype)
    check_global_scale(global_scale, codes.name)
    width = WIDTHS[dtype]
    total = math.prod(codes.shape) * 2
    step = piece_of(device) // width
    spans = [Span(first, min(step, total - first)) for first in range(0, total, step)]
    with opened(codes.file) as file, opened(block_scales.file) as file_of_scales:

        def read_and_dequantize(workspace: Workspace, span: Span) -> memoryview:
            scales = workspace.scales(span.count)
            read_exactly(file, codes.offset + span.first // 2, workspace.codes(span.count), codes)
            read_exactly(file_of_scales, block_scales.offset + span.first // BLOCK, scales, block_scales)
            if any(nan in bytes(scales) for nan in (b"\x7f", b"\xff")):
                raise TensorError(
                    f"{called(block_scales.name)} holds a scale that is not a number",
                    "quantize this weight anew from its source: what it was cannot be read back",
                )
            return workspace.dequantize(dtype, span.count, global_scale)

        for _, span, numbers in in_order(device, spans, width, memory, read_and_dequantize):
            yield numbers
            if progress is not None:
                progress(span.count // 2)


# ------------------------------------------------------------------------------------------------- pieces


def in_order(
    device: str | None,
    spans: Sequence[Span],
    width: int,
    memory: int,
    work: Callable[[Workspace, Span], Result],
) -> Iterator[tuple[Workspace, Span, Result]]:
    """Do `work` on each span in a workspace of its own, some ahead of the caller; yield the results in order."""
    if not spans:
        return
    largest = max(span.count for span in spans)
    make = opener(device)
    count = min(len(spans), cpu.usable_processors() + 2, max(1, memory // (largest * width * 2)))
    if count == 1:
        workspace = make(largest, width)
        for span in spans:
            yield workspace, span, work(workspace, span)
        return
    left = iter(spans)
    waiting: deque[tuple[Workspace, Span, Future[Result]]] = deque()
    with ThreadPoolExecutor(min(count, cpu.usable_processors()), thread_name_prefix="nvfp4") as threads:
        try:
            for span in (span for _, span in zip(range(count), left, strict=False)):
                workspace = make(largest, width)
                waiting.append((workspace, span, threads.submit(work, workspace, span)))
            while waiting:
                workspace, span, future = waiting.popleft()
                yield workspace, span, future.result()
                following = next(left, None)
                if following is not None:
                    waiting.append((workspace, following, threads.submit(work, workspace, following)))
        finally:
            for _, _, future in waiting:
                future.cancel()


def opener(device: str | None) -> Callable[[int, int], Workspace]:
    """Return what makes workspaces on a device. Raises MtpfixError where that cannot be used."""
    if device is None or device == "cpu":
        return open_workspace()
    require_torch()
    from mtpfix.nvfp4 import cuda

    return cuda.open_workspace(device)


def piece_of(device: str | None) -> int:
    """Return how many bytes of a source are taken at a time."""
    return PIECE if device is None or device == "cpu" else PIECE_OF_DEVICE


def spans_of(weight: StoredTensor, piece: int) -> list[Span]:
    """Return the pieces of a weight: whole blocks, of an FP8 weight whole rows of its 128 x 128 blocks."""
    total = math.prod(weight.shape)
    step = piece // WIDTHS[weight.dtype]
    if weight.scale_inv is not None:
        rows = FP8_BLOCK * weight.shape[1]
        step = max(1, step // max(1, rows)) * rows
    return [Span(first, min(step, total - first)) for first in range(0, total, step or 1)]


@contextmanager
def opened(file: File) -> Iterator[int]:
    """Open a path for reading; a descriptor is only passed on."""
    if isinstance(file, int):
        yield file
        return
    if not isinstance(file, Path):
        with file() as descriptor:
            yield descriptor
        return
    descriptor = os.open(file, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def read_exactly(file: int, offset: int, target: memoryview, tensor: StoredTensor) -> None:
    """Fill `target` from a file, or raise FormatError where it ends before."""
    while target:
        count = os.preadv(file, [target], offset)
        if not count:
            raise FormatError(f"the file ends before {called(tensor.name)} does", "download the file again")
        target = target[count:]
        offset += count


def read_scales(stored: StoredTensor) -> memoryview:
    """Return a whole `weight_scale_inv` in F32."""
    content = bytearray(math.prod(stored.shape) * TABLES[stored.dtype])
    with opened(stored.file) as file:
        read_exactly(file, stored.offset, memoryview(content), stored)
    match stored.dtype:
        case "F32":
            return memoryview(content)
        case "BF16":
            numbers = array("I", (half << 16 for half in memoryview(content).cast("H")))
        case _:  # exponents: 255 is NaN, and 0 is 2^-127, which is subnormal
            numbers = array(
                "I", (code << 23 if 0 < code < 255 else 0x7FC00000 if code else 1 << 22 for code in content)
            )
    return memoryview(bytearray(numbers.tobytes()))


def scales_of_span(table: memoryview, weight: StoredTensor, span: Span) -> memoryview:
    """Return the part of `weight_scale_inv` from the span's first row of blocks to its last."""
    columns = weight.shape[1]
    across = 4 * -(-columns // FP8_BLOCK)
    first, last = span.first // columns // FP8_BLOCK, -(-(span.first + span.count) // columns // FP8_BLOCK)
    return table[first * across : last * across]


def find_numbers(weight: StoredTensor) -> TensorError:
    """Return the error for a weight that holds NaN or infinities: how many, and the first one's place and value."""
    width, columns = WIDTHS[weight.dtype], weight.shape[1]
    count, first, value = 0, -1, math.nan
    table = None if weight.scale_inv is None else array("f", read_scales(weight.scale_inv).tobytes())
    with opened(weight.file) as file:
        for span in spans_of(weight, PIECE):
            content = memoryview(bytearray(span.count * width))
            read_exactly(file, weight.offset + span.first * width, content, weight)
            for place, number in enumerate(_numbers(content, weight, span.first, table), span.first):
                if not math.isfinite(number):
                    first, value = (place, number) if first < 0 else (first, value)
                    count += 1
    return refuse_numbers(weight.name, count, (first // columns, first % columns), value)


def _numbers(content: memoryview, weight: StoredTensor, first: int, table: Sequence[float] | None) -> Iterator[float]:
    match weight.dtype:
        case "F32":
            yield from content.cast("f")
        case "F16":
            yield from (number for (number,) in struct.iter_unpack("<e", content))
        case "BF16":
            halves = array("I", (half << 16 for half in content.cast("H")))
            yield from memoryview(halves).cast("B").cast("f")
        case _ if table is not None:
            columns = weight.shape[1]
            across = -(-columns // FP8_BLOCK)
            for place, code in enumerate(content, first):
                row, column = divmod(place, columns)
                number = _e4m3(code) * table[row // FP8_BLOCK * across + column // FP8_BLOCK]
                yield math.copysign(math.inf, number) if abs(number) >= BF16_OVERFLOW else number


def _e8m0(code: int) -> int:
    """Return the bits of the binary32 number 2^(code - 127); 255 is NaN."""
    if code == 255:
        return 0x7FC00000
    return code << 23 if code else 1 << 22


def _e4m3(code: int) -> float:
    if code & 0x7F == 0x7F:
        return math.nan
    exponent, mantissa = code >> 3 & 15, code & 7
    magnitude = math.ldexp(8 + mantissa, exponent - 10) if exponent else math.ldexp(mantissa, -9)
    return -magnitude if code & 0x80 else magnitude


def check_weight(weight: StoredTensor) -> None:
    """Raise TensorError unless a stored weight's description is one that can be quantized."""
    if weight.dtype not in WIDTHS:
        raise TensorError(
            f"{called(weight.name)} is {weight.dtype}, which is not quantized to NVFP4",
            "give BF16, F16 or F32, or F8_E4M3 with its weight_scale_inv",
        )
    check_shape(weight.shape, weight.name)
    if len(weight.shape) != 2:
        raise TensorError(f"{called(weight.name)} is not a matrix", "give each expert by itself: they lie in a row")
    if (weight.dtype == "F8_E4M3") != (weight.scale_inv is not None):
        raise TensorError(
            f"{called(weight.name)} is {weight.dtype} and comes {'with' if weight.scale_inv else 'without'} scales",
            "an FP8 weight is converted with its weight_scale_inv, any other without",
        )
    if weight.scale_inv is not None:
        wanted = tuple(-(-size // FP8_BLOCK) for size in weight.shape)
        if weight.scale_inv.shape != wanted or weight.scale_inv.dtype not in TABLES:
            raise TensorError(
                f"{called(weight.scale_inv.name)} is {weight.scale_inv.dtype} {list(weight.scale_inv.shape)}, "
                f"not F32 {list(wanted)}",
                f"one scale for each {FP8_BLOCK} x {FP8_BLOCK} block is understood",
            )


def check_stored(codes: StoredTensor, block_scales: StoredTensor, dtype: str) -> None:
    """Raise TensorError unless codes, scales and the wanted dtype belong together."""
    if codes.dtype != "U8" or block_scales.dtype != "F8_E4M3" or dtype not in ("BF16", "F16", "F32"):
        raise TensorError(
            f"{called(codes.name)} has codes in {codes.dtype}, scales in {block_scales.dtype}; {dtype} is asked for",
            "codes are U8, scales F8_E4M3, and the result BF16, F16 or F32",
        )
    if len(codes.shape) < 2 or codes.shape[-1] % (BLOCK // 2):
        raise TensorError(f"{called(codes.name)} has shape {list(codes.shape)}", "codes are [rows, columns / 2]")
    if block_scales.shape != (*codes.shape[:-1], codes.shape[-1] * 2 // BLOCK):
        raise TensorError(
            f"{called(codes.name)} has codes {list(codes.shape)} and scales {list(block_scales.shape)}",
            "there is one scale for each 8 bytes of codes",
        )
