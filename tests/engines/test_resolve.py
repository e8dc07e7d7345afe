"""Which block vLLM obeys and how it refuses one; the cells were derived by running the engine's own functions."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from mtpfix.checkpoint.quant import read_declarations
from mtpfix.engines import load
from mtpfix.engines.resolve import resolve
from mtpfix.engines.resolved import Resolved
from mtpfix.facts import check_cover, covers, walk_ranged
from mtpfix.model import Format

VLLM = load("vllm")
NVFP4 = {"quant_algo": "NVFP4", "group_size": 16, "kv_cache_quant_algo": "FP8"}
PRODUCER = {"name": "modelopt", "version": "0.39.0"}
LAYERS = {"a.q_proj": {"quant_algo": "NVFP4", "group_size": 16}, "b": {"quant_algo": "fp8"}}


def flat(algo: str | None = "NVFP4", method: str = "modelopt", **more: Any) -> dict[str, Any]:
    return {"quant_method": method, "quant_algo": algo, "ignore": ["lm_head", "mtp*"], "producer": PRODUCER, **more}


def nested(algo: str | None = "NVFP4", **more: Any) -> dict[str, Any]:
    return {"producer": PRODUCER, "quantization": {**NVFP4, "quant_algo": algo, "exclude_modules": ["head"], **more}}


def ask(block: Any = None, other: Any = None, version: str = "0.32.0", **config: Any) -> Resolved:
    if block is not None:
        config["quantization_config"] = block
    return resolve(read_declarations(config, other), VLLM, version)


# ---------------------------------------------------------------------------------------------------- the block


@pytest.mark.parametrize("version", VLLM.releases)
def test_the_top_level_block_wins_then_the_other_file_then_the_text_config(version: str) -> None:
    inner = {"quantization_config": flat(ignore=["inner"])}
    assert ask(flat(), nested(), version, text_config=inner).excludes == ("lm_head", "mtp*")
    assert ask(None, nested(), version, text_config=inner).excludes == ("head",)
    assert ask(None, None, version, text_config=inner).excludes == ("inner",)
    assert ask(None, None, version) == Resolved(None, None, because=ask(None, None, version).because)


def test_other_wrappers_and_nulls_do_not_count() -> None:
    assert ask(thinker_config={"quantization_config": flat()}).declaration is None
    assert ask(None, nested(), quantization_config=None).excludes == ("head",)


def test_compression_config_names_the_method_but_the_text_config_is_built() -> None:
    block = {"quant_method": "compressed-tensors", "config_groups": {}, "ignore": ["a"]}
    assert ask(compression_config=block).method == "compressed-tensors"
    inner = {"quantization_config": {**block, "ignore": ["b"]}}
    assert ask(compression_config=block, text_config=inner).excludes == ("b",)


def test_only_the_key_of_the_form_is_read() -> None:
    assert ask({"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": ["a"]}).excludes == ()
    assert ask(nested(ignore=["a"])).excludes == ("head",)
    assert ask({"quant_method": "fp8", "activation_scheme": "dynamic", "ignored_layers": ["a"]}).excludes == ("a",)
    fallback = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "ignored_layers": [],
        "modules_to_not_convert": ["b"],
    }
    assert ask(fallback).excludes == ("b",)


def test_a_block_without_content_is_not_predicted() -> None:
    assert not ask({}).simulated
    assert not ask("nvfp4").simulated


# --------------------------------------------------------------------------------------------------- the method


@pytest.mark.parametrize(
    ("algo", "method", "since"),
    [
        ("NVFP4", "modelopt_fp4", "0.11.2"),
        ("FP8", "modelopt", "0.11.2"),
        ("FP8_PB_WO", "modelopt", "0.14.0"),
        ("MXFP8", "modelopt_mxfp8", "0.16.0"),
        ("W4A16_NVFP4", "modelopt_fp4", "0.21.0"),
    ],
)
def test_algorithms_of_the_flat_form_are_known_from_a_release_on(algo: str, method: str, since: str) -> None:
    for version in VLLM.releases:
        found = ask(flat(algo), version=version)
        if VLLM.releases.index(version) >= VLLM.releases.index(since):
            assert (found.method, found.error, found.algo) == (method, None, algo)
            assert found.scheme is not None
            assert found.scheme.format is not Format.UNKNOWN
        else:
            known = VLLM.fact("modelopt_algorithms", version)[0]
            text = (
                f"ModelOpt currently only supports: {known} quantizations in vLLM. Please check the "
                "`hf_quant_config.json` file for your model's quant configuration."
            )
            assert found.error == ("ValueError", text)


@pytest.mark.parametrize("algo", ["W4A16_NVFP4", "MIXED_PRECISION", "MXFP8", "NVFP4_AWQ"])
@pytest.mark.parametrize("version", VLLM.releases)
def test_the_nested_form_knows_few_algorithms(algo: str, version: str) -> None:
    found = ask(None, nested(algo), version)
    if algo == "MIXED_PRECISION" and covers(">=0.33", version):
        assert found.method == "modelopt_mixed"
    else:
        assert found.error == ("ValueError", f"Unknown ModelOpt quant algo: {algo}")


def test_the_flat_form_spells_its_list_in_two_ways_from_0_33_on() -> None:
    block = {key: value for key, value in flat("NVFP4").items() if key != "ignore"} | {"exclude_modules": ["mtp*"]}
    assert ask(block, version="0.32.0").excludes == ()
    assert ask(block, version="0.33.0").excludes == ("mtp*",)
    assert ask({**block, "ignore": []}, version="0.33.0").excludes == ()


def test_lower_case_counts_from_0_14() -> None:
    assert ask(flat("nvfp4"), version="0.13.0").error is not None
    assert ask(flat("nvfp4"), version="0.14.0").algo == "NVFP4"
    assert ask(nested("nvfp4"), version="0.13.0").error == ("ValueError", "Unknown ModelOpt quant algo: nvfp4")
    assert ask(nested("nvfp4"), version="0.14.0").method == "modelopt_fp4"


def test_other_spellings_of_modelopt_are_looked_into_from_0_22() -> None:
    block = flat("MIXED_PRECISION", "modelopt_fp4", quantized_layers=LAYERS)
    assert ask(block, version="0.21.0").method == "modelopt_fp4"
    assert ask(block, version="0.22.0").method == "modelopt_mixed"
    assert ask(flat(method="ModelOpt"), version="0.11.2").method == "modelopt_fp4"


@pytest.mark.parametrize(
    ("method", "named"), [("awq", "awq"), ("auto-round", "inc"), ("quark", "quark"), ("mxfp4", "mxfp4")]
)
def test_methods_that_are_not_simulated_are_named_not_guessed(method: str, named: str) -> None:
    found = ask({"quant_method": method, "bits": 4})
    assert (found.method, found.simulated, found.error) == (named, False, None)
    assert named in found.reason


def test_an_unknown_method_is_refused_with_the_list_of_known_ones() -> None:
    found = ask({"quant_method": "exl9"}, version="0.20.2")
    assert found.error is not None
    assert found.error[1].startswith("Unknown quantization method: exl9. Must be one of ['awq', 'fp8', 'fbgemm_fp8', ")
    assert ask({"quant_method": "modelopt_mixed", "quant_algo": "FP8"}, version="0.16.0").error is not None


def test_a_nested_block_that_names_neither_producer_nor_method_is_no_quantization() -> None:
    block = {"quantization": {**NVFP4, "exclude_modules": []}}
    assert ask(block).method is None
    assert ask(block).error is None
    block["quantization"]["modelopt_quant_config"] = {}
    assert ask(block, version="0.25.1").method is None
    assert ask(block, version="0.26.0").method == "modelopt_fp4"


def test_null_activations_make_w4a16_from_0_29() -> None:
    groups = {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4}, "input_activations": None}}
    before, after = (ask(flat(config_groups=groups), version=version) for version in ("0.28.0", "0.29.0"))
    assert (before.algo, after.algo) == ("NVFP4", "W4A16_NVFP4")
    assert before.scheme is not None
    assert after.scheme is not None
    assert (before.scheme.format, after.scheme.format) == (Format.NVFP4, Format.NVFP4_A16)
    groups["group_1"] = {"targets": ["x"], "input_activations": {"num_bits": 4}}
    assert ask(flat(config_groups=groups)).algo == "NVFP4"


# ------------------------------------------------------------------------------------------------- mixed blocks


def test_a_mixed_block_lists_its_layers_or_the_other_file_does() -> None:
    whole = flat("MIXED_PRECISION", quantized_layers=LAYERS)
    assert ask(whole).layers == {"a.q_proj": "NVFP4", "b": "fp8"}
    other = nested("MIXED_PRECISION", quantized_layers={"c": {"quant_algo": "NVFP4"}})
    found = ask(flat("MIXED_PRECISION"), other)
    assert found.declaration is not None
    assert (found.declaration.file, found.layers) == ("hf_quant_config.json", {"c": "NVFP4"})
    assert found.excludes == ("head",)
    assert ask(flat("MIXED_PRECISION")).error == ("ValueError", "Cannot find the config file for modelopt_mixed")
    unsigned = {**other, "producer": {"name": "me"}}
    text = (
        "Unsupported quantization config found for modelopt_mixed in "
        "<_io.TextIOWrapper name='hf_quant_config.json' mode='r' encoding='UTF-8'>."
    )
    assert ask(flat("MIXED_PRECISION"), unsigned).error == ("ValueError", text)
    text = "MIXED_PRECISION quant_algo requires a non-empty 'quantized_layers' mapping in the quantization config."
    assert ask(flat("MIXED_PRECISION", quantized_layers={})).error == ("ValueError", text)


# -------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("block", "text"),
    [
        (
            {**nested(), "quantization": {"quant_algo": "NVFP4"}},
            (
                "NVFP4 quantization requires the following fields in hf_quant_config.json: "
                "['group_size', 'kv_cache_quant_algo', 'exclude_modules']"
            ),
        ),
        (nested(kv_cache_quant_algo=8), "kv_cache_quant_algo must be a string, got <class 'int'>"),
        (nested(exclude_modules="lm_head"), "exclude_modules must be a list, got <class 'str'>"),
        (nested(group_size="many"), "group_size must be an integer, got <class 'str'>"),
        (flat(ignore=None), "exclude_modules must be a list, got <class 'NoneType'>"),
        (flat(None), "Missing 'quant_algo' in quantization config"),
        (
            {"quant_method": "modelopt", "quantization": "NVFP4"},
            "Expected 'quantization' to be a dictionary in config",
        ),
        ({"quant_method": "fp8"}, "Cannot find any of ['activation_scheme'] in the model's quantization config."),
        ({"quant_method": "fp8", "activation_scheme": "none"}, "Unsupported activation scheme none"),
        (
            {"quant_method": "fp8", "activation_scheme": "static", "weight_block_size": [128, 128]},
            (
                "The block-wise quantization only supports dynamic activation scheme for now, "
                "but got static activation scheme."
            ),
        ),
        (
            {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128]},
            "The quantization block size of weight must have 2 dimensions, but got 1 dimensions",
        ),
    ],
)
@pytest.mark.parametrize("version", ["0.12.0", "0.20.2", "0.32.0"])
def test_refusals(block: dict[str, Any], text: str, version: str) -> None:
    found = ask(block, version=version)
    assert found.error == ("ValueError", text)
    assert found.because


def test_fp8_under_the_method_of_nvfp4_is_refused_from_0_21_and_0_22_looks_again() -> None:
    block = flat("FP8", "modelopt_fp4")
    assert not ask(block, version="0.20.2").simulated
    text = "Unsupported ModelOpt NVFP4 quant_algo: FP8. Supported: NVFP4 / W4A16_NVFP4."
    assert ask(block, version="0.21.0").error == ("ValueError", text)
    assert ask(block, version="0.22.0").method == "modelopt"


def test_sparse_compressed_tensors_were_read_and_are_refused() -> None:
    block = {"quant_method": "compressed-tensors", "config_groups": {}, "sparsity_config": {"targets": ["Linear"]}}
    assert not ask(block, version="0.21.0").simulated
    error = ask(block, version="0.22.0").error
    assert error is not None
    assert error[0] == "DeprecationWarning"


def test_lists_with_patterns_that_are_not_run_are_not_simulated() -> None:
    block = {"quant_method": "compressed-tensors", "config_groups": {}, "ignore": ["re:(a+)+$"]}
    found = ask(block)
    assert not found.simulated
    assert "(a+)+$" in found.reason
    assert not ask(flat(ignore=["*a*b*c*d*e*f*"]), version="0.11.2").simulated
    assert ask(flat(ignore=["*a*b*c*d*e*f*"]), version="0.12.0").simulated


def test_mxfp8_without_an_algorithm_is_read_from_0_24() -> None:
    block = {"quant_method": "modelopt_mxfp8", "ignored_layers": ["lm_head"]}
    assert ask(block, version="0.23.0").error == ("ValueError", "Missing 'quant_algo' in quantization config")
    found = ask(block, version="0.24.0")
    assert (found.algo, found.excludes) == ("MXFP8", ("lm_head",))


def test_every_decision_cites_sources_of_known_releases() -> None:
    for version in VLLM.releases:
        for block in (flat(), nested(), flat("MIXED_PRECISION", quantized_layers=LAYERS)):
            for source in ask(block, version=version).because:
                path, _, release = source.partition("@")
                assert release in VLLM.releases
                assert path.rpartition(":")[2].isdigit()


# ------------------------------------------------------------------------------------------------------ the data


def test_every_fact_holds_for_exactly_one_value_at_each_release() -> None:
    faults = [
        fault
        for name, entries in walk_ranged(VLLM.table["facts"])
        for fault in check_cover(entries, VLLM.releases, name, gaps=False)
    ]
    assert faults == []


LAYER_CLASSES = ("column", "merged", "qkv", "row", "replicated", "linear", "norm", "head", "embedding")
RELATIONS = ("wider", "narrower", "taller", "shorter", "shape", "dtype")


@pytest.mark.parametrize("layer", [*LAYER_CLASSES, "experts_w13", "experts_w2"])
def test_every_mismatch_has_one_outcome_at_each_release(layer: str) -> None:
    for stored, version in product(RELATIONS, VLLM.releases):
        rows = [
            row
            for row in VLLM.table["mismatch"]
            if layer in _words(row["layer"]) and stored in _words(row["stored"]) and covers(row["versions"], version)
        ]
        assert len(rows) == 1, (stored, version)
        assert rows[0]["does"] in ("crash", "silent")
        assert ("error" in rows[0]) == (rows[0]["does"] == "crash")


def _words(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value
