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


def retyped(name: str, dtype: str) -> Change:
    return lambda one: replace(one, dtype=dtype) if one.name == name else one


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
    assert (conflicting.target.verdict, conflicting.draft.verdict) == (Verdict.LOADS, Verdict.LOADS)
    packed = predicted(plan("nemotron_h_omni", "nothing-excluded"), tmp_path / "y").draft
    assert packed.error is not None
    assert packed.error_tensor == "language_model.mtp.layers.0.eh_proj.weight"
    alone = predicted(plan("nemotron_h_omni", "config-only"), tmp_path / "z").draft
    assert alone.verdict is Verdict.LOADS
    assert {one.format.plain for one in alone.built} == {True}


def test_the_wrapper_of_omni_refuses_names_that_belong_to_none_of_its_parts(tmp_path: Path) -> None:
    block = "vision_model.radio_model.model.blocks.0"
    for old, new, said in (
        ("language_model.mtp.layers.0.eh_proj.weight", "mtp.w", "ValueError: Unexpected Nemotron-H Omni weight: mtp.w"),
        ("mlp1.1.weight", "mlp1.1.w", "KeyError: '1.w'"),
        (
            "vision_projector.vision_final_layernorm.bias",
            "vision_projector.vision_final_layernorm.w",
            "ValueError: Unexpected vision projector weight: vision_projector.vision_final_layernorm.w",
        ),
    ):
        found = predicted(changed("nemotron_h_omni", renamed(old, new)), tmp_path / new)
        assert failure(found.target) == (said, new)
    planned = changed("nemotron_h_omni", reshaped(f"{block}.attn.qkv.weight", 384, 384))
    assert failure(predicted(planned, tmp_path / "short").target) == (
        "RuntimeError: start (384) + length (384) exceeds dimension size (384).",
        f"{block}.attn.qkv.weight",
    )
    for name in (f"{block}.attn.qkv.weight", f"{block}.norm1.weight", "language_model.backbone.norm_f.weight"):
        found = predicted(changed("nemotron_h_omni", renamed(name, f"{name}s")), tmp_path / name)
        assert (found.target.verdict, found.target.error) == (Verdict.SILENT, None)


def test_the_assistant_of_gemma_drops_keys_and_values_and_needs_its_order_of_tokens(tmp_path: Path) -> None:
    order = "masked_embedding.token_ordering"
    found = predicted(changed("gemma4_assistant", renamed(order, "spare")), tmp_path / "order").draft
    assert [(one.kind, one.module) for one in found.events if one.kind == "weight-missing"] == [
        ("weight-missing", order)
    ]
    known = plan("gemma4_assistant", UNQUANTIZED)
    keys = Tensor("model.layers.0.self_attn.k_proj.weight", "BF16", (32, 64))
    found = predicted(replace(known, groups=((*known.groups[0], keys), *known.groups[1:])), tmp_path / "keys").draft
    assert found.verdict is Verdict.LOADS
    found = predicted(changed("gemma4_assistant", reshaped("model.embed_tokens.weight", 64, 64)), tmp_path / "x").draft
    assert failure(found) == (
        "AssertionError: Attempted to load weight (torch.Size([64, 64])) into parameter (torch.Size([256, 64]))",
        "model.embed_tokens.weight",
    )
    uneven = predicted(plan("gemma4_assistant", UNQUANTIZED, numbers={"num_centroids": 24}), tmp_path / "uneven").draft
    assert uneven.error == (
        "ValueError: Frozen-KV MTP centroid head requires vocab_size to be a multiple of num_centroids "
        "(vocab=256, num_centroids=24)."
    )
    packed = plan("gemma4_assistant", "branch-nvfp4")
    silent = [
        one.module for one in predicted(packed, tmp_path / "p").draft.events if one.kind == "scale-partly-written"
    ]
    assert silent == [f"model.layers.{index}.self_attn.q_proj" for index in range(2)]


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


def test_a_tensor_that_nobody_looks_for_does_no_harm(tmp_path: Path) -> None:
    for family, name in (
        ("deepseek_v3", "model.layers.2.mlp.gate.e_score_correction_bias"),
        ("bailing_v2", "model.layers.2.mlp.experts.3.down_proj.weight"),
    ):
        found = predicted(changed(family, renamed(name, f"model.{name}")), tmp_path / family)
        assert found.target.verdict is Verdict.LOADS
        assert [one.kind for one in found.target.events] == ["unknown-tensor"]
    assert found.draft.verdict is Verdict.SILENT


def test_qwen3_next_rewrites_names_before_it_refuses_them(tmp_path: Path) -> None:
    for old, said in (
        ("mtp.norm.weight", "model.model.norm.weight"),
        ("mtp.layers.0.self_attn.o_proj.weight", "model.model.layers.0.o_proj.weight"),
        ("mtp.layers.0.mlp.experts.3.gate_proj.weight", "model.model.layers.0.mlp.experts.w13_weight"),
    ):
        found = predicted(changed("qwen3_next", renamed(old, f"model.{old}")), tmp_path / old).draft
        assert failure(found) == (f"KeyError: '{said}'", f"model.{old}")


