"""What vLLM's loaders do with damaged checkpoints, verdict for verdict; each case was run in its real loader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.model import Prediction
from tests.checkpoints import plan, write
from tests.conformance.sizes import UNQUANTIZED
from tests.families import with_arrays


def without(family: str, name: str, place: Path, version: str) -> Prediction:
    known = plan(family, UNQUANTIZED)
    groups = tuple(tuple(one for one in group if one.name != name) for group in known.groups)
    assert sum(map(len, groups)) == sum(map(len, known.groups)) - 1
    write(place, replace(known, groups=groups))
    return predict(Subject(open_checkpoint(place)), "vllm", version)


@pytest.mark.parametrize(
    ("family", "name", "before", "now"),
    [
        ("qwen3_next", "model.layers.0.linear_attn.out_proj.weight", "fails", "silent"),
        ("qwen3_next", "model.layers.0.input_layernorm.weight", "fails", "fails"),
        ("qwen3_next", "model.layers.0.linear_attn.A_log", "fails", "fails"),
        ("qwen3_next", "model.layers.0.mlp.experts.1.down_proj.weight", "silent", "silent"),
        ("qwen3_next", "mtp.fc.weight", "fails", "silent"),
        ("qwen3_next", "mtp.norm.weight", "fails", "fails"),
        ("glm4_moe", "model.layers.2.eh_proj.weight", "fails", "fails"),
        ("glm4_moe", "model.layers.2.self_attn.q_proj.weight", "silent", "silent"),
        ("glm4_moe", "model.layers.2.mlp.gate.e_score_correction_bias", "fails", "silent"),
        ("mimo", "model.mtp_layers.0.mlp.up_proj.weight", "silent", "silent"),
    ],
)
def test_an_unquantized_model_counts_its_parameters_and_from_0_21_on_only_some(
    family: str, name: str, before: str, now: str, tmp_path: Path
) -> None:
    of_draft = name.startswith(("mtp.", "model.mtp", "model.layers.2."))
    for version, verdict in (("0.20.2", before), ("0.32.0", now), ("0.33.0", now)):
        found = without(family, name, tmp_path / version, version)
        model = found.draft if of_draft else found.target
        assert model.verdict == verdict, (version, model.error)
        if verdict == "fails":
            assert str(model.error).startswith("ValueError: Following weights were not initialized from checkpoint:")


@pytest.mark.parametrize("family", ["step3p5", "step3p7"])
def test_step_is_built_by_the_kinds_of_its_layers_from_0_33_on(family: str, tmp_path: Path) -> None:
    known = plan(family, "nothing-excluded")
    config = with_arrays(known.config, 6)
    text = config.get("text_config", config)
    cases = (
        (text["layer_types"], "model.layers.3.mlp.gate_proj.weight", "AssertionError"),
        ([*text["layer_types"][:5], "full_attention"], None, "IndexError: list index out of range"),
        (text["layer_types"][:3], None, "ValueError: a model must have at least one layer"),
    )
    for number, (kinds, tensor, error) in enumerate(cases):
        text["layer_types"] = kinds
        write(tmp_path / str(number), replace(known, config=config))
        draft = predict(Subject(open_checkpoint(tmp_path / str(number))), "vllm", "0.33.0").draft
        assert (draft.error, draft.error_tensor) == (error, tensor)


def test_step_3_7_whose_sliding_layers_have_more_heads_is_not_read_by_0_33(tmp_path: Path) -> None:
    known = plan("step3p7", "layer-arrays")
    for heads, verdict in ((4, "loads"), (6, "fails")):
        config = with_arrays(known.config, 6)
        config["text_config"]["attention_other_setting"]["num_attention_heads"] = heads
        write(tmp_path / str(heads), replace(known, config=config))
        target = predict(Subject(open_checkpoint(tmp_path / str(heads))), "vllm", "0.33.0").target
        assert target.verdict == verdict
    assert str(target.error).startswith("AmbiguousGlobalPerLayerAttributeError: 'num_attention_heads' is a per-layer")
