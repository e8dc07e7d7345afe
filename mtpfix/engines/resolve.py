"""Which quantization block an engine obeys, which method it resolves to, and the error where it refuses the block.

The engine file names its resolver: `attached` is here, `inline` in its own module. Knows vLLM's order of files and
keys, its forms of ModelOpt blocks and the texts of its refusals; what changed between releases is data (`vllm.toml`).
Knows no family: which configuration a draft gets is family data, and a rewrite of one method into another by the
model's type is not seen here. Methods whose matching this package does not have are named, never guessed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from mtpfix.engines import Engine
from mtpfix.engines.gptq import METHODS as GPTQ
from mtpfix.engines.gptq import method_of, resolve_gptq
from mtpfix.engines.inline import resolve_inline
from mtpfix.engines.matching import refused_patterns
from mtpfix.engines.resolved import FORMATS, KEY_MISSING, SIMULATED, Facts, RefusedError, Resolved
from mtpfix.model import Declaration, Format, Scheme

UNKNOWN_METHOD = "Unknown quantization method: {method}. Must be one of {methods}."
UNKNOWN_NESTED = "Unknown ModelOpt quant algo: {algo}"
UNSUPPORTED = (
    "ModelOpt currently only supports: {algorithms} quantizations in vLLM. Please check the `hf_quant_config.json` "
    "file for your model's quant configuration."
)
UNSUPPORTED_FP8 = "Unsupported ModelOpt FP8 quant_algo for vLLM: {algo}. Supported: {supported}."
UNSUPPORTED_FP4 = "Unsupported ModelOpt NVFP4 quant_algo: {algo}. Supported: {supported}."
NOT_A_TABLE = "Expected 'quantization' to be a dictionary in config"
NO_ALGORITHM = "Missing 'quant_algo' in quantization config"
CACHE_TYPE = "kv_cache_quant_algo must be a string, got {type}"
LIST_TYPE = "exclude_modules must be a list, got {type}"
GROUP_TYPE = "group_size must be an integer, got {type}"
FIELDS_MISSING = "{format} quantization requires the following fields in hf_quant_config.json: {fields}"
NO_LAYERS = "MIXED_PRECISION quant_algo requires a non-empty 'quantized_layers' mapping in the quantization config."
NOT_SERIALIZED = "MXFP8 quantization requires a serialized checkpoint. Dynamic quantization is not supported."
NO_FILE = "Cannot find the config file for {method}"
NO_DEFAULT = (
    "CompressedTensorsConfig.__init__() missing 3 required positional arguments: 'target_scheme_map', 'ignore', and "
    "'quant_format'"
)
OTHER_PRODUCER = "Unsupported quantization config found for {method} in {file}."
ACTIVATIONS = "Unsupported activation scheme {scheme}"
BLOCK_DIMENSIONS = "The quantization block size of weight must have 2 dimensions, but got {count} dimensions"
BLOCK_ACTIVATIONS = (
    "The block-wise quantization only supports dynamic activation scheme for now, but got {scheme} activation scheme."
)
SPARSE = "Sparsity support has been removed from compressed-tensors. Please use a model without sparsity configuration."


def resolve(
    declarations: Sequence[Declaration], engine: Engine, version: str, architecture: str | None = None
) -> Resolved:
    """Return which declaration an engine obeys at a release, as which method, or the error it refuses it with."""
    facts = Facts(engine, version)
    if facts["resolver"] == "inline":
        return resolve_inline(declarations, facts, architecture or "")
    return _resolve_attached(declarations, Facts(engine, version))


def resolve_other_file(
    declarations: Sequence[Declaration], engine: Engine, version: str, target: Resolved, inner: Sequence[str]
) -> Resolved:
    """Return what a draft gets whose configuration has no block: the target's method, with the other file's lists.

    Its configuration is one inside the checkpoint's; `inner` are the keys that may hold it.
    """
    facts = Facts(engine, version)
    method = target.method
    if target.error is not None or method is None:
        return target
    if method not in SIMULATED:
        return replace(target, simulated=False, reason=f"the quantization method {method} is not predicted")
    if _first(declarations, *((key, "quantization_config") for key in inner)) is not None:
        reason = "a block inside the decoder's configuration, which the draft obeys, is not predicted"
        return replace(target, simulated=False, reason=reason)
    try:
        if method == "compressed-tensors":
            raise facts.refuse("TypeError", NO_DEFAULT, "mixed_other_file")
        if method == "fp8" or method in GPTQ:
            reason = f"a draft without a block of its own is not predicted under the method {method}"
            return replace(target, simulated=False, reason=reason)
        return _modelopt(_other_block(declarations, method, facts), method, facts)
    except RefusedError as refused:
        because = (*facts.cited, *([refused.source] if refused.source not in facts.cited else []))
        return Resolved(method, target.declaration, error=(refused.name, refused.text), because=because)


def _resolve_attached(declarations: Sequence[Declaration], facts: Facts) -> Resolved:
    """Resolve as an engine does that reads its configuration's own block, whichever file that came from."""
    attached = _attached(declarations, facts)
    judged = _first(declarations, ("text_config", "quantization_config"), ("text_config", "compression_config"))
    block = attached or _first(declarations, ("compression_config",)) or judged
    if block is None:
        return Resolved(None, None, because=tuple(facts.cited))
    if not block.raw:
        reason = "a quantization block without content is not predicted"
        return Resolved(None, block, because=tuple(facts.cited), simulated=False, reason=reason)
    # The method is read off one block and the configuration built from another, where compression_config is involved.
    built = attached or _first(declarations, ("text_config", "quantization_config"), ("compression_config",)) or block
    method: str | None = None
    try:
        method = _method(block, facts)
        return _build(declarations, built, method, facts)
    except RefusedError as refused:
        because = (*facts.cited, *([refused.source] if refused.source not in facts.cited else []))
        return Resolved(method, built, error=(refused.name, refused.text), because=because)


