"""What a checkpoint declares: every quantization block of config.json and hf_quant_config.json, read as it is written.

Knows the blocks that ModelOpt, compressed-tensors, fp8, MXFP4, Quark, auto-round, GPTQ and AWQ write. Decides nothing:
which block an engine obeys, and what a name in a list matches, is the engine's to say. What is not known here is put
into `not_understood` in a sentence; nothing is guessed, and no input raises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mtpfix.checkpoint.names import describe_names
from mtpfix.model import Declaration, Format, Group, Scheme

CONFIG = "config.json"
HF_QUANT_CONFIG = "hf_quant_config.json"

_BLOCKS = ("quantization_config", "compression_config")
_DEPTH = 2  # thinker_config.text_config.quantization_config

# Names that mean one method; vLLM's list: model_executor/layers/quantization/__init__.py:16@0.32.0.
_METHODS: Mapping[str, str] = {
    **dict.fromkeys(("compressed-tensors", "compressed_tensors"), "compressed-tensors"),
    **dict.fromkeys(("fp8", "deepseek_v4_fp8"), "fp8"),
    **dict.fromkeys(("mxfp4", "gpt_oss_mxfp4"), "mxfp4"),
    **dict.fromkeys(("auto-round", "auto_round", "intel/auto-round", "inc"), "auto-round"),
    **dict.fromkeys(("gptq", "gptq_marlin", "auto_gptq"), "gptq"),
    **dict.fromkeys(("awq", "awq_marlin", "auto_awq"), "awq"),
}

# (format, whether activations are quantized). Names: ModelOpt 0.47 export/quant_utils.py process_layer_quant_config.
_MODELOPT: Mapping[str, tuple[Format, bool]] = {
    "FP8": (Format.FP8, True),
    "FP8_PER_CHANNEL_PER_TOKEN": (Format.FP8_CHANNEL, True),
    "FP8_PB_WO": (Format.FP8_BLOCK, False),
    "FP8_BLOCK_SCALES": (Format.FP8_BLOCK, True),
    "NVFP4": (Format.NVFP4, True),
    "NVFP4_AWQ": (Format.NVFP4, True),
    "NVFP4_SVD": (Format.NVFP4, True),
    "W4A8_NVFP4_FP8": (Format.NVFP4, True),
    "W4A16_NVFP4": (Format.NVFP4_A16, False),
    "W4A8_MXFP4_FP8": (Format.MXFP4, True),
    "MXFP8": (Format.MXFP8, True),
    "W4A16_AWQ": (Format.INT4, False),
    "W4A8_AWQ": (Format.INT4, True),
    "W8A16": (Format.INT8, False),
    "W8A8_SQ_PER_CHANNEL": (Format.INT8, True),
}
_MIXED = "MIXED_PRECISION"
_PLAIN = "NO_QUANT"  # no algorithm of ModelOpt: what an allow-list says of a name that is to stay as it is

_PRODUCER = frozenset({"producer", "version", "modelopt_version", "quant_method"})
_KNOWN: Mapping[str, frozenset[str]] = {
    "modelopt": _PRODUCER
    | {"quantization", "quant_algo", "ignore", "exclude_modules", "modules_to_not_convert", "kv_cache_scheme"}
    | {"kv_cache_quant_algo", "config_groups", "quantized_layers", "group_size", "has_zero_point", "pre_quant_scale"}
    | {"lora_rank", "modelopt_quant_config"},
    "compressed-tensors": frozenset({"config_groups", "format", "ignore", "kv_cache_scheme", "quant_method"})
    | {"global_compression_ratio", "quantization_status", "sparsity_config", "transform_config", "version"}
    | {"run_compressed", "total_num_heads", "total_num_kv_heads"},
    "fp8": frozenset({"quant_method", "activation_scheme", "ignored_layers", "modules_to_not_convert", "dequantize"})
    | {"weight_block_size", "store_dtype", "fmt", "scale_fmt", "moe_quant_algo", "kv_cache_scheme"},
    "mxfp8": frozenset({"quant_method", "ignored_layers", "modules_to_not_convert", "weight_block_size", "scale_fmt"})
    | {"activation_scheme", "fmt"},
    "mxfp4": frozenset({"quant_method", "modules_to_not_convert", "ignored_layers", "dequantize"}),
    "quark": frozenset({"quant_method", "exclude", "global_quant_config", "layer_quant_config", "export", "version"})
    | {"layer_type_quant_config", "algo_config", "kv_cache_quant_config", "kv_cache_post_rope", "quant_mode"}
    | {"softmax_quant_spec", "log_severity_level", "pre_quant_opt_config", "quark_version"},
}
_GROUP_KEYS = frozenset({"format", "input_activations", "output_activations", "targets", "weights", "quant_algo"}) | {
    "has_zero_point",
    "pre_quant_scale",
    "lora_rank",
}
_LAYER_KEYS = frozenset({"quant_algo", "group_size", "has_zero_point", "pre_quant_scale", "lora_rank"})

_UNQUANTIZED = Scheme(Format.BF16, "none")


def read_declarations(config: Mapping[str, Any], hf_quant: Mapping[str, Any] | None) -> tuple[Declaration, ...]:
    """Return every quantization block: config.json's top level, then its sub-configs, then hf_quant_config.json.

    `path` is where a block begins: () for hf_quant_config.json. A ModelOpt block in the nested dialect keeps its lists
    one level deeper, under "quantization". A block that is null does not count; one that is no object is named.

    A flat NVFP4 block whose config groups all leave activations alone has the scheme NVFP4_A16 with `algo` NVFP4:
    engines differ by release (vLLM >= 0.29 follows the groups, model_executor/layers/quantization/modelopt.py:796).
    """
    found = [_read(CONFIG, path, block) for path, block in _blocks(config)]
    if hf_quant is not None:
        found.append(_read(HF_QUANT_CONFIG, (), hf_quant))
    return tuple(found)


def declared_scheme_differences(a: Declaration, b: Declaration) -> tuple[str, ...]:
    """Return sentences on how two blocks disagree: method, algorithm, group size, cache, exclusions, and layers.

    Exclusions are compared as sets of names as written: `ignore` and `exclude_modules` are one list in two spellings.
    What only one of the blocks says of group sizes or config groups is no disagreement. At most nine short sentences.
    """
    one, other = label(a), label(b)
    found = []
    if a.method != b.method:
        found.append(f"{one} is a {a.method} block, {other} a {b.method} block")
    if (a.algo or "").upper() != (b.algo or "").upper():
        found.append(f"{one} says {_said(a.algo)}, {other} says {_said(b.algo)}")
    elif a.scheme and b.scheme and a.scheme.format is not b.scheme.format:
        found.append(f"{one} declares {a.scheme.format.value}, {other} declares {b.scheme.format.value}")
    if None not in (a.group_size, b.group_size) and a.group_size != b.group_size:
        found.append(f"{one} has groups of {a.group_size}, {other} groups of {b.group_size}")
    if (a.kv_cache or "").upper() != (b.kv_cache or "").upper():
        found.append(f"for the KV cache {one} says {_said(a.kv_cache)}, {other} says {_said(b.kv_cache)}")
    excluded = set(a.excludes), set(b.excludes)
    if excluded[0] != excluded[1]:
        found += _only("excludes", (one, other), excluded[0] - excluded[1])
        found += _only("excludes", (other, one), excluded[1] - excluded[0])
    found += _layer_differences(a, b)
    if a.groups and b.groups and a.method == b.method != "modelopt" and _by_target(a) != _by_target(b):
        found.append(f"{one} and {other} have different config groups")
    return tuple(found)


def label(declaration: Declaration) -> str:
    """Return how a sentence calls a block: its file, and its path where the file alone would not say which."""
    if declaration.path in ((), _BLOCKS[:1]):
        return declaration.file
    return f"{declaration.file} {'.'.join(declaration.path)}"


# ---------------------------------------------------------------------------------------------- blocks


def _blocks(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    level: list[tuple[tuple[str, ...], Mapping[str, Any]]] = [((), config)]
    for _ in range(_DEPTH + 1):
        for path, parent in level:
            for key in _BLOCKS:
                block = parent.get(key)
                if isinstance(block, Mapping) and isinstance(block.get(_BLOCKS[0]), Mapping):
                    yield (*path, key, _BLOCKS[0]), block[_BLOCKS[0]]
                elif block is not None:
                    yield (*path, key), block
        level = [
            ((*path, key), value)
            for path, parent in level
            for key, value in parent.items()
            if isinstance(value, Mapping) and key not in _BLOCKS
        ]


@dataclass(slots=True)
class _Block:
    """One block while it is read: its values, and what was not understood, counted by kind."""

    values: Mapping[str, Any]
    doubts: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def doubt(self, sentence: str, example: str = "") -> None:
        """Note something not understood; equal sentences are told once, with a few examples and their count."""
        examples = self.doubts.setdefault(sentence, [])
        if example and len(examples) < 3 and example not in examples:
            examples.append(example)
        self.counts[sentence] = self.counts.get(sentence, 0) + 1

    def sentences(self) -> tuple[str, ...]:
        """Return what was noted."""
        return tuple(
            f"{sentence}: {', '.join(examples)}{_and_more(self.counts[sentence] - len(examples))}"
            if examples
            else sentence
            for sentence, examples in self.doubts.items()
        )

    def text(self, key: str, values: Mapping[str, Any] | None = None) -> str | None:
        """Return a text, or None where there is none."""
        value = (self.values if values is None else values).get(key)
        if value is None or isinstance(value, str):
            return value
        self.doubt(f"{key} is {_kind(value)}, not text")
        return None

    def number(self, key: str, values: Mapping[str, Any] | None = None) -> int | None:
        """Return an integer, also one written as text, or None where there is none."""
        value = (self.values if values is None else values).get(key)
        if isinstance(value, str) and value.removeprefix("-").isdecimal() and len(value) < 10:
            return int(value)
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        self.doubt(f"{key} is {_kind(value)}, not an integer")
        return None

    def object(self, key: str, values: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Return an object, an empty one where there is none."""
        value = (self.values if values is None else values).get(key)
        if value is None or isinstance(value, Mapping):
            return value or {}
        self.doubt(f"{key} is {_kind(value)}, not an object")
        return {}

    def names(self, key: str, values: Mapping[str, Any] | None = None) -> tuple[str, ...]:
        """Return a list of names, those in lists within it as well, without entries that are no text."""
        values = self.values if values is None else values
        value = values.get(key)
        if not isinstance(value, (list, tuple)):
            if value is not None or (key in values and key in ("ignore", "exclude_modules")):
                self.doubt(f"{key} is {_kind(value)}, not a list")
            return ()
        if all(type(entry) is str for entry in value):
            return tuple(value)
        found: list[str] = []
        for entry in value:
            for inner in entry if isinstance(entry, (list, tuple)) else (entry,):
                if isinstance(inner, str):
                    found.append(inner)
                else:
                    self.doubt(f"{key} has entries that are not text", _kind(inner))
        return tuple(found)

    def unknown_keys(self, known: frozenset[str], values: Mapping[str, Any] | None = None, where: str = "") -> None:
        """Note keys that this reader does not know."""
        for key in self.values if values is None else values:
            if key not in known:
                self.doubt(f"keys{where} that are not known here", _quoted(key))


