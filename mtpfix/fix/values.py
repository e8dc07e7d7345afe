"""The values of scales as operations would leave them: where a rule compares numbers, nothing has to be written first.

Reads what lies in files: the checkpoint's own scales, and those that are grafted. A scale that has yet to be computed
is left out: it is not known.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache

from mtpfix.checkpoint import open_checkpoint, read_scalars
from mtpfix.checkpoint.header import split_expert
from mtpfix.checkpoint.names import split_name
from mtpfix.fix.operations import Dequantize, Graft, Grafted, Operation, Quantize, ShareScale
from mtpfix.model import Checkpoint, Tensor
from mtpfix.rules.context import Scalars

Key = tuple[str, str]
"""Shard and name, `{}` for the expert number."""


def scalars_after(checkpoint: Checkpoint, scalars: Scalars, operations: Sequence[Operation]) -> Scalars:
    """Return what reads single numbers of a checkpoint as operations would leave it; `scalars` reads them as it lies.

    Where a number is not known yet there is no value for its tensor.
    """
    computed = _computed(operations)
    grafted = {key: members for operation in operations for key, members in _grafted(operation)}
    there = {(tensor.shard, tensor.name) for tensor in checkpoint.tensors}
    opened = cache(open_checkpoint)

    def read(wanted: Sequence[Tensor]) -> Mapping[Key, array[float]]:
        known = [tensor for tensor in wanted if split_name(tensor.name)[0] not in computed]
        own = [tensor for tensor in known if (tensor.shard, tensor.name) in there]
        values = dict(scalars(own)) if own else {}
        for tensor in known:
            key = (tensor.shard, tensor.name)
            if key in grafted:
                folder, members = grafted[key]
                values.setdefault(key, array("f")).extend(_of_base(tensor, opened(folder), members))
        return values

    return read


def _computed(operations: Iterable[Operation]) -> set[str]:
    """Return the modules whose scales are made anew."""
    modules: set[str] = set()
    for operation in operations:
        match operation:
            case Quantize() | ShareScale():
                modules.update(operation.modules)
            case Dequantize():
                modules.add(operation.module)
            case _:
                pass
    return modules


def _grafted(operation: Operation) -> Iterable[tuple[Key, tuple[str, dict[int, Grafted]]]]:
    """Return where tensors of another checkpoint come from: its folder, and each expert's tensor (-1 where none)."""
    found: dict[Key, tuple[str, dict[int, Grafted]]] = {}
    if isinstance(operation, Graft):
        for tensor in operation.tensors:
            name, number = split_expert(tensor.name) or (tensor.name, -1)
            found.setdefault((operation.shard, name), (operation.folder, {}))[1][number] = tensor
    return found.items()


def _of_base(tensor: Tensor, base: Checkpoint, members: Mapping[int, Grafted]) -> Iterator[float]:
    """Yield the values of one tensor, or of all its experts in their order, as the other checkpoint has them."""
    starts = {shard.name: shard.header for shard in base.shards}
    numbers = tensor.experts if tensor.experts is not None else (-1,)
    by_file: dict[str, list[int]] = {}
    for number in numbers:
        by_file.setdefault(members[number].file, []).append(number)
    values: dict[int, float] = {}
    for file, mine in by_file.items():
        begins = array("Q", [members[number].begin - starts[file] for number in mine])
        found = read_scalars(base, [Tensor(tensor.name, tensor.dtype, tensor.shape, file, begins)])
        values.update(zip(mine, found[file, tensor.name], strict=True))
    return (values[number] for number in numbers)
