"""The shapes that a configuration gives tensors, held against published checkpoints and against damaged ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.checkpoint.names import split_name
from mtpfix.engines.predict import predict
from mtpfix.engines.shapes import evaluate, read_shapes
from mtpfix.engines.subject import Subject
from mtpfix.families import Numbers, match, read_numbers
from mtpfix.model import ModelPrediction, Verdict
from tests.checkpoints import Plan, Tensor, plan, write
from tests.families import FAMILIES
from tests.modules import Size

NUMBERS = Numbers(
    layers=2,
    mtp=1,
    declared=True,
    decoder={
        "hidden_size": 8,
        "heads": 3,
        "none": None,
        "flag": True,
        "zero": 0,
        "ratio": 2.5,
        "endless": float("inf"),
    },
    config={"vision": {"width": 5}},
)


@pytest.mark.parametrize(
    ("formula", "shape"),
    [
        ("hidden_size", (8,)),
        ("2 * hidden_size, heads", (16, 3)),
        ("2 * hidden_size + heads * heads, 1, 4", (25, 1, 4)),
        ("vision.width * hidden_size", (40,)),
        ("3 * hidden_size / 4 + 1, heads * heads / heads", (7, 3)),
        ("ratio * hidden_size", (20,)),
        ("ratio * heads", None),
        ("endless * heads", None),
        ("hidden_size / heads", None),  # a rest
        ("hidden_size / zero", None),
        ("hidden_size / absent", None),
        ("hidden_size, absent", None),
        ("none", None),
        ("flag", None),
        ("vision.height + 1", None),
        ("hidden_size + zero, 1", None),
        ("hidden_size, heads * zero", None),
    ],
)
def test_formulas(formula: str, shape: tuple[int, ...] | None) -> None:
    assert evaluate(formula, NUMBERS) == shape


def test_a_key_that_the_decoder_leaves_empty_is_not_looked_for_elsewhere() -> None:
    numbers = replace(NUMBERS, config={"none": 4, "absent": 4})
    assert (evaluate("none", numbers), evaluate("absent", numbers)) == (None, (4,))


STEP = {"layer_types": ["full_attention", "sliding_attention"], "head_dim": 128, "num_attention_groups": 8}
STEP |= {"hidden_size": 64, "attention_other_setting": {"head_dim": 96, "num_attention_groups": 4}}
BAILING = {"hidden_size": 64, "moe_intermediate_size": 48, "num_shared_experts": 2}
LATENT = {"hidden_size": 64, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "q_lora_rank": None}
PUZZLE = {"hidden_size": 64, "moe_latent_size": 16, "moe_intermediate_size": 32, "mamba_num_heads": 4}
INKLING = {"hidden_size": 64, "n_routed_experts": 4, "n_shared_experts": 2, "intermediate_size": 32, "vocab_size": 90}
LINEAR = {"hidden_size": 64, "linear_attn_config": {"head_dim": 16, "num_heads": 2}}
SHARED = "model.layers.3.mlp.shared_experts.up_proj"
COMPRESSED = {"head_dim": 64, "hidden_size": 96, "compress_ratios": [0, 4, 128, 8], "n_routed_experts": 6}
COMPRESSED |= {"num_hash_layers": 2, "topk_method": "noaux_tc", "vocab_size": 90, "num_experts_per_tok": 3}
COMPRESSED |= {"num_attention_heads": 8, "o_groups": 4, "o_lora_rank": 5}
INDEXED = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "indexer_n_heads": 3}
GATED = {"hidden_size": 64, "q_lora_rank": 24, "kv_lora_rank": 40}


@pytest.mark.parametrize(
    ("architecture", "config", "module", "suffix", "shape"),
    [
        ("Step3p5ForCausalLM", STEP, "model.layers.0.self_attn.k_proj", "weight", (1024, 64)),
        ("Step3p5ForCausalLM", STEP, "model.layers.1.self_attn.k_proj", "weight", (384, 64)),
        ("Step3p5ForCausalLM", STEP, "model.layers.1.self_attn.q_norm", "weight", (96,)),
        ("Step3p5ForCausalLM", STEP, "model.layers.2.self_attn.k_proj", "weight", None),  # the array is too short
        ("Step3p5ForCausalLM", STEP | {"layer_types": None}, "model.layers.1.self_attn.k_proj", "weight", (1024, 64)),
        ("BailingMoeV2_5ForCausalLM", BAILING, SHARED, "weight", (96, 64)),
        (
            "BailingMoeV2_5ForCausalLM",
            BAILING | {"moe_shared_expert_intermediate_size": 40},
            SHARED,
            "weight",
            (80, 64),
        ),
        ("BailingMoeV3ForCausalLM", BAILING | {"moe_shared_expert_intermediate_size": 40}, SHARED, "weight", None),
        ("DeepseekV3ForCausalLM", LATENT, "model.layers.1.self_attn.kv_a_proj_with_mqa", "weight", (576, 64)),
        ("DeepseekV3ForCausalLM", LATENT, "model.layers.1.self_attn.q_a_proj", "weight", None),
        ("NemotronHForCausalLM", PUZZLE, "backbone.layers.1.mixer.experts.{}.up_proj", "weight", (32, 16)),
        (
            "NemotronHForCausalLM",
            PUZZLE | {"moe_latent_size": None},
            "mtp.layers.1.mixer.experts.{}.up_proj",
            "weight",
            None,
        ),
        ("NemotronHPuzzleForCausalLM", PUZZLE | {"block_configs": []}, "backbone.layers.0.mixer.A_log", "", None),
        ("NemotronHForCausalLM", PUZZLE, "backbone.layers.0.mixer.A_log", "", (4,)),
        ("InklingForCausalLM", INKLING, "model.llm.layers.1.mlp.experts.w13_weight", "", None),
        ("InklingForCausalLM", INKLING | {"padded_vocab_size": 96}, "model.llm.unembed", "weight", (96, 64)),
        ("InklingForCausalLM", INKLING, "model.llm.layers.1.mlp.gate", "bias", None),
        ("KimiK3ForConditionalGeneration", LINEAR, "model.layers.1.self_attn.q_proj", "weight", None),
        (
            "KimiK3ForConditionalGeneration",
            LINEAR | {"q_lora_rank": 8},
            "model.layers.0.self_attn.q_proj",
            "weight",
            (32, 64),
        ),
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.0.attn.compressor.ape", "", None),
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.1.attn.compressor.ape", "", (4, 128)),
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.1.attn.compressor.wkv", "weight", (128, 96)),
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.2.attn.compressor.ape", "", (128, 64)),
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.2.attn.compressor.wgate", "weight", (64, 96)),
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.3.attn.compressor.wkv", "weight", None),  # no model has it
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.1.ffn.gate.tid2eid", "", (90, 3)),
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.1.ffn.gate", "bias", None),
        ("DeepseekV4ForCausalLM", COMPRESSED, "layers.2.ffn.gate", "bias", (6,)),
        ("DeepseekV4ForCausalLM", COMPRESSED | {"topk_method": "greedy"}, "layers.2.ffn.gate", "bias", None),
        ("DeepseekV4ForCausalLM", COMPRESSED, "mtp.0.ffn.gate", "bias", (6,)),
        ("DeepseekV4ForCausalLM", COMPRESSED, "mtp.0.attn.wo_a", "weight", (20, 128)),
        ("DeepseekV4ForCausalLM", COMPRESSED | {"o_groups": 3}, "mtp.0.attn.wo_a", "weight", None),
        ("Qwen4ExpForConditionalGeneration", INDEXED, "mtp.layers.0.self_attn.q_proj", "weight", (128, 64)),
        (
            "Qwen4ExpForConditionalGeneration",
            INDEXED | {"indexer_n_heads": None},
            "mtp.layers.0.self_attn.q_proj",
            "weight",
            None,
        ),
    ],
)
def test_shapes_follow_the_branches_that_engines_take(
    architecture: str, config: dict[str, Any], module: str, suffix: str, shape: tuple[int, ...] | None
) -> None:
    family = match(architecture)
    assert family is not None
    assert read_shapes(family, replace(NUMBERS, decoder=config, config=config), "vllm").of(module).get(suffix) == shape


def test_the_gate_of_a_norm_is_as_wide_as_the_norm() -> None:
    family = match("GigaChat35ForCausalLM")
    assert family is not None
    shapes = read_shapes(family, replace(NUMBERS, decoder=GATED, config=GATED), "sglang")
    for norm, width in {"enorm": 64, "self_attn.q_a_layernorm": 24, "self_attn.kv_a_layernorm": 40}.items():
        for names in ("projection", "lowrank"):
            assert shapes.of(f"model.layers.2.{norm}.gate_up_{names}") == {"weight": (16, width)}
            assert shapes.of(f"model.layers.2.{norm}.gate_down_{names}") == {"weight": (width, 16)}


def test_a_layer_of_a_branch_that_counts_its_own_is_no_layer_of_the_per_layer_arrays() -> None:
    family = match("Step3p5ForCausalLM")
    assert family is not None
    shapes = read_shapes(family, replace(NUMBERS, decoder=STEP), "vllm")
    assert "weight" in shapes.of("model.layers.0.self_attn.q_norm")
    assert "weight" not in shapes.of("mtp.layers.0.self_attn.q_norm")


def wrong_shapes(name: str, size: Size) -> list[str]:
    """Return the tensors of a family whose shape is not the one that its configuration gives; raises where none is."""
    planned = plan(name, "excluded-glob", size)
    family = match(planned.config["architectures"][0])
    assert family is not None
    shapes = read_shapes(family, read_numbers(family, planned.config), "vllm")
    wrong, right = [], 0
    for module in planned.modules:
        end, suffix = split_name(f"{module.name}.{module.weight}" if module.weight else module.name)
        shape = shapes.of(end).get(suffix, module.shape)
        right += suffix in shapes.of(end)
        if shape != module.shape:
            wrong.append(f"{end} {suffix}: {module.shape}, by the configuration {shape}")
    assert right or "shapes" not in family.table, "no tensor has a shape by the configuration"
    return wrong


KNOWN = [name for name, family in FAMILIES.items() if match(family.config("tiny")["architectures"][0])]


@pytest.mark.parametrize("name", KNOWN)
def test_tiny_checkpoints_have_the_shapes_of_their_configuration(name: str) -> None:
    assert wrong_shapes(name, "tiny") == []


@pytest.mark.slow
@pytest.mark.parametrize("name", KNOWN)
def test_published_checkpoints_have_the_shapes_of_their_configuration(name: str) -> None:
    assert wrong_shapes(name, "full") == []


def changed(planned: Plan, which: str, **values: Any) -> Plan:
    """Return a plan with one tensor changed, or without it where no values are given."""

    def instead(tensor: Tensor) -> tuple[Tensor, ...]:
        if tensor.name != which:
            return (tensor,)
        return (replace(tensor, **values),) if values else ()

    assert any(tensor.name == which for tensor in planned.tensors)
    groups = tuple(tuple(new for old in group for new in instead(old)) for group in planned.groups)
    return replace(planned, groups=groups)


def draft(folder: Path, family: str, name: str, release: str = "0.32.0", **values: Any) -> ModelPrediction:
    """Return what a release does with the draft of a tiny checkpoint of which one tensor is changed."""
    write(folder, changed(plan(family, "excluded-glob"), name, **values))
    return predict(Subject(open_checkpoint(folder)), "vllm", release).draft


ATTENTION = "mtp.layers.0.self_attn"


@pytest.mark.parametrize(
    ("name", "shape", "error"),
    [
        (f"{ATTENTION}.q_norm.weight", (128,), "AssertionError: Attempted to load weight (torch.Size([128])) into"),
        (f"{ATTENTION}.k_proj.weight", (128, 64), "AssertionError"),
        (f"{ATTENTION}.k_proj.weight", (64, 128), "RuntimeError: start (0) + length (128) exceeds dimension size (64)"),
        (f"{ATTENTION}.o_proj.weight", (256, 128), "RuntimeError: start (0) + length (256) exceeds dimension size"),
        (f"{ATTENTION}.o_proj.weight", (1, 128, 256), "RuntimeError: start (0) + length (256) exceeds dimension size"),
        ("mtp.norm.weight", (1, 128), "AssertionError: Attempted to load weight (torch.Size([1, 128])) into"),
    ],
)
def test_a_16_bit_tensor_of_another_shape_fails_as_in_the_engine(
    tmp_path: Path, name: str, shape: tuple[int, ...], error: str
) -> None:
    found = draft(tmp_path, "qwen3_5", name, shape=shape)
    assert found.verdict is Verdict.FAILS
    assert (found.error or "").startswith(error)
    assert found.error_tensor == name


@pytest.mark.parametrize(("name", "shape"), [("o_proj", (128, 512)), ("k_proj", (256, 128))])
def test_a_larger_tensor_is_cut_without_a_word(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    assert draft(tmp_path, "qwen3_5", f"{ATTENTION}.{name}.weight", shape=shape).verdict is Verdict.SILENT


def test_a_packed_tensor_in_a_16_bit_norm_is_misread(tmp_path: Path) -> None:
    assert draft(tmp_path, "qwen3_5", "mtp.norm.weight", dtype="F8_E4M3").verdict is Verdict.SILENT


def test_a_bias_that_the_configuration_has_is_missed(tmp_path: Path) -> None:
    found = draft(tmp_path, "glm4_moe", "model.layers.2.self_attn.v_proj.bias")
    assert found.verdict is Verdict.SILENT


def test_one_projection_of_a_block_that_is_there_is_missed(tmp_path: Path) -> None:
    found = draft(tmp_path, "deepseek_v3", "model.layers.2.mlp.shared_experts.down_proj.weight")
    assert found.verdict is Verdict.SILENT
    assert [event.module for event in found.events] == ["model.layers.2.mlp.shared_experts.down_proj"]


def target(folder: Path, family: str, name: str, new: str) -> ModelPrediction:
    """Return what the newest release does with the target of a tiny checkpoint of which one tensor is renamed."""
    write(folder, changed(plan(family, "excluded-glob"), name, name=new))
    return predict(Subject(open_checkpoint(folder)), "vllm", "0.32.0").target


@pytest.mark.parametrize(
    ("family", "name", "new", "said"),
    [
        ("glm4_moe", "model.layers.2.enorm.weight", "layers.2.enorm.weight", "'layers' in Glm4MoeForCausalLM"),
        ("bailing_v2_5", "model.norm.weight", "layers.2.norm.weight", "'layers' in BailingMoeV25ForCausalLM"),
        ("qwen3_5", "mtp.norm.weight", "model.mtp.norm.weight", "'model' in Qwen3_5ForConditionalGeneration"),
        (
            "qwen3_5",
            "model.language_model.norm.weight",
            "language_model.norm.weight",
            "'norm' in Qwen3_5ForCausalLM",
        ),
    ],
)
def test_a_name_that_no_class_has_ends_at_the_outermost_that_lacks_it(
    tmp_path: Path, family: str, name: str, new: str, said: str
) -> None:
    found = target(tmp_path, family, name, new)
    assert found.error == f"ValueError: There is no module or parameter named {said}"


def test_a_name_that_the_target_takes_for_the_branch_is_passed_over(tmp_path: Path) -> None:
    new = "model.model.layers.2.eh_proj.weight"
    assert target(tmp_path, "deepseek_v3", "model.layers.2.eh_proj.weight", new).verdict is Verdict.LOADS


@pytest.mark.parametrize("family", ["mimo_v2", "mimo_v2_pro"])
def test_mimo_v2_refuses_a_name_outside_its_model_and_drops_one_inside(tmp_path: Path, family: str) -> None:
    planned = plan(family, "excluded-glob")
    for folder, name in (("outside", "foo.weight"), ("inside", "model.layers.1.foo.weight")):
        more = Tensor(name, "BF16", (16, 16))
        write(tmp_path / folder, replace(planned, groups=(*planned.groups[:-1], (*planned.groups[-1], more))))
    outside, inside = (
        predict(Subject(open_checkpoint(tmp_path / folder)), "vllm", "0.32.0").target
        for folder in ("outside", "inside")
    )
    assert outside.error == f"ValueError: There is no module or parameter named 'foo' in {class_of(family)}"
    assert inside.error is None


def class_of(family: str) -> str:
    """Return the class of a family of the tests, which is its architecture's name."""
    return str(FAMILIES[family].config("tiny")["architectures"][0])


def test_a_norm_of_another_shape_fails_in_sglang(tmp_path: Path) -> None:
    write(tmp_path, changed(plan("deepseek_v3", "excluded-glob"), "model.layers.2.hnorm.weight", shape=(64,)))
    found = predict(Subject(open_checkpoint(tmp_path)), "sglang", "0.5.23").draft
    said = "Attempted to load weight (torch.Size([64])) into parameter (torch.Size([128]))"
    assert (found.error, found.error_tensor) == (f"AssertionError: {said}", "model.layers.2.hnorm.weight")
