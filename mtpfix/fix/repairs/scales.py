"""Ways to mend scales: shared ones that differ, inputs without one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mtpfix.checkpoint.conventions import CONVENTIONS, written_input_scale
from mtpfix.checkpoint.names import describe_names
from mtpfix.fix.entries import block_path, edited_blocks
from mtpfix.fix.inputs import input_scale_of
from mtpfix.fix.operations import AddScale, Operation, ShareScale, set_value
from mtpfix.fix.repairs.formats import NVFP4
from mtpfix.fix.repairs.repair import DERIVED, Repair, Wishes, made
from mtpfix.fix.trial import Trial
from mtpfix.model import Declaration, Format
from mtpfix.rules.scales import differing_groups


def share_scales(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Give packed modules that an engine fuses into one layer one global scale, where theirs differ."""
    del wishes
    operations = [ShareScale(tuple(sorted(group))) for group in differing_groups(trial.context)]
    if operations:
        names = [name for one in operations for name in one.modules]
        title = f"share one global scale within each fused layer of {describe_names(names)}"
        yield made(trial, trial.plus(operations), title, safe=True)


def weight_only(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Declare W4A16_NVFP4 where no packed module has an input scale, so that none is read."""
    del wishes
    lacking = without_input_scale(trial)
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


def without_input_scale(trial: Trial) -> list[str]:
    """Return the modules of which an engine misses the scale of their inputs."""
    names = tuple(each.input_scale for each in CONVENTIONS.values())
    found = trial.occurrences(["scale-missing"])
    return list(dict.fromkeys(one.event.module for one in found if one.event.tensor.endswith(names)))


def add_input_scales(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Write input scales that are missing: the largest of the same projection in other layers, or the one given."""
    operations = list(_input_scales(trial, without_input_scale(trial), wishes))
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
        suffix = CONVENTIONS[item.dialect].input_scale
        yield AddScale(name, suffix, written_input_scale(value, item.dialect))


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
    after = declared.plus(_input_scales(declared, without_input_scale(declared), wishes))
    title = "declare NVFP4 with quantized inputs, with the input scales given"
    yield made(trial, after, title, safe=False)


def _groups_with_inputs(block: Declaration) -> Iterator[Operation]:
    groups = block.raw.get("config_groups")
    if isinstance(groups, dict):
        for name, group in groups.items():
            if isinstance(group, dict) and group.get("input_activations") is None and group.get("weights"):
                path = (*block.path, "config_groups", name, "input_activations")
                yield set_value(block.file, path, group["weights"])