def _first(declarations: Sequence[Declaration], *paths: tuple[str, ...]) -> Declaration | None:
    found = (one for path in paths for one in declarations if one.file == "config.json" and one.path == path)
    return next(found, None)


def _attached(declarations: Sequence[Declaration], facts: Facts) -> Declaration | None:
    """Return the block that becomes the configuration's own: the top-level one, else the other file as a whole."""
    files: list[str] = facts["quantization_files"]
    top = _first(declarations, ("quantization_config",))
    return top or next((one for one in declarations if one.file in files[1:]), None)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


# ----------------------------------------------------------------------------------------------- method


def _method(block: Declaration, facts: Facts) -> str | None:
    raw = block.raw
    looked_into = block.path[-1:] != ("compression_config",)
    named = (_nested_method(raw, facts) if looked_into else None) or _text(raw.get("quant_method"))
    method = named.lower().replace("compressed_tensors", "compressed-tensors")
    known = facts["modelopt_methods"]
    if method == "modelopt" or (known == "prefix" and method.startswith("modelopt")):
        method = _OVERRIDES[facts["modelopt_override"]](raw) or method
    elif method == "auto-round":
        method = facts["auto_round"]
    elif method == "gptq":
        method = method_of(raw, facts)
    if not method:
        return None
    methods: list[str] = facts["methods"]
    if method not in methods:
        raise facts.refuse("ValueError", UNKNOWN_METHOD.format(method=method, methods=methods), "methods")
    return method


def _nested_method(raw: Mapping[str, Any], facts: Facts) -> str | None:
    """Return the method the engine writes into a block of the nested form, None where it leaves the block alone."""
    nested = _table(raw.get("quantization"))
    legacy = facts["nested_without_producer"] and "modelopt_quant_config" in nested
    if _table(raw.get("producer")).get("name") != "modelopt" and not legacy:
        return None
    algo = nested.get("quant_algo")
    if algo is None:
        return None
    spelled = str(algo).upper() if facts["modelopt_case"] == "upper" else algo
    method = _table(facts["nested_algorithms"]).get(spelled) if isinstance(spelled, str) else None
    if method is None:
        raise facts.refuse("ValueError", UNKNOWN_NESTED.format(algo=algo), "nested_algorithms")
    return str(method)


def _algo(raw: Mapping[str, Any]) -> object:
    if "quantization" in raw:
        return raw["quantization"].get("quant_algo", "") if isinstance(raw["quantization"], Mapping) else None
    return raw.get("quant_algo", "")


def _fp8_inside(raw: Mapping[str, Any]) -> str | None:
    algo = _algo(raw)
    return "modelopt" if isinstance(algo, str) and "FP8" in algo else _fp4_inside(raw)


