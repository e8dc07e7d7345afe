"""Model families whose MTP branch SGLang alone loads, as `tests.families` has the others.

Numbers are the published ones, or, where no public configuration was at hand, the defaults of the configuration class.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.modules import (
    Config,
    Family,
    Kind,
    Layout,
    Module,
    Part,
    Size,
    experts,
    grouped_attention,
    joined_by_fc,
    latent_attention,
    layer_globs,
    main_model,
    mlp,
    mtp_glob,
    norms,
    plain,
    routed,
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------- Qwen3-MoE


def qwen3_moe(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Qwen3-MoE with a branch like that of Qwen3-Next, under `mtp.`."""
    del layout
    yield from main_model(config, _qwen3_moe_layer)
    yield from joined_by_fc(config["hidden_size"])
    yield from _qwen3_moe_layer("mtp.layers.0", config, 0, "branch")


def _qwen3_moe_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    del index  # all are alike
    hidden, count = config["hidden_size"], config["num_experts"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from grouped_attention(f"{root}.self_attn", config, part)
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield from experts(f"{root}.mlp.experts", (count, config["moe_intermediate_size"], hidden), part, "each")


def _qwen3_moe(size: Size) -> Config:
    """Return the configuration of Qwen3-30B-A3B; `num_nextn_predict_layers` is what a branch is declared with."""
    config: Config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 151643,
        "decoder_sparse_step": 1,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 6144,
        "max_position_embeddings": 40960,
        "max_window_layers": 48,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": 768,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 48,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 1,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": 151936,
    }
    if size == "full":
        return config
    return config | {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "max_window_layers": 2,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 256,
    }


# ------------------------------------------------------------------------------------------------- GigaChat 3.5


def gigachat(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield GigaChat 3.5: delta networks, latent attention with a gate, norms with gates; MTP as layers from N on."""
    del layout
    hidden, vocabulary, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield plain("model.embed_tokens", vocabulary, hidden)
    for index in range(last):
        root = f"model.layers.{index}"
        yield from _gigachat_norms(root, config, "target")
        if config["layer_types"][index] == "linear_attention":
            yield from _gigachat_delta(f"{root}.self_attn", config)
        else:
            yield from _gigachat_latent(f"{root}.self_attn", config, "target")
        yield from routed(root, config, index, "target")
    yield from _gated_norm("model.norm", hidden, "target")
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    for index in range(last, last + config.get("num_nextn_predict_layers", 0)):
        root = f"model.layers.{index}"
        for name in ("enorm", "hnorm", "shared_head.norm"):
            yield from _gated_norm(f"{root}.{name}", hidden, "branch")
        yield Module(f"{root}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        yield from _gigachat_norms(root, config, "branch")
        yield from _gigachat_latent(f"{root}.self_attn", config, "branch")
        if config["nextn_is_sparse"]:
            yield from routed(root, config, index, "branch")
        else:
            yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, "branch")


def _gated_norm(name: str, size: int, part: Part) -> Iterator[Module]:
    yield plain(name, size, part=part)
    yield Module(f"{name}.gate_up_projection", (16, size), Kind.ROUTER, part)
    yield Module(f"{name}.gate_down_projection", (size, 16), Kind.ROUTER, part)


def _gigachat_norms(root: str, config: Config, part: Part) -> Iterator[Module]:
    for name in ("input", "post_attention", "post_self_attn", "post_feedforward"):
        yield from _gated_norm(f"{root}.{name}_layernorm", config["hidden_size"], part)


def _gigachat_latent(root: str, config: Config, part: Part) -> Iterator[Module]:
    gated = {f"{root}.q_a_layernorm": config["q_lora_rank"], f"{root}.kv_a_layernorm": config["kv_lora_rank"]}
    yield from (one for one in latent_attention(root, config, part) if one.name not in gated)
    for name, size in gated.items():
        yield from _gated_norm(name, size, part)
    rows = config["num_attention_heads"] * config["v_head_dim"]
    yield Module(f"{root}.gate_proj", (rows, config["hidden_size"]), Kind.ATTENTION, part)


def _gigachat_delta(root: str, config: Config) -> Iterator[Module]:
    hidden, heads = config["hidden_size"], config["linear_num_value_heads"]
    keys = config["linear_num_key_heads"] * config["linear_key_head_dim"]
    values = heads * config["linear_value_head_dim"]
    yield Module(f"{root}.in_proj_qkvz", (2 * keys + 2 * values, hidden), Kind.LINEAR_ATTENTION)
    yield Module(f"{root}.in_proj_ba", (2 * heads, hidden), Kind.LINEAR_ATTENTION)
    yield Module(f"{root}.out_proj", (hidden, values), Kind.LINEAR_ATTENTION)
    yield plain(f"{root}.conv1d", 2 * keys + values, 1, config["linear_conv_kernel_dim"])
    yield plain(f"{root}.A_log", heads, weight="", dtype="F32")
    yield plain(f"{root}.dt_bias", heads, weight="")
    yield plain(f"{root}.norm", config["linear_value_head_dim"])


def _gigachat35(size: Size) -> Config:
    """Return the defaults of the engine's configuration class, with two MTP layers and every fourth layer latent."""
    config: Config = {
        "architectures": ["GigaChat35ForCausalLM"],
        "attention_bias": False,
        "dtype": "bfloat16",
        "first_k_dense_replace": 1,
        "gated_attention": True,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 896,
        "kv_lora_rank": 512,
        "layer_types": ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(12)],
        "layernorm_gating_weight": 2.0,
        "layernorm_type": "pre_post",
        "linear_attention_type": "Qwen3NextGatedDeltaNet",
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 16,
        "linear_sigmoid_gate_scale": 2.0,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 4096,
        "model_type": "gigachat3_5",
        "moe_intermediate_size": 896,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "nextn_is_sparse": False,
        "norm_topk_prob": True,
        "norm_type": "ZeroCenteredGatedNorm",
        "num_attention_heads": 16,
        "num_experts_per_tok": 6,
        "num_hidden_layers": 12,
        "num_key_value_heads": 16,
        "num_nextn_predict_layers": 2,
        "output_gate_type": "sigmoid",
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_interleave": True,
        "rope_scaling": None,
        "rope_theta": 100000.0,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "use_mla_scaling_factor": True,
        "v_head_dim": 128,
        "vocab_size": 128256,
    }
    if size == "full":
        return config
    return config | {
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "kv_lora_rank": 64,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_key_head_dim": 32,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "linear_value_head_dim": 32,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 4,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "vocab_size": 256,
    }


def _gigachat35_sparse(size: Size) -> Config:
    """Return a configuration whose MTP layers have experts."""
    return _gigachat35(size) | {"nextn_is_sparse": True, "num_nextn_predict_layers": 1}


SGLANG = (
    Family(
        "gigachat35",
        "GigaChat 3.5",
        _gigachat35,
        gigachat,
        layer_globs,
        published="glob",
        asked="<0",  # vLLM has no such class
    ),
    Family(
        "gigachat35_sparse",
        "GigaChat 3.5, experts in its MTP layer",
        _gigachat35_sparse,
        gigachat,
        layer_globs,
        published="glob",
        asked="<0",
    ),
    Family(
        "qwen3_moe",
        "Qwen3-MoE with an MTP branch",
        _qwen3_moe,
        qwen3_moe,
        mtp_glob,
        asked="<0",  # vLLM has no such branch
    ),
)