def test_qwen3_next_asks_of_a_scale_without_place_that_it_is_one_number_and_that_one(tmp_path: Path) -> None:
    def scale(name: str, *shape: int) -> Change:
        return lambda one: replace(one, name=name, shape=shape) if one.name == "mtp.norm.weight" else one

    name = "mtp.layers.0.mlp.gate.input_scale"
    one = predicted(changed("qwen3_next", scale(name)), tmp_path / "one").draft
    said = "AssertionError: Expected 1.0, got … in skipped model.layers.0.mlp.gate.input_scale"
    assert failure(one) == (said, name)
    name = "mtp.layers.0.mlp.gate.weight_scale"
    many = predicted(changed("qwen3_next", scale(name, 4, 8)), tmp_path / "many").draft
    assert failure(many) == ("RuntimeError: a Tensor with 32 elements cannot be converted to Scalar", name)


def test_projections_of_the_delta_network_say_what_shape_they_want(tmp_path: Path) -> None:
    name = "model.layers.0.linear_attn.in_proj_ba.weight"
    planned = changed("qwen3_next", reshaped(name, 8, 64))
    text = "Shape mismatch: param torch.Size([8, 128]) vs loaded torch.Size([8, 64])"
    assert failure(predicted(planned, tmp_path / "x").target) == (f"AssertionError: {text}", name)
    older = predicted(planned, tmp_path / "y", "0.5.9").target
    assert failure(older) == ("AssertionError", name)


def test_what_is_short_of_rows_is_cut_before_it_is_compared(tmp_path: Path) -> None:
    for family, name, shape, error in (
        (
            "deepseek_v3",
            "model.layers.2.self_attn.kv_b_proj.weight",
            (1, 256, 64),
            "RuntimeError: start (0) + length (256) exceeds dimension size (1).",
        ),
        (
            "deepseek_v3",
            "model.layers.2.self_attn.kv_b_proj.weight",
            (),
            "RuntimeError: narrow() cannot be applied to a 0-dim tensor.",
        ),
        (
            "glm4_moe_lite",
            "model.layers.2.self_attn.o_proj.weight",
            (1, 128, 128),
            "AssertionError: param_data.shape=torch.Size([128, 128]) loaded_weight.shape=torch.Size([1, 128, 128])",
        ),
        (
            "bailing_v2_5",
            "model.layers.2.mlp.shared_experts.down_proj.weight",
            (64, 128),
            "AssertionError: param_data.shape=torch.Size([128, 64]) loaded_weight.shape=torch.Size([64, 64])",
        ),
        (
            "glm4_moe_lite",
            "model.layers.2.mlp.shared_experts.gate_proj.weight",
            (),
            "IndexError: tuple index out of range",
        ),
    ):
        found = predicted(changed(family, reshaped(name, *shape)), tmp_path / f"{family}{shape}{name}").draft
        assert failure(found) == (error, name)


def test_a_name_without_its_layers_number_is_refused_by_who_reads_one(tmp_path: Path) -> None:
    known = plan("bailing_v3_even", UNQUANTIZED).config
    name = f"model.layers.{known['num_hidden_layers']}.mlp.shared_experts.gate_proj.weight"
    found = predicted(changed("bailing_v3_even", renamed(name, f"model.{name}")), tmp_path / "x")
    said = "ValueError: invalid literal for int() with base 10: 'layers'"
    assert (failure(found.target), failure(found.draft)) == ((said, f"model.{name}"),) * 2
    name = "model.language_model.layers.2.self_attn.kv_b_proj.weight"
    late = predicted(changed("glm5_next", renamed(name, name.removeprefix("model."))), tmp_path / "y")
    assert failure(late.target) == ("ValueError: invalid literal for int() with base 10: 'self_attn'", None)
    assert late.draft.verdict is Verdict.SILENT


def test_the_draft_gets_the_targets_packed_head_without_scales(tmp_path: Path) -> None:
    known = plan("deepseek_v3", "nothing-excluded")
    assert known.hf_quant_config is not None
    listed = known.hf_quant_config["quantization"]["exclude_modules"]
    assert "lm_head" in listed
    block = {"quantization": {**known.hf_quant_config["quantization"], "exclude_modules": listed}}
    listed.remove("lm_head")
    config = {**known.config, "quantization_config": {**known.config["quantization_config"], "ignore": listed}}
    found = predicted(replace(known, config=config, hf_quant_config=block), tmp_path / "x")
    assert [one.format.plain for one in found.target.built if one.prefix == "lm_head"] == [False]
    assert [one.tensor for one in found.draft.events if one.kind == "scale-missing"] == ["lm_head.weight_scale"]


def test_norms_that_the_configuration_asks_for_are_missed(tmp_path: Path) -> None:
    name = "model.layers.2.self_attn.k_norm.weight"
    draft = predicted(changed("glm4_moe", renamed(name, "spare")), tmp_path / "x").draft
    assert draft.verdict is Verdict.SILENT
    assert "model.layers.2.self_attn.k_norm" in [one.module for one in draft.events]


