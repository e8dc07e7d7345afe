"""Shapes by the configuration, held against the numbers of published models.

The numbers of each configuration, and where a source gives them the shapes, are copied from what is cited beside them.
Shapes marked as derived follow from those numbers by the modelling code of transformers, worked out by hand.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.checkpoint.names import split_name
from mtpfix.engines.predict import predict
from mtpfix.engines.shapes import read_shapes
from mtpfix.engines.subject import Subject
from mtpfix.families import match, read_numbers
from mtpfix.model import Verdict
from tests.checkpoints import Tensor, plan, write_shard
from tests.families import FAMILIES

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Published:
    """The numbers of one published configuration, and tensors with their shapes; `{}` stands for an expert number."""

    name: str
    config: Mapping[str, Any]
    tensors: Mapping[str, Shape]
    silent: tuple[str, ...] = ()
    """Tensors of which nothing may be said."""


def block(root: str, **shapes: Shape) -> dict[str, Shape]:
    """Return tensors below one name; a double underscore in a key stands for a dot."""
    return {f"{root}.{key.replace('__', '.')}.weight": shape for key, shape in shapes.items()}


def gated(root: str, hidden: int, width: int) -> dict[str, Shape]:
    """Return the tensors of a gated feed-forward block."""
    return block(root, gate_proj=(width, hidden), up_proj=(width, hidden), down_proj=(hidden, width))


# NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4, config.json and model.safetensors.index.json at revision 4f0cf9da: names and
# counts of the branch (8 and 1032 tensors), and most of these shapes; those of k_proj, v_proj, fc2_latent_proj and the
# shared expert follow from the numbers.
NEMOTRON_SUPER = Published(
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B-NVFP4",
    {
        "architectures": ["NemotronHForCausalLM"],
        "model_type": "nemotron_h",
        "conv_kernel": 4,
        "head_dim": 128,
        "hidden_size": 4096,
        "hybrid_override_pattern": "MEMEMEM" + "*EMEMEMEM" * 2 + "*EMEMEMEMEM" * 4 + "*EMEMEMEM" + "*EMEMEMEME",
        "intermediate_size": 2688,
        "mamba_head_dim": 64,
        "mamba_num_heads": 128,
        "moe_intermediate_size": 2688,
        "moe_latent_size": 1024,
        "moe_shared_expert_intermediate_size": 5376,
        "mtp_hybrid_override_pattern": "*E",
        "n_groups": 8,
        "n_routed_experts": 512,
        "n_shared_experts": 1,
        "num_attention_heads": 32,
        "num_hidden_layers": 88,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 1,
        "ssm_state_size": 128,
        "tie_word_embeddings": False,
        "use_conv_bias": True,
        "vocab_size": 131072,
    },
    {
        **block("mtp.layers.0", enorm=(4096,), hnorm=(4096,), norm=(4096,), eh_proj=(4096, 8192)),
        **block("mtp.layers.0.mixer", q_proj=(4096, 4096), k_proj=(256, 4096), v_proj=(256, 4096), o_proj=(4096, 4096)),
        **block("mtp.layers.1", norm=(4096,), final_layernorm=(4096,)),
        **block("mtp.layers.1.mixer", gate=(512, 4096), fc1_latent_proj=(1024, 4096), fc2_latent_proj=(4096, 1024)),
        **block("mtp.layers.1.mixer.shared_experts", up_proj=(5376, 4096), down_proj=(4096, 5376)),
        **block("mtp.layers.1.mixer.experts.{}", up_proj=(2688, 1024), down_proj=(1024, 2688)),
        "mtp.layers.1.mixer.gate.e_score_correction_bias": (512,),
    },
)

# Qwen/Qwen3.6-27B: config.json as copied in philbert440/Qwen3.6-27B-Uncensored-Aggressive-W4A16-AWQ
# (github.com/fantasylord/Qwen36, 2b66ce31). The 15 names are published, their sum is the published 0.791 GiB; derived.
QWEN_27B = Published(
    "Qwen/Qwen3.6-27B",
    {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": {
            "attn_output_gate": True,
            "full_attention_interval": 4,
            "head_dim": 256,
            "hidden_size": 5120,
            "intermediate_size": 17408,
            "layer_types": (["linear_attention"] * 3 + ["full_attention"]) * 16,
            "linear_conv_kernel_dim": 4,
            "linear_key_head_dim": 128,
            "linear_num_key_heads": 16,
            "linear_num_value_heads": 48,
            "linear_value_head_dim": 128,
            "model_type": "qwen3_5_text",
            "mtp_num_hidden_layers": 1,
            "num_attention_heads": 24,
            "num_hidden_layers": 64,
            "num_key_value_heads": 4,
            "tie_word_embeddings": False,
            "vocab_size": 248320,
        },
        "tie_word_embeddings": False,
        "vision_config": {
            "depth": 27,
            "hidden_size": 1152,
            "in_channels": 3,
            "intermediate_size": 4304,
            "num_heads": 16,
            "num_position_embeddings": 2304,
            "out_hidden_size": 5120,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
    },
    {
        **block("mtp", fc=(5120, 10240), norm=(5120,), pre_fc_norm_embedding=(5120,), pre_fc_norm_hidden=(5120,)),
        **block("mtp.layers.0", input_layernorm=(5120,), post_attention_layernorm=(5120,)),
        **block("mtp.layers.0.self_attn", q_proj=(12288, 5120), k_proj=(1024, 5120), v_proj=(1024, 5120)),
        **block("mtp.layers.0.self_attn", o_proj=(5120, 6144), q_norm=(256,), k_norm=(256,)),
        **gated("mtp.layers.0.mlp", 5120, 17408),
    },
)

# Qwen/Qwen3.6-35B-A3B: 19 names and their sum of 1611 MiB are published (guru87/Qwen3.6-35B-A3B-MTP); numbers as in
# THUDM/slime scripts/models/qwen3.5-35B-A3B.sh at 624b824a; shapes derived.
QWEN_35B = Published(
    "Qwen/Qwen3.6-35B-A3B",
    {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "model_type": "qwen3_5_moe",
        "text_config": {
            "head_dim": 256,
            "hidden_size": 2048,
            "model_type": "qwen3_5_moe_text",
            "moe_intermediate_size": 512,
            "mtp_num_hidden_layers": 1,
            "num_attention_heads": 16,
            "num_experts": 256,
            "num_hidden_layers": 40,
            "num_key_value_heads": 2,
            "shared_expert_intermediate_size": 512,
            "vocab_size": 248320,
        },
    },
    {
        **block("mtp", fc=(2048, 4096), norm=(2048,), pre_fc_norm_embedding=(2048,), pre_fc_norm_hidden=(2048,)),
        **block("mtp.layers.0", input_layernorm=(2048,), post_attention_layernorm=(2048,)),
        **block("mtp.layers.0.self_attn", q_proj=(8192, 2048), k_proj=(512, 2048), v_proj=(512, 2048)),
        **block("mtp.layers.0.self_attn", o_proj=(2048, 4096), q_norm=(256,), k_norm=(256,)),
        **block("mtp.layers.0.mlp", gate=(256, 2048), shared_expert_gate=(1, 2048)),
        **gated("mtp.layers.0.mlp.shared_expert", 2048, 512),
        "mtp.layers.0.mlp.experts.gate_up_proj": (256, 1024, 2048),
        "mtp.layers.0.mlp.experts.down_proj": (256, 2048, 512),
    },
)

# Qwen/Qwen3-Next-80B-A3B: numbers as in THUDM/slime scripts/models/qwen3-next-80B-A3B.sh at 624b824a; fc [2048, 4096]
# is quoted in vllm-project/vllm#46316, the rest is derived.
QWEN_NEXT = Published(
    "Qwen/Qwen3-Next-80B-A3B-Instruct",
    {
        "architectures": ["Qwen3NextForCausalLM"],
        "model_type": "qwen3_next",
        "head_dim": 256,
        "hidden_size": 2048,
        "moe_intermediate_size": 512,
        "num_attention_heads": 16,
        "num_experts": 512,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 1,
        "shared_expert_intermediate_size": 512,
        "vocab_size": 151936,
    },
    {
        **block("mtp", fc=(2048, 4096), norm=(2048,), pre_fc_norm_embedding=(2048,), pre_fc_norm_hidden=(2048,)),
        **block("mtp.layers.0.self_attn", q_proj=(8192, 2048), k_proj=(512, 2048), v_proj=(512, 2048)),
        **block("mtp.layers.0.self_attn", o_proj=(2048, 4096), q_norm=(256,), k_norm=(256,)),
        **block("mtp.layers.0.mlp", gate=(512, 2048), shared_expert_gate=(1, 2048)),
        **gated("mtp.layers.0.mlp.experts.{}", 2048, 512),
        **block("model", embed_tokens=(151936, 2048)),
    },
)


def latent(root: str, hidden: int, heads: int, ranks: Shape, sizes: Shape) -> dict[str, Shape]:
    """Return latent attention as transformers' DeepseekV3Attention has it: ranks of query and key, sizes of a head."""
    (low, key), (nope, rope, value) = ranks, sizes
    return {
        **block(root, q_a_proj=(low, hidden), q_a_layernorm=(low,), q_b_proj=(heads * (nope + rope), low)),
        **block(root, kv_a_proj_with_mqa=(key + rope, hidden), kv_a_layernorm=(key,)),
        **block(root, kv_b_proj=(heads * (nope + value), key), o_proj=(hidden, heads * value)),
    }


