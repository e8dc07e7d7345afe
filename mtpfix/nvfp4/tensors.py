"""Whole tensors to NVFP4 and back: what is accepted, what is shared, and which path computes.

Knows shapes, dtypes, refusals, experts and groups. Leaves every number to a path, which `paths` chooses: `reference`
is one, and the others have the same functions `measure`, `pack`, `unpack` and `measure_error`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mtpfix.errors import TensorError, UsageError
from mtpfix.nvfp4 import reference
from mtpfix.nvfp4.format import (
    BLOCK,
    FP8_BLOCK,
    called,
    check_global_scale,
    check_shape,
    refuse_numbers,
    scale_of,
)
from mtpfix.nvfp4.paths import path_for

PLAIN = (torch.bfloat16, torch.float16, torch.float32)


class Quantized(NamedTuple):
    """One tensor in NVFP4, as ModelOpt stores it.

    `packed` is uint8 [..., rows, columns / 2], the even column in the low nibble (`weight`); `block_scale`
    float8_e4m3fn [..., rows, columns / 16], row by row (`weight_scale`); `global_scale` float32 [], for experts
    [experts] (`weight_scale_2`). A weight is code * block scale * global scale.
    """

    packed: Tensor
    block_scale: Tensor
    global_scale: Tensor


class Path(Protocol):
    """What computes: a module whose functions take matrices on one kind of device."""

    def measure(self, weight: Tensor, scale_inv: Tensor | None = None) -> float:
        """Return the largest magnitude; NaN or infinity where the matrix holds one."""

    def pack(
        self, weight: Tensor, global_scale: float, scale_inv: Tensor | None = None, *, scale_search: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return codes and block scales."""

    def unpack(self, packed: Tensor, block_scale: Tensor, global_scale: float, dtype: torch.dtype) -> Tensor:
        """Return the matrix that codes and scales stand for."""

    def measure_error(
        self,
        weight: Tensor,
        packed: Tensor,
        block_scale: Tensor,
        global_scale: float,
        scale_inv: Tensor | None = None,
    ) -> tuple[float, float]:
        """Return the sum of a matrix's squares, and that of the squares of its errors."""


def quantize(
    weight: Tensor,
    *,
    global_scale: float | Tensor | None = None,
    scale_search: bool = False,
    device: torch.device | str | None = None,
    scale_inv: Tensor | None = None,
    name: str | None = None,
) -> Quantized:
    """Quantize a weight to NVFP4 exactly as ModelOpt does on a CPU.

    `weight` is BF16, FP16 or FP32, [rows, columns] or [experts, rows, columns] with columns a multiple of 16, or E4M3
    with `scale_inv` ([..., rows / 128, columns / 128], rounded up: `weight_scale_inv`), which is converted by way of
    BF16. `global_scale` is amax / 2688 unless given, one for each expert. `scale_search` chooses each block's scale by
    its squared error instead. `device` is where it is computed and where the result lies (default: the weight's).

    Raises TensorError, naming `name`, for other shapes and dtypes and for numbers that are not finite; UsageError for a
    device that cannot be used.
    """
    (quantized,) = convert([weight], [scale_inv], [name], global_scale, device, scale_search=scale_search)
    return quantized


def quantize_group(
    weights: Sequence[Tensor],
    *,
    scale_search: bool = False,
    device: torch.device | str | None = None,
    scale_invs: Sequence[Tensor | None] | None = None,
    names: Sequence[str] | None = None,
) -> list[Quantized]:
    """Quantize matrices that an engine fuses (q, k and v; gate and up) with one global scale, that of their largest.

    Arguments as in `quantize`, one for each weight; experts [experts, ...] share expert by expert. Raises TensorError.
    """
    invs = list(scale_invs) if scale_invs is not None else [None] * len(weights)
    said = list(names) if names is not None else [None] * len(weights)
    if not len(weights) == len(invs) == len(said):
        raise TensorError(
            f"{len(weights)} weights come with {len(invs)} scales and {len(said)} names",
            "give one of each for each weight",
        )
    if len({tuple(weight.shape[:-2]) for weight in weights}) > 1:
        raise TensorError("the weights of one group differ in their number of experts", "group them as they are fused")
    return convert(weights, invs, said, None, device, scale_search=scale_search)


