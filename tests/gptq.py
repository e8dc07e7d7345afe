"""Tiny checkpoints as GPTQModel writes them: packed linears with names as published, `dynamic`, and an MTP branch.

Takes the modules of `tests.checkpoints` and stores them otherwise. Refuses to know what an engine does with them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests import checkpoints
from tests.checkpoints import Plan, Tensor
from tests.modules import Kind, Module

GROUP = 32
BITS = 4
WORD = 32 // BITS
PACKED = (Kind.ATTENTION, Kind.MLP, Kind.EXPERT, Kind.SHARED)
BRANCH = {"glm4_moe": r"model\.layers\.2\."}
"""How the names of a family's branch begin, as a pattern, where that is not `mtp.`."""
WITHIN = [
    ["self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj"],
    ["self_attn.o_proj"],
    ["linear_attn.in_proj_qkv", "linear_attn.in_proj_z", "linear_attn.out_proj", "linear_attn.in_proj_qkvz"],
    ["mlp.up_proj", "mlp.gate_proj", "mlp.down_proj"],
    ["shared_expert.up_proj", "shared_expert.gate_proj", "shared_expert.down_proj"],
    ["shared_experts.up_proj", "shared_experts.gate_proj", "shared_experts.down_proj"],
]
"""What `modules_in_block_to_quantize` says of each block."""


@dataclass(frozen=True)
class Variant:
    """One way to quantize: whether the branch is packed, whether `dynamic` excludes it, and what else is declared."""

    name: str
    about: str
    packed: bool = False
    excluded: bool = False
    within: bool = False
    act_order: bool = False
    bits: int = BITS


VARIANTS = {
    variant.name: variant
    for variant in (
        Variant("excluded", "branch in BF16, excluded by dynamic", excluded=True),
        Variant("open", "branch in BF16, not excluded"),
        Variant("packed", "branch packed, not excluded", packed=True),
        Variant("listed-packed", "branch packed, excluded all the same", packed=True, excluded=True),
        Variant("within", "branch in BF16, not excluded, modules_in_block_to_quantize says which names", within=True),
        Variant("ordered", "activation order, the branch excluded", excluded=True, act_order=True),
        Variant("eight", "8 bits, the branch not excluded", bits=8),
    )
}
FAMILIES = ("qwen3_next", "qwen3_5", "qwen3_5_moe", "glm4_moe")


def plan(family: str, variant: str) -> Plan:
    """Plan one checkpoint."""
    chosen = VARIANTS[variant]
    base = checkpoints.plan(family, "excluded-glob")
    packed = {module.name for module in base.modules if _is_packed(module, chosen)}
    plain = checkpoints.VARIANTS["excluded-glob"]
    groups = tuple(
        tuple(
            _tensors(module, chosen.bits)
            if module.name in packed and module.weight == "weight" and len(module.shape) > 1
            else checkpoints.tensors_of(module, None, plain)
        )
        for module in base.modules
    )
    config = dict(base.config) | {"quantization_config": declared(family, chosen)}
    return replace(base, variant=variant, config=config, hf_quant_config=None, groups=groups)


def build(folder: Path, family: str, variant: str, *, sparse: bool = False) -> None:
    """Write one checkpoint, with the second file that GPTQModel writes."""
    planned = plan(family, variant)
    checkpoints.write(folder, planned, sparse=sparse)
    checkpoints._write_json(folder / "quantize_config.json", planned.config["quantization_config"])


def declared(family: str, variant: Variant) -> Mapping[str, Any]:
    """Return the `quantization_config`."""
    dynamic: dict[str, Any] = {r"-:.*mlp\.gate$": {}, r"-:.*shared_expert_gate$": {}, "-:^lm_head$": {}}
    if variant.excluded:
        dynamic[f"-:{BRANCH.get(family, 'mtp.')}.*"] = {}
    block: dict[str, Any] = {
        "bits": variant.bits,
        "checkpoint_format": "gptq",
        "desc_act": variant.act_order,
        "dynamic": dynamic,
        "group_size": GROUP,
        "lm_head": False,
        "meta": {"quantizer": ["gptqmodel:5.6.0"]},
        "pack_dtype": "int32",
        "quant_method": "gptq",
        "sym": True,
    }
    return block | ({"modules_in_block_to_quantize": WITHIN} if variant.within else {})


def _is_packed(module: Module, variant: Variant) -> bool:
    return module.kind in PACKED and (module.part == "target" or (module.part == "branch" and variant.packed))


def _tensors(module: Module, bits: int) -> Iterator[Tensor]:
    rows, columns = module.shape
    word = 32 // bits
    for name in module.names:
        yield Tensor(f"{name}.qweight", "I32", (columns // word, rows))
        yield Tensor(f"{name}.qzeros", "I32", (columns // GROUP, rows // word))
        yield Tensor(f"{name}.scales", "F16", (columns // GROUP, rows))
        yield Tensor(f"{name}.g_idx", "I32", (columns,))