def deepseek(architecture: str, *numbers: int, **more: int) -> dict[str, Any]:
    """Return a configuration with latent attention and experts, its numbers in the order of the keys below."""
    first = ("hidden_size", "intermediate_size", "moe_intermediate_size", "n_routed_experts", "num_attention_heads")
    keys = (*first, "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim", "vocab_size")
    named = dict(zip((*keys, "num_hidden_layers", "first_k_dense_replace"), numbers, strict=True))
    return {"architectures": [architecture], "n_shared_experts": 1, "num_nextn_predict_layers": 1, **named, **more}


# deepseek-ai/DeepSeek-V3 and -R1: numbers as in THUDM/slime scripts/models/deepseek-v3.sh at 624b824a; derived.
DEEPSEEK = Published(
    "deepseek-ai/DeepSeek-V3",
    deepseek("DeepseekV3ForCausalLM", 7168, 18432, 2048, 256, 128, 1536, 512, 128, 64, 128, 129280, 61, 3),
    {
        **latent("model.layers.61.self_attn", 7168, 128, (1536, 512), (128, 64, 128)),
        "model.layers.0.self_attn.q_b_proj.weight": (24576, 1536),
        "model.layers.0.self_attn.kv_a_proj_with_mqa.weight": (576, 7168),
        "model.layers.0.self_attn.kv_b_proj.weight": (32768, 512),
        "model.layers.0.self_attn.o_proj.weight": (7168, 16384),
        **gated("model.layers.0.mlp", 7168, 18432),
        **gated("model.layers.61.mlp.shared_experts", 7168, 2048),
        **gated("model.layers.61.mlp.experts.{}", 7168, 2048),
        **block("model.layers.61", eh_proj=(7168, 14336), enorm=(7168,), hnorm=(7168,), embed_tokens=(129280, 7168)),
        **block("model.layers.61.shared_head", head=(129280, 7168), norm=(7168,)),
        **block("model.layers.61.mlp", gate=(256, 7168)),
        "model.layers.61.mlp.gate.e_score_correction_bias": (256,),
    },
)