def _read(file: str, path: tuple[str, ...], raw: Any) -> Declaration:
    if not isinstance(raw, Mapping):
        where = path[-1] if path else file
        sentence = f"{where} is {_kind(raw)}, not an object"
        return Declaration(file, path, "unknown", "flat", None, None, "", (), not_understood=(sentence,))
    block = _Block(raw)
    method = _method(block)
    reader = _READERS.get(method, _read_other)
    content = reader(block)
    known = _KNOWN.get(method)
    if known is not None:
        block.unknown_keys(known)
    return Declaration(
        file=file,
        path=path,
        method=method,
        dialect="nested" if method == "modelopt" and "quantization" in raw else "flat",
        algo=content.algo,
        scheme=content.scheme,
        exclude_key=content.exclude_key,
        excludes=content.excludes,
        layers=content.layers,
        groups=content.groups,
        group_size=content.group_size,
        kv_cache=content.kv_cache,
        not_understood=block.sentences(),
        raw=raw,
    )


def _method(block: _Block) -> str:
    named = block.text("quant_method")
    if named:
        lowered = named.lower()
        return "modelopt" if lowered.startswith("modelopt") else _METHODS.get(lowered, lowered[:80])
    producer = block.values.get("producer")
    inner = block.values.get("quantization")
    if isinstance(producer, Mapping) and producer.get("name") == "modelopt":
        return "modelopt"
    if isinstance(inner, Mapping) and ("quant_algo" in inner or "modelopt_quant_config" in inner):
        return "modelopt"
    if "quant_algo" in block.values:
        block.doubt("there is no quant_method; quant_algo is ModelOpt's")
        return "modelopt"
    if "config_groups" in block.values:
        block.doubt("there is no quant_method; config_groups are compressed-tensors'")
        return "compressed-tensors"
    block.doubt("there is no quant_method" if block.values else "the block is empty")
    return "unknown"