def _fp8_inside_upper(raw: Mapping[str, Any]) -> str | None:
    algo = _algo(raw)
    return "modelopt" if algo is not None and "FP8" in str(algo).upper() else _fp4_inside(raw)


def _fp8_only(raw: Mapping[str, Any]) -> str | None:
    algo = _algo(raw)
    if algo is not None and str(algo).upper() == "FP8":
        return "modelopt"
    return _fp4_inside(raw) or ("modelopt_mxfp8" if algo is not None and "MXFP8" in str(algo).upper() else None)


def _fp4_inside(raw: Mapping[str, Any]) -> str | None:
    algo = _algo(raw)
    if not isinstance(algo, str):
        return None
    inside = "NVFP4" in algo if "quantization" in raw else "FP4" in algo.upper()
    return "modelopt_fp4" if inside else None


def _extracted(raw: Mapping[str, Any]) -> str | None:
    algo = _algo(raw)
    spelled = "" if algo is None else str(algo).upper()
    if spelled == "FP8":
        return "modelopt"
    if "FP4" in spelled:
        return "modelopt_fp4"
    if "MXFP8" in spelled:
        return "modelopt_mxfp8"
    return "modelopt_mixed" if spelled == "MIXED_PRECISION" else None


_OVERRIDES = {
    "fp8-inside": _fp8_inside,
    "fp8-inside-upper": _fp8_inside_upper,
    "fp8-only": _fp8_only,
    "extracted": _extracted,
}

# ----------------------------------------------------------------------------------------------- building


def _build(declarations: Sequence[Declaration], block: Declaration, method: str | None, facts: Facts) -> Resolved:
    if method is None:
        return Resolved(None, block, because=tuple(facts.cited))
    if method not in SIMULATED:
        reason = f"the quantization method {method} is not predicted"
        return Resolved(method, block, because=tuple(facts.cited), simulated=False, reason=reason)
    if method == "compressed-tensors":
        resolved = _compressed(block, facts)
    elif method == "fp8":
        resolved = _fp8(block, facts)
    elif method in GPTQ:
        resolved = resolve_gptq(block, method, facts)
    else:
        resolved = _modelopt(_mixed_block(declarations, block, method, facts), method, facts)
    return resolved


def _mixed_block(declarations: Sequence[Declaration], block: Declaration, method: str, facts: Facts) -> Declaration:
    """Return the block itself, or that of the other file where a mixed one does not say its layers at the top."""
    if method != "modelopt_mixed" or "quantized_layers" in block.raw:
        return block
    return _other_block(declarations, method, facts)


def _other_block(declarations: Sequence[Declaration], method: str, facts: Facts) -> Declaration:
    """Return the block of the other file, after the checks of the function that opens it."""
    other = next((one for one in declarations if one.file in facts["quantization_files"][1:]), None)
    if other is None:
        raise facts.refuse("ValueError", NO_FILE.format(method=method), "mixed_other_file")
    checked = method in ("modelopt", "modelopt_mixed")
    if checked and _table(other.raw.get("producer")).get("name") != "modelopt":
        handle = f"<_io.TextIOWrapper name='{other.file}' mode='r' encoding='UTF-8'>"
        raise facts.refuse("ValueError", OTHER_PRODUCER.format(method=method, file=handle), "mixed_other_file")
    facts["mixed_other_file"]
    return other


