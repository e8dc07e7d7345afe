"""Which block SGLang obeys, as which method, and how it refuses one: ours against the engine's own code."""

from __future__ import annotations

import glob
import inspect
import json
import os
from collections.abc import Mapping
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from mtpfix.checkpoint.quant import read_declarations
from mtpfix.engines import load
from mtpfix.engines.resolve import resolve
from tests.conformance.test_resolving import cases
from tests.conformance.wheels import cut, outcome, read_source, releases

pytestmark = pytest.mark.conformance

VERSIONS = releases("sglang")
CASES = 10_000
CLASSES = {
    "modelopt": "ModelOptFp8Config",  # as srt/layers/quantization/__init__.py has it
    "modelopt_fp8": "ModelOptFp8Config",
    "modelopt_fp4": "ModelOptFp4Config",
    "modelopt_mixed": "ModelOptMixedPrecisionConfig",
}
METHODS = {name: method for method, name in CLASSES.items()}
"""What a block is read as, whatever it is called: `modelopt` and `modelopt_fp8` have one class."""

ARCHITECTURES = ("NemotronHForCausalLM", "DeepseekV3ForCausalLM")


class Configuration:
    """Stands for the configuration that transformers makes of config.json."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def to_dict(self) -> dict[str, Any]:
        """Return what it was made of."""
        return dict(self.__dict__)


class Other:
    """Stands for the class of a method that is not ModelOpt's."""

    @classmethod
    def override_quantization_method(cls, *_: Any) -> None:
        """Take no block for its own."""

    @classmethod
    def from_config(cls, _config: Any) -> None:
        """Accept every block."""

    @classmethod
    def get_config_filenames(cls) -> list[str]:
        """Have no file of its own."""
        return []


class Marlin(Other):
    """Stands for the class that takes GPTQ's blocks for its own where its kernels can: where a GPU is there."""

    @classmethod
    def override_quantization_method(cls, block: Any, *_: Any) -> str | None:  # type: ignore[override]
        """Take GPTQ's blocks."""
        return "gptq_marlin" if block.get("quant_method") == "gptq" else None


@lru_cache(maxsize=32)
def engine_code(version: str) -> dict[str, Any]:
    """Return the engine's choice of a method, its reader of a block, and the classes of the methods."""
    given = {"os": os, "glob": glob, "json": json, "Path": Path, "Mapping": Mapping, "deepcopy": deepcopy}
    given |= {"PretrainedConfig": Configuration, "REQUANTIZATION_METHODS": ["quark_mxfp4"], "is_hip": lambda: False}
    given |= {"CheckpointQuantSpec": SimpleNamespace}
    base = "srt/layers/quantization"
    root = cut(read_source("sglang", version, f"{base}/base_config.py"), ("QuantizationConfig",), given)
    names = ("canonicalize_modelopt_quant_algo", "ModelOptQuantConfig", *CLASSES.values())
    made = cut(read_source("sglang", version, f"{base}/modelopt_quant.py"), names, {**given, **root})
    known = load("sglang").fact("methods", version)[0]
    classes = {method: made.get(CLASSES.get(method, ""), Other) for method in known} | {"gptq_marlin": Marlin}
    methods = ("_parse_quant_hf_config", "_parse_modelopt_quant_config", "_verify_quantization")
    wanted = (*methods, "_find_quant_modelslim_config")
    helpers = ("_quant_config_to_dict", "unwrap_modelopt_quantization_config")
    model = cut(
        read_source("sglang", version, "srt/configs/model_config.py"),
        (*helpers, *(f"ModelConfig.{name}" for name in wanted)),
        {**given, "QUANTIZATION_METHODS": classes},
    )
    if "_find_quant_modelslim_config" not in model:
        model["_find_quant_modelslim_config"] = lambda _self: None
    chosen = cut(
        read_source("sglang", version, "srt/model_loader/checkpoint_quantization.py"),
        (
            *("resolve_checkpoint_quant_spec", "_select_hf_quant_metadata"),
            *("_as_config_mapping", "_get_field", "_to_metadata_dict"),
        ),
        given,
    )
    reading = {"get_quantization_config": lambda method: classes[method], **chosen, **given, **made}
    text = read_source("sglang", version, "srt/model_loader/weight_utils.py")
    read = cut(
        text,
        ("_modelopt_quant_section", "_resolve_explicit_draft_quant_config", "get_quant_config"),
        {
            **reading,
            "_quark_draft_online_quant_config": lambda *_: None,
        },
    )
    return {"kind": type("ModelConfig", (), {name: model[name] for name in wanted}), "read": read["get_quant_config"]}


def engine_answer(version: str, folder: Path, config: dict[str, Any]) -> tuple[str | None, Any]:
    """Return the method and the configuration object, as the engine's own functions give them, or raise."""
    code = engine_code(version)
    values = deepcopy(config)
    if "text_config" in values:
        values["text_config"] = Configuration(**values["text_config"])
    model = code["kind"]()
    model.__dict__.update(
        hf_config=Configuration(**values), hf_text_config=None, model_path=str(folder), revision=None, quantization=None
    )
    model.__dict__.update(is_draft_model=False, is_draft_quantization_explicit=False, quantization_config=None)
    model.__dict__.update(speculative_draft_model_quantization=None)
    model._verify_quantization()
    if model.quantization is None:
        return None, None
    options = inspect.signature(code["read"]).parameters
    more = [None] if "remap_prefix" in options else []
    return model.quantization, code["read"](model, SimpleNamespace(model_loader_extra_config=None), {}, *more)


@pytest.mark.parametrize("version", VERSIONS)
def test_declarations_resolve_alike(version: str, tmp_path: Path) -> None:
    engine = load("sglang")
    compared = refused = listed = 0
    other_file = tmp_path / "hf_quant_config.json"
    for number, (config, other) in enumerate(cases(f"sglang declarations {version}", CASES)):
        architecture = ARCHITECTURES[number % 2]
        config["architectures"] = [architecture]
        if other is not None:
            other_file.write_text(json.dumps(other))
        else:
            other_file.unlink(missing_ok=True)
        kind, value = outcome(engine_answer, version, tmp_path, config)
        if kind not in ("ok", "ValueError"):
            continue  # a type the engine stumbles over: AttributeError, TypeError
        ours = resolve(read_declarations(config, other), engine, version, architecture)
        shown = (version, config, other, ours, kind, value)
        compared += 1
        if kind == "ValueError":
            refused += 1
            assert ours.error == (kind, value), shown
            continue
        method, built = value
        assert ours.error is None, shown
        made = METHODS.get(type(built).__name__, method)
        if isinstance(built, MagicMock):
            assert not ours.simulated, shown
            continue
        assert (ours.method or "") == (made or ""), shown
        if hasattr(built, "exclude_modules") and ours.simulated:
            listed += 1
            assert list(ours.excludes) == list(built.exclude_modules or ()), shown
            if hasattr(built, "quantized_layers"):
                assert list(ours.layers) == list(built.quantized_layers), shown
    assert compared > CASES / 2
    assert refused > CASES / 50
    assert listed > CASES / 50
