from typing import TypeAlias

from typing_extensions import Buffer

# an object with a buffer, whose size is checked, or an address, whose size is not
Memory: TypeAlias = Buffer | int

def amax(source: Memory, dtype: int, count: int, /) -> float: ...
def amax_fp8(source: Memory, scale_inv: Memory, rows: int, columns: int, first: int, /) -> float: ...
def quantize(
    source: Memory, dtype: int, count: int, global_scale: float, search: bool, packed: Memory, scales: Memory, /
) -> None: ...
def quantize_fp8(
    source: Memory,
    scale_inv: Memory,
    rows: int,
    columns: int,
    first: int,
    global_scale: float,
    search: bool,
    packed: Memory,
    scales: Memory,
    /,
) -> None: ...
def dequantize(
    packed: Memory, scales: Memory, dtype: int, count: int, global_scale: float, target: Memory, /
) -> None: ...
def measure_error(
    source: Memory, dtype: int, count: int, global_scale: float, packed: Memory, scales: Memory, /
) -> tuple[float, float]: ...
def measure_error_fp8(
    source: Memory, scale_inv: Memory, rows: int, columns: int, global_scale: float, packed: Memory, scales: Memory, /
) -> tuple[float, float]: ...
def variants() -> list[str]: ...
def use(name: str, /) -> None: ...
def used() -> str: ...
