"""Families whose drafts lists reach in a way of their own, and one known from the engine's sources alone."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtpfix import scan
from mtpfix.engines import load
from mtpfix.model import Confidence, Format, ModelPrediction, Verdict
from tests import checkpoints
from tests.checkpoints import Tensor, build, flat, plan, write_shard
from tests.families import FAMILIES

HIDDEN, WIDTH, WORDS = 64, 32, 128


def plain(shapes: Mapping[str, tuple[int, ...]]) -> list[Tensor]:
    return [Tensor(name, "BF16", shape) for name, shape in shapes.items()]


def packed(name: str, rows: int, columns: int) -> list[Tensor]:
    return [
        Tensor(f"{name}.weight", "U8", (rows, columns // 2)),
        Tensor(f"{name}.weight_scale", "F8_E4M3", (rows, columns // 16)),
        Tensor(f"{name}.weight_scale_2", "F32", (), 0.01),
        Tensor(f"{name}.input_scale", "F32", (), 0.01),
    ]


def write(folder: Path, config: dict[str, Any], tensors: list[Tensor], excludes: list[str] | None) -> Path:
    folder.mkdir()
    if excludes is not None:
        config = {**config, "quantization_config": flat("NVFP4", excludes)}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_shard(folder / "model.safetensors", tensors)
    return folder


def draft_of(folder: Path, release: str) -> ModelPrediction:
    """Return what one release does with a draft whose main model is another checkpoint."""
    (row,) = scan(folder, engines=[f"vllm=={release}"]).engines
    assert row.prediction.confidence is Confidence.VERIFIED
    assert row.prediction.target.verdict is Verdict.ABSENT
    assert row.prediction.target.reason == "the main model is a checkpoint of its own"
    return row.prediction.draft


def built(model: ModelPrediction) -> dict[str, Format]:
    return {module.prefix: module.format for module in model.built}


# ------------------------------------------------------------------------------------------- Gemma 4's assistant

GEMMA = {
    "architectures": ["Gemma4AssistantForCausalLM"],
    "backbone_hidden_size": 2 * HIDDEN,
    "model_type": "gemma4_assistant",
    "text_config": {"hidden_size": HIDDEN, "intermediate_size": WIDTH, "num_hidden_layers": 1, "vocab_size": WORDS},
}
GEMMA_TENSORS = {
    "model.embed_tokens.weight": (WORDS, HIDDEN),
    "model.norm.weight": (HIDDEN,),
    "pre_projection.weight": (HIDDEN, 4 * HIDDEN),
    "post_projection.weight": (2 * HIDDEN, HIDDEN),
    "model.layers.0.self_attn.q_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.0.self_attn.o_proj.weight": (HIDDEN, HIDDEN),
    "model.layers.0.self_attn.q_norm.weight": (HIDDEN,),
    "model.layers.0.mlp.gate_proj.weight": (WIDTH, HIDDEN),
    "model.layers.0.mlp.up_proj.weight": (WIDTH, HIDDEN),
    "model.layers.0.mlp.down_proj.weight": (HIDDEN, WIDTH),
    "model.layers.0.layer_scalar": (1,),
    **{
        f"model.layers.0.{place}_layernorm.weight": (HIDDEN,)
        for place in ("input", "post_attention", "pre_feedforward", "post_feedforward")
    },
}


@pytest.mark.parametrize(
    ("excludes", "release", "verdict"),
    [
        (None, "0.32.0", Verdict.LOADS),
        (["model.layers.0*", "pre_projection", "post_projection"], "0.24.0", Verdict.LOADS),  # nobody asks the list
        (["model.layers.0*", "pre_projection", "post_projection", "lm_head"], "0.32.0", Verdict.FAILS),
        (["draft_model*", "lm_head"], "0.32.0", Verdict.LOADS),
        (["*"], "0.32.0", Verdict.LOADS),
    ],
)
def test_lists_reach_an_assistant_under_the_name_of_the_draft(
    tmp_path: Path, excludes: list[str] | None, release: str, verdict: Verdict
) -> None:
    folder = write(tmp_path / "assistant", GEMMA, plain(GEMMA_TENSORS), excludes)
    found = draft_of(folder, release)
    assert found.verdict is verdict
    quantized = {prefix for prefix, form in built(found).items() if form is Format.NVFP4}
    assert quantized == (
        {f"draft_model.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.o_proj")}
        | {f"draft_model.layers.0.mlp.{name}" for name in ("gate_up_proj", "down_proj")}
        if verdict is Verdict.FAILS
        else set()
    )


@pytest.mark.parametrize(("release", "verdict"), [("0.29.0", Verdict.SILENT), ("0.30.0", Verdict.FAILS)])
def test_a_head_that_is_tied_to_the_embedding_has_to_be_listed(tmp_path: Path, release: str, verdict: Verdict) -> None:
    found = draft_of(write(tmp_path / "assistant", GEMMA, plain(GEMMA_TENSORS), ["draft_model*"]), release)
    assert found.verdict is verdict
    assert {prefix for prefix, form in built(found).items() if form is Format.NVFP4} == {"lm_head"}


# ------------------------------------------------------------------------------------------ Qwen3.8-Flash-Next


@pytest.mark.parametrize(
    ("release", "excludes", "error"),
    [
        ("0.29.0", ["model.language_model.layers.0.ple.ple_embedding.ngram_embedding.shard_0"], None),
        ("0.32.0", ["model.language_model.layers.0.ple.ple_embedding.ngram_embedding.shard_0"], "ModelOptNvFp4Config"),
        ("0.32.0", ["model.language_model.layers.0.ple.ple_embedding.ngram_embedding"], None),
    ],
)
def test_a_table_of_embeddings_has_to_be_listed_by_its_own_name(
    tmp_path: Path, release: str, excludes: list[str], error: str | None
) -> None:
    others = ["*layers.1*", "*linear_attn*", "*proj*", "*mlp*", "visual*", "mtp*"]
    build(tmp_path / "c", "qwen4_exp", "excluded-glob", excludes=[*others, *excludes])
    (row,) = scan(tmp_path / "c", engines=[f"vllm=={release}"]).engines
    refused = (row.prediction.target.error or "").startswith("NotImplementedError")
    assert refused is (error is not None)
    assert (error or "") in (row.prediction.target.error or "")


@pytest.mark.parametrize(("entry", "form"), [("mtp.layers.0*", Format.BF16), ("mtp.layers.2*", Format.NVFP4)])
def test_the_draft_raises_the_numbers_of_layers_in_its_lists(tmp_path: Path, entry: str, form: Format) -> None:
    build(tmp_path / "c", "qwen4_exp", "excluded-glob", excludes=[entry])
    (row,) = scan(tmp_path / "c", engines=["vllm==0.32.0"]).engines
    assert built(row.prediction.draft)["mtp.layers.2.self_attn.o_proj"] is form


# ------------------------------------------------------------------------------------------------------ Inkling


def judged(folder: Path, family: str, variant: str, release: str, excludes: list[str] | None = None) -> ModelPrediction:
    """Return what one release does with the draft of a family that was run."""
    build(folder, family, variant, excludes=excludes)
    (row,) = scan(folder, engines=[f"vllm=={release}"]).engines
    return row.prediction.draft


def test_nothing_quantizes_the_branch_of_inkling(tmp_path: Path) -> None:
    found = judged(tmp_path / "c", "inkling", "nothing-excluded", "0.32.0")
    assert found.verdict is Verdict.LOADS, found.error
    assert set(built(found).values()) == {Format.BF16}


def test_a_packed_branch_of_inkling_is_refused_by_name(tmp_path: Path) -> None:
    found = judged(tmp_path / "c", "inkling", "all-nvfp4", "0.32.0")
    assert found.error == "ValueError: Unexpected Inkling MTP weight: model.mtp.layers.0.input_proj.input_scale"


def test_an_incomplete_branch_of_inkling_is_refused(tmp_path: Path) -> None:
    found = judged(tmp_path / "c", "inkling", "missing", "0.32.0")
    assert found.verdict is Verdict.FAILS
    assert (found.error or "").startswith("ValueError: Inkling MTP checkpoint is missing required parameters")


def test_packed_experts_of_inkling_are_read_under_the_names_that_they_have(tmp_path: Path) -> None:
    build(tmp_path / "c", "inkling", "excluded-glob", shards=1)
    (row,) = scan(tmp_path / "c", engines=["vllm==0.32.0"]).engines
    assert row.prediction.target.verdict is Verdict.LOADS
    assert built(row.prediction.target)["model.layers.1.mlp.experts"] is Format.NVFP4


def test_packed_experts_of_inkling_that_are_listed_do_not_fit(tmp_path: Path) -> None:
    build(tmp_path / "c", "inkling", "listed-experts", shards=1)
    (row,) = scan(tmp_path / "c", engines=["vllm==0.32.0"]).engines
    assert row.prediction.target.error == (
        "RuntimeError: The size of tensor a (128) must match the size of tensor b (64) at non-singleton dimension 1"
    )
    assert row.prediction.target.error_tensor == "model.llm.layers.1.mlp.experts.w13_weight"


@pytest.mark.parametrize(
    ("name", "new", "error"),
    [
        (
            "w13_weight.scale2",
            Tensor("w13_weight.scale2", "F32", (1, 4), 0.01),
            "IndexError: index 1 is out of bounds for dimension 0 with size 1",
        ),
        (
            "w2_weight.scale",
            Tensor("w2_weight.scale_old", "F8_E4M3", (4, 128, 4)),
            "AttributeError: 'RoutedExperts' object has no attribute 'w2_weight.scale_old'",
        ),
    ],
)
def test_a_damaged_stack_of_inkling_raises_what_its_own_loader_raises(
    tmp_path: Path, name: str, new: Tensor, error: str
) -> None:
    planned, root = plan("inkling", "excluded-glob"), "model.llm.layers.1.mlp.experts."
    groups = tuple(
        tuple(replace(new, name=root + new.name) if one.name == root + name else one for one in group)
        for group in planned.groups
    )
    checkpoints.write(tmp_path / "c", replace(planned, groups=groups))
    (row,) = scan(tmp_path / "c", engines=["vllm==0.32.0"]).engines
    assert row.prediction.target.error == error


def test_what_becomes_of_packed_experts_of_inkling_in_other_names_is_not_guessed(tmp_path: Path) -> None:
    build(tmp_path / "c", "inkling", "excluded-glob", shards=1)
    extra = [Tensor("model.llm.layers.1.mlp.experts.w13_weight_scale", "F8_E4M3", (4, 128, 8))]
    write_shard(tmp_path / "c" / "more.safetensors", extra)
    report = scan(tmp_path / "c", engines=["vllm==0.32.0"])
    (row,) = report.engines
    assert row.prediction.target.verdict is Verdict.UNKNOWN
    assert row.prediction.draft.verdict is Verdict.LOADS
    (found,) = (one for one in report.findings if one.rule == "MTP603")
    assert found.message == (
        "The main model is not predicted for vllm 0.32.0: what Inkling's loader does with scales of stacked "
        "experts that are named with underscores, or of shared ones is not described here: "
        "model.llm.layers.1.mlp.experts.w13_weight_scale. An installed engine can be "
        "asked: mtpfix verify FOLDER --engine-python PATH."
    )


# ------------------------------------------------------------------------------------------------------ Kimi-K3


@pytest.mark.parametrize("release", ["0.28.0", "0.32.0"])
@pytest.mark.parametrize(
    ("excludes", "verdict"),
    [
        (["language_model.model.layers.2*"], Verdict.FAILS),
        (["model.layers.2*"], Verdict.LOADS),
        (["*layers.2*"], Verdict.LOADS),
    ],
)
def test_lists_reach_the_branch_of_kimi_without_the_name_of_the_wrapper(
    tmp_path: Path, excludes: list[str], verdict: Verdict, release: str
) -> None:
    found = judged(tmp_path / "c", "kimi_k3", "excluded-glob", release, excludes)
    assert found.verdict is verdict, found.error
    fused = "fused_qkv_a_g_proj" if release == "0.32.0" else "fused_qkv_a_proj"
    forms = built(found)
    assert forms["model.layers.2.eh_proj"] is Format.BF16  # never asked
    assert forms[f"model.layers.2.self_attn.{fused}"] is (Format.NVFP4 if verdict is Verdict.FAILS else Format.BF16)
    assert forms["model.layers.2.head"] is forms[f"model.layers.2.self_attn.{fused}"]


# --------------------------------------------------------------------------------------------------- MiniMax-M3


def test_packed_sparse_attention_of_minimax_has_scales_without_a_place(tmp_path: Path) -> None:
    build(tmp_path / "c", "minimax_m3", "all-nvfp4")
    report = scan(tmp_path / "c", engines=["vllm==0.32.0"])
    (row,) = report.engines
    draft = row.prediction.draft
    assert row.prediction.target.verdict is Verdict.LOADS
    assert draft.error == "AssertionError"
    layer = "language_model.model.mtp.layers.0.transformer_layer"
    assert draft.error_tensor == f"{layer}.self_attn.index_k_proj.input_scale"
    assert any(finding.role == "draft" and finding.error == "AssertionError" for finding in report.findings)


def test_sixteen_bit_sparse_attention_of_minimax_loads_where_it_is_listed_as_it_is_asked_for(tmp_path: Path) -> None:
    build(tmp_path / "c", "minimax_m3", "excluded-engine")
    (row,) = scan(tmp_path / "c", engines=["vllm==0.32.0"]).engines
    assert row.prediction.draft.verdict is Verdict.LOADS


# ---------------------------------------------------------------------------------------------------------- Ling


@pytest.mark.parametrize(("ranks", "error"), [(2, None), (3, "attention heads")])
def test_ranks_that_divide_heads_divide_ling(tmp_path: Path, ranks: int, error: str | None) -> None:
    build(tmp_path / "c", "bailing_v2_5", "mixed")
    report = scan(tmp_path / "c", engines=["vllm==0.32.0"], tp=ranks)
    (row,) = report.engines
    said = row.prediction.target.error
    assert said is None if error is None else error in (said or "")


def test_ranks_split_the_delta_attention_of_ling(tmp_path: Path) -> None:
    build(tmp_path / "c", "bailing_v3", "mixed")
    (row,) = scan(tmp_path / "c", engines=["vllm==0.32.0"], tp=2).engines
    assert row.prediction.target.verdict is Verdict.LOADS
    assert row.prediction.draft.verdict is Verdict.LOADS


def test_ranks_beyond_the_groups_of_norms_are_refused_by_ling(tmp_path: Path) -> None:
    build(tmp_path / "c", "bailing_v2_5", "mixed", numbers={"group_norm_size": 1})
    (row,) = scan(tmp_path / "c", engines=["vllm==0.32.0"], tp=2).engines
    assert row.prediction.target.error == "AssertionError: tp_size must be <= group_norm_size for local rms norm"


# ------------------------------------------------------------------------------------------------------- GLM-OCR


def test_a_merger_of_glm_ocr_whose_width_is_not_told_is_not_predicted_where_it_is_read_in_part(tmp_path: Path) -> None:
    build(tmp_path / "c", "glm_ocr", "excluded-exact")
    told = scan(tmp_path / "c", engines=["sglang==0.5.19", "sglang==0.5.23"])
    assert Verdict.UNKNOWN not in {row.prediction.target.verdict for row in told.engines}
    path = tmp_path / "c" / "config.json"
    config = json.loads(path.read_text())
    del config["vision_config"]["projection_intermediate_size"]
    path.write_text(json.dumps(config))
    for release, known in (("0.5.19", True), ("0.5.23", False)):
        (row,) = scan(tmp_path / "c", engines=[f"sglang=={release}"]).engines
        assert (row.prediction.target.verdict is not Verdict.UNKNOWN) is known
    assert "projection_intermediate_size" in (row.prediction.target.reason or "")


NUMBER_OF_THOUSANDS_OF_DIGITS = "9" * 5000  # int() refuses it
LAYERED = ("nemotron_h_puzzle", "step3p5", "step5")
"""Families with numbers of single layers in their configuration."""


@pytest.mark.parametrize(
    "family",
    [pytest.param(name, marks=() if name in LAYERED else pytest.mark.slow) for name in FAMILIES],
)
def test_a_number_that_python_refuses_to_read_is_no_layers(family: str, tmp_path: Path) -> None:
    known = plan(family, "published")
    number = re.compile(r"(layers|blocks|experts)\.\d+")
    firsts = [group[0] for group in known.groups if group]
    made = [replace(one, name=number.sub(rf"\1.{NUMBER_OF_THOUSANDS_OF_DIGITS}", one.name, 1)) for one in firsts]
    made.append(replace(firsts[0], name=f"model.layers.{NUMBER_OF_THOUSANDS_OF_DIGITS}.weight"))
    hostile = {tensor.name: tensor for tensor in made if NUMBER_OF_THOUSANDS_OF_DIGITS in tensor.name}
    config = {**known.config, "moe_layers_enum": NUMBER_OF_THOUSANDS_OF_DIGITS}
    groups = ((*known.groups[0], *hostile.values()), *known.groups[1:])
    checkpoints.write(tmp_path, replace(known, config=config, groups=groups))
    report = scan(tmp_path, engines=[f"{name}=={load(name).releases[-1]}" for name in ("vllm", "sglang")])
    assert report.checkpoint.tensor_count == sum(map(len, known.groups)) + len(hostile)
