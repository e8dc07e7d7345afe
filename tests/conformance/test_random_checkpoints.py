"""What the newest release does with checkpoints made at random is what is predicted, text for text.

`python -m tests.conformance.random_checkpoints` makes as many as one likes, for any release and family.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines import load
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.model import Verdict
from tests.checkpoints import plan, write
from tests.conformance import environment
from tests.conformance.random_checkpoints import CHANGES, Case, cases, compare, sized_cases

LISTED = ("qwen3_5", "qwen3_next", "deepseek_v3", "glm4_moe", "nemotron_h", "qwen3_5_moe")
SIZED = (
    "qwen3_5", "qwen3_5_moe", "qwen3_next", "deepseek_v3", "glm4_moe", "glm5_next", "nemotron_h", "bailing_v3",
    "exaone4_5", "minimax_m3",
)  # fmt: skip
DAMAGED = ("qwen3_5", "deepseek_v3", "glm4_moe", "nemotron_h")


@pytest.mark.parametrize("kind", CHANGES)
def test_a_seed_makes_the_same_checkpoint_and_a_sentence_for_each_change(kind: str) -> None:
    first, again = (cases("qwen3_5", 3, 4, [kind]) for _ in range(2))
    assert first == again
    assert len({one.changes for one in first}) > 1
    assert all(2 <= len(one.changes) <= 4 for one in first)


def test_changes_are_of_the_kinds_that_are_wanted() -> None:
    dropped = cases("deepseek_v3", 1, 1, ["drop"])[0]
    assert all("dropped" in text or "renamed" in text for text in dropped.changes[1:])


@pytest.mark.engine
def test_the_newest_release_does_with_random_checkpoints_what_is_predicted(tmp_path: Path) -> None:
    version = load("vllm").verified[-1]
    if environment.interpreter(version) is None:
        pytest.skip(f"no environment for vllm {version}: set {environment.VARIABLE}")
    made = [one for family in LISTED for one in cases(family, 7, 1, ("store", "list"))]
    made += [one for family in DAMAGED for one in cases(family, 7, 1, ("drop", "alter"))]
    found = list(compare(f"vllm-{version}", made, tmp_path))
    assert [one for one, _ in found] == made
    assert {one.changes: wrong for one, wrong in found if wrong} == {}


APPENDED = ("glm4_moe", "deepseek_v3", "glm_ocr", "glm4_moe_lite", "bailing_v2_5")
"""Families whose drafts SGLang loads with a function that counts the MTP layers, and refuses more than one."""
ONE_LAYER = "Only 1 nextn layer is supported"


def with_two_layers(family: str) -> Case:
    return Case(plan(family, "hf-quant-only", numbers={"num_nextn_predict_layers": 2}), (family,))


@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3"])
def test_a_second_mtp_layer_is_refused_by_loaders_that_count(family: str, tmp_path: Path) -> None:
    write(tmp_path / "two", with_two_layers(family).planned)
    subject = Subject(open_checkpoint(tmp_path / "two"))
    for release in load("sglang").releases:
        found = predict(subject, "sglang", release)
        assert found.draft.error == f"AssertionError: {ONE_LAYER}", release
        assert found.target.error is None
    assert ONE_LAYER not in str(predict(subject, "vllm", load("vllm").verified[-1]).draft.error)


@pytest.mark.parametrize(
    ("attentions", "raised"), [(4, "mtp.embed_tokens.weight"), (2, "layers.1.input_layernorm.0.weight")]
)
def test_longcat_counts_two_attentions_a_layer_where_it_counts_them(
    attentions: int, raised: str, tmp_path: Path
) -> None:
    write(tmp_path, plan("longcat_flash", "excluded-glob", numbers={"num_hidden_layers": attentions}))
    found = predict(Subject(open_checkpoint(tmp_path)), "vllm", "0.24.0").target
    assert found.error == f"KeyError: '{raised}'"  # as the release itself said


BUILT_ONCE = {
    "qwen3_5": "mtp_num_hidden_layers",
    "exaone_moe": "num_nextn_predict_layers",
    "ernie4_5_moe": "num_nextn_predict_layers",
    "nemotron_h": "num_nextn_predict_layers",
    "dots3_note": "num_nextn_predict_layers",
    "hy_v4": "num_nextn_predict_layers",
}
"""Families whose draft SGLang builds with one MTP layer, with the key that declares more."""


def declaring_two(family: str, variant: str) -> Case:
    return Case(plan(family, variant, numbers={BUILT_ONCE[family]: 2}), (family, variant))


def test_of_more_layers_than_a_draft_builds_none_is_missed(tmp_path: Path) -> None:
    write(tmp_path / "two", declaring_two("qwen3_5", "excluded-glob").planned)  # the second is not stored
    subject = Subject(open_checkpoint(tmp_path / "two"))
    assert predict(subject, "sglang", load("sglang").verified[-1]).draft.events == ()
    other = predict(subject, "vllm", load("vllm").verified[-1]).draft
    assert [(event.kind, event.module) for event in other.events if event.kind == "layer-absent"] == [
        ("layer-absent", "mtp.layers.1")
    ]
    write(tmp_path / "both", declaring_two("ernie4_5_moe", "excluded-glob").planned)  # the second is stored
    both = Subject(open_checkpoint(tmp_path / "both"))
    assert any("mtp_block.1." in name for name in both.stored)
    draft = predict(both, "sglang", load("sglang").verified[-1]).draft
    assert (draft.verdict, draft.events) == (Verdict.LOADS, ())


def test_parts_that_a_loader_joins_fail_together(tmp_path: Path) -> None:
    """With two layers a shard begins with the first one's attention, so that its joined parts are the first to fail."""
    write(tmp_path / "plain", declaring_two("hy_v4", "excluded-glob").planned)
    plain = predict(Subject(open_checkpoint(tmp_path / "plain")), "sglang", "0.5.23").draft
    assert plain.error_tensor == "model.mtp_layers.0.self_attn.kv_b_proj.weight"
    joined = [event.tensor for event in plain.events if "_a_proj" in event.module and event.error]
    assert joined == ["model.mtp_layers.0.self_attn.q_a_proj.weight"]
    write(tmp_path / "packed", declaring_two("hy_v4", "compressed-tensors").planned)
    packed = Subject(open_checkpoint(tmp_path / "packed"))
    before, after = (predict(packed, "sglang", release).draft for release in ("0.5.21", "0.5.23"))
    assert before.error == "KeyError: 'model.decoder.self_attn.fused_qkv_a_proj_with_mqa.weight'"
    assert before.error_tensor == "model.mtp_layers.0.self_attn.q_a_proj.weight"
    assert after.error == "KeyError: 'model.decoder.mlp.shared_experts.gate_up_proj.weight'"