def _modelopt(block: Declaration, method: str, facts: Facts) -> Resolved:
    raw = block.raw
    nested = "quantization" in raw
    if method == "modelopt_mxfp8" and not nested and not raw.get("quant_algo") and facts["mxfp8_own_keys"]:
        return _mxfp8(block, facts)
    inner = raw["quantization"] if nested else raw
    if not isinstance(inner, Mapping):
        raise facts.refuse("ValueError", NOT_A_TABLE, "modelopt_reader")
    keys: list[str] = ["exclude_modules"] if nested else facts["flat_list_keys"]
    key = next((one for one in keys if one in inner), keys[0])
    algo = _checked_algo(inner, key, nested=nested, method=method, facts=facts)
    layers: dict[str, str | None] = {}
    if method == "modelopt_fp4":
        if nested and "NVFP4" in algo:
            _check_fields(inner, "NVFP4", ("group_size", "kv_cache_quant_algo", "exclude_modules"), facts)
        algo = _weights_only(raw, algo, facts)
    elif method == "modelopt_mxfp8":
        if "MXFP8" not in algo:
            raise facts.refuse("ValueError", NOT_SERIALIZED, "modelopt_algorithms")
        if nested:
            _check_fields(inner, "MXFP8", ("kv_cache_quant_algo", "exclude_modules"), facts)
    elif method == "modelopt_mixed":
        layers = dict(_algorithms(inner))
        if not layers:
            raise facts.refuse("ValueError", NO_LAYERS, "mixed_other_file")
    _check_owner(algo, method, facts)
    excludes = _listed(block, inner, (key,))
    unread = refused_patterns(excludes, starred=True) if facts["modelopt_wildcards"] == "regex" else ()
    reason = f"the entry {unread[0]!r} is not run as a pattern" if unread else ""
    if method == "modelopt_fp4" and "NVFP4" not in algo:
        reason = f"{algo} under the method {method} is not predicted"
    if not isinstance(inner.get(key, []), (list, type(None))):
        reason = f"{key} is not a list"
    return Resolved(
        method=method,
        declaration=block,
        algo=algo,
        scheme=_scheme(algo, inner) if method != "modelopt_mixed" else None,
        because=tuple(facts.cited),
        excludes=excludes,
        layers=layers,
        simulated=not reason,
        reason=reason,
    )


def _mxfp8(block: Declaration, facts: Facts) -> Resolved:
    """Read the form that names no algorithm and spells its list as fp8 does."""
    raw = block.raw
    cache = raw.get("kv_cache_quant_algo")
    if cache is not None and not isinstance(cache, str):
        raise facts.refuse("ValueError", CACHE_TYPE.format(type=type(cache)), "modelopt_reader")
    listed = raw.get("ignored_layers", []) or []
    if not isinstance(listed, list):
        raise facts.refuse("ValueError", LIST_TYPE.format(type=type(listed)), "modelopt_reader")
    return Resolved(
        method="modelopt_mxfp8",
        declaration=block,
        algo="MXFP8",
        scheme=_scheme("MXFP8", raw),
        because=tuple(facts.cited),
        excludes=_listed(block, raw, ("ignored_layers",)),
    )


def _checked_algo(inner: Mapping[str, Any], key: str, *, nested: bool, method: str, facts: Facts) -> str:
    """Return the algorithm as the release spells it, after the checks of `from_config`, in its order."""
    strict = facts["modelopt_reader"] == "strict"
    algo = inner.get("quant_algo")
    if not algo and (nested or strict):
        raise facts.refuse("ValueError", NO_ALGORITHM, "modelopt_reader")
    if strict or method == "modelopt_fp4":
        cache = inner.get("kv_cache_quant_algo") if nested or facts["flat_cache_key"] == "kv_cache_quant_algo" else None
        if cache is not None and not isinstance(cache, str):
            raise facts.refuse("ValueError", CACHE_TYPE.format(type=type(cache)), "modelopt_reader")
        _check_types(inner, key, strict=strict, facts=facts)
    spelled = str(algo or "").upper() if facts["modelopt_case"] == "upper" else str(algo or "")
    known: list[str] = facts["modelopt_algorithms"]
    if spelled not in known:
        raise facts.refuse("ValueError", UNSUPPORTED.format(algorithms=known), "modelopt_algorithms")
    return spelled


def _check_types(inner: Mapping[str, Any], key: str, *, strict: bool, facts: Facts) -> None:
    listed = inner.get(key, [])
    checks = [
        (isinstance(listed, list), LIST_TYPE.format(type=type(listed))),
        (_integer(inner.get("group_size")), GROUP_TYPE.format(type=type(inner.get("group_size")))),
    ]
    for sound, text in checks if strict else reversed(checks):
        if not sound:
            raise facts.refuse("ValueError", text, "modelopt_reader")


def _listed(block: Declaration, inner: Mapping[str, Any], keys: Sequence[str]) -> tuple[str, ...]:
    """Return the list under the first of the keys that holds one, from the declaration wherever it read that key."""
    if block.exclude_key in keys:
        return block.excludes
    found: list[Any] = next((inner[key] for key in keys if isinstance(inner.get(key), list) and inner[key]), [])
    return tuple(name for name in found if isinstance(name, str))


