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
    mlp,
    mtp_glob,
    norms,
    plain,
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
    """Return a configuration of Qwen3.8-Flash-Next: hidden size, layers, width and number of experts and the place of
    the n-grams as its published lists and shapes say, the rest as the configuration class has it.
    """
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
        "indexer_budget": 8192,
        "indexer_compress_ratio": 16,
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
        "num_key_value_heads": 1,
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
)