@dataclass(frozen=True, slots=True)
class _Content:
    """What a method's reader found: the part of a Declaration that depends on the method."""

    algo: str | None = None
    scheme: Scheme | None = None
    exclude_key: str = ""
    excludes: tuple[str, ...] = ()
    layers: Mapping[str, Scheme] = field(default_factory=dict)
    groups: tuple[Group, ...] = ()
    group_size: int | None = None
    kv_cache: str | None = None


# ---------------------------------------------------------------------------------------------- ModelOpt


def _read_modelopt(block: _Block) -> _Content:
    nested = "quantization" in block.values
    inner = block.object("quantization") if nested else block.values
    if nested and inner:
        block.unknown_keys(_KNOWN["modelopt"], inner, " under quantization")
    algo = block.text("quant_algo", inner)
    if not algo and ("quant_algo" not in inner or algo == ""):
        block.doubt("there is no quant_algo")
    exclude_key = "exclude_modules" if nested else "ignore"
    for key in ("ignore", "exclude_modules", "modules_to_not_convert"):
        if key != exclude_key and inner.get(key):
            block.doubt(f"{key} stands where {exclude_key} is the list of this form, and is not used here")
    group_size = block.number("group_size", inner)
    if group_size is None:
        group_size = _common_group_size(block.values.get("config_groups"))
    layers = _quantized_layers(block, inner)
    mixed = (algo or "").upper() == _MIXED
    if mixed and not layers:
        block.doubt(f"{_MIXED} without quantized_layers")
    scheme = None if mixed or not algo else _modelopt_scheme(block, algo, group_size)
    if scheme is not None and scheme.format is Format.NVFP4 and scheme.algo.upper() == "NVFP4":
        groups = block.values.get("config_groups")
        if isinstance(groups, Mapping) and groups and all(map(_leaves_activations, groups.values())):
            scheme = Scheme(Format.NVFP4_A16, scheme.algo, scheme.group_size)
    return _Content(
        algo=algo,
        scheme=scheme,
        exclude_key=exclude_key,
        excludes=block.names(exclude_key, inner),
        layers=layers,
        groups=tuple(_groups(block, scheme)),
        group_size=group_size,
        kv_cache=_cache(block, inner, "kv_cache_scheme") or block.text("kv_cache_quant_algo", inner),
    )


