from __future__ import annotations

import os
import struct
import threading
from collections.abc import Generator, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtpfix.errors import FormatError, TensorError
from mtpfix.nvfp4 import cpu, reference, stream, workspace
from mtpfix.nvfp4.stream import QuantizedGroup, StoredTensor, dequantize

SPELLED = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
E4M3 = torch.float8_e4m3fn


class File:
    """A file that tensors are put into one behind the other, at odd offsets."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"junk!")

    def put(self, tensor: Tensor, name: str = "", scale_inv: StoredTensor | None = None) -> StoredTensor:
        offset = self.path.stat().st_size
        dtype = SPELLED.get(tensor.dtype, "U8")
        with self.path.open("ab") as file:
            file.write(tensor.contiguous().view(torch.uint8).numpy().tobytes() + b"junk!")
        return StoredTensor(self.path, offset, dtype, tuple(tensor.shape), name, scale_inv)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path / "tensors.bin")


@pytest.fixture(autouse=True, params=["built", "eager"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the CPU library, and without; with pieces so small that tests need no large tensors."""
    if request.param == "eager":
        monkeypatch.setattr(cpu, "available", lambda: False)
    elif not cpu.available():
        pytest.skip("the CPU library was not built")
    monkeypatch.setattr(stream, "PIECE", 1 << 12)
    torch.set_num_threads(1)


def joined(pieces: Iterable[memoryview]) -> bytes:
    return b"".join(bytes(piece) for piece in pieces)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def open_files() -> set[str]:
    folder = Path("/proc/self/fd")
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


