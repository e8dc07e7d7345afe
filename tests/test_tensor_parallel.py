"""`--tp N`: shapes that ranks cannot split are findings, and what is not known of an engine is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mtpfix.api import scan
from mtpfix.cli.app import app
from mtpfix.errors import UsageError
from mtpfix.model import Report, Verdict
from tests.checkpoints import build

NEWEST = "vllm==0.32.0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks") / "model"
    build(path, "mimo", "excluded-engine")
    return path


def errors(report: Report) -> list[str]:
    return [finding.error for finding in report.findings if finding.rule == "MTP604"]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_that_divide_every_size_find_nothing(folder: Path, ranks: int) -> None:
    report = scan(folder, engines=[NEWEST], tp=ranks)
    assert not errors(report)
    assert report.engines[0].prediction.target.verdict is Verdict.LOADS


def test_heads_that_ranks_do_not_divide_stop_both_models_before_anything_is_constructed(folder: Path) -> None:
    report = scan(folder, engines=[NEWEST], tp=8)
    said = "ValueError: Total number of attention heads (4) must be divisible by tensor parallel size (8)."
    assert errors(report) == [said, said]
    prediction = report.engines[0].prediction
    assert (prediction.target.error, prediction.draft.error) == (said, said)


def test_a_share_of_a_packed_row_must_be_whole_blocks(tmp_path: Path) -> None:
    build(tmp_path, "mimo", "excluded-engine", numbers={"intermediate_size": 160})
    report = scan(tmp_path, engines=[NEWEST], tp=4)
    (finding,) = [finding for finding in report.findings if finding.rule == "MTP604"]
    assert finding.error == "ValueError: Unsupported model when in features size is not multiple of 16"
    assert finding.module == "model.layers.{0,1}.mlp.down_proj"
    assert finding.built == "nvfp4"
    assert finding.role == "target"
    assert not errors(scan(tmp_path, engines=[NEWEST], tp=2))


def test_an_engine_of_which_it_is_not_known_is_said_to_be_judged_for_one_rank(folder: Path) -> None:
    report = scan(folder, engines=["sglang==0.5.23", NEWEST], tp=8)
    assert [note for note in report.notes if "SGLang" in note and "one rank" in note]
    assert not [note for note in report.notes if "vLLM" in note]
    assert not scan(folder, engines=["sglang==0.5.23"]).notes


def test_no_ranks_at_all_are_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="size of 0 makes no sense"):
        scan(folder, tp=0)
    assert CliRunner().invoke(app, ["scan", str(folder), "--tp", "0"]).exit_code == 2


def test_the_command_takes_the_number_of_ranks(folder: Path) -> None:
    done = CliRunner().invoke(app, ["scan", str(folder), "--engine", NEWEST, "--tp", "8", "--json", "--isolated"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)["findings"]
    assert {one["rule"] for one in found if one["severity"] == "error"} == {"MTP604"}
