"""The builder of checkpoints: its files are what exporters write, and its lists are the published ones."""

from __future__ import annotations

import ctypes
import hashlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import safetensors

from tests.checkpoints import VARIANTS, Plan, Tensor, build, data_of, plan, summarise, write_shard
from tests.families import FAMILIES, STEP
from tests.modules import DECLARING, text_of

CASES = [(family, name) for family in FAMILIES for name, variant in VARIANTS.items() if family in variant.families]


def header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        return dict(json.loads(file.read(size)))


def digest(lines: list[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def branch_tensors(planned: Plan) -> list[Tensor]:
    groups = zip(planned.modules, planned.groups, strict=True)
    return [tensor for module, group in groups if module.part == "branch" for tensor in group]


def official(tensors: list[Tensor]) -> bytes:
    """Return the file that the official writer makes of the same tensors."""
    kinds = {"U8": "uint8", "BF16": "bfloat16", "F32": "float32", "F8_E4M3": "float8_e4m3fn"}
    given: dict[str, Any] = {}
    buffers = []
    for tensor in tensors:
        data, shape = data_of(tensor), list(tensor.shape)
        buffers.append(ctypes.create_string_buffer(data, len(data)))
        if hasattr(safetensors, "TensorSpec"):  # from 0.8 on
            place = ctypes.addressof(buffers[-1])
            spec: dict[str, Any] = {
                "dtype": kinds[tensor.dtype],
                "shape": shape,
                "data_ptr": place,
                "data_len": len(data),
            }
            given[tensor.name] = safetensors.TensorSpec(**spec)
        else:
            given[tensor.name] = {"dtype": kinds[tensor.dtype], "shape": shape, "data": data}
    return bytes(safetensors.serialize(given, {"format": "pt"}))


def test_shard_is_byte_for_byte_what_the_official_writer_makes(tmp_path: Path) -> None:
    tensors = [
        Tensor("b.weight", "U8", (4, 8)),
        Tensor("a.weight", "BF16", (3, 5)),
        Tensor("b.weight_scale", "F8_E4M3", (4, 1)),
        Tensor("b.weight_scale_2", "F32", (), 0.01),
        Tensor("c.bias", "F32", (7,)),
        Tensor("a.bias", "BF16", (3,)),
    ]
    write_shard(tmp_path / "x.safetensors", tensors)
    assert (tmp_path / "x.safetensors").read_bytes() == official(tensors)


@pytest.mark.parametrize("family", FAMILIES)
def test_official_reader_finds_every_planned_tensor(family: str, tmp_path: Path) -> None:
    planned = build(tmp_path, family, sparse=True)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {}
    for path in tmp_path.glob("*.safetensors"):
        for name, entry in safetensors.deserialize(path.read_bytes()):  # type: ignore[no-untyped-call]
            found[name] = (entry["dtype"], tuple(entry["shape"]))
            assert index["weight_map"][name] == path.name
    assert found == {tensor.name: (tensor.dtype, tensor.shape) for tensor in planned.tensors}
    assert index["metadata"]["total_size"] == sum(tensor.bytes for tensor in planned.tensors)


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_variant_differs_from_its_neighbours_as_its_name_says(family: str, variant: str) -> None:
    planned = plan(family, variant)
    branch = branch_tensors(planned)
    packed = [tensor for tensor in branch if tensor.dtype == "U8"]
    match variant:
        case "missing" | "no-mtp":
            assert not branch
        case "branch-nvfp4" | "all-nvfp4" | "packed-glue" | "listed-packed":
            assert packed
            entrance = r"\b(eh_proj|[eh]_proj|input_proj|mtp_linear_proj|pre_projection|extra_proj|mtp\.fc(_hidden)?)\b"
            glue = any(re.search(entrance, tensor.name) for tensor in packed)
            assert glue == (variant in {"all-nvfp4", "packed-glue"})
        case "branch-fp8":
            assert any(tensor.name.endswith(".weight_scale_inv") for tensor in branch)
        case _:
            assert not packed
    numbers = planned.config | text_of(planned.config)
    declared = any(place.get(key) for key in DECLARING for place in (numbers, planned.config.get("mtp_config", {})))
    assert bool(declared) == (variant != "no-mtp" and FAMILIES[family].declares)
    if variant == "published" and FAMILIES[family].published == "plain":
        assert "quantization_config" not in planned.config
        assert planned.hf_quant_config is None
        assert {tensor.dtype for tensor in planned.tensors} <= {"BF16", "F32", "I64"}
        return
    assert ("quantization_config" in planned.config) == (variant != "hf-quant-only")
    assert (planned.hf_quant_config is None) == (variant in {"config-only", "compressed-tensors"})
    assert any(
        tensor.name.endswith(("input_scale", "input_global_scale", "input_amax")) for tensor in planned.tensors
    ) == (variant not in {"no-input-scale", "weights-only"})


def test_a_tensor_is_the_same_in_every_build() -> None:
    tensor = Tensor("model.norm.weight", "BF16", (64,))
    assert data_of(tensor) == data_of(tensor)
    assert data_of(tensor) != data_of(Tensor("model.other.weight", "BF16", (64,)))


def test_a_shard_does_not_hold_a_tensor_twice(tmp_path: Path) -> None:
    twice = Tensor("a", "U8", (1,))
    with pytest.raises(ValueError, match="twice"):
        write_shard(tmp_path / "x.safetensors", [twice, twice])


def test_a_variant_of_another_family_is_refused() -> None:
    with pytest.raises(ValueError, match="glm4_moe has no variant layer-arrays"):
        plan("glm4_moe", "layer-arrays")


def test_full_shape_costs_no_disk_and_holds_its_scales(tmp_path: Path) -> None:
    planned = build(tmp_path, "step3p5", "published", "full")
    files = list(tmp_path.iterdir())
    assert sum(file.stat().st_size for file in files) > 100e9
    assert sum(file.stat().st_blocks * 512 for file in files) < 10e6
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    name = next(tensor.name for tensor in planned.tensors if tensor.name.endswith("down_proj.weight_scale_2"))
    entry = header(tmp_path / index[name])[name]
    with (tmp_path / index[name]).open("rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        file.seek(8 + size + entry["data_offsets"][0])
        assert struct.unpack("<f", file.read(4))[0] == pytest.approx(0.01)


# The hashes below were taken from the published files themselves: a DeepSeek-R1 NVFP4 export's list of 489 modules,
# and the 41,100 entries of Nemotron-3 Super's allow-list, in the order of the file.


def test_deepseek_list_is_the_published_one() -> None:
    listed = plan("deepseek_v3", "published", "full").excludes
    assert len(listed) == 489
    assert digest(list(listed)) == "e51e8f0c1ec461721ae94bf9d3799f45ac482688ae4ff626c2f2479a5a0214ee"


def test_nemotron_list_and_tensor_count_are_the_published_ones() -> None:
    planned = plan("nemotron_h", "published", "full")
    layers = planned.config["quantization_config"]["quantized_layers"]
    lines = [f"{name} {scheme['quant_algo']}" for name, scheme in layers.items()]
    assert len(lines) == 41_100
    assert digest(lines) == "00bf4e836310d68a7b899bb09277d94c458ee7739167a334f716266e80562bb2"
    assert sum(1 for _ in planned.tensors) == 165_860
    assert len(branch_tensors(planned)) == 1_040


def test_qwen_branches_have_the_published_sizes() -> None:
    dense = branch_tensors(plan("qwen3_5", "published", "full"))
    assert len(dense) == 15
    assert round(sum(tensor.bytes for tensor in dense) / 2**30, 3) == 0.791
    packed = branch_tensors(plan("qwen3_5", "all-nvfp4", "full"))
    assert round(sum(tensor.bytes for tensor in packed) / 2**30, 3) == 0.223  # with the input scales
    modules = FAMILIES["qwen3_5_moe"].modules(FAMILIES["qwen3_5_moe"].config("full"), "each")
    assert sum(len(module.names) for module in modules if module.part == "branch") == 1_553


@pytest.mark.parametrize("family", STEP)
def test_step_arrays_are_as_long_as_the_variant_says(family: str) -> None:
    for variant, more in (("layer-arrays", 3), ("short-arrays", 0)):
        config = plan(family, variant).config
        text = text_of(config)
        assert len(text["layer_types"]) == text["num_hidden_layers"] + more


def test_summary_never_covers_a_quantized_module() -> None:
    unquantized = ["a.1.x", "a.1.y", "a.10.x", "b", "c.d.e"]
    quantized = ["a.10.y", "a.2.x", "c.f"]
    assert summarise(unquantized, quantized) == ["a.1.x", "a.1.y", "a.10.x", "b", "c.d*"]
