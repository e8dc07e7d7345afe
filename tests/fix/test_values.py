"""Scales as a repair would leave them: a rule judges the preview as a scan would judge the files."""

from __future__ import annotations

import struct
from functools import partial
from pathlib import Path

import pytest

from mtpfix.checkpoint import open_checkpoint, read_scalars
from mtpfix.engines.subject import Subject
from mtpfix.fix.operations import Dequantize
from mtpfix.fix.plan import make_plan, requests_for
from mtpfix.fix.repairs.repair import Wishes
from mtpfix.fix.trial import Trial
from mtpfix.rules import run
from mtpfix.rules.context import Context
from tests.checkpoints import build
from tests.patching import NEWEST, set_scalar

SCALE = "mtp.layers.0.self_attn.k_proj.weight_scale_2"


def context_of(folder: Path) -> Context:
    checkpoint = open_checkpoint(folder)
    return Context(Subject(checkpoint), requests_for([NEWEST]), partial(read_scalars, checkpoint))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    build(tmp_path / "base", "qwen3_5_moe", "branch-nvfp4")
    return tmp_path / "base"


def rules_of(trial: Trial) -> set[str]:
    return {finding.rule for finding in run(trial.context)}


def grafted(folder: Path, base: Path) -> Trial:
    build(folder, "qwen3_5_moe", "missing")
    context = context_of(folder)
    plan = make_plan(context, Wishes(graft=str(base)))
    assert plan.complete
    return Trial(context, tuple(one for one in plan.operations if not isinstance(one, Dequantize)))


def test_scales_of_a_grafted_branch_are_read_where_they_lie(base: Path, tmp_path: Path) -> None:
    assert "MTP303" not in rules_of(grafted(tmp_path / "model", base))
    set_scalar(base, SCALE, 0.04)
    trial = grafted(tmp_path / "other", base)
    (found,) = [one for one in run(trial.context) if one.rule == "MTP303"]
    assert "4:1" in found.message
    values = {name: values for name, ((_, values),) in trial.context.scalar_values.items()}
    assert list(values[SCALE]) == [struct.unpack("<f", struct.pack("<f", 0.04))[0]]
    experts = values["mtp.layers.0.mlp.experts.{}.up_proj.weight_scale_2"]
    assert len(experts) > 1
    assert len(set(experts)) == 1


def test_scales_that_are_yet_to_be_computed_are_not_known(tmp_path: Path) -> None:
    build(tmp_path / "model", "qwen3_5_moe", "excluded-glob")
    context = context_of(tmp_path / "model")
    plan = make_plan(context, Wishes(mtp="nvfp4", input_scale=1.0))
    after = Trial(context, plan.operations)
    assert SCALE in {tensor.name for tensor in after.context.checkpoint.tensors}
    assert SCALE not in after.context.scalar_values
    assert "MTP303" not in rules_of(after)
    assert set(context.scalar_values) <= set(after.context.scalar_values)
