"""NVFP4 against the code of nvidia-modelopt and compressed-tensors, cut from their published wheels and run on the CPU.

At least 16 million numbers of each dtype and distribution, and the adversarial ones, must give the same bytes;
`MTPFIX_NVFP4_MILLIONS` asks for more or fewer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mtpfix.nvfp4 import cpu, dequantize, quantize
from mtpfix.nvfp4.dialects import to_compressed_tensors
from mtpfix.nvfp4.format import scale_of
from tests.conformance import quantizers
from tests.nvfp4 import numbers

pytestmark = pytest.mark.conformance

MILLIONS = int(os.environ.get("MTPFIX_NVFP4_MILLIONS", "16"))
CHUNK = 1 << 21
PLAIN = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(scope="module")
def modelopt() -> Any:
    return quantizers.modelopt()


def samples(dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    for distribution in (numbers.gaussian, numbers.heavy_tailed):
        for seed in range(-(-MILLIONS * 1_000_000 // CHUNK)):
            yield distribution.__name__, numbers.finite(distribution(CHUNK, seed), dtype, 2048)


def count_differences(weight: Tensor, theirs: Any, scale: Tensor | None = None, *, read_back: bool = True) -> int:
    """Bytes of codes, block scales and global scale that differ from ModelOpt's, by every variant of the library.

    With `read_back` also the numbers that its dequantize reads otherwise than ours.
    """
    content, block_scale, global_scale = theirs.quantize(weight.clone(), 16, weights_scaling_factor_2=scale)
    total = 0
    before = cpu.variant() if cpu.available() else ""
    for variant in cpu.variants() or ("",):
        if variant:
            cpu.use(variant)
        mine = quantize(weight, global_scale=scale)
        total += int((mine.packed != content._quantized_data).sum())
        total += int((mine.block_scale.view(torch.uint8) != block_scale.view(torch.uint8)).sum())
        total += int(mine.global_scale != global_scale)
    if before:
        cpu.use(before)
    for dtype in PLAIN if read_back else ():
        options = {"scale": block_scale, "double_scale": global_scale, "block_sizes": {-1: 16}}
        total += int((dequantize(*mine, dtype=dtype) != content.dequantize(dtype, **options)).sum())
    return total


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_random_numbers_become_the_bytes_of_modelopt(modelopt: Any, dtype: torch.dtype) -> None:
    compared = {"gaussian": 0, "heavy_tailed": 0}
    for name, weight in samples(dtype):
        assert count_differences(weight, modelopt, read_back=not compared[name]) == 0, name
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
    read = quantizers.compressed_tensors_reader()
    compared = 0
    for seed in range(-(-MILLIONS * 1_000_000 // CHUNK)):
        weight = numbers.heavy_tailed(CHUNK, seed).view(-1, 2048).to(torch.bfloat16)
        quantized = quantize(weight)
        stored = to_compressed_tensors(quantized)
        packed, block_scale, shared = stored.values()
        codes, theirs = read(packed, block_scale, shared, torch.float32)
        ones = torch.ones_like(quantized.block_scale.float()).to(torch.float8_e4m3fn)
        assert torch.equal(codes, dequantize(quantized.packed, ones, 1.0))
        mine = dequantize(*quantized, dtype=torch.float32)
        # its quotient by a rounded reciprocal may differ from our product in the last places
        assert bool(((theirs - mine).abs() <= mine.abs() * 2.0**-22).all())
        exact = quantized._replace(global_scale=torch.tensor(2.0**-13))  # whose reciprocal is exact: all bits equal
        packed, block_scale, shared = to_compressed_tensors(exact).values()
        _, theirs = read(packed, block_scale, shared, torch.bfloat16)
        assert torch.equal(theirs, dequantize(*exact))
        compared += weight.numel()
    assert compared >= MILLIONS * 1_000_000
