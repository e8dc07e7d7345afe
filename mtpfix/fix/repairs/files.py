"""Ways to put files in order: the index, tensors in several shards, blocks and files that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator

from mtpfix.checkpoint.names import describe_names
from mtpfix.checkpoint.quant import declared_scheme_differences
from mtpfix.fix.entries import block_path, list_path
from mtpfix.fix.operations import CONFIG, AddEntry, DropTensors, Operation, Reindex, RemoveEntry, RemoveKey, set_value
from mtpfix.fix.preview import INDEXED_FAULTS
from mtpfix.fix.repairs.repair import Repair, Wishes, made
from mtpfix.fix.trial import Trial
from mtpfix.model import EXPERT, Fault, Tensor


def reindex(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Write the index anew where it and the shards disagree, without tensors that it names in another shard.

    An engine that obeys the index never reads those: what it loads stays the same.
    """
    del wishes
    checkpoint = trial.context.checkpoint
    if not any(problem.fault in INDEXED_FAULTS for problem in checkpoint.problems):
        return
    indexed = {shard.name for shard in checkpoint.shards if shard.indexed}
    held = {name for tensor in checkpoint.tensors if tensor.shard in indexed for name in full_names(tensor)}
    shadowed: dict[str, list[str]] = {}
    for tensor in checkpoint.tensors:
        if tensor.shard not in indexed:
            shadowed.setdefault(tensor.shard, []).extend(name for name in full_names(tensor) if name in held)
    operations = [DropTensors(shard, tuple(names)) for shard, names in shadowed.items() if names]
    title = "rebuild the index from the shards"
    if operations:
        copies = describe_names(name for one in operations for name in one.names)
        title += f", without the copies of {copies} in {', '.join(one.shard for one in operations)}"
    yield made(trial, trial.plus([*operations, Reindex()]), title, safe=True)


def full_names(tensor: Tensor) -> Iterator[str]:
    """Yield the names of all tensors that a description stands for."""
    if tensor.experts is None:
        yield tensor.name
    else:
        yield from (tensor.name.replace(EXPERT, str(number), 1) for number in tensor.experts)


def drop_copies(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Take a tensor that several shards hold out of those that come first in the engines' order.

    Engines load every file in the order of names, so that the last copy is the one that counts.
    """
    del wishes
    checkpoint = trial.context.checkpoint
    if not any(problem.fault is Fault.TENSOR_DUPLICATE for problem in checkpoint.problems):
        return
    last: dict[str, str] = {}
    copies: dict[str, list[str]] = {}
    for tensor in sorted(checkpoint.tensors, key=lambda tensor: tensor.shard):
        for name in full_names(tensor):
            if name in last:
                copies.setdefault(last[name], []).append(name)
            last[name] = tensor.shard
    operations = [DropTensors(shard, tuple(names)) for shard, names in copies.items()]
    if operations:
        title = f"drop {describe_names(name for one in operations for name in one.names)} from {operations[0].shard}"
        yield made(trial, trial.plus(operations), title, safe=False)


def drop_nested(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Delete quantization blocks inside the configurations of sub-models that contradict the one at the top."""
    del wishes
    blocks = trial.context.checkpoint.declarations
    top = next((block for block in blocks if block.file == CONFIG and len(block.path) == 1), None)
    for block in blocks:
        if block.file == CONFIG and len(block.path) > 1 and top and declared_scheme_differences(top, block):
            after = trial.plus([RemoveKey(CONFIG, block.path)])
            yield made(trial, after, f"delete {'.'.join(block.path)}", safe=True)


def synchronise(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Write what config.json declares into hf_quant_config.json where the two disagree.

    Where a model obeys each of the two, and that would spoil one, each gets the names that only the other excludes.
    """
    del wishes
    blocks = trial.context.checkpoint.declarations
    top = next((block for block in blocks if block.file == CONFIG and len(block.path) == 1), None)
    for block in blocks:
        if top is None or block.file == CONFIG or block.method != top.method or top.method != "modelopt":
            continue
        if not declared_scheme_differences(top, block):
            continue
        path = block_path(block)
        operations: list[Operation] = []
        if (top.algo or "").upper() != (block.algo or "").upper():
            operations.append(set_value(block.file, (*path, "quant_algo"), top.algo))
        if None not in (top.group_size, block.group_size) and top.group_size != block.group_size:
            operations.append(set_value(block.file, (*path, "group_size"), top.group_size))
        if (top.kv_cache or "").upper() != (block.kv_cache or "").upper():
            operations.append(set_value(block.file, (*path, "kv_cache_quant_algo"), top.kv_cache))
        if block.exclude_key:
            known, wanted = set(block.excludes), set(top.excludes)
            listed = (*path, block.exclude_key)
            operations += [RemoveEntry(block.file, listed, one) for one in block.excludes if one not in wanted]
            operations += [AddEntry(block.file, listed, one) for one in top.excludes if one not in known]
        if top.layers != block.layers:
            layers = top.raw.get("quantized_layers") or {}
            operations.append(set_value(block.file, (*path, "quantized_layers"), layers))
        if not operations:
            continue
        after, title = trial.plus(operations), f"write the list of {CONFIG} into {block.file}"
        listed_above = list_path(top)
        if after.bad - trial.bad and listed_above is not None:
            both = [
                AddEntry(CONFIG, listed_above, one.entry) if isinstance(one, RemoveEntry) else one for one in operations
            ]
            after, title = trial.plus(both), f"write what only {CONFIG} or {block.file} excludes into the other"
        yield made(trial, after, title, safe=not trial.bad)  # a list that loads is the right one
