"""NVFP4 of torch tensors in a GPU's memory, by our kernels: the same three functions as `reference`.

Launches on torch's current stream, so that work before and after it on that stream needs no waiting. Knows grids and
arguments; what the kernels compute is in `nvfp4.cu`, and where their machine code comes from in `cubin`.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mtpfix.errors import MtpfixError
from mtpfix.nvfp4 import cubin, reference
from mtpfix.nvfp4.format import BLOCK, FP8_BLOCK
from mtpfix.nvfp4.paths import Route
from mtpfix.nvfp4.workspace import Workspace

KINDS = {
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float32: "float32",
    torch.float8_e4m3fn: "float8_blocks",
}
"""What kernels call the dtypes."""

FORMATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn}

THREADS = 256

MOST_BLOCKS = 1 << 28
"""Blocks of 16 numbers in one launch: the kernels count 16 bytes at a time in 32 bits."""


def measure(weight: Tensor, scale_inv: Tensor | None = None) -> float:
    """Return the largest magnitude of a matrix; NaN where it holds one. Arguments as in `reference.measure`.

    Waits for the device.
    """
    slot = torch.zeros(1, dtype=torch.int32, device=weight.device)
    launch_measure(weight.contiguous(), widened(scale_inv), slot)
    return float(slot.view(torch.float32))


def pack(
    weight: Tensor, global_scale: float, scale_inv: Tensor | None = None, *, scale_search: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the codes and block scales of a matrix. Arguments and result as in `reference.pack`."""
    rows, columns = weight.shape
    packed = torch.empty((rows, columns // 2), dtype=torch.uint8, device=weight.device)
    scales = torch.empty((rows, columns // BLOCK), dtype=torch.float8_e4m3fn, device=weight.device)
    shared = torch.full((1,), global_scale, dtype=torch.float32, device=weight.device)
    launch_pack(weight.contiguous(), widened(scale_inv), shared, packed, scales, search=scale_search)
    return packed, scales


def unpack(packed: Tensor, block_scale: Tensor, global_scale: float, dtype: torch.dtype) -> Tensor:
    """Return the matrix that codes and scales stand for. Arguments and result as in `reference.unpack`."""
    rows, half = packed.shape
    weight = torch.empty((rows, half * 2), dtype=dtype, device=packed.device)
    shared = torch.full((1,), global_scale, dtype=torch.float32, device=packed.device)
    launch_unpack(aligned(packed), aligned(block_scale), shared, weight)
    return weight


def measure_error(
    weight: Tensor, packed: Tensor, block_scale: Tensor, global_scale: float, scale_inv: Tensor | None = None
) -> tuple[float, float]:
    """Return the sums of squares of a matrix and of its errors. Arguments as in `reference.measure_error`.

    Plain torch, as it is for reports alone.
    """
    return reference.measure_error(weight, packed, block_scale, global_scale, scale_inv)


def survey() -> Route:
    """Say whether the kernels run on torch's current device, or in one line why not."""
    return survey_of(torch.cuda.current_device())


@functools.cache
def survey_of(index: int) -> Route:
    """Say the same of one device."""
    chip = torch.cuda.get_device_name(index)
    try:
        kernels = load(index)
    except ImportError as problem:
        why = f"cuda-core cannot be imported ({cubin.first_line(problem)}): pip install 'mtpfix[cuda]'"
        return Route("cuda", "cuda", f"CUDA kernels, {chip}", runs=False, why=why)
    except MtpfixError as problem:
        return Route("cuda", "cuda", f"CUDA kernels, {chip}", runs=False, why=problem.message)
    except Exception as problem:  # noqa: BLE001 - whatever a driver says, plain torch still works
        why = f"the driver does not take them: {cubin.first_line(problem)}"
        return Route("cuda", "cuda", f"CUDA kernels, {chip}", runs=False, why=why)
    return Route("cuda", "cuda", f"CUDA kernels, {chip} ({kernels.target.name})", runs=True, why=kernels.why)


# ----------------------------------------------------------------------------------------------- launches


def launch_measure(weight: Tensor, scale_inv: Tensor | None, slot: Tensor) -> None:
    """Raise `slot` (int32 [1], the bits of an FP32 number) to the largest magnitude of a contiguous matrix."""
    for part in parts(weight):
        arguments = [address(part), uint32(part.numel() // BLOCK), *table(part, weight, scale_inv), address(slot)]
        launch(f"amax_{KINDS[weight.dtype]}", part, part.numel() // BLOCK, *arguments)


def launch_pack(
    weight: Tensor, scale_inv: Tensor | None, shared: Tensor, packed: Tensor, scales: Tensor, *, search: bool
) -> None:
    """Fill `packed` and `scales` (contiguous, aligned to 16 bytes) under the global scale in `shared` (FP32 [1])."""
    kernel = f"{'search' if search else 'quantize'}_{KINDS[weight.dtype]}"
    row = 0
    for part in parts(weight):
        blocks, end = part.numel() // BLOCK, row + len(part)
        targets = address(shared), address(packed[row:end]), address(scales[row:end])
        launch(kernel, part, blocks, address(part), uint32(blocks), *table(part, weight, scale_inv), *targets)
        row = end


def launch_unpack(packed: Tensor, scales: Tensor, shared: Tensor, weight: Tensor) -> None:
    """Fill `weight` from contiguous codes and scales under the global scale in `shared` (FP32 [1])."""
    row = 0
    for part in parts(weight):
        blocks, end = part.numel() // BLOCK, row + len(part)
        stored = address(packed[row:end]), address(scales[row:end]), uint32(blocks)
        launch(f"dequantize_{KINDS[weight.dtype]}", part, blocks, *stored, address(shared), address(part))
        row = end


def launch(name: str, on: Tensor, blocks: int, *arguments: object) -> None:
    """Start a kernel for so many blocks of 16 numbers on torch's current stream of the device where `on` lies."""
    from cuda.core import LaunchConfig
    from cuda.core import launch as start

    index = device_index(on)
    with on_device(index):
        kernels = load(index)
        grid = min(kernels.resident(name), -(-blocks // (THREADS // 4)))
        start(CurrentStream(index), LaunchConfig(grid=grid, block=THREADS), kernels.kernel(name), *arguments)


def parts(matrix: Tensor) -> Iterator[Tensor]:
    """Yield rows of a matrix, each time as many as one launch may take; nothing of an empty one."""
    if not matrix.numel():
        return
    step = max(1, MOST_BLOCKS * BLOCK // matrix.shape[1])
    for begin in range(0, len(matrix), step):
        yield matrix[begin : begin + step]


def table(part: Tensor, weight: Tensor, scale_inv: Tensor | None) -> tuple[object, ...]:
    """Return the arguments that FP8 kernels take besides: blocks in a row, `weight_scale_inv`, the first row."""
    if scale_inv is None:
        return ()
    columns = weight.shape[1]
    first = (part.data_ptr() - weight.data_ptr()) // columns
    return uint32(columns // BLOCK), address(scale_inv), uint32(first)


def widened(scale_inv: Tensor | None) -> Tensor | None:
    """Return `weight_scale_inv` in FP32, contiguous."""
    return None if scale_inv is None else scale_inv.float().contiguous()


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor contiguous from an address that is a multiple of 16: stored codes are read in words."""
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % 16 == 0 else tensor.clone()


def address(tensor: Tensor) -> int:
    """Return where a tensor lies; cuda-core passes a Python integer as a pointer."""
    return tensor.data_ptr()


def uint32(number: int) -> ctypes.c_uint32:
    """Return a number as the kernels take counts."""
    return ctypes.c_uint32(number)


# --------------------------------------------------------------------------------------------- workspaces


class DeviceWorkspace:
    """Room for one piece in pinned memory and on the device, with a stream of its own: see `workspace.Workspace`.

    Pieces in several workspaces overlap: one is copied to the device while another is computed and a third copied back.
    """

    def __init__(self, index: int, count: int, width: int) -> None:
        self._stream = new_stream(index)
        self._source = Mirrored(index, count * width)
        self._codes = Mirrored(index, count // 2)
        self._scales = Mirrored(index, count // BLOCK)
        self._slot = Mirrored(index, 4)
        self._shared = Mirrored(index, 4)

    def source(self, size: int) -> memoryview:
        """Return where so many bytes of the source are to be put."""
        return self._source.memory[:size]

    def codes(self, count: int) -> memoryview:
        """Return the room for the codes of `count` numbers."""
        return self._codes.memory[: count // 2]

    def scales(self, count: int) -> memoryview:
        """Return the room for the block scales of `count` numbers."""
        return self._scales.memory[: count // BLOCK]

    def measure(self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None) -> float:
        """Return the largest magnitude."""
        with on_stream(self._stream):
            weight = self._weight(dtype, count, columns)
            slot = self._slot.device.zero_().view(torch.int32)
            launch_measure(weight, self._table(scales_of_fp8, columns), slot)
            self._slot.fetch(4)
        self._stream.synchronize()
        return float(self._slot.host.view(torch.float32))

    def quantize(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None, scale: float, *, search: bool
    ) -> None:
        """Fill codes and block scales."""
        with on_stream(self._stream):
            weight = self._weight(dtype, count, columns)
            rows = len(weight)
            packed = self._codes.device[: count // 2].view(rows, -1)
            scales = self._scales.device[: count // BLOCK].view(rows, -1)
            table = self._table(scales_of_fp8, columns)
            launch_pack(weight, table, self._given(scale), packed, scales, search=search)
            self._codes.fetch(count // 2)
            self._scales.fetch(count // BLOCK)
        self._stream.synchronize()

    def measure_error(
        self, dtype: str, count: int, columns: int, scales_of_fp8: memoryview | None, scale: float
    ) -> tuple[float, float]:
        """Return the sums of squares; source and results are still on the device."""
        with on_stream(self._stream):
            flat = self._source.device[: count * FORMATS[dtype].itemsize].view(FORMATS[dtype])
            weight = flat.view(-1, columns if dtype == "F8_E4M3" else BLOCK)
            rows = len(weight)
            packed = self._codes.device[: count // 2].view(rows, -1)
            scales = self._scales.device[: count // BLOCK].view(torch.float8_e4m3fn).view(rows, -1)
            return measure_error(weight, packed, scales, scale, self._table(scales_of_fp8, columns))

    def dequantize(self, dtype: str, count: int, scale: float) -> memoryview:
        """Return the numbers' bytes."""
        size = count * FORMATS[dtype].itemsize
        with on_stream(self._stream):
            self._codes.send(count // 2)
            self._scales.send(count // BLOCK)
            weight = self._source.device[:size].view(FORMATS[dtype]).view(-1, BLOCK)
            packed = self._codes.device[: count // 2].view(-1, BLOCK // 2)
            scales = self._scales.device[: count // BLOCK].view(-1, 1)
            launch_unpack(packed, scales, self._given(scale), weight)
            self._source.fetch(size)
        self._stream.synchronize()
        return self._source.memory[:size]

    def _weight(self, dtype: str, count: int, columns: int) -> Tensor:
        size = count * FORMATS[dtype].itemsize
        self._source.send(size)
        flat = self._source.device[:size].view(FORMATS[dtype])
        return flat.view(-1, columns if dtype == "F8_E4M3" else BLOCK)

    def _table(self, scales_of_fp8: memoryview | None, columns: int) -> Tensor | None:
        if scales_of_fp8 is None:
            return None
        table = torch.frombuffer(bytearray(scales_of_fp8), dtype=torch.float32)
        return table.view(-1, -(-columns // FP8_BLOCK)).to(self._source.device.device)

    def _given(self, scale: float) -> Tensor:
        self._shared.host.view(torch.float32).fill_(scale)
        self._shared.send(4)
        return self._shared.device.view(torch.float32)


class Mirrored:
    """So many bytes in pinned memory (`memory` and `host` are the same) and on the device."""

    def __init__(self, index: int, size: int) -> None:
        self.host = pinned(size)
        self.device = torch.empty(size, dtype=torch.uint8, device=device_of(index))
        self.memory = memoryview((ctypes.c_char * size).from_address(self.host.data_ptr())).cast("B")

    def send(self, size: int) -> None:
        """Copy to the device, on the current stream."""
        self.device[:size].copy_(self.host[:size], non_blocking=True)

    def fetch(self, size: int) -> None:
        """Copy from the device, on the current stream."""
        self.host[:size].copy_(self.device[:size], non_blocking=True)


def open_workspace(device: str) -> Callable[[int, int], Workspace]:
    """Return what makes a workspace for `count` numbers of `width` bytes on a CUDA device.

    Raises MtpfixError where the kernels do not run there.
    """
    index = index_of(device)
    route = survey_of(index)
    if not route.runs:
        raise MtpfixError(f"{route.title} cannot be used: {route.why}", "quantize on the CPU: the bytes are the same")
    return functools.partial(DeviceWorkspace, index)


# ------------------------------------------------------------------------------------------------- devices


class Kernels:
    """The kernels on one device, loaded when first asked for."""

    def __init__(self, index: int) -> None:
        from cuda.core import Device, ObjectCode

        Device(index).set_current()
        properties = torch.cuda.get_device_properties(index)
        compiled = cubin.obtain((properties.major, properties.minor))
        make = ObjectCode.from_cubin if compiled.target.kind == "cubin" else ObjectCode.from_ptx
        self.target = compiled.target
        self._code = make(compiled.code, name="nvfp4")
        self._multiprocessors = properties.multi_processor_count
        own = cubin.targets_for((properties.major, properties.minor))[0]
        self.why = f"compiled for {own.name}" if self.target == own else self._reason(own)
        self._kernels: dict[str, Any] = {}
        self.kernel("global_scale")  # fails now where the driver is older than the code

    def _reason(self, own: cubin.Target) -> str:
        version = ".".join(map(str, cubin.compiler_version()))
        how = "translated by the driver" if self.target.kind == "ptx" else "without the FP4 instruction"
        return (
            f"NVRTC {version} is too old for {own.name}: compiled for {self.target.name}, {how}; the bytes are the same"
        )

    def kernel(self, name: str) -> Any:
        """Return a kernel by its name in the source."""
        if name not in self._kernels:
            self._kernels[name] = self._code.get_kernel(name)
        return self._kernels[name]

    def resident(self, name: str) -> int:
        """Return how many blocks of threads the device holds at a time: the kernels go over the rest themselves."""
        occupancy = self.kernel(name).occupancy
        each = int(occupancy.max_active_blocks_per_multiprocessor(THREADS, 0))
        return max(1, each) * self._multiprocessors


@functools.cache
def load(index: int) -> Kernels:
    """Return the kernels on a device. Raises ImportError without cuda-core, MtpfixError where none can be had."""
    with on_device(index):
        return Kernels(index)


class CurrentStream:
    """torch's current stream of a device, as cuda-core asks for foreign streams."""

    def __init__(self, index: int) -> None:
        self._handle = int(torch.cuda.current_stream(index).cuda_stream)

    def __cuda_stream__(self) -> tuple[int, int]:
        """Return the protocol's version and the stream."""
        return 0, self._handle


def on_device(index: int) -> Any:
    """Return a context in which a device is torch's current one."""
    return torch.cuda.device(index)


def on_stream(stream: Any) -> Any:
    """Return a context in which a stream, and its device, are torch's current ones."""
    return torch.cuda.stream(stream)


def new_stream(index: int) -> Any:
    """Return a stream of its own on a device."""
    return torch.cuda.Stream(index)  # type: ignore[no-untyped-call]


def pinned(size: int) -> Tensor:
    """Return so many bytes of memory that the device can copy from by itself."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=True)


def device_of(index: int) -> torch.device:
    """Return torch's name of a device."""
    return torch.device("cuda", index)


def index_of(device: str) -> int:
    """Return the number of a device, torch's current one where the name has none. Raises MtpfixError."""
    if not torch.cuda.is_available():
        raise MtpfixError(f"{device} was asked for, and PyTorch sees no CUDA device", "leave the device out")
    try:
        named = torch.device(device)
    except RuntimeError as problem:
        raise MtpfixError(f"there is no device {device!r}: {cubin.first_line(problem)}", "cpu or cuda:0") from None
    if named.type != "cuda":
        raise MtpfixError(f"weights cannot be streamed through {device!r}", "cpu or cuda:0")
    number: int | None = named.index  # torch declares it as never None
    return torch.cuda.current_device() if number is None else number


def device_index(tensor: Tensor) -> int:
    """Return the number of the device where a tensor lies."""
    return tensor.device.index or 0
