"""The launcher, with stand-ins for cuda-core and for torch's CUDA: kernels run on the emulated device instead.

What is proved: which target is compiled, what is kept on disk, what is said when nothing runs, and that arguments,
grids and pieces are right. What only a device can prove is written in docs/cuda.md.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mtpfix.errors import MtpfixError
from mtpfix.nvfp4 import cubin, cuda, reference
from mtpfix.nvfp4.stream import QuantizedGroup, StoredTensor, dequantize
from tests.nvfp4.device import COMPILER, Device, compile_kernels


class Toolkit:
    """A stand-in for cuda-core and NVRTC that knows some targets, and counts what it compiles and launches."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.known = {"sm_80", "sm_90", "sm_100", "sm_100a", "compute_80", "compute_90"}
        self.version: tuple[int, int] = (12, 8)
        self.driver_refuses = ""
        self.compiled: list[str] = []
        self.launched: list[tuple[str, int, int]] = []
        self.streams: list[int] = []
        self.lock = threading.Lock()

    def modules(self) -> dict[str, ModuleType]:
        core, bindings, nvrtc, top = (
            ModuleType(name) for name in ("cuda.core", "cuda.bindings", "cuda.bindings.nvrtc", "cuda")
        )
        for name, value in (
            ("Program", self.program),
            ("ProgramOptions", SimpleNamespace),
            ("Device", lambda _: SimpleNamespace(set_current=lambda: None)),
            ("ObjectCode", SimpleNamespace(from_cubin=self.load, from_ptx=self.load)),
            ("LaunchConfig", SimpleNamespace),
            ("launch", self.launch),
        ):
            setattr(core, name, value)
        nvrtc.nvrtcVersion = lambda: (0, *self.version)  # type: ignore[attr-defined]
        bindings.nvrtc = nvrtc  # type: ignore[attr-defined]
        top.core, top.bindings = core, bindings  # type: ignore[attr-defined]
        return {"cuda": top, "cuda.core": core, "cuda.bindings": bindings, "cuda.bindings.nvrtc": nvrtc}

    def program(self, source: str, language: str, options: SimpleNamespace) -> SimpleNamespace:
        def compile_it(kind: str) -> SimpleNamespace:
            if options.arch not in self.known:  # as NVRTC says it by way of cuda-core
                raise RuntimeError(
                    "5: NVRTC_ERROR_INVALID_OPTION\nnvrtc: error: invalid value for --gpu-architecture (-arch)"
                )
            assert "quantize_" in source
            assert options.fma is False
            assert (Path(options.include_path) / "core.h").exists()
            assert (language, kind) == ("c++", "ptx" if options.arch.startswith("compute_") else "cubin")
            self.compiled.append(options.arch)
            return SimpleNamespace(code=f"code for {options.arch}".encode())

        return SimpleNamespace(compile=compile_it)

    def load(self, code: bytes, *, name: str) -> SimpleNamespace:
        if self.driver_refuses:
            raise RuntimeError(self.driver_refuses)
        assert code.startswith(b"code for ")
        assert name

        def get_kernel(kernel: str) -> SimpleNamespace:
            occupancy = SimpleNamespace(max_active_blocks_per_multiprocessor=lambda *_: 2)
            return SimpleNamespace(name=kernel, occupancy=occupancy)

        return SimpleNamespace(get_kernel=get_kernel)

    def launch(self, stream: Any, config: SimpleNamespace, kernel: SimpleNamespace, *arguments: object) -> None:
        with self.lock:
            version, handle = stream.__cuda_stream__()
            assert version == 0
            self.streams.append(handle)
            self.launched.append((kernel.name, config.grid, config.block))
            self.device.launch(kernel.name, config.grid, config.block, *arguments)


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    if COMPILER is None:
        pytest.skip("no C++ compiler")
    return Device(compile_kernels(tmp_path_factory.mktemp("kernels")))


