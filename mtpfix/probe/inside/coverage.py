"""Whether the parts of a parameter that were written make up the whole of it."""

from __future__ import annotations

import math
from typing import Any

Region = tuple[int, tuple[int, ...], tuple[int, ...]]
"""A part of a storage: where it begins, its size and its strides, counted in elements."""

MOST = 1 << 30
"""Cells looked at: parameters of more are judged by how many elements were written."""


def covers(whole: Region, regions: set[Region]) -> bool:
    """Return whether regions cover every element of a whole.

    Counts in the largest unit that all of them are made of, so that a parameter of gigabytes takes kilobytes.
    """
    import torch

    parts = {_joined(region) for region in regions}
    target = _joined(whole)
    if target in parts:
        return True
    unit = math.gcd(*(number for part in (target, *parts) for number in _numbers(part)))
    end = max(_end(part) for part in (target, *parts)) // unit
    if end > MOST:
        return sum(math.prod(size) for _, size, _ in parts) >= math.prod(target[1])
    mask = torch.zeros(end, dtype=torch.bool)
    for part in parts:
        _view(mask, part, unit).fill_(1)
    return bool(_view(mask, target, unit).all())


def _joined(region: Region) -> Region:
    """Return a region with dimensions joined that follow each other without a gap, outermost first."""
    offset, size, stride = region
    dimensions = sorted(((step, count) for count, step in zip(size, stride, strict=True) if count != 1), reverse=True)
    joined: list[tuple[int, int]] = []
    for step, count in dimensions:
        if joined and joined[-1][0] == step * count:
            joined[-1] = (step, joined[-1][1] * count)
        else:
            joined.append((step, count))
    if not joined or joined[-1][0] != 1:
        joined.append((1, 1))
    return offset, tuple(count for _, count in joined), tuple(step for step, _ in joined)


def _numbers(part: Region) -> tuple[int, ...]:
    """Return the numbers that a unit must divide: where it begins, its outer strides, and its innermost run."""
    offset, size, stride = part
    return (offset, *stride[:-1], size[-1])


def _end(part: Region) -> int:
    offset, size, stride = part
    return offset + sum((count - 1) * step for count, step in zip(size, stride, strict=True)) + 1


def _view(mask: Any, part: Region, unit: int) -> Any:
    offset, size, stride = part
    return mask.as_strided((*size[:-1], size[-1] // unit), (*(step // unit for step in stride[:-1]), 1), offset // unit)
