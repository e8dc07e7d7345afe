"""Checkpoints with real names, built for tests and examples: many families, two sizes, many ways to be right or wrong.

`tiny` checkpoints have small dimensions and random data, and load in the real engine. `full` checkpoints have the
published shapes, layers and experts, and cost nothing: their shards are sparse files in which only small float32
tensors (global scales, input scales, correction biases) are written.

Knows the names and shapes of the families and the files that exporters write. Refuses to know what an engine does
with them, and reads nothing of `mtpfix`. By hand: `python -m tests.checkpoints OUT --family F --variant V [--full]`.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import re
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from tests.families import ARRAYED, FAMILIES, STEP, with_arrays
from tests.modules import DECLARING, TEXT, Config, Family, Kind, Layout, Module, Size, text_of

# --------------------------------------------------------------------------------------------- safetensors

WIDTHS = {"U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "BF16": 2, "F16": 2, "F32": 4, "I32": 4, "I64": 8}
RANK = ["U8", "I8", "F8_E4M3", "F8_E8M0", "F16", "BF16", "I32", "F32", "I64"]
"""Data types in the order of the official writer, which puts the last of these first and sorts names within each."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor to write; `value` fills it with one number (float32 only), None with random bits of its type.

    Nothing is written of a `hollow` one: it reads as zeros.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    value: float | None = None
    hollow: bool = False

    @property
    def bytes(self) -> int:
        """Return how many bytes the data takes."""
        return math.prod(self.shape) * WIDTHS[self.dtype]


def write_shard(path: Path, tensors: Iterable[Tensor], *, sparse: bool = False) -> int:
    """Write one safetensors file as the official writer orders it, and return the bytes of its data.

    With `sparse` nothing is written but the header and float32 tensors of up to 4096 numbers; the rest is a hole.
    """
    ordered = sorted(tensors, key=lambda tensor: (-RANK.index(tensor.dtype), tensor.name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.bytes],
        }
        offset += tensor.bytes
    if len(header) <= len(ordered):
        raise ValueError(f"{path.name} would hold a tensor twice")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in ordered:
            if tensor.hollow or (sparse and not (tensor.dtype == "F32" and math.prod(tensor.shape) <= 4096)):
                file.seek(tensor.bytes, 1)
            else:
                file.write(data_of(tensor))
        file.truncate(8 + len(text) + offset)
    return offset


def data_of(tensor: Tensor) -> bytes:
    """Return the bytes of one tensor: the same for the same name, finite, and of the size that weights have."""
    count = math.prod(tensor.shape)
    random = Random(zlib.crc32(tensor.name.encode()))  # noqa: S311
    match tensor.dtype:
        case "F32":
            if tensor.value is not None:
                return struct.pack("<f", tensor.value) * count
            return b"".join(struct.pack("<f", random.uniform(-1, 1)) for _ in range(count))
        case "BF16":
            data = bytearray(2 * count)
            data[0::2] = random.randbytes(count)
            data[1::2] = random.randbytes(count).translate(BF16_HIGH)
            return bytes(data)
        case "F8_E4M3":
            signed = tensor.name.endswith(".weight")
            return random.randbytes(count).translate(E4M3_SIGNED if signed else E4M3_POSITIVE)
        case "I64":  # what points at rows: each of them once
            return struct.pack(f"<{count}q", *random.sample(range(count), count))
        case _:
            return random.randbytes(count * WIDTHS[tensor.dtype])


BF16_HIGH = bytes((0x3C, 0x3D, 0xBC, 0xBD)[byte & 3] for byte in range(256))  # magnitudes from 0.008 to 0.125
E4M3_POSITIVE = bytes(0x28 + byte % 0x20 for byte in range(256))  # 0.25 … 3.75
E4M3_SIGNED = bytes((byte & 0x80) | (0x28 + byte % 0x20) for byte in range(256))

# ------------------------------------------------------------------------------------------------ variants

INKLING = ("inkling", "inkling_text")

Lists = Literal["published", "glob", "exact", "engine", "target"]
Branch = Literal["plain", "linears", "all", "glue", "fp8", "absent"]


