"""Damaged layouts: what the engine then really does, as its loader was seen to do on the same folders."""

from __future__ import annotations

import json
from pathlib import Path

from mtpfix import scan
from mtpfix.model import EngineReport
from tests.checkpoints import build

INDEX = "model.safetensors.index.json"


def only(folder: Path, version: str) -> EngineReport:
    (row,) = scan(folder, engines=[f"vllm=={version}"]).engines
    return row


def test_a_shard_that_is_gone_raises_from_0_26_and_is_silent_before(tmp_path: Path) -> None:
    build(tmp_path, "qwen3_5", "excluded-glob", shards=2)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    new, old = only(tmp_path, "0.32.0").prediction, only(tmp_path, "0.25.1").prediction
    raised = "FileNotFoundError: Weight files referenced in index but missing: {…}"
    assert (new.target.verdict, new.target.error) == (new.draft.verdict, new.draft.error) == ("fails", raised)
    assert (old.target.verdict, old.draft.verdict) == ("silent", "silent")


def test_a_branch_in_a_file_the_index_does_not_name_is_never_loaded(tmp_path: Path) -> None:
    build(tmp_path, "qwen3_5", "excluded-glob", branch_file="mtp.safetensors")
    assert only(tmp_path, "0.32.0").prediction.draft.verdict == "loads"
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != "mtp.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps(index))
    prediction = only(tmp_path, "0.32.0").prediction
    assert (prediction.target.verdict, prediction.draft.verdict) == ("loads", "silent")


def test_an_index_that_cannot_be_read_is_incomplete_and_hides_no_file(tmp_path: Path) -> None:
    build(tmp_path, "qwen3_5", "excluded-glob", shards=2)
    (tmp_path / INDEX).write_text('{"weight_map": ')
    report = scan(tmp_path, engines=["vllm==0.32.0"])
    assert not report.complete
    assert report.exit_code() == 2
    assert report.engines[0].prediction.draft.verdict == "loads"
    assert "MTP509" in {finding.rule for finding in report.findings}


def test_a_method_that_is_not_predicted_is_neither_clean_nor_judged(tmp_path: Path) -> None:
    build(tmp_path, "qwen3_5", "config-only")
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["mtp"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = scan(tmp_path, engines=["vllm==0.32.0"])
    assert report.exit_code() == 3
    assert [finding.rule for finding in report.findings] == ["MTP603"]
