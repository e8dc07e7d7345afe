"""NVFP4 of torch tensors in main memory, by the compiled library: the same three functions as `reference`.

Knows where a tensor's memory lies and how many threads torch may use; leaves the work to `cpu`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mtpfix.nvfp4 import cpu
from mtpfix.nvfp4.format import BLOCK

DTYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}


def measure(weight: Tensor, scale_inv: Tensor | None = None) -> float:
    """Return the largest magnitude of a matrix; NaN where it holds one. Arguments as in `reference.measure`."""
    weight = weight.contiguous()
    threads = torch.get_num_threads()
    if scale_inv is None:
        return cpu.amax(weight.data_ptr(), DTYPES[weight.dtype], weight.numel(), threads=threads)
    scales = scale_inv.float().contiguous()
    return cpu.amax_fp8(weight.data_ptr(), scales.data_ptr(), *weight.shape, threads=threads)


def pack(
    weight: Tensor, global_scale: float, scale_inv: Tensor | None = None, *, scale_search: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the codes and block scales of a matrix. Arguments and result as in `reference.pack`."""
    weight = weight.contiguous()
    rows, columns = weight.shape
    packed = torch.empty((rows, columns // 2), dtype=torch.uint8)
    block_scale = torch.empty((rows, columns // BLOCK), dtype=torch.float8_e4m3fn)
    targets = packed.data_ptr(), block_scale.data_ptr()
    threads = torch.get_num_threads()
    if not weight.numel():
        return packed, block_scale
    if scale_inv is None:
        dtype = DTYPES[weight.dtype]
        cpu.quantize(
            weight.data_ptr(), dtype, weight.numel(), global_scale, *targets, scale_search=scale_search, threads=threads
        )
    else:
        scales = scale_inv.float().contiguous()
        cpu.quantize_fp8(
            weight.data_ptr(),
            scales.data_ptr(),
            rows,
            columns,
            global_scale,
            *targets,
            scale_search=scale_search,
            threads=threads,
        )
    return packed, block_scale


def unpack(packed: Tensor, block_scale: Tensor, global_scale: float, dtype: torch.dtype) -> Tensor:
    """Return the matrix that codes and scales stand for. Arguments as in `reference.unpack`."""
    packed, block_scale = packed.contiguous(), block_scale.contiguous()
    weight = torch.empty((packed.shape[0], packed.shape[1] * 2), dtype=dtype)
    if weight.numel():
        cpu.dequantize(
            packed.data_ptr(),
            block_scale.data_ptr(),
            DTYPES[dtype],
            weight.numel(),
            global_scale,
            weight.data_ptr(),
            threads=torch.get_num_threads(),
        )
    return weight


def measure_error(
    weight: Tensor, packed: Tensor, block_scale: Tensor, global_scale: float, scale_inv: Tensor | None = None
) -> tuple[float, float]:
    """Return the sums of squares of a matrix and of its errors. Arguments as in `reference.measure_error`."""
    weight, packed, block_scale = weight.contiguous(), packed.contiguous(), block_scale.contiguous()
    if not weight.numel():
        return 0.0, 0.0
    stored = global_scale, packed.data_ptr(), block_scale.data_ptr()
    if scale_inv is None:
        return cpu.measure_error(weight.data_ptr(), DTYPES[weight.dtype], weight.numel(), *stored)
    scales = scale_inv.float().contiguous()
    rows, columns = weight.shape
    return cpu.measure_error_fp8(weight.data_ptr(), scales.data_ptr(), rows, columns, *stored)
