"""The newest model families: Qwen3.8-Flash-Next, as `tests.families` has its own.

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
    latent_attention,
    layer_globs,
    mlp,
    mtp_glob,
    norms,
    plain,
    text_of,
)  # fmt: skip
from tests.qwen_modules import VISION, VISION_TINY, hybrid, linear_attention, vision_tower

# ------------------------------------------------------------------------------------------ Qwen3.8-Flash-Next


def qwen4(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Qwen3.8-Flash-Next: residual streams, attention with an indexer, a table of n-grams, MTP at `mtp.`."""
    text, root = config["text_config"], "model.language_model"
    hidden, vocabulary = text["hidden_size"], text["vocab_size"]
    yield plain(f"{root}.embed_tokens", vocabulary, hidden)
    for index, kind in enumerate(text["layer_types"]):
        layer = f"{root}.layers.{index}"
        if index + 1 in text["ple_layer_ids"]:
            yield from _qwen4_table(f"{layer}.ple", text)
        yield from _qwen4_layer(layer, text, kind, "target", "each")
    yield from _qwen4_mixer(f"{root}.hyper_connection_mixer", text, "target", combines=False)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    yield from vision_tower(config["vision_config"])
    yield Module("mtp.fc_embedding", (hidden, hidden), Kind.GLUE, "branch")
    yield Module("mtp.fc_hidden", (hidden, hidden), Kind.GLUE, "branch")
    yield plain("mtp.pre_fc_norm_embedding", hidden, part="branch")
    yield plain("mtp.pre_fc_norm_hidden", text["hc_count"] * hidden, part="branch")
    yield from _qwen4_layer("mtp.layers.0", text, "full_attention", "branch", layout)
    yield from _qwen4_mixer("mtp.hyper_connection_mixer", text, "branch", combines=False)


def _qwen4_layer(root: str, text: Config, attention: str, part: Part, layout: Layout) -> Iterator[Module]:
    hidden, count, width = text["hidden_size"], text["num_experts"], text["moe_intermediate_size"]
    yield from _qwen4_mixer(f"{root}.attn_hyper_connection", text, part)
    yield from _qwen4_mixer(f"{root}.mlp_hyper_connection", text, part)
    if attention == "full_attention":
        yield from grouped_attention(f"{root}.self_attn", text, part, gated=True)
        size = text["indexer_head_dim"]
        rows = (text["indexer_n_heads"] + text["indexer_kv_heads"]) * size
        indexer = f"{root}.self_attn.indexer"
        yield Module(f"{indexer}.index_qk_proj", (rows, hidden), Kind.ATTENTION, part)
        yield from norms(part, size, f"{indexer}.q_layernorm", f"{indexer}.k_layernorm")
    else:
        yield from linear_attention(f"{root}.linear_attn", text, part)
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield Module(f"{root}.mlp.shared_expert_gate", (1, hidden), Kind.ROUTER, part)
    yield from mlp(f"{root}.mlp.shared_expert", hidden, text["shared_expert_intermediate_size"], Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, layout)


def _qwen4_mixer(root: str, text: Config, part: Part, *, combines: bool = True) -> Iterator[Module]:
    """Yield what mixes the residual streams; the last one of a model does not combine them."""
    wide, rank = text["hc_count"] * text["hidden_size"], text["hc_lowrank"]
    yield plain(f"{root}.hc_norm", wide, part=part)
    yield Module(f"{root}.input_mix_weight_down", (rank, wide), Kind.ROUTER, part)
    yield Module(f"{root}.input_mix_weight_up", (wide, rank), Kind.ROUTER, part)
    if combines:
        yield Module(f"{root}.block_inject_weight", (text["hc_count"], wide), Kind.ROUTER, part)


NGRAM_ROWS = {20_000_000: 320_001_536, 50: 128}
"""Rows of a table of n-grams by the least vocabulary of one of its heads: as many primes as heads from there on, summed
and padded, as the engine's own class works them out."""


