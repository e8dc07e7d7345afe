"""What each dialect calls the parts of a weight in NVFP4, and in which numbers it keeps the scales of one number.

A global scale is one number for the weight, and the scale of inputs one for what it is multiplied with. In ModelOpt's
sense both are the largest magnitude over 2688, the largest that a block's scale and a code make together, 448 * 6.
compressed-tensors keeps the reciprocals. AMAX, the dialect of stacked experts whose scales hang on the weight's own
name, keeps the global scale as ModelOpt does and, in place of the scale of inputs, their largest magnitude itself:
models/inkling/nvidia/moe.py:563@0.32.0 of vLLM reads it so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from mtpfix.model import Dialect

LARGEST = 2688.0
"""The largest number that a block's scale and a code make together: 448 * 6."""

_Part = TypeVar("_Part")


@dataclass(frozen=True, slots=True)
class Convention:
    """The suffixes of one dialect: of the packed weight, its block scales, its global scale and the scale of inputs.

    `beside` are suffixes of tensors that say nothing of the weight's numbers.
    """

    weight: str
    block_scale: str
    global_scale: str
    input_scale: str
    beside: tuple[str, ...] = ()

    @property
    def scalars(self) -> tuple[str, str]:
        """Return the suffixes of the scales of one number."""
        return self.global_scale, self.input_scale


CONVENTIONS: Mapping[Dialect, Convention] = {
    Dialect.MODELOPT: Convention("weight", "weight_scale", "weight_scale_2", "input_scale"),
    Dialect.COMPRESSED_TENSORS: Convention(
        "weight_packed", "weight_scale", "weight_global_scale", "input_global_scale"
    ),
    Dialect.AMAX: Convention("", "scale", "scale2", "input_amax", beside=("original_shape",)),
}
"""By dialect; OTHER has none."""

_AMAX = CONVENTIONS[Dialect.AMAX]
_TELLING = frozenset({_AMAX.global_scale, _AMAX.input_scale, *_AMAX.beside})
_MODELOPT = {
    _AMAX.block_scale: CONVENTIONS[Dialect.MODELOPT].block_scale,
    _AMAX.global_scale: CONVENTIONS[Dialect.MODELOPT].global_scale,
}


def is_amax(parts: Mapping[str, object]) -> bool:
    """Return whether a module's suffixes are those of AMAX; a lone `scale` is what others have, too."""
    return not _TELLING.isdisjoint(parts)


def in_modelopt_names(parts: Mapping[str, _Part]) -> dict[str, _Part]:
    """Return the parts of a module by suffix, those of AMAX under the names that ModelOpt has for what they hold.

    Those that say nothing of the numbers are left out.
    """
    if not is_amax(parts):
        return dict(parts)
    return {_MODELOPT.get(suffix, suffix): part for suffix, part in parts.items() if suffix not in _AMAX.beside}


def written_input_scale(value: float, dialect: Dialect) -> float:
    """Return the number that a dialect keeps for a scale of inputs in ModelOpt's sense."""
    match dialect:
        case Dialect.COMPRESSED_TENSORS:
            return 1 / value
        case Dialect.AMAX:
            return value * LARGEST
        case _:
            return value


def read_input_scale(number: float, dialect: Dialect) -> float:
    """Return the scale of inputs in ModelOpt's sense for the number that a dialect keeps."""
    match dialect:
        case Dialect.COMPRESSED_TENSORS:
            return 1 / number
        case Dialect.AMAX:
            return number / LARGEST
        case _:
            return number
