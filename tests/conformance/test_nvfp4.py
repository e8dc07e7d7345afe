"""NVFP4 against the code of nvidia-modelopt and compressed-tensors, cut from their published wheels and run on the CPU.

At least 16 million numbers of each dtype and distribution, and the adversarial ones, must give the same bytes;
`MTPFIX_NVFP4_MILLIONS` asks for more or fewer.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from torch import Tensor

from mtpfix.nvfp4 import Quantized, cpu, dequantize, quantize
from mtpfix.nvfp4.dialects import to_compressed_tensors
from mtpfix.nvfp4.format import scale_of
from tests.conformance.wheels import cut
from tests.nvfp4 import numbers

pytestmark = pytest.mark.conformance

MODELOPT, COMPRESSED_TENSORS = ("nvidia-modelopt", "0.47.0"), ("compressed-tensors", "0.20.0")
MILLIONS = int(os.environ.get("MTPFIX_NVFP4_MILLIONS", "16"))
CHUNK = 1 << 21
PLAIN = (torch.bfloat16, torch.float16, torch.float32)
Write: TypeAlias = Callable[..., tuple[Tensor, Tensor, Tensor]]


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


@pytest.fixture(scope="module")
def modelopt() -> Any:
    """NVFP4QTensor of the published wheel."""
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


def samples(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for distribution in (numbers.gaussian, numbers.heavy_tailed):
        for seed in range(-(-MILLIONS * 1_000_000 // CHUNK)):
            yield distribution.__name__, numbers.finite(distribution(CHUNK, seed), dtype, 2048)


def count_differences(weight: Tensor, theirs: Any, scale: Tensor | None = None) -> int:
    """Bytes of codes, block scales and global scale that differ from ModelOpt's, by every variant of the library."""
    content, block_scale, global_scale = theirs.quantize(weight.clone(), 16, weights_scaling_factor_2=scale)
    packed = content._quantized_data
    total = 0
    before = cpu.variant() if cpu.available() else ""
    for variant in cpu.variants() or ("",):
        if variant:
            cpu.use(variant)
        mine = quantize(weight, global_scale=scale)
        total += int((mine.packed != packed).sum())
        total += int((mine.block_scale.view(torch.uint8) != block_scale.view(torch.uint8)).sum())
        total += int(mine.global_scale != global_scale)
        for target in PLAIN:
            options = {"scale": block_scale, "double_scale": global_scale, "block_sizes": {-1: 16}}
            read_back = content.dequantize(target, **options) if variant == before else None
            if read_back is not None:
                total += int((dequantize(*mine, dtype=target) != read_back).sum())
    if before:
        cpu.use(before)
    return total


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_random_numbers_become_the_bytes_of_modelopt(modelopt: Any, dtype: torch.dtype) -> None:
    compared = {"gaussian": 0, "heavy_tailed": 0}
    for name, weight in samples(dtype):
        assert count_differences(weight, modelopt) == 0, name
        compared[name] += weight.numel()
    assert min(compared.values()) >= MILLIONS * 1_000_000


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_adversarial_numbers_become_the_bytes_of_modelopt(modelopt: Any, dtype: torch.dtype) -> None:
    compared = 0
    for name, weight in numbers.adversarial(dtype):
        amax = float(weight.abs().max())
        if amax / 2688 <= 2.0**-150:
            continue  # ModelOpt writes NaN scales
        assert count_differences(weight, modelopt) == 0, name
        for factor in (1e-6, 1 / 3, 100.0):
            scale = torch.tensor(scale_of(min(amax * factor, 3e38)))
            assert count_differences(weight, modelopt, scale) == 0, (name, factor)
        compared += 1
    assert compared >= 16


def test_fp8_blocks_become_the_bytes_that_modelopt_makes_of_their_bf16(modelopt: Any) -> None:
    compared = 0
    for seed in range(-(-MILLIONS * 1_000_000 // CHUNK)):
        distribution = numbers.heavy_tailed if seed % 2 else numbers.gaussian
        weight = distribution(CHUNK, seed).view(-1, 2048).clamp(-448, 448).to(torch.float8_e4m3fn)
        generator = torch.Generator().manual_seed(seed)
        scale_inv = torch.rand(-(-len(weight) // 128), 16, generator=generator) * 1e-2
        spread = scale_inv.repeat_interleave(128, 0)[: len(weight)].repeat_interleave(128, 1)
        plain = (weight.float() * spread).to(torch.bfloat16)
        content, block_scale, global_scale = modelopt.quantize(plain, 16)
        mine = quantize(weight, scale_inv=scale_inv)
        assert torch.equal(mine.packed, content._quantized_data)
        assert torch.equal(mine.block_scale.view(torch.uint8), block_scale.view(torch.uint8))
        assert mine.global_scale == global_scale
        compared += weight.numel()
    assert compared >= MILLIONS * 1_000_000


def test_what_modelopt_makes_of_zeros_is_not_copied(modelopt: Any) -> None:
    _, theirs, _ = modelopt.quantize(torch.zeros(2, 16), 16)
    assert theirs.isnan().all()
    mine = quantize(torch.zeros(2, 16))
    assert not mine.block_scale.float().isnan().any()
    assert mine.global_scale > 0


def test_compressed_tensors_reads_our_weights_in_its_dialect() -> None:
    helpers = read(COMPRESSED_TENSORS, "compressed_tensors/compressors/nvfp4/helpers.py")
    forward = read(COMPRESSED_TENSORS, "compressed_tensors/quantization/lifecycle/forward_helpers.py")
    unpack = cut(helpers, ("kE2M1ToFloat", "unpack_fp4_from_uint8"), {"torch": torch})["unpack_fp4_from_uint8"]
    scaled = cut(forward, ("_dequantize",), {"torch": torch})["_dequantize"]
    compared = 0
    for seed in range(max(1, MILLIONS * 1_000_000 // CHUNK)):
        weight = numbers.heavy_tailed(CHUNK, seed).view(-1, 2048).to(torch.bfloat16)
        quantized: Quantized = quantize(weight)
        stored = to_compressed_tensors(quantized)
        codes = unpack(stored["weight_packed"], *weight.shape)
        bare = quantized._replace(
            block_scale=torch.ones_like(quantized.block_scale.float()).to(torch.float8_e4m3fn),
            global_scale=torch.tensor(1.0),
        )
        assert torch.equal(codes, dequantize(*bare))
        blocks, steps = codes.unflatten(-1, (-1, 16)), stored["weight_scale"].to(codes.dtype).unsqueeze(-1)
        theirs = scaled(blocks, steps, None, torch.float32, stored["weight_global_scale"]).flatten(-2)
        mine = dequantize(*quantized, dtype=torch.float32)
        # its quotient by a rounded reciprocal may differ from our product in the last places
        assert bool(((theirs - mine).abs() <= mine.abs() * 2.0**-22).all())
        exact = quantized._replace(global_scale=torch.tensor(2.0**-13))
        powers = to_compressed_tensors(exact)
        theirs = scaled(blocks, steps, None, torch.bfloat16, powers["weight_global_scale"]).flatten(-2)
        assert torch.equal(theirs, dequantize(*exact))
        compared += weight.numel()
    assert compared >= MILLIONS * 1_000_000 - CHUNK
