from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpfix.checkpoint.quant import declared_scheme_differences, label, read_declarations
from mtpfix.model import Declaration, Format, Scheme

FLOAT4 = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
FLOAT8 = {"dynamic": False, "num_bits": 8, "type": "float"}
NVFP4_FILE: dict[str, Any] = {
    "producer": {"name": "modelopt", "version": "0.41.0"},
    "quantization": {
        "quant_algo": "NVFP4",
        "kv_cache_quant_algo": "FP8",
        "group_size": 16,
        "exclude_modules": ["lm_head", "mtp.layers.0*"],
    },
}
NVFP4_BLOCK = {
    "config_groups": {"group_0": {"input_activations": FLOAT4, "weights": FLOAT4, "targets": ["Linear"]}},
    "ignore": ["lm_head", "mtp.layers.0*"],
    "quant_algo": "NVFP4",
    "kv_cache_scheme": FLOAT8,
    "producer": {"name": "modelopt", "version": "0.41.0"},
    "quant_method": "modelopt",
}


def flat(block: Any) -> Declaration:
    (declaration,) = read_declarations({"quantization_config": block}, None)
    return declaration


def nested(**quantization: Any) -> Declaration:
    (declaration,) = read_declarations({}, {"producer": {"name": "modelopt"}, "quantization": quantization})
    return declaration


def compressed(weights: Any, inputs: Any = None, **block: Any) -> Declaration:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return flat({"quant_method": "compressed-tensors", "config_groups": {"group_0": group}, "ignore": [], **block})


# ------------------------------------------------------------------------------------------------ where blocks are