def _qwen4_table(root: str, text: Config) -> Iterator[Module]:
    """Yield the embedding of n-grams of one layer, cut into parts, and what puts it into the residual streams."""
    hidden, wide = text["hidden_size"], text["hc_count"] * text["hidden_size"]
    heads = (text["ngram_size"] - 1) * text["heads_per_ngram"]
    table, rows, parts = f"{root}.ple_embedding", NGRAM_ROWS[text["ngram_vocab_size_base"]], text["split_ngram_parts"]
    for name, count in {"layer_multipliers": text["ngram_size"], "ngram_heads_offsets": heads}.items():
        yield plain(f"{table}.{name}", count, weight="", dtype="I64")
    yield plain(f"{table}.ngram_heads_vocab_sizes", heads, weight="", dtype="I64")
    size = -(-rows // parts)
    for part in range(parts):
        shape = (min(size, rows - part * size), text["ple_embed_dim"] // heads)
        yield Module(f"{table}.ngram_embedding.shard_{part}", shape, Kind.ROUTER)
    yield Module(f"{root}.key_proj", (wide, text["ple_embed_dim"]), Kind.LINEAR_ATTENTION)
    yield Module(f"{root}.value_proj", (hidden, text["ple_embed_dim"]), Kind.LINEAR_ATTENTION)
    yield from norms("target", wide, f"{root}.norm_key", f"{root}.norm_query", f"{root}.norm_conv")
    yield plain(f"{root}.conv1d", wide, 1, text["ple_conv_kernel_size"])


def _qwen4_exp(size: Size) -> Config:
    """Return the configuration of Qwen3.8-Flash-Next; what no source tells is as the configuration class has it."""
    text: Config = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": 248044,
        "full_attention_interval": 4,
        "hc_count": 4,
        "hc_lowrank": 320,
        "head_dim": 256,
        "heads_per_ngram": 8,
        "hidden_act": "silu",
        "hidden_size": 2560,
        "indexer_budget": 2048,
        "indexer_compress_ratio": 4,
        "indexer_head_dim": 128,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 4,
        "initializer_range": 0.02,
        "layer_types": hybrid(48),
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 48,
        "linear_value_head_dim": 128,
        "make_ngram_vocab_size_divisible_by": 128,
        "mamba_ssm_dtype": "float32",
        "max_position_embeddings": 262144,
        "model_type": "qwen4_exp_text",
        "moe_intermediate_size": 640,
        "mtp_num_hidden_layers": 1,
        "ngram_size": 3,
        "ngram_vocab_size_base": 20_000_000,
        "norm_topk_prob": True,
        "num_attention_heads": 24,
        "num_experts": 512,
        "num_experts_per_tok": 10,
        "num_hidden_layers": 48,
        "num_key_value_heads": 2,
        "output_gate_type": "sigmoid",
        "ple_conv_kernel_size": 4,
        "ple_embed_dim": 2560,
        "ple_layer_ids": [2],
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "seed": 1234,
        "shared_expert_intermediate_size": 640,
        "split_ngram_parts": 128,
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 248320,
    }
    if size == "tiny":
        text |= {
            "eos_token_id": 1,
            "full_attention_interval": 2,
            "hc_count": 2,
            "hc_lowrank": 16,
            "head_dim": 64,
            "heads_per_ngram": 2,
            "hidden_size": 128,
            "indexer_budget": 8192,
            "indexer_compress_ratio": 16,
            "indexer_head_dim": 32,
            "layer_types": ["linear_attention", "full_attention"],
            "linear_key_head_dim": 32,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_value_head_dim": 32,
            "max_position_embeddings": 1024,
            "moe_intermediate_size": 64,
            "ngram_size": 2,
            "ngram_vocab_size_base": 50,
            "num_attention_heads": 4,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "ple_embed_dim": 128,
            "ple_layer_ids": [1],
            "shared_expert_intermediate_size": 64,
            "split_ngram_parts": 2,
            "vocab_size": 256,
        }
        text["rope_parameters"] = {**text["rope_parameters"], "mrope_section": [3, 3, 2]}
    vision = VISION if size == "full" else VISION_TINY
    return {
        "architectures": ["Qwen4ExpForConditionalGeneration"],
        "dtype": "bfloat16",
        "image_token_id": 248056,
        "model_type": "qwen4_exp",
        "text_config": text,
        "tie_word_embeddings": False,
        "video_token_id": 248057,
        "vision_config": {**vision, "model_type": "qwen4_exp_vision", "out_hidden_size": text["hidden_size"]},
        "vision_end_token_id": 248054,
        "vision_start_token_id": 248053,
    }


# ------------------------------------------------------------------------------------------------------ Kimi-K3


def kimi(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Kimi-K3: delta and latent attention, experts behind a narrower layer, MTP as layer N below the wrapper."""
    del layout
    text, root = config["text_config"], "language_model.model"
    hidden, vocabulary, last = text["hidden_size"], text["vocab_size"], text["num_hidden_layers"]
    yield plain(f"{root}.embed_tokens", vocabulary, hidden)
    for index in range(last):
        layer = f"{root}.layers.{index}"
        if index + 1 in text["linear_attn_config"]["kda_layers"]:
            yield from _kimi_delta(f"{layer}.self_attn", text)
        else:
            yield from _kimi_latent(f"{layer}.self_attn", text, "target")
        yield from _kimi_feed_forward(layer, text, index, "target")
        yield from norms("target", hidden, f"{layer}.self_attention_res_norm", f"{layer}.mlp_res_norm")
        for name in ("self_attention_res_proj", "mlp_res_proj"):
            yield Module(f"{layer}.{name}", (1, hidden), Kind.ROUTER)
    yield from norms("target", hidden, f"{root}.norm", f"{root}.output_attn_res_norm")
    yield Module(f"{root}.output_attn_res_proj", (1, hidden), Kind.ROUTER)
    yield Module("language_model.lm_head", (vocabulary, hidden), Kind.HEAD)
    yield from _kimi_vision(config["vision_config"], hidden)
    for index in range(last, last + text.get("num_nextn_predict_layers", 0)):
        layer = f"{root}.layers.{index}"
        yield from norms("branch", hidden, f"{layer}.enorm", f"{layer}.hnorm", f"{layer}.shared_head.norm")
        yield Module(f"{layer}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        yield Module(f"{layer}.shared_head.head", (vocabulary, hidden), Kind.HEAD, "branch")
        yield from _kimi_latent(f"{layer}.self_attn", text, "branch")
        yield from _kimi_feed_forward(layer, text, index, "branch")


def _kimi_latent(root: str, text: Config, part: Part) -> Iterator[Module]:
    yield from latent_attention(root, text, part)
    yield Module(
        f"{root}.g_proj", (text["num_attention_heads"] * text["v_head_dim"], text["hidden_size"]), Kind.ATTENTION, part
    )


def _kimi_delta(root: str, text: Config) -> Iterator[Module]:
    hidden, numbers = text["hidden_size"], text["linear_attn_config"]
    heads, size = numbers["num_heads"], numbers["head_dim"]
    inner = heads * size
    rows = {"q_proj": inner, "k_proj": inner, "v_proj": inner, "g_proj": inner, "b_proj": heads, "f_a_proj": size}
    for name, count in rows.items():
        yield Module(f"{root}.{name}", (count, hidden), Kind.LINEAR_ATTENTION)
    yield Module(f"{root}.f_b_proj", (inner, size), Kind.LINEAR_ATTENTION)
    yield Module(f"{root}.o_proj", (hidden, inner), Kind.LINEAR_ATTENTION)
    for name in ("q_conv1d", "k_conv1d", "v_conv1d"):
        yield plain(f"{root}.{name}", inner, 1, numbers["short_conv_kernel_size"])
    yield plain(f"{root}.A_log", heads, weight="", dtype="F32")
    yield plain(f"{root}.dt_bias", inner, weight="", dtype="F32")
    yield plain(f"{root}.o_norm", size)


def _kimi_feed_forward(root: str, text: Config, index: int, part: Part) -> Iterator[Module]:
    hidden, width, count = text["hidden_size"], text["moe_intermediate_size"], text["num_experts"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    if index < text["first_k_dense_replace"]:
        yield from mlp(f"{root}.mlp", hidden, text["intermediate_size"], Kind.MLP, part)
        return
    block, narrow = f"{root}.block_sparse_moe", text["routed_expert_hidden_size"]
    yield Module(f"{block}.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{block}.gate.e_score_correction_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{block}.shared_experts", hidden, width * text["num_shared_experts"], Kind.SHARED, part)
    yield Module(f"{block}.routed_expert_down_proj", (narrow, hidden), Kind.LATENT, part)
    yield plain(f"{block}.routed_expert_norm", narrow, part=part)
    yield Module(f"{block}.routed_expert_up_proj", (hidden, narrow), Kind.LATENT, part)
    for name, shape in {"w1": (width, narrow), "w2": (narrow, width), "w3": (width, narrow)}.items():
        yield Module(f"{block}.experts.{{}}.{name}", shape, Kind.EXPERT, part, experts=count)


def _kimi_vision(vision: Config, hidden: int) -> Iterator[Module]:
    width, inner, patch = vision["vt_hidden_size"], vision["vt_intermediate_size"], vision["patch_size"]
    root, rows = "vision_tower", vision["qkv_hidden_size"]
    yield plain(f"{root}.patch_embed.proj", width, 3, patch, patch, part="vision")
    sides = (vision["init_pos_emb_height"], vision["init_pos_emb_width"])
    yield plain(f"{root}.patch_embed.pos_emb", *sides, width, part="vision")
    for index in range(vision["vt_num_hidden_layers"]):
        block = f"{root}.encoder.blocks.{index}"
        yield from norms("vision", width, f"{block}.norm0", f"{block}.norm1")
        for name, shape in {
            "wqkv": (3 * rows, width),
            "wo": (width, rows),
            "mlp.fc0": (inner, width),
            "mlp.fc1": (width, inner),
        }.items():
            yield Module(f"{block}.{name}", shape, Kind.VISION, "vision")
    yield plain(f"{root}.encoder.final_layernorm", width, part="vision")
    merged = width * vision["merge_kernel_size"][0] * vision["merge_kernel_size"][1]
    yield Module("mm_projector.proj.0", (merged, merged), Kind.VISION, "vision")
    yield Module("mm_projector.proj.2", (hidden, merged), Kind.VISION, "vision")
    yield plain("mm_projector.post_norm", hidden, part="vision")


def _kimi_k3(size: Size) -> Config:
    """Return a configuration of Kimi-K3: 92 layers of latent attention with an output gate; other numbers are COMPUTED,
    those of the vision tower the defaults of its class.
    """
    layers = 92 if size == "full" else 2
    latent = list(range(4, layers + 1, 4)) if size == "full" else [2]
    text: Config = {
        "activation_situ_beta": 1.0,
        "activation_situ_linear_beta": 1.0,
        "architectures": ["KimiLinearForCausalLM"],
        "attn_res_block_size": 4,
        "dtype": "bfloat16",
        "first_k_dense_replace": 1,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 7168,
        "intermediate_size": 18432,
        "kv_lora_rank": 512,
        "latent_moe_use_norm": True,
        "linear_attn_config": {
            "full_attn_layers": latent,
            "gate_lower_bound": -5.0,
            "head_dim": 128,
            "kda_layers": [index for index in range(1, layers + 1) if index not in latent],
            "num_heads": 96,
            "short_conv_kernel_size": 4,
            "use_full_rank_gate": True,
        },
        "max_position_embeddings": 262144,
        "mla_use_nope": True,
        "mla_use_output_gate": True,
        "model_type": "kimi_linear",
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "moe_renormalize": True,
        "moe_router_activation_func": "sigmoid",
        "num_attention_heads": 96,
        "num_expert_group": 1,
        "num_experts": 384,
        "num_experts_per_token": 8,
        "num_hidden_layers": layers,
        "num_key_value_heads": 96,
        "num_nextn_predict_layers": 1,
        "num_shared_experts": 1,
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000.0,
        "routed_expert_hidden_size": 3584,
        "routed_scaling_factor": 2.5,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "use_grouped_topk": True,
        "v_head_dim": 128,
        "vocab_size": 163840,
    }
    vision: Config = {
        "init_pos_emb_height": 64,
        "init_pos_emb_time": 4,
        "init_pos_emb_width": 64,
        "merge_kernel_size": [2, 2],
        "mm_projector_type": "patchmergerv2",
        "model_type": "kimi_k3_vision",
        "norm_type": "rmsnorm",
        "patch_size": 14,
        "qkv_hidden_size": 1536,
        "vt_hidden_size": 1024,
        "vt_intermediate_size": 4096,
        "vt_num_attention_heads": 12,
        "vt_num_hidden_layers": 27 if size == "full" else 1,
    }
    if size == "tiny":
        text |= {
            "head_dim": 32,
            "hidden_size": 128,
            "intermediate_size": 256,
            "kv_lora_rank": 64,
            "max_position_embeddings": 1024,
            "moe_intermediate_size": 64,
            "num_attention_heads": 4,
            "num_experts": 4,
            "num_experts_per_token": 2,
            "num_key_value_heads": 4,
            "q_lora_rank": 64,
            "qk_nope_head_dim": 32,
            "qk_rope_head_dim": 32,
            "routed_expert_hidden_size": 64,
            "v_head_dim": 32,
            "vocab_size": 256,
        }
        text["linear_attn_config"] |= {"head_dim": 32, "num_heads": 4}
        vision |= {"init_pos_emb_height": 4, "init_pos_emb_width": 4, "qkv_hidden_size": 64}
        vision |= {"vt_hidden_size": 64, "vt_intermediate_size": 128, "vt_num_attention_heads": 2}
    return {
        "architectures": ["KimiK3ForConditionalGeneration"],
        "dtype": "bfloat16",
        "media_placeholder_token_id": 163605 if size == "full" else 3,
        "model_type": "kimi_k3",
        "pad_token_id": 0,
        "text_config": text,
        "tie_word_embeddings": False,
        "vision_config": vision,
    }


def kimi_layer_globs(config: Config) -> list[str]:
    """Return the globs of a branch whose layers follow the decoder's own, below the wrapper."""
    return [f"language_model.{glob}" for glob in layer_globs(config)]


# ------------------------------------------------------------------------------------------------------ Inkling


def inkling(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Inkling: short convolutions, stacked experts with scales of their own, MTP layers at `model.mtp`."""
    del layout
    text, branch = text_of(config), config["mtp_config"]
    hidden, vocabulary, count = text["hidden_size"], text["vocab_size"], branch.get("num_nextn_predict_layers", 0)
    yield plain("model.llm.embed", vocabulary, hidden)
    yield plain("model.llm.embed_norm", hidden)
    for index in range(text["num_hidden_layers"]):
        root = f"model.llm.layers.{index}"
        yield from _inkling_layer(root, text, "target", local=index in text["local_layer_ids"])
        if index < text["dense_mlp_idx"]:
            yield from _inkling_mlp(root, text, "target")
        else:
            yield from _inkling_experts(f"{root}.mlp", text)
    yield plain("model.llm.norm", hidden)
    yield Module("model.llm.unembed", (vocabulary, hidden), Kind.HEAD)
    if "vision_config" in config:
        yield from _inkling_towers(config)
    for index in range(count):
        root = f"model.mtp.layers.{index}"
        yield from norms("branch", hidden, f"{root}.hidden_norm", f"{root}.embed_norm")
        yield Module(f"{root}.input_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        block = f"{root}.transformer_block"
        yield from _inkling_layer(block, text, "branch", local=index in branch["local_layer_ids"])
        yield from _inkling_mlp(block, text, "branch")
    if count:
        yield plain("model.mtp.chain_norm", hidden, part="branch")


def _inkling_towers(config: Config) -> Iterator[Module]:
    """Yield what reads images, joining patches layer by layer, and what reads sound."""
    vision, audio, root = config["vision_config"], config["audio_config"], "model.visual.layers"
    out, inner = vision["decoder_dmodel"], 64
    columns = (vision["n_channels"] * vision["patch_size"] ** 2, inner * vision["temporal_patch_size"], inner)
    for place, (rows, width) in enumerate(zip((inner, inner, out), columns, strict=True)):
        yield Module(f"{root}.linear_{place}", (rows, width), Kind.VISION, "vision")
        if rows == inner:
            yield plain(f"{root}.norm_{place}", inner, part="vision")
    yield plain("model.visual.final_norm", out, part="vision")
    words = audio["n_mel_bins"] * audio["mel_vocab_size"]
    yield plain("model.audio.encoder", words, audio["decoder_dmodel"], part="vision")
    yield plain("model.audio.final_norm", audio["decoder_dmodel"], part="vision")


def _inkling_layer(root: str, text: Config, part: Part, *, local: bool) -> Iterator[Module]:
    hidden, kind, taps = text["hidden_size"], Kind.ATTENTION, text["sconv_kernel_size"]
    own = "swa_" if local else ""
    heads, groups, size = (text[f"{own}{name}"] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    attention = f"{root}.attn"
    rows = {"wq_du": heads * size, "wk_dv": groups * size, "wv_dv": groups * size, "wr_du": heads * text["d_rel"]}
    for name, count in rows.items():
        yield Module(f"{attention}.{name}", (count, hidden), kind, part)
    yield Module(f"{attention}.wo_ud", (hidden, heads * size), kind, part)
    yield from norms(part, size, f"{attention}.q_norm", f"{attention}.k_norm")
    extent = text["sliding_window_size"] if local else text["rel_extent"]
    yield plain(f"{attention}.rel_logits_proj.proj", text["d_rel"], extent, weight="", part=part)
    for name in ("k_sconv", "v_sconv"):
        yield plain(f"{attention}.{name}", groups * size, 1, taps, part=part)
    yield from norms(part, hidden, f"{root}.attn_norm", f"{root}.mlp_norm")
    for name in ("attn_sconv", "mlp_sconv"):
        yield plain(f"{root}.{name}", hidden, 1, taps, part=part)


def _inkling_mlp(root: str, text: Config, part: Part) -> Iterator[Module]:
    hidden, width = text["hidden_size"], text["dense_intermediate_size"]
    yield Module(f"{root}.mlp.w13_dn", (2 * width, hidden), Kind.MLP, part)
    yield Module(f"{root}.mlp.w2_md", (hidden, width), Kind.MLP, part)


def _inkling_experts(root: str, text: Config) -> Iterator[Module]:
    hidden, width, count, shared = (
        text[name] for name in ("hidden_size", "intermediate_size", "n_routed_experts", "n_shared_experts")
    )
    yield Module(f"{root}.gate", (count + shared, hidden), Kind.ROUTER)
    yield plain(f"{root}.gate.bias", count, weight="", dtype="F32")
    for name, number in {"experts.": count, "shared_experts.shared_": shared}.items():
        kind = Kind.EXPERT if number == count else Kind.ROUTER
        for leaf, shape in {"w13": (2 * width, hidden), "w2": (hidden, width)}.items():
            yield Module(f"{root}.{name}{leaf}_weight", (number, *shape), kind, weight="", amax=kind is Kind.EXPERT)


def _inkling(size: Size) -> Config:
    """Return a configuration of Inkling: the defaults of the engine's own class, other numbers COMPUTED; its towers for
    images and sound are small.
    """
    layers = 16 if size == "full" else 2
    text: Config = {
        "chain_hidden_post_norm": True,
        "d_rel": 16,
        "dense_intermediate_size": 6144,
        "dense_mlp_idx": 1,
        "dtype": "bfloat16",
        "gate_activation": "sigmoid",
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1536,
        "inference_moe_w13_interleaved": True,
        "intermediate_size": 768,
        "local_layer_ids": [index for index in range(layers) if index % 4 != 3] if size == "full" else [0],
        "model_type": "inkling_model",
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "norm_after_topk": True,
        "num_attention_heads": 12,
        "num_experts_per_tok": 4,
        "num_hidden_layers": layers,
        "num_key_value_heads": 4,
        "rel_extent": 1024,
        "rms_norm_eps": 1e-06,
        "sconv_kernel_size": 4,
        "shared_expert_sink": True,
        "sliding_window_size": 512,
        "swa_head_dim": 128,
        "swa_num_attention_heads": 12,
        "swa_num_key_value_heads": 4,
        "tie_word_embeddings": False,
        "use_embed_norm": True,
        "use_gate_bias": True,
        "use_sconv": True,
        "vocab_size": 201024,
    }
    if size == "tiny":
        text |= {
            "dense_intermediate_size": 256,
            "head_dim": 32,
            "hidden_size": 128,
            "intermediate_size": 64,
            "n_routed_experts": 4,
            "num_attention_heads": 4,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 2,
            "rel_extent": 32,
            "sliding_window_size": 16,
            "swa_head_dim": 32,
            "swa_num_attention_heads": 4,
            "swa_num_key_value_heads": 2,
            "vocab_size": 256,
        }
    return {
        "architectures": ["InklingForConditionalGeneration"],
        "audio_config": {
            "audio_mode": "dmel",
            "decoder_dmodel": text["hidden_size"],
            "dmel_max_value": 2.0,
            "dmel_min_value": -7.0,
            "mel_vocab_size": 16,
            "model_type": "inkling_audio_model",
            "n_mel_bins": 8,
            "use_audio_norm": True,
        },
        "dtype": "bfloat16",
        "model_type": "inkling_mm_model",
        "mtp_config": {"chain_hidden_post_norm": True, "local_layer_ids": [0], "num_nextn_predict_layers": 2},
        "text_config": text,
        "tie_word_embeddings": False,
        "vision_config": {
            "decoder_dmodel": text["hidden_size"],
            "model_type": "inkling_vision_model",
            "n_channels": 3,
            "n_layers": 3,
            "patch_size": 2,
            "temporal_patch_size": 2,
            "use_vision_norm": True,
            "vision_encoder_type": "hmlp",
        },
    }


def _inkling_text(size: Size) -> Config:
    """Return a configuration of Inkling without its towers: the decoder's numbers at the top."""
    whole = _inkling(size)
    kept = {key: whole[key] for key in ("mtp_config", "tie_word_embeddings")}
    return {**whole["text_config"], **kept, "architectures": ["InklingForCausalLM"]}


NEWEST = (
    Family(
        "qwen4_exp",
        "Qwen3.8-Flash-Next",
        _qwen4_exp,
        qwen4,
        mtp_glob,
        vision=("visual",),
        published="target",
    ),
    Family(
        "kimi_k3",
        "Kimi-K3",
        _kimi_k3,
        kimi,
        kimi_layer_globs,
        head="head",
        renamed={"language_model.model.layers.": "model.layers."},
        inside={
            f".self_attn.{name}": ".self_attn.fused_qkv_a_g_proj"
            for name in ("q_a_proj", "kv_a_proj_with_mqa", "g_proj")
        },
        vision=("vision_tower", "mm_projector"),
        published="glob",
    ),
    Family(
        "inkling",
        "Inkling",
        _inkling,
        inkling,
        lambda _: ["model.mtp*"],
        vision=("model.visual",),
        published="glob",
    ),
    Family(
        "inkling_text",
        "Inkling without its towers",
        _inkling_text,
        inkling,
        lambda _: ["model.mtp*"],
        published="glob",
    ),
)
