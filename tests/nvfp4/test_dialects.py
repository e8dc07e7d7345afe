from __future__ import annotations

import pytest
import torch

from mtpfix.errors import TensorError
from mtpfix.nvfp4 import dequantize, quantize
from mtpfix.nvfp4.dialects import from_compressed_tensors, reciprocal, to_compressed_tensors
from tests.nvfp4 import numbers


def test_a_weight_crosses_and_comes_back() -> None:
    weight = numbers.gaussian(1 << 12).view(16, 256)
    weight[0, 0] = 2688 / 2**9  # a global scale of 2^-9 has an exact reciprocal
    quantized = quantize(weight)
    stored = to_compressed_tensors(quantized)
    assert {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in stored.items()} == {
        "weight_packed": (torch.uint8, (16, 128)),
        "weight_scale": (torch.float8_e4m3fn, (16, 16)),
        "weight_global_scale": (torch.float32, (1,)),
    }
    assert stored["weight_global_scale"].item() == 512
    packed, block_scale, shared = stored.values()
    back = from_compressed_tensors(packed, block_scale, shared)
    assert back.global_scale.shape == ()
    assert torch.equal(dequantize(*back), dequantize(*quantized))


def test_a_reciprocal_is_off_by_one_place_at_most() -> None:
    scales = numbers.any_bits(4096).abs()
    for scale in scales[(scales > 2.0**-126) & (scales < 2.0**126)].tolist():
        assert abs(reciprocal(reciprocal(scale)) / scale - 1) <= 2.0**-23


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 2.0**-149])
def test_scales_without_a_reciprocal_are_refused(scale: float) -> None:
    quantized = quantize(torch.ones(1, 16))
    with pytest.raises(TensorError, match="global scale"):
        from_compressed_tensors(quantized.packed, quantized.block_scale, scale)


def test_a_tensor_of_zeros_crosses() -> None:
    stored = to_compressed_tensors(quantize(torch.zeros(2, 16)))
    assert stored["weight_global_scale"].item() == 2.0**24
    packed, block_scale, shared = stored.values()
    assert not dequantize(*from_compressed_tensors(packed, block_scale, shared)).any()


def test_experts_in_one_tensor_do_not_cross() -> None:
    with pytest.raises(TensorError, match="tensor w holds several experts"):
        to_compressed_tensors(quantize(torch.ones(2, 2, 16)), "w")
