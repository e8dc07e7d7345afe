"""NVFP4 on the processor, on memory: the compiled library, and how its work is split between threads.

Memory is any object with a buffer (bytes, memoryview, mmap, numpy), whose size is checked, or an address with the
caller's word that it holds enough; any alignment will do. Numbers are in the machine's little-endian order, as in a
safetensors file. Works without torch; allocates nothing but what it returns. Knows no tensor names and refuses no
numbers: `amax` returns NaN or infinity where the source holds one, and only finite ones may be quantized.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from mtpfix.errors import MtpfixError
from mtpfix.nvfp4.format import BLOCK, FP8_BLOCK

if TYPE_CHECKING:
    from mtpfix.nvfp4._nvfp4 import Memory

library: Any
try:
    from mtpfix.nvfp4 import _nvfp4 as library
except ImportError as error:
    library = None
    missing = str(error)
else:
    missing = ""
    if os.environ.get("MTPFIX_NVFP4_VARIANT") in library.variants():
        library.use(os.environ["MTPFIX_NVFP4_VARIANT"])

DTYPES = {"BF16": 0, "F16": 1, "F32": 2}
"""What is read and written, by its name in a safetensors header, and how the library calls it."""

WIDTHS = {"BF16": 2, "F16": 2, "F32": 4}
"""Bytes of one number."""

SHARE = 1 << 20
"""Elements below which another thread costs more than it brings."""

T = TypeVar("T")


def available() -> bool:
    """Return whether the library was built and can be loaded."""
    return library is not None


def variants() -> tuple[str, ...]:
    """Return the variants this processor can run, the best first; none without the library."""
    return tuple(library.variants()) if library is not None else ()


def variant() -> str:
    """Return the variant that runs: the best, unless MTPFIX_NVFP4_VARIANT names another."""
    return str(loaded().used())


def use(name: str) -> None:
    """Run another variant from now on, in all threads. Raises ValueError for one this processor cannot run."""
    loaded().use(name)


def loaded() -> Any:
    """Return the library, or raise MtpfixError where it was not built."""
    if library is None:
        raise MtpfixError(
            f"the compiled part of mtpfix cannot be loaded: {missing}",
            "install a wheel for this platform, or a C compiler before installing from source",
        )
    return library


def usable_processors() -> int:
    """Return how many processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# ------------------------------------------------------------------------------------------------ functions


def amax(source: Memory, dtype: str, count: int, *, threads: int = 1) -> float:
    """Return the largest magnitude of `count` numbers; NaN where there is one. `dtype` is BF16, F16 or F32."""
    kind, width = DTYPES[dtype], WIDTHS[dtype]

    def run(begin: int, end: int) -> float:
        return float(loaded().amax(behind(source, begin * width), kind, end - begin))

    return largest(split(run, count, BLOCK, threads, count))


