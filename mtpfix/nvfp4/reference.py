"""NVFP4 in plain torch: the exact arithmetic of `core.h`, operation by operation, on any device.

It is what the compiled paths are held against, and what runs where there are none. Knows matrices only; knows nothing
of names, experts or files. Works through rows in chunks, so that memory beyond the result stays small.

Source of the rounding: nvidia-modelopt 0.47, modelopt/torch/quantization/qtensor/nvfp4_tensor.py.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mtpfix.nvfp4.format import BLOCK, FP8_BLOCK

CHUNK = 1 << 20
"""Elements worked on at once: a multiple of FP8_BLOCK rows of them is taken where rows are short enough."""

VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the 16 codes of E2M1 mean."""

OFFSETS = (-2, -1, 1, 2, 3, 4, 5)
"""Scale codes that the search tries, relative to the plain one, in this order; only a smaller error replaces."""


def measure(weight: Tensor, scale_inv: Tensor | None = None) -> float:
    """Return the largest magnitude of a matrix; NaN where it holds one.

    `weight` is BF16, FP16 or FP32 [rows, columns], or E4M3 with `scale_inv` [rows / 128, columns / 128], rounded up.
    """
    largest = 0.0
    for chunk in rows_of(weight, scale_inv):
        amax = float(chunk.abs().max())
        if not amax <= largest:
            largest = amax
        if amax != amax:  # noqa: PLR0124 - NaN ends it
            break
    return largest


def pack(
    weight: Tensor, global_scale: float, scale_inv: Tensor | None = None, *, scale_search: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the codes, uint8 [rows, columns / 2], and block scales, float8_e4m3fn [rows, columns / 16], of a matrix.

    `weight` as in `measure`, its numbers finite; `global_scale` is positive.
    """
    rows, columns = weight.shape
    packed = torch.empty((rows, columns // 2), dtype=torch.uint8, device=weight.device)
    scales = torch.empty((rows, columns // BLOCK), dtype=torch.float8_e4m3fn, device=weight.device)
    shared = torch.tensor(global_scale, dtype=torch.float32, device=weight.device)
    begin = 0
    for chunk in rows_of(weight, scale_inv):
        end = begin + len(chunk)
        blocks = chunk.view(-1, BLOCK)
        scale = scale_blocks(blocks.abs().amax(1), shared)
        if scale_search:
            scale = search_scales(blocks.abs() / shared, scale)
        codes = encode(blocks / (scale.float() * shared).unsqueeze(1)).view(end - begin, columns)
        packed[begin:end] = codes[:, 1::2] << 4 | codes[:, 0::2]
        scales[begin:end] = scale.view(end - begin, -1)
        begin = end
    return packed, scales


def unpack(packed: Tensor, block_scale: Tensor, global_scale: float, dtype: torch.dtype) -> Tensor:
    """Return the matrix [rows, columns] that codes and scales stand for, computed in FP32 and rounded to `dtype`."""
    rows, half = packed.shape
    weight = torch.empty((rows, half * 2), dtype=dtype, device=packed.device)
    values = torch.tensor(VALUES, dtype=torch.float32, device=packed.device)
    shared = torch.tensor(global_scale, dtype=torch.float32, device=packed.device)
    step = max(1, CHUNK // max(1, half * 2))
    for begin in range(0, rows, step):
        part = packed[begin : begin + step]
        codes = torch.stack((part & 15, part >> 4), -1).view(len(part), -1, BLOCK)
        steps = block_scale[begin : begin + step].float() * shared
        weight[begin : begin + step] = (values[codes.int()] * steps.unsqueeze(-1)).view(len(part), -1).to(dtype)
    return weight


def measure_error(
    weight: Tensor, packed: Tensor, block_scale: Tensor, global_scale: float, scale_inv: Tensor | None = None
) -> tuple[float, float]:
    """Return two sums over a matrix: of its squares, and of the squares of what codes and scales differ from it."""
    squares, errors, begin = 0.0, 0.0, 0
    for chunk in rows_of(weight, scale_inv):
        end = begin + len(chunk)
        back = unpack(packed[begin:end], block_scale[begin:end], global_scale, torch.float32)
        numbers = chunk.double()
        squares += float(numbers.square().sum())
        errors += float((numbers - back.double()).square().sum())
        begin = end
    return squares, errors


# ------------------------------------------------------------------------------------------------- pieces


def rows_of(weight: Tensor, scale_inv: Tensor | None) -> Iterator[Tensor]:
    """Yield the numbers of a matrix in FP32, some rows at a time; those of an FP8 one rounded to BF16 before."""
    rows, columns = weight.shape
    if not weight.numel():
        return
    step = max(1, CHUNK // columns)
    if scale_inv is None:
        for begin in range(0, rows, step):
            yield weight[begin : begin + step].float().contiguous()
        return
    step = max(FP8_BLOCK, step // FP8_BLOCK * FP8_BLOCK)
    for begin in range(0, rows, step):
        part = weight[begin : begin + step].float()
        scales = scale_inv[begin // FP8_BLOCK : (begin + step) // FP8_BLOCK].float()
        spread = scales.repeat_interleave(FP8_BLOCK, 0)[: len(part)].repeat_interleave(FP8_BLOCK, 1)[:, :columns]
        yield (part * spread).to(torch.bfloat16).float()


def scale_blocks(amax: Tensor, global_scale: Tensor) -> Tensor:
    """Return the E4M3 scales of blocks with these largest magnitudes."""
    scale = amax / (global_scale * 6.0)
    scale[scale == 0] = 1.0
    return scale.clamp(2.0**-9, 448.0).to(torch.float8_e4m3fn)


def round_codes(magnitudes: Tensor) -> Tensor:
    """Return the E2M1 code 0 to 7, as FP32, of numbers >= 0: nearest, ties to even, 6 for everything above 5."""
    halves, ones, twos = (magnitudes * 2).round(), magnitudes.round() + 2, (magnitudes / 2).round() + 4
    return halves.minimum(ones).minimum(twos).clamp(max=7).nan_to_num(7.0)


def encode(numbers: Tensor) -> Tensor:
    """Return the E2M1 codes, uint8: -0.0 becomes 0, a negative number that rounds to 0 becomes 8."""
    return round_codes(numbers.abs()).to(torch.uint8) | (numbers < 0).to(torch.uint8) << 3


def search_scales(magnitudes: Tensor, plain: Tensor) -> Tensor:
    """Return for each block the scale of least squared error among the plain one and its neighbours.

    `magnitudes` are |x| / global scale, [blocks, 16]; of equals the plain one wins, then the lowest.
    """
    codes = plain.view(torch.uint8).int()
    values = torch.tensor(VALUES, dtype=torch.float32, device=plain.device)
    best, least = codes.clone(), block_errors(magnitudes, plain, values)
    for offset in OFFSETS:
        tried = codes + offset
        error = block_errors(magnitudes, tried.clamp(1, 126).to(torch.uint8).view(torch.float8_e4m3fn), values)
        better = (error < least) & (tried >= 1) & (tried <= 126)
        best, least = torch.where(better, tried, best), torch.where(better, error, least)
    return best.to(torch.uint8).view(torch.float8_e4m3fn)


def block_errors(magnitudes: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """Return the squared error of each block under its scale; the sum adds halves onto halves, as core.h does."""
    factor = scale.float().unsqueeze(1)
    rounded = values[round_codes(magnitudes * (1.0 / factor)).int()]
    errors = magnitudes - rounded * factor
    errors = errors * errors
    for half in (8, 4, 2, 1):
        errors = errors[:, :half] + errors[:, half:]
    return errors.squeeze(1)