def _modelopt_scheme(block: _Block, algo: str, group_size: int | None) -> Scheme:
    known = _MODELOPT.get(algo.upper())
    if known is None:
        block.doubt("quant_algo is not known here", _quoted(algo))
        return Scheme(Format.UNKNOWN, algo, group_size)
    return Scheme(known[0], algo, group_size, activations_quantized=known[1])


def _quantized_layers(block: _Block, inner: Mapping[str, Any]) -> dict[str, Scheme]:
    """Return the scheme of each layer; equal ones are one object, for lists of tens of thousands of experts."""
    schemes: dict[tuple[str, type, int | None], Scheme] = {}
    layers: dict[str, Scheme] = {}
    for name, value in block.object("quantized_layers", inner).items():
        if not isinstance(value, dict):
            block.doubt("quantized_layers has values that are not objects", _quoted(name))
            continue
        algo, size = value.get("quant_algo"), value.get("group_size")
        if algo == _PLAIN:
            layers[name] = Scheme(Format.BF16, _PLAIN)
        elif isinstance(algo, str) and (size is None or isinstance(size, int)):
            key = (algo, type(size), size)
            scheme = schemes.get(key)
            if scheme is None:
                number = block.number("group_size", value)
                scheme = schemes[key] = _modelopt_scheme(block, algo, number)
            layers[name] = scheme
        elif algo is None and "quant_algo" in value:
            layers[name] = _UNQUANTIZED
        else:
            layers[name] = Scheme(Format.UNKNOWN, _kind(algo) if not isinstance(algo, str) else algo)
            block.doubt("quantized_layers has a quant_algo or group_size of another type", _quoted(name))
        if len(value) > 2:
            block.unknown_keys(_LAYER_KEYS, value, " in quantized_layers")
    return layers


def _leaves_activations(group: Any) -> bool:
    return isinstance(group, Mapping) and group.get("input_activations") is None


def _common_group_size(groups: Any) -> int | None:
    if not isinstance(groups, Mapping):
        return None
    weights = [group.get("weights") for group in groups.values() if isinstance(group, Mapping)]
    sizes = {
        each.get("group_size") for each in weights if isinstance(each, Mapping) and _is_int(each.get("group_size"))
    }
    return sizes.pop() if len(sizes) == 1 else None


# ---------------------------------------------------------------------------------------------- compressed-tensors


def _read_compressed_tensors(block: _Block) -> _Content:
    algo = block.text("format")
    groups = tuple(_groups(block, None))
    if not groups:
        block.doubt("there are no config_groups")
    for key in ("sparsity_config", "transform_config"):
        if block.object(key):
            block.doubt(f"{key} is not empty, and is not read here")
    schemes = {group.scheme for group in groups}
    sizes = {group.scheme.group_size for group in groups} - {None}
    return _Content(
        algo=algo,
        scheme=schemes.pop() if len(schemes) == 1 else None,
        exclude_key="ignore",
        excludes=block.names("ignore") if block.values.get("ignore") is not None else (),
        groups=groups,
        group_size=sizes.pop() if len(sizes) == 1 else None,
        kv_cache=_cache(block, block.values, "kv_cache_scheme"),
    )


