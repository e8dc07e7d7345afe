"""Stacked experts whose scales hang on the weight's own name: packed and unpacked by operations of a plan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from mtpfix import scan
from mtpfix.fix.operations import AddScale, Dequantize, Operation, Quantize
from mtpfix.fix.patching import carry_out, prepare
from mtpfix.fix.plan import Plan
from mtpfix.fix.repairs.repair import Repair, Wishes
from mtpfix.model import Dialect, Format, Verdict
from tests.checkpoints import build

NEWEST = "vllm==0.32.0"
EXPERTS = "model.llm.layers.1.mlp.experts"
STACKS = (f"{EXPERTS}.w13_weight", f"{EXPERTS}.w2_weight")
E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for shard in folder.glob("*.safetensors") for name, tensor in load_file(shard).items()}


def unpacked(found: dict[str, Tensor], module: str) -> Tensor:
    """Return the numbers of a stack by its dialect's own definition."""
    codes = found[module].to(torch.int64)
    numbers = torch.stack((E2M1[codes & 15], E2M1[codes >> 4]), -1).reshape(*codes.shape[:-1], -1)
    scales = found[f"{module}.scale"].float().repeat_interleave(16, -1)
    return numbers * scales * found[f"{module}.scale2"].reshape(-1, 1, 1)


def planned(folder: Path, release: str) -> Plan:
    return prepare(str(folder), [f"vllm=={release}"], Wishes(unsafe=True)).plan


def done(folder: Path, out: Path, operations: tuple[Operation, ...]) -> Path:
    """Carry out operations on a checkpoint, as if a plan had them."""
    prepared = prepare(str(folder), [NEWEST], Wishes())
    wanted = replace(prepared.plan, steps=(Repair("as told", safe=True, operations=operations, bytes_written=0),))
    carry_out(replace(prepared, plan=wanted), out)
    return out


def test_plain_stacks_are_packed_under_the_names_of_their_loader(tmp_path: Path) -> None:
    build(tmp_path / "c", "inkling", "plain-experts")
    packing = tuple(Quantize((name,), Dialect.AMAX, 0.01) for name in STACKS)
    before, after = tensors(tmp_path / "c"), tensors(done(tmp_path / "c", tmp_path / "out", packing))
    for name in STACKS:
        assert after[f"{name}.input_amax"].tolist() == pytest.approx([26.88])
        error = (unpacked(after, name) - before[name].float()).norm() / before[name].float().norm()
        assert 0.05 < error < 0.12
    (row,) = scan(tmp_path / "out", engines=[NEWEST]).engines
    assert row.prediction.target.verdict is Verdict.LOADS
    assert Format.NVFP4 in {one.format for one in row.prediction.target.built if one.layer == "experts"}


def test_packed_stacks_become_plain_under_the_name_they_have(tmp_path: Path) -> None:
    build(tmp_path / "c", "inkling", "listed-experts")
    before = tensors(tmp_path / "c")
    after = tensors(done(tmp_path / "c", tmp_path / "out", tuple(map(Dequantize, STACKS))))
    assert {name for name in after if name.startswith(f"{EXPERTS}.")} == set(STACKS)
    for name in STACKS:
        assert torch.equal(after[name], unpacked(before, name).to(torch.bfloat16))


@pytest.mark.slow
def test_the_largest_input_is_written_where_it_is_missing(tmp_path: Path) -> None:
    build(tmp_path / "c", "inkling", "no-input-scale")
    scales = tuple(AddScale(name, "input_amax", 5.0) for name in STACKS)
    after = tensors(done(tmp_path / "c", tmp_path / "out", scales))
    assert [after[f"{name}.input_amax"].tolist() for name in STACKS] == [[5.0], [5.0]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "release", "title"),
    [
        ("listed-experts", "0.32.0", f"remove {EXPERTS}* from the list"),
        ("plain-experts", "0.26.0", f"add {EXPERTS}.w13_weight to ignore"),
        ("no-input-scale", "0.32.0", "declare W4A16_NVFP4"),
    ],
)
def test_experts_and_lists_that_disagree_are_brought_together(
    tmp_path: Path, variant: str, release: str, title: str
) -> None:
    build(tmp_path / "c", "inkling", variant)
    (step,) = planned(tmp_path / "c", release).steps
    assert step.title.startswith(title)


@pytest.mark.slow
def test_stacks_whose_names_a_release_does_not_know_are_made_plain(tmp_path: Path) -> None:
    build(tmp_path / "c", "inkling", "compressed-tensors")
    found = planned(tmp_path / "c", "0.26.0")
    assert not found.open
    assert {one.module for one in found.operations if isinstance(one, Dequantize)} == set(STACKS)
