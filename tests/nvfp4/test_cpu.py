from __future__ import annotations

import math
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mtpfix.errors import MtpfixError
from mtpfix.nvfp4 import cpu, native, quantize, reference
from mtpfix.nvfp4.format import FLOAT32_MAX, scale_of
from tests.nvfp4 import numbers

needs_library = pytest.mark.skipif(not cpu.available(), reason=f"the CPU library is not built: {cpu.missing}")
PLAIN = (torch.bfloat16, torch.float16, torch.float32)


@pytest.fixture(params=cpu.variants() or ["none"])
def variant(request: pytest.FixtureRequest) -> object:
    before = cpu.variant()
    cpu.use(request.param)
    yield request.param
    cpu.use(before)


def bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.int32 if tensor.dtype == torch.float32 else torch.int16)


def differences(weight: Tensor, global_scale: float, scale_inv: Tensor | None = None, *, search: bool = False) -> int:
    mine = native.pack(weight, global_scale, scale_inv, scale_search=search)
    other = reference.pack(weight, global_scale, scale_inv, scale_search=search)
    wrong = (mine[0] != other[0]).sum() + (mine[1].view(torch.uint8) != other[1].view(torch.uint8)).sum()
    return int(wrong)


@needs_library
@pytest.mark.parametrize("dtype", PLAIN)
@pytest.mark.parametrize("search", [False, True])
def test_every_variant_gives_the_bytes_of_plain_torch(dtype: torch.dtype, search: bool) -> None:
    before = cpu.variant()
    for name, weight in numbers.adversarial(dtype):
        amax = reference.measure(weight)
        for factor in (1, 64, 1e-6):
            scale = scale_of(min(amax * factor, FLOAT32_MAX))
            wanted = reference.pack(weight, scale, scale_search=search)
            for variant in cpu.variants():
                cpu.use(variant)
                packed, block_scale = native.pack(weight, scale, scale_search=search)
                assert native.measure(weight) == amax, (name, variant)
                assert torch.equal(block_scale.view(torch.uint8), wanted[1].view(torch.uint8)), (name, variant, scale)
                assert torch.equal(packed, wanted[0]), (name, variant, scale)
    cpu.use(before)


@needs_library
@pytest.mark.parametrize("dtype", PLAIN)
def test_every_variant_reads_every_code_under_every_scale(variant: str, dtype: torch.dtype) -> None:
    scales = torch.arange(127).to(torch.uint8).view(torch.float8_e4m3fn).view(-1, 1)
    packed = (torch.arange(8) * 34 + 16).to(torch.uint8).repeat(127, 1)
    assert sorted({*(packed[0] & 15).tolist(), *(packed[0] >> 4).tolist()}) == list(range(16))
    for scale in (1.0, 1 / 2688, 3e-7, 2.0**-126, 2.0**-149, 1e34):
        mine, other = (path.unpack(packed, scales, scale_of(scale * 2688), dtype) for path in (native, reference))
        assert torch.equal(bits(mine), bits(other))