def gauss(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def fp8(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    weight = gauss(rows, columns, torch.float32).clamp(-400, 400).to(E4M3)
    scales = torch.rand(-(-rows // 128), -(-columns // 128), generator=torch.Generator().manual_seed(1))
    return weight, scales


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("search", [False, True])
def test_a_weight_of_many_pieces_equals_the_whole(file: File, dtype: torch.dtype, search: bool) -> None:
    weight = gauss(70, 208, dtype)
    group = QuantizedGroup([file.put(weight)], scale_search=search)
    codes, scales = joined(group.codes(0)), joined(group.block_scales(0))
    packed, block_scale = reference.pack(weight, group.global_scale(), scale_search=search)
    assert group.amax() == weight.abs().max()
    assert group.global_scale() == weight.float().abs().max() / 2688
    assert (codes, scales) == (raw(packed), raw(block_scale))


def test_asking_again_and_in_any_order_gives_the_same(file: File) -> None:
    weight = file.put(gauss(64, 128))
    group = QuantizedGroup([weight])
    scales, codes = joined(group.block_scales(0)), joined(group.codes(0))
    assert joined(group.block_scales(0)) == scales  # those that were kept
    assert joined(group.block_scales(0)) == scales  # worked out anew
    assert joined(group.codes(0)) == codes
    with os.fdopen(os.open(file.path, os.O_RDONLY), "rb") as opened:
        by_descriptor = StoredTensor(opened.fileno(), weight.offset, "BF16", weight.shape)
        assert joined(QuantizedGroup([by_descriptor]).codes(0)) == codes
        assert opened.read(4) == b"junk"


def test_a_group_shares_the_largest_scale(file: File) -> None:
    weights = [gauss(32, 64, seed=1), gauss(48, 64, seed=2) * 7, gauss(16, 64, torch.float32, seed=3)]
    group = QuantizedGroup([file.put(weight) for weight in weights])
    shared = float(max(weight.float().abs().max() for weight in weights) / 2688)
    assert group.global_scale() == shared
    for index, weight in enumerate(weights):
        packed, scales = reference.pack(weight, shared)
        assert joined(group.codes(index)) == raw(packed)
        assert joined(group.block_scales(index)) == raw(scales)


@pytest.mark.parametrize("table", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(1, 16), (128, 256), (300, 272)])
def test_an_fp8_weight_comes_by_way_of_bf16(file: File, shape: tuple[int, int], table: torch.dtype) -> None:
    weight, scales = fp8(*shape)
    scales = scales.to(table)
    group = QuantizedGroup([file.put(weight, "w", file.put(scales, "w_scale_inv"))])
    codes = joined(group.codes(0))
    packed, block_scale = reference.pack(weight, group.global_scale(), scales.float())
    assert group.amax() == reference.measure(weight, scales.float())
    assert (codes, joined(group.block_scales(0))) == (raw(packed), raw(block_scale))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_dequantizing_what_was_quantized(file: File, dtype: torch.dtype) -> None:
    group = QuantizedGroup([file.put(gauss(70, 208))])
    codes = torch.frombuffer(bytearray(joined(group.codes(0))), dtype=torch.uint8).view(70, 104)
    scales = torch.frombuffer(bytearray(joined(group.block_scales(0))), dtype=E4M3).view(70, 13)
    pieces = dequantize(file.put(codes), file.put(scales), group.global_scale(), SPELLED[dtype])
    assert joined(pieces) == raw(reference.unpack(codes, scales, group.global_scale(), dtype))


def test_zeros_and_empty_weights(file: File) -> None:
    group = QuantizedGroup([file.put(torch.zeros(4, 32)), file.put(torch.zeros(0, 32))])
    assert group.global_scale() == 2**-24
    assert joined(group.codes(0)) == bytes(64)
    assert joined(group.block_scales(0)) == b"\x38" * 8
    assert joined(group.codes(1)) == joined(group.block_scales(1)) == b""


@pytest.mark.parametrize("amax", [1e-45, 1e-42, 1.2345e-38, 0.1, 3.4028234663852886e38])
def test_the_global_scale_is_rounded_once(file: File, amax: float) -> None:
    weight = torch.full((1, 16), amax)
    assert QuantizedGroup([file.put(weight)]).global_scale() == max(float(weight.max() / 2688), 2.0**-149)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, E4M3], ids=str)
def test_numbers_that_are_not_finite_are_refused_by_name_and_place(file: File, dtype: torch.dtype) -> None:
    weight = gauss(40, 208, torch.float32)
    weight[33, 100] = weight[34, 7] = torch.nan
    inv = file.put(torch.ones(1, 2)) if dtype == E4M3 else None
    group = QuantizedGroup([file.put(weight.to(dtype), "model.bad.weight", inv)], global_scale=1.0)
    with pytest.raises(TensorError, match=r"model\.bad\.weight holds 2 numbers .* \[33, 100\], is nan"):
        joined(group.codes(0))


def test_an_fp8_product_that_leaves_bf16_is_refused(file: File) -> None:
    weight, scales = fp8(128, 256)
    scales[0, 1] = 1e38
    group = QuantizedGroup([file.put(weight, "big", file.put(scales))])
    with pytest.raises(TensorError, match=r"big holds \d+ numbers that are not finite; .* is -?inf"):
        group.global_scale()


def test_what_cannot_be_quantized_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    nowhere = tmp_path / "not there"
    for shape, dtype, text in (
        ((4, 24), "BF16", "24 columns, which is not a multiple of 16"),
        ((16,), "BF16", "has shape 16"),
        ((2, 4, 16), "BF16", "not a matrix"),
        ((4, 32), "I32", "is I32"),
        ((4, 32), "F8_E4M3", "without scales"),
    ):
        with pytest.raises(TensorError, match=text):
            QuantizedGroup([StoredTensor(nowhere, 0, dtype, shape, "a.weight")])
    with pytest.raises(TensorError, match="global scale"):
        QuantizedGroup([StoredTensor(nowhere, 0, "BF16", (4, 32))], global_scale=0.0)


def test_a_file_that_ends_too_early(file: File) -> None:
    weight = file.put(gauss(64, 128), "a.weight")
    os.truncate(file.path, weight.offset + 9000)
    with pytest.raises(FormatError, match=r"ends before tensor a\.weight does"):
        QuantizedGroup([weight]).global_scale()


def test_a_scale_that_is_not_a_number_cannot_be_dequantized(file: File) -> None:
    codes = file.put(torch.zeros(2, 16, dtype=torch.uint8))
    scales = file.put(torch.tensor([[0x38, 0x38], [0x7F, 0x38]], dtype=torch.uint8).view(E4M3), "a.weight_scale")
    with pytest.raises(TensorError, match=r"a\.weight_scale holds a scale that is not a number"):
        joined(dequantize(codes, scales, 1.0))


def test_progress_counts_each_byte_measured_and_packed(file: File) -> None:
    told: list[int] = []
    group = QuantizedGroup([file.put(gauss(64, 128))], progress=told.append)
    joined(group.codes(0))
    assert sum(told) == 2 * 64 * 128 * 2
    assert len(told) > 4


@pytest.mark.parametrize("interrupted", [False, True])
def test_stopping_early_leaves_no_thread_and_no_open_file(file: File, interrupted: bool) -> None:
    group = QuantizedGroup([file.put(gauss(640, 128))])
    group.global_scale()
    before = open_files()
    pieces = group.codes(0)
    next(pieces)
    assert isinstance(pieces, Generator)
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            pieces.throw(KeyboardInterrupt)
    else:
        pieces.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("nvfp4")]
    assert open_files() == before


