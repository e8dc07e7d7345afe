"""The ways to mend what goes wrong: each proposes operations for a trial, and says what they write and risk.

A way proposes; whether it helps is decided by trying it (`trial.Trial`). `safe` is False where a repair rests on a
guess, loses something that may be wanted, or changes what the model computes beyond rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mtpfix.checkpoint.names import describe_names, split_name
from mtpfix.checkpoint.quant import declared_scheme_differences
from mtpfix.facts import Table, covers
from mtpfix.families import fill
from mtpfix.fix import cost
from mtpfix.fix.arrays import extended
from mtpfix.fix.entries import (
    ALGORITHMS,
    allow,
    block_path,
    edited_blocks,
    entries_title,
    find_entries,
    layer_entry,
    removals,
    spelled_out,
)
from mtpfix.fix.groups import fused_parts
from mtpfix.fix.inputs import input_scale_of
from mtpfix.fix.operations import (
    CONFIG,
    HF_QUANT_CONFIG,
    AddEntry,
    AddScale,
    CopyModule,
    Dequantize,
    DropTensors,
    Operation,
    Quantize,
    Reindex,
    RemoveEntry,
    RemoveKey,
    ShareScale,
    set_value,
)
from mtpfix.fix.preview import INDEXED_FAULTS, scale_names
from mtpfix.fix.stacks import stacked_name, unstacked
from mtpfix.fix.trial import Trial, modules_of
from mtpfix.model import EXPERT, Declaration, Dialect, Fault, Format, Stored, Tensor
from mtpfix.rules.scales import differing_groups

MISBUILT = ("quantized-into-plain", "other-format", "scale-missing", "scale-shape", "scale-partly-written")
"""Events of modules that are stored quantized, and that plain weights would not have."""
MISDECLARED = ("quantized-into-plain", "other-format", "declaration-refused", "plain-into-quantized", "weight-missing")
"""Events that an allow-list may mend: some layers are asked for by no name that an exclude list could hold."""
NVFP4 = (Format.NVFP4, Format.NVFP4_A16)
ORDER = "g_idx"
"""The suffix of what tells the order of GPTQ's columns: without activation order it says nothing that is not known."""
CACHE_KEYS = ("kv_cache_quant_algo", "kv_cache_scheme")
"""Keys that say how the cache is stored: SGLang reads MIXED_PRECISION in config.json only beside one of them."""
DERIVED = "the largest of the same projection in other layers, doubled"
"""Where an input scale is from that nobody gave."""
Branch = Literal["auto", "keep", "bf16", "nvfp4"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user wants of a repair: how the branch is stored, and the scale of inputs where none can be derived.

    `graft` is the folder of the base model, or its mirror's; `unsafe` admits repairs that are not safe. `scale_search`
    asks for the block scales of least error where weights are quantized.
    """

    mtp: Branch = "auto"
    input_scale: float | None = None
    graft: str | None = None
    unsafe: bool = False
    scale_search: bool = False


@dataclass(frozen=True, slots=True)
class Repair:
    """One step of a plan: what it does in words, its operations, and the bytes they write.

    `rest` are releases, as `vllm 0.32.0`, in which what it is for still goes wrong.
    """

    title: str
    safe: bool
    operations: tuple[Operation, ...]
    bytes_written: int
    rest: tuple[str, ...] = ()


def made(trial: Trial, after: Trial, title: str, *, safe: bool, rest: Iterable[str] = ()) -> Repair:
    """Return the repair that leads from one trial to another."""
    operations = after.operations[len(trial.operations) :]
    size = cost.bytes_written(trial.context.checkpoint, after.context.checkpoint, operations)
    return Repair(title, safe, operations, size, tuple(rest))


# ---------------------------------------------------------------------------------------------------------- files


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
    """Write what config.json declares into hf_quant_config.json where the two disagree."""
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
        after = trial.plus(operations)
        if operations:
            title = f"write the list of {CONFIG} into {block.file}"
            yield made(trial, after, title, safe=not trial.bad)  # a list that loads is the right one


def share_scales(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Give packed modules that an engine fuses into one layer one global scale, where theirs differ."""
    del wishes
    operations = [ShareScale(tuple(sorted(group))) for group in differing_groups(trial.context)]
    if operations:
        names = [name for one in operations for name in one.modules]
        title = f"share one global scale within each fused layer of {describe_names(names)}"
        yield made(trial, trial.plus(operations), title, safe=True)


# ---------------------------------------------------------------------------------------------------------- lists


def list_plain(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Exclude modules that are stored in 16 bits and built quantized."""
    del wishes
    found = find_entries(trial)
    if found is not None:
        title = entries_title(trial.context.checkpoint, found.entries)
        yield made(trial, found.trial, title, safe=True, rest={bad[0] for bad in found.rest})


def relist(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Take out the entries that exclude quantized modules, and name instead the plain ones they were for."""
    del wishes
    unwanted = _covering(trial)
    operations = removals(trial.context.checkpoint, unwanted)
    if not operations:
        return
    bare = trial.plus(operations)
    found = find_entries(bare, before=trial)
    after = found.trial if found is not None and found.trial.gain(trial) > bare.gain(trial) else bare
    added = found.entries if found is not None and after is found.trial else ()
    yield made(trial, after, entries_title(trial.context.checkpoint, added, unwanted), safe=True)


def _covering(trial: Trial) -> list[str]:
    """Return the entries that exclude quantized modules: behind one that goes another may come to light."""
    entries: dict[str, None] = {}
    after = trial
    while True:
        found = after.occurrences(["quantized-into-plain", "fused-partly-listed"])
        fresh = {one.built.excluded_by for one in found if one.built and one.built.excluded_by} - entries.keys()
        if not fresh:
            return list(entries)
        entries.update(dict.fromkeys(sorted(fresh)))
        after = trial.plus(removals(trial.context.checkpoint, entries))


def allow_packed(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Name modules that are stored quantized in the allow-list that lacks them."""
    del wishes
    modules = modules_of(trial.occurrences(["quantized-into-plain", "other-format"]))
    found = allow(trial, modules) if modules else None
    if found is not None:
        after, named = found
        yield made(trial, after, f"add {describe_names(named)} to quantized_layers", safe=True)


def restate_mixed(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Declare MIXED_PRECISION with an allow-list of every quantized module, in place of one algorithm for all."""
    del wishes
    blocks = [
        block
        for block in edited_blocks(trial.context.checkpoint)
        if block.method == "modelopt" and not block.layers and block.scheme is not None
    ]
    where = f", in {CONFIG} too" if all(block.file != CONFIG for block in blocks) else ""
    yield from _allowed(trial, blocks, "declare MIXED_PRECISION with the {count} quantized modules by name" + where)


def name_anew(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Write an allow-list anew that says of modules otherwise than they are stored, or not by the names asked for."""
    del wishes
    blocks = [block for block in edited_blocks(trial.context.checkpoint) if block.method == "modelopt" and block.layers]
    yield from _allowed(trial, blocks, "name the {count} quantized modules anew in quantized_layers")


def _allowed(trial: Trial, blocks: Sequence[Declaration], title: str) -> Iterator[Repair]:
    """Offer allow-lists of every quantized module for some blocks, those first of which the least goes wrong."""
    if not blocks or not trial.occurrences(MISDECLARED):
        return
    stored = trial.context.subject.stored
    entries = {name: entry for name, item in stored.items() if (entry := layer_entry(item)) is not None}
    layers = {layer: entry for name, entry in entries.items() for layer in spelled_out(stored[name])}
    asked = {
        built.prefix: entries[name]
        for _, _, built in trial.built()
        for name in built.modules
        if name in entries and built.prefix and built.prefix not in layers
    }
    title = title.replace("{count}", str(len(layers)))
    found = [(title, _mixed(trial, blocks, layers))]
    if asked and found[-1][1].bad:
        title += f", and {len(asked)} names that engines ask with"
        found.append((title, _mixed(trial, blocks, layers | asked)))
    if asked and found[-1][1].bad:
        excluded = dict.fromkeys(entry for block in blocks for entry in block.excludes)
        bare = found[-1][1].plus(removals(found[-1][1].context.checkpoint, excluded))
        found.append((f"{title}, and empty the exclude list that it replaces", bare))
        hit = found[-2][1].occurrences(["plain-into-quantized"])
        if plain := {one.built.prefix: UNQUANTIZED for one in hit if one.built and one.built.prefix not in layers}:
            shown = ", ".join(f"'{name}'" for name in plain)
            after = _mixed(trial, blocks, layers | asked | plain)
            found.append((f"{title}, and as {UNQUANTIZED['quant_algo']} what they ask for as {shown}", after))
    for text, after in sorted(found, key=lambda one: len(one[1].bad)):
        yield made(trial, after, text, safe=True)


UNQUANTIZED: dict[str, object] = {"quant_algo": "NO_QUANT"}
"""An algorithm that is none. Engines build 16-bit layers for any that they do not know, and look for a name as it is
before anything else: model_executor/layers/quantization/modelopt.py:1732@0.32.0."""


def _mixed(trial: Trial, blocks: Sequence[Declaration], named: Mapping[str, Mapping[str, object]]) -> Trial:
    """Return the trial with MIXED_PRECISION and this allow-list in every block."""
    alone = all(block.file != CONFIG and not block.layers for block in blocks)
    inline = all(block.file == CONFIG for block in blocks)
    operations: list[Operation] = []
    for block in blocks:
        operations.append(set_value(block.file, (*block_path(block), "quant_algo"), "MIXED_PRECISION"))
        operations.append(set_value(block.file, (*block_path(block), "quantized_layers"), named))
        if inline and block.raw.keys().isdisjoint(CACHE_KEYS):  # a block without either counts as incomplete
            operations.append(set_value(block.file, (*block_path(block), CACHE_KEYS[0]), None))
    if alone:  # some engines know MIXED_PRECISION in config.json alone
        operations.append(set_value(CONFIG, ("quantization_config",), _inline(blocks[0], named)))
    return trial.plus(operations)


def leave_to_file(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Take the block out of config.json that a release refuses, and leave it to hf_quant_config.json.

    Where that is not there, it is written, in the form that ModelOpt gives it.
    """
    blocks = edited_blocks(trial.context.checkpoint)
    top = next((block for block in blocks if block.file == CONFIG and block.method == "modelopt"), None)
    if top is None or not trial.occurrences(["declaration-refused"]):
        return
    others = [block for block in blocks if block.file != CONFIG and block.method == top.method]
    title = f"delete {'.'.join(top.path)} of {CONFIG}, and leave it to {others[0].file if others else HF_QUANT_CONFIG}"
    safe = not others or not declared_scheme_differences(top, others[0])
    yield made(trial, _left_to_file(trial), title, safe=safe)
    for one in declare_inputs(trial, wishes):
        yield made(trial, _left_to_file(trial.plus(one.operations)), f"{one.title}, and {title}", safe=False)


def _left_to_file(trial: Trial) -> Trial:
    """Return the trial without ModelOpt's block in config.json, which hf_quant_config.json then says alone."""
    blocks = edited_blocks(trial.context.checkpoint)
    top = next(block for block in blocks if block.file == CONFIG and block.method == "modelopt")
    operations: list[Operation] = []
    if all(block.file == CONFIG for block in blocks):
        inner: dict[str, object] = {"quant_algo": top.algo, "kv_cache_quant_algo": top.kv_cache}
        inner |= {} if top.group_size is None else {"group_size": top.group_size}
        inner |= {"exclude_modules": list(top.excludes)}
        inner |= {"quantized_layers": top.raw["quantized_layers"]} if "quantized_layers" in top.raw else {}
        content = top.raw if top.dialect == "nested" else {"quantization": inner}
        producer = {"producer": top.raw.get("producer", {"name": "modelopt"})}
        operations += [set_value(HF_QUANT_CONFIG, (key,), value) for key, value in (producer | dict(content)).items()]
    return trial.plus([*operations, RemoveKey(CONFIG, top.path)])


def restate_uniform(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Declare one algorithm, with a list of what is plain, where a release does not take MIXED_PRECISION as ModelOpt's.

    What is stored by another algorithm is stored in BF16, so that none is left.
    """
    del wishes
    blocks = [one for one in edited_blocks(trial.context.checkpoint) if one.method == "modelopt" and one.layers]
    stored = trial.context.subject.stored
    packed = [item.format for item in stored.values() if item.format in NVFP4]
    if not blocks or not packed or not (trial.unread or trial.occurrences(["declaration-refused"])):
        return
    kept = Format.NVFP4 if Format.NVFP4 in packed else Format.NVFP4_A16
    others = [name for name, item in stored.items() if not item.format.plain and item.format not in NVFP4]
    if not all(restorable(stored[name]) for name in others):
        return
    operations: list[Operation] = [Dequantize(name) for name in others]
    for block in blocks:
        path = block_path(block)
        operations.append(set_value(block.file, (*path, "quant_algo"), ALGORITHMS[kept]))
        operations.append(set_value(block.file, (*path, "group_size"), 16))
        operations.append(RemoveKey(block.file, (*path, "quantized_layers")))
        operations += _one_group(block)
    bare = trial.plus(operations)
    also = f"; dequantize {describe_names(others)} to BF16" if others else ""
    title = f"declare {ALGORITHMS[kept]} for all that is quantized, in place of MIXED_PRECISION by name{also}"
    ways = [(title, bare)]
    if any(block.file == CONFIG for block in blocks):
        where = f", in {HF_QUANT_CONFIG} alone"
        ways.append((title + where, _left_to_file(bare)))
    for text, after in ways:
        found = find_entries(after, before=trial)
        if found is None:
            yield made(trial, after, text, safe=not others)
        else:
            listed = entries_title(after.context.checkpoint, found.entries)
            yield made(trial, found.trial, f"{text}; {listed}", safe=not others)


def _one_group(block: Declaration) -> Iterator[Operation]:
    """Yield what leaves of a block's groups the one with weights of 4 bits, for every linear layer."""
    groups = block.raw.get("config_groups")
    if isinstance(groups, dict):
        for group in groups.values():
            weights = group.get("weights") if isinstance(group, dict) else None
            if isinstance(weights, dict) and weights.get("num_bits") == 4:
                only = {**group, "targets": ["Linear"]}
                yield set_value(block.file, (*block.path, "config_groups"), {"group_0": only})
                return
        yield RemoveKey(block.file, (*block.path, "config_groups"))


def _inline(block: Declaration, layers: Mapping[str, object]) -> dict[str, object]:
    """Return a ModelOpt block of a file of its own, as config.json holds one, with an allow-list."""
    body: dict[str, object] = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION"}
    if block.group_size is not None:
        body["group_size"] = block.group_size
    if block.kv_cache is not None:
        body["kv_cache_quant_algo"] = block.kv_cache
    return {**body, "ignore": list(block.excludes), "quantized_layers": dict(layers)}


# --------------------------------------------------------------------------------------------------- input scales


def weight_only(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Declare W4A16_NVFP4 where no packed module has an input scale, so that none is read."""
    del wishes
    lacking = _without_input_scale(trial)
    stored = [item for item in trial.context.subject.stored.values() if item.format in NVFP4]
    if not lacking or any(item.format is Format.NVFP4 for item in stored):
        return
    operations: list[Operation] = []
    for block in edited_blocks(trial.context.checkpoint):
        if block.method == "modelopt" and (block.algo or "").upper() == "NVFP4":
            operations.append(set_value(block.file, (*block_path(block), "quant_algo"), "W4A16_NVFP4"))
        operations += _groups_without_inputs(block)
    if operations:
        title = "declare W4A16_NVFP4: packed weights, 16-bit inputs"
        yield made(trial, trial.plus(operations), title, safe=True)


def _groups_without_inputs(block: Declaration) -> Iterator[Operation]:
    groups = block.raw.get("config_groups")
    if isinstance(groups, dict):
        for name, group in groups.items():
            if isinstance(group, dict) and group.get("input_activations") is not None:
                path = (*block.path, "config_groups", name, "input_activations")
                yield set_value(block.file, path, None)


def _without_input_scale(trial: Trial) -> list[str]:
    names = ("input_scale", "input_global_scale")
    found = trial.occurrences(["scale-missing"])
    return list(dict.fromkeys(one.event.module for one in found if one.event.tensor.endswith(names)))


def add_input_scales(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Write input scales that are missing: the largest of the same projection in other layers, or the one given."""
    operations = list(_input_scales(trial, _without_input_scale(trial), wishes))
    if operations:
        given = wishes.input_scale is not None
        how = f"{wishes.input_scale:g}, as given" if given else DERIVED
        title = f"write the missing input scales of {describe_names(one.module for one in operations)}: {how}"
        yield made(trial, trial.plus(operations), title, safe=not given)


def _input_scales(trial: Trial, modules: Sequence[str], wishes: Wishes) -> Iterator[AddScale]:
    stored = trial.context.subject.stored
    for name in modules:
        value = input_scale_of(trial, name, wishes.input_scale)
        item = stored.get(name)
        if value is None or item is None or item.format not in NVFP4:
            continue
        suffix = scale_names(item.dialect)[2]
        yield AddScale(name, suffix, 1 / value if item.dialect is Dialect.COMPRESSED_TENSORS else value)


def declare_inputs(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Declare NVFP4 with quantized inputs where a release refuses weight-only blocks, and write the input scales."""
    refused = trial.occurrences(["declaration-refused"])
    operations: list[Operation] = []
    for block in edited_blocks(trial.context.checkpoint):
        if block.method == "modelopt" and (block.algo or "").upper() == "W4A16_NVFP4":
            operations.append(set_value(block.file, (*block_path(block), "quant_algo"), "NVFP4"))
            operations += _groups_with_inputs(block)
    if not refused or not operations:
        return
    declared = trial.plus(operations)
    after = declared.plus(_input_scales(declared, _without_input_scale(declared), wishes))
    title = "declare NVFP4 with quantized inputs, with the input scales given"
    yield made(trial, after, title, safe=False)


def _groups_with_inputs(block: Declaration) -> Iterator[Operation]:
    groups = block.raw.get("config_groups")
    if isinstance(groups, dict):
        for name, group in groups.items():
            if isinstance(group, dict) and group.get("input_activations") is None and group.get("weights"):
                path = (*block.path, "config_groups", name, "input_activations")
                yield set_value(block.file, path, group["weights"])


# -------------------------------------------------------------------------------------------------------- tensors


def dequantize(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Store in BF16, and exclude, modules that are quantized in a way that an engine does not build."""
    built = {name for _, _, built in trial.built() for name in built.modules}
    unread = [name for name in modules_of(trial.occurrences(["unknown-tensor"])) if name in built]
    asked = {one.built.prefix for one in trial.occurrences(["weight-missing"]) if one.built}
    unread += _asked_as(trial, asked | {one.event.module for one in trial.occurrences(["class-broken"])})
    misbuilt = trial.occurrences(MISBUILT)
    modules = [*modules_of(misbuilt), *unread]
    yield from dequantized(trial, modules, wishes)
    for release in trial.context.releases:  # another may want what is left packed, and only under another name
        mine = modules_of(one for one in misbuilt if one.release is release)
        if mine and not set(mine).issuperset(modules):
            yield from dequantized(trial, mine, wishes)


def free_names(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Store in BF16 what makes an engine build plain modules quantized, because it asks for both by one name."""
    plain = trial.occurrences(["plain-into-quantized"])
    modules = _asked_as(trial, {one.built.prefix for one in plain if one.built})
    title = f"dequantize {{modules}} to BF16, asked for by the names of {describe_names(modules_of(plain))}"
    yield from dequantized(trial, modules, wishes, title)


def _asked_as(trial: Trial, prefixes: Collection[str]) -> list[str]:
    """Return the modules that are stored and built quantized and that an engine asks for by one of these names."""
    stored = trial.context.subject.stored
    found = (built.modules for _, _, built in trial.built() if built.prefix in prefixes and not built.format.plain)
    return [name for names in found for name in names if name in stored and not stored[name].format.plain]


def dequantized(trial: Trial, modules: Sequence[str], wishes: Wishes, title: str = "") -> Iterator[Repair]:
    """Offer to store modules, and those that an engine fuses with them, in BF16."""
    stored = trial.context.subject.stored
    wanted = [name for name in with_fused(trial, modules) if name in stored and restorable(stored[name])]
    if wishes.mtp == "keep":
        wanted = [name for name in wanted if not trial.context.subject.in_branch(name)]
    if not wanted:
        return
    bare = trial.plus([Dequantize(name) for name in wanted])
    found = find_entries(bare, before=trial)
    after = found.trial if found is not None and found.trial.gain(trial) > bare.gain(trial) else bare
    title = (title or "dequantize {modules} to BF16").replace("{modules}", describe_names(wanted))
    if any(bad[2] in wanted for bad in after.bad):  # no entry of a list names them all
        for mixed in restate_mixed(bare, wishes):
            named = bare.plus(mixed.operations)
            if named.gain(trial) > after.gain(trial):
                after, title = named, f"{title}, and {mixed.title}"
                break
    elsewhere = any(
        role == "target" and not built.format.plain and not set(modules).isdisjoint(built.modules)
        for _, role, built in trial.built()
    )  # a head that the main model builds quantized is not made plain lightly for the draft alone
    yield made(trial, after, title, safe=not elsewhere)


def restorable(stored: Stored) -> bool:
    """Return whether plain weights can be computed from what is stored."""
    known = (*NVFP4, Format.FP8, Format.FP8_BLOCK, Format.FP8_CHANNEL, Format.MXFP4, Format.MXFP8)
    return stored.format in known and not stored.missing and len(stored.shape) >= 2


def with_fused(trial: Trial, modules: Iterable[str]) -> list[str]:
    """Return modules with the quantized ones that an engine fuses with them into one layer."""
    wanted = dict.fromkeys(modules)
    stored = trial.context.subject.stored
    for _, _, built in trial.built():
        if not wanted.keys().isdisjoint(built.modules):
            wanted.update(dict.fromkeys(name for name in built.modules if name in stored))
    return list(wanted)


def quantize(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Store modules in NVFP4 that an engine builds so whatever is listed."""
    found = trial.occurrences(["plain-into-quantized", "other-format"])
    yield from quantized(trial, modules_of(one for one in found if one.built and one.built.format in NVFP4), wishes)


def quantized(trial: Trial, modules: Sequence[str], wishes: Wishes) -> Iterator[Repair]:
    """Offer to store plain modules in NVFP4, one global scale for those that an engine fuses."""
    stored = trial.context.subject.stored
    wanted = {name for name in with_fused(trial, modules) if packable(stored.get(name))}
    if wishes.mtp in ("keep", "bf16"):
        wanted = {name for name in wanted if not trial.context.subject.in_branch(name)}
    family = trial.context.subject.family
    apart = unstacked(family.table, stored, sorted(wanted)) if family is not None else []
    single = trial.plus(apart)
    wanted -= {one.module for one in apart}
    wanted.update(name for one in apart for name in one.names)
    operations = _quantizing(single, wanted, wishes, ())
    read = _without_input_scale(single.plus(operations)) if operations else []
    if not wanted.isdisjoint(read):
        operations = _quantizing(single, wanted, wishes, read)
    if operations:
        packed = {name for name, item in stored.items() if item.format in NVFP4}
        mixed = [
            ShareScale(group)
            for group in fused_parts(single, packed | wanted)
            if not wanted.issuperset(group) and not packed.issuperset(group)
        ]
        title = f"quantize {describe_names(wanted)} to NVFP4, {_inputs_text(operations, wishes)}"
        yield made(trial, single.plus([*operations, *mixed]), title, safe=False)


def _quantizing(trial: Trial, wanted: set[str], wishes: Wishes, read: Collection[str]) -> list[Quantize]:
    """Return the operations that quantize modules, none where a scale of inputs is needed and not known.

    `read` are modules whose input scale is asked for, however they are built.
    """
    operations = []
    for group in fused_parts(trial, wanted):
        dialect, inputs = _built_as(trial, group)
        value: float | None = None
        if inputs or not set(group).isdisjoint(read):
            values = [input_scale_of(trial, name, wishes.input_scale) for name in group]
            if None in values:
                return []
            value = max(one for one in values if one is not None)
        operations.append(Quantize(group, dialect, value, wishes.scale_search))
    return operations


def _inputs_text(operations: Iterable[Quantize], wishes: Wishes) -> str:
    """Say in words which scales the inputs get, and where those are from."""
    values = sorted({one.input_scale for one in operations if one.input_scale is not None})
    if not values:
        return "inputs in 16 bits"
    if wishes.input_scale is not None:
        return f"input scales {wishes.input_scale:g} as given"
    numbers = f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g} to {values[-1]:.3g}"
    return f"input scales {numbers}: {DERIVED}"


def packable(stored: Stored | None) -> bool:
    """Return whether a module's weight can be stored in NVFP4."""
    return (
        stored is not None
        and (stored.format.plain or stored.format is Format.FP8_BLOCK)
        and len(stored.shape) in (2, 3)
        and stored.shape[-1] % 16 == 0
        and math.prod(stored.shape) > 0
    )


def _built_as(trial: Trial, group: Sequence[str]) -> tuple[Dialect, bool]:
    """Return whose names a module's scales need, and whether any judged release quantizes its inputs."""
    methods = {block.method for block in edited_blocks(trial.context.checkpoint)}
    dialect = Dialect.COMPRESSED_TENSORS if "compressed-tensors" in methods else Dialect.MODELOPT
    mine = [built for _, _, built in trial.built() if not set(group).isdisjoint(built.modules)]
    return dialect, any(built.format is not Format.NVFP4_A16 for built in mine)


def drop_unknown(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Take out tensors that no judged release has a parameter for, GPTQ's `g_idx` also of modules that are built.

    Experts stay that a release misses where it looks for them in one tensor.
    """
    del wishes
    found = trial.occurrences(["unknown-tensor"])
    missing = set(modules_of(trial.occurrences(["weight-missing"])))
    family = trial.context.subject.family
    table = family.table if family is not None else {}
    modules = {name for name in modules_of(found) if missing.isdisjoint((stacked_name(table, name),))}
    ordered = set(modules_of(one for one in found if one.event.tensor.endswith(f".{ORDER}")))
    used = {name for _, _, built in trial.built() for name in built.modules}
    by_shard: dict[str, list[str]] = {}
    for tensor in trial.context.checkpoint.tensors:
        module, suffix = split_name(tensor.name)
        if (module in modules and module not in used) or (module in ordered and suffix == ORDER):
            by_shard.setdefault(tensor.shard, []).extend(full_names(tensor))
    if by_shard:
        names = [name for shard in by_shard.values() for name in shard]
        operations = [DropTensors(shard, tuple(found)) for shard, found in by_shard.items()]
        yield made(trial, trial.plus(operations), f"drop {describe_names(names)}", safe=False)


# -------------------------------------------------------------------------------------------------- configuration


def extend_arrays(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Extend per-layer arrays of the configuration to the MTP layers, after the decoder layer each resembles."""
    del wishes
    keys = modules_of(trial.occurrences(["array-short"]))
    operations, how = extended(trial, keys)
    if operations:
        yield made(trial, trial.plus(operations), f"extend {', '.join(keys)} to the MTP layers, {how}", safe=False)


def copy_namesakes(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Store modules once more, under the name by which a release looks for what others find under their own."""
    del wishes
    subject = trial.context.subject
    if subject.family is None or subject.numbers is None:
        return
    operations: dict[str, CopyModule] = {}
    for one in trial.occurrences(["weight-missing"]):
        for entry in namesakes(subject.family.table["modules"], one.event.module):
            origin = fill(entry["same_as"], subject.numbers)
            there = origin in subject.stored and one.event.module not in subject.stored
            if there and covers(entry.get("versions", "*"), one.release.version):
                operations[one.event.module] = CopyModule(origin, one.event.module)
    if operations:
        title = f"copy {describe_names(one.module for one in operations.values())} to {describe_names(operations)}"
        yield made(trial, trial.plus(operations.values()), title, safe=True)


def namesakes(listings: Mapping[str, Sequence[Table]], module: str) -> Iterator[Table]:
    """Yield the entries of a family's modules that have this name on disk, and say what else it is called."""
    for entries in listings.values():
        yield from (entry for entry in entries if entry["name"] == module and "same_as" in entry)


def switch_off(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Declare no MTP layer, where the branch is not there."""
    del wishes
    subject = trial.context.subject
    numbers, family = subject.numbers, subject.family
    if numbers is None or family is None or not numbers.mtp or not trial.occurrences(["layer-absent"]):
        return
    inner = next((key for key in family.table.get("text", ()) if numbers.config.get(key) is numbers.decoder), None)
    path = (inner,) if inner else ()
    keys = [key for key in family.table["numbers"]["K"] if key in numbers.decoder]
    operations: list[Operation] = [set_value(CONFIG, (*path, key), 0) for key in keys]
    outer = [key for key in family.table["numbers"]["K"] if inner and key in numbers.config]
    operations += [set_value(CONFIG, (key,), 0) for key in outer]
    if not operations:
        operations = [set_value(CONFIG, (*path, family.table["numbers"]["K"][0]), 0)]
    title = f"switch the branch off: set {', '.join([*keys, *outer] or ['the MTP key'])} to 0 in {CONFIG}"
    yield made(trial, trial.plus(operations), title, safe=False)


Way = Callable[[Trial, Wishes], Iterator[Repair]]
WAYS: tuple[Way, ...] = (
    reindex,
    drop_nested,
    list_plain,
    relist,
    allow_packed,
    weight_only,
    extend_arrays,
    add_input_scales,
    declare_inputs,
    restate_mixed,
    name_anew,
    leave_to_file,
    restate_uniform,
    copy_namesakes,
    dequantize,
    quantize,
    free_names,
    drop_copies,
    drop_unknown,
    switch_off,
)
"""Every way, what writes no tensor first."""