def test_every_block_is_found_top_level_first_and_the_other_file_last() -> None:
    config = {
        "thinker_config": {"text_config": {"quantization_config": {"quant_method": "awq", "bits": 4}}},
        "text_config": {"quantization_config": {"quant_method": "fp8", "activation_scheme": "dynamic"}},
        "compression_config": {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
        "quantization_config": NVFP4_BLOCK,
        "vision_config": {"quantization_config": None},
    }
    found = read_declarations(config, NVFP4_FILE)
    assert [(each.file, each.path, each.method) for each in found] == [
        ("config.json", ("quantization_config",), "modelopt"),
        ("config.json", ("compression_config", "quantization_config"), "compressed-tensors"),
        ("config.json", ("text_config", "quantization_config"), "fp8"),
        ("config.json", ("thinker_config", "text_config", "quantization_config"), "awq"),
        ("hf_quant_config.json", (), "modelopt"),
    ]
    assert [label(each) for each in found[::2]] == [
        "config.json",
        "config.json text_config.quantization_config",
        "hf_quant_config.json",
    ]


def test_a_checkpoint_without_a_block_declares_nothing() -> None:
    assert read_declarations({"architectures": ["A"], "quantization_config": None}, None) == ()


# ------------------------------------------------------------------------------------------------ ModelOpt


def test_the_nested_form() -> None:
    found = nested(**NVFP4_FILE["quantization"])
    assert (found.dialect, found.algo, found.exclude_key) == ("nested", "NVFP4", "exclude_modules")
    assert found.excludes == ("lm_head", "mtp.layers.0*")
    assert (found.group_size, found.kv_cache) == (16, "FP8")
    assert found.scheme == Scheme(Format.NVFP4, "NVFP4", 16, activations_quantized=True)
    assert found.not_understood == ()


def test_the_flat_form() -> None:
    found = flat(NVFP4_BLOCK)
    assert (found.dialect, found.algo, found.exclude_key) == ("flat", "NVFP4", "ignore")
    assert found.excludes == ("lm_head", "mtp.layers.0*")
    assert (found.group_size, found.kv_cache) == (16, "FP8")
    assert [(group.name, group.targets) for group in found.groups] == [("group_0", ("Linear",))]
    assert found.raw is NVFP4_BLOCK
    assert found.not_understood == ()


def test_the_list_of_the_other_form_is_not_used_and_said_to_be_there() -> None:
    wrong = flat({"quant_method": "modelopt", "quant_algo": "FP8", "exclude_modules": ["mtp*"]})
    assert (wrong.exclude_key, wrong.excludes) == ("ignore", ())
    assert wrong.not_understood == (
        "exclude_modules stands where ignore is the list of this form, and is not used here",
    )


@pytest.mark.parametrize(
    ("algo", "expected", "activations"),
    [
        ("FP8", Format.FP8, True),
        ("FP8_PER_CHANNEL_PER_TOKEN", Format.FP8_CHANNEL, True),
        ("FP8_PB_WO", Format.FP8_BLOCK, False),
        ("fp8_pb_wo", Format.FP8_BLOCK, False),
        ("FP8_BLOCK_SCALES", Format.FP8_BLOCK, True),
        ("NVFP4", Format.NVFP4, True),
        ("NVFP4_AWQ", Format.NVFP4, True),
        ("NVFP4_SVD", Format.NVFP4, True),
        ("W4A16_NVFP4", Format.NVFP4_A16, False),
        ("W4A8_NVFP4_FP8", Format.NVFP4, True),
        ("W4A8_MXFP4_FP8", Format.MXFP4, True),
        ("MXFP8", Format.MXFP8, True),
        ("W4A16_AWQ", Format.INT4, False),
        ("W4A8_AWQ", Format.INT4, True),
        ("W8A16", Format.INT8, False),
        ("W8A8_SQ_PER_CHANNEL", Format.INT8, True),
    ],
)
def test_every_algorithm_has_its_format(algo: str, expected: Format, activations: bool) -> None:
    found = nested(quant_algo=algo, exclude_modules=[])
    assert found.scheme == Scheme(expected, algo, activations_quantized=activations)
    assert found.not_understood == ()


def test_an_algorithm_nobody_knows_is_named_not_guessed() -> None:
    found = nested(quant_algo="W3A3_DREAM")
    assert found.scheme == Scheme(Format.UNKNOWN, "W3A3_DREAM")
    assert found.not_understood == ('quant_algo is not known here: "W3A3_DREAM"',)


def test_groups_that_all_leave_activations_alone_make_nvfp4_weight_only() -> None:
    weight_only = {"weights": FLOAT4, "targets": ["Linear"]}
    quantized = {"input_activations": FLOAT4, **weight_only}
    found = flat({**NVFP4_BLOCK, "config_groups": {"group_0": weight_only, "group_1": {**weight_only}}})
    assert found.algo == "NVFP4"
    assert found.scheme == Scheme(Format.NVFP4_A16, "NVFP4", 16)
    some = flat({**NVFP4_BLOCK, "config_groups": {"group_0": weight_only, "group_1": quantized}})
    assert some.scheme == Scheme(Format.NVFP4, "NVFP4", 16, activations_quantized=True)
    none = flat({**NVFP4_BLOCK, "config_groups": {}})
    assert none.scheme is not None
    assert none.scheme.format is Format.NVFP4


def test_mixed_precision_lists_its_layers() -> None:
    found = nested(
        quant_algo="MIXED_PRECISION",
        quantized_layers={
            "l.0.up": {"quant_algo": "W8A8_SQ_PER_CHANNEL"},
            "l.1.up": {"quant_algo": "NVFP4", "group_size": 16},
            "l.2.up": {"quant_algo": "W4A16_NVFP4", "group_size": 16},
            "l.3.up": {"quant_algo": None},
        },
    )
    assert found.scheme is None
    assert found.layers == {
        "l.0.up": Scheme(Format.INT8, "W8A8_SQ_PER_CHANNEL", None, activations_quantized=True),
        "l.1.up": Scheme(Format.NVFP4, "NVFP4", 16, activations_quantized=True),
        "l.2.up": Scheme(Format.NVFP4_A16, "W4A16_NVFP4", 16),
        "l.3.up": Scheme(Format.BF16, "none"),
    }
    assert (found.excludes, found.not_understood) == ((), ())


def test_the_groups_of_a_mixed_block_repeat_its_layers() -> None:
    found = flat(
        {
            "quant_method": "modelopt",
            "quant_algo": "MIXED_PRECISION",
            "quantized_layers": {"a": {"quant_algo": "FP8"}},
            "config_groups": {
                "g0": {"input_activations": FLOAT8, "weights": FLOAT8, "targets": ["a"]},
                "g1": {"input_activations": FLOAT4, "weights": FLOAT4, "targets": ["b"]},
                "g2": {"weights": FLOAT4, "targets": ["c"]},
                "g3": {"quant_algo": "fp8_pb_wo", "targets": ["d"]},
                "g4": {"input_activations": FLOAT8, "weights": {**FLOAT8, "group_size": 32}, "targets": ["e"]},
                "g5": {"input_activations": FLOAT8, "weights": {**FLOAT8, "strategy": "channel"}, "targets": ["f"]},
                "g6": {"weights": {"num_bits": 4, "type": "int", "group_size": 128}, "targets": ["g"]},
            },
            "ignore": [],
        }
    )
    assert [group.scheme.format for group in found.groups] == [
        *(Format.FP8, Format.NVFP4, Format.NVFP4_A16, Format.FP8_BLOCK, Format.MXFP8, Format.FP8_CHANNEL, Format.INT4)
    ]
    assert found.not_understood == ()


@pytest.mark.parametrize(
    ("quantization", "sentence"),
    [
        ({}, "there is no quant_algo"),
        ({"quant_algo": 4}, "quant_algo is a number, not text"),
        ({"quant_algo": "FP8", "exclude_modules": None}, "exclude_modules is null, not a list"),
        ({"quant_algo": "FP8", "exclude_modules": {"a": 1}}, "exclude_modules is an object, not a list"),
        ({"quant_algo": "FP8", "exclude_modules": "lm_head"}, "exclude_modules is text, not a list"),
        (
            {"quant_algo": "FP8", "exclude_modules": ["a", 3, None, True]},
            "exclude_modules has entries that are not text: a number, null, true or false",
        ),
        ({"quant_algo": "FP8", "group_size": [16]}, "group_size is a list, not an integer"),
        ({"quant_algo": "FP8", "kv_cache_quant_algo": {}}, "kv_cache_quant_algo is an object, not text"),
        ({"quant_algo": "MIXED_PRECISION"}, "MIXED_PRECISION without quantized_layers"),
        (
            {"quant_algo": "FP8", "quantized_layers": ["a"]},
            "quantized_layers is a list, not an object",
        ),
        (
            {"quant_algo": "FP8", "quantized_layers": {f"l.{n}": "FP8" for n in range(50)}},
            'quantized_layers has values that are not objects: "l.0", "l.1", "l.2" and 47 more',
        ),
        (
            {"quant_algo": "FP8", "quantized_layers": {"a": {"quant_algo": "NEW"}, "b": {"quant_algo": "NEW"}}},
            'quant_algo is not known here: "NEW"',
        ),
        (
            {"quant_algo": "FP8", "quantized_layers": {"a": {"quant_algo": "FP8", "zeta": 1, "eta": 2}}},
            'keys in quantized_layers that are not known here: "zeta", "eta"',
        ),
        ({"quant_algo": "FP8", "colour": "\x1b[31m"}, 'keys under quantization that are not known here: "colour"'),
        ({"quant_algo": "\x1b[31m"}, 'quant_algo is not known here: "\\x1b[31m"'),
    ],
)
def test_what_is_not_understood_is_said(quantization: Mapping[str, Any], sentence: str) -> None:
    assert sentence in nested(**quantization).not_understood


def test_an_algorithm_of_null_quantizes_nothing() -> None:
    found = nested(quant_algo=None, kv_cache_quant_algo="FP8", exclude_modules=[])
    assert (found.algo, found.scheme, found.kv_cache, found.not_understood) == (None, None, "FP8", ())


@pytest.mark.parametrize(
    ("block", "method"),
    [
        ({"quant_method": "modelopt_fp4", "quant_algo": "NVFP4"}, "modelopt"),
        ({"quant_method": "compressed_tensors", "config_groups": {}}, "compressed-tensors"),
        ({"quant_method": "intel/auto-round", "bits": 4}, "auto-round"),
        ({"quant_method": "INC", "bits": 4}, "auto-round"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_algo": "FP8", "ignore": []}, "modelopt"),
        ({"quantization": {"quant_algo": "FP8"}}, "modelopt"),
        ({"config_groups": {}}, "compressed-tensors"),
        ({}, "unknown"),
        ([], "unknown"),
        ("fp8", "unknown"),
    ],
)
def test_the_method_is_recognised(block: Any, method: str) -> None:
    assert flat(block).method == method


@pytest.mark.parametrize(
    ("block", "sentence"),
    [
        ({}, "the block is empty"),
        ([], "quantization_config is a list, not an object"),
        ({"quant_method": "hqq"}, 'quant_method is not known here, and no list of it is read: "hqq"'),
        ({"quant_method": 8}, "quant_method is a number, not text"),
        ({"quant_algo": "FP8"}, "there is no quant_method; quant_algo is ModelOpt's"),
    ],
)
def test_a_block_of_no_known_method_says_so(block: Any, sentence: str) -> None:
    assert sentence in flat(block).not_understood


# ------------------------------------------------------------------------------------------------ compressed-tensors

TENSOR_GROUP = {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16, "symmetric": True}


@pytest.mark.parametrize(
    ("weights", "inputs", "scheme"),
    [
        (TENSOR_GROUP, TENSOR_GROUP, (Format.NVFP4, 16, True)),
        (TENSOR_GROUP, None, (Format.NVFP4_A16, 16, False)),
        ({"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32}, None, (Format.MXFP4, 32, False)),
        ({"num_bits": 8, "type": "float", "strategy": "tensor"}, FLOAT8, (Format.FP8, None, True)),
        ({"num_bits": 8, "type": "float", "strategy": "channel"}, FLOAT8, (Format.FP8_CHANNEL, None, True)),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]},
            FLOAT8,
            (Format.FP8_BLOCK, None, True),
        ),
        ({"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32}, FLOAT8, (Format.MXFP8, 32, True)),
        ({"num_bits": 8, "type": "float"}, FLOAT8, (Format.FP8, None, True)),
        ({"num_bits": 8, "type": "float", "group_size": -1}, FLOAT8, (Format.FP8_CHANNEL, -1, True)),
        ({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}, None, (Format.INT4, 128, False)),
        ({"num_bits": 8, "type": "int", "strategy": "channel"}, {"num_bits": 8}, (Format.INT8, None, True)),
    ],
)
def test_a_compressed_tensors_group_has_its_format(
    weights: Any, inputs: Any, scheme: tuple[Format, int | None, bool]
) -> None:
    found = compressed(weights, inputs, format="some-format")
    assert found.scheme is not None
    assert (found.scheme.format, found.scheme.group_size, found.scheme.activations_quantized) == scheme
    assert (found.algo, found.scheme.algo, found.exclude_key) == ("some-format", "some-format", "ignore")
    assert found.not_understood == ()


@pytest.mark.parametrize(
    ("weights", "inputs", "block", "sentence"),
    [
        (
            {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 64},
            None,
            {},
            "weights of (type, bits, strategy, group size) not known here: (float, 4, group, 64)",
        ),
        (
            {"num_bits": 3, "type": "int", "strategy": "channel"},
            None,
            {},
            "weights of (type, bits, strategy, group size) not known here: (int, 3, channel, null)",
        ),
        (
            {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [64, 64]},
            None,
            {},
            "weights in blocks other than 128 x 128: [64, 64]",
        ),
        (TENSOR_GROUP, FLOAT8, {}, 'NVFP4 weights with activations of another kind: "group_0"'),
        (TENSOR_GROUP, None, {"transform_config": {"a": 1}}, "transform_config is not empty, and is not read here"),
        (TENSOR_GROUP, None, {"config_groups": None}, "there are no config_groups"),
        (
            TENSOR_GROUP,
            None,
            {"config_groups": {"NVFP4A16": ["Linear"]}},
            'config groups that name a preset instead of a scheme: "NVFP4A16"',
        ),
    ],
)
def test_a_compressed_tensors_block_says_what_is_odd(
    weights: Any, inputs: Any, block: Mapping[str, Any], sentence: str
) -> None:
    assert sentence in compressed(weights, inputs, **block).not_understood


def test_groups_with_formats_of_their_own_stay_apart() -> None:
    found = flat(
        {
            "quant_method": "compressed-tensors",
            "format": "mixed-precision",
            "config_groups": {
                "group_0": {"format": "nvfp4-pack-quantized", "weights": TENSOR_GROUP, "targets": ["Linear"]},
                "group_mtp": {
                    "format": "pack-quantized",
                    "weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32},
                    "targets": ["re:.*mtp\\..*proj$"],
                },
                "kv": {"weights": None, "targets": ["LlamaAttention"]},
            },
            "ignore": ["lm_head", "re:.*visual.*"],
        }
    )
    assert found.scheme is None
    assert [(group.targets, group.scheme) for group in found.groups] == [
        (("Linear",), Scheme(Format.NVFP4_A16, "nvfp4-pack-quantized", 16)),
        (("re:.*mtp\\..*proj$",), Scheme(Format.INT4, "pack-quantized", 32)),
        (("LlamaAttention",), Scheme(Format.BF16, "mixed-precision")),
    ]
    assert found.excludes == ("lm_head", "re:.*visual.*")
    assert found.not_understood == ()


# ------------------------------------------------------------------------------------------------ other methods


@pytest.mark.parametrize(
    ("block", "scheme", "key", "excludes"),
    [
        (
            {"quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [128, 128]},
            Scheme(Format.FP8_BLOCK, "fp8", activations_quantized=True),
            "modules_to_not_convert",
            (),
        ),
        (
            {"quant_method": "fp8", "activation_scheme": "static", "modules_to_not_convert": ["a"]},
            Scheme(Format.FP8, "fp8", activations_quantized=True),
            "modules_to_not_convert",
            ("a",),
        ),
        (
            {
                "quant_method": "fp8",
                "activation_scheme": "dynamic",
                "ignored_layers": ["b"],
                "modules_to_not_convert": ["a"],
            },
            Scheme(Format.FP8, "fp8", activations_quantized=True),
            "ignored_layers",
            ("b",),
        ),
        (
            {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
            Scheme(Format.MXFP4, "mxfp4", 32),
            "modules_to_not_convert",
            ("model.layers.*.self_attn", "lm_head"),
        ),
        (
            {"quant_method": "mxfp8", "ignored_layers": ["lm_head"]},
            Scheme(Format.MXFP8, "mxfp8", 32, activations_quantized=True),
            "ignored_layers",
            ("lm_head",),
        ),
        (
            {
                "quant_method": "quark",
                "exclude": ["re:model.layers.61.*", "lm_head"],
                "global_quant_config": {
                    "weight": {"dtype": "fp4", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"},
                    "input_tensors": {"dtype": "fp4", "is_dynamic": True},
                },
            },
            Scheme(Format.MXFP4, "quark", 32, activations_quantized=True),
            "exclude",
            ("re:model.layers.61.*", "lm_head"),
        ),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"-:.*mtp.*": {}}},
            Scheme(Format.INT4, "gptq", 128),
            "dynamic",
            ("-:.*mtp.*",),
        ),
        (
            {"quant_method": "awq", "w_bit": 4, "q_group_size": 64, "modules_to_not_convert": ["visual"]},
            Scheme(Format.INT4, "awq", 64),
            "modules_to_not_convert",
            ("visual",),
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "group_size": 32, "extra_config": {"lm_head": {"bits": 16}}},
            Scheme(Format.INT4, "auto-round", 32),
            "extra_config",
            ("lm_head",),
        ),
        (
            {"quant_method": "auto-round", "bits": 4, "data_type": "nv_fp", "act_bits": 4, "group_size": 16},
            Scheme(Format.NVFP4, "auto-round", 16, activations_quantized=True),
            "extra_config",
            (),
        ),
        (
            {"quant_method": "auto-round", "bits": 8, "data_type": "fp8", "act_bits": 8, "group_size": [128, 128]},
            Scheme(Format.FP8_BLOCK, "auto-round", None, activations_quantized=True),
            "extra_config",
            (),
        ),
    ],
)
def test_the_other_methods(block: Any, scheme: Scheme, key: str, excludes: tuple[str, ...]) -> None:
    found = flat(block)
    assert (found.scheme, found.exclude_key, found.excludes) == (scheme, key, excludes)
    assert found.not_understood == ()


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        ({"dtype": "fp8_e4m3", "qscheme": "per_tensor"}, Format.FP8),
        ({"dtype": "fp8_e4m3", "qscheme": "per_channel"}, Format.FP8_CHANNEL),
        ({"dtype": "fp8_e4m3", "qscheme": "per_block", "block_size": [128, 128]}, Format.FP8_BLOCK),
        ({"dtype": "fp8_e4m3", "qscheme": "per_group", "group_size": 32, "scale_format": "e8m0"}, Format.MXFP8),
        ({"dtype": "int4", "qscheme": "per_group", "group_size": 128}, Format.INT4),
        ({"dtype": "int8", "qscheme": "per_channel"}, Format.INT8),
        (
            [
                {"dtype": "fp4", "qscheme": "per_group", "group_size": 16},
                {"dtype": "fp8_e4m3", "qscheme": "per_tensor"},
            ],
            Format.NVFP4_A16,
        ),
        (None, Format.BF16),
    ],
)
def test_quark_sets_layers_and_types_apart(weight: Any, expected: Format) -> None:
    scheme = {"weight": weight}
    found = flat(
        {"quant_method": "quark", "layer_quant_config": {"*.q": scheme}, "layer_type_quant_config": {"Linear": scheme}}
    )
    assert found.layers["*.q"].format is expected
    assert [(group.targets, group.scheme.format) for group in found.groups] == [(("Linear",), expected)]
    assert found.not_understood == ()


