"""Which block an engine obeys, as which method, and how it refuses one: ours against the engine's own code."""

from __future__ import annotations

import glob
import json
import os
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, get_args

import pytest

from mtpfix.checkpoint.quant import read_declarations
from mtpfix.engines import load
from mtpfix.engines.resolve import resolve
from mtpfix.engines.resolved import SIMULATED
from tests.conformance.wheels import cut, outcome, read_source, releases

pytestmark = pytest.mark.conformance

QUANTIZATION = "model_executor/layers/quantization"
VERSIONS = releases("vllm")
CASES = 10_000
NOTHING = object()

_CLASSES = {
    "modelopt": "ModelOptFp8Config",
    "modelopt_fp4": "ModelOptNvFp4Config",
    "modelopt_mxfp8": "ModelOptMxFp8Config",
    "modelopt_mixed": "ModelOptMixedPrecisionConfig",
}
_CONSTANTS = ("LINEAR_ALGOS", "QUANT_ALGOS", "_BLOCK_FP8_MOE_ALGOS")
_ALGOS = (
    *("NVFP4", "NVFP4", "FP8", "W4A16_NVFP4", "MIXED_PRECISION", "MXFP8", "FP8_PB_WO", "FP8_PER_CHANNEL_PER_TOKEN"),
    *("nvfp4", "fp8_pb_wo", "NVFP4_AWQ", "W4A8_AWQ", "", None, NOTHING),
)
_METHODS = (
    *("modelopt", "modelopt", "modelopt", "modelopt_fp4", "ModelOpt", "modelopt_mixed", "modelopt_mxfp8", NOTHING),
    *("fp8", "compressed-tensors", "compressed_tensors", "gptq", "auto-round", "exl9"),
)


def table(**values: Any) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not NOTHING}


def a_block(chance: random.Random) -> dict[str, Any]:
    """Return a block in one of the forms found in files, often with something missing or of the wrong type."""
    usual = chance.random() < 0.6
    excludes = ["lm_head", "mtp*"] if usual else chance.choice((["lm_head"], [], None, "lm_head", NOTHING))
    inner = table(
        quant_algo=chance.choice(_ALGOS),
        group_size=16 if usual else chance.choice((16, "16", "x", None, [1], NOTHING)),
        kv_cache_quant_algo="FP8" if usual else chance.choice(("FP8", None, 8, NOTHING)),
        quantized_layers=chance.choice((NOTHING, NOTHING, {}, {"a.q_proj": {"quant_algo": "NVFP4"}, "b": {}})),
    )
    producer = chance.choice(({"name": "modelopt", "version": "0.39"}, {"name": "other"}, NOTHING))
    method = chance.choice(_METHODS)
    if method == "fp8":
        return table(
            quant_method=method,
            activation_scheme=chance.choice(("dynamic", "static", "other", NOTHING)),
            weight_block_size=chance.choice(([128, 128], [128], None, NOTHING)),
            ignored_layers=chance.choice((["lm_head"], [], NOTHING)),
            modules_to_not_convert=chance.choice((["mtp.fc"], NOTHING)),
        )
    if chance.random() < 0.5:
        nested = "none" if chance.random() < 0.03 else {**inner, **table(exclude_modules=excludes)}
        if isinstance(nested, dict) and chance.random() < 0.1:
            nested["modelopt_quant_config"] = {}
        return table(producer=producer, quantization=nested, quant_method=chance.choice((method, NOTHING)))
    groups = {"group_0": table(targets=["Linear"], weights={}, input_activations=chance.choice((None, {}, NOTHING)))}
    return table(
        producer=producer,
        quant_method=method,
        ignore=excludes,
        kv_cache_scheme=chance.choice((NOTHING, {"type": "float", "num_bits": 8})),
        config_groups={} if str(method).startswith("compressed") else chance.choice((NOTHING, groups)),
        **inner,
    )