@dataclass(frozen=True)
class Variant:
    """One way to quantize, list and ship a family.

    `branch` says what of the MTP branch is packed: nothing, its decoder linears, those and the glue, the glue
    alone; that its decoder linears are FP8 in blocks; or that its tensors are not there. `lists` says how its
    unquantized modules are listed: by one glob for the branch, by every name on disk, by the names an engine asks
    with, or not at all ("target" lists only the target's), less the modules whose names end as `unlisted` says.
    `files` says which of the two quantization files exist; `config_lists`, where set, is how config.json lists,
    against the other file; `quantized` is whether anything is. `experts` says that those of the target are packed and
    listed all the same, or in BF16 and not listed.
    """

    name: str
    about: str
    lists: Lists = "glob"
    branch: Branch = "plain"
    files: Literal["both", "config", "hf"] = "both"
    dialect: Literal["modelopt", "mixed", "compressed-tensors"] = "modelopt"
    families: tuple[str, ...] = tuple(FAMILIES)
    layout: Layout | None = None
    arrays: Literal["none", "whole", "short"] = "none"
    input_scale: bool = True
    declares: bool = True
    weights_only: bool = False
    quantized: bool = True
    head: bool = False
    unlisted: tuple[str, ...] = ()
    config_lists: Lists | None = None
    experts: Literal["", "listed", "plain"] = ""


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("published", "as the public checkpoint of the family ships", lists="published"),
        Variant("excluded-glob", "branch in BF16, listed by one glob"),
        Variant("excluded-exact", "branch in BF16, every linear listed by its name on disk", lists="exact"),
        Variant("excluded-engine", "branch in BF16, listed by the names an engine asks with", lists="engine"),
        Variant("nothing-excluded", "branch in BF16, not listed", lists="target"),
        Variant("branch-nvfp4", "decoder linears of the branch packed, glue BF16 and listed", "exact", "linears"),
        Variant("all-nvfp4", "branch packed with its glue, not listed", "target", "all"),
        Variant(
            "missing",
            "MTP declared, no tensor of it there",
            branch="absent",
            families=tuple(name for name, family in FAMILIES.items() if family.declares),
        ),
        Variant("config-only", "quantization declared in config.json alone", files="config"),
        Variant("hf-quant-only", "quantization declared in hf_quant_config.json alone", files="hf"),
        Variant("mixed", "MIXED_PRECISION: an allow-list, the branch in BF16 and in no list", dialect="mixed"),
        Variant("compressed-tensors", "compressed-tensors names and scales", dialect="compressed-tensors"),
        Variant("packed-glue", "branch listed by a glob, its glue packed all the same", branch="glue"),
        Variant(
            "listed-packed", "decoder linears of the branch packed, listed by a glob all the same", "glob", "linears"
        ),
        Variant(
            "branch-fp8", "decoder linears of the branch FP8 in blocks, as the base model ships, listed", "glob", "fp8"
        ),
        Variant("o-proj-unlisted", "branch in BF16, all but its o_proj listed", "exact", unlisted=("o_proj",)),
        Variant("packed-head", "head of the target packed and not listed", head=True),
        Variant("conflict", "branch listed in hf_quant_config.json, not in config.json", config_lists="target"),
        Variant("no-input-scale", "no input scale anywhere", input_scale=False),
        Variant("weights-only", "W4A16_NVFP4: packed weights, 16-bit inputs", input_scale=False, weights_only=True),
        Variant(
            "fused-experts",
            "branch in BF16 with 3-D experts, listed by one glob",
            layout="fused",
            families=("qwen3_5_moe", "qwen3_5_moe_text", "intern_s2_preview"),
        ),
        Variant("layer-arrays", "per-layer arrays as long as all layers", arrays="whole", families=STEP),
        Variant("short-arrays", "per-layer arrays as long as the decoder", arrays="short", families=(*STEP, *ARRAYED)),
        Variant(
            "no-mtp",
            "no MTP declared, none there",
            branch="absent",
            declares=False,
            families=tuple(name for name, family in FAMILIES.items() if not family.alone),
        ),
        Variant("listed-experts", "experts packed, and listed all the same", experts="listed", families=INKLING),
        Variant("plain-experts", "experts in BF16, and not listed", experts="plain", families=INKLING),
    )
}


