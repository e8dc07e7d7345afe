"""Which stored formats can be turned into which others.

Says nothing of whether an engine wants that.
"""

from __future__ import annotations

import math

from mtpfix.model import Format, Stored

NVFP4 = (Format.NVFP4, Format.NVFP4_A16)


def restorable(stored: Stored) -> bool:
    """Return whether plain weights can be computed from what is stored."""
    known = (*NVFP4, Format.FP8, Format.FP8_BLOCK, Format.FP8_CHANNEL, Format.MXFP4, Format.MXFP8)
    return stored.format in known and not stored.missing and len(stored.shape) >= 2


def packable(stored: Stored | None) -> bool:
    """Return whether a module's weight can be stored in NVFP4."""
    return (
        stored is not None
        and (stored.format.plain or stored.format is Format.FP8_BLOCK)
        and len(stored.shape) in (2, 3)
        and stored.shape[-1] % 16 == 0
        and math.prod(stored.shape) > 0
    )
