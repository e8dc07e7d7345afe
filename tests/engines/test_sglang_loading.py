"""What SGLang's loaders do with damaged and odd checkpoints, text for text; each case was run in its real loader."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.model import ModelPrediction, Prediction, Verdict
from tests.checkpoints import Plan, Tensor, plan, write
from tests.conformance.sizes import UNQUANTIZED

NEWEST = "0.5.23"
Change = Callable[[Tensor], Tensor]


def predicted(planned: Plan, place: Path, version: str = NEWEST, engine: str = "sglang") -> Prediction:
    write(place, planned)
    return predict(Subject(open_checkpoint(place)), engine, version)


def changed(family: str, change: Change, numbers: Mapping[str, Any] | None = None) -> Plan:
    known = plan(family, UNQUANTIZED, numbers=numbers or {})
    return replace(known, groups=tuple(tuple(change(one) for one in group) for group in known.groups))


def renamed(old: str, new: str) -> Change:
    return lambda one: replace(one, name=new) if one.name == old else one


def reshaped(name: str, *shape: int) -> Change:
    return lambda one: replace(one, shape=shape) if one.name == name else one


def failure(found: ModelPrediction) -> tuple[str | None, str | None]:
    return found.error, found.error_tensor


def test_a_part_of_nemotron_that_is_stored_under_another_name_stays_unwritten(tmp_path: Path) -> None:
    name = "mtp.layers.0.mixer.o_proj.weight"
    draft = predicted(changed("nemotron_h", renamed(name, f"model.{name}")), tmp_path / "x").draft
    assert draft.verdict is Verdict.SILENT
    assert [one.module for one in draft.events if one.kind == "weight-missing"] == ["mtp.layers.0.mixer.o_proj"]


def test_ernie_refuses_a_name_as_what_it_would_be_a_part_of(tmp_path: Path) -> None:
    for old, new, said in (
        ("mlp.gate_proj.weight", "mtp_block.0.mlp.gate_proj.weight", "'mtp_block.0.mlp.gate_up_proj.weight'"),
        ("mlp.down_proj.weight", "mtp_block.0.w", "\"Parameter 'mtp_block.0.w' not found in model.\""),
    ):
        planned = changed("ernie4_5_moe", renamed(f"model.mtp_block.0.{old}", new))
        assert failure(predicted(planned, tmp_path / old).target) == (f"KeyError: {said}", new)


def test_norms_of_another_size_are_refused_without_a_word_where_their_class_copies_them(tmp_path: Path) -> None:
    name = "mtp.layers.0.input_layernorm.weight"
    planned = changed("qwen3_next", reshaped(name, 64))
    assert failure(predicted(planned, tmp_path / "x").draft) == ("AssertionError", name)
    older = predicted(planned, tmp_path / "y", "0.5.10").draft
    assert older.error == (
        "AssertionError: Attempted to load weight (torch.Size([64])) into parameter (torch.Size([128]))"
    )


def test_sglang_has_one_head_dim_for_all_layers_of_step(tmp_path: Path) -> None:
    known = plan("step3p5", UNQUANTIZED).config
    other = {**known["attention_other_setting"], "head_dim": known["head_dim"] * 2}
    planned = plan("step3p5", UNQUANTIZED, numbers={"attention_other_setting": other})
    sliding = f"model.layers.{known['layer_types'].index('sliding_attention')}.self_attn.k_norm.weight"
    assert failure(predicted(planned, tmp_path / "x").target) == ("AssertionError", sliding)
    assert predicted(planned, tmp_path / "y", "0.32.0", "vllm").target.error is None


def test_sglang_makes_the_experts_of_hunyuan_by_another_key(tmp_path: Path) -> None:
    known = plan("hy_v3", UNQUANTIZED).config
    numbers = {"moe_intermediate_size": known["expert_hidden_dim"] // 2}
    planned = plan("hy_v3", UNQUANTIZED, numbers=numbers)
    half, whole = known["expert_hidden_dim"] // 2, known["expert_hidden_dim"]
    error, tensor = failure(predicted(planned, tmp_path / "x").target)
    assert error == (
        f"RuntimeError: The size of tensor a ({half}) must match the size of tensor b ({whole}) "
        "at non-singleton dimension 0"
    )
    assert tensor == "model.layers.1.mlp.experts.0.gate_proj.weight"
    assert predicted(planned, tmp_path / "y", "0.32.0", "vllm").target.verdict is Verdict.LOADS


def test_sglang_has_eight_groups_in_nemotrons_mamba_layers(tmp_path: Path) -> None:
    fewer = plan("nemotron_h", UNQUANTIZED, numbers={"n_groups": 2})
    config = fewer.config
    inner, state = config["mamba_head_dim"] * config["mamba_num_heads"], config["ssm_state_size"]
    assert failure(predicted(fewer, tmp_path / "x").target) == (
        f"RuntimeError: start ({inner}) + length ({8 * state}) exceeds dimension size ({inner + 4 * state}).",
        "backbone.layers.0.mixer.conv1d.bias",
    )
    more = predicted(plan("nemotron_h", UNQUANTIZED, numbers={"n_groups": 16}), tmp_path / "y").target
    assert (more.verdict, more.error) == (Verdict.SILENT, None)
    assert predicted(fewer, tmp_path / "z", "0.32.0", "vllm").target.verdict is Verdict.LOADS


def test_the_tower_of_step_is_copied_first_and_refuses_names(tmp_path: Path) -> None:
    block = "vision_model.transformer.resblocks.0"

    def change(one: Tensor) -> Tensor:
        one = renamed(f"{block}.ln_1.weight", f"{block}.attn.scale")(one)
        return reshaped("model.layers.0.input_layernorm.weight", 64)(one)

    target = predicted(changed("step3p7", change), tmp_path / "x").target
    assert failure(target) == (
        f"ValueError: Weight {block}.attn.scale not found in params_dict",
        f"{block}.attn.scale",
    )


def test_a_tower_of_step_without_a_tensor_is_not_missed_by_the_count(tmp_path: Path) -> None:
    name = "vision_model.conv1.weight"
    known = plan("step3p7", UNQUANTIZED)
    groups = tuple(tuple(one for one in group if one.name != name) for group in known.groups)
    target = predicted(replace(known, groups=groups), tmp_path / "x").target
    assert (target.verdict, target.error) == (Verdict.SILENT, None)


def test_the_draft_of_omni_obeys_hf_quant_config_alone(tmp_path: Path) -> None:
    conflicting = predicted(plan("nemotron_h_omni", "conflict"), tmp_path / "x")
    assert conflicting.target.verdict is Verdict.UNKNOWN
    assert conflicting.draft.verdict is Verdict.LOADS
    packed = predicted(plan("nemotron_h_omni", "nothing-excluded"), tmp_path / "y").draft
    assert packed.error is not None
    assert packed.error_tensor == "language_model.mtp.layers.0.eh_proj.weight"
    alone = predicted(plan("nemotron_h_omni", "config-only"), tmp_path / "z").draft
    assert alone.verdict is Verdict.LOADS
    assert {one.format.plain for one in alone.built} == {True}


def test_ling_with_vision_counts_its_tower_and_routers_and_has_no_embedding_to_share(tmp_path: Path) -> None:
    shared = "AttributeError: 'BailingMoeV3VLForConditionalGeneration' object has no attribute 'get_embed_and_head'"
    whole = predicted(plan("bailing_v3_vl_even", UNQUANTIZED), tmp_path / "whole")
    assert (whole.target.verdict, whole.draft.error) == (Verdict.LOADS, shared)
    for name, text in (
        ("model.visual.blocks.0.norm1.bias", "RuntimeError: Missing required Bailing VL weights: …"),
        ("model.linear_proj.2.weight", "RuntimeError: Missing required Bailing VL weights: …"),
        ("model.layers.1.mlp.gate.expert_bias", "RuntimeError: Missing required Bailing VL router weights: …"),
    ):
        found = predicted(changed("bailing_v3_vl_even", renamed(name, "spare")), tmp_path / name)
        assert (found.target.error, found.draft.error) == (text, text)
    found = predicted(changed("bailing_v3_vl_even", renamed("model.norm.weight", "spare")), tmp_path / "norm")
    assert (found.target.verdict, found.draft.error) == (Verdict.SILENT, shared)
    name = "model.visual.blocks.0.attn.qkv.weight"
    found = predicted(changed("bailing_v3_vl_even", reshaped(name, 7, 9)), tmp_path / "qkv")
    assert failure(found.target) == ("RuntimeError: start (0) + length (64) exceeds dimension size (7).", name)
