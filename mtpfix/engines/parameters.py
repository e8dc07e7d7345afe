"""The parameters a quantized layer has in vLLM's loaders: which suffixes, of which dtype, of which shape.

Shapes are formulas over the rows `n` and columns `k` of the unpacked weight. Sources: vLLM's create_weights methods,
model_executor/layers/quantization/modelopt.py:1960@0.32.0, fp8.py:330@0.32.0, compressed_tensors/schemes/*@0.32.0,
auto_gptq.py:428@0.30.0, gptq_marlin.py:472@0.21.0.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mtpfix.model import Dialect, Format


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: the dtypes it may be stored in without loss, and its shape over (n, k).

    `needed` is whether a layer without it works wrongly; an unneeded one has a sound default.
    """

    dtypes: tuple[str, ...]
    shape: str
    needed: bool = True

    @property
    def blocked(self) -> bool:
        """Return whether it has a number for each block of rows and columns: loaders take any rank of those."""
        return "/128" in self.shape


PLAIN_DTYPES = ("BF16", "F16", "F32", "F64")
_WEIGHT = Parameter(PLAIN_DTYPES, "n,k")
_F8 = ("F8_E4M3",)
_SCALE = ("F32", "BF16", "F16")

PLAIN: Mapping[str, Parameter] = {"weight": _WEIGHT, "bias": Parameter(PLAIN_DTYPES, "n", needed=False)}
_BIAS = {"bias": PLAIN["bias"]}

_NVFP4: Mapping[str, Parameter] = {
    "weight": Parameter(("U8", "I8"), "n,k/2"),
    "weight_scale": Parameter(_F8, "n,k/16"),
    "weight_scale_2": Parameter(_SCALE, "1"),
    "input_scale": Parameter(_SCALE, "1"),
    **_BIAS,
}


def _gptq(bits: int) -> Mapping[str, Parameter]:
    """Return what GPTQ has, for Marlin kernels: words along the columns; how many groups there are is not said here."""
    return {
        "qweight": Parameter(("I32",), f"k/{32 // bits},n"),
        "qzeros": Parameter(("I32",), "?"),
        "scales": Parameter(PLAIN_DTYPES, "?"),
        "g_idx": Parameter(("I32",), "k", needed=False),
        **_BIAS,
    }


_TABLE: Mapping[tuple[Dialect, Format], Mapping[str, Parameter]] = {
    (Dialect.MODELOPT, Format.NVFP4): _NVFP4,
    (Dialect.MODELOPT, Format.NVFP4_A16): {**_NVFP4, "input_scale": Parameter(_SCALE, "1", needed=False)},
    (Dialect.MODELOPT, Format.FP8): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale": Parameter(_SCALE, "1"),
        "input_scale": Parameter(_SCALE, "1"),
        **_BIAS,
    },
    (Dialect.MODELOPT, Format.FP8_CHANNEL): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale": Parameter(_SCALE, "n"),
        **_BIAS,
    },
    (Dialect.MODELOPT, Format.FP8_BLOCK): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale": Parameter(_SCALE, "n/128,k/128"),
        **_BIAS,
    },
    (Dialect.MODELOPT, Format.MXFP8): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale": Parameter(("U8", "F8_E8M0"), "n,k/32"),
        **_BIAS,
    },
    (Dialect.COMPRESSED_TENSORS, Format.NVFP4): {
        "weight_packed": Parameter(("U8",), "n,k/2"),
        "weight_scale": Parameter(_F8, "n,k/16"),
        "weight_global_scale": Parameter(_SCALE, "1"),
        "input_global_scale": Parameter(_SCALE, "1"),
        **_BIAS,
    },
    (Dialect.COMPRESSED_TENSORS, Format.NVFP4_A16): {
        "weight_packed": Parameter(("U8",), "n,k/2"),
        "weight_scale": Parameter(_F8, "n,k/16"),
        "weight_global_scale": Parameter(_SCALE, "1"),
        **_BIAS,
    },
    (Dialect.COMPRESSED_TENSORS, Format.FP8): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale": Parameter(_SCALE, "1"),
        "input_scale": Parameter(_SCALE, "1", needed=False),
        **_BIAS,
    },
    (Dialect.COMPRESSED_TENSORS, Format.FP8_CHANNEL): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale": Parameter(_SCALE, "n,1"),
        "input_scale": Parameter(_SCALE, "1", needed=False),
        **_BIAS,
    },
    (Dialect.COMPRESSED_TENSORS, Format.FP8_BLOCK): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale": Parameter(_SCALE, "n/128,k/128"),
        **_BIAS,
    },
    (Dialect.COMPRESSED_TENSORS, Format.INT4): {
        "weight_packed": Parameter(("I32",), "?"),
        "weight_scale": Parameter(_SCALE, "?"),
        "weight_shape": Parameter(("I64", "I32"), "?"),
        "weight_zero_point": Parameter(("I32", "I8"), "?", needed=False),
        "weight_g_idx": Parameter(("I32",), "?", needed=False),
        **_BIAS,
    },
    (Dialect.COMPRESSED_TENSORS, Format.INT8): {
        "weight": Parameter(("I8",), "n,k", needed=False),
        "weight_packed": Parameter(("I32",), "?", needed=False),
        "weight_scale": Parameter(_SCALE, "?"),
        "weight_shape": Parameter(("I64", "I32"), "?", needed=False),
        "weight_zero_point": Parameter(("I32", "I8"), "?", needed=False),
        "input_scale": Parameter(_SCALE, "1", needed=False),
        **_BIAS,
    },
    (Dialect.OTHER, Format.INT4): _gptq(4),
    (Dialect.OTHER, Format.INT8): _gptq(8),
    (Dialect.OTHER, Format.FP8): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale": Parameter(_SCALE, "1"),
        "input_scale": Parameter(_SCALE, "1", needed=False),
        **_BIAS,
    },
    (Dialect.OTHER, Format.FP8_BLOCK): {
        "weight": Parameter(_F8, "n,k"),
        "weight_scale_inv": Parameter(("F32", "BF16", "F8_E8M0"), "n/128,k/128"),
        **_BIAS,
    },
}


def parameters_of(built: Format, dialect: Dialect) -> Mapping[str, Parameter]:
    """Return the parameters, by suffix, of a layer built in a format for checkpoints of a dialect."""
    if built.plain:
        return PLAIN
    return _TABLE.get((dialect, built), PLAIN)


def shape_of(parameter: Parameter, rows: int, columns: int) -> tuple[int, ...] | None:
    """Return the shape a parameter has for a weight of (rows, columns), or None where the formula does not say.

    A one-element parameter gives (), as a scalar.
    """
    if parameter.shape == "?":
        return None
    if parameter.shape == "1":
        return ()
    return tuple(_dimension(term, rows, columns) for term in parameter.shape.split(","))


def _dimension(term: str, rows: int, columns: int) -> int:
    letter, _, divisor = term.partition("/")
    size = {"n": rows, "k": columns}.get(letter)
    if size is None:
        return int(letter)
    return size if not divisor else -(-size // int(divisor))