def _groups(block: _Block, declared: Scheme | None) -> Iterator[Group]:
    """Yield the config groups: of compressed-tensors, and of ModelOpt, where `declared` says what they repeat."""
    modelopt = "quant_algo" in block.values or "quantization" in block.values
    for name, group in block.object("config_groups").items():
        if isinstance(group, (list, tuple)) and not modelopt:
            block.doubt("config groups that name a preset instead of a scheme", _quoted(name))
            targets = block.names("targets", {"targets": group})
            yield Group(str(name), targets, Scheme(Format.UNKNOWN, str(name)))
            continue
        if not isinstance(group, Mapping):
            block.doubt("config groups that are not objects", _quoted(name))
            continue
        block.unknown_keys(_GROUP_KEYS, group, " in config_groups")
        if declared is not None:
            scheme = declared
        elif modelopt:
            scheme = _modelopt_group(block, group)
        else:
            scheme = _group_scheme(block, group, str(name))
        yield Group(str(name), block.names("targets", group), scheme)


def _modelopt_group(block: _Block, group: Mapping[str, Any]) -> Scheme:
    """Read a group of a mixed ModelOpt block, which says less than `quantized_layers`: no strategy, no scale dtype.

    Source: ModelOpt 0.47 torch/export/convert_hf_config.py, _quant_algo_to_group_config.
    """
    algo = block.text("quant_algo", group)
    if algo:
        return _modelopt_scheme(block, algo, None)
    weights, inputs = block.object("weights", group), block.object("input_activations", group)
    bits, kind, size = weights.get("num_bits"), weights.get("type"), block.number("group_size", weights)
    found = Format.UNKNOWN
    if kind == "int":
        found = Format.INT4 if bits == 4 else Format.INT8 if bits == 8 else found
    elif kind == "float" and bits == 4 and size == 16:
        found = Format.NVFP4 if inputs else Format.NVFP4_A16
    elif kind == "float" and bits == 8:
        found = Format.MXFP8 if size == 32 else Format.FP8 if size is None else found
        found = Format.FP8_CHANNEL if found is Format.FP8 and weights.get("strategy") == "channel" else found
    return Scheme(found, _MIXED, size, activations_quantized=bool(inputs))


def _group_scheme(block: _Block, group: Mapping[str, Any], name: str) -> Scheme:
    """Read a compressed-tensors group; source: compressed_tensors/compressed_tensors.py:420@0.32.0 and below."""
    algo = block.text("format", group) or block.text("format") or "compressed-tensors"
    weights = block.object("weights", group)
    inputs = block.object("input_activations", group)
    if not weights:
        if group.get("weights") is None and not inputs:
            return Scheme(Format.BF16, algo)
        block.doubt("config groups without weights", _quoted(name))
        return Scheme(Format.UNKNOWN, algo, activations_quantized=bool(inputs))
    size = block.number("group_size", weights)
    found = _format_of_arguments(block, weights, size)
    if found is Format.NVFP4 and not inputs:
        found = Format.NVFP4_A16
    elif found is Format.NVFP4 and (inputs.get("num_bits"), inputs.get("type")) != (4, "float"):
        block.doubt("NVFP4 weights with activations of another kind", _quoted(name))
    return Scheme(found, algo, size, activations_quantized=bool(inputs))


def _format_of_arguments(block: _Block, weights: Mapping[str, Any], size: int | None) -> Format:
    """Return the format of compressed-tensors' quantization arguments; NVFP4 stands for its 16-bit variant too."""
    bits, kind, strategy = block.number("num_bits", weights), weights.get("type", "int"), weights.get("strategy")
    if strategy is None:  # inferred as in compressed_tensors/quantization/quant_args.py:304 (0.17)
        strategy = "tensor" if size is None else "group" if size > 0 else "channel"
    found = Format.UNKNOWN
    match kind, bits, strategy:
        case "int", 4, _:
            found = Format.INT4
        case "int", 8, _:
            found = Format.INT8
        case "float", 4, "tensor_group" if size == 16:
            found = Format.NVFP4
        case "float", 4, "group" if size == 32:
            found = Format.MXFP4
        case "float", 8, "tensor":
            found = Format.FP8
        case "float", 8, "channel":
            found = Format.FP8_CHANNEL
        case "float", 8, "block":
            found = Format.FP8_BLOCK
            if weights.get("block_structure") not in ([128, 128], "128x128"):
                block.doubt("weights in blocks other than 128 x 128", _brief(weights.get("block_structure")))
        case "float", 8, "group" if size == 32:
            found = Format.MXFP8
        case _:
            written = (_brief(weights.get("type")), _brief(weights.get("num_bits")), _brief(strategy), _brief(size))
            block.doubt("weights of (type, bits, strategy, group size) not known here", f"({', '.join(written)})")
    return found


