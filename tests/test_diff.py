from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.checkpoints import build
from tests.test_cli import NEW, run


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    build(root / "plain", "qwen3_5", "excluded-glob")
    build(root / "unlisted", "qwen3_5", "nothing-excluded")
    build(root / "packed", "qwen3_5", "branch-nvfp4")
    return root


def test_the_same_checkpoint_twice_differs_in_nothing(models: Path) -> None:
    done = run("diff", models / "plain", models / "plain", "-e", NEW)
    assert done.code == 0
    assert "No differences" in done.out


def test_a_list_that_lost_an_entry_changes_verdict_and_findings(models: Path) -> None:
    done = run("diff", models / "plain", models / "unlisted", "-e", NEW)
    assert done.code == 1
    assert "config.json: quantization_config.ignore" in done.out
    assert "  - mtp" in done.out
    assert "vllm 0.32.0: main model loads, MTP draft loads -> main model loads, MTP draft fails" in done.out
    assert "  + MTP201" in done.out


def test_formats_that_changed_are_told_as_patterns(models: Path) -> None:
    found = json.loads(run("diff", models / "plain", models / "packed", "-e", NEW, "--json").out)
    changes = {one["name"]: (one["before"], one["after"]) for one in found["formats"]}
    assert changes["mtp.layers.0.mlp.gate_proj"] == ("bf16", "nvfp4")
    text = run("diff", models / "plain", models / "packed", "-e", NEW).out
    assert "mtp.layers.0.mlp.{down,gate,up}_proj: bf16 -> nvfp4" in text


def test_reports_are_compared_like_the_checkpoints_they_are_of(models: Path, tmp_path: Path) -> None:
    for name in ("plain", "unlisted"):
        run("scan", models / name, "-e", NEW, "--json", "-o", tmp_path / f"{name}.json")
    files = json.loads(run("diff", tmp_path / "plain.json", tmp_path / "unlisted.json", "--json").out)
    folders = json.loads(run("diff", models / "plain", models / "unlisted", "-e", NEW, "--json").out)
    assert files == folders
    assert run("diff", tmp_path / "plain.json", models / "plain", "-e", NEW).out.startswith("---")


@pytest.mark.parametrize("text", ["", "nonsense", "[]", "3", '{"schema": 2}', '{"schema": 1}', "[{}, {}]"])
def test_what_is_no_report_is_refused(models: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    done = run("diff", path, models / "plain")
    assert done.code == 2
    assert "mtpfix:" in done.err
    assert "Traceback" not in done.err


def test_a_folder_that_is_gone_is_said(models: Path, tmp_path: Path) -> None:
    assert run("diff", models / "plain", tmp_path / "gone").code == 2
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run("diff", empty, models / "plain").code == 3


def test_a_renamed_copy_is_no_difference(models: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(models / "plain", copy)
    found = json.loads(run("diff", models / "plain", copy, "-e", NEW, "--json").out)
    assert found["same"] is True
