"""Every operation of `patch` from the command line, on whole checkpoints: what it does, and that the result loads."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mtpfix import scan
from mtpfix.cli import app
from mtpfix.model import Severity
from tests.checkpoints import build
from tests.patching import NEWEST, entries_of, set_scalar, set_up_json

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

SGLANG = "sglang==0.5.23"
MODULE = "mtp.layers.0.mlp.down_proj"
SHARD, INDEX = "model-00002-of-00002.safetensors", "model.safetensors.index.json"


def run(*arguments: str | Path) -> tuple[int, str, str]:
    """Run `mtpfix patch` and return its exit code and what it wrote."""
    env = {"NO_COLOR": "1", "COLUMNS": "100", "MTPFIX_DEBUG": ""}
    done = CliRunner().invoke(app, ["patch", *map(str, arguments)], env=env)
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def patched(folder: Path, out: Path, *arguments: str, engines: tuple[str, ...] = (NEWEST,)) -> dict[str, int]:
    """Patch from the command line, prove that the result loads and needs nothing more, and count the actions."""
    wanted = [word for engine in engines for word in ("--for", engine)]
    code, text, complaint = run(folder, "--out", out, "--json", *wanted, *arguments)
    assert code == 0, text + complaint
    report = scan(out, engines=engines)
    assert [one.message for one in report.findings if one.severity is not Severity.NOTE] == []
    assert {str(one.prediction.draft.verdict) for one in report.engines} <= {"loads", "absent"}
    code, again, _ = run(out, "--dry-run", "--json", *wanted, *arguments)
    assert (code, json.loads(again)["plan"]["steps"]) == (0, [])
    actions: dict[str, int] = {}
    for step in json.loads(text)["plan"]["steps"]:
        for operation in step["operations"]:
            actions[operation["action"]] = actions.get(operation["action"], 0) + 1
    return actions


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str, str], Path]:
    def make(family: str, variant: str) -> Path:
        build(tmp_path / variant, family, variant)
        return tmp_path / variant

    return make


Make = Callable[[str, str], Path]


def tensors_of(folder: Path) -> dict[str, Any]:
    return {name: one for path in folder.glob("*.safetensors") for name, one in safetensors.load_file(path).items()}


# --------------------------------------------------------------------------------------------------------- lists


def test_an_entry_is_added(model: Make, tmp_path: Path) -> None:
    assert patched(model("qwen3_5", "nothing-excluded"), tmp_path / "out") == {"add-entry": 2}


def test_an_entry_is_replaced_by_a_narrower_one(model: Make, tmp_path: Path) -> None:
    folder = model("deepseek_v3", "listed-packed")
    assert patched(folder, tmp_path / "out") == {"add-entry": 2, "remove-entry": 2}


def test_an_entry_is_removed(tmp_path: Path) -> None:
    entries = [*entries_of_variant(tmp_path, "nothing-excluded"), "mtp*", "model.language_model.layers.0.mlp*"]
    build(tmp_path / "model", "qwen3_5", "excluded-glob", excludes=entries)
    assert patched(tmp_path / "model", tmp_path / "out") == {"remove-entry": 2}


def entries_of_variant(place: Path, variant: str) -> list[str]:
    build(place / variant, "qwen3_5", variant)
    return sorted(entries_of(place / variant)["config.json"])


def test_two_files_are_made_to_agree(model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5", "excluded-glob")
    with set_up_json(folder / "hf_quant_config.json") as content:
        content["quantization"]["exclude_modules"].remove("mtp*")
        content["quantization"]["exclude_modules"].append("stale*")
    assert patched(folder, tmp_path / "out") == {"add-entry": 1, "remove-entry": 1}
    lists = entries_of(tmp_path / "out")
    assert lists["config.json"] == lists["hf_quant_config.json"]


def test_where_each_model_obeys_another_file_both_say_what_either_said(model: Make, tmp_path: Path) -> None:
    folder = model("nemotron_h_super_omni", "conflict")
    before = entries_of(folder)
    assert patched(folder, tmp_path / "out") == {"add-entry": 1}
    lists = entries_of(tmp_path / "out")
    assert set(lists["config.json"]) == set(lists["hf_quant_config.json"])
    assert set(lists["config.json"]) == {one for listed in before.values() for one in listed}


def test_a_nested_block_that_contradicts_is_deleted(model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5", "excluded-glob")
    with set_up_json(folder / "config.json") as content:
        nested = json.loads(json.dumps(content["quantization_config"]))
        nested["ignore"] = []
        content["text_config"]["quantization_config"] = nested
    assert patched(folder, tmp_path / "out") == {"remove-key": 1}
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]


# ------------------------------------------------------------------------------------------------------- numbers

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _codes(rows: int, columns: int) -> tuple[Any, Any]:
    """Return packed 4-bit codes, the even column in the low half, and the numbers they stand for."""
    codes = torch.arange(rows * columns).reshape(rows, columns) * 7 % 16
    table = torch.tensor([*E2M1, *(-value for value in E2M1)])
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8), table[codes]


def _eighth(rows: int, columns: int) -> Any:
    return ((torch.arange(rows * columns).reshape(rows, columns) % 61 - 30) / 4).to(torch.float8_e4m3fn)


def _stored(kind: str, rows: int, columns: int) -> tuple[dict[str, Any], Any]:
    """Return the tensors of a module, by suffix, in one format, and the numbers they stand for."""
    weight = _eighth(rows, columns)
    match kind:
        case "fp8":
            return {"weight": weight, "weight_scale": torch.tensor(0.25)}, weight.float() * 0.25
        case "fp8-channel":
            scale = 2.0 ** -(torch.arange(rows) % 4).float().reshape(rows, 1)
            return {"weight": weight, "weight_scale": scale}, weight.float() * scale
        case "fp8-block":
            scale = torch.tensor([[0.5, 0.125][column % 2] for column in range(-(-columns // 128))]).repeat(
                -(-rows // 128), 1
            )
            wide = scale.repeat_interleave(128, 0)[:rows].repeat_interleave(128, 1)[:, :columns]
            return {"weight": weight, "weight_scale_inv": scale}, weight.float() * wide
        case "mxfp8":
            exponents = (120 + torch.arange(rows * columns // 32).reshape(rows, -1) % 9).to(torch.uint8)
            wide = torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)
            return {"weight": weight, "weight_scale": exponents}, weight.float() * wide
        case "mxfp4":
            packed, values = _codes(rows, columns)
            exponents = (120 + torch.arange(rows * columns // 32).reshape(rows, -1) % 9).to(torch.uint8)
            wide = torch.exp2(exponents.float() - 127).repeat_interleave(32, 1)
            return {"weight": packed, "weight_scale": exponents}, values * wide
        case _:
            packed, values = _codes(rows, columns)
            blocks = (torch.arange(rows * columns // 16).reshape(rows, -1) % 5 + 1).to(torch.float8_e4m3fn)
            parts = {"weight": packed, "weight_scale": blocks, "weight_scale_2": torch.tensor(0.5)}
            return parts | {"input_scale": torch.tensor(0.01)}, values * blocks.float().repeat_interleave(16, 1) / 2


@pytest.mark.parametrize("kind", ["nvfp4", "fp8", "fp8-channel", "fp8-block", "mxfp4", "mxfp8"])
def test_quantized_weights_become_the_numbers_they_stand_for(kind: str, model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5", "excluded-glob")
    shard = next(path for path in folder.glob("*.safetensors") if f"{MODULE}.weight" in safetensors.load_file(path))
    tensors = safetensors.load_file(shard)
    rows, columns = tensors.pop(f"{MODULE}.weight").shape
    parts, wanted = _stored(kind, rows, columns)
    safetensors.save_file({**tensors, **{f"{MODULE}.{suffix}": one for suffix, one in parts.items()}}, shard)
    with set_up_json(folder / INDEX) as index:
        index["weight_map"] |= {f"{MODULE}.{suffix}": shard.name for suffix in parts}
    actions = patched(folder, tmp_path / "out", "--mtp", "bf16", "--unsafe-fixes")
    assert actions["dequantize"] == 1
    found = tensors_of(tmp_path / "out")
    assert torch.equal(found[f"{MODULE}.weight"], wanted.bfloat16())
    assert {name for name in found if name.startswith(MODULE)} == {f"{MODULE}.weight"}


def test_a_branch_is_quantized_on_wish(model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5", "excluded-glob")
    actions = patched(folder, tmp_path / "out", "--mtp", "nvfp4", "--input-scale", "0.5")
    assert actions["quantize"] >= 4
    found = tensors_of(tmp_path / "out")
    assert found[f"{MODULE}.weight"].dtype is torch.uint8
    assert float(found[f"{MODULE}.input_scale"]) == 0.5
    gate, up = (found[f"mtp.layers.0.mlp.{name}.weight_scale_2"] for name in ("gate_proj", "up_proj"))
    assert torch.equal(gate, up)


def test_a_wish_that_an_engine_forbids_names_module_and_engine(model: Make, tmp_path: Path) -> None:
    code, text, _ = run(model("qwen3_5", "excluded-glob"), "--dry-run", "--mtp", "nvfp4", "--for", SGLANG)
    assert code == 0
    assert "Left in 16 bits, as sglang 0.5.23 builds nothing else: mtp." in " ".join(text.split())
    code, _, complaint = run(model("qwen3_5_moe", "config-only"), "--dry-run", "--mtp", "nvfp4", "--for", NEWEST)
    assert code == 2
    assert "no scale is known for the inputs of mtp.layers.0" in complaint
    assert "--input-scale" in complaint


def test_global_scales_that_differ_are_shared(model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5", "excluded-glob")
    layer = "model.language_model.layers.0.mlp"
    set_scalar(folder, f"{layer}.up_proj.weight_scale_2", 0.04)
    assert patched(folder, tmp_path / "out") == {"share-scale": 1}
    old, new = tensors_of(folder), tensors_of(tmp_path / "out")
    for name in ("gate_proj", "up_proj"):
        assert float(new[f"{layer}.{name}.weight_scale_2"]) == pytest.approx(0.04)
        assert torch.equal(new[f"{layer}.{name}.weight"], old[f"{layer}.{name}.weight"])
    assert torch.equal(new[f"{layer}.up_proj.weight_scale"].float(), old[f"{layer}.up_proj.weight_scale"].float())
    was = old[f"{layer}.gate_proj.weight_scale"].float() * 0.01
    now = new[f"{layer}.gate_proj.weight_scale"].float() * 0.04
    assert torch.allclose(was, now, rtol=2**-4, atol=2**-10 * 0.04)


# --------------------------------------------------------------------------------------------------------- grafts


def test_a_missing_branch_is_grafted_and_quantized_on_the_way(model: Make, tmp_path: Path) -> None:
    folder, base = model("qwen3_5", "missing"), model("qwen3_5", "excluded-glob")
    arguments = ("--graft", str(base), "--mtp", "nvfp4", "--input-scale", "1")
    actions = patched(folder, tmp_path / "out", *arguments)
    assert (actions["graft"], actions["quantize"] >= 4) == (1, True)
    found, given = tensors_of(tmp_path / "out"), tensors_of(base)
    assert found[f"{MODULE}.weight"].dtype is torch.uint8
    assert torch.equal(found["mtp.fc.weight"], given["mtp.fc.weight"])


def test_experts_that_are_not_there_are_grafted_alone(model: Make, tmp_path: Path) -> None:
    folder, base = model("glm4_moe", "excluded-glob"), tmp_path / "base"
    shutil.copytree(folder, base)
    name = "model.layers.2.mlp.experts.3.up_proj.weight"
    for shard in folder.glob("*.safetensors"):
        tensors = safetensors.load_file(shard)
        if (weight := tensors.pop(name, None)) is not None:
            safetensors.save_file(tensors, shard)
            with set_up_json(folder / INDEX) as index:
                del index["weight_map"][name]
                index["metadata"]["total_size"] -= weight.nbytes
    assert patched(folder, tmp_path / "out", "--graft", str(base))["graft"] == 1
    found, given = tensors_of(tmp_path / "out"), tensors_of(base)
    assert found.keys() == given.keys()
    assert torch.equal(found[name], given[name])
    (new,) = {path.name for path in (tmp_path / "out").glob("*.safetensors")} - {path.name for path in folder.iterdir()}
    assert safetensors.load_file(tmp_path / "out" / new).keys() == {name}


def test_a_base_with_another_vocabulary_is_refused(model: Make, tmp_path: Path) -> None:
    folder, base = model("qwen3_5", "missing"), model("qwen3_5", "excluded-glob")
    shard = next(path for path in base.glob("*.safetensors") if "lm_head.weight" in safetensors.load_file(path))
    tensors = safetensors.load_file(shard)
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-8].clone()
    safetensors.save_file(tensors, shard)
    code, _, complaint = run(folder, "--out", tmp_path / "out", "--graft", base, "--for", NEWEST)
    assert code == 2
    assert "the base model is another one: lm_head is [" in complaint
    assert not (tmp_path / "out").exists()


def test_per_layer_arrays_grow_with_the_grafted_layers(model: Make, tmp_path: Path) -> None:
    folder, base = model("step3p7", "published"), model("step3p7", "layer-arrays")
    actions = patched(folder, tmp_path / "out", "--graft", str(base), engines=(NEWEST,))
    assert actions["graft"] == 1
    assert actions["set-value"] >= 1
    text = json.loads((tmp_path / "out" / "config.json").read_text())["text_config"]
    assert text["layer_types"] == json.loads((base / "config.json").read_text())["text_config"]["layer_types"]


def test_a_missing_branch_asks_for_its_base_model(model: Make, tmp_path: Path) -> None:
    code, text, _ = run(model("qwen3_5", "missing"), "--out", tmp_path / "out", "--for", NEWEST)
    assert code == 1
    assert "name it with --graft" in text
    assert "with --unsafe-fixes: switch the branch off" in text


def test_a_branch_is_switched_off_where_nothing_is_to_be_grafted(model: Make, tmp_path: Path) -> None:
    assert patched(model("qwen3_5", "missing"), tmp_path / "out", "--unsafe-fixes") == {"set-value": 1}


# ---------------------------------------------------------------------------------------------------------- files


def test_tensors_that_an_engine_refuses_are_dropped(model: Make, tmp_path: Path) -> None:
    folder = model("glm4_moe", "excluded-glob")
    safetensors.save_file({"model.layers.2.stale_proj.weight": torch.zeros(4, 4)}, folder / "stale.safetensors")
    with set_up_json(folder / INDEX) as index:
        index["weight_map"]["model.layers.2.stale_proj.weight"] = "stale.safetensors"
    assert patched(folder, tmp_path / "out", "--unsafe-fixes") == {"drop": 1, "reindex": 1}
    assert not (tmp_path / "out" / "stale.safetensors").exists()


def test_copies_that_the_index_does_not_name_are_dropped(model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5", "excluded-glob")
    name = "mtp.fc.weight"
    copy = torch.ones_like(tensors_of(folder)[name])
    safetensors.save_file({name: copy}, folder / "a-copy.safetensors")
    assert patched(folder, tmp_path / "out") == {"drop": 1, "reindex": 1}
    assert not (tmp_path / "out" / "a-copy.safetensors").exists()
    assert not torch.equal(tensors_of(tmp_path / "out")[name], copy)


def test_of_two_copies_without_an_index_the_last_is_kept(model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5", "excluded-glob")
    name = "mtp.fc.weight"
    copy = torch.ones_like(tensors_of(folder)[name])
    safetensors.save_file({name: copy}, folder / "z-copy.safetensors")
    (folder / INDEX).unlink()
    code, text, _ = run(folder, "--dry-run", "--for", NEWEST)
    assert code == 0
    assert "with --unsafe-fixes: drop mtp.fc.weight from model-0000" in text
    actions = patched(folder, tmp_path / "out", "--unsafe-fixes")
    assert actions["drop"] == 1
    assert torch.equal(tensors_of(tmp_path / "out")[name], copy)


def test_the_index_is_rebuilt(model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5", "excluded-glob")
    with set_up_json(folder / INDEX) as index:
        index["weight_map"].pop("mtp.fc.weight")
        index["weight_map"]["gone.weight"] = SHARD
    assert patched(folder, tmp_path / "out") == {"reindex": 1}
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert set(index["weight_map"]) == set(tensors_of(tmp_path / "out"))


# -------------------------------------------------------------------------------------------------------- engines


@pytest.mark.parametrize("family", ["qwen3_5_moe", "deepseek_v3", "glm4_moe"])
def test_an_allow_list_lets_a_packed_branch_load_where_one_algorithm_does_not(
    family: str, model: Make, tmp_path: Path
) -> None:
    folder = model(family, "branch-nvfp4")
    code, text, _ = run(folder, "--dry-run", "--mtp", "keep", "--for", SGLANG)
    assert code == 1
    assert "would no longer load it: declare MIXED_PRECISION" in " ".join(text.split())
    arguments = ("--mtp", "keep", "--unsafe-fixes")
    actions = patched(folder, tmp_path / "out", *arguments, engines=(SGLANG,))
    assert actions.pop("set-value") == 4
    assert set(actions) == ({"remove-entry"} if family == "deepseek_v3" else set())
    shards = [path.name for path in folder.glob("*.safetensors")]
    assert all((tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes() for name in shards)


def test_one_form_serves_both_engines(model: Make, tmp_path: Path) -> None:
    actions = patched(model("qwen3_5_moe", "branch-nvfp4"), tmp_path / "out", engines=(NEWEST, SGLANG))
    assert set(actions) == {"dequantize", "add-entry"} or set(actions) == {"dequantize"}


def test_engines_that_disagree_are_named_with_the_module_and_get_a_plan_each(model: Make, tmp_path: Path) -> None:
    folder = model("qwen3_5_moe", "branch-nvfp4")
    code, text, _ = run(folder, "--out", tmp_path / "out", "--mtp", "keep", "--for", SGLANG, "--for", "vllm==0.32.0")
    assert code == 1
    assert not (tmp_path / "out").exists()
    said = " ".join(text.split())
    assert "sglang 0.5.23 builds it bf16, vllm 0.32.0 nvfp4, and nothing that was tried serves both" in said
    assert f"{folder}: no repair was found after which it loads completely in sglang 0.5.23" in said
    assert f"{folder}: nothing to repair for vllm 0.32.0" in said
    assert "name those that must load it with --for" in said


# ---------------------------------------------------------------------------------------------------------- plans


def test_a_plan_that_leaves_something_open_is_not_carried_out(model: Make, tmp_path: Path) -> None:
    folder, file = model("qwen3_5", "missing"), tmp_path / "plan.json"
    assert run(folder, "--plan", file, "--for", NEWEST)[0] == 1
    code, text, _ = run(folder, "--apply", file, "--out", tmp_path / "out")
    assert code == 1
    assert "still open" in text
    assert not (tmp_path / "out").exists()


def test_shards_that_are_rewritten_are_counted_whole(model: Make, tmp_path: Path) -> None:
    folder = model("deepseek_v3", "packed-glue")
    code, text, _ = run(folder, "--dry-run", "--for", NEWEST)
    assert code == 0
    assert "dequantize model.layers.2.eh_proj to BF16" in text
    code, machine, _ = run(folder, "--out", tmp_path / "out", "--json", "--for", NEWEST)
    (row,) = json.loads(machine)["plan"]["rewritten"]
    size = sum(one.numel() * one.element_size() for one in safetensors.load_file(tmp_path / "out" / SHARD).values())
    assert row == {"name": SHARD, "bytes": size}
