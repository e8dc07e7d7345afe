"""Whole scans of checkpoints with published shapes, names and lists: what a person is told, and the exact error."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtpfix import Report
from mtpfix import scan as scan_for
from mtpfix.model import Finding, ModelPrediction, Severity
from tests.checkpoints import build

Folder = Path


def draft_at(report: Report, version: str) -> ModelPrediction:
    return next(one.prediction.draft for one in report.engines if version in one.versions)


def target_at(report: Report, version: str) -> ModelPrediction:
    return next(one.prediction.target for one in report.engines if version in one.versions)


def grave(report: Report) -> list[Finding]:
    return [finding for finding in report.findings if finding.severity is not Severity.NOTE]


@pytest.fixture(scope="module")
def qwen3_5_397b(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = tmp_path_factory.mktemp("full") / "Qwen3.5-397B-A17B-NVFP4"
    build(folder, "qwen3_5_moe", "published", "full")
    return folder


@pytest.fixture(scope="module")
def nemotron_super(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    folder = tmp_path_factory.mktemp("full") / "Nemotron-3-Super"
    build(folder, "nemotron_h", "published", "full")
    return folder


def test_qwen3_5_397b_breaks_at_mtp_fc_up_to_0_19_1_and_loads_from_0_20_2(qwen3_5_397b: Folder) -> None:
    report = scan_for(qwen3_5_397b, engines=["vllm"])
    old, new = draft_at(report, "0.19.1"), draft_at(report, "0.20.2")
    assert (old.verdict, old.error, old.error_tensor) == ("fails", "AssertionError", "mtp.fc.weight")
    assert new.verdict == draft_at(report, "0.32.0").verdict == "loads"
    assert target_at(report, "0.19.1").verdict == target_at(report, "0.32.0").verdict == "loads"

    (finding,) = grave(report)
    assert (finding.rule, finding.module, finding.count) == ("MTP201", "mtp.fc", 1)
    assert [one.text for one in finding.engines] == ["vllm 0.17.0 - 0.19.1"]
    assert (finding.stored, finding.built, finding.error) == ("bf16", "nvfp4", "AssertionError")
    repair = finding.fixes[0]
    assert {(one.action, one.file, one.value) for one in repair.operations} == {
        ("add-entry", "config.json", "mtp.fc"),
        ("add-entry", "hf_quant_config.json", "mtp.fc"),
    }
    assert repair.safe
    assert repair.bytes_written < 1_000_000
    assert report.mtp.declared == 1
    assert report.mtp.tensors == 17 + 512 * 3


def test_a_release_that_was_named_is_judged_alone(qwen3_5_397b: Folder) -> None:
    report = scan_for(qwen3_5_397b, engines=["vllm==0.32.0"])
    assert [(one.versions, one.prediction.version) for one in report.engines] == [(("0.32.0",), "0.32.0")]
    assert not grave(report)


def test_nemotron_super_with_its_allow_list_is_clean(nemotron_super: Folder) -> None:
    report = scan_for(nemotron_super, engines=["vllm"])
    deciding = report.engines[-1].prediction.deciding
    assert deciding is not None
    assert len(deciding.layers) == 41_100
    assert not grave(report)
    assert draft_at(report, "0.32.0").verdict == target_at(report, "0.32.0").verdict == "loads"
    formats = {built.prefix: built.format.value for built in target_at(report, "0.32.0").built}
    assert formats["model.layers.0.mixer.in_proj"] == "fp8"
    assert formats["model.layers.1.mixer.experts"] == "nvfp4"


def official_deepseek_list(layers: int = 61, dense: int = 3) -> list[str]:
    """As nvidia/DeepSeek-R1-NVFP4 lists: attention by one glob a layer, norms and routers by name."""
    names = ["lm_head", "model.embed_tokens", "model.norm", f"model.layers.{layers}*"]
    for layer in range(layers):
        root = f"model.layers.{layer}"
        names += [f"{root}.self_attn*", f"{root}.input_layernorm", f"{root}.post_attention_layernorm"]
        names += [f"{root}.mlp.gate"] if layer >= dense else []
    return names


def test_deepseek_r1_with_the_official_list_is_clean_in_every_release(tmp_path: Path) -> None:
    folder = tmp_path / "DeepSeek-R1-NVFP4"
    build(folder, "deepseek_v3", "excluded-glob", "full", excludes=official_deepseek_list())
    report = scan_for(folder, engines=["vllm"])
    assert not report.findings
    assert report.checkpoint.tensor_count > 170_000
    verdicts = {(one.prediction.target.verdict, one.prediction.draft.verdict) for one in report.engines}
    assert verdicts == {("loads", "loads")}


def test_deepseek_list_without_q_a_proj_is_refused_by_the_fused_layer(tmp_path: Path) -> None:
    """The list that TensorRT-LLM's repository carries names kv_a_proj_with_mqa, but not the q_a_proj fused with it."""
    build(tmp_path / "r1", "deepseek_v3", "published")
    report = scan_for(tmp_path / "r1", engines=["vllm"])
    (finding,) = grave(report)
    assert (finding.rule, finding.role) == ("MTP204", "target")
    assert finding.error == (
        "ValueError: Detected some but not all shards of model.layers.0.self_attn.fused_qkv_a_proj are quantized. "
        "All shards of fused layers to have the same precision."
    )
    assert "model.layers.0.self_attn.q_a_proj" in finding.fixes[0].title
    assert draft_at(report, "0.32.0").verdict == "loads"