def test_quark_weights_nobody_knows_are_named() -> None:
    found = flat({"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp6", "qscheme": "x"}}})
    assert found.not_understood == ("Quark weights of a kind not known here: fp6 x",)


def test_quark_keeps_the_cache_in_a_layer() -> None:
    outputs = {"weight": None, "output_tensors": {"dtype": "fp8_e4m3"}}
    block = {
        "quant_method": "quark",
        "layer_quant_config": {"*k_proj": outputs},
        "export": {"kv_cache_group": ["*k_proj"]},
    }
    assert flat(block).kv_cache == "FP8"


def test_allow_lists_are_groups() -> None:
    blocks = flat({"quant_method": "auto-round", "bits": 4, "block_name_to_quantize": "model.layers,mtp.layers"})
    assert blocks.groups[0].targets == ("model.layers", "mtp.layers")
    gptq = flat({"quant_method": "gptq", "bits": 8, "modules_in_block_to_quantize": [["q", "k"], ["v"]]})
    assert gptq.groups[0].targets == ("q", "k", "v")


def test_gptq_and_auto_round_set_layers_apart() -> None:
    gptq = flat({"quant_method": "gptq", "bits": 4, "group_size": 128, "dynamic": {"+:.*down.*": {"bits": 8}}})
    assert gptq.layers == {"+:.*down.*": Scheme(Format.INT8, "gptq", 128)}
    rounded = flat({"quant_method": "auto-round", "bits": 4, "group_size": 128, "extra_config": {"x": {"bits": 8}}})
    assert rounded.layers == {"x": Scheme(Format.INT8, "auto-round", 128)}


