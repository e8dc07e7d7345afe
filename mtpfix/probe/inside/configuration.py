"""Classes for configurations that only a checkpoint's own code could read: that code is never run.

A stand-in holds the keys of config.json as they are, and nothing more. What a class of the checkpoint would have
computed is missing from it, so an error that names one says nothing of the checkpoint.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from .patches import note

STAND_INS: set[str] = set()
"""Names of the stand-in classes that were made."""

DERIVED: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "nemotron_h": {
        "layers_block_type": (
            "hybrid_override_pattern",
            {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"},
        ),
    },
}
"""By model type: attributes that published classes make of the letters of a text, and what each letter stands for."""

LAYERED: dict[str, dict[str, Any]] = {
    "nemotron_h_puzzle": {
        "arrays": {"block_configs": "hybrid_override_pattern", "mtp_block_configs": "mtp_hybrid_override_pattern"},
        "letters": {"mamba": "M", "moe": "E", "attention": "*", "mlp": "-"},
        "most": {"mtp_n_routed_experts": ("mtp_block_configs", "n_routed_experts")},
        "method": "get_nemotron_h_config_for_layer",
    },
}
"""By model type: arrays with the keys of each layer, those of a branch last, and what published classes make of them.

`arrays` names the text that each becomes, by the letter of each `block_type`; `most` are attributes that are the
highest value of a key in an array; `method` returns the configuration with the keys of one layer in place of its own.
"""

ARCHITECTURES: dict[str, dict[str, str]] = {"step3p7": {"text_config": "Step3p5ForCausalLM"}}
"""By model type: inner configurations, and the architecture that published classes give them."""

RENAMED = {
    name: {"llm_config": "text_config"}
    for name in ("nemotron_h_omni", "NemotronH_Omni_Reasoning_V3", "NemotronH_Super_Omni_Reasoning_V3")
}
"""By model type: inner configurations that published classes call otherwise than config.json does."""

INNER: dict[str, tuple[str, ...]] = {"nemotron_parse": ("decoder", "encoder")}
"""By model type: keys of inner configurations that do not say so in their name; the first is the decoder's."""

AS_WRITTEN = ("layer_types",)
"""Arrays that stay as long as they are written, also where the inner class cuts them off."""


def make_class(model_type: str, own: Callable[[str], Any]) -> type:
    """Return a configuration class for a model type; `own` finds the engine's class of an inner one, or None."""
    from transformers import PretrainedConfig

    derived, layered = DERIVED.get(model_type, {}), LAYERED.get(model_type, {})

    def initialise(self: Any, **named: Any) -> None:
        inner = {}
        for key, value in list(named.items()):
            inside = (key.endswith("_config") and "quant" not in key) or key in INNER.get(model_type, ())
            if inside and isinstance(value, dict):
                named_there = ARCHITECTURES.get(model_type, {}).get(key)
                inner[key] = inner_of({"architectures": [named_there], **value} if named_there else value, own)
                for one in (name for name in AS_WRITTEN if name in value):
                    setattr(inner[key], one, value[one])
                del named[key]
        for name, (source, letters) in derived.items():
            if name not in named and isinstance(named.get(source), str):
                named[name] = [letters.get(letter, letter) for letter in named[source]]
        if layered:
            named |= of_blocks(named, layered)
        for key, value in inner.items():
            setattr(self, RENAMED.get(model_type, {}).get(key, key), value)
        PretrainedConfig.__init__(self, **named)

    def get_text_config(self: Any, *_: Any, **__: Any) -> Any:
        return getattr(self, next(iter(INNER.get(model_type, ())), "text_config"), self)

    def of_layer(self: Any, index: int) -> Any:
        found = copy.copy(self)
        every = [block for array in layered["arrays"] for block in getattr(self, array, None) or ()]
        for key, value in every[index].items():
            setattr(found, key, value)
        return found

    name = "".join(part.capitalize() for part in model_type.replace("-", "_").split("_")) + "StandIn"
    STAND_INS.add(name)
    body = {"__init__": initialise, "get_text_config": get_text_config, "model_type": model_type}
    if layered:
        body[layered["method"]] = of_layer
    return type(name, (PretrainedConfig,), body)


def of_blocks(named: dict[str, Any], layered: dict[str, Any]) -> dict[str, Any]:
    """Return what published classes make of arrays with the keys of each layer."""
    found: dict[str, Any] = {}
    for array, text in layered["arrays"].items():
        if blocks := named.get(array):
            found[text] = "".join(layered["letters"].get(block.get("block_type"), "?") for block in blocks)
    for name, (array, key) in layered["most"].items():
        if blocks := named.get(array):
            found[name] = max(block.get(key, 0) for block in blocks)
    return found


def inner_of(values: dict[str, Any], own: Callable[[str], Any]) -> Any:
    """Return the configuration object of an inner table."""
    model_type = str(values.get("model_type", ""))
    kind = own(model_type) or make_class(model_type or "inner", own)
    return kind(**values)


def register(config: dict[str, Any], own: Callable[[str], Any]) -> None:
    """Put a stand-in for the class that a checkpoint brings, unless the engine has its `own` for that model type.

    Engines prefer a checkpoint's class to the one of transformers, whose attributes may be called otherwise.
    """
    from transformers import AutoConfig

    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type or own(model_type) is not None:
        return
    AutoConfig.register(model_type, make_class(model_type, own), exist_ok=True)
    note(
        f"configuration of {model_type}", "its class is the checkpoint's own code; a stand-in holds config.json's keys"
    )