def amax_fp8(source: Memory, scale_inv: Memory, rows: int, columns: int, *, threads: int = 1) -> float:
    """Return the largest magnitude of an E4M3 matrix under its scales, rounded to BF16; NaN where there is one.

    `scale_inv` is FP32 [rows / 128, columns / 128], both rounded up.
    """
    across = -(-columns // FP8_BLOCK) * 4

    def run(begin: int, end: int) -> float:
        scales = behind(scale_inv, begin // FP8_BLOCK * across)
        return float(loaded().amax_fp8(behind(source, begin * columns), scales, end - begin, columns, 0))

    return largest(split(run, rows, FP8_BLOCK, threads, rows * columns))


def quantize(
    source: Memory,
    dtype: str,
    count: int,
    global_scale: float,
    packed: Memory,
    block_scale: Memory,
    *,
    scale_search: bool = False,
    threads: int = 1,
) -> None:
    """Write the codes (`count` / 2 bytes) and block scales (`count` / 16 bytes) of numbers that are all finite.

    `count` is a multiple of 16: rows follow one another, and any run of whole rows may be given.
    """
    kind, width = DTYPES[dtype], WIDTHS[dtype]

    def run(begin: int, end: int) -> None:
        loaded().quantize(
            behind(source, begin * width),
            kind,
            end - begin,
            global_scale,
            scale_search,
            behind(packed, begin // 2),
            behind(block_scale, begin // BLOCK),
        )

    split(run, count, BLOCK * BLOCK, threads, count)


def quantize_fp8(
    source: Memory,
    scale_inv: Memory,
    rows: int,
    columns: int,
    global_scale: float,
    packed: Memory,
    block_scale: Memory,
    *,
    scale_search: bool = False,
    threads: int = 1,
    first: int = 0,
) -> None:
    """Write the codes and block scales of an E4M3 matrix under its scales, by way of BF16.

    `scale_inv` as in `amax_fp8`, from the row of scales on that the first row lies in; `first` is that row's number
    within its 128.
    """
    across = -(-columns // FP8_BLOCK) * 4

    def run(begin: int, end: int) -> None:
        place = max(begin - first, 0)
        loaded().quantize_fp8(
            behind(source, place * columns),
            behind(scale_inv, begin // FP8_BLOCK * across),
            end - max(begin, first),
            columns,
            first if begin == 0 else 0,
            global_scale,
            scale_search,
            behind(packed, place * columns // 2),
            behind(block_scale, place * columns // BLOCK),
        )

    split(run, rows + first, FP8_BLOCK, threads, rows * columns)


def dequantize(
    packed: Memory,
    block_scale: Memory,
    dtype: str,
    count: int,
    global_scale: float,
    target: Memory,
    *,
    threads: int = 1,
) -> None:
    """Write the `count` numbers that codes and scales stand for, as `dtype`: BF16, F16 or F32."""
    kind, width = DTYPES[dtype], WIDTHS[dtype]

    def run(begin: int, end: int) -> None:
        loaded().dequantize(
            behind(packed, begin // 2),
            behind(block_scale, begin // BLOCK),
            kind,
            end - begin,
            global_scale,
            behind(target, begin * width),
        )

    split(run, count, BLOCK, threads, count)


def measure_error(
    source: Memory, dtype: str, count: int, global_scale: float, packed: Memory, block_scale: Memory
) -> tuple[float, float]:
    """Return two sums over numbers: of their squares, and of the squares of what codes and scales differ from them."""
    squares, errors = loaded().measure_error(source, DTYPES[dtype], count, global_scale, packed, block_scale)
    return float(squares), float(errors)


def measure_error_fp8(
    source: Memory,
    scale_inv: Memory,
    rows: int,
    columns: int,
    global_scale: float,
    packed: Memory,
    block_scale: Memory,
) -> tuple[float, float]:
    """Return the same of an E4M3 matrix under its scales, by way of BF16; `scale_inv` as in `amax_fp8`."""
    squares, errors = loaded().measure_error_fp8(source, scale_inv, rows, columns, global_scale, packed, block_scale)
    return float(squares), float(errors)


# ------------------------------------------------------------------------------------------------- pieces


def behind(memory: Memory, offset: int) -> Memory:
    """Return what lies `offset` bytes behind the beginning."""
    if not offset:
        return memory
    return memory + offset if isinstance(memory, int) else memoryview(memory).cast("B")[offset:]


def split(run: Callable[[int, int], T], size: int, whole: int, threads: int, elements: int) -> list[T]:
    """Call `run` on ranges that cover `size`, each beginning at a multiple of `whole`, one in each thread."""
    parts = max(1, min(threads, elements // SHARE, size // whole))
    if parts == 1:
        return [run(0, size)]
    ends = [size * part // parts // whole * whole for part in range(1, parts)]
    ranges = list(zip([0, *ends], [*ends, size], strict=True))
    with ThreadPoolExecutor(parts - 1) as pool:
        others = [pool.submit(run, *one) for one in ranges[1:]]
        return [run(*ranges[0]), *(other.result() for other in others)]


def largest(numbers: list[float]) -> float:
    """Return the largest; NaN counts as larger than every number."""
    return next((number for number in numbers if number != number), max(numbers))  # noqa: PLR0124 - NaN
