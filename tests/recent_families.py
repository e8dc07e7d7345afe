"""The most recent model families: Ling 2.5 and 3, MiniMax-M3, as `tests.families` has its own.

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
    latent_attention,
    layer_globs,
    main_model,
    mlp,
    norms,
    plain,
)  # fmt: skip

# -------------------------------------------------------------------------------------------------- Ling, Ring


def bailing(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Ling and Ring 2.5: linear attention, the last layer of each group latent; MTP as layer N without a head."""
    del layout
    hidden, vocabulary, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    yield plain("model.word_embeddings", vocabulary, hidden)
    for index in range(last):
        root = f"model.layers.{index}"
        yield from norms("target", hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
        if (index + 1) % config["layer_group_size"]:
            yield from _bailing_linear(f"{root}.attention", config)
        else:
            yield from latent_attention(f"{root}.attention", config, "target", out="dense")
        yield from _bailing_feed_forward(root, config, index, "target")
    yield plain("model.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    yield from _bailing_branch(config)


def _bailing_branch(config: Config) -> Iterator[Module]:
    last = config["num_hidden_layers"]
    for index in range(last, last + config.get("num_nextn_predict_layers", 0)):
        yield from _bailing_mtp_layer(f"model.layers.{index}", config, index)


def _bailing_mtp_layer(root: str, config: Config, index: int) -> Iterator[Module]:
    hidden = config["hidden_size"]
    for name in ("enorm", "hnorm", "input_layernorm", "post_attention_layernorm", "final_layernorm"):
        yield plain(f"{root}.{name}", hidden, part="branch")
    yield Module(f"{root}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
    yield from latent_attention(f"{root}.attention", config, "branch", out="dense")
    yield from _bailing_feed_forward(root, config, index, "branch")


def _bailing_linear(root: str, config: Config) -> Iterator[Module]:
    hidden, size = config["hidden_size"], config["head_dim"]
    inner = config["num_attention_heads"] * size
    shapes = {"query_key_value": (3 * inner, hidden), "g_proj": (inner, hidden), "dense": (hidden, inner)}
    for name, shape in shapes.items():
        yield Module(f"{root}.{name}", shape, Kind.LINEAR_ATTENTION)
    yield from norms("target", size, f"{root}.query_layernorm", f"{root}.key_layernorm")
    yield plain(f"{root}.g_norm", inner)


def _bailing_feed_forward(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    hidden, width, count = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    if index < config["first_k_dense_replace"]:
        yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, part)
        return
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.mlp.gate.expert_bias", count, weight="", dtype="F32", part=part)
    shared = config.get("moe_shared_expert_intermediate_size", width) * config["num_shared_experts"]
    yield from mlp(f"{root}.mlp.shared_experts", hidden, shared, Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, "each")


def bailing_v2(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Ling 2: grouped-query attention with queries, keys and values in one, experts, MTP as layer N."""
    del layout
    yield from main_model(config, _bailing_v2_layer, words="word_embeddings")
    yield from appended_layers(config, _bailing_v2_layer, norm="final_layernorm")


def _bailing_v2_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    hidden, size, heads = config["hidden_size"], config["head_dim"], config["num_attention_heads"]
    rows = (heads + 2 * config["num_key_value_heads"]) * size
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield Module(f"{root}.attention.query_key_value", (rows, hidden), Kind.ATTENTION, part)
    yield Module(f"{root}.attention.dense", (hidden, heads * size), Kind.ATTENTION, part)
    yield from norms(part, size, f"{root}.attention.query_layernorm", f"{root}.attention.key_layernorm")
    yield from _bailing_feed_forward(root, config, index, part)


def _bailing_v2(size: Size) -> Config:
    """Return a configuration of Ling 2: that of 2.5, without what that has besides."""
    config = _bailing_v2_5(size) | {
        "architectures": ["BailingMoeV2ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_bailing_moe_v2.BailingMoeV2Config"},
        "embedding_dropout": 0.0,
        "model_type": "bailing_moe",
        "norm_topk_prob": True,
        "output_dropout": 0.0,
        "rope_parameters": {"rope_theta": 600000.0, "rope_type": "default"},
    }
    for key in ("kv_lora_rank", "layer_group_size", "linear_silu", "q_lora_rank", "qk_nope_head_dim"):
        del config[key]
    for key in ("group_norm_size", "qk_rope_head_dim", "rope_scaling", "v_head_dim"):
        del config[key]
    return config


def bailing_v3(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Ling and Ring 3: delta attention, but latent at the end of a group and in a short one; MTP as layer N."""
    del layout
    hidden, vocabulary, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    group = config["layer_group_size"]
    yield plain("model.word_embeddings", vocabulary, hidden)
    for index in range(last):
        root = f"model.layers.{index}"
        yield from norms("target", hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
        if (index + 1) % group == 0 or index >= last // group * group:
            yield from latent_attention(f"{root}.attention", config, "target", out="dense")
            yield from _gate(f"{root}.attention", config, "target")
        else:
            yield from _delta_attention(f"{root}.attention", config)
        yield from _bailing_feed_forward(root, config, index, "target")
    yield plain("model.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    for index in range(last, last + config.get("num_nextn_predict_layers", 0)):
        yield from _bailing_mtp_layer(f"model.layers.{index}", config, index)
        yield from _gate(f"model.layers.{index}.attention", config, "branch")


def _gate(root: str, config: Config, part: Part) -> Iterator[Module]:
    rows = config["num_attention_heads"] * config["v_head_dim"]
    yield Module(f"{root}.g_proj", (rows, config["hidden_size"]), Kind.ATTENTION, part)


def _delta_attention(root: str, config: Config) -> Iterator[Module]:
    hidden, heads, size = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    inner = heads * size
    rows = {"q_proj": inner, "k_proj": inner, "v_proj": inner, "b_proj": heads, "f_proj": inner, "g_proj": inner}
    for name, count in rows.items():
        yield Module(f"{root}.{name}", (count, hidden), Kind.LINEAR_ATTENTION)
    yield Module(f"{root}.o_proj", (hidden, inner), Kind.LINEAR_ATTENTION)
    for name in ("q_conv1d", "k_conv1d", "v_conv1d"):
        yield plain(f"{root}.{name}", inner, 1, config["short_conv_kernel_size"])
    yield plain(f"{root}.A_log", heads, weight="", dtype="F32")
    yield plain(f"{root}.dt_bias", inner, weight="", dtype="F32")
    yield plain(f"{root}.o_norm", size)


BAILING_CONFIGURATION = '''"""Configuration of Ling for engines that leave its class to the checkpoint."""

from transformers import PretrainedConfig


class BailingMoeV2_5Config(PretrainedConfig):
    model_type = "bailing_hybrid"

    def __init__(self, **named):
        for name, value in named.items():
            setattr(self, name, value)
        super().__init__(**named)
'''


def _bailing_v2_5(size: Size) -> Config:
    """Return a configuration of Ling 2.5: the defaults of its published class, with one MTP layer."""
    config: Config = {
        "architectures": ["BailingMoeV2_5ForCausalLM"],
        "attention_dropout": 0.0,
        "auto_map": {"AutoConfig": "configuration_bailing_moe_v2_5.BailingMoeV2_5Config"},
        "dtype": "bfloat16",
        "eos_token_id": 156892,
        "first_k_dense_replace": 1,
        "group_norm_size": 4,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 5120,
        "kv_lora_rank": 512,
        "layer_group_size": 5,
        "linear_silu": False,
        "max_position_embeddings": 32768,
        "model_type": "bailing_hybrid",
        "moe_intermediate_size": 512,
        "moe_router_enable_expert_bias": True,
        "n_group": 8,
        "num_attention_heads": 16,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 20,
        "num_key_value_heads": 4,
        "num_nextn_predict_layers": 1,
        "num_shared_experts": 1,
        "pad_token_id": 156892,
        "partial_rotary_factor": 0.5,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 600000.0,
        "routed_scaling_factor": 1.0,
        "router_dtype": "fp32",
        "score_function": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": 4,
        "topk_method": "noaux_tc",
        "use_bias": False,
        "use_cache": True,
        "use_qk_norm": True,
        "use_qkv_bias": False,
        "v_head_dim": 128,
        "vocab_size": 157184,
    }
    if size == "full":
        return config
    return config | {
        "eos_token_id": 1,
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 256,
        "kv_lora_rank": 64,
        "layer_group_size": 2,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "n_group": 1,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "q_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 32,
        "topk_group": 1,
        "v_head_dim": 32,
        "vocab_size": 256,
    }


def _bailing_v3(size: Size) -> Config:
    """Return a configuration of Ling 3: that of 2.5, with what the engine's class reads besides."""
    config = _bailing_v2_5(size) | {
        "architectures": ["BailingMoeV3ForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_bailing_moe_v3.BailingMoeV3Config"},
        "gated_attention_proj_granularity_type": "element_wise",
        "no_kda_lora": True,
        "short_conv_kernel_size": 4,
    }
    config["moe_shared_expert_intermediate_size"] = config["moe_intermediate_size"]
    if size == "tiny":
        config["num_hidden_layers"] = 3  # the last is a group that is short
    return config


def _bailing_v3_even(size: Size) -> Config:
    """Return a configuration of Ling 3 whose groups of layers are all whole, as SGLang wants them."""
    return _bailing_v3(size) | ({"num_hidden_layers": 2} if size == "tiny" else {})


def bailing_v3_vision(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Ling 3 with a vision tower, whose patches are joined by fours and projected by two layers."""
    text, vision = config["text_config"], config["vision_config"]
    yield from bailing_v3(text, layout)
    hidden, width, inner, root = text["hidden_size"], vision["hidden_size"], vision["intermediate_size"], "model.visual"
    patch = (vision["in_channels"], vision["temporal_patch_size"], vision["patch_size"], vision["patch_size"])
    yield from _with_bias(f"{root}.patch_embed.proj", (width, *patch), Kind.PLAIN)
    yield plain(f"{root}.pos_embed", vision["num_position_embeddings"], width, part="vision")
    for index in range(vision["depth"]):
        block = f"{root}.blocks.{index}"
        for name in ("norm1", "norm2"):
            yield from _with_bias(f"{block}.{name}", (width,), Kind.PLAIN)
        yield from _with_bias(f"{block}.attn.qkv", (3 * width, width))
        yield from _with_bias(f"{block}.attn.proj", (width, width))
        yield from _with_bias(f"{block}.mlp.linear_fc1", (inner, width))
        yield from _with_bias(f"{block}.mlp.linear_fc2", (width, inner))
    yield from _with_bias(f"{root}.merger.norm", (width,), Kind.PLAIN)
    yield from _with_bias("model.linear_proj.0", (hidden, width * vision["spatial_merge_size"] ** 2))
    yield from _with_bias("model.linear_proj.2", (hidden, hidden))


def _bailing_v3_vision(size: Size) -> Config:
    """Return a configuration of Ling 3 with vision: the text model's and the defaults of the tower's class."""
    text = _bailing_v3(size) | {"model_type": "bailing_hybrid"}
    for key in ("auto_map", "rope_scaling"):
        del text[key]
    vision: Config = {
        "deepstack_visual_indexes": [],
        "depth": 27 if size == "full" else 1,
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_size": 1152,
        "in_channels": 3,
        "intermediate_size": 4304,
        "model_type": "qwen3_moe_vit",
        "num_heads": 16,
        "num_position_embeddings": 2304,
        "out_hidden_size": 3584,
        "patch_size": 16,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if size == "tiny":
        vision |= {"hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "num_position_embeddings": 16}
        text["partial_rotary_factor"] = 1.0
    return {
        "architectures": ["BailingMoeV3VLForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": 151655 if size == "full" else 3,
        "model_type": "bailing_moe_v3_vl",
        "mrope_section": [12, 10, 10] if size == "full" else [6, 5, 5],
        "text_config": text,
        "tie_word_embeddings": False,
        "video_token_id": 151656 if size == "full" else 4,
        "vision_config": vision,
        "vision_end_token_id": 151653 if size == "full" else 5,
        "vision_start_token_id": 151652 if size == "full" else 6,
    }


def _bailing_v3_vision_even(size: Size) -> Config:
    """Return a configuration of Ling 3 with vision as SGLang wants it: groups all whole, and the merger only joins."""
    config = _bailing_v3_vision(size)
    config["vision_config"]["disable_merger_proj"] = True
    if size == "tiny":
        config["text_config"]["num_hidden_layers"] = 2
    return config


# ----------------------------------------------------------------------------------------------------- MiniMax


def minimax(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield MiniMax-M3: dense and sparse attention, experts, MTP layers inside the text model, a vision tower."""
    del layout
    text = config["text_config"]
    hidden, vocabulary = text["hidden_size"], text["vocab_size"]
    yield plain("language_model.model.embed_tokens", vocabulary, hidden)
    for index in range(text["num_hidden_layers"]):
        sparse = bool(text["sparse_attention_config"]["sparse_attention_freq"][index])
        routed = bool(text["moe_layer_freq"][index])
        yield from _minimax_layer(f"language_model.model.layers.{index}", text, "target", sparse=sparse, routed=routed)
    yield plain("language_model.model.norm", hidden)
    yield Module("language_model.lm_head", (vocabulary, hidden), Kind.HEAD)
    yield from _minimax_vision(config["vision_config"], hidden, config["projector_hidden_size"])
    for index in range(text.get("num_mtp_modules", 0)):
        root = f"language_model.model.mtp.layers.{index}"
        yield from norms("branch", hidden, f"{root}.enorm", f"{root}.hnorm", f"{root}.final_layernorm")
        yield Module(f"{root}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        yield from _minimax_layer(f"{root}.transformer_layer", text, "branch", sparse=True, routed=True)


def _minimax_layer(root: str, text: Config, part: Part, *, sparse: bool, routed: bool) -> Iterator[Module]:
    hidden, width, count = text["hidden_size"], text["intermediate_size"], text["num_local_experts"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from grouped_attention(f"{root}.self_attn", text, part)
    if sparse:
        numbers = text["sparse_attention_config"]
        heads, size = numbers["sparse_num_index_heads"], numbers["sparse_index_dim"]
        yield Module(f"{root}.self_attn.index_q_proj", (heads * size, hidden), Kind.ATTENTION, part)
        yield Module(f"{root}.self_attn.index_k_proj", (size, hidden), Kind.ATTENTION, part)
        yield from norms(part, size, f"{root}.self_attn.index_q_norm", f"{root}.self_attn.index_k_norm")
    if not routed:
        yield from mlp(f"{root}.mlp", hidden, text["dense_intermediate_size"], Kind.MLP, part)
        return
    block = f"{root}.block_sparse_moe"
    yield Module(f"{block}.gate", (count, hidden), Kind.ROUTER, part, dtype="F32")
    yield plain(f"{block}.e_score_correction_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{block}.shared_experts", hidden, width * text["n_shared_experts"], Kind.SHARED, part)
    for name, shape in {"w1": (width, hidden), "w2": (hidden, width), "w3": (width, hidden)}.items():
        yield Module(f"{block}.experts.{{}}.{name}", shape, Kind.EXPERT, part, experts=count)


def _minimax_vision(vision: Config, hidden: int, middle: int) -> Iterator[Module]:
    width, inner, patch = vision["hidden_size"], vision["intermediate_size"], vision["patch_size"]
    numbers = vision["img_token_compression_config"]
    root, merged = "vision_tower.vision_model", hidden * numbers["spatial_merge_size"] ** 2
    shape = (width, vision["num_channels"], numbers["temporal_patch_size"], patch, patch)
    yield plain(f"{root}.embeddings.patch_embedding", *shape, part="vision")
    yield from _with_bias(f"{root}.pre_layrnorm", (width,), Kind.PLAIN)
    for index in range(vision["num_hidden_layers"]):
        block = f"{root}.encoder.layers.{index}"
        for name in ("layer_norm1", "layer_norm2"):
            yield from _with_bias(f"{block}.{name}", (width,), Kind.PLAIN)
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _with_bias(f"{block}.self_attn.{name}", (width, width))
        yield from _with_bias(f"{block}.mlp.fc1", (inner, width))
        yield from _with_bias(f"{block}.mlp.fc2", (width, inner))
    for name, columns in (("multi_modal_projector", width), ("patch_merge_mlp", merged)):
        yield from _with_bias(f"{name}.linear_1", (middle, columns))
        yield from _with_bias(f"{name}.linear_2", (hidden, middle))


def _with_bias(name: str, shape: tuple[int, ...], kind: Kind = Kind.VISION) -> Iterator[Module]:
    yield Module(name, shape, kind, "vision")
    yield plain(name, shape[0], weight="bias", part="vision")


def _minimax_m3(size: Size) -> Config:
    """Return a configuration of MiniMax-M3: the text model's numbers are those of the engine's own class, which mirror
    the public checkpoint; those of the vision tower are COMPUTED.
    """
    layers = 60 if size == "full" else 2
    dense = 3 if size == "full" else 1
    kinds = [0] * dense + [1] * (layers - dense)
    text: Config = {
        "architectures": ["MiniMaxM3SparseForCausalLM"],
        "dense_intermediate_size": 12288,
        "head_dim": 128,
        "hidden_act": "swigluoai",
        "hidden_size": 6144,
        "intermediate_size": 3072,
        "max_position_embeddings": 524288,
        "model_type": "minimax_m3_text",
        "moe_layer_freq": kinds,
        "n_shared_experts": 1,
        "num_attention_heads": 64,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 4,
        "num_local_experts": 128,
        "num_mtp_modules": 1,
        "partial_rotary_factor": 0.5,
        "qk_norm_type": "per_head",
        "rms_norm_eps": 1e-06,
        "rope_theta": 5000000,
        "rotary_dim": 64,
        "routed_scaling_factor": 2.0,
        "scoring_func": "sigmoid",
        "shared_intermediate_size": 3072,
        "sparse_attention_config": {
            "sparse_attention_freq": kinds,
            "sparse_block_size": 128,
            "sparse_disable_index_value": kinds,
            "sparse_index_dim": 128,
            "sparse_init_block": 0,
            "sparse_local_block": 1,
            "sparse_num_index_heads": 4,
            "sparse_score_type": "max",
            "sparse_topk_blocks": 16,
            "use_sparse_attention": True,
        },
        "swiglu_alpha": 1.702,
        "swiglu_limit": 7.0,
        "tie_word_embeddings": False,
        "use_gemma_norm": True,
        "use_qk_norm": True,
        "use_routing_bias": True,
        "vocab_size": 200064,
    }
    vision: Config = {
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "image_size": 672,
        "img_token_compression_config": {"spatial_merge_size": 2, "temporal_patch_size": 2},
        "intermediate_size": 5120,
        "layer_norm_eps": 1e-05,
        "num_attention_heads": 16,
        "num_channels": 3,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "rope_theta": 10000.0,
    }
    if size == "tiny":
        text |= {
            "dense_intermediate_size": 256,
            "hidden_size": 128,
            "intermediate_size": 64,
            "max_position_embeddings": 1024,
            "num_attention_heads": 2,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 1,
            "num_local_experts": 4,
            "vocab_size": 256,
        }
        text["sparse_attention_config"]["sparse_num_index_heads"] = 1
        vision |= {"hidden_size": 96, "intermediate_size": 128, "num_attention_heads": 2, "num_hidden_layers": 1}
    return {
        "architectures": ["MiniMaxM3SparseForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_index": 3,
        "model_type": "minimax_m3_vl",
        "projector_hidden_size": text["hidden_size"],
        "text_config": text,
        "tie_word_embeddings": False,
        "video_token_index": 4,
        "vision_config": vision,
    }


RECENT = (
    Family(
        "bailing_v2_5",
        "Ling and Ring 2.5",
        _bailing_v2_5,
        bailing,
        layer_globs,
        files={"configuration_bailing_moe_v2_5.py": BAILING_CONFIGURATION},
        inside={".attention.dense": ".self_attn.o_proj", ".attention.": ".self_attn."},
        published="glob",
    ),
    Family(
        "bailing_v2",
        "Ling and Ring 2",
        _bailing_v2,
        bailing_v2,
        layer_globs,
        files={"configuration_bailing_moe_v2.py": BAILING_CONFIGURATION.replace("V2_5", "V2").replace("hybrid", "moe")},
        published="glob",
        asked="<0",  # no release of vLLM reads its MTP layer
    ),
    Family(
        "bailing_v3",
        "Ling and Ring 3",
        _bailing_v3,
        bailing_v3,
        layer_globs,
        files={"configuration_bailing_moe_v3.py": BAILING_CONFIGURATION.replace("V2_5", "V3")},
        inside={".attention.": ".self_attn."},
        published="glob",
    ),
    Family(
        "bailing_v3_even",
        "Ling and Ring 3, all groups whole",
        _bailing_v3_even,
        bailing_v3,
        layer_globs,
        files={"configuration_bailing_moe_v3.py": BAILING_CONFIGURATION.replace("V2_5", "V3")},
        inside={".attention.": ".self_attn."},
        published="glob",
        asked="<0",  # vLLM is asked with a group that is short
    ),
    Family(
        "bailing_v3_vl",
        "Ling 3 with vision",
        _bailing_v3_vision,
        bailing_v3_vision,
        layer_globs,
        vision=("model.visual", "model.linear_proj"),
        inside={".attention.": ".self_attn."},
        published="glob",
        asked=">=0.30",
    ),
    Family(
        "bailing_v3_vl_even",
        "Ling 3 with vision, all groups whole",
        _bailing_v3_vision_even,
        bailing_v3_vision,
        layer_globs,
        vision=("model.visual", "model.linear_proj"),
        inside={".attention.": ".self_attn."},
        published="glob",
        asked="<0",  # vLLM is asked with a group that is short
    ),
    Family(
        "minimax_m3",
        "MiniMax-M3",
        _minimax_m3,
        minimax,
        lambda _: ["language_model.model.mtp*"],
        renamed={"language_model.model.mtp.layers.": "model.layers."},
        inside={".transformer_layer.": "."},
        listed=("lm_head",),
        vision=("vision_tower", "multi_modal_projector", "patch_merge_mlp"),
        published="glob",
    ),
)
