"""What operations cost: bytes of tensors that are written, and the files that come out otherwise.

Counts from descriptions; what a file system saves by sharing blocks is not known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mtpfix.checkpoint.header import DTYPE_BITS
from mtpfix.checkpoint.names import split_name
from mtpfix.fix.operations import INDEX, ON_JSON, AddEntry, Operation, Reindex, SetValue, ShareScale
from mtpfix.model import Checkpoint, Tensor

ENTRY_OVERHEAD = 8  # quotes, comma, newline and indentation of one more entry in a JSON list


def file_bytes(checkpoint: Checkpoint, name: str) -> int:
    """Return the size of a file of the checkpoint in bytes, 0 where it is not there."""
    if checkpoint.root is None:
        return 0
    try:
        return (checkpoint.root / name).stat().st_size
    except OSError:
        return 0


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Return the bytes that tensors take."""
    return sum(
        (math.prod(tensor.shape) * DTYPE_BITS.get(tensor.dtype, 0) + 7) // 8 * tensor.count for tensor in tensors
    )


def new_tensors(before: Checkpoint, after: Checkpoint) -> list[Tensor]:
    """Return the tensors that one description has and the other has not, or has otherwise."""
    known = {(one.name, one.dtype, one.shape, one.shard, one.count) for one in before.tensors}
    return [one for one in after.tensors if (one.name, one.dtype, one.shape, one.shard, one.count) not in known]


def bytes_written(before: Checkpoint, after: Checkpoint, operations: Sequence[Operation]) -> int:
    """Return the bytes of the tensors that operations make anew, and of the JSON files they change."""
    size = tensor_bytes(new_tensors(before, after)) + tensor_bytes(rescaled(before, operations))
    for file in json_files(operations):
        grown = sum(
            len(one.entry if isinstance(one, AddEntry) else one.text) + ENTRY_OVERHEAD
            for one in operations
            if isinstance(one, (AddEntry, SetValue)) and one.file == file
        )
        size += file_bytes(before, file) + grown
    return size


def rescaled(checkpoint: Checkpoint, operations: Sequence[Operation]) -> list[Tensor]:
    """Return the scales that get other numbers but keep their shape."""
    modules = {name for one in operations if isinstance(one, ShareScale) for name in one.modules}
    wanted = ("weight_scale", "weight_scale_2", "weight_global_scale")
    return [
        tensor
        for tensor in checkpoint.tensors
        if modules and split_name(tensor.name)[0] in modules and split_name(tensor.name)[1] in wanted
    ]


def json_files(operations: Sequence[Operation]) -> list[str]:
    """Return the JSON files that operations change, the index among them only where it alone is to be written."""
    files = [one.file for one in operations if isinstance(one, ON_JSON)]
    files += [INDEX for one in operations if isinstance(one, Reindex)]
    return list(dict.fromkeys(files))


def shards_rewritten(before: Checkpoint, after: Checkpoint, operations: Sequence[Operation]) -> dict[str, int]:
    """Return the shards that come out with other tensors, new ones included, and the bytes written for each."""
    gone = {tensor.shard for tensor in new_tensors(after, before)}
    made = {tensor.shard for tensor in (*new_tensors(before, after), *rescaled(before, operations))}
    left: dict[str, list[Tensor]] = {}
    for tensor in after.tensors:
        left.setdefault(tensor.shard, []).append(tensor)
    return {name: tensor_bytes(left[name]) for name in sorted(gone | made) if name in left}