def test_deepseek_v4_experts_are_not_passed_over() -> None:
    found = flat({"quant_method": "fp8", "activation_scheme": "dynamic", "moe_quant_algo": "NVFP4"})
    assert found.not_understood == ('moe_quant_algo sets some modules apart, and is not read here: "NVFP4"',)


def test_other_block_sizes_than_128_are_unknown() -> None:
    found = flat({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [1, 32]})
    assert found.scheme is not None
    assert found.scheme.format is Format.UNKNOWN
    assert found.not_understood == ("weight_block_size is not [128, 128]: [1, 32]",)


# ------------------------------------------------------------------------------------------------ differences


def differences(block: Mapping[str, Any], file: Mapping[str, Any]) -> tuple[str, ...]:
    return declared_scheme_differences(*read_declarations({"quantization_config": block}, file))


def test_two_spellings_of_one_declaration_agree() -> None:
    assert differences(NVFP4_BLOCK, NVFP4_FILE) == ()


def with_quantization(**changes: Any) -> dict[str, Any]:
    return {**NVFP4_FILE, "quantization": {**NVFP4_FILE["quantization"], **changes}}


@pytest.mark.parametrize(
    ("block", "file", "sentences"),
    [
        ({}, with_quantization(quant_algo="FP8"), ["config.json says NVFP4, hf_quant_config.json says FP8"]),
        ({}, with_quantization(quant_algo="nvfp4"), []),
        ({}, with_quantization(group_size=32), ["config.json has groups of 16, hf_quant_config.json groups of 32"]),
        (
            {},
            with_quantization(kv_cache_quant_algo=None),
            ["for the KV cache config.json says FP8, hf_quant_config.json says nothing"],
        ),
        (
            {"ignore": ["lm_head", "mtp.layers.0*", "mtp.fc", "mtp.fc"]},
            NVFP4_FILE,
            ["config.json excludes 1 name that hf_quant_config.json does not: mtp.fc"],
        ),
        (
            {"ignore": ["lm_head"]},
            with_quantization(exclude_modules=["lm_head", *(f"model.layers.{n}.self_attn*" for n in range(61))]),
            ["hf_quant_config.json excludes 61 names that config.json does not: model.layers.{0..60}.self_attn* (61)"],
        ),
        (
            {"config_groups": {"group_0": {"weights": FLOAT4, "targets": ["Linear"]}}},
            NVFP4_FILE,
            ["config.json declares nvfp4_a16, hf_quant_config.json declares nvfp4"],
        ),
    ],
)
def test_disagreements_are_told(block: Mapping[str, Any], file: Mapping[str, Any], sentences: list[str]) -> None:
    assert list(differences({**NVFP4_BLOCK, **block}, file)) == sentences


