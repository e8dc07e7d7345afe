"""What a checkpoint would look like after operations: its description changed, no byte written.

Repairs are judged by scanning this description as if it had been read. Knows what each operation does to names, dtypes,
shapes and configurations; knows no numbers, and nothing of engines.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, assert_never

from mtpfix.checkpoint.conventions import CONVENTIONS, Convention
from mtpfix.checkpoint.header import DTYPE_BITS, split_expert
from mtpfix.checkpoint.names import CACHE_SCALES, SCALES, WEIGHTS, is_weight, split_name, tensor_name
from mtpfix.checkpoint.quant import read_declarations
from mtpfix.checkpoint.stored import stored_modules
from mtpfix.errors import FormatError
from mtpfix.fix.operations import (
    CONFIG,
    HF_QUANT_CONFIG,
    ON_JSON,
    AddEntry,
    AddScale,
    CopyModule,
    Dequantize,
    DropTensors,
    Graft,
    Operation,
    Path,
    Quantize,
    Reindex,
    RemoveEntry,
    RemoveKey,
    SetValue,
    ShareScale,
    Unstack,
)
from mtpfix.model import EXPERT, Checkpoint, Dialect, Fault, Shard, Stored, Tensor

INDEXED_FAULTS = frozenset(
    {
        Fault.SHARD_ABSENT,
        Fault.SHARD_UNINDEXED,
        Fault.TENSOR_ABSENT,
        Fault.TENSOR_UNINDEXED,
        Fault.TENSOR_ELSEWHERE,
        Fault.TOTAL_SIZE,
        Fault.PATH_REFUSED,
        Fault.INDEX_UNREADABLE,
    }
)
"""What a rebuilt index mends."""


def hf_quant_config(checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """Return the content of hf_quant_config.json as it was read, None where there is none."""
    return next((block.raw for block in checkpoint.declarations if block.file == HF_QUANT_CONFIG), None)


def preview(checkpoint: Checkpoint, operations: Sequence[Operation]) -> Checkpoint:
    """Return the description of a checkpoint after operations; raises FormatError where one does not apply."""
    if not operations:
        return checkpoint
    edits = [operation for operation in operations if isinstance(operation, ON_JSON)]
    if edits:
        checkpoint = _edited(checkpoint, edits)
    for operation in operations:
        if not isinstance(operation, ON_JSON):
            checkpoint = _changed(checkpoint, operation)
    return checkpoint


# ------------------------------------------------------------------------------------------------ configurations


def _edited(checkpoint: Checkpoint, edits: Iterable[Operation]) -> Checkpoint:
    files: dict[str, Mapping[str, Any] | None] = {
        CONFIG: checkpoint.config,
        HF_QUANT_CONFIG: hf_quant_config(checkpoint),
    }
    by_file: dict[str, list[Operation]] = {}
    for edit in edits:
        if edit.file in files:  # type: ignore[union-attr] # others describe nothing
            by_file.setdefault(edit.file, []).append(edit)  # type: ignore[union-attr]
    for file, mine in by_file.items():
        files[file] = edited(files.get(file) or {}, mine)
    return replace(
        checkpoint,
        config=files[CONFIG] or {},
        declarations=read_declarations(files[CONFIG] or {}, files[HF_QUANT_CONFIG]),
    )


def edited(document: Mapping[str, Any], edits: Iterable[Operation]) -> dict[str, Any]:
    """Return a JSON document after edits; objects and lists that no edit touches are shared with the original.

    Raises FormatError where a path does not lead where an edit says.
    """
    top: dict[str, Any] = dict(document)
    owned: dict[Path, dict[str, Any]] = {(): top}
    lists: dict[Path, list[Any]] = {}
    entries: dict[Path, set[Any]] = {}
    for edit in edits:
        match edit:
            case AddEntry():
                listed = _list(owned, lists, edit.path, make=True)
                known = entries.setdefault(edit.path, {item for item in listed if isinstance(item, str)})
                if edit.entry not in known:
                    listed.append(edit.entry)
                    known.add(edit.entry)
            case RemoveEntry():
                listed = _list(owned, lists, edit.path, make=False)
                listed[:] = [item for item in listed if item != edit.entry]
                entries.get(edit.path, set()).discard(edit.entry)
            case SetValue():
                _object(owned, edit.path[:-1], make=True)[edit.path[-1]] = edit.value
                _forget(edit.path, owned, lists, entries)
            case RemoveKey():
                _object(owned, edit.path[:-1], make=False).pop(edit.path[-1], None)
                _forget(edit.path, owned, lists, entries)
            case _:
                raise FormatError(f"{edit.action} is no edit of a configuration")
    return top


def _forget(path: Path, *caches: dict[Path, Any]) -> None:
    for cache in caches:
        for known in [known for known in cache if known[: len(path)] == path]:
            del cache[known]


def _object(owned: dict[Path, dict[str, Any]], path: Path, *, make: bool) -> dict[str, Any]:
    if path in owned:
        return owned[path]
    parent = _object(owned, path[:-1], make=make)
    found = parent.get(path[-1])
    if found is None and make:
        found = {}
    if not isinstance(found, Mapping):
        raise FormatError(f"{'.'.join(path)} is not an object", "repair this part of the file by hand")
    mine = parent[path[-1]] = owned[path] = dict(found)
    return mine


def _list(owned: dict[Path, dict[str, Any]], lists: dict[Path, list[Any]], path: Path, *, make: bool) -> list[Any]:
    if path in lists:
        return lists[path]
    parent = _object(owned, path[:-1], make=make)
    found = parent.get(path[-1])
    if found is None:
        found = []
    if not isinstance(found, list):
        raise FormatError(f"{'.'.join(path)} is not a list", "repair this part of the file by hand")
    mine = parent[path[-1]] = lists[path] = list(found)
    return mine


# ----------------------------------------------------------------------------------------------------- tensors


def _changed(checkpoint: Checkpoint, operation: Operation) -> Checkpoint:
    match operation:
        case Reindex():
            return _reindexed(checkpoint)
        case DropTensors():
            return _dropped(checkpoint, operation)
        case Dequantize():
            return _restored(checkpoint, {operation.module}, _plain)
        case Quantize():
            return _restored(checkpoint, set(operation.modules), lambda name, weight: _packed(name, weight, operation))
        case Unstack():
            return _unstacked(checkpoint, operation)
        case CopyModule():
            return _copied(checkpoint, operation)
        case AddScale():
            return _scaled(checkpoint, operation)
        case ShareScale():
            return checkpoint
        case Graft():
            return _grafted(checkpoint, operation)
        case AddEntry() | RemoveEntry() | SetValue() | RemoveKey():
            return _edited(checkpoint, [operation])
        case _:
            assert_never(operation)


def belongs(name: str, module: str) -> bool:
    """Return whether a tensor is a weight of this module, or a scale of one: what another format would replace."""
    found, suffix = split_name(name)
    bare = suffix.removeprefix("_")
    return found == module and (bare in WEIGHTS or bare in SCALES) and bare not in CACHE_SCALES


def weight_name(module: str, suffix: str) -> str:
    """Return the name of a module's plain weight, given the suffix of what holds its numbers now."""
    return module if suffix in ("", "_blocks", "_weight_packed") or is_weight(module) else tensor_name(module, "weight")


