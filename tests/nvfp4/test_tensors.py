from __future__ import annotations

import math

import pytest
import torch

from mtpfix.errors import TensorError, UsageError
from mtpfix.nvfp4 import Quantized, dequantize, quantize, quantize_group, weight_error

E4M3 = torch.float8_e4m3fn


def same(first: Quantized, second: Quantized) -> bool:
    return (
        torch.equal(first.packed, second.packed)
        and scale_bytes(first) == scale_bytes(second)
        and torch.equal(first.global_scale, second.global_scale)
    )


def scale_bytes(quantized: Quantized) -> list[int]:
    numbers: list[int] = quantized.block_scale.view(torch.uint8).flatten().tolist()
    return numbers


def test_one_block_by_hand() -> None:
    # amax 6 makes the global scale 6/2688 and the block scale 448: codes are those of the numbers themselves
    weight = torch.tensor([[0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6, 0.25, 0.75, 2.5, -0.25, -0.0, 5]])
    packed, block_scale, global_scale = quantize(weight)
    assert global_scale.shape == ()
    assert global_scale.item() == pytest.approx(6 / 2688)
    assert block_scale.view(torch.uint8).tolist() == [[0x7E]]
    assert packed.tolist() == [[0x10, 0x32, 0x54, 0x76, 0xF9, 0x20, 0x84, 0x60]]
    assert dequantize(packed, block_scale, global_scale, torch.float32)[0, :8].tolist() == weight[0, :8].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_a_tensor_of_zeros_has_a_positive_scale_and_reads_back_as_zeros(dtype: torch.dtype) -> None:
    quantized = quantize(torch.zeros(3, 32, dtype=dtype))
    assert quantized.global_scale.item() > 0
    assert set(scale_bytes(quantized)) == {0x38}
    assert not quantized.packed.any()
    assert not dequantize(*quantized).any()


def test_a_block_of_zeros_has_scale_one() -> None:
    weight = torch.ones(1, 32)
    weight[0, 16:] = -0.0
    assert scale_bytes(quantize(weight)) == [0x7E, 0x38]
    assert not quantize(weight).packed[0, 8:].any()


def test_numbers_too_small_for_a_global_scale_are_kept() -> None:
    least = 2.0**-149
    quantized = quantize(torch.tensor([[least * 576, -least * 288] * 8]))
    assert quantized.global_scale.item() == least
    assert dequantize(*quantized, torch.float32).div(least).tolist() == [[576.0, -288.0] * 8]


@pytest.mark.parametrize(("value", "text"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_numbers_that_are_not_finite_are_refused_by_name_and_place(value: float, text: str) -> None:
    weight = torch.ones(40, 32, dtype=torch.bfloat16)
    weight[7, 3] = weight[9, 0] = value
    with pytest.raises(TensorError, match=rf"^tensor mtp\.fc\.weight holds 2 .* at \[7, 3\], is {text}$") as caught:
        quantize(weight, name="mtp.fc.weight")
    assert caught.value.hint


@pytest.mark.parametrize("shape", [(), (16,), (2, 2, 2, 16), (0,)])
def test_only_matrices_and_experts_are_accepted(shape: tuple[int, ...]) -> None:
    with pytest.raises(TensorError, match="tensor t has shape"):
        quantize(torch.zeros(shape), name="t")


@pytest.mark.parametrize("columns", [1, 15, 24, 4097])
def test_columns_are_whole_blocks(columns: int) -> None:
    with pytest.raises(TensorError, match=f"has {columns} columns, which is not a multiple of 16"):
        quantize(torch.zeros(2, columns))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float64, torch.uint8, torch.float8_e5m2])
def test_other_dtypes_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(TensorError, match=str(dtype).removeprefix("torch.")):
        quantize(torch.zeros(2, 16).to(dtype))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e39, 1e-50])
def test_a_global_scale_that_is_none_is_refused(scale: float) -> None:
    with pytest.raises(TensorError, match="global scale"):
        quantize(torch.ones(2, 16), global_scale=scale)


@pytest.mark.parametrize("device", ["cuda:99", "nowhere"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(UsageError, match=f"the device {device} cannot be used: ") as caught:
        quantize(torch.zeros(2, 32), device=device)
    assert "leave it out" in caught.value.hint
    assert quantize(torch.zeros(2, 32), device="cpu").packed.shape == (2, 16)


def test_experts_are_quantized_one_by_one() -> None:
    weight = (
        torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 10, 0])[:, None, None]
    )
    whole = quantize(weight)
    assert whole.global_scale.shape == (3,)
    for expert in range(3):
        assert same(Quantized(*(part[expert] for part in whole)), quantize(weight[expert]))
    back = dequantize(*whole, torch.float32)
    assert torch.equal(back[1], dequantize(*quantize(weight[1]), torch.float32))


