"""What Step-5's own checks say of checkpoints that no variant is, as vLLM 0.33.0 itself said it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.model import Role, Verdict
from tests.checkpoints import Plan, plan, write
from tests.conformance import environment
from tests.conformance.random_checkpoints import Case, compare

RELEASE = "0.33.0"
INCOMPLETE = "ValueError: Incomplete fused qkv+indexer weight for {}.qkv_indexer_proj.weight: missing shards {}."
EVERYTHING = ["index_g", "index_k", "index_q", "index_z", "k", "q", "v"]


def picked(known: Plan, places: Sequence[int]) -> Plan:
    """Return a checkpoint with these of its modules, in this order."""
    modules, groups = tuple(known.modules[place] for place in places), tuple(known.groups[place] for place in places)
    return replace(known, modules=modules, groups=groups)


def vision_between() -> Plan:
    """Return a checkpoint with the vision tower before the branch, which begins another file."""
    known = plan("step5_vl", "excluded-glob")
    order = sorted(range(len(known.modules)), key=lambda place: known.modules[place].part == "branch")
    return picked(known, order)


def without(family: str, *names: str) -> Plan:
    known = plan(family, "excluded-glob")
    kept = [place for place, module in enumerate(known.modules) if not module.name.endswith(names)]
    return picked(known, kept)


def reshaped(ends: str, shape: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Plan:
    known = plan("step5", "excluded-glob")
    groups = tuple(
        tuple(replace(one, shape=shape(one.shape)) if one.name.endswith(ends) else one for one in group)
        for group in known.groups
    )
    return replace(known, groups=groups)


def configured(**numbers: Any) -> Plan:
    return plan("step5", "excluded-glob", numbers=numbers)


COUNT = "ValueError: Step5 expert tensor has an unexpected leading dimension: expected 4, got {} for "
CASES: Mapping[str, tuple[Callable[[], Plan], Role, str | None]] = {
    "a wrapper hands the decoder what lies before and after vision apart": (
        vision_between,
        "target",
        INCOMPLETE.format("layers.0.self_attn", EVERYTHING),
    ),
    "the target misses parts of a joined matrix": (
        lambda: without("step5", "layers.0.self_attn.sparse_indexer_z", "layers.0.self_attn.k_proj"),
        "target",
        INCOMPLETE.format("layers.0.self_attn", ["index_z", "k"]),
    ),
    "so does the draft": (
        lambda: without("step5_vl", "layers.3.self_attn.g_proj"),
        "draft",
        INCOMPLETE.format("model.layers.3.mtp_block.self_attn", ["index_g"]),
    ),
    "nobody misses a part of any other": (lambda: without("step5", "layers.3.self_attn.k_proj"), "draft", None),
    "but the whole": (
        lambda: without("step5", *(f"layers.3.self_attn.{name}_proj" for name in "qkvg")),
        "draft",
        "RuntimeError: Some parameters like … are not in the checkpoint and will falsely use random initialization",
    ),
    "experts are counted": (
        lambda: reshaped(".moe.gate_proj.weight", lambda shape: (3, *shape[1:])),
        "target",
        COUNT.format("(3, 64, 64)") + "layers.1.moe.experts.routed_experts.w13_weight.",
    ),
    "so are their scales": (
        lambda: reshaped(".moe.down_proj.weight_scale_2", lambda _: ()),
        "target",
        COUNT.format("()") + "layers.1.moe.experts.routed_experts.w2_weight_scale_2.",
    ),
    "a narrow indexer": (
        lambda: reshaped("layers.0.self_attn.sparse_indexer_q.weight", lambda shape: (shape[0], 64)),
        "target",
        "RuntimeError: The size of tensor a (128) must match the size of tensor b (64) at non-singleton dimension 1",
    ),
    "a short one": (
        lambda: reshaped("layers.0.self_attn.sparse_indexer_w.weight", lambda shape: (3, shape[1])),
        "target",
        "RuntimeError: start (0) + length (4) exceeds dimension size (3).",
    ),
    "experts in the branch": (
        lambda: configured(moe_layers_enum="1,2,3"),
        "draft",
        "NotImplementedError: Step5 MTP supports dense draft layers only",
    ),
    "an array that ends early": (
        lambda: configured(partial_rotary_factors=[1.0] * 4),
        "draft",
        "ValueError: Step5 partial_rotary_factors has 4 entries, but layer 4 requires an entry.",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_its_checks_are_predicted(name: str, tmp_path: Path) -> None:
    make, role, error = CASES[name]
    write(tmp_path, make())
    found = predict(Subject(open_checkpoint(tmp_path)), "vllm", RELEASE)
    judged = found.target if role == "target" else found.draft
    assert (judged.error, judged.verdict) == (error, Verdict.FAILS if error else Verdict.SILENT)


def test_every_run_of_the_decoders_tensors_has_to_be_whole(tmp_path: Path) -> None:
    write(tmp_path, vision_between())
    found = predict(Subject(open_checkpoint(tmp_path)), "vllm", RELEASE)
    assert found.target.error_tensor == "vision_model.vit_downsampler2.bias"  # the first that is not of the run
    assert found.draft.verdict is Verdict.LOADS


@pytest.mark.engine
def test_the_release_says_what_is_predicted(tmp_path: Path) -> None:
    if environment.interpreter(RELEASE) is None:
        pytest.skip(f"no environment for vllm {RELEASE}: set {environment.VARIABLE}")
    made = [Case(make(), (name,)) for name, (make, _, _) in CASES.items()]
    assert {one.changes: wrong for one, wrong in compare(f"vllm-{RELEASE}", made, tmp_path) if wrong} == {}