Store = Callable[[str, Tensor], Iterator[Tensor]]
"""Yields the tensors of a module, of this name, from its tensor that holds the numbers, given as if in BF16."""


def _restored(checkpoint: Checkpoint, modules: set[str], store: Store) -> Checkpoint:
    """Return the checkpoint with modules stored otherwise, each tensor in the shard that held its numbers."""
    stored = stored_modules(tensor for tensor in checkpoint.tensors if split_name(tensor.name)[0] in modules)
    absent = sorted(module for module in modules if module not in stored)
    if absent:
        raise FormatError(f"no module is called {absent[0]}", "write the plan again")
    made: list[Tensor] = []
    for tensor in checkpoint.tensors:
        module, suffix = split_name(tensor.name)
        if module not in modules or not belongs(tensor.name, module):
            made.append(tensor)
        elif suffix.removeprefix("_") in WEIGHTS:
            shape = _logical(stored, module, tensor)
            plain = replace(tensor, name=weight_name(module, suffix), dtype="BF16", shape=shape)
            made += store(module, plain)
    return _recounted(checkpoint, made)


def _logical(stored: Mapping[str, Stored], module: str, tensor: Tensor) -> tuple[int, ...]:
    if stored[module].format.plain:
        return tensor.shape
    if len(stored[module].shape) < 2 or not stored[module].shape[-1]:
        raise FormatError(f"the shape of {module} is not known", "it cannot be stored otherwise")
    return stored[module].shape