def _cache(block: _Block, values: Mapping[str, Any], key: str) -> str | None:
    """Return what a kv_cache_scheme says: FP8 for 8-bit floats, as vLLM reads it (modelopt.py:346@0.32.0)."""
    value = values.get(key)
    if value is None or isinstance(value, str):
        return value or None
    if not isinstance(value, Mapping):
        block.doubt(f"{key} is {_kind(value)}, not an object")
        return None
    kind, bits = value.get("type"), value.get("num_bits")
    if kind == "float" and bits == 8:
        return "FP8"
    if isinstance(kind, str) and _is_int(bits):
        return f"{kind[:20]}{bits}"
    block.doubt(f"{key} has no type and num_bits")
    return None


# ---------------------------------------------------------------------------------------------- fp8, MXFP8, MXFP4


def _read_fp8(block: _Block) -> _Content:
    size = block.values.get("weight_block_size")
    found = Format.FP8
    if size is not None:
        found = Format.FP8_BLOCK
        if not isinstance(size, (list, tuple)) or list(size) != [128, 128]:
            block.doubt("weight_block_size is not [128, 128]", _brief(size))
            found = Format.UNKNOWN
    if block.text("activation_scheme") is None:
        block.doubt("there is no activation_scheme")
    for key in ("store_dtype", "moe_quant_algo"):  # DeepSeek-V4's experts: MXFP4 or NVFP4 beside fp8
        value = block.text(key)
        if value:
            block.doubt(f"{key} sets some modules apart, and is not read here", _quoted(value))
    key, names = _ignored(block)
    scheme = Scheme(found, "fp8", activations_quantized=True)
    return _Content(
        scheme=scheme, exclude_key=key, excludes=names, kv_cache=_cache(block, block.values, "kv_cache_scheme")
    )


def _ignored(block: _Block) -> tuple[str, tuple[str, ...]]:
    """Return the list of an fp8 block; `ignored_layers` comes first where it is not empty (fp8.py:165@0.32.0)."""
    ignored = block.names("ignored_layers")
    if ignored:
        return "ignored_layers", ignored
    return "modules_to_not_convert", block.names("modules_to_not_convert")


def _read_mxfp8(block: _Block) -> _Content:
    key, names = _ignored(block)
    return _Content(
        scheme=Scheme(Format.MXFP8, "mxfp8", 32, activations_quantized=True), exclude_key=key, excludes=names
    )


def _read_mxfp4(block: _Block) -> _Content:
    key, names = _ignored(block)
    return _Content(scheme=Scheme(Format.MXFP4, "mxfp4", 32), exclude_key=key, excludes=names, group_size=32)


# ---------------------------------------------------------------------------------------------- Quark


def _read_quark(block: _Block) -> _Content:
    """Read Quark's block; source: model_executor/layers/quantization/quark/quark.py:768@0.32.0."""
    whole = block.values.get("global_quant_config")
    scheme = None if whole is None else _quark_scheme(block, whole)
    layers = {name: _quark_scheme(block, value) for name, value in block.object("layer_quant_config").items()}
    groups = tuple(
        Group(str(name), (str(name),), _quark_scheme(block, value))
        for name, value in block.object("layer_type_quant_config").items()
    )
    export = block.object("export")
    cached = block.names("kv_cache_group", export)
    cache = next(
        (value for name, value in block.object("layer_quant_config").items() if cached and name in cached), None
    )
    outputs = cache.get("output_tensors") if isinstance(cache, Mapping) else None
    dtype = outputs.get("dtype") if isinstance(outputs, Mapping) else None
    return _Content(
        scheme=scheme,
        exclude_key="exclude",
        excludes=block.names("exclude"),
        layers=layers,
        groups=groups,
        group_size=scheme.group_size if scheme else None,
        kv_cache="FP8"
        if isinstance(dtype, str) and dtype.startswith("fp8")
        else dtype
        if isinstance(dtype, str)
        else None,
    )


def _quark_scheme(block: _Block, value: Any) -> Scheme:
    if not isinstance(value, Mapping):
        block.doubt(f"a Quark scheme is {_kind(value)}, not an object")
        return Scheme(Format.UNKNOWN, "quark")
    weight, inputs = value.get("weight"), value.get("input_tensors")
    if weight is None:
        return Scheme(Format.BF16, "quark")
    if isinstance(weight, (list, tuple)) and len(weight) == 1:
        weight = weight[0]
    found, size = _quark_format(weight)
    if found is Format.NVFP4 and not inputs:
        found = Format.NVFP4_A16
    if found is Format.UNKNOWN:
        block.doubt("Quark weights of a kind not known here", _quark_words(weight))
    return Scheme(found, "quark", size, activations_quantized=bool(inputs))


