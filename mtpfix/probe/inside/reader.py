"""Safetensors files of which only small tensors are read: of a large one, its shape and type become a hollow tensor."""

from __future__ import annotations

import json
import os
from typing import Any

from .hollow import Arena

TYPES = {
    "BF16": "bfloat16",
    "BOOL": "bool",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "I8": "int8",
    "U8": "uint8",
}


SAMPLE = 4096
"""Bytes that are read at the beginning, in the middle and at the end of a tensor to know it again."""


def make_reader(original: Any, arena: Arena) -> type:
    """Return a class that stands for `safetensors.safe_open`, which it asks for everything but large tensors."""

    class Reader:
        """An open file."""

        def __init__(self, path: Any, *arguments: Any, **named: Any) -> None:
            self.path = path
            self.file = original(path, *arguments, **named)

        def __enter__(self) -> Any:
            self.file.__enter__()
            return self

        def __exit__(self, *raised: object) -> Any:
            return self.file.__exit__(*raised)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

        def get_tensor(self, name: str) -> Any:
            import torch

            part = self.file.get_slice(name)
            shape, dtype = part.get_shape(), getattr(torch, TYPES.get(part.get_dtype(), ""), None)
            if dtype is None or not shape or not arena.is_large(torch.empty(shape, dtype=dtype, device="meta")):
                return self.file.get_tensor(name)
            with arena.pause():
                tensor = arena.allocate(torch.empty(shape, dtype=dtype, device="meta"))

            arena.samples[tensor.untyped_storage().data_ptr()] = lambda: sample(self.path, name)
            return tensor

    return Reader


def sample(path: Any, name: str) -> list[bytes]:
    """Return a few bytes of a stored tensor."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        begin, end = json.loads(file.read(size))[name]["data_offsets"]
        places = (begin, begin + (end - begin) // 2, max(begin, end - SAMPLE))
        return [os.pread(file.fileno(), min(SAMPLE, end - place), 8 + size + place) for place in places]