@pytest.fixture
def chip(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What torch says of the device; tests change it."""
    chip = SimpleNamespace(major=9, minor=0, multi_processor_count=2, name="NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: chip.name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)
    return chip


@pytest.fixture
def toolkit(
    device: Device, chip: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Toolkit]:
    toolkit = Toolkit(device)
    for name, module in toolkit.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("MTPFIX_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(cuda, "on_device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "on_stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(cuda, "new_stream", lambda _: SimpleNamespace(synchronize=lambda: None))
    monkeypatch.setattr(cuda, "device_of", lambda _: torch.device("cpu"))
    monkeypatch.setattr(cuda, "pinned", lambda size: torch.zeros(size, dtype=torch.uint8))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(cuda_stream=77))
    cuda.load.cache_clear()
    cuda.survey_of.cache_clear()
    yield toolkit
    cuda.load.cache_clear()
    cuda.survey_of.cache_clear()


def again() -> None:
    """As a new process would begin."""
    cuda.load.cache_clear()
    cuda.survey_of.cache_clear()


def kept(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "kept" / "nvfp4").iterdir())


def gauss(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)


def equal(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> bool:
    return all(
        torch.equal(mine.view(torch.uint8), other.view(torch.uint8)) for mine, other in zip(ours, theirs, strict=True)
    )


# ------------------------------------------------------------------------------------------- which target


@pytest.mark.parametrize(
    ("capability", "targets"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_89 sm_80 compute_80"),
        ((9, 0), "sm_90 compute_80"),
        ((10, 0), "sm_100a sm_100 compute_90 compute_80"),
        ((10, 3), "sm_103a sm_103 sm_100 compute_90 compute_80"),
        ((12, 1), "sm_121a sm_121 sm_120 compute_90 compute_80"),
    ],
)
def test_targets_of_a_chip_the_best_first(capability: tuple[int, int], targets: str) -> None:
    assert [target.name for target in cubin.targets_for(capability)] == targets.split()


def test_a_known_chip_gets_its_own_code(toolkit: Toolkit, chip: SimpleNamespace) -> None:
    chip.major, chip.minor, chip.name = 10, 0, "NVIDIA B200"
    route = cuda.survey()
    assert (route.runs, route.title) == (True, "CUDA kernels, NVIDIA B200 (sm_100a)")
    assert route.why == "compiled for sm_100a"
    assert toolkit.compiled == ["sm_100a"]


def test_a_compiler_older_than_the_chip_is_said_in_one_line(toolkit: Toolkit, chip: SimpleNamespace) -> None:
    chip.major, chip.minor = 10, 3
    route = cuda.survey()
    assert route.runs
    assert route.why == (
        "NVRTC 12.8 is too old for sm_103a: compiled for sm_100, without the FP4 instruction; the bytes are the same"
    )
    chip.major, chip.minor = 12, 1
    again()
    assert "compiled for compute_90, translated by the driver" in cuda.survey().why
    assert toolkit.compiled == ["sm_100", "compute_90"]


def test_where_nothing_can_be_compiled(toolkit: Toolkit, chip: SimpleNamespace) -> None:
    toolkit.known = set()
    route = cuda.survey()
    assert not route.runs
    assert route.why == "NVRTC 12.8 compiles for none of sm_90, compute_80"
    assert "\n" not in route.why


def test_a_chip_that_is_too_old(toolkit: Toolkit, chip: SimpleNamespace) -> None:
    chip.major, chip.minor = 7, 5
    route = cuda.survey()
    assert (route.runs, route.why) == (False, "this GPU has compute capability 7.5; the kernels need 8.0")
    assert toolkit.compiled == []


def test_without_cuda_core(chip: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "on_device", lambda _: contextlib.nullcontext())
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    again()
    route = cuda.survey()
    assert not route.runs
    assert route.why.startswith("cuda-core cannot be imported")
    assert route.why.endswith("pip install 'mtpfix[cuda]'")
    again()


def test_a_driver_that_refuses_the_code(toolkit: Toolkit) -> None:
    toolkit.driver_refuses = "CUDA_ERROR_UNSUPPORTED_PTX_VERSION: error: too new\nmore"
    route = cuda.survey()
    assert not route.runs
    assert route.why == "the driver does not take them: CUDA_ERROR_UNSUPPORTED_PTX_VERSION: error: too new"


# --------------------------------------------------------------------------------------------- what is kept


def test_code_is_compiled_once_and_kept(toolkit: Toolkit, tmp_path: Path) -> None:
    assert cubin.obtain((9, 0)) == cubin.Cubin(cubin.Target("sm_90"), b"code for sm_90", kept=False)
    assert cubin.obtain((9, 0)) == cubin.Cubin(cubin.Target("sm_90"), b"code for sm_90", kept=True)
    assert toolkit.compiled == ["sm_90"]
    assert len(kept(tmp_path)) == 1


def test_another_compiler_or_source_compiles_anew(
    toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cubin.obtain((9, 0))
    toolkit.version = (13, 0)
    cubin.obtain((9, 0))
    other = tmp_path / "core.h"
    other.write_text("changed")
    monkeypatch.setattr(cubin, "SOURCES", (cubin.SOURCES[0], other))
    cubin.obtain((9, 0))
    assert toolkit.compiled == ["sm_90"] * 3
    assert len(kept(tmp_path)) == 3


@pytest.mark.parametrize("damage", [b"", b"x" * 10, None])
def test_a_damaged_file_is_made_anew(toolkit: Toolkit, tmp_path: Path, damage: bytes | None) -> None:
    cubin.obtain((9, 0))
    (file,) = kept(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] if damage is None else damage)
    assert cubin.obtain((9, 0)).code == b"code for sm_90"
    assert toolkit.compiled == ["sm_90"] * 2
    assert file.read_bytes() == whole
    assert cubin.obtain((9, 0)).kept


def test_many_writers_leave_one_whole_file(toolkit: Toolkit, tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as threads:
        codes = [future.result().code for future in [threads.submit(cubin.obtain, (9, 0)) for _ in range(32)]]
    assert set(codes) == {b"code for sm_90"}
    assert len(kept(tmp_path)) == 1
    assert cubin.obtain((9, 0)).kept


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_does_no_harm(toolkit: Toolkit, tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir(mode=0o500)
    assert cubin.obtain((9, 0)).code == b"code for sm_90"


def test_a_file_in_place_of_the_folder_does_no_harm(toolkit: Toolkit, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("")
    assert not cubin.obtain((9, 0)).kept
    assert not cubin.obtain((9, 0)).kept


# ------------------------------------------------------------------------------------------------ launches


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("search", [False, True])
def test_tensors_are_converted(toolkit: Toolkit, dtype: torch.dtype, search: bool) -> None:
    weight = gauss(33, 176, dtype)
    scale = 0.001953125
    assert cuda.measure(weight) == reference.measure(weight)
    packed, scales = cuda.pack(weight, scale, scale_search=search)
    assert equal((packed, scales), reference.pack(weight, scale, scale_search=search))
    assert torch.equal(cuda.unpack(packed, scales, scale, dtype), reference.unpack(packed, scales, scale, dtype))
    assert set(toolkit.streams) == {77}
    assert all(1 <= grid <= 4 and block == 256 for _, grid, block in toolkit.launched)


def test_views_and_odd_addresses(toolkit: Toolkit) -> None:
    whole = gauss(40, 64)
    for weight in (whole[:, 16:48], whole.t().contiguous().t()[:, :32], whole.flatten()[3:1027].view(16, 64)):
        assert equal(cuda.pack(weight, 0.01), reference.pack(weight, 0.01))
    packed, scales = reference.pack(whole, 0.01)
    shifted = torch.empty(packed.numel() + 1, dtype=torch.uint8)[1:].view(packed.shape).copy_(packed)
    assert torch.equal(
        cuda.unpack(shifted, scales, 0.01, torch.bfloat16), cuda.unpack(packed, scales, 0.01, torch.bfloat16)
    )


def test_a_tensor_too_large_for_one_launch_takes_several(toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "MOST_BLOCKS", 100)
    weight = gauss(50, 176)
    assert cuda.measure(weight) == reference.measure(weight)
    assert equal(cuda.pack(weight, 0.01), reference.pack(weight, 0.01))
    packed, scales = reference.pack(weight, 0.01)
    assert torch.equal(
        cuda.unpack(packed, scales, 0.01, torch.float32), reference.unpack(packed, scales, 0.01, torch.float32)
    )
    assert len(toolkit.launched) == 3 * 6
    fp8 = gauss(300, 272, torch.float32).to(torch.float8_e4m3fn)
    scale_inv = torch.rand(3, 3)
    assert equal(cuda.pack(fp8, 0.01, scale_inv), reference.pack(fp8, 0.01, scale_inv))
    assert cuda.measure(fp8, scale_inv) == reference.measure(fp8, scale_inv)


def test_empty_matrices_launch_nothing(toolkit: Toolkit) -> None:
    empty = torch.empty(0, 32, dtype=torch.bfloat16)
    assert cuda.measure(empty) == 0
    packed, scales = cuda.pack(empty, 1.0)
    assert (packed.shape, scales.shape) == ((0, 16), (0, 2))
    assert cuda.unpack(packed, scales, 1.0, torch.bfloat16).shape == (0, 32)
    assert toolkit.launched == []


def test_files_stream_through_the_device(toolkit: Toolkit, tmp_path: Path) -> None:
    weight = gauss(64, 128)
    fp8, scale_inv = gauss(200, 272, torch.float32).to(torch.float8_e4m3fn), torch.rand(2, 3)
    file = tmp_path / "tensors.bin"
    parts = [tensor.contiguous().view(torch.uint8).flatten() for tensor in (weight, fp8, scale_inv)]
    file.write_bytes(torch.cat(parts).numpy().tobytes())
    table = StoredTensor(file, weight.nbytes + fp8.nbytes, "F32", (2, 3))
    stored = [
        StoredTensor(file, 0, "BF16", (64, 128)),
        StoredTensor(file, weight.nbytes, "F8_E4M3", (200, 272), "b", table),
    ]
    on_device = QuantizedGroup(stored, device="cuda:0", measure_errors=True)
    on_cpu = QuantizedGroup(stored, measure_errors=True)
    assert on_device.global_scale() == on_cpu.global_scale()
    for index in range(2):
        codes, scales = (b"".join(map(bytes, ask(index))) for ask in (on_device.codes, on_device.block_scales))
        assert codes == b"".join(map(bytes, on_cpu.codes(index)))
        assert scales == b"".join(map(bytes, on_cpu.block_scales(index)))
        errors = on_device.error(index), on_cpu.error(index)
        assert errors[0] is not None
        assert errors[1] is not None
        assert errors[0].relative == pytest.approx(errors[1].relative, rel=1e-9)
    codes, scales = (b"".join(map(bytes, ask(0))) for ask in (on_device.codes, on_device.block_scales))
    file.write_bytes(codes + scales)
    packed = StoredTensor(file, 0, "U8", (64, 64)), StoredTensor(file, len(codes), "F8_E4M3", (64, 8))
    numbers = [b"".join(map(bytes, dequantize(*packed, 0.01, "F32", device=device))) for device in ("cuda", "cpu")]
    assert numbers[0] == numbers[1]
    assert toolkit.launched


def test_a_device_that_cannot_be_used_is_refused(
    toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "tensors.bin").write_bytes(bytes(256))
    stored = StoredTensor(tmp_path / "tensors.bin", 0, "BF16", (4, 32))
    for device, text in (("mps", "cannot be streamed through 'mps'"), ("no such", "no device 'no such'")):
        with pytest.raises(MtpfixError, match=text):
            QuantizedGroup([stored], device=device).global_scale()
    toolkit.known = set()
    with pytest.raises(MtpfixError, match="compiles for none of"):
        QuantizedGroup([stored], device="cuda").global_scale()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MtpfixError, match="PyTorch sees no CUDA device"):
        QuantizedGroup([stored], device="cuda").global_scale()
