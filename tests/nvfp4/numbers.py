"""Numbers that find differences between two implementations: random ones, every pattern, ties and their neighbours."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BOUNDS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
"""Where the rounding to E2M1 changes."""


def finite(numbers: Tensor, dtype: torch.dtype, columns: int = 256) -> Tensor:
    """Return the numbers in rows of a dtype; what is not finite there is 0, and the last, broken row is dropped."""
    numbers = numbers.flatten().to(dtype)
    numbers = torch.where(numbers.isfinite(), numbers, torch.zeros_like(numbers))
    return numbers[: len(numbers) // columns * columns].view(-1, columns)


def gaussian(count: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers."""
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def heavy_tailed(count: int, seed: int = 0) -> Tensor:
    """Return numbers of Student's t distribution with 4 degrees of freedom, in rows of differing size."""
    generator = torch.Generator().manual_seed(seed)
    chi = torch.randn(4, count, generator=generator).square().sum(0)
    rows = torch.randn(-(-count // 4096), generator=generator).exp().repeat_interleave(4096)[:count]
    return torch.randn(count, generator=generator) / (chi / 4).sqrt() * rows


def patterns(dtype: torch.dtype) -> Tensor:
    """Return all 65,536 numbers of a 16-bit dtype, in blocks that mix sizes and in blocks of one size."""
    every = torch.arange(1 << 16).to(torch.uint16).view(dtype if dtype != torch.float32 else torch.bfloat16)
    mixed = every[torch.randperm(1 << 16, generator=torch.Generator().manual_seed(1))]
    return torch.cat((every, mixed))


def any_bits(count: int, seed: int = 0) -> Tensor:
    """Return binary32 numbers of random bits: all sizes, subnormal ones among them."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(1 << 31), (1 << 31) - 1, (count,), generator=generator).to(torch.int32).view(torch.float32)


def ties(dtype: torch.dtype) -> Tensor:
    """Return blocks of amax 6 * scale that hold the products of scale and bounds and their neighbours."""
    whole = torch.int16 if dtype.itemsize == 2 else torch.int32
    bounds = torch.tensor(BOUNDS)
    blocks = []
    for exponent in range(-12, 5):
        for mantissa in range(8):
            scale = (1 + mantissa / 8) * 2.0**exponent
            near = (bounds * scale).to(dtype)
            for step in (-1, 0, 1):
                shifted = (near.view(whole) + step).view(dtype)
                blocks.append(torch.cat((shifted, -shifted, torch.tensor([6 * scale, -0.0]).to(dtype))))
    blocks.append(torch.full((16,), 6.0 * 448).to(dtype))  # makes the global scale 1 where it can be expressed
    return torch.cat(blocks)


def scale_ties(dtype: torch.dtype) -> Tensor:
    """Return blocks whose scales lie on ties between two E4M3 numbers, and beside them."""
    blocks = [torch.full((16,), 2688.0)]
    for exponent in range(-9, 9):
        for half in range(17, 32, 2):
            amax = 6 * half / 16 * 2.0**exponent
            blocks += [torch.full((16,), amax * (1 + shift)) for shift in (-1e-3, 0.0, 1e-3)]
    return torch.cat(blocks).to(dtype)


def adversarial(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Yield matrices of a dtype, each with its name."""
    for exponent in (-140, -126, -100, -60, -24, -9, 0, 9, 15, 60, 100, 120, 127):
        scaled = finite(gaussian(1024, seed=exponent) * 2.0 ** (exponent / 2) * 2.0 ** (exponent / 2), dtype)
        yield f"gaussian * 2^{exponent}", scaled
        one = scaled.clone()
        one[0, :16] = finite(torch.full((256,), 2.0 ** min(exponent + 20, 126)), dtype)[0, :16]
        yield f"gaussian * 2^{exponent} beside a larger block", one
    yield "all patterns", finite(patterns(dtype), dtype)
    yield "all patterns of ordinary size", finite(patterns(dtype).float().clamp(-4, 4), dtype)
    yield "random bits", finite(any_bits(1 << 16), dtype)
    yield "random bits of ordinary size", finite(any_bits(1 << 16).clamp(-1, 1), dtype)
    yield "ties", finite(ties(dtype), dtype, 16)
    yield "ties between scales", finite(scale_ties(dtype), dtype, 16)
    yield "zeros of both signs", finite(torch.tensor([0.0, -0.0, 1e-30, -1e-30] * 64), dtype)
