"""Room for one piece of a tensor and its results, and what computes there: the CPU library, or torch without it.

Knows one piece at a time. Which pieces there are, files and threads are `stream`'s; a device's room is in `cuda`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from mtpfix.nvfp4 import cpu
from mtpfix.nvfp4.format import BLOCK, FP8_BLOCK, require_torch

if TYPE_CHECKING:
    import torch


class Workspace(Protocol):
    """Buffers for one piece. A piece of an FP8 weight is whole rows, whose first is a multiple of 128.

    `scales_of_fp8` of the methods is `weight_scale_inv` for these rows, F32, or None for plain weights.
    """

    def source(self, size: int) -> memoryview:
        """Return where so many bytes of the source are to be put."""

    def measure(self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None) -> float:
        """Return the largest magnitude of `count` numbers; NaN or infinity where there is one."""

    def quantize(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None, scale: float, *, search: bool
    ) -> None:
        """Turn `count` numbers into codes and block scales under a global scale."""

    def codes(self, count: int) -> memoryview:
        """Return the codes of `count` numbers: of those just quantized, or where those to dequantize are to be put."""

    def scales(self, count: int) -> memoryview:
        """Return the block scales of `count` numbers, as `codes`."""

    def measure_error(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None, scale: float
    ) -> tuple[float, float]:
        """Return the sum of squares of what was just quantized, and that of its errors."""

    def dequantize(self, dtype: str, count: int, scale: float) -> memoryview:
        """Return the bytes of `count` numbers that codes and block scales stand for under a global scale."""


class Buffers:
    """The room itself, for at most `count` numbers of `width` bytes."""

    def __init__(self, count: int, width: int) -> None:
        self._source = memoryview(bytearray(count * width))
        self._codes = memoryview(bytearray(count // 2))
        self._scales = memoryview(bytearray(count // BLOCK))

    def source(self, size: int) -> memoryview:
        """Return where so many bytes of the source are to be put."""
        return self._source[:size]

    def codes(self, count: int) -> memoryview:
        """Return the room for the codes of `count` numbers."""
        return self._codes[: count // 2]

    def scales(self, count: int) -> memoryview:
        """Return the room for the block scales of `count` numbers."""
        return self._scales[: count // BLOCK]


class NativeWorkspace(Buffers):
    """Computes with the CPU library, which lets go of the interpreter meanwhile."""

    def measure(self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None) -> float:
        """Return the largest magnitude."""
        if scales_of_fp8 is None:
            return cpu.amax(self._source, dtype, count)
        return cpu.amax_fp8(self._source, scales_of_fp8, count // columns, columns)

    def quantize(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None, scale: float, *, search: bool
    ) -> None:
        """Fill codes and block scales."""
        if scales_of_fp8 is None:
            cpu.quantize(self._source, dtype, count, scale, self._codes, self._scales, scale_search=search)
        else:
            cpu.quantize_fp8(
                *(self._source, scales_of_fp8, count // columns, columns),
                *(scale, self._codes, self._scales),
                scale_search=search,
            )

    def measure_error(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None, scale: float
    ) -> tuple[float, float]:
        """Return the sums of squares."""
        if scales_of_fp8 is None:
            return cpu.measure_error(self._source, dtype, count, scale, self._codes, self._scales)
        shape = count // columns, columns
        return cpu.measure_error_fp8(self._source, scales_of_fp8, *shape, scale, self._codes, self._scales)

    def dequantize(self, dtype: str, count: int, scale: float) -> memoryview:
        """Return the numbers' bytes."""
        target = self._source[: count * (4 if dtype == "F32" else 2)]
        cpu.dequantize(self._codes, self._scales, dtype, count, scale, target)
        return target


class EagerWorkspace(Buffers):
    """Computes with plain torch: exact, and slow."""

    def measure(self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None) -> float:
        """Return the largest magnitude."""
        from mtpfix.nvfp4 import reference

        return reference.measure(*self._weight(dtype, count, columns, scales_of_fp8))

    def quantize(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None, scale: float, *, search: bool
    ) -> None:
        """Fill codes and block scales."""
        import torch

        from mtpfix.nvfp4 import reference

        weight, table = self._weight(dtype, count, columns, scales_of_fp8)
        packed, scales = reference.pack(weight, scale, table, scale_search=search)
        torch.frombuffer(self._codes, dtype=torch.uint8, count=count // 2).copy_(packed.flatten())
        target = torch.frombuffer(self._scales, dtype=torch.uint8, count=count // BLOCK)
        target.copy_(scales.view(torch.uint8).flatten())

    def measure_error(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None, scale: float
    ) -> tuple[float, float]:
        """Return the sums of squares."""
        import torch

        from mtpfix.nvfp4 import reference

        weight, table = self._weight(dtype, count, columns, scales_of_fp8)
        packed = torch.frombuffer(self._codes, dtype=torch.uint8, count=count // 2).view(len(weight), -1)
        scales = torch.frombuffer(self._scales, dtype=torch.float8_e4m3fn, count=count // BLOCK).view(len(weight), -1)
        return reference.measure_error(weight, packed, scales, scale, table)

    def _weight(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        import torch

        if scales_of_fp8 is None:
            return torch.frombuffer(self._source, dtype=_dtypes()[dtype], count=count).view(-1, BLOCK), None
        weight = torch.frombuffer(self._source, dtype=torch.float8_e4m3fn, count=count).view(-1, columns)
        return weight, torch.frombuffer(scales_of_fp8, dtype=torch.float32).view(-1, -(-columns // FP8_BLOCK))

    def dequantize(self, dtype: str, count: int, scale: float) -> memoryview:
        """Return the numbers' bytes."""
        import torch

        from mtpfix.nvfp4 import reference

        codes = torch.frombuffer(self._codes, dtype=torch.uint8, count=count // 2).view(-1, BLOCK // 2)
        scales = torch.frombuffer(self._scales, dtype=torch.float8_e4m3fn, count=count // BLOCK).view(-1, 1)
        numbers = reference.unpack(codes, scales, scale, _dtypes()[dtype]).flatten()
        torch.frombuffer(self._source, dtype=numbers.dtype, count=count).copy_(numbers)
        return self._source[: count * numbers.dtype.itemsize]


def open_workspace() -> Callable[[int, int], Workspace]:
    """Return what makes a workspace for `count` numbers of `width` bytes on this machine's CPU."""
    if cpu.available():
        return NativeWorkspace
    require_torch()
    return EagerWorkspace


def _dtypes() -> dict[str, torch.dtype]:
    import torch

    return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}