def test_step_3_7_declares_three_layers_and_ships_none(tmp_path: Path) -> None:
    folder = tmp_path / "Step-3.7-Flash-NVFP4"
    build(folder, "step3p7", "published", "full")
    report = scan_for(folder, engines=["vllm"])
    absent = next(finding for finding in report.findings if finding.rule == "MTP101")
    assert absent.module.startswith("model.layers.{45..47}")
    assert absent.fixes[0].bytes_written > 1_000_000_000
    short = next(finding for finding in report.findings if finding.rule == "MTP103")
    assert short.error == "ValueError: a model must have at least one layer"
    assert "45 entries, but 48 layers" in short.message
    assert draft_at(report, "0.32.0").error == "IndexError: list index out of range"


def test_qwen3_next_breaks_up_to_0_24_and_loads_from_0_25_1(tmp_path: Path) -> None:
    build(tmp_path / "next", "qwen3_next", "published")
    report = scan_for(tmp_path / "next", engines=["vllm"])
    old = draft_at(report, "0.24.0")
    assert (old.verdict, old.error, old.error_tensor) == ("fails", "AssertionError", "mtp.fc.weight")
    assert draft_at(report, "0.25.1").verdict == "loads"
    (finding,) = grave(report)
    assert [one.text for one in finding.engines] == ["vllm <=0.24.0"]


def test_packed_eh_proj_raises_key_error_whatever_is_listed(tmp_path: Path) -> None:
    build(tmp_path / "packed", "deepseek_v3", "packed-glue")
    report = scan_for(tmp_path / "packed", engines=["vllm"])
    (finding,) = grave(report)
    assert (finding.rule, finding.module) == ("MTP203", "model.layers.2.eh_proj")
    assert finding.error == "KeyError: 'model.layers.2.eh_proj.input_scale'"
    assert finding.fixes[0].title == "dequantize these tensors to BF16"
    assert [one.text for one in finding.engines] == ["vllm"]


def test_a_list_that_the_wrapper_rewrites_never_reaches_the_draft(tmp_path: Path) -> None:
    build(tmp_path / "wrapped", "step3p7", "excluded-glob")
    report = scan_for(tmp_path / "wrapped", engines=["vllm==0.28.0", "vllm==0.29.0"])
    (finding,) = [one for one in report.findings if one.rule == "MTP202"]
    assert [one.text for one in finding.engines] == ["vllm 0.29.0"]
    assert "Listed as model.layers.{3*,4*,5*} (3)" in finding.message
    assert finding.fixes[0].title.startswith("add *layers.3*, *layers.4*, *layers.5* to ignore of config.json")
    assert draft_at(report, "0.28.0").verdict == "loads"


def test_a_head_listed_by_its_name_on_disk_is_asked_for_by_another(tmp_path: Path) -> None:
    build(tmp_path / "head", "deepseek_v3", "excluded-exact")
    report = scan_for(tmp_path / "head", engines=["vllm"])
    (finding,) = grave(report)
    assert (finding.rule, finding.module) == ("MTP202", "model.layers.2.shared_head.head")
    assert [one.text for one in finding.engines] == ["vllm >=0.23.0"]
    assert finding.fixes[0].title.startswith("add model.layers.2.head to")
    assert finding.error.startswith("RuntimeError: The size of tensor a (64) must match the size of tensor b (128)")