def cases(seed: str, count: int = CASES) -> Iterator[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Yield config.json and hf_quant_config.json, or None for the latter."""
    chance = random.Random(seed)  # noqa: S311 - repeatable cases, no secrets
    for _ in range(count):
        config: dict[str, Any] = {"architectures": ["X"]}
        if chance.random() < 0.75:
            config["quantization_config"] = a_block(chance) if chance.random() < 0.95 else None
        if chance.random() < 0.2:
            config["text_config"] = {"quantization_config": a_block(chance)}
        if chance.random() < 0.05:
            config["compression_config"] = a_block(chance)
        yield config, a_block(chance) if chance.random() < 0.4 else None


@lru_cache(maxsize=32)
def engine_code(version: str) -> dict[str, Any]:
    base = cut(read_source("vllm", version, f"{QUANTIZATION}/base_config.py"), ("QuantizationConfig",), {})
    modelopt = cut(
        read_source("vllm", version, f"{QUANTIZATION}/modelopt.py"),
        (*_CONSTANTS, "algos_owned_by", "ModelOptQuantConfigBase", *_CLASSES.values()),
        {**base, "B12X_BLOCK_CODECS": {}, "cast": lambda _, value: value},
    )
    fp8 = cut(read_source("vllm", version, f"{QUANTIZATION}/fp8.py"), ("ACTIVATION_SCHEMES", "Fp8Config"), base)
    convertor = read_source("vllm", version, "transformers_utils/model_arch_config_convertor.py")
    normalize = cut(convertor, ("ModelArchConfigConvertorBase._normalize_quantization_config",), {}) or cut(
        read_source("vllm", version, "config/model.py"), ("ModelConfig._parse_quant_hf_config",), {}
    )
    classes = {method: modelopt[name] for method, name in _CLASSES.items() if name in modelopt}
    classes |= {"fp8": fp8["Fp8Config"]}
    package = read_source("vllm", version, f"{QUANTIZATION}/__init__.py")
    literal = cut(package, ("QuantizationMethods",), {"Literal": Literal})
    given = {"os": os, "glob": glob, "json": json, "get_quantization_config": lambda method: classes[method]}
    given["maybe_download_from_modelscope"] = lambda *_, **__: None
    text = read_source("vllm", version, "model_executor/model_loader/weight_utils.py")
    loader = cut(text, ("get_quant_config",), given)
    methods = list(get_args(literal["QuantizationMethods"]))
    return {"classes": classes, "methods": methods, "normalize": next(iter(normalize.values())), **loader}


def engine_answer(
    version: str, folder: Path, config: dict[str, Any], other: dict[str, Any] | None
) -> tuple[str | None, Any]:
    """Return the method and the configuration object, as the engine's own functions give them, or raise."""
    code = engine_code(version)
    config = json.loads(json.dumps(config))
    attached = config.get("quantization_config")  # as get_config does: the first file, else the second
    if attached is None and other is not None:
        attached = json.loads(json.dumps(other))
    text = SimpleNamespace(**config["text_config"]) if "text_config" in config else None
    whole = SimpleNamespace(quantization_config=attached, text_config=text)
    if "compression_config" in config:
        whole.compression_config = config["compression_config"]
    block = code["normalize"](None, whole)
    if block is None and text is not None:
        block = code["normalize"](None, text)
    if block is None:
        return None, None
    named = block.get("quant_method", "").lower().replace("compressed_tensors", "compressed-tensors")
    block["quant_method"] = named
    method = named
    for kind in code["classes"].values():
        found = kind.override_quantization_method(block, None)
        if found is not None:
            method = found
            break
    if method == "auto-round" and "inc" in code["methods"] and method not in code["methods"]:
        method = "inc"
    if method and method not in code["methods"]:
        message = f"Unknown quantization method: {method}. Must be one of {code['methods']}."  # config/model.py
        raise ValueError(message)
    if method not in code["classes"]:
        return method or None, None
    model = SimpleNamespace(quantization=method, hf_config=whole, model=str(folder), revision=None)
    model.__dict__.update(hf_overrides={}, quantization_config=None)
    return method, code["get_quant_config"](model, SimpleNamespace(download_dir=None))


@pytest.mark.parametrize("version", VERSIONS)
def test_declarations_resolve_alike(version: str, tmp_path: Path) -> None:
    engine = load("vllm")
    compared = refused = 0
    other_file = tmp_path / "hf_quant_config.json"
    for config, other in cases(f"declarations {version}"):
        if other is not None:
            other_file.write_text(json.dumps(other))
        else:
            other_file.unlink(missing_ok=True)
        kind, value = outcome(engine_answer, version, tmp_path, config, other)
        if kind not in ("ok", "ValueError"):
            continue  # a type the engine stumbles over: AttributeError, TypeError
        if kind == "ok" and value[0] == "gptq":
            continue  # has checks and classes of its own: test_gptq.py
        ours = resolve(read_declarations(config, other), engine, version)
        shown = (version, config, other, ours, kind, value)
        compared += 1
        if kind == "ValueError":
            refused += 1
            assert ours.error == (kind, re.sub(r"name='[^']*'", "name='hf_quant_config.json'", value)), shown
            continue
        method, built = value
        assert ours.error is None, shown
        assert ours.method == method, shown
        if built is not None and method in SIMULATED and ours.simulated:
            listed = built.ignored_layers if method == "fp8" else built.exclude_modules
            assert list(ours.excludes) == list(listed or ()), shown
            if hasattr(built, "quantized_layers"):
                assert list(ours.layers) == list(built.quantized_layers), shown
            if hasattr(built, "quant_method") and method != "modelopt_mxfp8":
                assert ours.algo == built.quant_method, shown
    assert compared > CASES / 2
    assert refused > CASES / 20
