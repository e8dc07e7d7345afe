from __future__ import annotations

import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpfix.checkpoint.names import (
    collapse_names,
    collapse_numbers,
    describe_names,
    natural_key,
    split_name,
    tensor_name,
)

COMPONENTS = st.sampled_from(
    ["model", "layers", "0", "1", "2", "10", "61", "{}", "q_proj", "k_proj", "gate_up_proj_blocks", "weight", "", "_"]
)
NAMES = st.one_of(st.lists(COMPONENTS, min_size=1, max_size=6).map(".".join), st.text(max_size=20))


@pytest.mark.parametrize(
    ("name", "module", "suffix"),
    [
        ("lm_head.weight", "lm_head", "weight"),
        ("model.layers.0.self_attn.q_proj.weight_scale_2", "model.layers.0.self_attn.q_proj", "weight_scale_2"),
        ("a.experts.{}.w1.weight_packed", "a.experts.{}.w1", "weight_packed"),
        ("a.q_proj.bias", "a.q_proj", "bias"),
        ("a.k_proj.k_scale", "a.k_proj", "k_scale"),
        ("layers.0.attn.wq_a.scale", "layers.0.attn.wq_a", "scale"),
        ("a.mlp.experts.gate_up_proj", "a.mlp.experts.gate_up_proj", ""),
        ("a.mlp.experts.gate_up_proj_blocks", "a.mlp.experts.gate_up_proj", "_blocks"),
        ("a.mlp.experts.down_proj_scales", "a.mlp.experts.down_proj", "_scales"),
        ("a.mlp.experts.down_proj_bias", "a.mlp.experts.down_proj", "_bias"),
        ("a.experts.gate_up_proj_weight_scale", "a.experts.gate_up_proj", "_weight_scale"),
        ("a.mixer.A_log", "a.mixer.A_log", ""),
        ("a.mixer.dt_bias", "a.mixer.dt_bias", ""),
        ("a.mlp.gate.e_score_correction_bias", "a.mlp.gate.e_score_correction_bias", ""),
        ("mtp.0.hc_head_scale", "mtp.0.hc_head_scale", ""),
        ("a.o_proj.weight.absmax", "a.o_proj", "weight.absmax"),
        ("a.o_proj.weight.quant_state.bitsandbytes__nf4", "a.o_proj", "weight.quant_state.bitsandbytes__nf4"),
        ("weight", "", "weight"),
        (".weight", ".weight", ""),
    ],
)
def test_a_tensor_name_splits_into_module_and_suffix(name: str, module: str, suffix: str) -> None:
    assert split_name(name) == (module, suffix)


@given(NAMES)
def test_every_name_is_put_together_again(name: str) -> None:
    assert tensor_name(*split_name(name)) == name


@given(st.lists(NAMES, max_size=6))
def test_names_of_any_kind_can_be_sorted(names: list[str]) -> None:
    assert sorted(sorted(names, key=natural_key)) == sorted(names)


def test_shards_sort_by_their_numbers() -> None:
    shards = ["model-10-of-12.safetensors", "model-2-of-12.safetensors", "model.safetensors", "mtp.safetensors"]
    assert sorted(shards, key=natural_key) == [shards[1], shards[0], shards[2], shards[3]]


def test_a_number_of_thousands_of_digits_sorts_too() -> None:
    assert natural_key("a" + "9" * 10_000) > natural_key("a" + "0" * 10 + "8" * 9_999)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([5], "5"),
        (range(256), "{0..255}"),
        ([0, 1, 2, 5], "{0..2,5}"),
        ([3, 17], "{3,17}"),
        ([7, 7, 8], "{7,8}"),
        (range(3, 63, 4), "{3,7,11,15,19,23,…,59}"),
    ],
)
def test_numbers_collapse_to_runs(numbers: list[int], text: str) -> None:
    assert collapse_numbers(numbers) == text


@pytest.mark.parametrize(
    ("names", "patterns"),
    [
        (["lm_head", "lm_head"], [("lm_head", 1)]),
        (
            [
                f"model.layers.{layer}.mlp.experts.{{}}.{projection}_proj"
                for layer in range(3, 61)
                for projection in ("gate", "up", "down")
            ],
            [("model.layers.{3..60}.mlp.experts.*.{down,gate,up}_proj", 174)],
        ),
        (
            [f"m.layers.{layer}.experts.{expert}.w1" for layer in (3, 4) for expert in range(4) if layer + expert != 6],
            [("m.layers.3.experts.{0..2}.w1", 3), ("m.layers.4.experts.{0,1,3}.w1", 3)],
        ),
        (
            ["a.linear_attn.in_proj_qkv", "a.linear_attn.in_proj_z", "a.linear_attn.norm"],
            [("a.linear_attn.{in_proj_qkv,in_proj_z,norm}", 3)],
        ),
        (["a.in_proj_qkv", "a.in_proj_z"], [("a.in_proj_{qkv,z}", 2)]),
        (["mtp.fc", "mtp.layers.0*", "mtp.layers.1*"], [("mtp.fc", 1), ("mtp.layers.{0*,1*}", 2)]),
        (["a.1.b", "a.x.b"], [("a.1.b", 1), ("a.x.b", 1)]),
        ([], []),
    ],
)
def test_names_collapse_to_patterns(names: list[str], patterns: list[tuple[str, int]]) -> None:
    assert [(pattern.text, pattern.count) for pattern in collapse_names(names)] == patterns


@given(st.lists(NAMES, max_size=30))
def test_collapsing_counts_each_name_once_whatever_their_order(names: list[str]) -> None:
    patterns = collapse_names(names)
    assert sum(pattern.count for pattern in patterns) == len(set(names))
    assert collapse_names(reversed(names)) == patterns


@settings(max_examples=20)
@given(st.lists(st.text(string.ascii_lowercase + "_.0123456789", max_size=200), max_size=60))
def test_a_phrase_is_short_whatever_the_names(names: list[str]) -> None:
    assert len(describe_names(names)) < 500


def test_a_phrase_tells_how_many_names_remain() -> None:
    names = [f"model.layers.{layer}.self_attn" for layer in range(61)] + ["lm_head", "model.norm", "mtp.fc"]
    assert describe_names(names, 2) == "model.layers.{0..60}.self_attn (61), lm_head and 2 more"
