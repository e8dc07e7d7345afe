"""The quantizers of nvidia-modelopt and compressed-tensors, cut from their published wheels, to run on the CPU.

Wheels are downloaded from PyPI into `MTPFIX_WHEELS`, or a temporary folder; nothing of them is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tests.conformance.wheels import cut

MODELOPT, COMPRESSED_TENSORS = ("nvidia-modelopt", "0.47.0"), ("compressed-tensors", "0.20.0")

Read: TypeAlias = Callable[[Tensor, Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]


@lru_cache(maxsize=4)
def wheel(name: str, version: str) -> Path:
    folder = Path(os.environ.get("MTPFIX_WHEELS") or Path(tempfile.gettempdir()) / "mtpfix-wheels")
    folder.mkdir(parents=True, exist_ok=True)
    pattern = f"{name.replace('-', '_')}-{version}-*.whl"
    if not (found := sorted(folder.glob(pattern))):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        subprocess.run([*command, f"{name}=={version}"], check=True)
        found = sorted(folder.glob(pattern))
    return found[0]


def read(package: tuple[str, str], path: str) -> str:
    with zipfile.ZipFile(wheel(*package)) as archive:
        return archive.read(path).decode()


class Base:
    """Stands for ModelOpt's BaseQuantizedTensor, of which only the constructor matters here."""

    def __init__(self, shape: torch.Size, dtype: torch.dtype, content: Tensor) -> None:
        self.metadata = {"shape": shape, "dtype": dtype}
        self._quantized_data = content


@lru_cache(maxsize=1)
def modelopt() -> Any:
    """Return the class NVFP4QTensor."""
    reductions = ("reduce_amax", "reduce_block_amax", "reduce_block_padding")
    helpers = ("convert_quantization_axis_to_reduce_axis", *reductions)
    core = read(MODELOPT, "modelopt/torch/quantization/utils/core_utils.py")
    found = cut(core, helpers, {"torch": torch, "F": torch.nn.functional})
    limits = cut(
        read(MODELOPT, "modelopt/torch/quantization/utils/numeric_utils.py"), ("E2M1_MAX", "E4M3_MAX"), {"torch": torch}
    )
    text = read(MODELOPT, "modelopt/torch/quantization/qtensor/nvfp4_tensor.py")
    names = ("e2m1_bounds", "e2m1_values", "_cast_per_block_scale_to_fp8", "NVFP4QTensor")
    used = {name: found[name] for name in reductions}
    given = {"torch": torch, "BaseQuantizedTensor": Base, "fp8_max_for_normalization": limits["E4M3_MAX"], **limits}
    return cut(text, names, {**given, **used})["NVFP4QTensor"]


@lru_cache(maxsize=1)
def compressed_tensors_reader() -> Read:
    """Return what turns weight_packed, weight_scale and weight_global_scale into codes and numbers of a dtype."""
    helpers = read(COMPRESSED_TENSORS, "compressed_tensors/compressors/nvfp4/helpers.py")
    forward = read(COMPRESSED_TENSORS, "compressed_tensors/quantization/lifecycle/forward_helpers.py")
    unpack = cut(helpers, ("kE2M1ToFloat", "unpack_fp4_from_uint8"), {"torch": torch})["unpack_fp4_from_uint8"]
    scaled = cut(forward, ("_dequantize",), {"torch": torch})["_dequantize"]

    def read_weight(packed: Tensor, scale: Tensor, shared: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        codes = unpack(packed, packed.shape[0], packed.shape[1] * 2)
        steps = scale.to(codes.dtype).unsqueeze(-1)  # as its decompress does: exact, E4M3 in BF16
        return codes, scaled(codes.view(len(codes), -1, 16), steps, None, dtype, shared).flatten(-2)

    return read_weight


@lru_cache(maxsize=1)
def compressed_tensors_writer() -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return what quantizes a weight on the CPU: its own global scale, rounding and packing, with its scale formula."""
    helpers = read(COMPRESSED_TENSORS, "compressed_tensors/compressors/nvfp4/helpers.py")
    utilities = read(COMPRESSED_TENSORS, "compressed_tensors/quantization/utils/helpers.py")
    rounding = read(COMPRESSED_TENSORS, "compressed_tensors/quantization/utils/fp4_utils.py")
    pack = cut(helpers, ("pack_fp4_to_uint8",), {"torch": torch})["pack_fp4_to_uint8"]
    shared = cut(utilities, ("generate_gparam",), {"torch": torch})["generate_gparam"]
    cast = cut(rounding, ("cast_to_fp4",), {"torch": torch})["cast_to_fp4"]
    largest = [SimpleNamespace(max=448.0), SimpleNamespace(max=6.0)]

    def write_weight(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        blocks = weight.view(len(weight), -1, 16)
        low, high = blocks.amin(-1), blocks.amax(-1)
        divisor = shared(low.amin(), high.amax(), *largest)
        most = torch.maximum(low.abs(), high.abs())
        scale = (divisor * (most / 6.0)).clamp(-448, 448).to(torch.float8_e4m3fn)
        scale = torch.where(scale.float() == 0, torch.tensor(0.125), scale.float())
        scaled = (blocks / (scale / divisor).unsqueeze(-1)).clamp(-6, 6)
        return pack(cast(scaled).flatten(-2)), scale.to(torch.float8_e4m3fn), divisor

    return write_weight
