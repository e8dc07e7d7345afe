"""The numbers of tensors that a repair makes: plain weights out of quantized ones, and scales that are shared.

The one module here that computes with torch; NVFP4 is made by `packing`. Gets bytes and gives bytes; knows formats,
and nothing of files and engines. Computes in float32 and rounds once, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mtpfix.checkpoint.conventions import in_modelopt_names
from mtpfix.checkpoint.names import CACHE_SCALES
from mtpfix.errors import FormatError
from mtpfix.fix.holding import Held
from mtpfix.model import Format
from mtpfix.nvfp4 import dequantize as nvfp4_weight

DTYPES = {
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.uint8,  # exponents, read as such
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
}
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
BLOCK = 128  # rows and columns that share a scale in FP8 blocks
E4M3_MAX = 448.0
E4M3_MIN = 2.0**-9


def loaded(held: Held) -> Tensor:
    """Return a tensor with its bytes read."""
    if held.dtype not in DTYPES:
        raise FormatError(f"{held.name} is {held.dtype}, which is not converted here")
    data = held.bytes()
    if not data:
        return torch.empty(held.shape, dtype=DTYPES[held.dtype])
    return torch.frombuffer(data, dtype=DTYPES[held.dtype]).reshape(held.shape)


def raw(tensor: Tensor) -> bytes:
    """Return a tensor's bytes, little-endian and row-major."""
    return bytes(tensor.contiguous().flatten().view(torch.uint8).numpy().data) if tensor.numel() else b""


# ------------------------------------------------------------------------------------------------------ to BF16


def plain_rows(parts: Mapping[str, Held], stored: Format, shape: tuple[int, ...]) -> Iterator[bytes]:
    """Yield the bytes of a module's weight in BF16; `parts` are its tensors by suffix, `shape` is logical.

    Stacked experts are computed one after another. Raises FormatError for a format that cannot be read here.
    """
    known = {suffix.removeprefix("_"): held for suffix, held in parts.items() if suffix not in CACHE_SCALES}
    tensors = {suffix: loaded(held) for suffix, held in in_modelopt_names(known).items()}
    name = next(iter(parts.values())).name
    if len(shape) > 2:
        count = math.prod(shape[:-2])
        for index in range(count):
            one = {suffix: _slice(tensor, index, count) for suffix, tensor in tensors.items()}
            yield raw(plain(one, stored, shape[-2:], name))
    else:
        yield raw(plain(tensors, stored, shape, name))


def _slice(tensor: Tensor, index: int, count: int) -> Tensor:
    """Return what belongs to one of `count` stacked experts; a scale of one number belongs to all."""
    return tensor.reshape(count, *tensor.shape[1:])[index] if tensor.ndim and tensor.shape[0] == count else tensor


def plain(parts: Mapping[str, Tensor], stored: Format, shape: tuple[int, ...], name: str) -> Tensor:
    """Return the matrix that quantized tensors, by suffix, stand for, in BF16."""
    match stored:
        case Format.NVFP4 | Format.NVFP4_A16:
            packed = parts["weight_packed"] if "weight_packed" in parts else parts.get("weight", parts.get(""))
            if packed is None:
                raise FormatError(f"{name} has no packed weight")
            if "weight_global_scale" in parts:
                scale = 1 / parts["weight_global_scale"].float().flatten()[0]
            else:
                scale = parts["weight_scale_2"].float().flatten()[0]
            return nvfp4_weight(packed.view(torch.uint8), parts["weight_scale"], scale, name=name)
        case Format.MXFP4:
            return _mxfp4(parts, shape)
        case Format.FP8 | Format.FP8_CHANNEL | Format.FP8_BLOCK | Format.MXFP8:
            weight = (parts["weight"] if "weight" in parts else parts[""]).float()
            return (weight * _fp8_scale(parts, stored, shape)).to(torch.bfloat16)
        case _:
            raise FormatError(f"{name} is stored as {stored.value}, which is not made plain here")


def _fp8_scale(parts: Mapping[str, Tensor], stored: Format, shape: tuple[int, ...]) -> Tensor:
    found = next(parts[suffix] for suffix in ("weight_scale", "weight_scale_inv", "scale") if suffix in parts)
    scale = _exponents(found) if found.dtype is torch.uint8 else found.float()
    rows, columns = shape
    match stored:
        case Format.FP8_CHANNEL:
            return scale.reshape(rows, 1)
        case Format.FP8_BLOCK:
            blocks = scale.reshape(-(-rows // BLOCK), -(-columns // BLOCK))
            return blocks.repeat_interleave(BLOCK, 0)[:rows].repeat_interleave(BLOCK, 1)[:, :columns]
        case Format.MXFP8:
            return scale.reshape(rows, -1).repeat_interleave(32, 1)[:, :columns]
        case _:
            return scale.flatten()[0]


def _exponents(scale: Tensor) -> Tensor:
    """Return the powers of two that E8M0 bytes stand for."""
    return torch.ldexp(torch.ones(scale.shape), scale.to(torch.int32) - 127)


def _mxfp4(parts: Mapping[str, Tensor], shape: tuple[int, ...]) -> Tensor:
    packed = next(parts[suffix] for suffix in ("blocks", "weight_packed", "weight", "") if suffix in parts)
    scales = next(parts[suffix] for suffix in ("scales", "weight_scale", "scale") if suffix in parts)
    rows, columns = shape
    codes = packed.view(torch.uint8).reshape(rows, columns // 2).to(torch.int64)
    values = torch.stack((E2M1[codes & 15], E2M1[codes >> 4]), -1).reshape(rows, columns)
    exponents = _exponents(scales.view(torch.uint8)).reshape(rows, -1)
    return (values * exponents.repeat_interleave(32, 1)[:, :columns]).to(torch.bfloat16)


# ---------------------------------------------------------------------------------------------------- shared scale


def shared_global(parts: Sequence[Held], *, reciprocal: bool) -> Iterator[bytes]:
    """Yield the global scale for fused modules, one for each stacked expert: the largest of theirs."""
    shared = _shared(parts)
    yield raw((1 / shared if reciprocal else shared).float())


def rescaled(block_scale: Held, own: Held, shared: Sequence[Held]) -> Iterator[bytes]:
    """Yield block scales as they are under the shared global scale, each rounded to the nearest that E4M3 has."""
    factor = (_globals(own) / _shared(shared)).float()
    scales = loaded(block_scale).float()
    scales = (scales * factor.reshape(-1, *[1] * (scales.ndim - 1))).clamp(max=E4M3_MAX)
    floor = torch.where(scales > 0, scales.clamp(min=E4M3_MIN), scales)
    yield raw(floor.to(torch.float8_e4m3fn))


def _shared(parts: Sequence[Held]) -> Tensor:
    return torch.stack([_globals(held) for held in parts]).amax(0)


def _globals(held: Held) -> Tensor:
    """Return global scales in ModelOpt's sense, in one dimension."""
    values = loaded(held).double().flatten()
    return 1 / values if held.name.endswith("weight_global_scale") else values