# moonshotai/Kimi-K2-Instruct, which names DeepSeek's class: scripts/models/kimi-k2.sh at 624b824a; derived.
KIMI = Published(
    "moonshotai/Kimi-K2-Instruct",
    deepseek("DeepseekV3ForCausalLM", 7168, 18432, 2048, 384, 64, 1536, 512, 128, 64, 128, 163840, 61, 1),
    {
        **latent("model.layers.5.self_attn", 7168, 64, (1536, 512), (128, 64, 128)),
        **block("model.layers.5.mlp", gate=(384, 7168)),
        **block("model", embed_tokens=(163840, 7168)),
    },
)

# zai-org/GLM-5: scripts/models/glm5-744B-A40B.sh at 624b824a; eh_proj [6144, 12288] and mlp.gate [256, 6144] are
# published (CortexLM/GLM-5.1-NVFP4-MTP), the rest is derived.
GLM_5 = Published(
    "zai-org/GLM-5",
    deepseek("GlmMoeDsaForCausalLM", 6144, 12288, 2048, 256, 64, 2048, 512, 192, 64, 256, 154880, 78, 3)
    | {"index_head_dim": 128, "index_n_heads": 32, "head_dim": 64, "qk_head_dim": 256},
    {
        **latent("model.layers.78.self_attn", 6144, 64, (2048, 512), (192, 64, 256)),
        **block("model.layers.78", eh_proj=(6144, 12288), enorm=(6144,), hnorm=(6144,), shared_head__norm=(6144,)),
        **block("model.layers.78.mlp", gate=(256, 6144)),
        **block("model.layers.78.self_attn.indexer", wk=(128, 6144), wq_b=(4096, 2048), weights_proj=(32, 6144)),
        **gated("model.layers.78.mlp.experts.{}", 6144, 2048),
    },
)

