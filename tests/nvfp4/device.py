"""The CUDA kernels on an emulated device: compiled by the host's C++ compiler, called with torch tensors on the CPU."""

from __future__ import annotations

import ctypes
import mmap
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
SOURCES = HERE.parent.parent / "mtpfix" / "nvfp4"
COMPILER = shutil.which("g++") or shutil.which("clang++")
KINDS = {torch.bfloat16: "bfloat16", torch.float16: "float16", torch.float32: "float32"}
POISON = 0xA5
MARGIN = 64


class Guarded:
    """Memory whose last byte is followed by a page that cannot be read, and that begins at a chosen misalignment."""

    def __init__(self, content: bytes, misaligned: int = 0) -> None:
        pages = (len(content) + misaligned + 16 + mmap.PAGESIZE - 1) // mmap.PAGESIZE + 1
        self.memory = mmap.mmap(-1, pages * mmap.PAGESIZE)
        base = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        end = base + (pages - 1) * mmap.PAGESIZE
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mprotect(ctypes.c_void_p(end), ctypes.c_size_t(mmap.PAGESIZE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
        self.address = (end - len(content)) // 16 * 16 - (16 - misaligned if misaligned else 0)
        ctypes.memmove(self.address, content, len(content))


@dataclass(frozen=True)
class Launch:
    grid: int = 3
    block: int = 64
    misaligned: int = 0

    @property
    def size(self) -> tuple[int, int]:
        return self.grid, self.block


def compile_kernels(folder: Path, *definitions: str) -> ctypes.CDLL:
    library = folder / f"kernels{len(definitions)}.so"
    if COMPILER is None:
        raise FileNotFoundError("no C++ compiler")
    fma = ["-mfma"] if platform.machine() == "x86_64" and " fma " in Path("/proc/cpuinfo").read_text() else []
    done = subprocess.run(
        [
            *(COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *fma),
            *("-ffp-contract=off", "-shared", "-fPIC", f"-I{SOURCES}", f"-I{HERE}"),
            *(f"-D{definition}" for definition in definitions),
            *(str(HERE / "emulated.cpp"), "-o", str(library)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return ctypes.CDLL(str(library))


class Device:
    """Runs kernels and complains about faults and about bytes written outside of the outputs."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.loaded = library

    def launch(self, kernel: str, grid: int, block: int, *arguments: object) -> None:
        """Start a kernel as cuLaunchKernel does: whole numbers are pointers, everything else is a ctypes value."""
        values = [ctypes.c_void_p(value) if isinstance(value, int) else value for value in arguments]
        pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))  # type: ignore[arg-type]
        function = getattr(self.loaded, f"launch_{kernel}")
        function.restype = ctypes.c_char_p
        fault = function(ctypes.c_uint32(grid), ctypes.c_uint32(block), pointers, ctypes.c_uint32(len(values)))
        if fault:
            raise RuntimeError(f"{kernel}: {fault.decode()}")

    def amax(self, weight: Tensor, scale_inv: Tensor | None = None, launch: Launch | None = None) -> float:
        launch = launch or Launch()
        slot = torch.zeros(1, dtype=torch.int32)
        source = Guarded(raw(weight), launch.misaligned)
        table = shape_of(weight, scale_inv, 0)
        kernel = f"amax_{kind_of(weight)}"
        self.launch(kernel, *launch.size, source.address, blocks_of(weight), *table, slot.data_ptr())
        return slot.view(torch.float32).item()

    def global_scale(self, *amaxes: float) -> float:
        slot, scale = torch.tensor([max(amaxes)], dtype=torch.float32), torch.full((1,), -1.0)
        self.launch("global_scale", 1, 32, slot.data_ptr(), scale.data_ptr())
        return scale.item()

    def quantize(
        self,
        weight: Tensor,
        global_scale: float,
        scale_inv: Tensor | None = None,
        *,
        search: bool = False,
        launch: Launch | None = None,
        first_row: int = 0,
    ) -> tuple[Tensor, Tensor]:
        launch = launch or Launch()
        rows, columns = weight.shape
        packed, scales = Output(rows * columns // 2), Output(rows * columns // 16)
        shared = torch.tensor([global_scale], dtype=torch.float32)
        source = Guarded(raw(weight), launch.misaligned)
        table = shape_of(weight, scale_inv, first_row)
        kernel = f"{'search' if search else 'quantize'}_{kind_of(weight)}"
        targets = shared.data_ptr(), packed.address, scales.address
        self.launch(kernel, *launch.size, source.address, blocks_of(weight), *table, *targets)
        return packed.taken().view(rows, -1), scales.taken().view(rows, -1).view(torch.float8_e4m3fn)

    def dequantize(
        self, packed: Tensor, scales: Tensor, global_scale: float, dtype: torch.dtype, launch: Launch | None = None
    ) -> Tensor:
        launch = launch or Launch()
        rows, half = packed.shape
        numbers = Output(rows * half * 2 * dtype.itemsize)
        shared = torch.tensor([global_scale], dtype=torch.float32)
        codes, stored = Guarded(raw(packed)), Guarded(raw(scales))
        blocks = ctypes.c_uint32(rows * half // 8)
        given = codes.address, stored.address, blocks, shared.data_ptr(), numbers.address
        self.launch(f"dequantize_{KINDS[dtype]}", *launch.size, *given)
        return numbers.taken().view(dtype).view(rows, -1)


def raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def kind_of(weight: Tensor) -> str:
    return KINDS.get(weight.dtype, "float8_blocks")


def blocks_of(weight: Tensor) -> ctypes.c_uint32:
    return ctypes.c_uint32(weight.numel() // 16)


def shape_of(weight: Tensor, scale_inv: Tensor | None, first_row: int) -> tuple[object, ...]:
    if scale_inv is None:
        return ()
    return ctypes.c_uint32(weight.shape[1] // 16), scale_inv.data_ptr(), ctypes.c_uint32(first_row)


class Output:
    """Memory for a result, poisoned before and behind it, aligned to 16 bytes."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.memory = torch.full((size + 2 * MARGIN + 16,), POISON, dtype=torch.uint8)
        self.begin = MARGIN + -(self.memory.data_ptr() + MARGIN) % 16
        self.address = self.memory.data_ptr() + self.begin

    def taken(self) -> Tensor:
        poisoned = torch.cat((self.memory[: self.begin], self.memory[self.begin + self.size :])) == POISON
        if not bool(poisoned.all()):
            raise RuntimeError("a kernel wrote outside of its output")
        return self.memory[self.begin : self.begin + self.size].clone()