def dequantize(
    packed: Tensor,
    block_scale: Tensor,
    global_scale: float | Tensor,
    dtype: torch.dtype = torch.bfloat16,
    *,
    name: str | None = None,
) -> Tensor:
    """Return the weight [..., rows, columns] that stored codes and scales stand for, rounded to `dtype`.

    Arguments as `Quantized` holds them; `dtype` is BF16, FP16 or FP32. The product of the scales is rounded to FP32,
    then that with the code, as ModelOpt computes. Raises TensorError for shapes and dtypes that do not belong together.
    """
    check_stored(packed, block_scale, dtype, name)
    path = path_for(packed.device.type)
    if packed.ndim == 2:
        (scale,) = given_scales(global_scale, None, name)
        return path.unpack(packed, block_scale, scale, dtype)
    scales = given_scales(global_scale, len(packed), name)
    experts, rows, half = packed.shape
    weight = torch.empty((experts, rows, half * 2), dtype=dtype, device=packed.device)
    for expert, scale in enumerate(scales):
        weight[expert] = path.unpack(packed[expert], block_scale[expert], scale, dtype)
    return weight


def weight_error(
    weight: Tensor, quantized: Quantized, *, scale_inv: Tensor | None = None, name: str | None = None
) -> float:
    """Return how far a quantized weight is from its source: the squared error relative to the sum of squares.

    `weight` as in `quantize`, and of the shape that `quantized` was made of; 0 for a weight of zeros. Raises
    TensorError for shapes that differ.
    """
    check_weight(weight, scale_inv, name)
    check_stored(quantized.packed, quantized.block_scale, torch.float32, name)
    if tuple(weight.shape) != (*quantized.packed.shape[:-1], quantized.packed.shape[-1] * 2):
        raise TensorError(
            f"{called(name)} has shape {tuple(weight.shape)} and codes of shape {tuple(quantized.packed.shape)}",
            "give the weight that was quantized",
        )
    path, flat = path_for(weight.device.type), weight.ndim == 2
    scales = given_scales(quantized.global_scale, None if flat else len(weight), name)
    squares = errors = 0.0
    for at, (matrix, table) in enumerate(split_experts(weight.detach(), scale_inv)):
        packed, block_scale = (part if flat else part[at] for part in quantized[:2])
        found = path.measure_error(matrix, packed, block_scale, scales[at], table)
        squares, errors = squares + found[0], errors + found[1]
    return errors / squares if squares else 0.0


# ------------------------------------------------------------------------------------------------- pieces


def convert(
    weights: Sequence[Tensor],
    scale_invs: Sequence[Tensor | None],
    names: Sequence[str | None],
    given: float | Tensor | None,
    device: torch.device | str | None,
    *,
    scale_search: bool,
) -> list[Quantized]:
    """Quantize weights that share global scales: first measure all of them, then write each."""
    for weight, scale_inv, name in zip(weights, scale_invs, names, strict=True):
        check_weight(weight, scale_inv, name)
    places = [weight.device for weight in weights] if device is None else [usable(device)] * len(weights)
    matrices = [
        split_experts(weight.detach().to(place), None if scale_inv is None else scale_inv.detach().to(place))
        for weight, scale_inv, place in zip(weights, scale_invs, places, strict=True)
    ]
    largest: list[float] = []
    for ones, weight, name, place in zip(matrices, weights, names, places, strict=True):
        amaxes = [
            measure_finite(
                path_for(place.type), *one, f"{name or 'of the experts'}[{at}]" if weight.ndim == 3 else name
            )
            for at, one in enumerate(ones)
        ]
        largest = [max(pair) for pair in zip(largest or amaxes, amaxes, strict=True)]
    scales = [scale_of(amax) for amax in largest]
    if given is not None:
        scales = given_scales(given, len(weights[0]) if weights[0].ndim == 3 else None, names[0])
    return [
        write(ones, scales, weight.shape, place, scale_search=scale_search)
        for ones, weight, place in zip(matrices, weights, places, strict=True)
    ]


def usable(device: torch.device | str) -> torch.device:
    """Return the device of that name. Raises UsageError where there is none here."""
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        why = str(error).partition("\n")[0]
        raise UsageError(
            f"the device {device} cannot be used: {why}", "leave it out: the bytes are the same on the CPU"
        ) from None
    return place


