from __future__ import annotations

import ctypes
import math

import pytest
import torch
from torch import Tensor

from mtpfix.nvfp4 import reference
from mtpfix.nvfp4.format import RANGE
from tests.nvfp4.device import COMPILER, Device, Launch, compile_kernels

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler")

PLAIN = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(1, 16), (3, 16), (31, 16), (1, 512), (33, 16), (7, 208), (9, 1040)]
LAUNCHES = [Launch(1, 32), Launch(2, 96), Launch(5, 256)]


GENERATIONS = [
    pytest.param((), id="sm_80"),
    pytest.param(("NVFP4_HARDWARE_E4M3",), id="sm_90", marks=pytest.mark.slow),
    pytest.param(("NVFP4_HARDWARE_E2M1", "NVFP4_HARDWARE_E4M3"), id="sm_100a"),
]


@pytest.fixture(scope="session", params=GENERATIONS)
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Device:
    """The kernels as a device of that generation runs them: which conversion instructions it has."""
    torch.set_num_threads(1)
    return Device(compile_kernels(tmp_path_factory.mktemp("kernels"), *request.param))


@pytest.fixture(scope="session")
def any_device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """For what does not depend on the generation."""
    return Device(compile_kernels(tmp_path_factory.mktemp("kernels")))


def numbers(kind: str, count: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Random or adversarial finite numbers, `count` of them, a multiple of 16."""
    generator = torch.Generator().manual_seed(seed)
    gauss = torch.randn(count, generator=generator)
    match kind:
        case "gaussian":
            x = gauss * 0.02
        case "heavy tails":
            x = gauss / torch.rand(count, generator=generator).clamp(1e-4) ** 1.5
        case "rows of all sizes":
            x = (gauss.view(-1, 16) * torch.exp2(torch.randint(-24, 4, (count // 16, 1), generator=generator))).view(-1)
        case "patterns":
            width = torch.int32 if dtype == torch.float32 else torch.int16
            whole = torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32)
            x = whole.to(width).view(dtype)
            return torch.where(x.isfinite(), x, torch.tensor(1.0, dtype=dtype))
        case "ties":
            steps = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 0.0, -0.0])
            blocks = torch.randint(1, 9, (count // 16, 1), generator=generator) / 16
            x = (steps * blocks * (1 - 2.0 * torch.randint(0, 2, (count // 16, 16), generator=generator))).view(-1)
            nudged = torch.nextafter(x.to(dtype), (x + gauss).to(dtype))
            return torch.where(torch.rand(count, generator=generator) < 0.5, x.to(dtype), nudged)
        case "tiny":
            x = gauss * (2.0**-22 if dtype == torch.float16 else 2.0**-131)
        case "huge":
            x = gauss.clamp(-3, 3) * (20000.0 if dtype == torch.float16 else 1e38)
        case "zeros":
            x = torch.where(gauss > 0, 0.0, -0.0)
        case "some blocks of zeros":
            x = (gauss.view(-1, 16) * (torch.arange(count // 16) % 3 > 0).unsqueeze(1)).view(-1)
        case _:
            raise ValueError(kind)
    return x.to(dtype)


KINDS_OF_DATA = [
    *("gaussian", "heavy tails", "rows of all sizes", "patterns", "ties", "tiny", "huge", "zeros"),
    "some blocks of zeros",
]


def scale_of(weight: Tensor, scale_inv: Tensor | None = None) -> float:
    amax = reference.measure(weight, scale_inv)
    return max(float(torch.tensor(amax) / RANGE), 2.0**-149)


def assert_same(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        differing = (mine.view(torch.uint8) != other.view(torch.uint8)).nonzero()
        assert len(differing) == 0, f"{len(differing)} bytes differ, the first at {differing[0].tolist()}"


def fp8_matrix(rows: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
    codes[codes & 0x7F == 0x7F] = 0x80
    shape = (-(-rows // 128), -(-columns // 128))
    scale_inv = torch.rand(shape, generator=generator) * torch.exp2(torch.randint(-12, 3, shape, generator=generator))
    return codes.view(torch.float8_e4m3fn), scale_inv


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("kind", KINDS_OF_DATA)
def test_quantizing_gives_the_reference_bytes(device: Device, kind: str, dtype: torch.dtype) -> None:
    weight = numbers(kind, 8 * 512, dtype, seed=1).view(8, 512)
    scale = scale_of(weight)
    for shared in (scale, scale * 3, scale / 40, 2.0**-149, 1e36):
        assert_same(device.quantize(weight, shared), reference.pack(weight, shared))


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
@pytest.mark.parametrize("kind", KINDS_OF_DATA)
def test_searching_gives_the_reference_bytes(device: Device, kind: str, dtype: torch.dtype) -> None:
    weight = numbers(kind, 4 * 512, dtype, seed=2).view(4, 512)
    scale = scale_of(weight)
    for shared in (scale, scale / 3):
        ours = device.quantize(weight, shared, search=True)
        assert_same(ours, reference.pack(weight, shared, scale_search=True))


@pytest.mark.parametrize("launch", LAUNCHES, ids=str)
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_any_shape_address_and_launch(device: Device, dtype: torch.dtype, launch: Launch) -> None:
    for number, (rows, columns) in enumerate(SHAPES):
        weight = numbers("heavy tails", rows * columns, dtype, seed=number).view(rows, columns)
        scale = scale_of(weight)
        expected = reference.pack(weight, scale)
        searched = reference.pack(weight, scale, scale_search=True)
        for misaligned in (0, 8, 2, 1):
            here = Launch(launch.grid, launch.block, misaligned)
            assert device.amax(weight, launch=here) == float(weight.float().abs().max())
            assert_same(device.quantize(weight, scale, launch=here), expected)
            assert_same(device.quantize(weight, scale, search=True, launch=here), searched)


@pytest.mark.parametrize("shape", [(1, 16), (128, 128), (200, 272), (129, 16), (130, 1040)])
def test_fp8_blocks_give_the_reference_bytes(device: Device, shape: tuple[int, int]) -> None:
    weight, scale_inv = fp8_matrix(*shape, seed=shape[0])
    scale = scale_of(weight, scale_inv)
    assert device.amax(weight, scale_inv) == reference.measure(weight, scale_inv)
    for launch in (Launch(1, 32), Launch(3, 64, 1), Launch(4, 256, 8)):
        for search in (False, True):
            ours = device.quantize(weight, scale, scale_inv, search=search, launch=launch)
            assert_same(ours, reference.pack(weight, scale, scale_inv, scale_search=search))


def test_rows_of_an_fp8_matrix_may_come_in_pieces(device: Device) -> None:
    weight, scale_inv = fp8_matrix(300, 272, seed=9)
    whole = reference.pack(weight, scale_of(weight, scale_inv), scale_inv)
    for begin, end in ((0, 100), (100, 129), (129, 300)):
        part = device.quantize(weight[begin:end], scale_of(weight, scale_inv), scale_inv, first_row=begin)
        assert_same(part, (whole[0][begin:end], whole[1][begin:end]))


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_the_largest_magnitude_keeps_what_is_not_finite(device: Device, dtype: torch.dtype) -> None:
    for value, place in ((torch.nan, 5), (torch.inf, 4095), (-torch.inf, 2048), (-7.0, 17)):
        weight = numbers("patterns", 4096, dtype, seed=4).clamp(-3, 3).view(1, 4096)
        weight[0, place] = value
        amax = device.amax(weight)
        assert amax == abs(value) or (math.isnan(amax) and math.isnan(value))


def test_nan_codes_and_scales_of_fp8_reach_the_largest_magnitude(device: Device) -> None:
    weight, scale_inv = fp8_matrix(128, 256, seed=5)
    for code in (0x7F, 0xFF):
        broken = weight.view(torch.uint8).clone()
        broken[77, 130] = code
        amax = device.amax(broken.view(torch.float8_e4m3fn), scale_inv)
        assert math.isnan(amax)
    for value in (torch.nan, torch.inf, -torch.inf, 1e38):
        scale_inv[0, 1] = value
        assert not device.amax(weight, scale_inv) < 3.4e38


def test_the_global_scale_of_a_group(device: Device) -> None:
    for amaxes in ((0.0,), (1e-45,), (1.0, 3.0, 2.0), (3e38,), (2688.0,)):
        expected = max(float(torch.tensor(max(amaxes)) / RANGE), 2.0**-149) if max(amaxes) else 2.0**-24
        assert device.global_scale(*amaxes) == expected
    assert device.global_scale(torch.inf) == 0
    assert device.global_scale(torch.nan) == 0


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_dequantizing_gives_the_reference_numbers(device: Device, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(6)
    for rows, columns in SHAPES:
        packed = torch.randint(0, 256, (rows, columns // 2), dtype=torch.uint8, generator=generator)
        codes = torch.randint(0, 127, (rows, columns // 16), dtype=torch.uint8, generator=generator)
        scales = codes.view(torch.float8_e4m3fn)
        for shared in (2.0**-24, 0.0371, 1e-38, 2.0**-149, 1.0, 700.0, 3e38):
            expected = reference.unpack(packed, scales, shared, dtype)
            for launch in LAUNCHES:
                ours = device.dequantize(packed, scales, shared, dtype, launch)
                assert bool(((ours == expected) | (ours.isnan() & expected.isnan())).all())
                assert bool((ours.signbit() == expected.signbit()).logical_or(expected.isnan()).all())


def test_the_fp4_instruction_rounds_as_the_core_does(any_device: Device) -> None:
    differing = any_device.loaded.differing_codes
    differing.restype = ctypes.c_uint32
    differing.argtypes = (ctypes.c_uint32, ctypes.c_uint32)
    for threshold in (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0, 0.0, 1e-45, 3.4028234663852886e38, torch.inf):
        pattern = int(torch.tensor(threshold).view(torch.int32))
        for first in (max(0, pattern - 5000), max(0, pattern - 5000) | 1 << 31):
            assert differing(first, first + 10000) == 0


def test_the_corrected_reciprocal_is_the_division(any_device: Device) -> None:
    differing = any_device.loaded.differing_quotients
    differing.restype = ctypes.c_ulonglong
    differing.argtypes = (ctypes.c_int, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int)
    one = 0x3F800000
    for first in (one, one + 0x2AAAAA, one + 0x7FC000):
        assert differing(8, first, first + 0x3FFF, 1) == 0
        assert differing(11, first, first + 0x3FF, 1) == 0
        assert differing(8, first, first + 0x3FFF, 0) > 0


@pytest.mark.slow
@pytest.mark.parametrize("sign", [0, 1 << 31], ids=["positive", "negative"])
def test_the_fp4_instruction_rounds_every_number_as_the_core_does(any_device: Device, sign: int) -> None:
    differing = any_device.loaded.differing_codes
    differing.restype = ctypes.c_uint32
    differing.argtypes = (ctypes.c_uint32, ctypes.c_uint32)
    eighth, eight = (int(torch.tensor(number).view(torch.int32)) for number in (0.125, 8.0))
    assert differing(sign | eighth, sign | eight) == 0  # below and above every number is rounded alike


@pytest.mark.slow
def test_the_corrected_reciprocal_is_the_division_for_every_number(any_device: Device) -> None:
    differing = any_device.loaded.differing_quotients
    differing.restype = ctypes.c_ulonglong
    differing.argtypes = (ctypes.c_int, ctypes.c_uint32, ctypes.c_uint32, ctypes.c_int)
    assert differing(8, 0x3F800000, 0x3FFFFFFF, 1) == 0
    assert differing(11, 0x3F800000, 0x3F800000 + (1 << 20), 1) == 0


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [*PLAIN, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("kind", ["gaussian", "heavy tails", "patterns", "ties"])
def test_four_million_numbers(device: Device, kind: str, dtype: torch.dtype) -> None:
    count, scale_inv = 1 << 22, None
    if dtype == torch.float8_e4m3fn:
        weight, scale_inv = fp8_matrix(1024, 4096, seed=KINDS_OF_DATA.index(kind))
    else:
        weight = numbers(kind, count, dtype, seed=7).view(1024, 4096)
    scale = scale_of(weight, scale_inv)
    assert device.amax(weight, scale_inv) == reference.measure(weight, scale_inv)
    assert_same(device.quantize(weight, scale, scale_inv), reference.pack(weight, scale, scale_inv))
