"""Model families as their public checkpoints have them: configurations, and every module with its shape.

Knows names and shapes on disk, at the published size and at one small enough for a test. Refuses to know formats,
lists and files: `tests.checkpoints` decides those. Numbers are the published ones; those of Step-3.7's vision tower
are the defaults of the engine's own configuration class.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

from tests.drafter_families import DRAFTERS
from tests.further_families import FURTHER
from tests.intern_families import intern_families
from tests.latent_families import LATENT
from tests.modules import (
    Config,
    Family,
    Kind,
    Layout,
    Module,
    Part,
    Size,
    appended_layers,
    experts,
    grouped_attention,
    joined_by_fc,
    latent_layer,
    layer_globs,
    main_model,
    mlp,
    mtp_glob,
    norms,
    plain,
    routed,
)  # fmt: skip
from tests.newest_families import NEWEST
from tests.omni_families import omni_families
from tests.parse_families import PARSE
from tests.puzzle_families import puzzle_families
from tests.qwen_modules import VISION, VISION_TINY, hybrid, linear_attention, vision_tower
from tests.recent_families import RECENT
from tests.sglang_families import SGLANG
from tests.sparse_families import SPARSE
from tests.step_families import STEP5, step_vision
from tests.wrapped_families import WRAPPED

# ---------------------------------------------------------------------------------------------- Qwen family


def qwen(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Qwen3-Next, Qwen3.5 dense and Qwen3.5 MoE: linear attention in three of four layers, MTP under `mtp.`."""
    text = config.get("text_config", config)
    root = "model.language_model" if "text_config" in config else "model"
    hidden = text["hidden_size"]
    yield plain(f"{root}.embed_tokens", text["vocab_size"], hidden)
    for index, kind in enumerate(text["layer_types"]):
        yield from _qwen_layer(f"{root}.layers.{index}", text, kind, "target", "each")
    yield plain(f"{root}.norm", hidden)
    yield Module("lm_head", (text["vocab_size"], hidden), Kind.HEAD)
    if "vision_config" in config:
        yield from vision_tower(config["vision_config"])
    yield from joined_by_fc(hidden)
    yield from _qwen_layer("mtp.layers.0", text, "full_attention", "branch", layout)


