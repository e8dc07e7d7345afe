"""`patch` from end to end: what it writes loads in the releases asked for, and the source stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import mtpfix
from mtpfix import MtpfixError, Patched, patch, scan
from mtpfix.errors import NothingToCheck, UsageError
from mtpfix.fix.operations import described
from mtpfix.model import Severity
from tests.checkpoints import build
from tests.patching import NEWEST, bytes_of, entries_of

Source = Callable[[str, str], Path]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("tiny")

    def made(family: str, variant: str) -> Path:
        folder = root / family / variant
        if not folder.exists():
            build(folder, family, variant)
        return folder

    return made


def loads(folder: Path, *engines: str) -> bool:
    """Return whether a scan finds no error and no warning, and every release loads target and draft."""
    report = scan(folder, engines=list(engines or (NEWEST,)))
    graver = [finding for finding in report.findings if finding.severity is not Severity.NOTE]
    verdicts = {model.verdict for row in report.engines for model in (row.prediction.target, row.prediction.draft)}
    return not graver and verdicts == {"loads"}


def written(folder: Path, out: Path, **options: object) -> Patched:
    before = bytes_of(folder)
    result = patch(folder, out, **{"engines": [NEWEST], **options})  # type: ignore[arg-type]
    assert bytes_of(folder) == before
    return result


@pytest.mark.parametrize("family", ["qwen3_5", "deepseek_v3", "exaone4_5", "nemotron_h"])
def test_an_unlisted_branch_is_listed_in_both_files(family: str, source: Source, tmp_path: Path) -> None:
    folder = source(family, "nothing-excluded")
    result = written(folder, tmp_path / "out")
    assert result.exit_code == 0
    assert loads(tmp_path / "out")
    added = {name: new - entries_of(folder)[name] for name, new in entries_of(tmp_path / "out").items()}
    assert len(added) == 2
    assert len({frozenset(one) for one in added.values()}) == 1
    assert all(added.values())
    shards = [path.name for path in folder.glob("*.safetensors")]
    assert all((tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes() for name in shards)


def test_a_second_patch_changes_nothing(source: Source, tmp_path: Path) -> None:
    written(source("qwen3_5", "nothing-excluded"), tmp_path / "out")
    again = patch(tmp_path / "out", tmp_path / "again", engines=[NEWEST])
    assert again.exit_code == 0
    assert not again.plan.steps
    assert again.written is None
    assert not (tmp_path / "again").exists()


def test_an_entry_that_covers_packed_layers_is_replaced_by_what_it_was_for(source: Source, tmp_path: Path) -> None:
    folder = source("deepseek_v3", "listed-packed")
    result = written(folder, tmp_path / "out")
    assert loads(tmp_path / "out")
    before, after = entries_of(folder)["config.json"], entries_of(tmp_path / "out")["config.json"]
    assert before - after == {"model.layers.2*"}
    assert after - before == {"model.layers.2.head"}
    assert {one.bytes_written for one in result.plan.alternatives} > {0} or result.plan.alternatives


def test_the_packed_glue_is_made_plain_and_nothing_else_is_written(source: Source, tmp_path: Path) -> None:
    folder = source("deepseek_v3", "packed-glue")
    result = written(folder, tmp_path / "out")
    assert loads(tmp_path / "out")
    (step,) = result.plan.steps
    assert [operation.action for operation in step.operations] == ["dequantize"]
    assert result.written is not None
    names = {one.name for one in result.written.changed}
    assert names == {"model-00002-of-00002.safetensors", "model.safetensors.index.json"}


def test_fp8_blocks_become_the_numbers_they_stand_for(source: Source, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    safetensors = pytest.importorskip("safetensors.torch")
    folder = source("deepseek_v3", "branch-fp8")
    written(folder, tmp_path / "out")
    assert loads(tmp_path / "out")
    name = "model.layers.2.self_attn.o_proj"
    old = _tensors(folder, safetensors)
    new = _tensors(tmp_path / "out", safetensors)
    scale = old[f"{name}.weight_scale_inv"].float().repeat_interleave(128, 0).repeat_interleave(128, 1)
    weight = old[f"{name}.weight"].float()
    wanted = (weight * scale[: weight.shape[0], : weight.shape[1]]).bfloat16()
    assert torch.equal(new[f"{name}.weight"], wanted)
    assert f"{name}.weight_scale_inv" not in new


def _tensors(folder: Path, safetensors: Any) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for path in folder.glob("*.safetensors"):
        found |= safetensors.load_file(path)
    return found


def test_the_branch_is_packed_on_wish_and_the_rest_listed(source: Source, tmp_path: Path) -> None:
    folder = source("qwen3_5_moe", "excluded-glob")
    result = written(folder, tmp_path / "out", mtp="nvfp4", input_scale=0.5)
    assert loads(tmp_path / "out")
    report = scan(tmp_path / "out", engines=[NEWEST])
    assert report.stored["mtp.layers.0.self_attn.o_proj"].format == "nvfp4"
    assert report.stored["mtp.fc"].format == "bf16"
    assert any("mtp.fc" in note for note in result.plan.notes)
    back = written(tmp_path / "out", tmp_path / "back", mtp="bf16")
    assert back.plan.steps
    assert loads(tmp_path / "back")
    assert scan(tmp_path / "back").stored["mtp.layers.0.self_attn.o_proj"].format == "bf16"


def test_without_a_scale_for_inputs_nothing_is_packed(source: Source, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no scale is known for the inputs of mtp") as caught:
        patch(source("qwen3_5_moe", "excluded-glob"), tmp_path / "out", engines=[NEWEST], mtp="nvfp4")
    assert "--input-scale" in caught.value.hint
    assert not (tmp_path / "out").exists()


def test_scales_of_inputs_come_from_the_same_projection_of_other_layers(source: Source, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    build(folder, "qwen3_5", "excluded-glob")
    name = "model.language_model.layers.0.mlp.down_proj.input_scale"
    for path in folder.glob("*.safetensors"):
        tensors = load_file(path)
        if name in tensors:
            del tensors[name]
            save_file(tensors, path, {"format": "pt"})
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"][name]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    result = written(folder, tmp_path / "out", engines=["vllm==0.18.1"])
    assert any("doubled" in step.title for step in result.plan.steps)
    found = _tensors(tmp_path / "out", __import__("safetensors.torch").torch)[name]
    assert torch.equal(found, torch.tensor(0.02))


def test_a_branch_that_is_not_there_is_not_switched_off_unasked(source: Source, tmp_path: Path) -> None:
    folder = source("qwen3_5", "missing")
    result = written(folder, tmp_path / "out")
    assert (result.exit_code, result.written) == (1, None)
    assert [one.safe for one in result.plan.withheld] == [False]
    assert not (tmp_path / "out").exists()
    off = written(folder, tmp_path / "out", unsafe=True)
    assert off.exit_code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["text_config"]["mtp_num_hidden_layers"] == 0


def test_releases_that_cannot_both_be_served_are_named_with_the_module(source: Source, tmp_path: Path) -> None:
    engines = ["sglang==0.5.23", "vllm==0.32.0"]
    plan = mtpfix.plan(source("qwen3_5_moe", "branch-nvfp4"), engines=engines, mtp="keep")
    assert not plan.complete
    for word in ("mtp.layers.0.", "stored as nvfp4", "sglang 0.5.23 builds it bf16", "vllm 0.32.0 nvfp4"):
        assert word in plan.disagreement
    alone = [(one.releases, one.complete) for one in plan.apart]
    assert alone == [(("sglang 0.5.23",), False), (("vllm 0.32.0",), True)]


def test_an_allow_list_serves_releases_of_which_one_heeds_no_exclude_list(source: Source, tmp_path: Path) -> None:
    engines = ["vllm==0.24.0", "vllm==0.32.0"]
    result = written(source("step3p5", "excluded-glob"), tmp_path / "out", engines=engines)
    (step,) = result.plan.steps
    assert step.title.startswith("declare MIXED_PRECISION")
    assert loads(tmp_path / "out", *engines)


def test_no_release_that_was_run_is_spoilt_for_another(source: Source) -> None:
    plan = mtpfix.plan(source("qwen3_5", "packed-head"), engines=["vllm==0.21.0"])
    assert plan.complete
    entries = {one.value for step in plan.steps for one in map(described, step.operations) if one.action == "add-entry"}
    assert entries  # which 0.21 itself does not need: it never asks for the head
    assert all("lm_head" in entry for entry in entries)


def test_nothing_is_planned_where_nothing_is_predicted(source: Source) -> None:
    with pytest.raises(NothingToCheck, match="no class for Step3p7"):
        mtpfix.plan(source("step3p7", "excluded-glob"), engines=["vllm==0.21.0"])


def test_what_cannot_be_read_is_not_repaired(tmp_path: Path) -> None:
    build(tmp_path / "model", "qwen3_5", "nothing-excluded")
    shard = tmp_path / "model" / "model-00001-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(MtpfixError, match="cannot be read: model-00001-of-00002"):
        patch(tmp_path / "model", tmp_path / "out", engines=[NEWEST])


def test_in_place_changes_configurations_and_keeps_a_backup(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build(folder, "qwen3_5", "nothing-excluded")
    old = (folder / "config.json").read_bytes()
    result = patch(folder, engines=[NEWEST], in_place=True)
    assert result.written is not None
    assert result.written.backup is not None
    assert (result.written.backup / "config.json").read_bytes() == old
    assert loads(folder)


def test_in_place_refuses_to_write_tensors(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build(folder, "deepseek_v3", "packed-glue")
    before = bytes_of(folder)
    with pytest.raises(UsageError, match="cannot be changed in place"):
        patch(folder, engines=[NEWEST], in_place=True)
    assert bytes_of(folder) == before


def test_files_that_disagree_are_made_to_agree(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build(folder, "qwen3_5", "excluded-glob")
    path = folder / "hf_quant_config.json"
    content = json.loads(path.read_text())
    content["quantization"]["exclude_modules"].remove("mtp*")
    path.write_text(json.dumps(content))
    result = written(folder, tmp_path / "out")
    assert [operation.action for step in result.plan.steps for operation in step.operations] == ["add-entry"]
    assert loads(tmp_path / "out")


def test_a_shard_the_index_forgot_is_indexed_again(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    build(folder, "qwen3_5", "excluded-glob", branch_file="mtp.safetensors")
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != "mtp.safetensors"}
    path.write_text(json.dumps(index))
    assert not loads(folder)
    result = written(folder, tmp_path / "out")
    assert result.exit_code == 0
    assert loads(tmp_path / "out")