# zai-org/GLM-4.7-Flash: scripts/models/glm4.7-30B-A3B.sh at 624b824a; derived.
GLM_FLASH = Published(
    "zai-org/GLM-4.7-Flash",
    deepseek("Glm4MoeLiteForCausalLM", 2048, 10240, 1536, 64, 20, 768, 512, 192, 64, 256, 154880, 47, 1),
    {
        **latent("model.layers.47.self_attn", 2048, 20, (768, 512), (192, 64, 256)),
        **block("model.layers.47", eh_proj=(2048, 4096), enorm=(2048,)),
        **gated("model.layers.0.mlp", 2048, 10240),
        **gated("model.layers.47.mlp.experts.{}", 2048, 1536),
    },
)


def glm(*numbers: int, **more: Any) -> dict[str, Any]:
    """Return a configuration of GLM-4.5, its numbers in the order of the keys below."""
    keys = ("hidden_size", "intermediate_size", "moe_intermediate_size", "n_routed_experts", "num_hidden_layers")
    shared = {"head_dim": 128, "num_attention_heads": 96, "num_key_value_heads": 8, "vocab_size": 151552}
    counts = {"n_shared_experts": 1, "num_nextn_predict_layers": 1}
    named = dict(zip((*keys, "first_k_dense_replace"), numbers, strict=True))
    return {"architectures": ["Glm4MoeForCausalLM"], **shared, **counts, **named, **more}


# zai-org/GLM-4.5 and zai-org/GLM-4.5-Air: scripts/models/glm4.5-355B-A32B.sh and glm4.5-106B-A12B.sh at 624b824a
# (both with `--add-qkv-bias`, the larger with `--qk-layernorm`); derived.
GLM_45 = Published(
    "zai-org/GLM-4.5",
    glm(5120, 12288, 1536, 160, 92, 3, attention_bias=True, use_qk_norm=True),
    {
        **block("model.layers.92.self_attn", q_proj=(12288, 5120), k_proj=(1024, 5120), v_proj=(1024, 5120)),
        **block("model.layers.92.self_attn", o_proj=(5120, 12288), q_norm=(128,), k_norm=(128,)),
        "model.layers.92.self_attn.q_proj.bias": (12288,),
        "model.layers.92.self_attn.k_proj.bias": (1024,),
        **block("model.layers.92", eh_proj=(5120, 10240), shared_head__norm=(5120,)),
        **block("model.layers.92.mlp", gate=(160, 5120)),
        **gated("model.layers.92.mlp.shared_experts", 5120, 1536),
        **gated("model.layers.2.mlp", 5120, 12288),
    },
    silent=("model.layers.92.self_attn.o_proj.bias",),
)
GLM_45_AIR = Published(
    "zai-org/GLM-4.5-Air",
    glm(4096, 10944, 1408, 128, 46, 1, attention_bias=False, use_qk_norm=False),
    {
        **block("model.layers.46.self_attn", q_proj=(12288, 4096), k_proj=(1024, 4096), o_proj=(4096, 12288)),
        **gated("model.layers.46.mlp.experts.{}", 4096, 1408),
        **gated("model.layers.0.mlp", 4096, 10944),
    },
    silent=("model.layers.46.self_attn.q_proj.bias",),
)

