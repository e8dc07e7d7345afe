"""Single numbers of stored tensors, read byte by byte: to look again at what torch computed, by another way.

Knows E2M1, E4M3, E8M0, BF16 and the layouts of NVFP4 and FP8. Slow, and meant for a handful of numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

from mtpfix.checkpoint.conventions import in_modelopt_names
from mtpfix.fix.holding import Held, Place
from mtpfix.model import Format

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
BLOCK = 128


def number(held: Held, index: int) -> float:
    """Return one number of a tensor, by its position row by row."""
    width = {"U8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "F16": 2, "F32": 4}[held.dtype]
    data = _bytes(held, index * width, width)
    match held.dtype:
        case "F32":
            return float(struct.unpack("<f", data)[0])
        case "F16":
            return float(struct.unpack("<e", data)[0])
        case "BF16":
            return float(struct.unpack("<f", b"\0\0" + data)[0])
        case "F8_E4M3":
            return e4m3(data[0])
        case "F8_E8M0":
            return float(2.0 ** (data[0] - 127))
        case _:
            return float(data[0])


def _bytes(held: Held, begin: int, count: int) -> bytes:
    if held.place is not None:
        there = Place(held.place.folder, held.place.file, held.place.begin + begin)
        return b"".join(there.read(count))
    return bytes(held.bytes()[begin : begin + count])


def e4m3(byte: int) -> float:
    """Return the number an E4M3 byte stands for."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = (byte >> 3) & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (mantissa * 2.0**-9 if exponent == 0 else (8 + mantissa) * 2.0 ** (exponent - 10))


@dataclass(frozen=True, slots=True)
class Weight:
    """One stored weight: its tensors by suffix, format, and logical shape."""

    parts: Mapping[str, Held]
    format: Format
    shape: tuple[int, ...]

    def value(self, index: int) -> tuple[float, float]:
        """Return the number at a position of the unpacked weight, row by row, and half the step of its format there."""
        columns = self.shape[-1]
        row, column = divmod(index, columns)
        match self.format:
            case Format.NVFP4 | Format.NVFP4_A16:
                packed = self._first("weight_packed", "weight", "")
                byte = int(number(packed, index // 2))
                code = (byte >> 4) if index % 2 else byte & 15
                scale = number(self._first("weight_scale"), row * (columns // 16) + column // 16) * self._global(row)
                return (-1 if code & 8 else 1) * E2M1[code & 7] * scale, scale
            case Format.FP8 | Format.FP8_CHANNEL | Format.FP8_BLOCK | Format.MXFP8:
                raw = number(self._first("weight", ""), index)
                value = raw * self._fp8_scale(row, column)
                return value, abs(value) / 16
            case Format.MXFP4:
                packed = self._first("blocks", "weight_packed", "weight", "")
                byte = int(number(packed, index // 2))
                code = (byte >> 4) if index % 2 else byte & 15
                exponent = self._first("scales", "weight_scale", "scale")
                scale = 2.0 ** (_byte(exponent, index // 32) - 127)
                return (-1 if code & 8 else 1) * E2M1[code & 7] * scale, scale
            case _:
                value = number(self._first("weight", ""), index)
                return value, abs(value) / 256

    def _bare(self) -> Mapping[str, Held]:
        return in_modelopt_names({suffix.removeprefix("_"): held for suffix, held in self.parts.items()})

    def _first(self, *suffixes: str) -> Held:
        bare = self._bare()
        return next(bare[suffix] for suffix in suffixes if suffix in bare)

    def _global(self, row: int) -> float:
        bare = self._bare()
        held = bare["weight_scale_2"] if "weight_scale_2" in bare else bare["weight_global_scale"]
        expert = row // self.shape[-2] if held.shape and held.shape[0] > 1 else 0
        value = number(held, expert)
        return 1 / value if "weight_global_scale" in bare and "weight_scale_2" not in bare else value

    def _fp8_scale(self, row: int, column: int) -> float:
        held = self._first("weight_scale", "weight_scale_inv", "scale")
        rows, columns = self.shape[-2:]
        expert, inner = divmod(row, rows)
        match self.format:
            case Format.FP8_CHANNEL:
                place = row
            case Format.FP8_BLOCK:
                across, down = -(-columns // BLOCK), -(-rows // BLOCK)
                place = (expert * down + inner // BLOCK) * across + column // BLOCK
            case Format.MXFP8:
                return float(2.0 ** (_byte(held, row * (columns // 32) + column // 32) - 127))
            case _:
                place = expert if held.shape and held.shape[0] > 1 else 0
        return float(2.0 ** (_byte(held, place) - 127)) if held.dtype in ("U8", "F8_E8M0") else number(held, place)


def _byte(held: Held, index: int) -> int:
    return _bytes(held, index, 1)[0]
