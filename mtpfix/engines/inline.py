"""Which quantization block an engine obeys that reads config.json first and the other file only in its absence.

Knows SGLang's order of files and keys, how its method follows from ModelOpt's algorithm, and the texts of its refusals;
what changed between releases is data (`sglang.toml`). Knows no family. Methods whose matching this package does not
have are named, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtpfix.engines.components import refused_entries
from mtpfix.engines.matching import refused_patterns
from mtpfix.engines.resolved import FORMATS, Facts, RefusedError, Resolved
from mtpfix.model import Declaration, Format, Scheme

PREDICTED = frozenset({"compressed-tensors", "modelopt_fp4", "modelopt_fp8", "modelopt_mixed"})
"""Methods whose matching is known here; a checkpoint without any method is predicted as well."""

UNKNOWN_METHOD = "Unknown quantization method: {method}. Must be one of {methods}."
NO_ALGORITHM = (
    "Cannot find 'quant_algo' in the model's quantization config. Expected either flat format (config.json) or nested "
    "format (hf_quant_config.json)."
)
UNSUPPORTED = (
    "ModelOpt currently only supports: {algorithms} quantizations in sglang. Please check the quantization config for "
    "your model's configuration."
)
FIELDS_MISSING = "NVFP4 quantization requires group_size and exclude_modules specified in the quantization config"
NOT_MIXED = "ModelOptMixedPrecisionConfig only supports MIXED_PRECISION checkpoints."
NO_LAYERS = "MIXED_PRECISION quantization requires a non-empty quantized_layers map."
NO_SECTION = "Cannot find any of ['quantization'] in the model's quantization config."
NO_FILE = "Cannot find the config file for {method}"
INVALID = "Invalid quant_config, quantization method: {method},hf architectures: {architecture}. "


def resolve_inline(declarations: Sequence[Declaration], facts: Facts, architecture: str) -> Resolved:
    """Return which declaration an engine obeys, as which method, or the error it refuses it with."""
    top = _at(declarations, "quantization_config")
    judged = top or _at(declarations, "compression_config")
    other = next((one for one in declarations if one.file in facts["quantization_files"][1:]), None)
    named: str | None = None
    try:
        if judged is not None:
            named, written = _method(judged, facts, architecture)
            built = top or _at(declarations, "text_config", "quantization_config") or judged
        elif other is not None:
            named, written = _parsed(_inner(other.raw), facts, architecture), {}
            built = _at(declarations, "text_config", "quantization_config") or other
        else:
            return Resolved(None, None, because=tuple(facts.cited))
        if named is None:
            return Resolved(None, built, because=tuple(facts.cited))
        _check_known(named, facts)
        if built is judged and written:
            built = replace(built, raw={**built.raw, **written})
        return _build(built, other, named, facts, architecture)
    except RefusedError as refused:
        because = tuple(dict.fromkeys((*facts.cited, refused.source)))
        return Resolved(named, judged or other, error=(refused.name, refused.text), because=because)


GPTQ = "gptq_marlin"
"""What becomes of GPTQ where its numbers suit the Marlin kernels: srt/layers/quantization/gptq/gptq.py:414@0.5.23.

Where they do not, some releases refuse it and others run it; neither is predicted.
"""


def _at(declarations: Sequence[Declaration], *path: str) -> Declaration | None:
    return next((one for one in declarations if one.file == "config.json" and one.path == path), None)


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _inner(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the block inside a nested form, else the block itself."""
    nested = raw.get("quantization")
    return nested if isinstance(nested, Mapping) else raw


def _method(block: Declaration, facts: Facts, architecture: str) -> tuple[str, Mapping[str, Any]]:
    """Return the method of a block in config.json: what its algorithm says where it is looked into, else its name.

    With it comes what the engine then writes into the block: a block of the nested form is thereafter read as a flat
    one, in which its lists are not looked for.
    """
    raw = block.raw
    named = raw.get("quant_method")
    if block.path == ("quantization_config",) and ("" if named is None else named) in facts["inline_methods"]:
        inner = _inner(raw) if facts["nested_inline"] else raw
        if (parsed := _parsed(inner, facts, architecture)) is not None:
            return parsed, {"quant_method": parsed, "quant_algo": inner["quant_algo"]}
    method = str(named or "").lower()
    return GPTQ if method == "gptq" and GPTQ in facts["methods"] else method, {}


