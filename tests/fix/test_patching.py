"""`patch` over the writer: sources of every kind stay as they are, and memory does not grow with a shard."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mtpfix import MtpfixError, patch, plan, scan
from mtpfix.checkpoint import open_checkpoint
from mtpfix.fix.holding import Holding
from mtpfix.fix.operations import AddScale, CopyModule, Graft, Grafted, from_json, to_json
from mtpfix.fix.patching import prepare
from mtpfix.fix.repairs.repair import Wishes
from mtpfix.fix.sample import check_samples
from mtpfix.fix.snapshot import MANIFEST_FILE
from mtpfix.fix.writer import IN_PLACE
from mtpfix.model import Verdict
from mtpfix.report.plans import diff_text
from tests import checkpoints, families
from tests.fix.test_writer import contents, hub_cache, state
from tests.modules import Config, Size
from tests.patching import NEWEST


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("patching") / "source"
    checkpoints.build(folder, "deepseek_v3", "packed-glue")
    return folder


@pytest.mark.parametrize("link", ["auto", "hardlink", "symlink", "copy"])
@pytest.mark.parametrize("cached", [False, True], ids=["folder", "hub-cache"])
def test_the_same_comes_out_of_every_source_and_the_source_stays(
    tmp_path: Path, source: Path, link: str, cached: bool
) -> None:
    folder, kept = (hub_cache(tmp_path / "hub", source), tmp_path / "hub") if cached else (source, source)
    before = state(kept)
    written = patch(folder, tmp_path / "out", engines=[NEWEST], link=link).written
    assert state(kept) == before
    assert written is not None
    assert {one.name for one in written.changed} == {
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    }
    patch(source, tmp_path / "straight", engines=[NEWEST])
    unlike = {MANIFEST_FILE} if cached else set()  # it names the repository, which a folder is not
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "straight")
    assert {name for name in {*found, *expected} if found.get(name) != expected.get(name)} == unlike
    if cached:
        assert json.loads(found[MANIFEST_FILE])["base"]["name"] == "org/name"


# -------------------------------------------------------------------------------------- what the check looks at


def spoilt(path: Path, begin: int, count: int) -> None:
    with path.open("r+b") as file:
        file.seek(begin)
        data = file.read(count)
        file.seek(begin)
        file.write(bytes(byte ^ 0xFF for byte in data))


def test_bytes_of_untouched_tensors_are_looked_at_again(tmp_path: Path, source: Path) -> None:
    out = tmp_path / "out"
    prepared = plan(source, engines=[NEWEST])
    patch(source, out, engines=[NEWEST])
    before, operations = open_checkpoint(source), prepared.operations
    check_samples(before, open_checkpoint(out), operations)
    result = open_checkpoint(out)
    shard = next(shard for shard in result.shards if shard.name == "model-00002-of-00002.safetensors")
    spoilt(out / shard.name, shard.header, shard.size - shard.header)
    with pytest.raises(MtpfixError, match=r"bytes from \d+ on are not those it was to keep"):
        check_samples(before, result, operations)


def test_grafted_bytes_and_added_scales_are_looked_at_again(tmp_path: Path, source: Path) -> None:
    before = open_checkpoint(source)
    row = next(tensor for tensor in before.tensors if tensor.name.endswith("experts.{}.up_proj.weight"))
    assert row.experts is not None
    start = next(shard.header for shard in before.shards if shard.name == row.shard)
    names = [row.name.replace("{}", str(number)) for number in row.experts]
    taken = tuple(
        Grafted(name, row.shard, name, row.dtype, row.shape, start + begin)
        for name, begin in zip(names, row.begins, strict=True)
    )
    graft = Graft(row.shard, str(source), taken)
    check_samples(before, before, [graft])
    shifted = replace(graft, tensors=tuple(replace(one, begin=one.begin + 1) for one in taken))
    with pytest.raises(MtpfixError, match=r"experts\.\d+\.up_proj\.weight: bytes"):
        check_samples(before, before, [shifted])

    scale = next(tensor for tensor in before.tensors if tensor.name.endswith(".input_scale"))
    without = replace(before, tensors=tuple(tensor for tensor in before.tensors if tensor is not scale))
    module = scale.name.removesuffix(".input_scale")
    with pytest.raises(MtpfixError, match=r"input_scale is not 77\.5, as planned"):
        check_samples(without, before, [AddScale(module, "input_scale", 77.5)])
    check_samples(before, before, [AddScale(module, "input_scale", 77.5)])  # it was there: nothing was to be written


def test_a_module_is_stored_a_second_time_and_both_are_looked_at(tmp_path: Path) -> None:
    folder, out = tmp_path / "source", tmp_path / "out"
    checkpoints.build(folder, "hy_v3", "excluded-glob")
    result = patch(folder, out, engines=["sglang==0.5.14"], unsafe=True)
    assert result.exit_code == 0
    named = result.plan.operations
    copied = next(one for one in named if isinstance(one, CopyModule))
    assert from_json(to_json(named)) == named
    before, after = open_checkpoint(folder), open_checkpoint(out)
    first, second = (Holding(after).module(name)[None]["weight"].bytes() for name in (copied.module, copied.name))
    assert first == second == Holding(before).module(copied.module)[None]["weight"].bytes()
    fresh = {tensor.name for tensor in after.tensors} - {tensor.name for tensor in before.tensors}
    assert fresh == {f"{copied.name}.weight"}
    tensor = next(tensor for tensor in after.tensors if tensor.name in fresh)
    start = next(shard.header for shard in after.shards if shard.name == tensor.shard)
    spoilt(out / tensor.shard, start + tensor.begins[0], len(second))
    with pytest.raises(MtpfixError, match=r"shared_head\.norm\.weight: bytes from \d+ on"):
        check_samples(before, after, [copied])


@pytest.mark.parametrize("in_place", [False, True], ids=["beside", "in-place"])
def test_the_block_moves_into_a_file_that_was_not_there(tmp_path: Path, *, in_place: bool) -> None:
    folder, out = tmp_path / "source", tmp_path / "out"
    checkpoints.build(folder, "glm4_moe", "config-only")
    block = json.loads((folder / "config.json").read_text())["quantization_config"]
    asked = ["sglang==0.5.8"]
    shown = diff_text(prepare(str(folder), asked, Wishes()))
    assert "+++ b/hf_quant_config.json" in shown
    assert patch(folder, None if in_place else out, engines=asked, in_place=in_place).exit_code == 0
    result = folder if in_place else out
    written = json.loads((result / "hf_quant_config.json").read_text())
    assert written == {
        "producer": block["producer"],
        "quantization": {
            "quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16, "exclude_modules": block["ignore"]
        },
    }  # fmt: skip
    assert "quantization_config" not in json.loads((result / "config.json").read_text())
    assert scan(result, engines=["sglang==0.5.8", "sglang==0.5.23", NEWEST]).findings == ()
    assert not plan(result, engines=asked).steps


# ------------------------------------------------------------------------------------------------ stopped in place


def test_only_a_repair_in_place_finishes_one_that_was_interrupted(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    checkpoints.build(folder, "qwen3_5", "nothing-excluded")
    straight = tmp_path / "straight"
    checkpoints.build(straight, "qwen3_5", "nothing-excluded")
    code = (  # stopped after the decision, before the first rename
        "import os; from mtpfix.fix import writer; import mtpfix\n"
        "writer._roll_forward = lambda *_: os._exit(7)\n"
        f"mtpfix.patch({str(folder)!r}, engines=[{NEWEST!r}], in_place=True)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    assert (folder / IN_PLACE).is_dir()
    before = state(folder)
    for call in (
        lambda: plan(folder, engines=[NEWEST]),
        lambda: patch(folder, tmp_path / "out", engines=[NEWEST]),
    ):
        with pytest.raises(MtpfixError, match="in place was interrupted") as caught:
            call()
        assert "--in-place" in caught.value.hint
    assert state(folder) == before
    assert not (tmp_path / "out").exists()
    patch(folder, engines=[NEWEST], in_place=True)
    patch(straight, engines=[NEWEST], in_place=True)
    assert contents(folder) == contents(straight)


# ------------------------------------------------------------------------------------------------------- memory

EXPERTS = 64


@pytest.mark.slow
def test_memory_is_bounded_by_the_largest_group_and_not_by_the_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = families.FAMILIES["qwen3_5_moe"]

    def larger(size: Size) -> Config:
        config = known.config("tiny")
        wide = {"hidden_size": 1024, "moe_intermediate_size": 1024, "num_experts": EXPERTS}
        return config | {"text_config": config["text_config"] | wide}

    monkeypatch.setitem(families.FAMILIES, "qwen3_5_moe", replace(known, config=larger))
    folder = tmp_path / "model"
    checkpoints.build(folder, "qwen3_5_moe", "excluded-glob", "full", shards=1, branch_file="mtp.safetensors")
    shard = (folder / "mtp.safetensors").stat().st_size
    assert shard > 0.4e9
    code = (
        "import resource, sys, torch, mtpfix; from mtpfix.nvfp4 import quantize\n"
        "quantize(torch.zeros(64, 64))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"done = mtpfix.patch({str(folder)!r}, {str(tmp_path / 'out')!r}, engines=[{NEWEST!r}], mtp='nvfp4',"
        " input_scale=1.0)\n"
        "print(len(done.plan.operations), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    operations, grown = map(int, done.stdout.split())
    assert operations
    assert (tmp_path / "out" / "mtp.safetensors").stat().st_size < 0.4 * shard
    assert grown * 1024 < 150e6, f"{grown / 1e3:.0f} MB"


def test_a_release_that_is_no_longer_predicted_counts_as_no_repair(tmp_path: Path) -> None:
    """SGLang 0.5.14 reads MIXED_PRECISION of this family as another method, of which nothing is known."""
    checkpoints.build(tmp_path / "source", "exaone_moe", "branch-nvfp4")
    patch(tmp_path / "source", tmp_path / "out", engines=["sglang==0.5.14"], unsafe=True)
    (row,) = scan(tmp_path / "out", engines=["sglang==0.5.14"]).engines
    assert {row.prediction.target.verdict, row.prediction.draft.verdict} == {Verdict.LOADS}