@needs_library
@pytest.mark.parametrize("shape", [(1, 16), (128, 128), (257, 272), (130, 4224), (3, 8208)])
def test_every_variant_converts_fp8_as_plain_torch_does(variant: str, shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(shape[0])
    codes = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    codes[codes & 0x7F == 0x7F] = 0x01
    weight = codes.view(torch.float8_e4m3fn)
    scale_inv = torch.rand(-(-shape[0] // 128), -(-shape[1] // 128), generator=generator) * 1e-2
    amax = native.measure(weight, scale_inv)
    assert amax == reference.measure(weight, scale_inv)
    assert not differences(weight, scale_of(amax), scale_inv)
    assert not differences(weight, scale_of(amax), scale_inv, search=True)
    codes[-1, -1] = 0xFF
    assert torch.tensor(native.measure(weight, scale_inv)).isnan()


@needs_library
def test_any_number_of_blocks_is_written_and_nothing_behind_it(variant: str) -> None:
    for blocks in range(40):
        weight = numbers.gaussian(blocks * 16, seed=blocks).to(torch.bfloat16)
        packed, scales = bytearray(b"\xaa" * (blocks * 8 + 4)), bytearray(b"\xaa" * (blocks + 4))
        source = bytes(bits(weight).numpy())
        cpu.quantize(source, "BF16", blocks * 16, 0.001, packed, scales)
        wanted = reference.pack(weight.view(1, -1), 0.001) if blocks else (torch.empty(0), torch.empty(0))
        assert packed == bytes(wanted[0].flatten().tolist()) + b"\xaa" * 4
        assert scales == (bytes(wanted[1].view(torch.uint8).flatten().tolist()) if blocks else b"") + b"\xaa" * 4


@needs_library
def test_memory_may_lie_anywhere(variant: str) -> None:
    weight = numbers.gaussian(1 << 12).to(torch.bfloat16)
    raw = bytes(bits(weight).numpy())
    whole: set[bytes] = set()
    for offset in range(8):
        source = memoryview(bytes(offset) + raw)[offset:]
        packed, scales = bytearray(offset + len(raw) // 4), bytearray(offset + len(raw) // 32)
        places = memoryview(packed)[offset:], memoryview(scales)[offset:]
        cpu.quantize(source, "BF16", 1 << 12, scale_of(cpu.amax(source, "BF16", 1 << 12)), *places)
        target = bytearray(offset + len(raw))
        cpu.dequantize(*places, "BF16", 1 << 12, 1.0, memoryview(target)[offset:])
        whole.add(bytes(packed[offset:]) + bytes(scales[offset:]) + bytes(target[offset:]))
    assert len(whole) == 1


@needs_library
def test_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "SHARE", 1 << 10)
    rows, columns = 300, 272
    weight = numbers.heavy_tailed(rows * columns).to(torch.bfloat16)
    codes = weight.clamp(-400, 400).to(torch.float8_e4m3fn)
    scale_inv = torch.rand(3, 3, generator=torch.Generator().manual_seed(5))
    seen = set()
    for threads in (1, 2, 3, 7):
        memory = [bytearray(rows * columns // 2), bytearray(rows * columns // 16), bytearray(rows * columns * 4)]
        more = [bytearray(rows * columns // 2), bytearray(rows * columns // 16)]
        amax = cpu.amax(weight.data_ptr(), "BF16", rows * columns, threads=threads)
        second = cpu.amax_fp8(codes.data_ptr(), scale_inv.data_ptr(), rows, columns, threads=threads)
        source = weight.data_ptr()
        cpu.quantize(source, "BF16", rows * columns, amax / 2688, memory[0], memory[1], threads=threads)
        cpu.dequantize(memory[0], memory[1], "F32", rows * columns, 0.5, memory[2], threads=threads)
        places = (codes.data_ptr(), scale_inv.data_ptr(), rows, columns, second / 2688)
        cpu.quantize_fp8(*places, *more, threads=threads)
        seen.add((amax, second, *map(bytes, memory + more)))
    assert len(seen) == 1


@needs_library
def test_rows_of_an_fp8_matrix_may_come_in_pieces() -> None:
    rows, columns = 300, 144
    codes = numbers.gaussian(rows * columns).to(torch.float8_e4m3fn)
    scale_inv = torch.rand(3, 2, generator=torch.Generator().manual_seed(6))
    whole = [bytearray(rows * columns // 2), bytearray(rows * columns // 16)]
    cpu.quantize_fp8(codes.data_ptr(), scale_inv.data_ptr(), rows, columns, 0.01, *whole)
    pieces = [bytearray(rows * columns // 2), bytearray(rows * columns // 16)]
    for begin in range(0, rows, 50):
        places = [cpu.behind(pieces[0], begin * columns // 2), cpu.behind(pieces[1], begin * columns // 16)]
        scales = scale_inv.data_ptr() + begin // 128 * 2 * 4
        source = codes.data_ptr() + begin * columns
        cpu.quantize_fp8(source, scales, min(50, rows - begin), columns, 0.01, *places, first=begin % 128)
    assert pieces == whole


@needs_library
def test_the_largest_magnitude_shows_what_is_not_finite(variant: str) -> None:
    for dtype, name in ((torch.bfloat16, "BF16"), (torch.float16, "F16"), (torch.float32, "F32")):
        for place in (0, 17, 63, 64, 70, 99):
            weight = torch.ones(100, dtype=dtype)
            weight[place] = -torch.inf
            assert cpu.amax(weight.data_ptr(), name, 100) == torch.inf
            weight[(place + 40) % 100] = torch.nan
            assert torch.tensor(cpu.amax(weight.data_ptr(), name, 100)).isnan()
        assert cpu.amax(b"", name, 0) == 0


@needs_library
def test_what_does_not_fit_is_refused_before_it_is_touched() -> None:
    good: tuple[Any, ...] = (bytes(64), "BF16", 32, 1.0, bytearray(16), bytearray(2))
    run: Callable[..., None] = cpu.quantize
    run(*good)
    wrong = [(0, bytes(63)), (2, 33), (2, -16), (3, 0.0), (3, -1.0), (3, float("nan")), (3, float("inf"))]
    for place, value in [*wrong, (4, bytearray(15)), (5, bytearray(1))]:
        with pytest.raises((ValueError, OverflowError)):
            run(*good[:place], value, *good[place + 1 :])
    with pytest.raises((TypeError, BufferError)):
        run(*good[:4], bytes(16), bytearray(2))
    with pytest.raises(ValueError, match="weight_scale_inv has 4 bytes, 8 are needed"):
        cpu.quantize_fp8(bytes(129 * 16), bytes(4), 129, 16, 1.0, bytearray(129 * 8), bytearray(129))
    with pytest.raises(ValueError, match="no variant 'mmx'"):
        cpu.use("mmx")


@needs_library
def test_subnormal_numbers_count_even_where_torch_flushes_them() -> None:
    weight = torch.full((1, 16), 2.0**-130)
    wanted = quantize(weight)
    scale = wanted.global_scale.item()
    try:
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush subnormal numbers")
        packed, _ = native.pack(weight, scale)
    finally:
        torch.set_flush_denormal(False)
    assert packed.tolist() == wanted.packed.tolist() == [[0x77] * 8]


def write_and_read(source: bytes, scale: float, *, search: bool = False) -> bytes:
    packed, block_scale, back = bytearray(8), bytearray(1), bytearray(64)
    cpu.quantize(source, "F32", 16, scale, packed, block_scale, scale_search=search)
    assert 0x01 <= block_scale[0] <= 0x7E
    cpu.dequantize(packed, block_scale, "F32", 16, scale, back)
    return bytes(back)


def squared(source: bytes, back: bytes, unit: float) -> float:
    errors = zip(struct.unpack("16f", source), struct.unpack("16f", back), strict=True)
    return math.fsum(((before - after) / unit) ** 2 for before, after in errors)


ordinary = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


@needs_library
@given(st.lists(ordinary, min_size=16, max_size=16), st.floats(1, 100))
@settings(max_examples=200, deadline=None)
def test_what_was_written_and_read_stays_what_it_is(block: list[float], larger: float) -> None:
    source = struct.pack("16f", *block)
    amax = cpu.amax(source, "F32", 16)
    scale = scale_of(amax * larger)
    back = write_and_read(source, scale)
    for before, after in zip(block, struct.unpack("16f", back), strict=True):
        assert abs(before - after) <= amax * 0.18 + 2.0**-9 * scale
        assert before * after >= 0
    if scale > 2.0**-100:
        assert struct.unpack("16f", write_and_read(back, scale)) == struct.unpack("16f", back)
        searched = write_and_read(source, scale, search=True)
        assert squared(source, searched, scale) <= squared(source, back, scale) * 1.0001


def test_the_library_needs_no_torch() -> None:
    code = "import sys; from mtpfix.nvfp4 import cpu, paths; print('torch' in sys.modules, cpu.variants())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split()[0] == "False"


def test_without_the_library_plain_torch_works_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtpfix.nvfp4 import paths

    weight = numbers.gaussian(1 << 10).view(4, 256)
    wanted = quantize(weight)
    monkeypatch.setattr(cpu, "library", None)
    monkeypatch.setattr(cpu, "missing", "No module named '_nvfp4'")
    assert paths.path_for("cpu") is reference
    assert torch.equal(quantize(weight).packed, wanted.packed)
    chosen = paths.survey().chosen("cpu")
    assert chosen is not None
    assert chosen.name == "eager"
    with pytest.raises(MtpfixError, match="cannot be loaded: No module named '_nvfp4'"):
        cpu.amax(b"", "BF16", 0)