def test_memory_is_bounded(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "usable_processors", lambda: 64)
    made: list[int] = []
    make = workspace.open_workspace()

    def counted(count: int, width: int) -> workspace.Workspace:
        made.append(count * width)
        return make(count, width)

    monkeypatch.setattr(stream, "open_workspace", lambda: counted)
    weight = file.put(gauss(640, 128))
    whole = joined(QuantizedGroup([weight]).codes(0))
    made.clear()
    group = QuantizedGroup([weight], memory=20000)
    assert joined(group.codes(0)) == whole
    assert 0 < sum(made) // 2 <= 20000  # two passes, one after the other


def test_float_of_given_scale_is_kept(file: File) -> None:
    (given,) = struct.unpack("<f", struct.pack("<f", 0.01))
    weight = gauss(8, 64)
    group = QuantizedGroup([file.put(weight)], global_scale=given)
    assert group.global_scale() == given
    assert joined(group.codes(0)) == raw(reference.pack(weight, given)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, E4M3], ids=str)
def test_errors_of_plain_and_searched_scales_are_added_up(file: File, dtype: torch.dtype) -> None:
    weight, scales = fp8(300, 272)
    inverse = scales if dtype == E4M3 else None
    weight = weight if dtype == E4M3 else weight.float().to(dtype)
    table = None if inverse is None else file.put(inverse)
    group = QuantizedGroup([file.put(weight, "w", table)], scale_search=True, measure_errors=True)
    assert group.error(0) is None
    joined(group.codes(0))
    error = group.error(0)
    assert error is not None
    for search, found in ((False, error.plain), (True, error.chosen)):
        packed, block_scale = reference.pack(weight, group.global_scale(), inverse, scale_search=search)
        wanted = reference.measure_error(weight, packed, block_scale, group.global_scale(), inverse)
        assert (error.squares, found) == pytest.approx(wanted, rel=1e-9)
    plain = QuantizedGroup([file.put(weight, "w", table)], measure_errors=True)
    joined(plain.codes(0))
    unsearched = plain.error(0)
    assert unsearched is not None
    assert unsearched.plain == unsearched.chosen == pytest.approx(error.plain)
    assert error.chosen < error.plain


def test_fp8_scales_may_be_powers_of_two(file: File) -> None:
    weight, _ = fp8(128, 256)
    exponents = torch.tensor([[120, 118]], dtype=torch.uint8)
    group = QuantizedGroup([file.put(weight, "w", replace(file.put(exponents), dtype="F8_E8M0"))])
    wanted = reference.pack(weight, group.global_scale(), torch.tensor([[2.0**-7, 2.0**-9]]))
    assert joined(group.codes(0)) == raw(wanted[0])


def test_block_scales_that_would_be_too_many_are_made_anew(file: File) -> None:
    told: list[int] = []
    weight = file.put(gauss(64, 128))
    group = QuantizedGroup([weight], kept=100, progress=told.append)
    joined(group.codes(0))
    assert joined(group.block_scales(0)) == joined(QuantizedGroup([weight]).block_scales(0))
    assert sum(told) == 3 * 64 * 128 * 2


def test_a_file_may_be_opened_by_a_function(file: File) -> None:
    weight = file.put(gauss(64, 128))
    opening = partial(stream.opened, file.path)
    assert joined(QuantizedGroup([replace(weight, file=opening)]).codes(0)) == joined(QuantizedGroup([weight]).codes(0))