def _integer(value: object) -> bool:
    if value is None or isinstance(value, int):
        return True
    try:
        int(value)  # type: ignore[call-overload]
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _check_fields(inner: Mapping[str, Any], name: str, fields: Sequence[str], facts: Facts) -> None:
    missing = [one for one in fields if one not in inner]
    if missing:
        raise facts.refuse("ValueError", FIELDS_MISSING.format(format=name, fields=missing), "modelopt_reader")


def _check_owner(algo: str, method: str, facts: Facts) -> None:
    """Refuse an algorithm that the release knows, but not as this method."""
    owned: dict[str, list[str]] | None = facts["modelopt_owners"]
    if owned is None or method not in owned or algo in owned[method]:
        return
    text = UNSUPPORTED_FP8 if method == "modelopt" else UNSUPPORTED_FP4
    raise facts.refuse("ValueError", text.format(algo=algo, supported=" / ".join(owned[method])), "modelopt_owners")


def _weights_only(raw: Mapping[str, Any], algo: str, facts: Facts) -> str:
    """Return W4A16_NVFP4 where every group leaves its activations alone and the release looks at that."""
    groups = raw.get("config_groups")
    if algo != "NVFP4" or not facts["null_activations"] or not isinstance(groups, Mapping) or not groups:
        return algo
    plain = all(isinstance(one, Mapping) and one.get("input_activations") is None for one in groups.values())
    return "W4A16_NVFP4" if plain else algo


def _algorithms(inner: Mapping[str, Any]) -> Iterator[tuple[str, str | None]]:
    for name, entry in _table(inner.get("quantized_layers")).items():
        algo = _table(entry).get("quant_algo")
        yield name, algo if isinstance(algo, str) else None


def _scheme(algo: str, inner: Mapping[str, Any]) -> Scheme:
    built = FORMATS.get(algo, Format.UNKNOWN)
    size = inner.get("group_size")
    return Scheme(
        format=built,
        algo=algo,
        group_size=size if isinstance(size, int) else None,
        activations_quantized=built is not Format.NVFP4_A16,
    )


def _fp8(block: Declaration, facts: Facts) -> Resolved:
    raw = block.raw
    for key in ("quant_method", "activation_scheme"):
        if key not in raw:
            raise facts.refuse("ValueError", KEY_MISSING.format(keys=[key]), "fp8_reader")
    activations = raw["activation_scheme"]
    if activations not in ("static", "dynamic"):
        raise facts.refuse("ValueError", ACTIVATIONS.format(scheme=activations), "fp8_reader")
    block_size = raw.get("weight_block_size")
    if isinstance(block_size, Sequence) and len(block_size) != 2:
        raise facts.refuse("ValueError", BLOCK_DIMENSIONS.format(count=len(block_size)), "fp8_reader")
    if block_size is not None and activations != "dynamic":
        raise facts.refuse("ValueError", BLOCK_ACTIVATIONS.format(scheme=activations), "fp8_reader")
    stored = facts["fp8_store_dtype"] and raw.get("store_dtype")
    return Resolved(
        method="fp8",
        declaration=block,
        algo="FP8",
        scheme=Scheme(Format.FP8 if block_size is None else Format.FP8_BLOCK, "FP8", None, activations_quantized=True),
        because=tuple(facts.cited),
        excludes=_listed(block, raw, ("ignored_layers", "modules_to_not_convert")),
        simulated=not stored,
        reason=f"store_dtype {stored!r} is not predicted" if stored else "",
    )


def _compressed(block: Declaration, facts: Facts) -> Resolved:
    raw = block.raw
    reasons: list[str] = []
    if _table(raw.get("sparsity_config")).get("targets"):
        if facts["ct_sparsity"] == "refused":
            raise facts.refuse("DeprecationWarning", SPARSE, "ct_sparsity")
        reasons.append("a sparsity_config is not predicted")
    if raw.get("transform_config"):
        reasons.append("a transform_config is not predicted")
    excludes = _listed(block, raw, ("ignore",))
    unread = refused_patterns((*excludes, *(name for group in block.groups for name in group.targets)))
    if unread:
        reasons.append(f"the pattern {unread[0]!r} is not run")
    return Resolved(
        method="compressed-tensors",
        declaration=block,
        because=tuple(facts.cited),
        excludes=excludes,
        simulated=not reasons,
        reason="; ".join(reasons),
    )