def test_the_bias_of_hunyuans_experts_is_refused_without_a_word(tmp_path: Path) -> None:
    name = "model.layers.2.mlp.expert_bias"
    assert failure(predicted(changed("hy_v3", reshaped(name, 8)), tmp_path / "x").draft) == ("AssertionError", name)


def test_what_dots_cannot_join_is_refused_at_the_last_part(tmp_path: Path) -> None:
    planned = changed("dots3_note", retyped("model.layers.2.self_attn.kv_a_proj_with_mqa.weight", "F8_E4M3"))
    draft = predicted(planned, tmp_path / "x").draft
    assert draft.error is not None
    assert draft.error.startswith("RuntimeError: Promotion for Float8 Types is not supported")
    assert draft.error_tensor == "model.layers.2.self_attn.q_a_proj.weight"


def test_a_part_is_missed_where_what_it_completes_is_there(tmp_path: Path) -> None:
    for family, name in (
        ("deepseek_v3", "model.layers.2.mlp.shared_experts.down_proj"),
        ("deepseek_v3", "model.layers.2.mlp.gate.e_score_correction_bias"),
        ("glm4_moe", "model.layers.2.mlp.gate.e_score_correction_bias"),
        ("bailing_v2", "model.layers.2.mlp.gate.expert_bias"),
        ("bailing_v2", "model.layers.2.attention.key_layernorm"),
        ("glm_moe_dsa", "model.layers.2.self_attn.indexer.wq_b"),
    ):
        known = plan(family, UNQUANTIZED)
        groups = zip(known.modules, known.groups, strict=True)
        planned = replace(known, groups=tuple(() if one.name == name else group for one, group in groups))
        draft = predicted(planned, tmp_path / f"{family}.{name}").draft
        assert draft.verdict is Verdict.SILENT
        assert [one.module for one in draft.events] == [name]


def test_a_layer_with_numbers_of_its_own_is_held_to_them(tmp_path: Path) -> None:
    gate = "model.layers.3.mixer.gate.weight"  # this layer has two experts, that before it four
    found = predicted(changed("nemotron_h_puzzle", reshaped(gate, 4, 128)), tmp_path / "x").target
    said = "param.shape=torch.Size([2, 128]) param.dtype=torch.bfloat16 loaded_weight.shape=torch.Size([4, 128])"
    assert failure(found) == (f"AssertionError: {said} loaded_weight.dtype=torch.bfloat16", gate)
    up = "mtp.layers.1.mixer.experts.0.up_proj.weight"
    narrow = predicted(changed("nemotron_h_puzzle", reshaped(up, 32, 64)), tmp_path / "y", "0.5.16")
    assert failure(narrow.draft) == ("RuntimeError: start (0) + length (64) exceeds dimension size (32).", up)
    assert narrow.target.verdict is Verdict.LOADS
    name = "model.layers.1.mixer.experts.{}.up_proj.weight"
    lost = changed("nemotron_h_puzzle", renamed(name.format(3), name.format(7)))
    assert predicted(lost, tmp_path / "z").target.verdict is Verdict.SILENT


def test_nemotron_needs_a_list_in_the_second_file(tmp_path: Path) -> None:
    mixed = plan("nemotron_h_puzzle", "mixed")
    found = predicted(mixed, tmp_path / "x", "0.5.19")
    assert failure(found.target) == failure(found.draft) == ("KeyError: 'exclude_modules'", None)
    assert predicted(mixed, tmp_path / "y", "0.5.20").target.verdict is Verdict.LOADS


def test_the_fused_queries_of_mimo_are_copied_whole(tmp_path: Path) -> None:
    name, fused = "model.layers.0.self_attn.qkv_proj.weight", {"attention_projection_layout": "fused_qkv"}
    short = reshaped(name, 200, 128)
    said = f"ValueError: qkv_proj weight {name}: unexpected shape (200, 128); expected fused (256, 128) or "
    assert failure(predicted(changed("mimo_v2_pro", short), tmp_path / "x").target) == (
        said + "sharded (256, 128)",
        name,
    )
    planned = changed("mimo_v2_pro", short, fused)
    said = "AssertionError: Attempted to load weight (torch.Size([200, 128])) into parameter (torch.Size([256, 128]))"
    assert failure(predicted(planned, tmp_path / "y").target) == (said, name)
    said = "ValueError: MiMoV2 fused qkv_proj checkpoint is TP=2-interleaved; got attention tp_size=1 while loading "
    assert failure(predicted(planned, tmp_path / "y", "0.5.16").target) == (f"{said}{name}.", name)
    narrow = changed("mimo_v2_pro", reshaped(name, 256, 64), fused)
    said = f"ValueError: qkv_proj weight {name}: unexpected shape (256, 64); expected sharded (256, 128)"
    assert failure(predicted(narrow, tmp_path / "z").target) == (said, name)
