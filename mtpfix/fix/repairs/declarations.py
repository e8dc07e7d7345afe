"""Ways to declare otherwise what is stored: by name, by one algorithm, in another file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mtpfix.checkpoint.names import describe_names
from mtpfix.checkpoint.quant import declared_scheme_differences
from mtpfix.fix.entries import (
    ALGORITHMS,
    block_path,
    edited_blocks,
    entries_title,
    find_entries,
    layer_entry,
    removals,
    spelled_out,
)
from mtpfix.fix.operations import CONFIG, HF_QUANT_CONFIG, Dequantize, Operation, RemoveKey, set_value
from mtpfix.fix.repairs.formats import NVFP4, restorable
from mtpfix.fix.repairs.repair import Repair, Wishes, made
from mtpfix.fix.repairs.scales import declare_inputs
from mtpfix.fix.trial import Trial
from mtpfix.model import Declaration, Format

MISDECLARED = ("quantized-into-plain", "other-format", "declaration-refused", "plain-into-quantized", "weight-missing")
"""Events that an allow-list may mend: some layers are asked for by no name that an exclude list could hold."""
CACHE_KEYS = ("kv_cache_quant_algo", "kv_cache_scheme")
"""Keys that say how the cache is stored: SGLang reads MIXED_PRECISION in config.json only beside one of them."""


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
