"""Model families that attend to chosen positions or a window: dots3 and DeepSeek-V4, as `tests.families` has its own.

Numbers are the defaults of the configuration classes, as no public configuration was at hand.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.latent_families import indexer
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
    layer_globs,
    main_model,
    mlp,
    norms,
    plain,
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------------- dots3


def dots3(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield dots3: latent attention over a window or chosen positions, experts, a dense MTP layer N, two towers."""
    del layout
    yield from main_model(config, _dots3_layer)
    yield from _dots3_tower(config["vision_config"])
    yield from _dots3_ear(config["audio_config"])
    yield plain("model.mtp.embed_tokens", config["vocab_size"], config["hidden_size"], part="branch")
    yield from appended_layers(config, _dots3_layer)


def _dots3_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    hidden, width, kinds = config["hidden_size"], config["moe_intermediate_size"], config["layer_types"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    whole = index < len(kinds) and kinds[index] != "sliding_attention"
    keys = ("num_attention_heads", "q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    sizes = config if whole else config | {key: config[f"swa_{key}"] for key in keys}
    yield from latent_attention(f"{root}.self_attn", sizes, part)
    yield Module(f"{root}.self_attn.g_proj", (sizes["num_attention_heads"], hidden), Kind.ATTENTION, part)
    yield plain(f"{root}.self_attn.k_rope_only_layernorm", sizes["qk_rope_head_dim"], part=part)
    if whole:
        yield from indexer(f"{root}.self_attn.indexer", config, part)
    if part == "branch" or index < config["first_k_dense_replace"]:
        yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, part)
        return
    count = config["n_routed_experts"]
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.mlp.gate.e_score_correction_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{root}.mlp.shared_experts", hidden, width * config["n_shared_experts"], Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, "each")


def _dots3_tower(vision: Config) -> Iterator[Module]:
    width, inner, root = vision["embed_dim"], vision["moe_intermediate_size"], "vision_encoder"
    size, merged = vision["patch_size"], vision["adapter_in_dim"] * vision["adapter_merge_size"] ** 2
    yield plain(f"{root}.patch_embed.proj", width, vision["num_channels"], size, size, part="vision")
    yield plain(f"{root}.patch_embed.proj", width, weight="bias", part="vision")
    yield plain(f"{root}.patch_embed.norm", width, part="vision")
    for index in range(vision["num_hidden_layers"]):
        block, head = f"{root}.blocks.{index}", width // vision["num_attention_heads"]
        yield Module(f"{block}.attn.qkv", (3 * width, width), Kind.VISION, "vision")
        yield Module(f"{block}.attn.proj", (width, width), Kind.VISION, "vision")
        yield from norms("vision", head, f"{block}.attn.q_norm", f"{block}.attn.k_norm")
        yield from norms("vision", width, f"{block}.norm_1", f"{block}.norm_2")
        count = vision["pyramid_num_routed"][index]
        if count == 0:
            yield from _swiglu(f"{block}.mlp", width, vision["intermediate_size"])
            continue
        yield plain(f"{block}.mlp.router_bias", count, weight="", dtype="F32", part="vision")
        yield plain(f"{block}.mlp.gate_weight", count, width, weight="", dtype="F32", part="vision")
        for expert in range(count):
            yield from _swiglu(f"{block}.mlp.experts.{expert}", width, inner)
    yield plain(f"{root}.post_trunk_norm", width, part="vision")
    yield from _adapter(f"{root}.adapter.proj", merged, vision["adapter_out_dim"])


def _dots3_ear(audio: Config) -> Iterator[Module]:
    whisper, channels, root = audio["whisper_config"], audio["downsample_hidden_size"], "audio_encoder"
    width, inner, place = whisper["d_model"], whisper["encoder_ffn_dim"], f"{root}.dots_encoder.speech_encoder"
    for index, before in enumerate((1, channels, channels), 1):
        yield plain(f"{place}.conv2d{index}", channels, before, 3, 3, part="vision")
        yield plain(f"{place}.conv2d{index}", channels, weight="bias", part="vision")
    yield Module(f"{place}.conv_out", (width, 16 * channels), Kind.VISION, "vision")
    for index in range(whisper["encoder_layers"]):
        layer = f"{place}.layers.{index}"
        yield from norms("vision", width, f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm")
        shapes = {f"self_attn.{name}": (width, width) for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        for name, shape in (shapes | {"fc1": (inner, width), "fc2": (width, inner)}).items():
            yield Module(f"{layer}.{name}", shape, Kind.VISION, "vision")
            if name != "self_attn.k_proj":
                yield plain(f"{layer}.{name}", shape[0], weight="bias", part="vision")
    yield plain(f"{place}.layer_norm", width, part="vision")
    out, merged = audio["whisper_adapter_out_dim"], audio["whisper_adapter_in_dim"]
    yield from _adapter(f"{root}.audio_adapter.proj", merged, out)


def _adapter(root: str, merged: int, out: int) -> Iterator[Module]:
    yield plain(f"{root}.0", merged, part="vision")
    yield plain(f"{root}.0", merged, weight="bias", part="vision")
    for place, columns in ((1, merged), (3, out)):
        yield Module(f"{root}.{place}", (out, columns), Kind.VISION, "vision")
        yield plain(f"{root}.{place}", out, weight="bias", part="vision")


def _swiglu(root: str, width: int, inner: int) -> Iterator[Module]:
    yield Module(f"{root}.fc1", (inner, width), Kind.VISION, "vision")
    yield Module(f"{root}.fc2", (width, inner), Kind.VISION, "vision")
    yield Module(f"{root}.fc3", (inner, width), Kind.VISION, "vision")


def _dots3(size: Size) -> Config:
    """Return the configuration of dots3: the defaults of its classes, two blocks of its tower, a window in each layer
    but every fourth.
    """
    layers = 30 if size == "full" else 2
    config: Config = {
        "apply_mla_qkv_lora_rescale": True,
        "architectures": ["Dots3NoteForCausalLM"],
        "attention_bias": False,
        "attention_gate_type": "headwise",
        "bos_token_id": 151643,
        "dtype": "bfloat16",
        "eos_token_id": 151645,
        "first_k_dense_replace": 1,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "index_head_dim": 128,
        "index_n_heads": 32,
        "index_topk": 2048,
        "initializer_range": 0.02,
        "intermediate_size": 7168,
        "kv_lora_rank": 512,
        "layer_types": ["full_attention" if index % 4 == 3 else "sliding_attention" for index in range(layers)],
        "max_position_embeddings": 8192,
        "model_type": "dots3_note",
        "moe_intermediate_size": 1024,
        "moe_layer_freq": 1,
        "n_group": 1,
        "n_routed_experts": 128,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 6,
        "num_hidden_layers": layers,
        "num_key_value_heads": 64,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_theta": 50000.0,
        "routed_scaling_factor": 1.0,
        "scoring_func": "sigmoid",
        "sliding_window_size": 512,
        "swa_attention_gate_type": "headwise",
        "swa_kv_lora_rank": 512,
        "swa_num_attention_heads": 32,
        "swa_num_key_value_heads": 32,
        "swa_q_lora_rank": 512,
        "swa_qk_nope_head_dim": 128,
        "swa_qk_rope_head_dim": 64,
        "swa_rope_theta": 50000.0,
        "swa_v_head_dim": 128,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "v_head_dim": 128,
        "vocab_size": 152064,
    }
    vision: Config = {
        "adapter_in_dim": 1536,
        "adapter_merge_size": 2,
        "adapter_out_dim": 2560,
        "adapter_type": "pixel_shuffle_mlp",
        "embed_dim": 1536,
        "intermediate_size": 4224,
        "moe_intermediate_size": 2112,
        "num_attention_heads": 24,
        "num_channels": 3,
        "num_hidden_layers": 2,
        "patch_size": 14,
        "pyramid_num_routed": [0, 2],
        "rms_norm_eps": 1e-05,
        "spatial_merge_size": 2,
        "temporal_patch_size": 1,
        "use_bias": False,
        "use_qk_norm": True,
    }
    audio: Config = {
        "downsample_hidden_size": 480,
        "whisper_adapter_in_dim": 1280,
        "whisper_adapter_out_dim": 2560,
        "whisper_config": {
            "activation_function": "gelu",
            "d_model": 1280,
            "encoder_attention_heads": 20,
            "encoder_ffn_dim": 5120,
            "encoder_layers": 1,
        },
    }
    if size == "tiny":
        config |= {
            "bos_token_id": 1,
            "eos_token_id": 2,
            "hidden_size": 128,
            "index_n_heads": 4,
            "index_topk": 64,
            "intermediate_size": 256,
            "kv_lora_rank": 64,
            "layer_types": ["sliding_attention", "full_attention"],
            "max_position_embeddings": 1024,
            "moe_intermediate_size": 64,
            "n_routed_experts": 4,
            "num_attention_heads": 8,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 8,
            "q_lora_rank": 64,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32,
            "swa_kv_lora_rank": 96,
            "swa_num_attention_heads": 8,
            "swa_num_key_value_heads": 8,
            "swa_q_lora_rank": 64,
            "swa_qk_nope_head_dim": 32,
            "swa_qk_rope_head_dim": 32,
            "swa_v_head_dim": 32,
            "v_head_dim": 32,
            "vocab_size": 256,
        }
        vision |= {"adapter_in_dim": 64, "adapter_out_dim": 128, "embed_dim": 64, "intermediate_size": 96}
        vision |= {"moe_intermediate_size": 64, "num_attention_heads": 2}
        audio |= {"downsample_hidden_size": 8, "whisper_adapter_in_dim": 64, "whisper_adapter_out_dim": 128}
        audio["whisper_config"] |= {"d_model": 64, "encoder_attention_heads": 2, "encoder_ffn_dim": 128}
    return config | {"audio_config": audio, "vision_config": vision}


# ---------------------------------------------------------------------------------------------------- DeepSeek-V4


def deepseek_v4(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield DeepSeek-V4 by its own names: residual streams, one key head, compressed positions, MTP under `mtp.`."""
    del layout
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield plain("embed", vocabulary, hidden)
    for index in range(config["num_hidden_layers"]):
        yield from _deepseek_v4_layer(f"layers.{index}", config, index, "target")
    yield plain("norm", hidden)
    yield from _streams("hc_head", config["hc_mult"], config, 1, "target")
    yield Module("head", (vocabulary, hidden), Kind.HEAD)
    for index in range(config["num_nextn_predict_layers"]):
        root = f"mtp.{index}"
        yield from norms("branch", hidden, f"{root}.enorm", f"{root}.hnorm", f"{root}.norm")
        yield Module(f"{root}.e_proj", (hidden, hidden), Kind.GLUE, "branch")
        yield Module(f"{root}.h_proj", (hidden, hidden), Kind.GLUE, "branch")
        yield from _streams(f"{root}.hc_head", config["hc_mult"], config, 1, "branch")
        yield from _deepseek_v4_layer(root, config, config["num_hidden_layers"] + index, "branch")


def _streams(root: str, rows: int, config: Config, scales: int, part: Part) -> Iterator[Module]:
    width = config["hc_mult"] * config["hidden_size"]
    yield plain(f"{root}_fn", rows, width, weight="", dtype="F32", part=part)
    yield plain(f"{root}_base", rows, weight="", dtype="F32", part=part)
    yield plain(f"{root}_scale", scales, weight="", dtype="F32", part=part)


def _deepseek_v4_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    hidden, width, streams = config["hidden_size"], config["moe_intermediate_size"], config["hc_mult"]
    yield from norms(part, hidden, f"{root}.attn_norm", f"{root}.ffn_norm")
    for half in ("attn", "ffn"):
        yield from _streams(f"{root}.hc_{half}", (2 + streams) * streams, config, 3, part)
    yield from _one_key_attention(f"{root}.attn", config, part)
    ratios = config["compress_ratios"]
    ratio = ratios[index] if part == "target" else 0
    if ratio:
        yield from _compressor(f"{root}.attn.compressor", config["head_dim"], ratio, hidden, part)
    if ratio == 4:
        place, size, heads = f"{root}.attn.indexer", config["index_head_dim"], config["index_n_heads"]
        yield Module(f"{place}.wq_b", (heads * size, config["q_lora_rank"]), Kind.ATTENTION, part)
        yield Module(f"{place}.weights_proj", (heads, hidden), Kind.ROUTER, part)
        yield from _compressor(f"{place}.compressor", size, ratio, hidden, part)
    count = config["n_routed_experts"]
    yield Module(f"{root}.ffn.gate", (count, hidden), Kind.ROUTER, part)
    if index < config["num_hash_layers"]:
        shape = (config["vocab_size"], config["num_experts_per_tok"])
        yield plain(f"{root}.ffn.gate.tid2eid", *shape, weight="", dtype="I32", part=part)
    else:
        yield plain(f"{root}.ffn.gate", count, weight="bias", dtype="F32", part=part)
    shared = width * config["n_shared_experts"]
    for name in ("w1", "w2", "w3"):
        shape = (hidden, shared) if name == "w2" else (shared, hidden)
        yield Module(f"{root}.ffn.shared_experts.{name}", shape, Kind.SHARED, part)
        shape = (hidden, width) if name == "w2" else (width, hidden)
        yield Module(f"{root}.ffn.experts.{{}}.{name}", shape, Kind.EXPERT, part, experts=count)


def _one_key_attention(root: str, config: Config, part: Part) -> Iterator[Module]:
    hidden, heads, size = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    low, groups, out = config["q_lora_rank"], config["o_groups"], config["o_lora_rank"]
    shapes = {
        "wq_a": (low, hidden),
        "wq_b": (heads * size, low),
        "wkv": (size, hidden),
        "wo_a": (groups * out, heads * size // groups),
        "wo_b": (hidden, groups * out),
    }
    for name, shape in shapes.items():
        yield Module(f"{root}.{name}", shape, Kind.ATTENTION, part)
    yield plain(f"{root}.q_norm", low, part=part)
    yield plain(f"{root}.kv_norm", size, part=part)
    yield plain(f"{root}.attn_sink", heads, weight="", dtype="F32", part=part)


def _compressor(root: str, size: int, ratio: int, hidden: int, part: Part) -> Iterator[Module]:
    rows = size * (2 if ratio == 4 else 1)
    yield plain(f"{root}.ape", ratio, rows, weight="", dtype="F32", part=part)
    yield Module(f"{root}.wkv", (rows, hidden), Kind.ROUTER, part)
    yield Module(f"{root}.wgate", (rows, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.norm", size, part=part)


def _deepseek_v4(size: Size) -> Config:
    """Return the configuration of DeepSeek-V4: the defaults of its class, every fourth position or 128th in turn."""
    layers = 43 if size == "full" else 2
    config: Config = {
        "architectures": ["DeepseekV4ForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 0,
        "compress_ratios": [(4, 128)[index % 2] for index in range(layers)],
        "compress_rope_theta": 40000,
        "dtype": "bfloat16",
        "eos_token_id": 1,
        "expert_dtype": "fp4",
        "hc_eps": 1e-06,
        "hc_mult": 4,
        "hc_sinkhorn_iters": 20,
        "head_dim": 512,
        "hidden_act": "silu",
        "hidden_size": 4096,
        "index_head_dim": 128,
        "index_n_heads": 64,
        "index_topk": 512,
        "max_position_embeddings": 65536,
        "model_type": "deepseek_v4",
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": 64,
        "num_experts_per_tok": 6,
        "num_hash_layers": 3,
        "num_hidden_layers": layers,
        "num_key_value_heads": 1,
        "num_nextn_predict_layers": 1,
        "o_groups": 8,
        "o_lora_rank": 1024,
        "q_lora_rank": 1024,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 16,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 1.5,
        "scoring_func": "sqrtsoftplus",
        "sliding_window": 128,
        "swiglu_limit": 10.0,
        "tie_word_embeddings": False,
        "topk_method": "noaux_tc",
        "vocab_size": 129280,
    }
    if size == "full":
        return config
    return config | {
        "head_dim": 128,
        "hidden_size": 128,
        "index_n_heads": 4,
        "index_topk": 64,
        "max_position_embeddings": 1024,
        "moe_intermediate_size": 64,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "num_hash_layers": 1,
        "o_groups": 2,
        "o_lora_rank": 64,
        "q_lora_rank": 64,
        "vocab_size": 256,
    }


ADDED_TOKENS = '{"<|imgpad|>": 200}\n'
"""A part of the tokenizer's files, without which the class refuses to be constructed."""

SPARSE = (
    Family(
        "dots3_note",
        "dots3",
        _dots3,
        dots3,
        lambda config: [*layer_globs(config), "model.mtp*"],
        files={"added_tokens.json": ADDED_TOKENS},
        vision=("vision_encoder", "audio_encoder"),
        head="head",
        published="glob",
    ),
    Family(
        "deepseek_v4",
        "DeepSeek-V4",
        _deepseek_v4,
        deepseek_v4,
        lambda _: ["mtp*"],
        renamed={"mtp.0.": "model.layers.{N}."},
        head="head",
        published="glob",
    ),
)