def _qwen_layer(root: str, text: Config, attention: str, part: Part, layout: Layout) -> Iterator[Module]:
    hidden = text["hidden_size"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    if attention == "full_attention":
        yield from grouped_attention(f"{root}.self_attn", text, part, gated=True)
    else:
        yield from linear_attention(f"{root}.linear_attn", text, part)
    if "num_experts" not in text:
        yield from mlp(f"{root}.mlp", hidden, text["intermediate_size"], Kind.MLP, part)
        return
    count, width = text["num_experts"], text["moe_intermediate_size"]
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield Module(f"{root}.mlp.shared_expert_gate", (1, hidden), Kind.ROUTER, part)
    shared = text["shared_expert_intermediate_size"]
    yield from mlp(f"{root}.mlp.shared_expert", hidden, shared, Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, layout)


def _with_bias(name: str, shape: tuple[int, ...], kind: Kind = Kind.VISION) -> Iterator[Module]:
    yield Module(name, shape, kind, "vision")
    yield plain(name, shape[0], weight="bias", part="vision")


# ------------------------------------------------------------------------------------------ DeepSeek, GLM


def deepseek(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield DeepSeek-V3: latent attention, MTP as layer N with its own embedding and head."""
    del layout
    yield from main_model(config, latent_layer)
    yield from appended_layers(config, latent_layer, own=True)


def glm(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield GLM-4.6: MTP as layer N without an embedding or head of its own."""
    del layout
    yield from main_model(config, _glm_layer)
    yield from appended_layers(config, _glm_layer)


def _glm_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    hidden = config["hidden_size"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from grouped_attention(f"{root}.self_attn", config, part, bias=config["attention_bias"])
    yield from routed(root, config, index, part)


# ---------------------------------------------------------------------------------------------------- Step


def step(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Step-3.5, and Step-3.7 with its vision tower: experts stacked, three MTP layers with dense blocks."""
    text = config.get("text_config", config)
    hidden, vocabulary, last = text["hidden_size"], text["vocab_size"], text["num_hidden_layers"]
    yield plain("model.embed_tokens", vocabulary, hidden)
    for index in range(last):
        yield from _step_layer(f"model.layers.{index}", text, index, "target", layout)
    yield plain("model.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    if "vision_config" in config:
        yield from step_vision(config["vision_config"], hidden)
    for index in range(last, last + text["num_nextn_predict_layers"]):
        root = f"model.layers.{index}"
        head = f"{root}.transformer.shared_head"
        yield from norms("branch", hidden, f"{root}.enorm", f"{root}.hnorm", f"{head}.norm")
        yield Module(f"{root}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        yield Module(f"{head}.output", (vocabulary, hidden), Kind.HEAD, "branch")
        yield from _step_layer(root, text, index, "branch", layout)


def _step_layer(root: str, text: Config, index: int, part: Part, layout: Layout) -> Iterator[Module]:
    hidden = text["hidden_size"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    kinds = text.get("layer_types", ())
    sliding = index < len(kinds) and kinds[index] == "sliding_attention"
    numbers = {**text, **(text["attention_other_setting"] if sliding else {})}
    numbers["num_key_value_heads"] = numbers["num_attention_groups"]
    yield from grouped_attention(f"{root}.self_attn", numbers, part)
    yield Module(f"{root}.self_attn.g_proj", (numbers["num_attention_heads"], hidden), Kind.ATTENTION, part)
    if index not in {int(number) for number in text["moe_layers_enum"].split(",")}:
        yield from mlp(f"{root}.mlp", hidden, text["intermediate_size"], Kind.MLP, part)
        return
    count, width = text["moe_num_experts"], text["moe_intermediate_size"]
    yield Module(f"{root}.moe.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.moe.router_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{root}.share_expert", hidden, text["share_expert_dim"], Kind.SHARED, part)
    place = f"{root}.moe.experts" if layout == "each" else f"{root}.moe"
    yield from experts(place, (count, width, hidden), part, "each" if layout == "each" else "stacked")


# ------------------------------------------------------------------------------------------------ Nemotron


def nemotron(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Nemotron-3 Super: Mamba, attention and latent experts by a pattern; MTP is attention plus experts."""
    del layout
    hidden = config["hidden_size"]
    yield plain("backbone.embeddings", config["vocab_size"], hidden)
    for index, letter in enumerate(config["hybrid_override_pattern"]):
        yield from _nemotron_layer(f"backbone.layers.{index}", config, letter, "target")
    yield plain("backbone.norm_f", hidden)
    yield Module("lm_head", (config["vocab_size"], hidden), Kind.HEAD)
    pattern = config["mtp_hybrid_override_pattern"]
    yield from norms("branch", hidden, "mtp.layers.0.enorm", "mtp.layers.0.hnorm")
    yield Module("mtp.layers.0.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
    for index, letter in enumerate(pattern):
        yield from _nemotron_layer(f"mtp.layers.{index}", config, letter, "branch")
    yield plain(f"mtp.layers.{len(pattern) - 1}.final_layernorm", hidden, part="branch")


def _nemotron_layer(root: str, config: Config, letter: str, part: Part) -> Iterator[Module]:
    yield plain(f"{root}.norm", config["hidden_size"], part=part)
    match letter:
        case "M":
            yield from _mamba(f"{root}.mixer", config, part)
        case "*":
            yield from (m for m in grouped_attention(f"{root}.mixer", config, part) if m.kind is Kind.ATTENTION)
        case _:
            yield from _latent_experts(f"{root}.mixer", config, part)


def _mamba(root: str, config: Config, part: Part) -> Iterator[Module]:
    heads, hidden = config["mamba_num_heads"], config["hidden_size"]
    inner = heads * config["mamba_head_dim"]
    channels = inner + 2 * config["n_groups"] * config["ssm_state_size"]
    yield Module(f"{root}.in_proj", (inner + channels + heads, hidden), Kind.LINEAR_ATTENTION, part)
    yield Module(f"{root}.out_proj", (hidden, inner), Kind.LINEAR_ATTENTION, part)
    yield plain(f"{root}.conv1d", channels, 1, config["conv_kernel"], part=part)
    yield plain(f"{root}.conv1d", channels, weight="bias", part=part)
    yield plain(f"{root}.norm", inner, part=part)
    for name in ("A_log", "D", "dt_bias"):
        yield plain(f"{root}.{name}", heads, weight="", part=part)


def _latent_experts(root: str, config: Config, part: Part) -> Iterator[Module]:
    hidden, latent, count = config["hidden_size"], config["moe_latent_size"], config["n_routed_experts"]
    width = config["moe_intermediate_size"]
    shared = config["moe_shared_expert_intermediate_size"] * config["n_shared_experts"]
    yield Module(f"{root}.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.gate.e_score_correction_bias", count, weight="", dtype="F32", part=part)
    yield Module(f"{root}.fc1_latent_proj", (latent, hidden), Kind.LATENT, part)
    yield Module(f"{root}.fc2_latent_proj", (hidden, latent), Kind.LATENT, part)
    yield Module(f"{root}.shared_experts.up_proj", (shared, hidden), Kind.SHARED, part)
    yield Module(f"{root}.shared_experts.down_proj", (hidden, shared), Kind.SHARED, part)
    yield Module(f"{root}.experts.{{}}.up_proj", (width, latent), Kind.EXPERT, part, experts=count)
    yield Module(f"{root}.experts.{{}}.down_proj", (latent, width), Kind.EXPERT, part, experts=count)


# ------------------------------------------------------------------------------------- MiMo, MiMo-V2, ERNIE


def _grouped(root: str, config: Config, part: Part, *, bias: bool = False) -> Iterator[Module]:
    """Yield grouped-query attention without norms on queries and keys."""
    for module in grouped_attention(root, config, part, bias=bias):
        if not module.name.endswith(("q_norm", "k_norm")):
            yield module


def mimo(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield MiMo: dense layers with biased attention, MTP under `model.mtp_layers.`."""
    del layout
    hidden = config["hidden_size"]
    yield from main_model(config, _mimo_layer)
    for index in range(config.get("num_nextn_predict_layers", 0)):
        root = f"model.mtp_layers.{index}"
        for name in ("token_layernorm", "hidden_layernorm", "final_layernorm"):
            yield plain(f"{root}.{name}", hidden, part="branch")
        yield Module(f"{root}.input_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        yield from _mimo_layer(root, config, index, "branch")


def _mimo_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    del index  # all are alike
    hidden = config["hidden_size"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from _grouped(f"{root}.self_attn", config, part, bias=config["attention_bias"])
    yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, part)


def mimo_v2(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield MiMo-V2: full and windowed attention, experts, MTP under `model.mtp.layers.` with a window.

    Flash stores queries, keys and values apart; what came after it stores them fused.
    """
    del layout
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield plain("model.embed_tokens", vocabulary, hidden)
    for index, windowed in enumerate(config["hybrid_layer_pattern"]):
        root = f"model.layers.{index}"
        yield from norms("target", hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
        yield from _mimo_v2_attention(f"{root}.self_attn", config, "target", windowed=bool(windowed))
        if not config["moe_layer_freq"][index]:
            yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, "target")
            continue
        count = config["n_routed_experts"]
        yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER)
        yield plain(f"{root}.mlp.gate.e_score_correction_bias", count, weight="", dtype="F32")
        yield from experts(f"{root}.mlp.experts", (count, config["moe_intermediate_size"], hidden), "target", "each")
    yield plain("model.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    if "vision_config" in config:
        yield from _mimo_v2_tower(config["vision_config"])
    for index in range(MIMO_V2_DEPTH):
        root = f"model.mtp.layers.{index}"
        for name in ("enorm", "hnorm", "input_layernorm", "pre_mlp_layernorm", "final_layernorm"):
            yield plain(f"{root}.{name}", hidden, part="branch")
        yield Module(f"{root}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        yield from _mimo_v2_attention(f"{root}.self_attn", config, "branch", windowed=True)
        yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, "branch")


MIMO_V2_DEPTH = 3
"""MTP layers that MiMo-V2-Flash ships; its configuration does not say."""


def _mimo_v2_attention(root: str, config: Config, part: Part, *, windowed: bool) -> Iterator[Module]:
    hidden, window = config["hidden_size"], "swa_" if windowed else ""
    heads, groups = config[f"{window}num_attention_heads"], config[f"{window}num_key_value_heads"]
    size, values = config[f"{window}head_dim"], config[f"{window}v_head_dim"]
    rows = {"q_proj": heads * size, "k_proj": groups * size, "v_proj": groups * values}
    if config["model_type"] != "mimo_v2_flash":
        rows = {"qkv_proj": sum(rows.values())}
    for name, count in rows.items():
        yield Module(f"{root}.{name}", (count, hidden), Kind.ATTENTION, part)
    yield Module(f"{root}.o_proj", (hidden, heads * values), Kind.ATTENTION, part)
    if windowed:
        yield plain(f"{root}.attention_sink_bias", heads, weight="", part=part)


def _mimo_v2_tower(vision: Config) -> Iterator[Module]:
    width, inner, root = vision["hidden_size"], vision["intermediate_size"], "visual"
    patch, heads, groups = vision["patch_size"], vision["num_heads"], vision["num_key_value_heads"]
    shape = (width, vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    yield plain(f"{root}.patch_embed.proj", *shape, part="vision")
    for index in range(vision["depth"]):
        block = f"{root}.blocks.{index}"
        yield from norms("vision", width, f"{block}.norm1", f"{block}.norm2")
        rows = (heads + groups) * vision["qk_channels"] + groups * vision["kv_channels"]
        yield from _with_bias(f"{block}.attn.qkv", (rows, width))
        yield from _with_bias(f"{block}.attn.proj", (width, heads * vision["kv_channels"]))
        yield from _with_bias(f"{block}.mlp.gate_proj", (inner, width))
        yield from _with_bias(f"{block}.mlp.up_proj", (inner, width))
        yield from _with_bias(f"{block}.mlp.down_proj", (width, inner))
    merged = width * vision["spatial_merge_size"] ** 2
    yield plain(f"{root}.merger.ln_q", width, part="vision")
    yield Module(f"{root}.merger.mlp.0", (merged, merged), Kind.VISION, "vision")
    yield Module(f"{root}.merger.mlp.2", (vision["out_hidden_size"], merged), Kind.VISION, "vision")


def ernie(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield ERNIE 4.5: experts from the second layer on, the embedding is the head, MTP in modules of its own."""
    del layout
    hidden = config["hidden_size"]
    yield plain("model.embed_tokens", config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        root = f"model.layers.{index}"
        yield from norms("target", hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
        yield from _grouped(f"{root}.self_attn", config, "target")
        if index < config["moe_layer_start_index"]:
            yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, "target")
            continue
        count, width = config["moe_num_experts"], config["moe_intermediate_size"]
        yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, dtype="F32")
        yield plain(f"{root}.mlp.moe_statics.e_score_correction_bias", 1, count, weight="", dtype="F32")
        shared = width * config["moe_num_shared_experts"]
        yield from mlp(f"{root}.mlp.shared_experts", hidden, shared, Kind.SHARED, "target")
        yield from experts(f"{root}.mlp.experts", (count, width, hidden), "target", "each")
    yield plain("model.norm", hidden)
    for index in range(config.get("num_nextn_predict_layers", 0)):
        yield plain(f"model.mtp_emb_norm.{index}", hidden, part="branch")
        yield plain(f"model.mtp_hidden_norm.{index}", hidden, part="branch")
        yield Module(f"model.mtp_linear_proj.{index}", (hidden, 2 * hidden), Kind.GLUE, "branch")
        root = f"model.mtp_block.{index}"
        yield from norms("branch", hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
        yield from _grouped(f"{root}.self_attn", config, "branch")
        yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, "branch")


# ------------------------------------------------------------------------------------------ configurations


def _qwen3_5(size: Size, *, moe: bool) -> Config:
    """Return a Qwen3.5 configuration: 27B as published, 397B-A17B as its model card states it."""
    name = "qwen3_5_moe" if moe else "qwen3_5"
    text: Config = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "bfloat16",
        "eos_token_id": 248044,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 4096 if moe else 5120,
        "initializer_range": 0.02,
        "layer_types": hybrid(60 if moe else 64),
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 64 if moe else 48,
        "linear_value_head_dim": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "model_type": f"{name}_text",
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": 32 if moe else 24,
        "num_hidden_layers": 60 if moe else 64,
        "num_key_value_heads": 2 if moe else 4,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 248320,
    }
    if moe:
        text |= {
            "moe_intermediate_size": 1024,
            "num_experts": 512,
            "num_experts_per_tok": 10,
            "router_aux_loss_coef": 0.001,
            "shared_expert_intermediate_size": 1024,
        }
    else:
        text["intermediate_size"] = 17408
    if size == "tiny":
        text |= _tiny_qwen(text, moe=moe)
        text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [3, 3, 2]}
    vision = VISION if size == "full" else VISION_TINY
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration" if moe else "Qwen3_5ForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": 248056,
        "model_type": name,
        "text_config": text,
        "tie_word_embeddings": False,
        "transformers_version": "5.10.1",
        "video_token_id": 248057,
        "vision_config": {**vision, "model_type": f"{name}_vision", "out_hidden_size": text["hidden_size"]},
        "vision_end_token_id": 248054,
        "vision_start_token_id": 248053,
    }


def _qwen3_5_text(size: Size, *, moe: bool) -> Config:
    """Return the configuration of a Qwen3.5 that was saved without its vision tower: that of its text model."""
    name = "Qwen3_5MoeForCausalLM" if moe else "Qwen3_5ForCausalLM"
    return {**_qwen3_5(size, moe=moe)["text_config"], "architectures": [name], "transformers_version": "5.10.1"}


def _tiny_qwen(text: Config, *, moe: bool) -> Config:
    numbers: Config = {
        "head_dim": 64,
        "hidden_size": 128,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 32,
        "max_position_embeddings": 1024,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 256,
        "eos_token_id": 1,
        "full_attention_interval": 2,
    }
    if moe:
        return numbers | {
            "moe_intermediate_size": 64,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "shared_expert_intermediate_size": 64,
        }
    return numbers | {"intermediate_size": 256} if "intermediate_size" in text else numbers


def _qwen3_next(size: Size) -> Config:
    """Return the configuration of Qwen3-Next-80B-A3B; `num_nextn_predict_layers` is what its users add for MTP."""
    config: Config = {
        "architectures": ["Qwen3NextForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "decoder_sparse_step": 1,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5120,
        "layer_types": hybrid(48),
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262144,
        "mlp_only_layers": [],
        "model_type": "qwen3_next",
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "num_attention_heads": 16,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "num_nextn_predict_layers": 1,
        "partial_rotary_factor": 0.25,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 10000000,
        "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": False,
        "transformers_version": "4.57.0.dev0",
        "use_cache": True,
        "vocab_size": 151936,
    }
    return config | _tiny_qwen(config, moe=True) if size == "tiny" else config


def _deepseek_v3(size: Size) -> Config:
    """Return the configuration of DeepSeek-R1 without the FP8 block that its original carries."""
    config: Config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
        "hidden_size": 7168,
        "initializer_range": 0.02,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 8,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 61,
        "num_key_value_heads": 128,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.46.3",
        "use_cache": True,
        "v_head_dim": 128,
        "vocab_size": 129280,
    }
    if size == "full":
        return config
    return config | {
        "first_k_dense_replace": 1,
        "hidden_size": 128,
        "intermediate_size": 256,
        "kv_lora_rank": 64,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "n_group": 1,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "rope_scaling": None,
        "topk_group": 1,
        "v_head_dim": 32,
        "vocab_size": 256,
    }


def _glm4_moe(size: Size) -> Config:
    """Return the configuration of GLM-4.6."""
    config: Config = {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": [151329, 151336, 151338],
        "first_k_dense_replace": 3,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "initializer_range": 0.02,
        "intermediate_size": 12288,
        "max_position_embeddings": 202752,
        "model_type": "glm4_moe",
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 160,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 96,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 92,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 151329,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 2.5,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "transformers_version": "4.54.0",
        "use_cache": True,
        "use_qk_norm": True,
        "vocab_size": 151552,
    }
    if size == "full":
        return config
    return config | {
        "eos_token_id": 1,
        "first_k_dense_replace": 1,
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "vocab_size": 256,
    }


def _step3p5(size: Size) -> Config:
    """Return the configuration of Step-3.5-Flash without its per-layer arrays, which `with_arrays` adds."""
    config: Config = {
        "architectures": ["Step3p5ForCausalLM"],
        "att_impl_type": "GQA",
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "head_dim": 128,
            "num_attention_groups": 8,
            "num_attention_heads": 96,
            "true_head_dim": 128,
        },
        "bos_token_id": 0,
        "eos_token_id": [1, 2, 128007],
        "head_dim": 128,
        "hidden_size": 4096,
        "intermediate_size": 11264,
        "max_position_embeddings": 262144,
        "max_seq_len": 262144,
        "model_type": "step3p5",
        "moe_every_n_layer": 1,
        "moe_intermediate_size": 1280,
        "moe_layer_offset": 0,
        "moe_layers_enum": ",".join(str(index) for index in range(3, 45)),
        "moe_num_experts": 288,
        "moe_router_activation": "sigmoid",
        "moe_router_scaling_factor": 3.0,
        "moe_top_k": 8,
        "need_fp32_gate": True,
        "norm_expert_weight": True,
        "num_attention_groups": 8,
        "num_attention_heads": 64,
        "num_hidden_layers": 45,
        "num_nextn_predict_layers": 3,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000,
        "share_expert_dim": 1280,
        "sliding_window": 512,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_head_wise_attn_gate": True,
        "use_moe": True,
        "use_moe_router_bias": True,
        "vocab_size": 128896,
    }
    if size == "full":
        return config
    return config | {
        "attention_other_setting": {
            "attention_type": "sliding_attention",
            "head_dim": 32,
            "num_attention_groups": 2,
            "num_attention_heads": 4,
            "true_head_dim": 32,
        },
        "eos_token_id": [1, 2],
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "max_seq_len": 1024,
        "moe_intermediate_size": 64,
        "moe_layers_enum": "1,2",
        "moe_num_experts": 4,
        "moe_top_k": 2,
        "num_attention_groups": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "share_expert_dim": 64,
        "sliding_window": 64,
        "vocab_size": 256,
    }


PER_LAYER = ("layer_types", "partial_rotary_factors", "rope_theta", "swiglu_limits", "swiglu_limits_shared")
"""Keys of the arrays that hold something for each layer of a Step model."""


def with_arrays(config: Config, length: int) -> Config:
    """Return a Step configuration with its per-layer arrays: full, sliding, sliding, sliding, and again.

    As in the published ones, no MTP layer is full.
    """
    changed = copy.deepcopy(config)
    text = changed.get("text_config", changed)
    if "layer_types" in text:
        text |= {key: value[:length] for key, value in text.items() if key in PER_LAYER}
        return changed
    full = [index % 4 == 0 and index < text["num_hidden_layers"] for index in range(length)]
    text["layer_types"] = ["full_attention" if flag else "sliding_attention" for flag in full]
    text["partial_rotary_factors"] = [0.5 if flag else 1.0 for flag in full]
    text["rope_theta"] = [5000000.0 if flag else 10000.0 for flag in full]
    text["swiglu_limits"] = [0.0] * length
    text["swiglu_limits_shared"] = [0.0] * length
    text["use_rope_layers"] = []
    text["yarn_only_types"] = ["full_attention"]
    return changed


def _step3p7(size: Size) -> Config:
    """Return Step-3.7-Flash: Step-3.5's text model below a vision tower (its numbers are those of the engine's
    defaults: COMPUTED).
    """
    text = _step3p5(size)
    del text["architectures"]
    vision: Config = {
        "heads": 16,
        "hidden_act": "quick_gelu",
        "image_size": 728,
        "layers": 47,
        "ls_init_value": 0.1,
        "mlp_ratio": 8960 / 1536,
        "model_type": "perception_encoder",
        "output_dim": None,
        "patch_size": 14,
        "use_abs_posemb": True,
        "use_cls_token": False,
        "use_ln_post": False,
        "use_ln_pre": True,
        "use_rope2d": True,
        "width": 1536,
    }
    if size == "tiny":
        vision |= {"heads": 2, "image_size": 56, "layers": 1, "mlp_ratio": 2.0, "width": 64}
    return {
        "architectures": ["Step3p7ForConditionalGeneration"],
        "auto_map": {"AutoConfig": "configuration_step3p7.Step3p7Config"},
        "bos_token_id": 0,
        "eos_token_id": text["eos_token_id"],
        "hidden_size": text["hidden_size"],
        "image_token_id": 128001 if size == "full" else 3,
        "model_type": "step3p7",
        "projector_bias": False,
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "vision_config": vision,
    }


STEP3P7_CONFIGURATION = '''"""Configuration of Step-3.7 for engines that leave its class to the checkpoint."""

from transformers import PretrainedConfig
from vllm.transformers_utils.configs.step3p5 import Step3p5Config


class VisionConfig(PretrainedConfig):
    model_type = "perception_encoder"


class Step3p7Config(PretrainedConfig):
    model_type = "step3p7"

    def __init__(self, text_config=None, vision_config=None, **named):
        text = {"architectures": ["Step3p5ForCausalLM"], **(text_config or {})}
        self.text_config = Step3p5Config(**text)
        self.text_config.layer_types = text.get("layer_types")  # as long as published: users extend it for MTP
        self.vision_config = VisionConfig(**(vision_config or {}))
        super().__init__(**named)

    def get_text_config(self, *_, **__):
        return self.text_config
'''


NEMOTRON_CONFIGURATION = '''"""Configuration of Nemotron-H for engines that leave its class to the checkpoint."""

from transformers import PretrainedConfig

KINDS = {"M": "mamba", "E": "moe", "*": "attention", "-": "mlp"}


class NemotronHConfig(PretrainedConfig):
    model_type = "nemotron_h"

    def __init__(self, hybrid_override_pattern="M", **named):
        self.hybrid_override_pattern = hybrid_override_pattern
        super().__init__(**named)

    @property
    def layers_block_type(self):
        return [KINDS[letter] for letter in self.hybrid_override_pattern]
'''


def _nemotron_h(size: Size) -> Config:
    """Return the published configuration of Nemotron-3-Super-120B-A12B."""
    config: Config = {
        "architectures": ["NemotronHForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_nemotron_h.NemotronHConfig"},
        "bos_token_id": 1,
        "chunk_size": 128,
        "conv_kernel": 4,
        "dtype": "bfloat16",
        "eos_token_id": 2,
        "expand": 2,
        "head_dim": 128,
        "hidden_dropout": 0.0,
        "hidden_size": 4096,
        "hybrid_override_pattern": (
            "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME"
        ),
        "initializer_range": 0.02,
        "intermediate_size": 2688,
        "layer_norm_epsilon": 1e-05,
        "mamba_head_dim": 64,
        "mamba_hidden_act": "silu",
        "mamba_num_heads": 128,
        "mamba_proj_bias": False,
        "mamba_ssm_cache_dtype": "float32",
        "max_position_embeddings": 262144,
        "mlp_bias": False,
        "mlp_hidden_act": "relu2",
        "model_type": "nemotron_h",
        "moe_intermediate_size": 2688,
        "moe_latent_size": 1024,
        "moe_shared_expert_intermediate_size": 5376,
        "moe_shared_expert_overlap": False,
        "mtp_hybrid_override_pattern": "*E",
        "n_group": 1,
        "n_groups": 8,
        "n_routed_experts": 512,
        "n_shared_experts": 1,
        "norm_eps": 1e-05,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts_per_tok": 22,
        "num_hidden_layers": 88,
        "num_key_value_heads": 2,
        "num_logits_to_keep": 1,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 0,
        "partial_rotary_factor": 1.0,
        "rescale_prenorm_residual": True,
        "residual_in_fp32": False,
        "rope_theta": 10000,
        "routed_scaling_factor": 5.0,
        "sliding_window": None,
        "ssm_state_size": 128,
        "tie_word_embeddings": False,
        "time_step_floor": 0.0001,
        "time_step_max": 0.1,
        "time_step_min": 0.001,
        "topk_group": 1,
        "transformers_version": "4.57.6",
        "use_bias": False,
        "use_cache": True,
        "use_conv_bias": True,
        "use_mamba_kernels": True,
        "vocab_size": 131072,
    }
    if size == "full":
        return config
    return config | {
        "chunk_size": 16,
        "head_dim": 32,
        "hidden_size": 128,
        "hybrid_override_pattern": "ME*E",
        "intermediate_size": 64,
        "mamba_head_dim": 32,
        "mamba_num_heads": 8,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "moe_latent_size": 64,
        "moe_shared_expert_intermediate_size": 128,
        "n_groups": 8,  # the default of an engine that reads another key
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "ssm_state_size": 4,
        "vocab_size": 256,
    }


MIMO_CONFIGURATION = '''"""Configuration of MiMo for engines that leave its class to the checkpoint."""

from transformers import Qwen2Config


class MiMoConfig(Qwen2Config):
    model_type = "mimo"

    def __init__(self, num_nextn_predict_layers=0, attention_bias=True, **named):
        super().__init__(**named)
        self.num_nextn_predict_layers = num_nextn_predict_layers
        self.attention_bias = attention_bias
'''


def _mimo(size: Size) -> Config:
    """Return the configuration of MiMo-7B."""
    config: Config = {
        "architectures": ["MiMoForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_mimo.MiMoConfig"},
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.02,
        "intermediate_size": 11008,
        "max_position_embeddings": 32768,
        "max_window_layers": 36,
        "model_type": "mimo",
        "num_attention_heads": 32,
        "num_hidden_layers": 36,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 640000,
        "sliding_window": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151680,
    }
    if size == "full":
        return config
    return config | {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "max_window_layers": 2,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "sliding_window": 1024,
        "vocab_size": 256,
    }


MIMO_V2_CONFIGURATION = '''"""Configuration of MiMo-V2-Flash for engines that leave its class to the checkpoint."""

from transformers import PretrainedConfig


class MiMoV2FlashConfig(PretrainedConfig):
    model_type = "mimo_v2_flash"

    def __init__(self, **named):
        for name, value in named.items():
            setattr(self, name, value)
        super().__init__(**named)
'''


def _mimo_v2(size: Size) -> Config:
    """Return the configuration of MiMo-V2-Flash; a small one has values as wide as keys, for engines on a CPU."""
    full = [index == 0 or index % 6 == 5 for index in range(48)]
    config: Config = {
        "add_full_attention_sink_bias": False,
        "add_swa_attention_sink_bias": True,
        "architectures": ["MiMoV2FlashForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_value_scale": 0.707,
        "auto_map": {"AutoConfig": "configuration_mimo_v2_flash.MiMoV2FlashConfig"},
        "eos_token_id": 151645,
        "head_dim": 192,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "hybrid_layer_pattern": [0 if flag else 1 for flag in full],
        "initializer_range": 0.02,
        "intermediate_size": 16384,
        "layernorm_epsilon": 1e-05,
        "max_position_embeddings": 262144,
        "model_type": "mimo_v2_flash",
        "moe_intermediate_size": 2048,
        "moe_layer_freq": [0] + [1] * 47,
        "n_group": 1,
        "n_routed_experts": 256,
        "n_shared_experts": None,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "partial_rotary_factor": 0.334,
        "rope_theta": 5000000,
        "routed_scaling_factor": None,
        "scoring_func": "sigmoid",
        "sliding_window": 128,
        "sliding_window_size": 128,
        "swa_head_dim": 192,
        "swa_num_attention_heads": 64,
        "swa_num_key_value_heads": 8,
        "swa_rope_theta": 10000,
        "swa_v_head_dim": 128,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 128,
        "vocab_size": 152576,
    }
    if size == "full":
        return config
    return config | {
        "eos_token_id": 1,
        "head_dim": 32,
        "hidden_size": 128,
        "hybrid_layer_pattern": [0, 1],
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "moe_layer_freq": [0, 1],
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "sliding_window": 64,
        "sliding_window_size": 64,
        "swa_head_dim": 32,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_v_head_dim": 32,
        "v_head_dim": 32,
        "vocab_size": 256,
    }


def _mimo_v2_pro(size: Size) -> Config:
    """Return a configuration as MiMo-V2.5-Pro has it, with the numbers of MiMo-V2-Flash."""
    config = _mimo_v2(size) | {"architectures": ["MiMoV2ForCausalLM"], "model_type": "mimo_v2"}
    return config | {"auto_map": {"AutoConfig": "configuration_mimo_v2.MiMoV2Config"}}


def _mimo_v2_omni(size: Size) -> Config:
    """Return a configuration as MiMo-V2-Omni has it, less its ears; numbers are those of the classes' defaults."""
    vision: Config = {
        "depth": 28 if size == "full" else 1,
        "fullatt_block_indexes": [0],
        "hidden_act": "silu",
        "hidden_size": 1280,
        "in_channels": 3,
        "intermediate_size": 4608,
        "kv_channels": 64,
        "num_heads": 32,
        "num_key_value_heads": 8,
        "out_hidden_size": 4096,
        "patch_size": 16,
        "qk_channels": 64,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "use_sink": False,
        "visual_token_window_size": 64,
        "vit_window_attn_types": [-1] * (28 if size == "full" else 1),
        "window_size": 128,
    }
    if size == "tiny":
        vision |= {"hidden_size": 64, "intermediate_size": 128, "kv_channels": 32, "num_heads": 2}
        vision |= {"num_key_value_heads": 1, "out_hidden_size": 128, "qk_channels": 32}
    return _mimo_v2_pro(size) | {"architectures": ["MiMoV2OmniForCausalLM"], "vision_config": vision}


def _ernie(size: Size) -> Config:
    """Return the configuration of ERNIE-4.5-21B-A3B."""
    config: Config = {
        "architectures": ["Ernie4_5_MoeForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "intermediate_size": 12288,
        "max_position_embeddings": 131072,
        "model_type": "ernie4_5_moe",
        "moe_intermediate_size": 1536,
        "moe_k": 6,
        "moe_layer_end_index": 27,
        "moe_layer_interval": 1,
        "moe_layer_start_index": 1,
        "moe_num_experts": 64,
        "moe_num_shared_experts": 2,
        "num_attention_heads": 20,
        "num_hidden_layers": 28,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_bias": False,
        "use_cache": False,
        "vocab_size": 103424,
    }
    if size == "full":
        return config
    return config | {
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "moe_k": 2,
        "moe_layer_end_index": 1,
        "moe_num_experts": 4,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    }


# ------------------------------------------------------------------------------------------------ families


FAMILIES = {
    family.name: family
    for family in (
        Family(
            "qwen3_5",
            "Qwen3.5 dense, 27B",
            lambda size: _qwen3_5(size, moe=False),
            qwen,
            mtp_glob,
            vision=("visual",),
        ),
        Family(
            "qwen3_5_moe",
            "Qwen3.5 MoE, 397B-A17B",
            lambda size: _qwen3_5(size, moe=True),
            qwen,
            mtp_glob,
            ("each", "fused"),
            vision=("visual",),
        ),
        Family(
            "qwen3_5_text",
            "Qwen3.5 dense, text only",
            lambda size: _qwen3_5_text(size, moe=False),
            qwen,
            mtp_glob,
            asked=">=0.28",  # before, no draft was looked for beside it
        ),
        Family(
            "qwen3_5_moe_text",
            "Qwen3.5 MoE, text only",
            lambda size: _qwen3_5_text(size, moe=True),
            qwen,
            mtp_glob,
            ("each", "fused"),
            asked=">=0.28",
        ),
        Family("qwen3_next", "Qwen3-Next, 80B-A3B", _qwen3_next, qwen, mtp_glob),
        Family("deepseek_v3", "DeepSeek-R1, 671B", _deepseek_v3, deepseek, layer_globs, head="head"),
        Family("glm4_moe", "GLM-4.6, 355B", _glm4_moe, glm, layer_globs, head="head"),
        Family(
            "step3p5",
            "Step-3.5-Flash",
            _step3p5,
            step,
            layer_globs,
            ("stacked", "each"),
            block="mtp_block.",
            head="shared_head.head",
        ),
        Family(
            "step3p7",
            "Step-3.7-Flash",
            _step3p7,
            step,
            layer_globs,
            ("stacked", "each"),
            files={"configuration_step3p7.py": STEP3P7_CONFIGURATION},
            vision=("vision_model", "vit_large_projector"),
            block="mtp_block.",
            head="shared_head.head",
        ),
        Family(
            "nemotron_h",
            "Nemotron-3 Super, 120B-A12B",
            _nemotron_h,
            nemotron,
            mtp_glob,
            files={"configuration_nemotron_h.py": NEMOTRON_CONFIGURATION},
        ),
        Family(
            "mimo",
            "MiMo-7B",
            _mimo,
            mimo,
            lambda _: ["model.mtp_layers*"],
            files={"configuration_mimo.py": MIMO_CONFIGURATION},
            renamed={"model.mtp_layers.0.": "model.layers.{N}."},
        ),
        Family(
            "mimo_v2",
            "MiMo-V2-Flash",
            _mimo_v2,
            mimo_v2,
            lambda _: ["model.mtp*"],
            files={"configuration_mimo_v2_flash.py": MIMO_V2_CONFIGURATION},
            declares=False,
        ),
        Family(
            "mimo_v2_pro",
            "MiMo-V2.5-Pro",
            _mimo_v2_pro,
            mimo_v2,
            lambda _: ["model.mtp*"],
            files={"configuration_mimo_v2.py": MIMO_V2_CONFIGURATION.replace("Flash", "").replace("_flash", "")},
            declares=False,
            published="glob",
        ),
        Family(
            "mimo_v2_omni",
            "MiMo-V2-Omni",
            _mimo_v2_omni,
            mimo_v2,
            lambda _: ["model.mtp*"],
            files={"configuration_mimo_v2.py": MIMO_V2_CONFIGURATION.replace("Flash", "").replace("_flash", "")},
            vision=("visual",),
            declares=False,
            published="glob",
        ),
        Family(
            "ernie4_5_moe",
            "ERNIE-4.5-21B-A3B",
            _ernie,
            ernie,
            lambda _: ["model.mtp_block*", "model.mtp_linear_proj*"],
            renamed={
                "model.mtp_block.0.": "model.layers.{N}.",
                "model.mtp_linear_proj.0": "model.layers.{N}.mtp_linear_proj",
            },
            listed=("lm_head",),
        ),
        *FURTHER,
        *RECENT,
        *WRAPPED,
        *LATENT,
        *NEWEST,
        *SGLANG,
        *DRAFTERS,
        *SPARSE,
        *STEP5,
        *PARSE,
        *omni_families(_nemotron_h, nemotron),
        *intern_families(qwen, lambda size: _qwen3_5(size, moe=True)),
        *puzzle_families(_nemotron_h, _nemotron_layer),
    )
}

STEP = ("step3p5", "step3p7")
"""The families whose configuration holds per-layer arrays, and is tried without them."""

ARRAYED = ("step5", "step5_vl")
"""The families whose configuration always holds per-layer arrays."""

LIKE_ANOTHER = ("longcat_flash_both", "exaone_moe_renamed")
"""Families that differ from another in a key or a name of their configuration alone: the slow suite holds them."""

EVERY_TIME = ("deepseek_v3", "glm4_moe", "nemotron_h", "qwen3_5")
"""The families that costly tests go through every time, as unlike each other as there are; the rest wait for `slow`."""