def _plain(module: str, weight: Tensor) -> Iterator[Tensor]:
    del module
    yield weight


def _packed(module: str, weight: Tensor, how: Quantize) -> Iterator[Tensor]:
    names = packed_names(module, weight.name, how.dialect)
    *front, columns = weight.shape
    if not front or columns % 16:
        raise FormatError(f"{module} has {columns} columns: NVFP4 wants a multiple of 16", "keep it in BF16")
    single = scalar_shape(weight.shape, how.dialect)
    yield replace(weight, name=names.weight, dtype="U8", shape=(*front, columns // 2))
    yield replace(weight, name=names.block_scale, dtype="F8_E4M3", shape=(*front, columns // 16))
    yield replace(weight, name=names.global_scale, dtype="F32", shape=single)
    if how.input_scale is not None:
        single = input_shape(weight.shape, how.dialect)
        yield replace(weight, name=names.input_scale, dtype="F32", shape=single)


def packed_names(module: str, weight: str, dialect: Dialect) -> Convention:
    """Return the names of a module's tensors in NVFP4, given that of its plain weight.

    The scales of a fused weight without a suffix are joined by underscores, unless its name is that of a weight.
    """
    names = CONVENTIONS[dialect]
    flat = weight == module and not is_weight(module)

    def called(suffix: str) -> str:
        return tensor_name(module, f"_{suffix}" if flat else suffix)

    head = module if flat else called(names.weight)
    return Convention(head, called(names.block_scale), called(names.global_scale), called(names.input_scale))


def _unstacked(checkpoint: Checkpoint, operation: Unstack) -> Checkpoint:
    made: list[Tensor] = []
    for tensor in checkpoint.tensors:
        if not belongs(tensor.name, operation.module):
            made.append(tensor)
            continue
        count, rows, columns = stack_shape(operation, tensor.shape, tensor.dtype)
        size = rows * columns * DTYPE_BITS[tensor.dtype] // 8
        for part, name in enumerate(operation.names):
            first = tensor.begins[0] + part * size
            begins = array("Q", range(first, first + count * len(operation.names) * size, len(operation.names) * size))
            experts = array("I", range(count))
            shape = (rows, columns)
            made.append(Tensor(tensor_name(name, "weight"), tensor.dtype, shape, tensor.shard, begins, experts))
    return _recounted(checkpoint, made)


def _copied(checkpoint: Checkpoint, operation: CopyModule) -> Checkpoint:
    """Return the checkpoint with a module's tensors under a second name; raises FormatError where that is taken."""
    copies = [
        replace(tensor, name=operation.name + tensor.name[len(operation.module) :])
        for tensor in checkpoint.tensors
        if belongs(tensor.name, operation.module)
    ]
    there = {tensor.name for tensor in checkpoint.tensors}
    if not copies or any(tensor.name in there for tensor in copies):
        raise FormatError(f"{operation.module} cannot be stored as {operation.name} too", "write the plan again")
    return _recounted(checkpoint, (*checkpoint.tensors, *copies))


def stack_shape(operation: Unstack, shape: tuple[int, ...], dtype: str) -> tuple[int, int, int]:
    """Return how many experts a stack holds, and rows and columns of each part; raises FormatError for another."""
    if len(shape) != 3 or dtype not in ("BF16", "F16", "F32") or shape[1] % len(operation.names) or not all(shape):
        raise FormatError(f"{operation.module} is no stack of experts that can be taken apart", "write the plan again")
    return shape[0], shape[1] // len(operation.names), shape[2]


def scalar_shape(weight: tuple[int, ...], dialect: Dialect) -> tuple[int, ...]:
    """Return the shape of a scale of one number for a weight: one for each stacked expert."""
    if len(weight) > 2:
        return weight[:-2]
    return (1,) if dialect is Dialect.COMPRESSED_TENSORS else ()


def input_shape(weight: tuple[int, ...], dialect: Dialect) -> tuple[int, ...]:
    """Return the shape of the scale of inputs: as that of any one number, or of all stacked experts together."""
    return (1,) if dialect is Dialect.AMAX else scalar_shape(weight, dialect)


def dialect_of(scale: str) -> Dialect:
    """Return the dialect that calls a scale of inputs so, ModelOpt's where none does."""
    return next((dialect for dialect, names in CONVENTIONS.items() if names.input_scale == scale), Dialect.MODELOPT)


def _scaled(checkpoint: Checkpoint, operation: AddScale) -> Checkpoint:
    module = operation.module
    dialect = dialect_of(operation.suffix)
    name = tensor_name(module, operation.suffix)
    there = {number for tensor in checkpoint.tensors if tensor.name == name for number in tensor.experts or (-1,)}
    made: list[Tensor] = []
    for tensor in checkpoint.tensors:
        made.append(tensor)
        found, suffix = split_name(tensor.name)
        if found != module or suffix != CONVENTIONS[dialect].weight:
            continue
        lacking = [number for number in tensor.experts or (-1,) if number not in there]
        if lacking:
            experts = None if tensor.experts is None else array("I", lacking)
            single = input_shape(tensor.shape, dialect)
            made.append(
                Tensor(name, "F32", single, tensor.shard, array("Q", [0] * len(lacking)), experts),
            )
    return _recounted(checkpoint, made)


def _dropped(checkpoint: Checkpoint, operation: DropTensors) -> Checkpoint:
    names = set(operation.names)
    made: list[Tensor] = []
    for tensor in checkpoint.tensors:
        if tensor.shard != operation.shard:
            made.append(tensor)
        elif tensor.experts is None:
            if tensor.name not in names:
                made.append(tensor)
        else:
            kept = [
                (number, begin)
                for number, begin in zip(tensor.experts, tensor.begins, strict=True)
                if tensor.name.replace(EXPERT, str(number), 1) not in names
            ]
            if kept:
                experts, begins = zip(*kept, strict=True)
                made.append(replace(tensor, experts=array("I", experts), begins=array("Q", begins)))
    return _recounted(checkpoint, made)


def _grafted(checkpoint: Checkpoint, operation: Graft) -> Checkpoint:
    rows: dict[tuple[str, bool, str, tuple[int, ...]], list[tuple[int, int]]] = {}
    for tensor in operation.tensors:
        found = split_expert(tensor.name)
        name, number = found or (tensor.name, -1)
        rows.setdefault((name, found is not None, tensor.dtype, tensor.shape), []).append((number, tensor.begin))
    made = [
        Tensor(
            name,
            dtype,
            shape,
            operation.shard,
            array("Q", [begin for _, begin in sorted(members)]),
            array("I", [number for number, _ in sorted(members)]) if numbered else None,
        )
        for (name, numbered, dtype, shape), members in rows.items()
    ]
    return _recounted(checkpoint, (*checkpoint.tensors, *made))


def _recounted(checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> Checkpoint:
    """Return the checkpoint with these tensors; a new shard is added, an emptied one left out, and all are indexed."""
    counts: dict[str, int] = {}
    for tensor in tensors:
        counts[tensor.shard] = counts.get(tensor.shard, 0) + tensor.count
    before = {tensor.shard for tensor in checkpoint.tensors}
    known = {shard.name for shard in checkpoint.shards}
    shards = [
        replace(shard, tensors=counts.get(shard.name, 0))
        for shard in checkpoint.shards
        if shard.name in counts or shard.name not in before
    ]
    shards += [Shard(name, 0, 0, counts[name], indexed=True) for name in counts if name not in known]
    return replace(checkpoint, tensors=tuple(tensors), shards=tuple(shards))


def _reindexed(checkpoint: Checkpoint) -> Checkpoint:
    return replace(
        checkpoint,
        shards=tuple(replace(shard, indexed=True) for shard in checkpoint.shards),
        problems=tuple(problem for problem in checkpoint.problems if problem.fault not in INDEXED_FAULTS),
        has_index=len(checkpoint.shards) > 1 or checkpoint.has_index,
        lost=(),
    )