@pytest.mark.engine
def test_the_newest_sglang_builds_one_mtp_layer_as_predicted(tmp_path: Path) -> None:
    version = load("sglang").verified[-1]
    if environment.sglang_interpreter(version) is None:
        pytest.skip(f"no environment for sglang {version}: set {environment.VARIABLE}")
    made = [declaring_two(family, variant) for family in BUILT_ONCE for variant in ("excluded-glob", "branch-nvfp4")]
    found = list(compare(f"sglang-{version}", made, tmp_path))
    assert {one.changes: wrong for one, wrong in found if wrong} == {}


@pytest.mark.engine
def test_the_newest_sglang_refuses_a_second_mtp_layer_as_predicted(tmp_path: Path) -> None:
    version = load("sglang").verified[-1]
    if environment.sglang_interpreter(version) is None:
        pytest.skip(f"no environment for sglang {version}: set {environment.VARIABLE}")
    found = list(compare(f"sglang-{version}", [with_two_layers(family) for family in APPENDED], tmp_path))
    assert {one.changes: wrong for one, wrong in found if wrong} == {}


def with_scale(suffix: str, shape: tuple[int, ...]) -> Case:
    """Return a checkpoint in which the scales of the rows' projections have another shape."""
    known = plan("ernie4_5_moe", "branch-nvfp4")
    ends = f".mtp_block.0.self_attn.o_proj.{suffix}"
    groups = tuple(
        tuple(replace(one, shape=shape) if one.name.endswith(ends) else one for one in group) for group in known.groups
    )
    return Case(replace(known, groups=groups), (suffix, str(shape)))


ODD_SCALES = [
    ("weight_scale", (), "IndexError: tuple index out of range"),
    ("weight_scale", (1,), "IndexError: tuple index out of range"),
    ("weight_scale_2", (1, 1), "AssertionError"),
]
"""Scales of a row-parallel layer that SGLang cannot copy, with what it raises."""


@pytest.mark.parametrize(("suffix", "shape", "error"), ODD_SCALES)
def test_a_scale_of_one_number_where_many_are_wanted_is_refused(
    suffix: str, shape: tuple[int, ...], error: str, tmp_path: Path
) -> None:
    write(tmp_path / "odd", with_scale(suffix, shape).planned)
    draft = predict(Subject(open_checkpoint(tmp_path / "odd")), "sglang", load("sglang").verified[-1]).draft
    assert draft.error == error
    assert draft.error_tensor == f"model.mtp_block.0.self_attn.o_proj.{suffix}"


@pytest.mark.engine
def test_the_newest_sglang_refuses_odd_scales_as_predicted(tmp_path: Path) -> None:
    version = load("sglang").verified[-1]
    if environment.sglang_interpreter(version) is None:
        pytest.skip(f"no environment for sglang {version}: set {environment.VARIABLE}")
    found = list(compare(f"sglang-{version}", [with_scale(suffix, shape) for suffix, shape, _ in ODD_SCALES], tmp_path))
    assert {one.changes: wrong for one, wrong in found if wrong} == {}


def test_sizes_all_differ() -> None:
    config = sized_cases("deepseek_v3", 5, 1)[0].planned.config
    keys = ("hidden_size", "intermediate_size", "moe_intermediate_size", "q_lora_rank", "kv_lora_rank", "vocab_size")
    more = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "num_attention_heads", "n_routed_experts")
    assert len({config[key] for key in (*keys, *more)}) == len(keys) + len(more)


@pytest.mark.engine
def test_the_newest_release_loads_checkpoints_whose_sizes_all_differ_as_predicted(tmp_path: Path) -> None:
    version = load("vllm").verified[-1]
    if environment.interpreter(version) is None:
        pytest.skip(f"no environment for vllm {version}: set {environment.VARIABLE}")
    made = [one for family in SIZED for one in sized_cases(family, 11, 1)]
    assert {one.planned.family: wrong for one, wrong in compare(f"vllm-{version}", made, tmp_path) if wrong} == {}
    for number in range(len(made)):
        found = predict(Subject(open_checkpoint(tmp_path / f"{number:04}")), "vllm", version)
        assert found.target.verdict is found.draft.verdict is Verdict.LOADS