def _specialise(family: Family, variant: Variant) -> Variant:
    """Return a variant as one family publishes it."""
    if variant.name != "published":
        return variant
    match family.name:
        case "nemotron_h" | "nemotron_h_puzzle":
            return replace(variant, dialect="mixed")
        case "step3p5":
            return replace(variant, lists="glob", arrays="whole")
        case "step3p7":
            return replace(variant, lists="glob", branch="absent", arrays="short")
        case "glm4_moe" | "mimo" | "mimo_v2" | "ernie4_5_moe":
            return replace(variant, lists="glob")
        case _ if family.published == "plain":
            return replace(variant, quantized=False, layout=family.layouts[-1])
        case _ if family.published != "summary":
            return replace(variant, lists=family.published)
        case _:
            return variant


def formats_of(family: Family, variant: Variant, config: Config, modules: Sequence[Module]) -> dict[str, str]:
    """Return the format of every quantized module by its name: NVFP4, FP8 or FP8_BLOCK; others keep their own type."""
    variant = _specialise(family, variant)
    formats: dict[str, str] = {}
    for module in modules if variant.quantized else ():
        if module.part == "branch":
            if _packed_in_branch(module, variant.branch):
                formats[module.name] = "FP8_BLOCK" if variant.branch == "fp8" else "NVFP4"
        elif family.name in ("nemotron_h", "nemotron_h_puzzle") and variant.dialect == "mixed":
            if (found := _nemotron_format(module.name, config)) is not None:
                formats[module.name] = found
        elif module.kind is Kind.EXPERT and variant.experts == "plain":
            continue
        elif family.name in INKLING and variant.name == "published" and module.kind is Kind.MLP:
            continue  # of the published checkpoint only experts are packed
        elif module.kind in (Kind.MLP, Kind.EXPERT, Kind.SHARED) or (variant.head and module.kind is Kind.HEAD):
            formats[module.name] = "NVFP4"
        elif module.name.endswith("self_attn.o_proj"):
            if variant.dialect == "mixed":
                formats[module.name] = "FP8"
            elif family.name == "deepseek_v3" and variant.lists == "published":
                formats[module.name] = "NVFP4"  # the one linear of attention that the published list leaves out
    return formats


def _packed_in_branch(module: Module, branch: Branch) -> bool:
    if module.weight == "":
        return False
    match branch:
        case "linears" | "fp8":
            return module.kind in (Kind.ATTENTION, Kind.MLP, Kind.EXPERT, Kind.SHARED, Kind.LATENT)
        case "all":
            return module.kind not in (Kind.PLAIN, Kind.ROUTER, Kind.HEAD)
        case "glue":
            return module.kind is Kind.GLUE
        case _:
            return False


# Where the published Nemotron list deviates from "every module of that name": the layers it leaves out, and those
# few it names. Read from the published hf_quant_config.json.
NEMOTRON_LEFT_OUT = {
    "in_proj": {22, 24, 33, 35, 38, 42, 44, 46, 64, 75, 77, 80},
    "out_proj": {6, 15, 20, 22, 24, 27, 29, 31, 33, 35, 46},
    "shared_experts.up_proj": {41},
    "shared_experts.down_proj": {1, 8, 76},
}
NEMOTRON_NAMED = {"fc1_latent_proj": {1, 3, 5}, "fc2_latent_proj": {3}, "o_proj": {69, 78}}


def _nemotron_format(name: str, config: Config) -> str | None:
    """Return how the published Nemotron checkpoint stores a module of the target; of Puzzle no layer is left out."""
    match = re.fullmatch(r"(?:backbone|model)\.layers\.(\d+)\.mixer\.(.+)", name)
    if match is None:
        return None
    layer, rest = int(match[1]), match[2]
    whole = config["num_hidden_layers"] == 88 and "block_configs" not in config
    if rest.startswith("experts."):
        return "NVFP4"
    if rest in NEMOTRON_LEFT_OUT:
        if whole and rest == "shared_experts.down_proj" and layer == 1:
            return "NVFP4"
        return None if whole and layer in NEMOTRON_LEFT_OUT[rest] else "FP8"
    if rest in NEMOTRON_NAMED:
        return "FP8" if whole and layer in NEMOTRON_NAMED[rest] else None
    return None


