"""A module that the configuration has built is not stored; each case was run in the engine's real loader."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from tests.checkpoints import write
from tests.conformance.random_checkpoints import lacking_cases

VLLM, SGLANG = ("vllm", "0.33.0"), ("sglang", "0.5.23")


@pytest.mark.parametrize(
    ("release", "family", "module", "role", "verdict"),
    [
        (VLLM, "qwen3_5", "lm_head", "target", "silent"),
        (VLLM, "qwen3_5", "model.visual.pos_embed", "target", "silent"),
        (VLLM, "glm4_moe", "lm_head", "target", "silent"),
        (VLLM, "mimo_v2", "model.layers.1.self_attn.attention_sink_bias", "target", "silent"),
        (VLLM, "deepseek_v4", "layers.0.attn.indexer.weights_proj", "target", "silent"),
        (VLLM, "deepseek_v4", "layers.1.attn.compressor.norm", "target", "silent"),
        (VLLM, "deepseek_v4", "layers.0.ffn.gate.tid2eid", "target", "silent"),
        (VLLM, "bailing_v2_5", "model.layers.2.mlp.gate.expert_bias", "draft", "silent"),
        (VLLM, "step3p5", "model.layers.4.self_attn.k_proj", "draft", "silent"),
        (VLLM, "inkling", "model.mtp.chain_norm", "draft", "fails"),
        (SGLANG, "mimo_v2", "model.layers.1.self_attn.attention_sink_bias", "target", "silent"),
        (SGLANG, "gigachat35", "model.layers.1.self_attn.gate_proj", "target", "silent"),
        (SGLANG, "gigachat35", "model.layers.1.self_attn.q_a_layernorm.gate_up_projection", "target", "silent"),
        (SGLANG, "gigachat35", "model.layers.0.post_feedforward_layernorm.gate_down_projection", "target", "silent"),
    ],
)
def test_what_the_configuration_has_built_is_missed(
    release: tuple[str, str], family: str, module: str, role: str, verdict: str, tmp_path: Path
) -> None:
    (case,) = (one for one in lacking_cases(family) if one.changes == (f"{module} dropped",))
    write(tmp_path, case.planned)
    found = predict(Subject(open_checkpoint(tmp_path)), *release)
    assert {"target": found.target, "draft": found.draft}[role].verdict == verdict


def test_every_module_but_later_experts_is_left_out_once() -> None:
    cases = lacking_cases("deepseek_v3")
    (whole,) = {len(case.planned.modules) for case in cases}
    assert 40 < len(cases) <= whole
    assert len({case.changes for case in cases}) == len(cases)
    for case in cases:
        assert sum(not group for group in case.planned.groups) == 1