def _parsed(inner: Mapping[str, Any], facts: Facts, architecture: str) -> str | None:
    """Return the method that ModelOpt's algorithm gives, None where it gives none."""
    algorithm = inner.get("quant_algo")
    if not isinstance(algorithm, str):
        return None
    if algorithm == "MIXED_PRECISION":
        return "modelopt_mixed" if _is_mixed(inner, facts, architecture) else "w4afp8"
    if "FP4" in algorithm:
        return "modelopt_fp4"
    if algorithm == "FP8" or ("FP8" in algorithm and facts["any_fp8"]):
        return "modelopt_fp8"
    return "mxfp8" if algorithm == "MXFP8" and not facts["any_fp8"] else None


def _is_mixed(inner: Mapping[str, Any], facts: Facts, architecture: str) -> bool:
    """Return whether a mixed block is ModelOpt's: never, for some architectures, or where any layer is NVFP4."""
    rule = facts["mixed_when"]
    if rule == "any NVFP4":
        layers = _table(inner.get("quantized_layers")).values()
        return any(str(_table(one).get("quant_algo", "")).upper() in ("NVFP4", "W4A16_NVFP4") for one in layers)
    return isinstance(rule, list) and architecture.startswith(tuple(rule))


def _check_known(method: str, facts: Facts) -> None:
    methods: list[str] = facts["methods"]
    if method not in methods:
        raise facts.refuse("ValueError", UNKNOWN_METHOD.format(method=method, methods=methods), "methods")


def _build(block: Declaration, other: Declaration | None, method: str, facts: Facts, architecture: str) -> Resolved:
    if method == "modelopt_mixed" and block.file == "config.json" and _incomplete(block.raw, facts):
        if other is None:
            raise facts.refuse("ValueError", NO_FILE.format(method=method), "quantization_files")
        block = other
    kind = {"modelopt": "modelopt_fp8"}.get(method, method)
    raw = block.raw
    if (
        method.startswith("modelopt")
        and block.file != "config.json"
        and str(_table(raw.get("producer")).get("name", "")).startswith("modelopt")
    ):
        algorithm = _inner(raw).get("quant_algo")
        if algorithm is None:
            text = INVALID.format(method=method, architecture=architecture)
            raise facts.refuse("ValueError", text, "quantization_files")
        if algorithm == "FP8" or method == "modelopt_fp8":
            kind = "modelopt_fp8"
        elif "FP4" in str(algorithm):
            kind = "modelopt_fp4"
    if kind not in PREDICTED:
        reason = f"the quantization method {method} is not predicted"
        return Resolved(method, block, because=tuple(facts.cited), simulated=False, reason=reason)
    if kind == "compressed-tensors":
        return _compressed(block, facts)
    if kind == "modelopt_mixed":
        return _mixed(block, facts)
    return _fp8(block, facts) if kind == "modelopt_fp8" else _fp4(block, facts)


def _incomplete(raw: Mapping[str, Any], facts: Facts) -> bool:
    """Return whether a mixed block in config.json is passed over for the other file."""
    needed: list[list[str]] = facts["mixed_keys"]
    return any(not any(key in raw for key in keys) for keys in needed)


def _section(
    raw: Mapping[str, Any], facts: Facts, fact: str, refusal: str = NO_ALGORITHM
) -> tuple[Mapping[str, Any], bool]:
    """Return the part of a block that its keys stand in, and whether it is the nested form."""
    if raw.get("quant_algo") is not None:
        return raw, False
    nested = raw.get("quantization")
    if not isinstance(nested, Mapping):
        raise facts.refuse("ValueError", refusal, fact)
    return nested, True


def _fp4(block: Declaration, facts: Facts) -> Resolved:
    if str(block.raw.get("quant_method", "")).lower() == "fp8" and facts["fp8_requantized"]:
        reason = "an fp8 block that is read as modelopt_fp4 is not predicted"
        return Resolved("modelopt_fp4", block, because=tuple(facts.cited), simulated=False, reason=reason)
    inner, nested = _section(block.raw, facts, "modelopt_algorithms")
    if nested and ("quant_algo" not in inner or len(_sizes(block.raw)) != 1):
        raise facts.refuse("ValueError", NO_ALGORITHM, "modelopt_algorithms")
    algorithm = inner.get("quant_algo")
    known: list[str] = facts["modelopt_algorithms"]
    if algorithm not in known:
        raise facts.refuse("ValueError", UNSUPPORTED.format(algorithms=", ".join(known)), "modelopt_algorithms")
    keys: list[str] = ["exclude_modules"] if nested else facts["flat_list_keys"]
    key = next((one for one in keys if one in inner), None)
    if (key is not None and inner[key] is None) or (not nested and _flat_size(inner, facts) is None):
        raise facts.refuse("ValueError", FIELDS_MISSING, "modelopt_algorithms")
    reason = "" if FORMATS.get(algorithm) in (Format.NVFP4, Format.NVFP4_A16) else f"{algorithm} is not predicted here"
    return _uniform(block, facts, "modelopt_fp4", algorithm, key or "", inner, reason)