def test_layers_that_disagree_are_told() -> None:
    one = {f"l.{n}.up": {"quant_algo": "FP8"} for n in range(4)}
    other = {f"l.{n}.up": {"quant_algo": "NVFP4" if n else "FP8", "group_size": 16} for n in range(3)}
    mixed = {"quant_algo": "MIXED_PRECISION"}
    block = {"quant_method": "modelopt", "quantized_layers": one, "ignore": [], **mixed}
    assert differences(block, {"quantization": {"quantized_layers": other, **mixed}}) == (
        "config.json lists 1 name that hf_quant_config.json does not: l.3.up",
        "config.json and hf_quant_config.json give 2 layers different schemes, such as FP8 and NVFP4: l.{1,2}.up (2)",
    )


def test_another_method_and_other_groups_are_told() -> None:
    block = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": []}
    group = {"weights": TENSOR_GROUP, "input_activations": None, "targets": ["Linear"]}
    config = {
        "quantization_config": {**block, "config_groups": {"group_0": group}},
        "text_config": {"quantization_config": {**block, "config_groups": {"g": {**group, "targets": ["re:.*"]}}}},
    }
    top, text, file = read_declarations(config, NVFP4_FILE)
    assert declared_scheme_differences(top, text) == (
        "config.json and config.json text_config.quantization_config have different config groups",
    )
    assert declared_scheme_differences(top, file)[0] == (
        "config.json is a compressed-tensors block, hf_quant_config.json a modelopt block"
    )


