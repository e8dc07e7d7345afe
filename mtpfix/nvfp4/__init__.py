"""NVFP4: quantize plain and FP8 weights as ModelOpt stores them, and read them back.

Importing this package imports no torch: the names below do, when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtpfix.nvfp4.tensors import Quantized, dequantize, quantize, quantize_group, weight_error

__all__ = ["Quantized", "dequantize", "quantize", "quantize_group", "weight_error"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mtpfix.nvfp4.format import require_torch

    require_torch()
    from mtpfix.nvfp4 import tensors

    return getattr(tensors, name)