def _flat_size(inner: Mapping[str, Any], facts: Facts) -> object:
    size = inner.get("group_size")
    if size is None:
        first: object = next(iter(_table(inner.get("config_groups")).values()), {})
        size = _table(_table(first).get("weights")).get("group_size")
    return 16 if size is None and facts["group_size_default"] and "NVFP4" in str(inner.get("quant_algo")) else size


def _sizes(raw: Mapping[str, Any]) -> set[int]:
    """Return every group size that a nested form names."""
    tables = [raw, _table(raw.get("quantization"))]
    for group in _table(raw.get("config_groups")).values():
        tables += [_table(group), *map(_table, _table(group).values())]
    return {size for one in tables if isinstance(size := one.get("group_size"), int)}


def _fp8(block: Declaration, facts: Facts) -> Resolved:
    inner, nested = _section(block.raw, facts, "fp8_refused")
    algorithm = inner.get("quant_algo")
    if algorithm is None:
        raise facts.refuse("ValueError", NO_ALGORITHM.partition("Expected")[0], "fp8_refused")
    if algorithm != "FP8" and not ("FP8" in algorithm and facts["any_fp8"]):
        text = str(facts["fp8_refused"]["text"]).replace("{algo}", repr(algorithm))
        raise facts.refuse("ValueError", text, "fp8_refused")
    return _uniform(block, facts, "modelopt_fp8", "FP8", "exclude_modules" if nested else "ignore", inner, "")


def _mixed(block: Declaration, facts: Facts) -> Resolved:
    inner, nested = _section(block.raw, facts, "mixed_keys", NO_SECTION)
    keys: list[str] = ["exclude_modules"] if nested else facts["mixed_list_keys"]
    if inner.get("quant_algo") != "MIXED_PRECISION":
        raise facts.refuse("ValueError", NOT_MIXED, "mixed_keys")
    layers = _table(inner.get("quantized_layers"))
    if not layers:
        raise facts.refuse("ValueError", NO_LAYERS, "mixed_keys")
    key = next((one for one in keys if one in inner), "")
    excludes = _listed(inner, key)
    algorithms = {name: _text(_table(one).get("quant_algo")) for name, one in layers.items()}
    reason = _unread(inner, key, excludes)
    return Resolved(
        method="modelopt_mixed",
        declaration=block,
        algo="MIXED_PRECISION",
        because=tuple(facts.cited),
        excludes=excludes,
        layers=algorithms,
        simulated=not reason,
        reason=reason,
    )


def _compressed(block: Declaration, facts: Facts) -> Resolved:
    raw = block.raw
    reasons = [f"a {key} is not predicted" for key in ("linear_fp8_config", "sparsity_config") if raw.get(key)]
    formats = {group.scheme.format for group in block.groups}
    known = {Format.NVFP4} if facts["ct_nvfp4"] else set()
    reasons += [f"compressed-tensors with {name} is not predicted" for name in sorted(formats - known)]
    excludes = _listed(raw, "ignore")
    unread = refused_patterns((*excludes, *(name for group in block.groups for name in group.targets)))
    reasons += [f"the pattern {name!r} is not run" for name in unread[:1]]
    return Resolved(
        method="compressed-tensors",
        declaration=block,
        because=tuple(facts.cited),
        excludes=excludes,
        simulated=not reasons,
        reason="; ".join(reasons),
    )


def _uniform(
    block: Declaration, facts: Facts, method: str, algorithm: str, key: str, inner: Mapping[str, Any], reason: str
) -> Resolved:
    excludes = _listed(inner, key)
    reason = _unread(inner, key, excludes) or reason
    built = FORMATS.get(algorithm, Format.UNKNOWN)
    size = inner.get("group_size")
    return Resolved(
        method=method,
        declaration=block,
        algo=algorithm,
        scheme=Scheme(
            format=built,
            algo=algorithm,
            group_size=size if isinstance(size, int) else None,
            activations_quantized=built is not Format.NVFP4_A16,
        ),
        because=tuple(facts.cited),
        excludes=excludes,
        simulated=not reason,
        reason=reason,
    )


def _listed(inner: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = inner.get(key)
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def _unread(inner: Mapping[str, Any], key: str, excludes: Sequence[str]) -> str:
    """Return why a list is not read as the engine reads it; empty where it is."""
    if not isinstance(inner.get(key, []), (list, type(None))):
        return f"{key} is not a list"
    refused = refused_entries(excludes)
    return f"the entry {refused[0]!r} is not run as a pattern" if refused else ""


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
