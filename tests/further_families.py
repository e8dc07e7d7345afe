"""More model families: GLM-4.7-Flash, GLM-5, openPangu, LongCat, EXAONE and HunYuan, as `tests.families` has its own.

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
    appended_layers,
    experts,
    grouped_attention,
    joined_by_fc,
    latent_attention,
    latent_layer,
    layer_globs,
    main_model,
    mlp,
    mtp_glob,
    norms,
    plain,
    routed,
)  # fmt: skip

# ------------------------------------------------------------------------------------- GLM with latent attention


def glm_latent(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield GLM-4.7-Flash and GLM-5: DeepSeek's layers, MTP as layer N without an embedding or head of its own."""
    del layout
    yield from main_model(config, _glm_layer)
    yield from appended_layers(config, _glm_layer)


def _glm_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    yield from latent_layer(root, config, index, part)
    if "index_head_dim" in config:
        size, heads = config["index_head_dim"], config["index_n_heads"]
        indexer = f"{root}.self_attn.indexer"
        yield Module(f"{indexer}.wq_b", (heads * size, config["q_lora_rank"]), Kind.ATTENTION, part)
        yield Module(f"{indexer}.wk", (size, config["hidden_size"]), Kind.ROUTER, part)
        yield Module(f"{indexer}.weights_proj", (heads, config["hidden_size"]), Kind.ROUTER, part)
        yield plain(f"{indexer}.k_norm", size, part=part, dtype="F32")
        yield plain(f"{indexer}.k_norm", size, weight="bias", part=part, dtype="F32")