def _quark_format(weight: Any) -> tuple[Format, int | None]:
    if isinstance(weight, (list, tuple)):
        kinds = [(each.get("dtype"), each.get("qscheme")) for each in weight if isinstance(each, Mapping)]
        if kinds == [("fp4", "per_group"), ("fp8_e4m3", "per_tensor")] and weight[0].get("group_size") == 16:
            return Format.NVFP4, 16
        if kinds == [("fp8_e4m3", "per_tensor"), ("int4", "per_channel")]:
            return Format.INT4, None
        return Format.UNKNOWN, None
    if not isinstance(weight, Mapping):
        return Format.UNKNOWN, None
    size = weight.get("group_size") if _is_int(weight.get("group_size")) else None
    match weight.get("dtype"), weight.get("qscheme"):
        case "fp4", "per_group" if size == 32 and weight.get("scale_format") == "e8m0":
            return Format.MXFP4, size
        case "fp8_e4m3", "per_group" if size == 32 and weight.get("scale_format") == "e8m0":
            return Format.MXFP8, size
        case "fp8_e4m3", "per_tensor":
            return Format.FP8, None
        case "fp8_e4m3", "per_channel":
            return Format.FP8_CHANNEL, None
        case "fp8_e4m3", "per_block" if weight.get("block_size") == [128, 128]:
            return Format.FP8_BLOCK, None
        case (("int4" | "uint4"), _):
            return Format.INT4, size
        case "int8", _:
            return Format.INT8, size
    return Format.UNKNOWN, size


def _quark_words(weight: Any) -> str:
    if isinstance(weight, (list, tuple)):
        return " and ".join(_quark_words(each) for each in weight[:2])
    if not isinstance(weight, Mapping):
        return _kind(weight)
    return f"{_brief(weight.get('dtype'))} {_brief(weight.get('qscheme'))}"


# ---------------------------------------------------------------------------------------------- auto-round, GPTQ, AWQ


def _read_auto_round(block: _Block) -> _Content:
    """Read auto-round's block; source: model_executor/layers/quantization/inc/inc.py:274@0.32.0."""
    base = _auto_round_scheme(block, block.values)
    layers: dict[str, Scheme] = {}
    for name, value in block.object("extra_config").items():
        if isinstance(value, Mapping):
            layers[name] = _auto_round_scheme(block, {**_without_extra(block.values), **value})
        else:
            block.doubt("extra_config has values that are not objects", _quoted(name))
    groups = []
    for key in ("block_name_to_quantize", "to_quant_block_names"):
        value = block.values.get(key)
        if value:
            named = tuple(value.split(",")) if isinstance(value, str) else block.names(key)
            groups.append(Group(key, named, base))
            break
    return _Content(
        scheme=base,
        exclude_key="extra_config",
        excludes=tuple(name for name, scheme in layers.items() if scheme.format.plain),
        layers=layers,
        groups=tuple(groups),
        group_size=base.group_size,
    )


def _without_extra(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: values[key] for key in ("bits", "group_size", "data_type", "act_bits") if key in values}


def _auto_round_scheme(block: _Block, values: Mapping[str, Any]) -> Scheme:
    bits, kind = block.number("bits", values), block.text("data_type", values) or "int"
    size = values.get("group_size")
    blocks = isinstance(size, (list, tuple)) and list(size) == [128, 128]
    size = None if isinstance(size, (list, tuple)) else block.number("group_size", values)
    acts = block.number("act_bits", values)
    quantized = acts is not None and acts < 16
    if bits is not None and bits >= 16:
        return Scheme(Format.BF16, "auto-round")
    found = Format.UNKNOWN
    if "mx_fp" in kind:
        found = {4: Format.MXFP4, 8: Format.MXFP8}.get(bits or 0, found)
    elif "nv_fp" in kind and bits == 4:
        found = Format.NVFP4 if quantized else Format.NVFP4_A16
    elif kind == "int":
        found = {4: Format.INT4, 8: Format.INT8}.get(bits or 0, found)
    elif kind in ("fp", "fp8") and bits == 8 and blocks:
        found = Format.FP8_BLOCK
    if found is Format.UNKNOWN:
        block.doubt("weights of (data_type, bits) not known here", f"({_brief(kind)}, {_brief(bits)})")
    return Scheme(found, "auto-round", size, activations_quantized=quantized)


