"""GPTQ from end to end: what is said of it, the smallest repair, and that nothing else becomes excluded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtpfix import patch, plan, scan
from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines import load
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.families import load as load_family
from mtpfix.model import Confidence, Format, Report, Severity, Verdict
from tests import checkpoints, gptq

RELEASES = tuple(load_family("glm4_moe").table["gptq"]["vllm"])
ENGINES = [f"vllm=={release}" for release in RELEASES]


def built(folder: Path, family: str, variant: str, **changed: Any) -> Path:
    """Build a checkpoint, with other keys in its quantization block where they are given; None takes one out."""
    gptq.build(folder, family, variant, sparse=True)
    for name, inside in (("config.json", True), ("quantize_config.json", False)):
        document = json.loads((folder / name).read_text())
        block = document["quantization_config"] if inside else document
        block |= changed
        for key in [key for key, value in changed.items() if value is None]:
            del block[key]
        (folder / name).write_text(json.dumps(document, indent=2))
    return folder


def dynamic_of(folder: Path) -> list[list[str]]:
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    return [list(config["dynamic"]), list(json.loads((folder / "quantize_config.json").read_text())["dynamic"])]


def verdicts(report: Report) -> set[Verdict]:
    return {model.verdict for row in report.engines for model in (row.prediction.target, row.prediction.draft)}


def test_experts_of_the_branch_are_excluded_in_both_files(tmp_path: Path) -> None:
    folder = built(tmp_path / "model", "qwen3_next", "open")
    report = scan(folder, engines=ENGINES)
    errors = [one for one in report.findings if one.severity is Severity.ERROR]
    assert [(one.rule, one.built) for one in errors] == [("MTP201", "int4")]
    assert {one.prediction.confidence for one in report.engines} == {Confidence.VERIFIED}
    assert all("NVFP4" not in fix.title for one in errors for fix in one.fixes)
    before = dynamic_of(folder)
    patch(folder, tmp_path / "out", engines=ENGINES)
    assert dynamic_of(tmp_path / "out") == [[*names, r"-:mtp\..*"] for names in before]
    assert verdicts(scan(tmp_path / "out", engines=ENGINES)) == {Verdict.LOADS}
    assert not plan(tmp_path / "out", engines=ENGINES).steps


def test_the_second_file_is_left_alone_where_it_is_none_of_ours(tmp_path: Path) -> None:
    folder = built(tmp_path / "model", "glm4_moe", "open")
    (folder / "quantize_config.json").write_text("[1]")
    patch(folder, tmp_path / "out", engines=ENGINES)
    assert (tmp_path / "out" / "quantize_config.json").read_text() == "[1]"
    added = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]["dynamic"]
    assert list(added)[-1] == r"-:model\.layers\.2\..*"


def test_a_pattern_that_excludes_too_much_is_taken_back(tmp_path: Path) -> None:
    wide: dict[str, Any] = {"-:.*layers.*": {}}
    folder = built(tmp_path / "model", "qwen3_next", "open", dynamic=wide)
    assert Verdict.LOADS not in {row.prediction.target.verdict for row in scan(folder, engines=ENGINES).engines}
    found = patch(folder, tmp_path / "out", engines=ENGINES)
    assert found.plan.complete
    assert dynamic_of(tmp_path / "out") == [[r"-:mtp\..*"], [r"-:mtp\..*"]]


def test_6_is_not_60(tmp_path: Path) -> None:
    folder = built(tmp_path / "packed", "glm4_moe", "open", dynamic={"-:model.layers.20": {}, "-:model.layers.2$": {}})
    report = scan(folder, engines=ENGINES)
    assert {row.prediction.draft.verdict for row in report.engines} == {Verdict.FAILS}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"dynamic": {r"+:.*self_attn.*": {"bits": 8}}}, "dynamic gives modules other numbers"),
        ({"dynamic": {r".*self_attn.*": {"group_size": 64}}}, "dynamic gives modules other numbers"),
        ({"dynamic": {r"-:(a*)*(b*)*(c*)*$": {}}}, "is not run"),
        ({"group_size": 48}, "in groups of 48"),
        ({"modules_in_block_to_quantize": "all"}, "is not a list of names"),
        ({"group_size": 128}, "experts as wide as"),
    ],
)
def test_what_is_not_predicted_is_not_guessed(changed: dict[str, Any], reason: str, tmp_path: Path) -> None:
    folder = built(tmp_path / "model", "qwen3_next", "open", **changed)
    report = scan(folder, engines=["vllm==0.32.0"])
    (row,) = report.engines
    assert row.prediction.target.verdict is row.prediction.draft.verdict is Verdict.UNKNOWN
    assert reason in row.prediction.target.reason


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"bits": 3}, "ValueError: Unsupported quantization config: bits=3, sym=True"),
        ({"sym": False}, "ValueError: Unsupported quantization config: bits=4, sym=False"),
        ({"bits": None}, "ValueError: Cannot find any of ['bits'] in the model's quantization config."),
    ],
)
def test_a_block_that_the_engine_refuses(changed: dict[str, Any], error: str, tmp_path: Path) -> None:
    folder = built(tmp_path / "model", "qwen3_next", "open", **changed)
    (row,) = scan(folder, engines=["vllm==0.32.0"]).engines
    assert row.prediction.target.error == error


def test_of_other_families_and_engines_nothing_is_said(tmp_path: Path) -> None:
    folder = built(tmp_path / "model", "qwen3_next", "open")
    for row in scan(folder, engines=["sglang"]).engines:
        assert row.prediction.target.verdict is Verdict.UNKNOWN, row.versions
        assert "the quantization method gptq" in row.prediction.target.reason
    checkpoints.build(tmp_path / "other", "step3p5", "excluded-glob", sparse=True)
    config = json.loads((tmp_path / "other" / "config.json").read_text())
    config["quantization_config"] = json.loads((folder / "quantize_config.json").read_text())
    (tmp_path / "other" / "config.json").write_text(json.dumps(config))
    (tmp_path / "other" / "hf_quant_config.json").unlink()
    (row,) = scan(tmp_path / "other", engines=["vllm==0.32.0"]).engines
    assert "in GPTQ is not predicted" in row.prediction.target.reason


def test_releases_that_were_not_run_with_it_are_derived(tmp_path: Path) -> None:
    folder = built(tmp_path / "model", "glm4_moe", "excluded")
    subject = Subject(open_checkpoint(folder))
    engine = load("vllm")
    for release in engine.releases:
        found = predict(subject, engine, release)
        assert (found.confidence is Confidence.VERIFIED) == (release in RELEASES), release
        target = {one.format for one in found.target.built if one.layer == "experts"}
        assert target <= {Format.INT4}


def test_columns_in_order_are_dropped_where_a_loader_has_no_place_for_them(tmp_path: Path) -> None:
    folder = built(tmp_path / "model", "glm4_moe", "packed")
    left = plan(folder, engines=["vllm==0.32.0"])
    assert not left.complete
    found = plan(folder, engines=["vllm==0.32.0"], unsafe=True)
    assert found.complete
    assert [one.action for one in found.operations] == ["drop"] * len(found.operations)
    assert all(name.endswith(".g_idx") for one in found.operations for name in getattr(one, "names", ()))
