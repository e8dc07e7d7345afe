"""The two ways to name and scale the same NVFP4 weight on disk: ModelOpt's and that of compressed-tensors.

Codes and block scales are the same bytes in both. ModelOpt multiplies by `weight_scale_2`, 0-d; compressed-tensors
divides by `weight_global_scale`, [1]. The reciprocal of a binary32 number is rounded, so a weight taken across may
differ by one unit in the last place of its scale, 6e-8 of it.

Source: compressed_tensors/compressors/nvfp4/base.py and quantization/lifecycle/forward_helpers.py (_dequantize),
compressed-tensors 0.20.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from mtpfix.errors import TensorError
from mtpfix.nvfp4.format import FLOAT32_MAX, called, check_global_scale

if TYPE_CHECKING:
    from torch import Tensor

    from mtpfix.nvfp4.tensors import Quantized


def reciprocal(scale: float, name: str | None = None) -> float:
    """Return 1 / scale as a binary32 number: one dialect's global scale from the other's.

    Raises TensorError, naming `name`, where either is not a finite positive binary32 number.
    """
    check_global_scale(scale, name)
    if 1 / scale > FLOAT32_MAX:
        raise TensorError(
            f"the global scale of {called(name)} is {scale!r}, whose reciprocal is no binary32 number",
            "its weights are far below any number that is computed with: keep it in 16 bits, or in ModelOpt's names",
        )
    return float(struct.unpack("f", struct.pack("f", 1 / scale))[0])


def to_compressed_tensors(quantized: Quantized, name: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of one matrix under the names of compressed-tensors, without the module's own.

    `weight_packed` and `weight_scale` are what `quantized` holds, `weight_global_scale` is float32 [1]. Raises
    TensorError for experts in one tensor, which that dialect stores one by one, and as `reciprocal`.
    """
    import torch

    if quantized.packed.ndim != 2:
        raise TensorError(
            f"{called(name)} holds several experts, which compressed-tensors stores one by one",
            "convert each expert: index all three tensors by the expert's number",
        )
    scale = reciprocal(float(quantized.global_scale), name)
    return {
        "weight_packed": quantized.packed,
        "weight_scale": quantized.block_scale,
        "weight_global_scale": torch.tensor([scale], dtype=torch.float32, device=quantized.packed.device),
    }


def from_compressed_tensors(
    weight_packed: Tensor, weight_scale: Tensor, weight_global_scale: float | Tensor, name: str | None = None
) -> Quantized:
    """Return one matrix, stored under the names of compressed-tensors, as ModelOpt scales it.

    Raises TensorError where `weight_global_scale` is not one finite positive number.
    """
    import torch

    from mtpfix.nvfp4.tensors import Quantized, given_scales

    (scale,) = given_scales(weight_global_scale, None, name)
    shared = torch.tensor(reciprocal(scale, name), dtype=torch.float32, device=weight_packed.device)
    return Quantized(weight_packed, weight_scale, shared)