def _read_gptq(block: _Block) -> _Content:
    """Read GPTQ's block: `dynamic` excludes by `-:` patterns, as written; source: utils/gptq_utils.py:85@0.32.0."""
    base = _integers(block, "gptq", block.values)
    layers: dict[str, Scheme] = {}
    excludes = []
    for pattern, value in block.object("dynamic").items():
        if str(pattern).startswith("-:"):
            excludes.append(str(pattern))
        elif isinstance(value, Mapping):
            shared = {key: block.values[key] for key in ("bits", "group_size") if key in block.values}
            layers[pattern] = _integers(block, "gptq", {**shared, **value})
        else:
            block.doubt("dynamic has values that are not objects", _quoted(pattern))
    within = block.names("modules_in_block_to_quantize")
    return _Content(
        scheme=base,
        exclude_key="dynamic",
        excludes=tuple(excludes),
        layers=layers,
        groups=(Group("modules_in_block_to_quantize", within, base),) if within else (),
        group_size=base.group_size,
    )


def _read_awq(block: _Block) -> _Content:
    bits = "w_bit" if "w_bit" in block.values else "bits"
    size = "q_group_size" if "q_group_size" in block.values else "group_size"
    base = _integers(block, "awq", {"bits": block.values.get(bits), "group_size": block.values.get(size)})
    return _Content(
        scheme=base,
        exclude_key="modules_to_not_convert",
        excludes=block.names("modules_to_not_convert"),
        group_size=base.group_size,
    )


def _integers(block: _Block, method: str, values: Mapping[str, Any]) -> Scheme:
    bits = block.number("bits", values)
    found = {4: Format.INT4, 8: Format.INT8}.get(bits or 0, Format.UNKNOWN)
    if found is Format.UNKNOWN:
        block.doubt(f"{method} with bits not known here", _brief(bits))
    return Scheme(found, method, block.number("group_size", values))


def _read_other(block: _Block) -> _Content:
    if block.values.get("quant_method"):
        block.doubt("quant_method is not known here, and no list of it is read", _quoted(block.values["quant_method"]))
    return _Content()


_READERS: Mapping[str, Callable[[_Block], _Content]] = {
    "modelopt": _read_modelopt,
    "compressed-tensors": _read_compressed_tensors,
    "fp8": _read_fp8,
    "mxfp8": _read_mxfp8,
    "mxfp4": _read_mxfp4,
    "quark": _read_quark,
    "auto-round": _read_auto_round,
    "gptq": _read_gptq,
    "awq": _read_awq,
}


# ---------------------------------------------------------------------------------------------- differences, words


def _only(verb: str, labels: tuple[str, str], names: set[str]) -> Iterator[str]:
    if names:
        what = "1 name" if len(names) == 1 else f"{len(names)} names"
        yield f"{labels[0]} {verb} {what} that {labels[1]} does not: {describe_names(names)}"


def _layer_differences(a: Declaration, b: Declaration) -> Iterator[str]:
    one, other = label(a), label(b)
    if a.layers == b.layers:
        return
    yield from _only("lists", (one, other), a.layers.keys() - b.layers.keys())
    yield from _only("lists", (other, one), b.layers.keys() - a.layers.keys())
    apart = [name for name, scheme in a.layers.items() if name in b.layers and _unlike(scheme, b.layers[name])]
    if apart:
        here, there = a.layers[apart[0]], b.layers[apart[0]]
        yield (
            f"{one} and {other} give {'1 layer' if len(apart) == 1 else f'{len(apart)} layers'} different schemes, "
            f"such as {_said(here.algo)} and {_said(there.algo)}: {describe_names(apart)}"
        )


def _unlike(a: Scheme, b: Scheme) -> bool:
    sizes = {a.group_size, b.group_size} - {None}
    return a is not b and (a.algo.upper() != b.algo.upper() or a.format is not b.format or len(sizes) > 1)


def _by_target(declaration: Declaration) -> dict[str, tuple[Format, int | None, bool]]:
    return {
        target: (group.scheme.format, group.scheme.group_size, group.scheme.activations_quantized)
        for group in declaration.groups
        for target in group.targets
    }


def _said(text: str | None) -> str:
    return _clipped(text) if text else "nothing"


def _and_more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case Mapping():
            return "an object"
        case Sequence():
            return "a list"
    return "of an unknown type"


def _brief(value: Any) -> str:
    """Return a short value as it is, anything longer by its kind."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return _clipped(value)
    if isinstance(value, (int, float)) and abs(value) < 1e9:
        return str(value)
    if isinstance(value, (list, tuple)) and len(value) <= 3 and all(map(_is_int, value)):
        return "[" + ", ".join(_brief(each) for each in value) + "]"
    return _kind(value)


def _quoted(text: Any) -> str:
    return f'"{_clipped(str(text) if isinstance(text, str) else _brief(text))}"'


def _clipped(text: str) -> str:
    text = text if len(text) <= 60 else text[:59] + "…"
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")
