"""Banks of experts beside the decoder layers, and a branch with fewer of them; all was run in the real loaders."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.families import load
from mtpfix.model import Outcome, Prediction
from tests.checkpoints import Plan, Tensor, Variant, plan, write

MOBIUS, PREVIEW = "intern_s2_mobius", "intern_s2_preview"


def predicted(known: Plan, place: Path, version: str = "0.33.0", engine: str = "vllm") -> Prediction:
    write(place, known)
    return predict(Subject(open_checkpoint(place)), engine, version)


def with_text(known: Plan, **numbers: Any) -> Plan:
    """Return a plan whose decoder is configured otherwise; None takes a key away."""
    text = {key: value for key, value in (known.config["text_config"] | numbers).items() if value is not None}
    return replace(known, config=known.config | {"text_config": text})


def with_tensor(known: Plan, name: str, *shape: int) -> Plan:
    first, *others = known.groups
    return replace(known, groups=((*first, Tensor(name, "BF16", shape)), *others))


def without(known: Plan, beginning: str) -> Plan:
    groups = tuple(tuple(one for one in group if not one.name.startswith(beginning)) for group in known.groups)
    return replace(known, groups=groups)


def reshaped(known: Plan, name: str, *shape: int) -> Plan:
    groups = (tuple(replace(one, shape=shape) if one.name == name else one for one in group) for group in known.groups)
    return replace(known, groups=tuple(groups))


BANK = "model.language_model.meta_mlp"


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (
            lambda known: with_tensor(known, f"{BANK}.2.gate.weight", 8, 128),
            "ValueError: There is no module or parameter named 'meta_mlp.2' in InternS2MobiusModel",
        ),
        (
            lambda known: with_tensor(known, "model.language_model.layers.0.mlp.gate.weight", 8, 128),
            "ValueError: There is no module or parameter named 'layers.0.mlp.gate' in InternS2MobiusModel",
        ),
        (
            lambda known: reshaped(known, f"{BANK}.0.gate.weight", 4, 128),
            "AssertionError: Tried to load weights of size torch.Size([4, 128])",
        ),
    ],
)
def test_what_is_no_bank_of_the_model_is_refused(damage: Callable[[Plan], Plan], error: str, tmp_path: Path) -> None:
    found = predicted(damage(plan(MOBIUS, "excluded-glob")), tmp_path)
    assert str(found.target.error).startswith(error)
    assert found.draft.verdict == "loads"


def test_a_bank_that_is_counted_and_not_stored_stays_unwritten(tmp_path: Path) -> None:
    known = plan(MOBIUS, "excluded-glob")
    for number, damaged in enumerate((without(known, f"{BANK}.1."), with_text(known, num_blocks=3))):
        found = predicted(damaged, tmp_path / str(number)).target
        missed = {event.module for event in found.events if event.outcome is Outcome.SILENT}
        assert found.verdict == "silent"
        assert all(module.startswith(f"{BANK}.{number + 1}.") for module in missed)
        assert f"{BANK}.{number + 1}.gate" in missed


def test_the_branch_has_as_many_experts_as_the_configuration_says_of_it(tmp_path: Path) -> None:
    known = plan(MOBIUS, "excluded-glob")
    wide = predicted(reshaped(known, "mtp.layers.0.mlp.gate.weight", 8, 128), tmp_path / "wide").draft
    more = predicted(with_text(known, mtp_num_experts=8), tmp_path / "more").draft
    few = predicted(without(known, "mtp.layers.0.mlp.experts.3."), tmp_path / "few").draft
    unsaid = predicted(with_text(known, mtp_num_experts=None), tmp_path / "unsaid")
    assert str(wide.error).startswith("AssertionError: Tried to load weights of size torch.Size([8, 128])")
    assert str(more.error).startswith("AssertionError: Tried to load weights of size torch.Size([4, 128])")
    assert (few.verdict, few.error) == ("silent", None)
    assert (unsaid.target.verdict, unsaid.draft.verdict) == ("loads", "unknown")
    assert "mtp_num_experts" in str(unsaid.draft.reason)


def test_an_encoder_of_time_series_is_passed_over_and_a_forecaster_is_not(tmp_path: Path) -> None:
    known = plan(PREVIEW, "excluded-glob")
    beside = predicted(with_tensor(known, "time_series.projector.weight", 8, 128), tmp_path / "beside")
    above = predicted(with_tensor(known, "time_series_forecaster.head.weight", 8, 128), tmp_path / "above")
    assert beside.target.verdict == "loads"
    expected = (
        "There is no module or parameter named 'time_series_forecaster' in InternS2PreviewForConditionalGeneration"
    )
    assert str(above.target.error).startswith(f"ValueError: {expected}")
    assert above.draft.verdict == "loads"


@pytest.mark.parametrize(
    ("family", "engine", "version", "known"),
    [
        (PREVIEW, "vllm", "0.21.0", False),
        (PREVIEW, "vllm", "0.22.0", True),
        (MOBIUS, "vllm", "0.27.1", False),
        (MOBIUS, "vllm", "0.28.0", True),
        (PREVIEW, "sglang", "0.5.11", False),
        (PREVIEW, "sglang", "0.5.12", True),
        (MOBIUS, "sglang", "0.5.17", False),
        (MOBIUS, "sglang", "0.5.18", True),
    ],
)
def test_releases_before_an_architecture_have_no_class_for_it(
    family: str, engine: str, version: str, known: bool, tmp_path: Path
) -> None:
    found = predicted(plan(family, "excluded-glob"), tmp_path, version, engine)
    for model in (found.target, found.draft):
        assert (model.verdict != "unknown") is known
    architecture = plan(family, "excluded-glob").config["architectures"][0]
    assert bool(load("qwen3_5").models(engine, "draft", architecture, version)) is known


STACKED = Variant("stacked", "banks in BF16, each a stack", layout="fused", experts="plain")
UNDER = ["lm_head", "model.language_model.layers.0.linear_attn*", "model.visual*", "mtp*"]
UNDER += ["model.language_model.layers.1.self_attn*"]


@pytest.mark.parametrize(
    ("listed", "version", "error"),
    [
        (["model.meta_mlp*"], "0.5.23", None),
        (["model.meta_mlp*"], "0.5.20", None),
        (["model.meta_mlp*"], "0.5.18", "ValueError: Mobius weight coverage failure; missing destinations: …"),
        (["model.language_model.meta_mlp*"], "0.5.23", "RuntimeError: The size of tensor a (64) must match"),
        (["model.language_model.meta_mlp*"], "0.5.18", "RuntimeError: The size of tensor a (32) must match"),
    ],
)
def test_sglang_asks_for_banks_by_a_name_of_their_own(
    listed: list[str], version: str, error: str | None, tmp_path: Path
) -> None:
    found = predicted(plan(MOBIUS, STACKED, excludes=[*UNDER, *listed]), tmp_path, version, "sglang")
    assert str(found.target.error).startswith(str(error))
    assert found.draft.verdict == "loads"


def test_sglang_reads_the_main_model_strictly(tmp_path: Path) -> None:
    known = plan(MOBIUS, "published")
    cases = {
        "KeyError: 'Mobius destination is missing: model.meta_mlp.2.gate.weight (from": with_tensor(
            known, f"{BANK}.2.gate.weight", 8, 128
        ),
        "ValueError: Mobius weight coverage failure": without(known, f"{BANK}.0.gate"),
        "IndexError: list index out of range": with_text(known, layer_types=["full_attention"]),
        "KeyError: 'Mobius packed destination is missing: model.meta_mlp.0.experts.0.gate_up_proj.weight": without(
            plan(MOBIUS, Variant("apart", "each expert apart", quantized=False)), f"{BANK}.0.experts.0.down_proj"
        ),
    }
    for number, (error, damaged) in enumerate(cases.items()):
        found = predicted(damaged, tmp_path / str(number), "0.5.23", "sglang").target
        assert found.verdict == "fails"
        assert str(found.error).startswith(error)


def test_sglang_does_not_configure_a_draft_without_its_number_of_experts(tmp_path: Path) -> None:
    found = predicted(with_text(plan(MOBIUS, "published"), mtp_num_experts=None), tmp_path, "0.5.23", "sglang")
    assert found.target.verdict == "loads"
    expected = "AttributeError: 'InternS2MobiusTextConfig' object has no attribute 'mtp_num_experts'"
    assert found.draft.error == expected