# ------------------------------------------------------------------------------------------------ size, any input


def test_tens_of_thousands_of_layers_take_little_time() -> None:
    layers = {
        f"backbone.layers.{layer}.mixer.experts.{expert}.{name}_proj": {"quant_algo": "NVFP4", "group_size": 16}
        for layer in range(40)
        for expert in range(512)
        for name in ("up", "down")
    }
    group = {"input_activations": FLOAT4, "weights": FLOAT4, "targets": list(layers)}
    shared = {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}
    block = {"quant_method": "modelopt", "config_groups": {"group_0": group}, "ignore": [], **shared}
    start = time.process_time()
    top, file = read_declarations({"quantization_config": block}, {"quantization": {**shared}})
    assert declared_scheme_differences(top, file) == ()
    assert time.process_time() - start < 0.3
    assert len(top.layers) == len(file.layers) == 40_960
    assert len({id(scheme) for scheme in top.layers.values()}) == 1


KEYS = st.sampled_from(
    [
        *("quantization_config", "text_config", "quantization", "quant_method", "quant_algo", "ignore", "producer"),
        *(
            "exclude_modules",
            "kv_cache_scheme",
            "kv_cache_quant_algo",
            "config_groups",
            "quantized_layers",
            "group_size",
        ),
        *("format", "weights", "targets", "input_activations", "num_bits", "type", "strategy", "block_structure"),
        *("weight_block_size", "activation_scheme", "ignored_layers", "modules_to_not_convert", "exclude", "export"),
        *("global_quant_config", "layer_quant_config", "layer_type_quant_config", "kv_cache_group", "weight", "dtype"),
        *("input_tensors", "output_tensors", "qscheme", "scale_format", "extra_config", "block_name_to_quantize"),
        *("bits", "data_type", "act_bits", "dynamic", "modules_in_block_to_quantize", "-:x", "store_dtype", "x"),
    ]
)
METHODS = ["modelopt", "compressed-tensors", "fp8", "mxfp4", "mxfp8", "quark", "auto-round", "gptq", "awq", "hqq"]
WORDS = st.sampled_from(
    [
        *(*METHODS, "NVFP4", "FP8", "MIXED_PRECISION", "float", "int", "tensor_group", "group", "channel", "fp4"),
        *("fp8_e4m3", "per_group", "e8m0", "nv_fp", "16", "-1", "lm_head", "\x1b[31m", "\ud800"),
    ]
)
SCALARS = st.one_of(
    *(st.none(), st.booleans(), WORDS, st.floats(), st.text(max_size=3)),
    st.sampled_from([0, 4, 8, 16, 32, 128, -1, 10**30]),
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
BLOCKS = st.dictionaries(KEYS, JSON, max_size=6)


@settings(max_examples=100, deadline=None)
@given(BLOCKS, BLOCKS, st.sampled_from(METHODS), st.none() | BLOCKS)
def test_no_json_raises(config: Any, block: Any, method: str, file: Any) -> None:
    declarations = read_declarations(
        {
            **config,
            "quantization_config": {**block, "quant_method": method},
            "text_config": {"quantization_config": block},
        },
        file,
    )
    for one in declarations:
        assert all(isinstance(name, str) for name in one.excludes)
        assert all(len(sentence) < 400 for sentence in one.not_understood)
        assert all(sentence.isprintable() for sentence in one.not_understood)
        for other in declarations:
            assert len(declared_scheme_differences(one, other)) <= 9
        assert declared_scheme_differences(one, one) == ()