LATENT_TINY: Config = {
    "first_k_dense_replace": 1,
    "hidden_size": 128,
    "intermediate_size": 256,
    "kv_lora_rank": 64,
    "max_position_embeddings": 1024,
    "moe_intermediate_size": 64,
    "n_routed_experts": 4,
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


def _glm4_moe_lite(size: Size) -> Config:
    """Return the configuration of GLM-4.7-Flash."""
    config: Config = {
        "architectures": ["Glm4MoeLiteForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": [154820, 154827, 154829],
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 10240,
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "model_type": "glm4_moe_lite",
        "moe_intermediate_size": 1536,
        "n_group": 1,
        "n_routed_experts": 64,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 20,
        "num_experts_per_tok": 4,
        "num_hidden_layers": 47,
        "num_key_value_heads": 20,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 154820,
        "partial_rotary_factor": 1.0,
        "q_lora_rank": 768,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 1.8,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "v_head_dim": 256,
        "vocab_size": 154880,
    }
    return config if size == "full" else config | LATENT_TINY | {"eos_token_id": 1, "pad_token_id": 0}


def _glm_moe_dsa(size: Size) -> Config:
    """Return the configuration of GLM-5."""
    config: Config = {
        "architectures": ["GlmMoeDsaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": [154820, 154827, 154829],
        "ep_size": 1,
        "first_k_dense_replace": 3,
        "head_dim": 64,
        "hidden_act": "silu",
        "hidden_size": 6144,
        "index_head_dim": 128,
        "index_n_heads": 32,
        "index_topk": 2048,
        "indexer_rope_interleave": True,
        "initializer_range": 0.02,
        "intermediate_size": 12288,
        "kv_lora_rank": 512,
        "max_position_embeddings": 202752,
        "model_type": "glm_moe_dsa",
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 78,
        "num_key_value_heads": 64,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 154820,
        "q_lora_rank": 2048,
        "qk_head_dim": 256,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_interleave": True,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "use_cache": True,
        "v_head_dim": 256,
        "vocab_size": 154880,
    }
    if size == "full":
        return config
    tiny = {"eos_token_id": 1, "head_dim": 32, "index_n_heads": 4, "pad_token_id": 0, "qk_head_dim": 64}
    return config | LATENT_TINY | tiny


# ---------------------------------------------------------------------------------------------------- openPangu


def pangu(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield openPangu Ultra MoE: DeepSeek's layers with norms around the feed-forward part, MTP as layer N."""
    del layout
    yield from main_model(config, _pangu_layer)
    yield from appended_layers(config, _pangu_layer, own=True)


def _pangu_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    names = ("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")
    yield from norms(part, config["hidden_size"], *(f"{root}.{name}" for name in names))
    yield from latent_attention(f"{root}.self_attn", config, part)
    for module in routed(root, config, index, part):
        if not module.name.endswith("e_score_correction_bias"):
            yield module


PANGU_CONFIGURATION = '''"""Configuration of openPangu Ultra MoE for engines that leave its class to the checkpoint."""

from transformers import PretrainedConfig


class PanguUltraMoEConfig(PretrainedConfig):
    model_type = "pangu_ultra_moe"

    def __init__(self, **named):
        for name in [name for name in named if name in NUMBERS]:
            setattr(self, name, named.pop(name))
        super().__init__(**named)


NUMBERS = (
    "first_k_dense_replace", "hidden_act", "hidden_size", "intermediate_size", "kv_lora_rank",
    "max_position_embeddings", "moe_intermediate_size", "n_routed_experts", "n_shared_experts", "norm_topk_prob",
    "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads",
    "num_nextn_predict_layers", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "rms_norm_eps", "rope_theta",
    "routed_scaling_factor", "sandwich_norm", "v_head_dim", "vocab_size",
)
'''


def _openpangu(size: Size) -> Config:
    """Return the configuration of openPangu-Ultra-MoE-718B."""
    config: Config = {
        "architectures": ["PanguUltraMoEForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_openpangu_moe.PanguUltraMoEConfig"},
        "bos_token_id": 0,
        "eos_token_id": 1,
        "first_k_dense_replace": 3,
        "hidden_act": "silu",
        "hidden_size": 7680,
        "initializer_range": 0.02,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "max_position_embeddings": 131072,
        "model_type": "pangu_ultra_moe",
        "moe_intermediate_size": 2048,
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
        "rms_norm_eps": 1e-05,
        "rope_theta": 25600000,
        "routed_scaling_factor": 2.5,
        "sandwich_norm": True,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 128,
        "vocab_size": 153600,
    }
    return config if size == "full" else config | LATENT_TINY


# ------------------------------------------------------------------------------------------------------ LongCat


def longcat(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield LongCat-Flash: two attentions and two dense blocks in each layer, MTP under `model.mtp.`."""
    del layout
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield plain("model.embed_tokens", vocabulary, hidden)
    for index in range(config["num_layers"]):
        yield from _longcat_layer(f"model.layers.{index}", config)
    yield plain("model.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    root = "model.mtp.layers.0"
    yield plain("model.mtp.embed_tokens", vocabulary, hidden, part="branch")
    yield from norms("branch", hidden, "model.mtp.norm", f"{root}.enorm.m", f"{root}.hnorm.m")
    yield from norms("branch", hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield Module(f"{root}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
    yield from latent_attention(f"{root}.self_attn", config, "branch")
    yield from mlp(f"{root}.transformer_layer.mlp", hidden, config["ffn_hidden_size"], Kind.MLP, "branch")


def _longcat_layer(root: str, config: Config) -> Iterator[Module]:
    hidden = config["hidden_size"]
    for half in (0, 1):
        yield from norms("target", hidden, f"{root}.input_layernorm.{half}", f"{root}.post_attention_layernorm.{half}")
        yield from latent_attention(f"{root}.self_attn.{half}", config, "target")
        yield from mlp(f"{root}.mlps.{half}", hidden, config["ffn_hidden_size"], Kind.MLP, "target")
    count = config["n_routed_experts"]
    yield Module(f"{root}.mlp.router.classifier", (count + config["zero_expert_num"], hidden), Kind.ROUTER)
    bias = f"{root}.mlp.router.e_score_correction_bias"
    yield plain(bias, count + config["zero_expert_num"], weight="", dtype="F32")
    yield from experts(f"{root}.mlp.experts", (count, config["expert_ffn_hidden_size"], hidden), "target", "each")


def _longcat_flash(size: Size) -> Config:
    """Return the configuration of LongCat-Flash-Chat."""
    config: Config = {
        "architectures": ["LongcatFlashForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attention_method": "MLA",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "expert_ffn_hidden_size": 2048,
        "ffn_hidden_size": 12288,
        "hidden_size": 6144,
        "kv_lora_rank": 512,
        "max_position_embeddings": 131072,
        "mla_scale_kv_lora": True,
        "mla_scale_q_lora": True,
        "model_type": "longcat_flash",
        "moe_topk": 12,
        "n_routed_experts": 512,
        "num_attention_heads": 64,
        "num_layers": 28,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000000.0,
        "routed_scaling_factor": 6.0,
        "router_bias": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "v_head_dim": 128,
        "vocab_size": 131072,
        "zero_expert_num": 256,
        "zero_expert_type": "identity",
    }
    if size == "full":
        return config
    return config | {
        "expert_ffn_hidden_size": 64,
        "ffn_hidden_size": 256,
        "hidden_size": 128,
        "kv_lora_rank": 64,
        "max_position_embeddings": 1024,
        "moe_topk": 2,
        "n_routed_experts": 4,
        "num_attention_heads": 4,
        "num_layers": 2,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "v_head_dim": 32,
        "vocab_size": 256,
        "zero_expert_num": 2,
    }


def _longcat_flash_both(size: Size) -> Config:
    """Return the configuration of LongCat-Flash with the number of its attentions, which transformers calls layers."""
    config = _longcat_flash(size)
    return config | {"num_hidden_layers": 2 * config["num_layers"]}


# ------------------------------------------------------------------------------------------------------- EXAONE


def exaone(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield EXAONE MoE: experts in all layers but the first, a dense MTP layer under `mtp.`."""
    del layout
    yield from main_model(config, _exaone_layer)
    yield from joined_by_fc(config["hidden_size"])
    for index in range(config["num_nextn_predict_layers"]):
        yield from _exaone_layer(f"mtp.layers.{index}", config, index, "branch")


def _exaone_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    sparse = part == "target" and config["is_moe_layer"][index]
    hidden, width, count = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from grouped_attention(f"{root}.self_attn", config, part)
    if not sparse:
        yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, part)
        return
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.mlp.e_score_correction_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{root}.mlp.shared_experts", hidden, width * config["num_shared_experts"], Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, "each")


def _exaone_moe(size: Size) -> Config:
    """Return the configuration of K-EXAONE-236B-A23B."""
    layers = 48 if size == "full" else 2
    config: Config = {
        "architectures": ["ExaoneMoEForCausalLM"],
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 53,
        "first_k_dense_replace": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 6144,
        "initializer_range": 0.02,
        "intermediate_size": 18432,
        "is_moe_layer": [index > 0 for index in range(layers)],
        "layer_types": ["full_attention" if index % 4 == 3 else "sliding_attention" for index in range(layers)],
        "max_position_embeddings": 262144,
        "mlp_layer_types": ["sparse" if index else "dense" for index in range(layers)],
        "model_type": "exaone_moe",
        "moe_intermediate_size": 2048,
        "n_group": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "num_shared_experts": 1,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "rope_theta": 1000000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "sliding_window": 128,
        "sliding_window_pattern": "LLLG",
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_cache": True,
        "vocab_size": 153600,
    }
    if size == "full":
        return config
    return config | {
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "sliding_window": 64,
        "vocab_size": 256,
    }


def _exaone_moe_windows(size: Size) -> Config:
    """Return the configuration of K-EXAONE with a window for each layer, as transformers names it."""
    config = _exaone_moe(size)
    windows = [None if kind == "full_attention" else config["sliding_window"] for kind in config["layer_types"]]
    return config | {
        "architectures": ["ExaoneMoeForCausalLM"],
        "mtp_layer_types": ["sliding_attention"],
        "mtp_sliding_windows": [config["sliding_window"]],
        "sliding_windows": windows,
    }


def _exaone_moe_renamed(size: Size) -> Config:
    """Return the configuration of K-EXAONE-236B-A23B under the name that transformers gives the architecture."""
    return _exaone_moe(size) | {"architectures": ["ExaoneMoeForCausalLM"]}


# ------------------------------------------------------------------------------------------------------ HunYuan


def hunyuan(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield HunYuan V3: experts in all layers but the first, MTP as layer N without an embedding or head."""
    del layout
    yield from main_model(config, _hunyuan_layer)
    yield from appended_layers(config, _hunyuan_layer, norm="final_layernorm")


def _hunyuan_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    hidden, width, count = config["hidden_size"], config["expert_hidden_dim"], config["num_experts"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from grouped_attention(f"{root}.self_attn", config, part)
    if index < config["first_k_dense_replace"]:
        yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, part)
        return
    yield Module(f"{root}.mlp.router.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.mlp.expert_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{root}.mlp.shared_mlp", hidden, width * config["num_shared_experts"], Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, "each")


def _hy_v3(size: Size) -> Config:
    """Return the configuration of Hy3-preview."""
    config: Config = {
        "architectures": ["HYV3ForCausalLM"],
        "bos_token_id": 120000,
        "dtype": "bfloat16",
        "eos_token_id": 120025,
        "expert_hidden_dim": 1536,
        "first_k_dense_replace": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "initializer_range": 0.006,
        "intermediate_size": 13312,
        "max_position_embeddings": 262144,
        "model_type": "hy_v3",
        "moe_intermediate_size": 1536,
        "moe_router_use_sigmoid": True,
        "num_attention_heads": 64,
        "num_experts": 192,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 80,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "num_shared_experts": 1,
        "pad_token_id": 120002,
        "qk_norm": True,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 11158840.0, "rope_type": "default"},
        "route_norm": True,
        "router_scaling_factor": 2.826,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 120832,
    }
    if size == "full":
        return config
    return config | {
        "bos_token_id": 1,
        "eos_token_id": 2,
        "expert_hidden_dim": 64,
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "pad_token_id": 0,
        "vocab_size": 256,
    }


FURTHER = (
    Family("glm4_moe_lite", "GLM-4.7-Flash", _glm4_moe_lite, glm_latent, layer_globs, head="head", published="target"),
    Family(
        "glm_moe_dsa",
        "GLM-5, 744B",
        _glm_moe_dsa,
        glm_latent,
        layer_globs,
        head="head",
        published="target",
    ),
    Family(
        "openpangu",
        "openPangu Ultra MoE, 718B",
        _openpangu,
        pangu,
        layer_globs,
        files={"configuration_openpangu_moe.py": PANGU_CONFIGURATION},
        head="shared_head.head",
        published="glob",
    ),
    Family(
        "longcat_flash",
        "LongCat-Flash, 560B",
        _longcat_flash,
        longcat,
        lambda _: ["model.mtp*"],
        renamed={
            "model.mtp.layers.0.eh_proj": "eh_proj",
            "model.mtp.layers.0.transformer_layer.": "model.layers.{2N}.",
            "model.mtp.layers.0.": "model.layers.{2N}.",
        },
        declares=False,
        published="glob",
    ),
    Family(
        "longcat_flash_both",
        "LongCat-Flash with both numbers of layers",
        _longcat_flash_both,
        longcat,
        lambda _: ["model.mtp*"],
        renamed={
            "model.mtp.layers.0.eh_proj": "eh_proj",
            "model.mtp.layers.0.transformer_layer.": "model.layers.{2N}.",
            "model.mtp.layers.0.": "model.layers.{2N}.",
        },
        declares=False,
        published="glob",
    ),
    Family("exaone_moe", "K-EXAONE, 236B-A23B", _exaone_moe, exaone, mtp_glob, published="glob"),
    Family(
        "exaone_moe_windows",
        "K-EXAONE 2.0, as far as its keys are known",
        _exaone_moe_windows,
        exaone,
        mtp_glob,
        published="glob",
        asked=">=0.27",  # before, no release knows the name
    ),
    Family(
        "exaone_moe_renamed",
        "K-EXAONE, 236B-A23B, as transformers names it",
        _exaone_moe_renamed,
        exaone,
        mtp_glob,
        published="glob",
        asked=">=0.27",
    ),
    Family("hy_v3", "HunYuan V3 (Hy3-preview)", _hy_v3, hunyuan, layer_globs, published="glob"),
)