# ------------------------------------------------------------------------------------------ tensors of a module


def tensors_of(module: Module, stored: str | None, variant: Variant) -> Iterator[Tensor]:
    """Yield the tensors of one module in one format; `stored` is as in `formats_of`, or None for its own type."""
    for name in module.names:
        if stored is None:
            whole = f"{name}.{module.weight}" if module.weight else name
            yield Tensor(whole, module.dtype, module.shape, hollow=module.hollow)
        elif stored == "FP8":
            yield Tensor(f"{name}.weight", "F8_E4M3", module.shape)
            yield Tensor(f"{name}.weight_scale", "F32", (), 0.01)
            yield Tensor(f"{name}.input_scale", "F32", (), 0.01)
        elif stored == "FP8_BLOCK":
            *front, rows, columns = module.shape
            yield Tensor(f"{name}.weight", "F8_E4M3", module.shape)
            yield Tensor(f"{name}.weight_scale_inv", "F32", (*front, -(-rows // 128), -(-columns // 128)), 0.01)
        else:
            yield from _nvfp4(name, module, variant)


def _nvfp4(name: str, module: Module, variant: Variant) -> Iterator[Tensor]:
    shape = module.shape
    *front, columns = shape
    codes, scales = (*front, columns // 2), (*front, columns // 16)
    if variant.dialect == "compressed-tensors":
        yield Tensor(f"{name}.weight_packed", "U8", codes)
        yield Tensor(f"{name}.weight_scale", "F8_E4M3", scales)
        number: tuple[int, ...] = (shape[0], 1) if module.amax else (1,)
        yield Tensor(f"{name}.weight_global_scale", "F32", number, 100.0)
        if variant.input_scale:
            yield Tensor(f"{name}.input_global_scale", "F32", number, 100.0)
        return
    if module.amax:
        yield Tensor(name, "U8", codes)
        yield Tensor(f"{name}.scale", "F8_E4M3", scales)
        yield Tensor(f"{name}.scale2", "F32", shape[:-2], 0.01)
        yield Tensor(f"{name}.original_shape", "I32", (len(shape),))
        if variant.input_scale:
            yield Tensor(f"{name}.input_amax", "F32", (1,), 26.88)
        return
    single = shape[:-2]  # one number, or one for each stacked expert
    yield Tensor(f"{name}.weight", "U8", codes)
    yield Tensor(f"{name}.weight_scale", "F8_E4M3", scales)
    yield Tensor(f"{name}.weight_scale_2", "F32", single, 0.01)
    if variant.input_scale:
        yield Tensor(f"{name}.input_scale", "F32", single, 0.01)


# --------------------------------------------------------------------------------------------------- lists


def summarise(unquantized: Iterable[str], quantized: Iterable[str]) -> list[str]:
    """Return an exclude list in the style of ModelOpt: each name cut to the shortest dotted prefix, with a star,
    that no quantized module begins with.
    """
    taken = sorted(quantized)
    entries: set[str] = set()
    for name in unquantized:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            prefix = ".".join(parts[:count])
            place = bisect.bisect_left(taken, prefix)
            if place == len(taken) or not taken[place].startswith(prefix):
                entries.add(name if prefix == name else f"{prefix}*")
                break
        else:
            entries.add(name)
    return sorted(entries)


FUSED = {
    "q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj",
    "gate_proj": "gate_up_proj", "up_proj": "gate_up_proj",
    "q_a_proj": "fused_qkv_a_proj", "kv_a_proj_with_mqa": "fused_qkv_a_proj",
}  # fmt: skip


def engine_name(family: Family, module: Module, config: Config) -> str:
    """Return the name that vLLM asks its lists with for a linear of the branch."""
    name = re.sub(r"\.experts\..*", ".experts", module.name)
    for old, new in family.renamed.items():
        if name.startswith(old):
            layers = int(config.get("num_layers") or config["num_hidden_layers"])
            name = new.replace("{N}", str(layers)).replace("{2N}", str(2 * layers)) + name.removeprefix(old)
            break
    for old, new in family.inside.items():
        name = name.replace(old, new)
    layer = re.match(r"model\.layers\.\d+\.", name)
    if module.kind is Kind.HEAD and layer:
        return layer[0] + family.head
    if layer and family.block and module.kind is not Kind.GLUE:
        name = layer[0] + family.block + name[layer.end() :]
    front, _, last = name.rpartition(".")
    if module.kind is Kind.SHARED and family.name.startswith("nemotron_h"):
        return name
    return f"{front}.{FUSED.get(last, last)}".removeprefix(".")


def excludes_of(
    family: Family, variant: Variant, config: Config, modules: Sequence[Module], formats: Mapping[str, str]
) -> list[str]:
    """Return the list of modules that stay unquantized, in the way `variant` wants it."""
    variant = _specialise(family, variant)
    linears = [module for module in modules if module.kind is not Kind.PLAIN]
    quantized = [name for module in linears if module.name in formats for name in module.names]
    target = [module for module in linears if module.part != "branch" and module.name not in formats]
    branch = [module for module in linears if module.part == "branch" and module.name not in formats]
    if variant.lists == "published":
        if family.name == "deepseek_v3":
            return deepseek_published(config["num_hidden_layers"], config["first_k_dense_replace"])
        return sorted([*summarise((module.name for module in target), quantized), "mtp.layers.0*"])
    if variant.dialect == "compressed-tensors":
        exact = sorted(name for module in target if module.part != "vision" for name in module.names)
        exact += [f"re:.*{root}.*" for root in family.vision]
        return exact + [f"re:^{re.escape(glob.removesuffix('*'))}\\..*" for glob in family.globs(config)]
    if variant.lists == "exact":
        branch = [module for module in branch if not module.name.endswith(variant.unlisted or ("\0",))]
        return sorted([*family.listed, *(name for module in (*target, *branch) for name in module.names)])
    experts = [module.name for module in target if module.kind is Kind.EXPERT and variant.experts == "plain"]
    entries = summarise((module.name for module in target if module.name not in experts), [*quantized, *experts])
    if variant.experts == "listed":
        experts = [module.name for module in linears if module.kind is Kind.EXPERT and module.part != "branch"]
        entries += {f"{name.rpartition('.')[0]}*" for name in experts}
    if variant.lists == "glob" and variant.declares:
        entries += family.globs(config)
    elif variant.lists == "engine":
        text = text_of(config)
        entries += {engine_name(family, module, text) for module in branch if module.kind is not Kind.ROUTER}
    return sorted({*entries, *family.listed})


def deepseek_published(layers: int, dense: int) -> list[str]:
    """Return the exclude list of the published DeepSeek-R1 NVFP4 export, by rule, for any number of layers.

    Its order is the one of the file: names sorted as text, and below each layer in the order the exporter's set
    had, which differs in four layers. It names `q_proj`, which the model does not have, and not `q_a_proj`.
    """
    entries = ["lm_head", "model.embed_tokens"]
    for index in sorted([*range(layers), layers], key=str):
        root = f"model.layers.{index}"
        if index == layers:
            entries.append(f"{root}*")
            continue
        entries.append(f"{root}.input_layernorm")
        entries += [f"{root}.mlp.gate"] if index >= dense else []
        entries.append(f"{root}.post_attention_layernorm")
        match index:
            case 25 | 30 | 59:
                order = ["kv_a_proj_with_mqa", "kv_a_layernorm", "kv_b_proj", "q_b_proj", "q_proj"]
            case 2:
                order = ["kv_a_proj_with_mqa", "q_b_proj", "q_proj", "kv_a_layernorm", "kv_b_proj"]
            case _:
                order = ["kv_a_proj_with_mqa", "q_proj", "q_b_proj", "kv_a_layernorm", "kv_b_proj"]
        entries += [f"{root}.self_attn.{name}" for name in order]
    return [*entries, "model.norm"]


def quantized_layers(modules: Sequence[Module], formats: Mapping[str, str]) -> dict[str, Config]:
    """Return the allow-list of a MIXED_PRECISION export: per-tensor FP8 first, by name and layer, then NVFP4."""
    entries: list[tuple[tuple[int, ...], str, Config]] = []
    suffixes = {"in_proj": 0, "out_proj": 1, "up_proj": 2, "down_proj": 3, "fc1_latent_proj": 4, "fc2_latent_proj": 5}
    for module in modules:
        stored = formats.get(module.name)
        if stored is None:
            continue
        layer = int(found[1]) if (found := re.search(r"\.layers\.(\d+)\.", module.name)) else -1
        last = suffixes.get(module.name.rpartition(".")[2], 6)
        for number, name in enumerate(module.names):
            if stored == "FP8":
                entries.append(((0, last, layer, 0), name, {"quant_algo": "FP8"}))
            else:
                expert = number if module.experts else -1
                entries.append(((1, layer, expert, last), name, {"quant_algo": "NVFP4", "group_size": 16}))
    return {name: scheme for _, name, scheme in sorted(entries, key=lambda entry: entry[0])}


# -------------------------------------------------------------------------------------------- declarations

PRODUCER = {"name": "modelopt", "version": "0.39.0"}


def nested(
    algorithm: str, excludes: list[str] | None, layers: Mapping[str, Config] | None = None, cache: str | None = None
) -> Config:
    """Return the content of hf_quant_config.json; `cache` is the algorithm of the key and value cache."""
    block: Config = {"quant_algo": algorithm, "kv_cache_quant_algo": cache}
    if layers is not None:
        block["quantized_layers"] = dict(layers)
    else:
        block["group_size"] = 16
    if excludes is not None:
        block["exclude_modules"] = excludes
    return {"producer": PRODUCER, "quantization": block}


def flat(
    algorithm: str, excludes: list[str], layers: Mapping[str, Config] | None = None, cache: str | None = None
) -> Config:
    """Return the `quantization_config` that ModelOpt writes into config.json; `cache` as in `nested`."""
    four: Config = {"dynamic": False, "num_bits": 4, "type": "float", "group_size": 16}
    eight: Config = {"dynamic": False, "num_bits": 8, "type": "float"}
    if layers is None:
        inputs = None if algorithm.startswith("W4A16") else four
        groups = {"group_0": {"input_activations": inputs, "weights": four, "targets": ["Linear"]}}
    else:
        fp8 = [name for name, scheme in layers.items() if scheme["quant_algo"] == "FP8"]
        nvfp4 = [name for name, scheme in layers.items() if scheme["quant_algo"] != "FP8"]
        groups = {
            "group_0": {"input_activations": eight, "weights": eight, "targets": fp8},
            "group_1": {"input_activations": four, "weights": four, "targets": nvfp4},
        }
    block: Config = {"config_groups": groups, "ignore": excludes, "quant_algo": algorithm}
    if layers is not None:
        block["quantized_layers"] = dict(layers)
    if cache is not None:
        block["kv_cache_scheme"] = eight
    return block | {"producer": PRODUCER, "quant_method": "modelopt"}


def compressed(ignore: list[str], *, input_scale: bool = True) -> Config:
    """Return the `quantization_config` that llm-compressor writes for NVFP4."""
    weights: Config = {
        "actorder": None,
        "block_structure": None,
        "dynamic": False,
        "group_size": 16,
        "num_bits": 4,
        "observer": "static_minmax",
        "observer_kwargs": {},
        "strategy": "tensor_group",
        "symmetric": True,
        "type": "float",
    }
    group: Config = {
        "format": "nvfp4-pack-quantized",
        "input_activations": {**weights, "dynamic": "local"} if input_scale else None,
        "output_activations": None,
        "targets": ["Linear"],
        "weights": weights,
    }
    return {
        "config_groups": {"group_0": group},
        "format": "nvfp4-pack-quantized",
        "global_compression_ratio": None,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "version": "0.12.2",
    }


# ---------------------------------------------------------------------------------------------------- plans


@dataclass(frozen=True)
class Plan:
    """A checkpoint before it is written: its files, its modules, how each is stored, and its tensors by module."""

    family: str
    variant: str
    size: Size
    config: Config
    hf_quant_config: Config | None
    modules: tuple[Module, ...]
    formats: Mapping[str, str]
    groups: tuple[tuple[Tensor, ...], ...]
    excludes: tuple[str, ...] = field(default=())

    @property
    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors."""
        for group in self.groups:
            yield from group


def with_numbers(config: Config, changed: Mapping[str, Any]) -> Config:
    """Return a configuration with other numbers, those of its text model in that one; what both say stays equal."""
    text = text_of(config)
    inside = {key: value for key, value in changed.items() if key in text and text is not config}
    outside = {key: value for key, value in changed.items() if key not in inside or config.get(key) == text[key]}
    return config | outside | {key: text | inside for key in TEXT if key in config}


def plan(
    family: str,
    variant: str | Variant,
    size: Size = "tiny",
    *,
    excludes: Sequence[str] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan one checkpoint; `excludes`, where given, stands in for the list the variant would have.

    `numbers` take the place of those of the configuration, or of the text model below it where that has the key.

    Raises KeyError for an unknown family or variant, ValueError for a variant that the family does not have.
    """
    known = FAMILIES[family]
    if changed := dict(numbers or {}):
        known = replace(known, config=lambda wanted: with_numbers(FAMILIES[family].config(wanted), changed))
    chosen = variant if isinstance(variant, Variant) else VARIANTS[variant]
    if family not in chosen.families:
        raise ValueError(f"{family} has no variant {chosen.name}")
    special = _specialise(known, chosen)
    config = _configure(known, special, size)
    layout = special.layout or ("each" if special.dialect == "compressed-tensors" else known.layouts[0])
    modules = tuple(known.modules(_numbers(known, size, special), layout))
    present = tuple(module for module in modules if special.branch != "absent" or module.part != "branch")
    formats = formats_of(known, chosen, config, present)
    numbers = _numbers(known, size, special)
    names = list(excludes) if excludes is not None else excludes_of(known, chosen, numbers, present, formats)
    nested_block: Config | None = None
    if not special.quantized:
        names = []
    elif special.dialect == "compressed-tensors":
        config["quantization_config"] = compressed(names, input_scale=special.input_scale)
    else:
        layers = quantized_layers(present, formats) if special.dialect == "mixed" else None
        algorithm = "MIXED_PRECISION" if layers is not None else "W4A16_NVFP4" if special.weights_only else "NVFP4"
        names = names if layers is None or excludes is not None else []
        cache = "FP8" if layers is not None and family == "nemotron_h" else None
        if special.files != "hf":
            other = replace(special, lists=special.config_lists or special.lists)
            first = names if other == special else excludes_of(known, other, numbers, present, formats)
            config["quantization_config"] = flat(algorithm, first, layers, cache)
        if special.files != "config":
            nested_block = nested(algorithm, names if layers is None or names else None, layers, cache)
    scales = _nemotron_scales if special.dialect == "mixed" and family == "nemotron_h" else _no_scales
    groups = tuple((*tensors_of(module, _format_of(module, formats), special), *scales(module)) for module in present)
    return Plan(family, chosen.name, size, config, nested_block, present, formats, groups, tuple(names))


def _format_of(module: Module, formats: Mapping[str, str]) -> str | None:
    """Return the format of a module; a bias shares its module's name, and is never quantized."""
    return None if module.kind is Kind.PLAIN else formats.get(module.name)


def _no_scales(module: Module) -> Iterator[Tensor]:
    del module
    yield from ()


def _nemotron_scales(module: Module) -> Iterator[Tensor]:
    """Yield the scale of an FP8 cache, which the published Nemotron keeps beside its key and value projections."""
    if module.part == "target" and (found := re.search(r"\.([kv])_proj$", module.name)):
        yield Tensor(f"{module.name}.{found[1]}_scale", "F32", (), 0.01)


def _numbers(family: Family, size: Size, variant: Variant) -> Config:
    """Return the configuration that shapes follow: the one of the model, whatever arrays the variant cuts off."""
    config = family.config(size)
    if family.name in STEP and variant.arrays != "none":
        return with_arrays(config, _layers(config))
    return config


def _configure(family: Family, variant: Variant, size: Size) -> Config:
    config = family.config(size)
    text = text_of(config)
    if family.name in (*STEP, *ARRAYED) and variant.arrays != "none":
        length = _layers(config) if variant.arrays == "whole" else text["num_hidden_layers"]
        config = with_arrays(config, length)
        text = text_of(config)
    if not variant.declares:
        for key in DECLARING:
            for place in (text, config, config.get("mtp_config", {})):
                place.pop(key, None)
    return config


def _layers(config: Config) -> int:
    text = text_of(config)
    return int(text["num_hidden_layers"] + text["num_nextn_predict_layers"])


def build(
    folder: Path,
    family: str,
    variant: str | Variant = "published",
    size: Size = "tiny",
    *,
    shards: int | None = None,
    index: bool = True,
    branch_file: str | None = None,
    excludes: Sequence[str] | None = None,
    numbers: Mapping[str, Any] | None = None,
    sparse: bool = False,
) -> Plan:
    """Write one checkpoint into `folder` (created) and return its plan.

    `shards` defaults to two for a tiny checkpoint and to files of about 5 GB for a full one; one shard without an
    index is `model.safetensors`. `branch_file` puts the MTP branch into a file of that name. With `sparse` a tiny one
    holds no data but small float32 tensors, as a full one does.
    """
    planned = plan(family, variant, size, excludes=excludes, numbers=numbers)
    write(folder, planned, shards=shards, index=index, branch_file=branch_file, sparse=sparse)
    return planned


def write(
    folder: Path,
    planned: Plan,
    *,
    shards: int | None = None,
    index: bool = True,
    branch_file: str | None = None,
    sparse: bool = False,
) -> None:
    """Write a plan's files: config.json, hf_quant_config.json, shards and their index."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", planned.config)
    for name, text in FAMILIES[planned.family].files.items():
        (folder / name).write_text(text, encoding="utf-8")
    if planned.hf_quant_config is not None:
        _write_json(folder / "hf_quant_config.json", planned.hf_quant_config)
    whole = [
        (module.part == "branch" and branch_file is not None, group)
        for module, group in zip(planned.modules, planned.groups, strict=True)
    ]
    files = _spread([group for aside, group in whole if not aside], shards, planned.size)
    if branch_file is not None and (aside := [tensor for flag, group in whole if flag for tensor in group]):
        files[branch_file] = aside
    total = 0
    for name, tensors in files.items():
        total += write_shard(folder / name, tensors, sparse=sparse or planned.size == "full")
    if index and len(files) > 1:
        places = {tensor.name: name for name, tensors in files.items() for tensor in tensors}
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))},
        )


def _spread(groups: Sequence[tuple[Tensor, ...]], shards: int | None, size: Size) -> dict[str, list[Tensor]]:
    """Return tensors by file: all tensors of a module in one file, files of nearly equal bytes, in module order."""
    total = sum(tensor.bytes for group in groups for tensor in group)
    count = shards or (2 if size == "tiny" else max(1, round(total / 5e9)))
    if count == 1:
        return {"model.safetensors": [tensor for group in groups for tensor in group]}
    files: dict[str, list[Tensor]] = {f"model-{i:05}-of-{count:05}.safetensors": [] for i in range(1, count + 1)}
    names = list(files)
    done = 0
    for group in groups:
        files[names[min(count - 1, done * count // total)]].extend(group)
        done += sum(tensor.bytes for tensor in group)
    return files


def _write_json(path: Path, content: Config) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write one checkpoint by hand."""
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoints", description=main.__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--family", choices=sorted(FAMILIES), required=True)
    parser.add_argument("--variant", choices=sorted(VARIANTS), default="published")
    parser.add_argument("--full", action="store_true", help="published shapes, as sparse files")
    options = parser.parse_args(arguments)
    made = build(options.out, options.family, options.variant, "full" if options.full else "tiny")
    count = sum(1 for _ in made.tensors)
    print(f"{options.out}: {options.family} {options.variant}, {count:,} tensors")  # noqa: T201


if __name__ == "__main__":
    main()