# XiaomiMiMo/MiMo-7B-RL: scripts/models/mimo-7B-rl.sh at 624b824a; derived.
MIMO = Published(
    "XiaomiMiMo/MiMo-7B-RL",
    {
        "architectures": ["MiMoForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "vocab_size": 151680,
    },
    {
        **block("model.mtp_layers.0", input_proj=(4096, 8192), token_layernorm=(4096,), final_layernorm=(4096,)),
        **gated("model.mtp_layers.0.mlp", 4096, 11008),
    },
    silent=("model.mtp_layers.0.self_attn.q_proj.weight",),
)

# Qwen/Qwen3.8-Flash-Next: its config.json, as the review of a description of it lists the keys (huggingface.co/Qwen/
# Qwen3.8-Flash-Next on 2026-09-13). Experts of the branch [640, 2560] and [2560, 640] are quoted in
# sgl-project/sglang#38121; the rest is derived, and held against what the weights add up to below.
QWEN_FLASH = Published(
    "Qwen/Qwen3.8-Flash-Next",
    FAMILIES["qwen4_exp"].config("full"),
    {
        **block("mtp", fc_embedding=(2560, 2560), fc_hidden=(2560, 2560), pre_fc_norm_embedding=(2560,)),
        **block("mtp", pre_fc_norm_hidden=(10240,)),
        **block("mtp.layers.0.self_attn", q_proj=(12288, 2560), k_proj=(512, 2560), o_proj=(2560, 6144)),
        **block("mtp.layers.0.self_attn.indexer", index_qk_proj=(640, 2560), q_layernorm=(128,), k_layernorm=(128,)),
        **block("mtp.layers.0.attn_hyper_connection", hc_norm=(10240,), input_mix_weight_down=(320, 10240)),
        **block("mtp.layers.0.attn_hyper_connection", input_mix_weight_up=(10240, 320), block_inject_weight=(4, 10240)),
        **block("mtp.layers.0.mlp", gate=(512, 2560), shared_expert_gate=(1, 2560)),
        **gated("mtp.layers.0.mlp.experts.{}", 2560, 640),
        **block("model.language_model.layers.1.ple", key_proj=(10240, 2560), conv1d=(10240, 1, 4)),
    },
    silent=("model.language_model.layers.1.ple.ple_embedding.ngram_embedding.shard_0.weight",),
)

# deepseek-ai/DeepSeek-V4-Flash: numbers as in anthony-chaudhary/fak#12635 (revision 0731, whose main layers are alike).
# `e_proj` [4096, 4096] is published; the rest follows from the model's own inference/model.py, worked out by hand.
DEEPSEEK_V4 = Published(
    "deepseek-ai/DeepSeek-V4-Flash",
    FAMILIES["deepseek_v4"].config("full") | {"compress_ratios": [0, 0] + [4, 128] * 20 + [4, 0]},
    {
        **block("mtp.0", e_proj=(4096, 4096), h_proj=(4096, 4096), enorm=(4096,), norm=(4096,), attn_norm=(4096,)),
        **block("mtp.0.attn", wq_a=(1024, 4096), wq_b=(32768, 1024), wkv=(512, 4096), q_norm=(1024,), kv_norm=(512,)),
        **block("mtp.0.attn", wo_a=(8192, 4096), wo_b=(4096, 8192)),
        "mtp.0.attn.attn_sink": (64,),
        "mtp.0.hc_attn_fn": (24, 16384),
        "mtp.0.hc_ffn_base": (24,),
        "mtp.0.hc_head_fn": (4, 16384),
        "mtp.0.ffn.gate.bias": (256,),
        **block("mtp.0.ffn.experts.{}", w1=(2048, 4096), w2=(4096, 2048), w3=(2048, 4096)),
        "layers.0.ffn.gate.tid2eid": (129280, 6),
        "layers.2.attn.compressor.ape": (4, 1024),
        **block("layers.2.attn.compressor", wkv=(1024, 4096), wgate=(1024, 4096), norm=(512,)),
        **block("layers.2.attn.indexer", wq_b=(8192, 1024), weights_proj=(64, 4096)),
        **block("layers.2.attn.indexer.compressor", wkv=(256, 4096), norm=(128,)),
        "layers.3.attn.compressor.ape": (128, 512),
        **block("layers.3.attn.compressor", wkv=(512, 4096)),
        **block("layers.42.ffn.shared_experts", w2=(4096, 2048)),
    },
    silent=("layers.2.ffn.gate.bias", "layers.3.ffn.gate.tid2eid", "layers.0.attn.compressor.ape"),
)

PUBLISHED = (
    NEMOTRON_SUPER, QWEN_27B, QWEN_35B, QWEN_NEXT, QWEN_FLASH, DEEPSEEK, DEEPSEEK_V4, KIMI, GLM_5, GLM_FLASH, GLM_45,
    GLM_45_AIR, MIMO,
)  # fmt: skip


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda published: published.name)
def test_the_configuration_gives_published_tensors_their_shapes(published: Published) -> None:
    family = match(published.config["architectures"][0])
    assert family is not None
    shapes = read_shapes(family, read_numbers(family, published.config), "vllm")

    def said(name: str) -> Shape | None:
        module, suffix = split_name(name)
        return shapes.of(module).get(suffix)

    assert {name: said(name) for name in published.tensors} == published.tensors
    assert {name for name in published.silent if said(name) is not None} == set()


