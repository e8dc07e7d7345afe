"""NVFP4 as ModelOpt stores it: the numbers of the format, and what a tensor must be to be written in it.

Knows sizes, limits and refusals. Computes no scale and no code, and imports no torch.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from importlib.util import find_spec

from mtpfix.errors import MtpfixError, TensorError

BLOCK = 16
"""Columns that share one E4M3 scale."""

FP8_BLOCK = 128
"""Rows, and columns, of an FP8 tensor that share one `weight_scale_inv`."""

RANGE = 2688.0
"""6 * 448, the largest E2M1 times the largest E4M3 number: what a global scale of 1 can express."""

ZERO_GLOBAL = 2.0**-24
"""The global scale of a tensor of zeros: positive, and below that of any real weight, so a maximum ignores it."""

LEAST_GLOBAL = 2.0**-149
"""The least positive binary32 number: the global scale where amax / RANGE vanishes."""

FLOAT32_MAX = 3.4028234663852886e38


@dataclass(frozen=True, slots=True)
class WeightError:
    """Sums over a weight: of its numbers' squares, and of their squared errors with plain scales and those chosen."""

    squares: float = 0.0
    plain: float = 0.0
    chosen: float = 0.0

    def __add__(self, other: WeightError) -> WeightError:
        """Return the sums over both weights."""
        return WeightError(self.squares + other.squares, self.plain + other.plain, self.chosen + other.chosen)

    @property
    def relative(self) -> tuple[float, float]:
        """Return both errors relative to the squares, as `nvfp4.weight_error` does."""
        return (self.plain / self.squares, self.chosen / self.squares) if self.squares else (0.0, 0.0)


def require_torch() -> None:
    """Raise MtpfixError where torch is not installed, saying how to get it."""
    if find_spec("torch") is None:
        raise MtpfixError(
            "converting tensors needs PyTorch, which is not installed",
            "install it with: pip install 'mtpfix[quantize]'",
        )


def called(name: str | None) -> str:
    """Return how a message calls a tensor."""
    return f"tensor {name}" if name else "the tensor"


def check_shape(shape: tuple[int, ...], name: str | None = None) -> None:
    """Raise TensorError unless this logical shape can be quantized: [..., rows, columns], columns in whole blocks."""
    text = " x ".join(map(str, shape)) or "0-d"
    if len(shape) not in (2, 3):
        raise TensorError(
            f"{called(name)} has shape {text}: NVFP4 stores matrices [rows, columns], or [experts, rows, columns]",
            "keep it in 16 bits; biases, norms and scalars are never quantized",
        )
    if shape[-1] % BLOCK:
        raise TensorError(
            f"{called(name)} has {shape[-1]} columns, which is not a multiple of {BLOCK}",
            "keep this tensor in 16 bits: padding it would change the shape that engines expect",
        )


def check_global_scale(value: float, name: str | None = None) -> None:
    """Raise TensorError unless a given global scale is a finite positive binary32 number."""
    if not (math.isfinite(value) and LEAST_GLOBAL <= value <= FLOAT32_MAX):
        raise TensorError(
            f"the global scale given for {called(name)} is {value!r}, not a finite positive number",
            "leave it out, or give amax / 2688 of the tensors that share it",
        )


def scale_of(amax: float) -> float:
    """Return the global scale for a finite largest magnitude, as a binary32 number; positive even where amax is 0."""
    if amax == 0:
        return ZERO_GLOBAL
    # dividing in binary64 first is harmless: a quotient of two 24-bit numbers is never that close to a tie
    (scale,) = struct.unpack("f", struct.pack("f", amax / RANGE))
    return max(float(scale), LEAST_GLOBAL)


def refuse_numbers(name: str | None, count: int, place: tuple[int, ...], value: float) -> TensorError:
    """Return the error for NaN and infinities: how many there are, and the first one's place and value."""
    where = "[" + ", ".join(map(str, place)) + "]"
    what = "number that is" if count == 1 else "numbers that are"
    return TensorError(
        f"{called(name)} holds {count} {what} not finite; the first, at {where}, is {value!r}",
        "NVFP4 can express neither NaN nor infinity: repair the source weight, or keep this tensor as it is",
    )
