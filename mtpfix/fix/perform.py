"""From operations to the changes of files that the writer carries out: which tensor goes, which comes, and how.

Does to files what `preview` does to descriptions. Numbers are made by `tensors`, when the writer asks for them; torch
is imported only where an operation computes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from mtpfix.checkpoint.conventions import written_input_scale
from mtpfix.checkpoint.document import parse_document
from mtpfix.checkpoint.folder import published
from mtpfix.checkpoint.header import DTYPE_BITS
from mtpfix.checkpoint.names import WEIGHTS, split_name, tensor_name
from mtpfix.checkpoint.stored import stored_modules
from mtpfix.errors import FormatError
from mtpfix.fix.changes import Changes, EditedFile, EditedShard, FileChange, NewShard, NewTensor, RemovedFile, Snapshot
from mtpfix.fix.holding import Held, Holding, Place
from mtpfix.fix.index import with_index
from mtpfix.fix.operations import (
    HF_QUANT_CONFIG,
    ON_JSON,
    AddEntry,
    AddScale,
    CopyModule,
    Dequantize,
    DropTensors,
    Graft,
    Operation,
    Quantize,
    Reindex,
    RemoveEntry,
    RemoveKey,
    SetValue,
    ShareScale,
    Unstack,
    described,
)
from mtpfix.fix.preview import (
    dialect_of,
    edited,
    input_shape,
    packed_names,
    preview,
    scalar_shape,
    stack_shape,
    weight_name,
)
from mtpfix.fix.snapshot import read_file
from mtpfix.fix.splice import splice
from mtpfix.model import EXPERT, Checkpoint, Dialect, Stored

if TYPE_CHECKING:
    from mtpfix.fix.packing import Group, Packing

COMPUTING = (Dequantize, ShareScale)
"""Operations for which torch is needed; quantizing needs it where the compiled library does not run, or on a GPU."""
INVERSE_SCALES = ("weight_scale_inv", "weight_scale", "scale")
"""Suffixes of the scales of FP8 blocks."""


def changes_of(
    checkpoint: Checkpoint,
    operations: Sequence[Operation],
    snapshot: Snapshot,
    reads: Sequence[Snapshot] = (),
    packing: Packing | None = None,
) -> Changes:
    """Return the changes to a checkpoint's files that operations stand for.

    `snapshot` is of its folder, `reads` of those that tensors are grafted from; `packing` says how weights are
    quantized, and is told what came of it. Raises FormatError where an operation does not apply, MtpfixError where
    torch, or the device, is needed and absent.
    """
    packing = _packing(operations, packing)
    shards = _shard_changes(checkpoint, operations, packing)
    files: list[FileChange] = [*_json_changes(snapshot.folder, operations), *shards]
    named = None if checkpoint.root is None else published(checkpoint.root)
    changes = Changes(
        source=snapshot,
        files=tuple(files),
        operations=tuple(map(described, operations)),
        base="" if named is None else named.repository,
        revision=checkpoint.revision,
        reads=tuple(reads),
    )
    return with_index(changes, rebuild=any(isinstance(operation, Reindex) for operation in operations))


def _packing(operations: Sequence[Operation], packing: Packing | None) -> Packing | None:
    """Return how weights are quantized, None where none is, or raise where what computes is absent."""
    if any(isinstance(operation, COMPUTING) for operation in operations):
        from mtpfix.nvfp4.format import require_torch

        require_torch()
    if not any(isinstance(operation, Quantize) for operation in operations):
        return None
    from mtpfix.fix.packing import Packing
    from mtpfix.nvfp4.stream import opener

    packing = packing or Packing()
    opener(packing.device)
    return packing


def json_documents(folder: Path, operations: Sequence[Operation]) -> Iterator[tuple[str, bytes, bytes]]:
    """Yield each configuration file that operations change: its name, its bytes, and its bytes after them.

    The file that only engines read may be a new one: its bytes before are then none.
    """
    names = dict.fromkeys(operation.file for operation in operations if isinstance(operation, ON_JSON))
    for name in names:
        mine = [operation for operation in operations if isinstance(operation, ON_JSON) and operation.file == name]
        if name == HF_QUANT_CONFIG and not (folder / name).exists():
            text = json.dumps(edited({}, mine), indent=4, ensure_ascii=False, allow_nan=False)
            yield name, b"", f"{text}\n".encode()
            continue
        before = read_file(folder, name)
        document = parse_document(before, name, nan=True).value
        yield name, before, splice(before, edited(document, mine), name)


def _json_changes(folder: Path, operations: Sequence[Operation]) -> Iterator[FileChange]:
    for name, before, after in json_documents(folder, operations):
        if before != after:
            yield EditedFile(name, after)


# ------------------------------------------------------------------------------------------------------- tensors


def _shard_changes(
    checkpoint: Checkpoint, operations: Sequence[Operation], packing: Packing | None
) -> Iterator[FileChange]:
    holding = Holding(checkpoint)
    current = checkpoint
    for operation in operations:
        if isinstance(operation, (*ON_JSON, Reindex)):
            continue
        _perform(operation, holding, current, packing)
        current = preview(current, [operation])
    known = {shard.name for shard in checkpoint.shards}
    left = {tensor.shard for tensor in current.tensors}
    made: dict[str, list[NewTensor]] = {}
    for held in holding.held.values():
        if held.made is not None:
            made.setdefault(held.shard, []).append(held.made)
    for shard in sorted({*made, *holding.dropped}):
        if shard not in known:
            yield NewShard(shard, tuple(made[shard]))
        elif shard not in left:
            yield RemovedFile(shard)
        else:
            put = tuple(made.get(shard, ()))
            replaced = {tensor.name for tensor in put}
            dropped = dict.fromkeys(name for name in holding.dropped.get(shard, ()) if name not in replaced)
            yield EditedShard(shard, tuple(dropped), put)


def _perform(operation: Operation, holding: Holding, current: Checkpoint, packing: Packing | None) -> None:
    match operation:
        case Dequantize():
            _dequantize(operation, holding, _stored(current, operation.module))
        case Quantize() if packing is not None:
            _quantize(operation, holding, packing)
        case Unstack():
            _unstack(operation, holding)
        case CopyModule():
            _copy(operation, holding)
        case AddScale():
            _add_scale(operation, holding)
        case ShareScale():
            _share_scale(operation, holding)
        case DropTensors():
            _drop(operation, holding, current)
        case Graft():
            for tensor in operation.tensors:
                place = Place(Path(operation.folder), tensor.file, tensor.begin)
                source = Held(tensor.name, tensor.dtype, tensor.shape, operation.shard, place)
                recipe = f"{tensor.origin} of {tensor.file}, byte {tensor.begin}"
                copied = NewTensor(tensor.name, tensor.dtype, tensor.shape, recipe, source.chunks)
                holding.put(copied, operation.shard, place)
        case AddEntry() | RemoveEntry() | SetValue() | RemoveKey() | Reindex() | Quantize():
            pass
        case _:
            assert_never(operation)


def _stored(current: Checkpoint, module: str) -> Stored:
    found = stored_modules(tensor for tensor in current.tensors if split_name(tensor.name)[0] == module).get(module)
    if found is None:
        raise FormatError(f"no module is called {module}", "write the plan again")
    return found


def _experts(holding: Holding, module: str) -> Iterator[tuple[str, dict[str, Held], Held]]:
    """Yield each expert's name, or the module's own, its tensors by suffix, and the one that holds the numbers."""
    for number, parts in sorted(holding.module(module).items(), key=lambda item: -1 if item[0] is None else item[0]):
        name = module if number is None else module.replace(EXPERT, str(number), 1)
        weight = next((parts[suffix] for suffix in parts if suffix.removeprefix("_") in WEIGHTS), None)
        if weight is None:
            raise FormatError(f"{name} has no weight", "graft it from the base model")
        yield name, parts, weight


def _replace(holding: Holding, parts: Iterable[Held], shard: str, made: Iterable[NewTensor]) -> None:
    for held in parts:
        holding.drop(held)
    for tensor in made:
        holding.put(tensor, shard)


def _dequantize(operation: Dequantize, holding: Holding, stored: Stored) -> None:
    from mtpfix.fix.tensors import plain_rows

    for name, parts, weight in list(_experts(holding, operation.module)):
        suffix = split_name(weight.name)[1]
        recipe = f"BF16 of {stored.format.value} {', '.join(held.name for held in parts.values())}"

        def read(parts: dict[str, Held] = parts) -> Iterator[bytes]:
            return plain_rows(parts, stored.format, stored.shape)

        tensor = NewTensor(weight_name(name, suffix), "BF16", stored.shape, recipe, read)
        _replace(holding, parts.values(), weight.shard, [tensor])


def _unstack(operation: Unstack, holding: Holding) -> None:
    ((_, _, weight),) = _experts(holding, operation.module)
    count, rows, columns = stack_shape(operation, weight.shape, weight.dtype)
    place = weight.place or weight.origin
    if place is None:
        raise FormatError(f"{operation.module} is computed before it is taken apart", "write the plan again")
    holding.drop(weight)
    begin, size = place.begin, rows * columns * DTYPE_BITS[weight.dtype] // 8
    for expert in range(count):
        for part, pattern in enumerate(operation.names):
            name = tensor_name(pattern.replace(EXPERT, str(expert), 1), "weight")
            here = replace(place, begin=begin)
            first = part * rows
            recipe = f"rows {first} to {first + rows} of expert {expert} of {weight.name} of {place.file}, byte {begin}"
            source = Held(name, weight.dtype, (rows, columns), weight.shard, here)
            holding.put(NewTensor(name, weight.dtype, (rows, columns), recipe, source.chunks), weight.shard, here)
            begin += size


def _copy(operation: CopyModule, holding: Holding) -> None:
    for number, parts in holding.module(operation.module).items():
        old = operation.module if number is None else operation.module.replace(EXPERT, str(number), 1)
        new = operation.name if number is None else operation.name.replace(EXPERT, str(number), 1)
        for held in parts.values():
            place = held.place or held.origin
            lies = f" of {place.file}, byte {place.begin}" if place is not None else ""
            recipe = held.made.recipe if held.made is not None else f"{held.name}{lies}"
            copied = NewTensor(new + held.name[len(old) :], held.dtype, held.shape, recipe, held.chunks)
            holding.put(copied, held.shard, place)


def _quantize(operation: Quantize, holding: Holding, packing: Packing) -> None:
    from mtpfix.fix.packing import Group

    members = [list(_experts(holding, module)) for module in operation.modules]
    for row in zip(*members, strict=True):
        tables = [next((parts[name] for name in INVERSE_SCALES if name in parts), None) for _, parts, _ in row]
        group = Group([weight for _, _, weight in row], tables, packing, search=operation.scale_search)
        shared = ", ".join(weight.name for weight in group.weights)
        for index, (name, parts, weight) in enumerate(row):
            made = list(_packed(name, weight, group, index, operation, shared))
            _replace(holding, parts.values(), weight.shard, made)


def _packed(name: str, weight: Held, group: Group, index: int, operation: Quantize, shared: str) -> Iterator[NewTensor]:
    names = packed_names(name, weight.name, operation.dialect)
    reciprocal = operation.dialect is Dialect.COMPRESSED_TENSORS
    *front, columns = weight.shape
    single = scalar_shape(weight.shape, operation.dialect)
    searched = ", scales searched" if operation.scale_search else ""
    recipe = f"NVFP4 of {weight.name} with one global scale for {shared}{searched}"

    yield NewTensor(names.weight, "U8", (*front, columns // 2), recipe, lambda: group.codes(index))
    scales = (*front, columns // 16)
    yield NewTensor(names.block_scale, "F8_E4M3", scales, recipe, lambda: group.block_scales(index))
    number = lambda: group.global_scale(reciprocal=reciprocal)  # noqa: E731
    yield NewTensor(names.global_scale, "F32", single, recipe, number)
    if operation.input_scale is not None:
        value = written_input_scale(operation.input_scale, operation.dialect)
        yield _constant(names.input_scale, value, input_shape(weight.shape, operation.dialect))


def _constant(name: str, value: float, shape: tuple[int, ...]) -> NewTensor:
    count = shape[0] if shape else 1
    data = struct.pack("<f", value) * count
    return NewTensor(name, "F32", shape, f"{value!r}", lambda: (data,))


def _add_scale(operation: AddScale, holding: Holding) -> None:
    dialect = dialect_of(operation.suffix)
    for name, parts, weight in list(_experts(holding, operation.module)):
        if operation.suffix not in parts:
            shape = input_shape(weight.shape, dialect)
            holding.put(_constant(tensor_name(name, operation.suffix), operation.value, shape), weight.shard)


def _share_scale(operation: ShareScale, holding: Holding) -> None:
    from mtpfix.fix.tensors import rescaled, shared_global

    members = [list(_experts(holding, module)) for module in operation.modules]
    for row in zip(*members, strict=True):
        globals_ = tuple(_global(parts) for _, parts, _ in row)
        shared = ", ".join(held.name for held in globals_)
        for (_, parts, _), own in zip(row, globals_, strict=True):
            scale = parts["weight_scale"]
            recipe = f"{scale.name} and {own.name} under the largest of {shared}"
            blocks = NewTensor(scale.name, scale.dtype, scale.shape, recipe, partial(rescaled, scale, own, globals_))
            inverted = own.name.endswith("weight_global_scale")
            value = partial(shared_global, globals_, reciprocal=inverted)
            single = NewTensor(own.name, own.dtype, own.shape, recipe, value)
            _replace(holding, (), scale.shard, [blocks])
            _replace(holding, (), own.shard, [single])


def _global(parts: dict[str, Held]) -> Held:
    return parts["weight_scale_2"] if "weight_scale_2" in parts else parts["weight_global_scale"]


def _drop(operation: DropTensors, holding: Holding, current: Checkpoint) -> None:
    if not any(tensor.shard == operation.shard for tensor in current.tensors):
        raise FormatError(f"no shard is called {operation.shard}", "write the plan again")
    for name in operation.names:
        held = holding.held.get(name)
        if held is not None and held.shard == operation.shard:
            holding.drop(held)
        else:
            holding.dropped.setdefault(operation.shard, []).append(name)