# What the headers of Qwen/Qwen3.8-Flash-Next add up to by the same review; the decoder without its table of n-grams.
SUMS = {"target": 125_743_653_760, "branch": 2_607_150_848, "vision": 448_931_056}


def test_the_shapes_add_up_to_the_parameters_that_are_published() -> None:
    planned = plan("qwen4_exp", "excluded-glob", "full")
    family = match(planned.config["architectures"][0])
    assert family is not None
    shapes = read_shapes(family, read_numbers(family, planned.config), "vllm")
    found = dict.fromkeys(SUMS, 0)
    for module in planned.modules:
        if ".ple_embedding." in module.name:
            continue
        name, suffix = split_name(f"{module.name}.{module.weight}" if module.weight else module.name)
        found[module.part] += prod(shapes.of(name)[suffix]) * (module.experts or 1)
    assert found == SUMS


def stored(published: Published, experts: int) -> list[Tensor]:
    """Return the tensors of a published branch, its experts one by one."""
    names = ((name, shape) for name, shape in published.tensors.items())
    return [
        Tensor(name.replace("{}", str(number)), "F32" if name.endswith("_bias") else "BF16", shape)
        for name, shape in names
        for number in (range(experts) if "{}" in name else (0,))
    ]


@pytest.mark.parametrize(
    ("published", "count"),
    [(NEMOTRON_SUPER, 1040), (QWEN_27B, 15), (QWEN_35B, 19)],
    ids=lambda one: getattr(one, "name", ""),
)
def test_published_branches_of_full_size_have_no_finding_about_shapes(
    tmp_path: Path, published: Published, count: int
) -> None:
    tensors = stored(published, 512)
    assert len(tensors) == count
    (tmp_path / "config.json").write_text(json.dumps(published.config), encoding="utf-8")
    write_shard(tmp_path / "model.safetensors", tensors, sparse=True)
    subject = Subject(open_checkpoint(tmp_path))
    for engine, version in (("vllm", "0.18.1"), ("vllm", "0.24.0"), ("vllm", "0.32.0"), ("sglang", "0.5.23")):
        draft = predict(subject, engine, version).draft
        assert (draft.verdict, draft.error, draft.events) == (Verdict.LOADS, None, ())