@pytest.mark.parametrize("shape", [(0, 16), (4, 0), (0, 8, 32), (2, 0, 32)])
def test_empty_tensors_stay_empty(shape: tuple[int, ...]) -> None:
    quantized = quantize(torch.zeros(shape, dtype=torch.bfloat16))
    assert quantized.packed.shape == (*shape[:-1], shape[-1] // 2)
    assert quantized.block_scale.shape == (*shape[:-1], shape[-1] // 16)
    assert (quantized.global_scale > 0).all()
    assert dequantize(*quantized).shape == shape


def test_a_group_shares_the_scale_of_its_largest() -> None:
    small, large = torch.full((2, 16), 0.5), torch.full((4, 16), -8.0)
    first, second = quantize_group([small, large])
    assert first.global_scale == second.global_scale == quantize(large).global_scale
    assert torch.equal(first.packed, quantize(small, global_scale=first.global_scale).packed)


def test_experts_of_a_group_share_expert_by_expert() -> None:
    gate, up = torch.ones(2, 2, 16), torch.ones(2, 2, 16)
    gate[0], up[1] = 4, 32
    first, second = quantize_group([gate, up], names=["gate", "up"])
    assert first.global_scale.tolist() == second.global_scale.tolist()
    assert first.global_scale[1].item() == 8 * first.global_scale[0].item()


def test_a_group_names_the_one_that_is_refused() -> None:
    with pytest.raises(TensorError, match="tensor up holds 1 number"):
        quantize_group([torch.ones(2, 16), torch.full((1, 16), 1.0).index_fill(1, torch.tensor([4]), math.nan)],
                       names=["gate", "up"])  # fmt: skip


def test_an_fp8_weight_goes_by_way_of_bf16() -> None:
    codes = torch.arange(256 * 272, dtype=torch.int32).remainder(251).to(torch.uint8).view(256, 272)
    codes[(codes & 0x7F) == 0x7F] = 0x7E
    weight = codes.view(E4M3)
    scale_inv = torch.rand(2, 3, generator=torch.Generator().manual_seed(2)) * 1e-3
    spread = scale_inv.repeat_interleave(128, 0).repeat_interleave(128, 1)[:, :272]
    plain = quantize((weight.float() * spread).to(torch.bfloat16))
    assert same(quantize(weight, scale_inv=scale_inv), plain)


def test_an_fp8_weight_needs_its_scales_and_a_plain_one_none() -> None:
    fp8 = torch.zeros(130, 16).to(E4M3)
    with pytest.raises(TensorError, match="without weight_scale_inv"):
        quantize(fp8)
    with pytest.raises(TensorError, match="with weight_scale_inv"):
        quantize(torch.zeros(130, 16), scale_inv=torch.ones(2, 1))
    with pytest.raises(TensorError, match=r"shape \(1, 2\), not \(2, 1\)"):
        quantize(fp8, scale_inv=torch.ones(1, 2))


def test_what_does_not_belong_together_is_not_dequantized() -> None:
    packed, block_scale, global_scale = quantize(torch.ones(2, 32))
    with pytest.raises(TensorError, match="scales of shape"):
        dequantize(packed, block_scale[:, :1], global_scale)
    with pytest.raises(TensorError, match=r"scales in torch\.uint8"):
        dequantize(packed, block_scale.view(torch.uint8), global_scale)
    with pytest.raises(TensorError, match="int8"):
        dequantize(packed, block_scale, global_scale, torch.int8)


@pytest.mark.parametrize(("heavy", "most"), [(False, 0.75), (True, 0.85)])
def test_the_scale_search_lessens_the_squared_error(heavy: bool, most: float) -> None:
    torch.manual_seed(3)
    weight = torch.distributions.StudentT(4.0).sample((512, 1024)) if heavy else torch.randn(512, 1024)
    errors = [
        (dequantize(*quantize(weight, scale_search=search), torch.float32) - weight).square().sum().item()
        for search in (True, False)
    ]
    assert errors[0] / errors[1] < most


def test_the_error_of_a_weight_is_relative_to_its_squares() -> None:
    weight = torch.randn(3, 8, 64, generator=torch.Generator().manual_seed(4))
    quantized = quantize(weight)
    wanted = (dequantize(*quantized, torch.float32) - weight).square().sum() / weight.square().sum()
    assert weight_error(weight, quantized) == pytest.approx(wanted.item(), rel=1e-5)
    assert weight_error(weight[0], quantize(weight[0])) == pytest.approx(0.009, rel=0.3)
    zeros = torch.zeros(2, 16)
    assert weight_error(zeros, quantize(zeros)) == 0
    with pytest.raises(TensorError, match="codes of shape"):
        weight_error(weight[:2], quantized)
    fp8 = weight[0].to(E4M3)
    table = torch.full((1, 1), 0.5)
    assert weight_error(fp8, quantize(fp8, scale_inv=table), scale_inv=table) == pytest.approx(0.009, rel=0.3)