def write(
    matrices: Sequence[tuple[Tensor, Tensor | None]],
    scales: Sequence[float],
    shape: torch.Size,
    device: torch.device,
    *,
    scale_search: bool,
) -> Quantized:
    """Return the codes and scales of a matrix, or of all experts in one tensor each."""
    path = path_for(device.type)
    if len(shape) == 2:
        ((matrix, scale_inv),) = matrices
        packed, block_scale = path.pack(matrix, scales[0], scale_inv, scale_search=scale_search)
        return Quantized(packed, block_scale, torch.tensor(scales[0], dtype=torch.float32, device=device))
    experts, rows, columns = shape
    whole = Quantized(
        torch.empty((experts, rows, columns // 2), dtype=torch.uint8, device=device),
        torch.empty((experts, rows, columns // BLOCK), dtype=torch.float8_e4m3fn, device=device),
        torch.tensor(scales, dtype=torch.float32, device=device),
    )
    for expert, (matrix, scale_inv) in enumerate(matrices):
        whole.packed[expert], whole.block_scale[expert] = path.pack(
            matrix, scales[expert], scale_inv, scale_search=scale_search
        )
    return whole


def split_experts(weight: Tensor, scale_inv: Tensor | None) -> list[tuple[Tensor, Tensor | None]]:
    """Return the matrices of a weight, each with its scales."""
    if weight.ndim == 2:
        return [(weight, scale_inv)]
    return [(matrix, None if scale_inv is None else scale_inv[at]) for at, matrix in enumerate(weight)]


def given_scales(value: float | Tensor, experts: int | None, name: str | None) -> list[float]:
    """Return given global scales as numbers, one for each expert (one alone for a matrix), or raise TensorError."""
    numbers = torch.as_tensor(value, dtype=torch.float32).detach().flatten().tolist()
    wanted = 1 if experts is None else experts
    if len(numbers) == 1:
        numbers = numbers * wanted
    if len(numbers) != wanted:
        raise TensorError(
            f"{len(numbers)} global scales are given for {called(name)}, which needs {wanted}",
            "give one number for a matrix, and one or one for each expert for experts",
        )
    for number in numbers:
        check_global_scale(number, name)
    return numbers


def measure_finite(path: Path, weight: Tensor, scale_inv: Tensor | None, name: str | None) -> float:
    """Return the largest magnitude of a matrix, or raise TensorError saying where it is not finite."""
    amax = path.measure(weight, scale_inv)
    if math.isfinite(amax):
        return amax
    count, first, value, row = 0, None, math.nan, 0
    for chunk in reference.rows_of(weight, scale_inv):
        places = (~chunk.isfinite()).nonzero()
        if len(places) and first is None:
            first = (row + int(places[0, 0]), int(places[0, 1]))
            value = float(chunk[int(places[0, 0]), int(places[0, 1])])
        count += len(places)
        row += len(chunk)
    raise refuse_numbers(name, count, first or (), value)


def check_weight(weight: Tensor, scale_inv: Tensor | None, name: str | None) -> None:
    """Raise TensorError unless dtype, shape and scales of a weight are what can be quantized."""
    dtype = str(weight.dtype).removeprefix("torch.")
    if weight.dtype not in (*PLAIN, torch.float8_e4m3fn):
        raise TensorError(
            f"{called(name)} is {dtype}, which is not quantized to NVFP4",
            "give BF16, FP16 or FP32, or float8_e4m3fn with its weight_scale_inv",
        )
    check_shape(tuple(weight.shape), name)
    if (weight.dtype == torch.float8_e4m3fn) != (scale_inv is not None):
        raise TensorError(
            f"{called(name)} is {dtype} and comes {'with' if scale_inv is not None else 'without'} weight_scale_inv",
            "an FP8 tensor is converted with its block scales, any other without",
        )
    if scale_inv is not None:
        *front, rows, columns = weight.shape
        wanted = (*front, -(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
        if tuple(scale_inv.shape) != wanted:
            raise TensorError(
                f"weight_scale_inv of {called(name)} has shape {tuple(scale_inv.shape)}, not {wanted}",
                f"one scale for each {FP8_BLOCK} x {FP8_BLOCK} block is understood",
            )


def check_stored(packed: Tensor, block_scale: Tensor, dtype: torch.dtype, name: str | None) -> None:
    """Raise TensorError unless codes, scales and the wanted dtype belong together."""
    if packed.dtype != torch.uint8 or block_scale.dtype != torch.float8_e4m3fn or dtype not in PLAIN:
        raise TensorError(
            f"{called(name)} has codes in {packed.dtype}, scales in {block_scale.dtype}, and {dtype} is asked for",
            "codes are uint8, scales float8_e4m3fn, and the result BF16, FP16 or FP32",
        )
    check_shape((*packed.shape[:-1], packed.shape[-1] * 2) if packed.ndim else (), name)
    if tuple(block_scale.shape) != (*packed.shape[:-1], packed.shape[-1] * 2 // BLOCK):
        raise TensorError(
            f"{called(name)} has codes of shape {tuple(packed.shape)} and scales of shape {tuple(block_scale.shape)}",
            "there is one scale for each 8 bytes of codes",
        )
