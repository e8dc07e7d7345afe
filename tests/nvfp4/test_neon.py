"""The NEON variant, compiled for 64-bit ARM and run by an emulator, against plain torch on this machine."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mtpfix.nvfp4 import reference
from mtpfix.nvfp4.format import FLOAT32_MAX, scale_of
from tests.nvfp4 import numbers

COMPILER, EMULATOR = shutil.which("aarch64-linux-gnu-gcc"), shutil.which("qemu-aarch64")
TOLD = os.environ.get("CI") and shutil.which("apt-get") and os.geteuid() == 0  # there .ci/run installs both
pytestmark = [
    pytest.mark.conformance,
    pytest.mark.skipif(not (COMPILER and EMULATOR) and not TOLD, reason="no aarch64-linux-gnu-gcc, or no qemu-aarch64"),
]

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "mtpfix" / "nvfp4"
AMAX8, AMAX16, AMAX32, QUANTIZE, DEQUANTIZE, EXPAND = range(6)
PLAIN = (torch.bfloat16, torch.float16, torch.float32)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


class Emulated:
    """A variant as a program; requests are gathered and run together, as an emulator starts slowly."""

    def __init__(self, program: Path, variant: str) -> None:
        self.command = [str(EMULATOR), str(program), variant]
        self.requests = bytearray()
        self.wanted: list[tuple[str, bytes]] = []

    def ask(
        self,
        what: str,
        operation: int,
        source: bytes,
        count: int,
        wanted: bytes,
        *,
        dtype: int = 0,
        scale: float = 1.0,
        search: bool = False,
    ) -> None:
        (bits,) = struct.unpack("<I", struct.pack("<f", scale))
        self.requests += struct.pack("<6I", operation, dtype, count, bits, search, len(source)) + source
        self.wanted.append((what, wanted))

    def check(self) -> None:
        done = subprocess.run(self.command, input=bytes(self.requests), stdout=subprocess.PIPE, check=True, timeout=300)
        at = 0
        for what, wanted in self.wanted:
            assert done.stdout[at : at + len(wanted)] == wanted, what
            at += len(wanted)
        assert at == len(done.stdout) > 0


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("neon") / "variants"
    files = [HERE / "variants.c", *(SOURCES / f"{name}.c" for name in ("portable", "neon", "avx2", "avx512"))]
    flags = ["-O3", "-std=c11", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-static", f"-I{SOURCES}"]
    subprocess.run([str(COMPILER), *flags, *map(str, files), "-o", str(target)], check=True)
    return target


@pytest.fixture(params=["neon", "portable"])
def emulated(request: pytest.FixtureRequest, program: Path) -> Iterator[Emulated]:
    variant = Emulated(program, request.param)
    yield variant
    variant.check()


@pytest.mark.parametrize("search", [False, True])
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_quantizing_gives_the_bytes_of_plain_torch(emulated: Emulated, dtype: torch.dtype, search: bool) -> None:
    samples = list(numbers.adversarial(dtype))
    samples += [
        (of.__name__, numbers.finite(of(1 << 17), dtype, 2048)) for of in (numbers.gaussian, numbers.heavy_tailed)
    ]
    for name, weight in samples:
        amax = reference.measure(weight)
        for factor in (1, 64, 1e-6):
            scale = scale_of(min(amax * factor, FLOAT32_MAX))
            packed, block_scale = reference.pack(weight, scale, scale_search=search)
            kind = PLAIN.index(dtype)
            emulated.ask(
                *(f"{name} * {factor}", QUANTIZE, raw(weight), weight.numel(), raw(packed) + raw(block_scale)),
                dtype=kind,
                scale=scale,
                search=search,
            )


def test_any_number_of_blocks_is_quantized(emulated: Emulated) -> None:
    for blocks in range(12):
        weight = numbers.gaussian(blocks * 16).to(torch.bfloat16).view(1, -1)
        packed, block_scale = reference.pack(weight, 0.001)
        emulated.ask(f"{blocks}", QUANTIZE, raw(weight), blocks * 16, raw(packed) + raw(block_scale), scale=0.001)


@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_every_code_is_read_under_every_scale(emulated: Emulated, dtype: torch.dtype) -> None:
    scales = torch.arange(128).to(torch.uint8).view(torch.float8_e4m3fn).view(-1, 1)
    packed = (torch.arange(8) * 34 + 16).to(torch.uint8).repeat(128, 1)
    for factor in (1.0, 1 / 2688, 3e-7, 2.0**-126, 2.0**-149, 1e34):
        scale = scale_of(factor * 2688)
        wanted = reference.unpack(packed[:127], scales[:127], scale, dtype)
        source = raw(packed[:127]) + raw(scales[:127])
        emulated.ask(f"{factor}", DEQUANTIZE, source, 127 * 16, raw(wanted), dtype=PLAIN.index(dtype), scale=scale)


def test_fp8_is_expanded_as_plain_torch_does(emulated: Emulated) -> None:
    codes = torch.arange(256).to(torch.uint8).repeat(3)[:-5].view(torch.float8_e4m3fn)
    for scale in (1.0, 3e-3, 2.0**-130, 1e36, 1e-45):
        wanted = (codes.float() * torch.tensor(scale)).to(torch.bfloat16)
        quiet = torch.where(wanted.isnan(), torch.tensor(0x7FC0, dtype=torch.int16), wanted.view(torch.int16))
        emulated.ask(f"{scale}", EXPAND, raw(codes), len(codes), raw(quiet), scale=scale)


def test_the_largest_magnitude_is_found_wherever_it_is(emulated: Emulated) -> None:
    for operation, dtype, mask in (
        (AMAX8, torch.uint8, 0x7F),
        (AMAX16, torch.int16, 0x7FFF),
        (AMAX32, torch.int32, 0x7FFFFFFF),
    ):
        for place in range(50):
            source = torch.full((50,), 5, dtype=dtype)
            source[place] = -1 if dtype != torch.uint8 else 255
            emulated.ask(f"{dtype} at {place}", operation, raw(source), 50, struct.pack("<I", mask))
        emulated.ask("none", operation, b"", 0, bytes(4))
