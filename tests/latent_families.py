"""The newest model families with latent attention, as `tests.families` has its own: HunYuan V4 and GLM-5.3-Flash.

Numbers are the defaults of the configuration class, as no public configuration was at hand.
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
    appended_layers,
    experts,
    latent_attention,
    mlp,
    norms,
    plain,
)  # fmt: skip
from tests.wrapped_families import glm_tower, wrapped_layer_globs


def indexer(root: str, config: Config, part: Part) -> Iterator[Module]:
    """Yield what chooses the positions that sparse attention looks at; `root` is `….self_attn.indexer`."""
    size, heads = config["index_head_dim"], config["index_n_heads"]
    yield Module(f"{root}.wq_b", (heads * size, config["q_lora_rank"]), Kind.ATTENTION, part)
    yield Module(f"{root}.wk", (size, config["hidden_size"]), Kind.ROUTER, part)
    yield Module(f"{root}.weights_proj", (heads, config["hidden_size"]), Kind.ROUTER, part)
    yield plain(f"{root}.k_norm", size, part=part, dtype="F32")
    yield plain(f"{root}.k_norm", size, weight="bias", part=part, dtype="F32")


# ---------------------------------------------------------------------------------------------------- HunYuan V4


def hunyuan_v4(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield HunYuan V4: hyper-connections around gated latent attention and experts, MTP under `model.mtp_layers.`."""
    del layout
    hidden, vocabulary, channels = config["hidden_size"], config["vocab_size"], config["hc_mult"]
    yield plain("model.embed_tokens", vocabulary, hidden)
    for index in range(config["num_hidden_layers"]):
        root = f"model.layers.{index}"
        yield from _hunyuan_v4_layer(root, config, "target", dense=config["mlp_layer_types"][index] == "dense")
        for half in ("hc_attn_layer", "hc_mlp_layer"):
            place = f"{root}.{half}.hc_pre"
            yield plain(f"{place}.hc_fn", 2 * channels, channels * hidden, weight="", dtype="F32")
            yield plain(f"{place}.hc_base", 2 * channels, weight="", dtype="F32")
            yield plain(f"{place}.hc_scale", 2, weight="", dtype="F32")
    yield plain("model.norm", hidden)
    yield plain("model.hc_head.hc_head_fn", channels, channels * hidden, weight="", dtype="F32")
    yield plain("model.hc_head.hc_head_base", channels, weight="", dtype="F32")
    yield plain("model.hc_head.hc_head_scale", 1, weight="", dtype="F32")
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    for index in range(config["num_nextn_predict_layers"]):
        root = f"model.mtp_layers.{index}"
        yield from norms("branch", hidden, f"{root}.enorm", f"{root}.hnorm", f"{root}.final_layernorm")
        yield Module(f"{root}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        yield from _hunyuan_v4_layer(root, config, "branch", dense=False)


def _hunyuan_v4_layer(root: str, config: Config, part: Part, *, dense: bool) -> Iterator[Module]:
    hidden, heads, width = config["hidden_size"], config["num_attention_heads"], config["moe_intermediate_size"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from latent_attention(f"{root}.self_attn", config, part)
    yield Module(f"{root}.self_attn.linear_gate", (heads * config["v_head_dim"], hidden), Kind.ATTENTION, part)
    yield plain(f"{root}.self_attn.learnable_sink_param", heads, weight="", part=part, dtype="F32")
    yield from indexer(f"{root}.self_attn.indexer", config, part)
    if dense:
        yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, part)
        return
    count = config["n_routed_experts"]
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.mlp.gate.e_score_correction_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{root}.mlp.shared_experts", hidden, width * config["n_shared_experts"], Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, "each")


def _hy_v4(size: Size) -> Config:
    """Return the configuration of HunYuan V4: the defaults of its class."""
    layers = 34 if size == "full" else 2
    config: Config = {
        "architectures": ["HYV4ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 120000,
        "dtype": "bfloat16",
        "enable_ihc": True,
        "enable_lm_head_fp32": False,
        "eos_token_id": 120025,
        "gated_mla": True,
        "gating_type": "elementwise",
        "hc_eps": 1e-06,
        "hc_magnitude": 2.0,
        "hc_mult": 4,
        "hidden_act": "silu",
        "hidden_size": 2816,
        "index_head_dim": 128,
        "index_n_heads": 16,
        "index_topk": 2048,
        "indexer_types": ["full"] * layers,
        "initializer_range": 0.006,
        "intermediate_size": 6912,
        "kv_lora_rank": 512,
        "layer_types": ["deepseek_sparse_attention"] * layers,
        "learnable_sink": True,
        "learnable_sink_init": 0.0,
        "max_position_embeddings": 262144,
        "mlp_layer_types": ["sparse" if index else "dense" for index in range(layers)],
        "model_type": "hy_v4",
        "moe_intermediate_size": 768,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 32,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 32,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 120002,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 10000000.0, "rope_type": "default"},
        "routed_scaling_factor": 2.827,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "use_cache": True,
        "v_head_dim": 256,
        "vocab_size": 120832,
    }
    if size == "full":
        return config
    return config | {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": 128,
        "index_n_heads": 4,
        "index_topk": 64,
        "intermediate_size": 256,
        "kv_lora_rank": 64,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 4,
        "pad_token_id": 0,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "vocab_size": 256,
    }


# ------------------------------------------------------------------------------------------------- GLM-5.3-Flash


def glm5_next(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield GLM-5.3-Flash: linear and indexed latent attention in residual streams, MTP as layer N."""
    del layout
    text, root = config["text_config"], "model.language_model"
    hidden, vocabulary, last, streams = (
        text["hidden_size"],
        text["vocab_size"],
        text["num_hidden_layers"],
        text["hc_mult"],
    )
    yield plain(f"{root}.embed_tokens", vocabulary, hidden)
    for index in range(last):
        layer = f"{root}.layers.{index}"
        yield from _glm5_next_layer(layer, text, index, "target")
        for half in ("attn", "ffn"):
            rows = (2 + streams) * streams
            yield plain(f"{layer}.hc_{half}_fn", rows, streams * hidden, weight="", dtype="F32")
            yield plain(f"{layer}.hc_{half}_base", rows, weight="", dtype="F32")
            yield plain(f"{layer}.hc_{half}_scale", 3, weight="", dtype="F32")
    yield plain(f"{root}.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    yield from glm_tower(config["vision_config"], config["vision_config"]["projection_intermediate_size"])
    yield from appended_layers(text, _glm5_next_layer, root)


def _glm5_next_layer(root: str, text: Config, index: int, part: Part) -> Iterator[Module]:
    hidden, width, kinds = text["hidden_size"], text["moe_intermediate_size"], text["layer_types"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    if index < len(kinds) and kinds[index] == "linear_attention":
        yield from _delta_attention(f"{root}.self_attn", text, part)
    else:
        yield from latent_attention(f"{root}.self_attn", text, part)
        place, size = f"{root}.self_attn.indexer", text["index_head_dim"]
        yield from indexer(place, text, part)
        yield plain(f"{place}.index_kpool_compress_ape", text["index_kpool"], size, weight="", part=part, dtype="F32")
        yield plain(f"{place}.index_kpool_compress_gate", size, hidden, weight="", part=part)
    if index < len(kinds) and text["mlp_layer_types"][index] == "dense":
        yield from mlp(f"{root}.mlp", hidden, text["intermediate_size"], Kind.MLP, part)
        return
    count = text["n_routed_experts"]
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.mlp.gate.e_score_correction_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{root}.mlp.shared_experts", hidden, width * text["n_shared_experts"], Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, "each")


def _delta_attention(root: str, text: Config, part: Part) -> Iterator[Module]:
    hidden, heads, size = text["hidden_size"], text["linear_num_heads"], text["linear_head_dim"]
    rows = {"q_proj": heads * size, "k_proj": heads * size, "v_proj": heads * size, "b_proj": heads}
    for name, count in (rows | {"f_a_proj": size, "g_a_proj": size}).items():
        yield Module(f"{root}.{name}", (count, hidden), Kind.LINEAR_ATTENTION, part)
    for name in ("f_b_proj", "g_b_proj"):
        yield Module(f"{root}.{name}", (heads * size, size), Kind.LINEAR_ATTENTION, part)
    yield Module(f"{root}.o_proj", (hidden, heads * size), Kind.LINEAR_ATTENTION, part)
    for name in ("q_conv1d", "k_conv1d", "v_conv1d"):
        yield plain(f"{root}.{name}", heads * size, 1, text["linear_conv_kernel_dim"], part=part)
    yield plain(f"{root}.A_log", heads, weight="", part=part, dtype="F32")
    yield plain(f"{root}.dt_bias", heads * size, weight="", part=part, dtype="F32")
    yield plain(f"{root}.o_norm", size, part=part)


def _glm5_next(size: Size) -> Config:
    """Return the configuration of GLM-5.3-Flash: the defaults of its classes, and what SGLang asks for beside them."""
    layers = 45 if size == "full" else 2
    kinds = ["indexed_attention" if index % 4 == 3 else "linear_attention" for index in range(layers)]
    text: Config = {
        "attention_bias": False,
        "dtype": "bfloat16",
        "first_k_dense_replace": 3,
        "hc_eps": 1e-06,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "index_head_dim": 128,
        "index_kpool": 16,
        "index_kpool_always_select_tail": True,
        "index_kpool_compress": True,
        "index_n_heads": 32,
        "index_topk": 2048,
        "intermediate_size": 12288,
        "kv_lora_rank": 512,
        "layer_types": kinds if size == "full" else ["linear_attention", "indexed_attention"],
        "linear_conv_kernel_dim": 4,
        "linear_head_dim": 128,
        "linear_lower_bound": -5.0,
        "linear_num_heads": 64,
        "indexer_rope_interleave": True,
        "max_position_embeddings": 1048576,
        "mhc": True,
        "mla_use_nope": True,
        "mlp_layer_types": ["dense" if index < 3 else "sparse" for index in range(layers)],
        "model_type": "glm5_next_text",
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "n_routed_experts": 288,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 64,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 154820,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 256,
        "qk_rope_head_dim": 0,
        "rms_norm_eps": 1e-05,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": 256,
        "vocab_size": 154880,
    }
    vision: Config = {
        "attention_bias": True,
        "depth": 24 if size == "full" else 1,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "image_size": 336,
        "in_channels": 3,
        "intermediate_size": 4096,
        "model_type": "glm5_next_vision",
        "num_heads": 16,
        "out_hidden_size": 4096,
        "patch_size": 14,
        "projection_intermediate_size": 10240,
        "rms_norm_eps": 1e-05,
        "spatial_merge_size": 2,
        "swiglu_limit": 10.0,
        "temporal_patch_size": 2,
    }
    if size == "tiny":
        text |= {
            "first_k_dense_replace": 1,
            "hidden_size": 128,
            "index_n_heads": 4,
            "index_topk": 64,
            "intermediate_size": 256,
            "kv_lora_rank": 64,
            "linear_head_dim": 32,
            "linear_num_heads": 4,
            "max_position_embeddings": 1024,
            "mlp_layer_types": ["dense", "sparse"],
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "num_attention_heads": 4,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 4,
            "pad_token_id": 0,
            "q_lora_rank": 128,
            "qk_nope_head_dim": 64,
            "v_head_dim": 64,
            "vocab_size": 256,
        }
        vision |= {"hidden_size": 64, "image_size": 56, "intermediate_size": 128, "num_heads": 2}
        vision |= {"out_hidden_size": 128, "projection_intermediate_size": 192}
    return {
        "architectures": ["Glm5NextForConditionalGeneration"],
        "image_end_token_id": 154831 if size == "full" else 3,
        "image_start_token_id": 154830 if size == "full" else 2,
        "image_token_id": 154854 if size == "full" else 4,
        "model_type": "glm5_next",
        "text_config": text,
        "tie_word_embeddings": False,
        "video_end_token_id": 154833 if size == "full" else 6,
        "video_start_token_id": 154832 if size == "full" else 5,
        "video_token_id": 154855 if size == "full" else 7,
        "vision_config": vision,
    }


LATENT = (
    Family(
        "hy_v4",
        "HunYuan V4",
        _hy_v4,
        hunyuan_v4,
        lambda _: ["model.mtp_layers*"],
        renamed={"model.mtp_layers.0.": "model.layers.{N}."},
        published="glob",
        asked=">=0.32",  # before, whether attention is sparse depends on how transformers spells it
    ),
    Family(
        "glm5_next",
        "GLM-5.3-Flash",
        _glm5_next,
        glm5_next,
        wrapped_layer_globs,
        vision=("model.visual",),
        renamed={"model.language_model.layers.": "model.layers."},
        published="target",
    ),
)
