"""The scale of a module's inputs where the checkpoint has none: that of the same projection in other layers.

Inputs are never seen here, so that a derived scale is an estimate: the largest that the exporter measured for the same
projection of another layer, doubled: a scale too small cuts values off, one too large only rounds them coarser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from mtpfix.checkpoint.conventions import CONVENTIONS, read_input_scale
from mtpfix.checkpoint.names import tensor_name
from mtpfix.fix.trial import Trial
from mtpfix.model import Format, Stored, Tensor

MARGIN = 2.0
_LAYER = re.compile(r"layers\.\d+\.(?:mtp_block\.|transformer\.)?(.+)")


def input_scale_of(trial: Trial, module: str, given: float | None) -> float | None:
    """Return the input scale for a module, in ModelOpt's sense: the one given, else derived, else None."""
    if given is not None:
        return given
    hit = _LAYER.search(module)
    scalars = trial.origin.scalars
    if hit is None or scalars is None:
        return None
    siblings = [
        item
        for name, item in trial.origin.subject.stored.items()
        if item.format is Format.NVFP4 and (other := _LAYER.search(name)) is not None and other[1] == hit[1]
    ]
    wanted = [(item, tensor) for item in siblings for tensor in _scales(trial, item)]
    values = scalars([tensor for _, tensor in wanted]) if wanted else {}
    found = [
        read_input_scale(value, item.dialect)
        for item, tensor in wanted
        for value in values.get((tensor.shard, tensor.name), ())
        if value > 0
    ]
    return max(found) * MARGIN if found else None


def _scales(trial: Trial, item: Stored) -> Iterator[Tensor]:
    name = tensor_name(item.module, CONVENTIONS[item.dialect].input_scale)
    for tensor in trial.origin.checkpoint.tensors:
        if tensor.name == name and tensor.dtype == "F32" and all(size == 1 for size in tensor.shape):
            yield tensor
