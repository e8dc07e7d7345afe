"""Bytes that a repair only moved, looked at again: of untouched tensors and of grafted ones, and numbers it was told.

Compares places of a result with where they came from, chosen by chance and the same in every run. Knows names and
places; what packed numbers stand for is `check`'s business.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TypeVar

from mtpfix.checkpoint.folder import target_of
from mtpfix.checkpoint.header import DTYPE_BITS, split_expert
from mtpfix.checkpoint.names import split_name, tensor_name
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError, MtpfixError
from mtpfix.fix.holding import Place
from mtpfix.fix.operations import AddScale, CopyModule, Dequantize, Graft, Operation, Quantize, ShareScale
from mtpfix.model import EXPERT, Checkpoint, Tensor

SAMPLED_TENSORS = 64
"""Tensors of each kind that are looked at."""
SAMPLED_BYTES = 256
"""Bytes of each of them."""
NO_EXPERT = -1
"""The number of a tensor that is no expert's."""
_AGAIN = "this is a defect of mtpfix: nothing was published; please report it"
T = TypeVar("T")


def check_samples(source: Checkpoint, result: Checkpoint, operations: Sequence[Operation]) -> None:
    """Raise MtpfixError where bytes that were to be kept or taken over are others in the result, or a number is."""
    chance = Random(0)  # noqa: S311 - a sample, the same in every run
    anew = frozenset(_modules(operations))
    after = {_key(tensor): tensor for tensor in result.tensors if split_name(tensor.name)[0] not in anew}
    rewritten = _rewritten(source, result)
    kept = [tensor for tensor in source.tensors if tensor.shard in rewritten and _key(tensor) in after]
    for tensor in _some(kept, chance):
        now = after[_key(tensor)]
        numbers = sorted({*_numbers(tensor)} & {*_numbers(now)})
        if numbers:
            number = chance.choice(numbers)
            _compare(tensor, number, _place(source, tensor, number), _place(result, now, number), chance)
    for operation in operations:
        match operation:
            case Graft():
                for taken in _some(operation.tensors, chance):
                    name, number = split_expert(taken.name) or (taken.name, NO_EXPERT)
                    grafted = after.get((name, operation.shard, taken.dtype, taken.shape))
                    if grafted is not None and number in _numbers(grafted):  # else it was stored otherwise since
                        origin = Place(Path(operation.folder), taken.file, taken.begin)
                        _compare(grafted, number, origin, _place(result, grafted, number), chance)
            case CopyModule():
                _check_copy(operation, result, chance)
            case AddScale():
                _check_scale(operation, source, result, chance)
            case _:
                pass


def _modules(operations: Sequence[Operation]) -> Iterator[str]:
    """Yield the modules whose numbers are made anew."""
    for operation in operations:
        match operation:
            case Dequantize():
                yield operation.module
            case Quantize() | ShareScale():
                yield from operation.modules
            case _:
                pass


def _rewritten(source: Checkpoint, result: Checkpoint) -> frozenset[str]:
    """Return the shards of both that are not one file under two names."""
    old = {shard.name: _target(source, shard.name) for shard in source.shards}
    return frozenset(
        shard.name
        for shard in result.shards
        if shard.name in old and not _target(result, shard.name).samefile(old[shard.name])
    )


def _target(checkpoint: Checkpoint, shard: str) -> Path:
    return target_of(_root(checkpoint), shard, checkpoint.trusted)


def _root(checkpoint: Checkpoint) -> Path:
    if checkpoint.root is None:
        raise FormatError("the checkpoint is not in a folder")
    return checkpoint.root


def _key(tensor: Tensor) -> tuple[str, str, str, tuple[int, ...]]:
    return tensor.name, tensor.shard, tensor.dtype, tensor.shape


def _numbers(tensor: Tensor) -> Sequence[int]:
    return (NO_EXPERT,) if tensor.experts is None else tensor.experts


def _place(checkpoint: Checkpoint, tensor: Tensor, number: int) -> Place:
    start = next(shard.header for shard in checkpoint.shards if shard.name == tensor.shard)
    begin = tensor.begins[list(_numbers(tensor)).index(number)]
    return Place(_root(checkpoint), tensor.shard, start + begin, checkpoint.trusted)


def _some(found: Sequence[T], chance: Random) -> list[T]:
    return chance.sample(found, min(SAMPLED_TENSORS, len(found)))


def _compare(tensor: Tensor, number: int, before: Place, after: Place, chance: Random) -> None:
    size = math.prod(tensor.shape) * DTYPE_BITS[tensor.dtype] // 8
    count = min(SAMPLED_BYTES, size)
    offset = chance.randrange(size - count + 1)
    if before.at(offset, count) != after.at(offset, count):
        name = tensor.name.replace(EXPERT, str(number), 1)
        raise MtpfixError(f"{shown(name)}: bytes from {offset} on are not those it was to keep", _AGAIN)


def _check_copy(operation: CopyModule, result: Checkpoint, chance: Random) -> None:
    """Look at both places of a module that is stored twice."""
    there = {tensor.name: tensor for tensor in result.tensors}
    for name, tensor in there.items():
        origin = there.get(operation.module + name[len(operation.name) :])
        if split_name(name)[0] != operation.name or origin is None:
            continue
        number = chance.choice(_numbers(tensor))
        _compare(tensor, number, _place(result, origin, number), _place(result, tensor, number), chance)


def _check_scale(operation: AddScale, source: Checkpoint, result: Checkpoint, chance: Random) -> None:
    """Look at scales that the source did not have."""
    name = tensor_name(operation.module, operation.suffix)
    known = {number for tensor in source.tensors if tensor.name == name for number in _numbers(tensor)}
    made = [
        (tensor, number)
        for tensor in result.tensors
        if tensor.name == name
        for number in _numbers(tensor)
        if number not in known
    ]
    expected = struct.pack("<f", operation.value)
    for tensor, number in _some(made, chance):
        if _place(result, tensor, number).at(0, len(expected)) != expected:
            text = name.replace(EXPERT, str(number), 1)
            raise MtpfixError(f"{shown(text)} is not {operation.value!r}, as planned", _AGAIN)
