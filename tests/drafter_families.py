"""Drafters: checkpoints that hold a draft alone, for a main model in another folder.

The published size is that of the smallest: what the comments of vLLM's class and the defaults of transformers'
configuration classes say of it. Its decoder's feed-forward blocks count as what every quantized variant packs, all else
as the branch; of IQuest-Q1's layer, whose experts nobody packs, the output projection. No checkpoint of
that one was at hand: numbers are the defaults of SGLang's configuration class.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.modules import Config, Family, Kind, Layout, Module, Size, mlp, norms, plain


def gemma_assistant(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Gemma 4's assistant: queries alone, no head of its own, tokens in clusters."""
    del layout
    text, hidden, wide = config["text_config"], config["text_config"]["hidden_size"], config["backbone_hidden_size"]
    yield plain("model.embed_tokens", text["vocab_size"], hidden, part="branch")
    for index, kind in enumerate(text["layer_types"]):
        root, heads = f"model.layers.{index}", text["num_attention_heads"]
        size = text["global_head_dim" if kind == "full_attention" else "head_dim"]
        for name in ("input", "post_attention", "pre_feedforward", "post_feedforward"):
            yield plain(f"{root}.{name}_layernorm", hidden, part="branch")
        yield plain(f"{root}.layer_scalar", 1, weight="", part="branch")
        yield Module(f"{root}.self_attn.q_proj", (heads * size, hidden), Kind.ATTENTION, "branch")
        yield Module(f"{root}.self_attn.o_proj", (hidden, heads * size), Kind.ATTENTION, "branch")
        yield from norms("branch", size, f"{root}.self_attn.q_norm")
        yield from mlp(f"{root}.mlp", hidden, text["intermediate_size"], Kind.MLP, "target")
    yield plain("model.norm", hidden, part="branch")
    yield Module("pre_projection", (hidden, 2 * wide), Kind.GLUE, "branch")
    yield Module("post_projection", (wide, hidden), Kind.GLUE, "branch")
    if config["use_ordered_embeddings"]:
        yield Module("masked_embedding.centroids", (config["num_centroids"], hidden), Kind.ROUTER, "branch")
        yield plain("masked_embedding.token_ordering", text["vocab_size"], weight="", dtype="I64", part="branch")


def _gemma_assistant(size: Size) -> Config:
    text: Config = {
        "attention_bias": False,
        "attention_k_eq_v": False,
        "dtype": "bfloat16",
        "enable_moe_block": False,
        "global_head_dim": 512,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "hidden_size": 256,
        "hidden_size_per_layer_input": 0,
        "intermediate_size": 2048,
        "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"],
        "max_position_embeddings": 131072,
        "model_type": "gemma4_text",
        "num_attention_heads": 4,
        "num_hidden_layers": 4,
        "num_key_value_heads": 1,
        "num_kv_shared_layers": 4,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1000000.0, "rope_type": "proportional"},
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
        "sliding_window": 512,
        "tie_word_embeddings": True,
        "use_double_wide_mlp": False,
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 0,
    }
    config: Config = {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "backbone_hidden_size": 1536,
        "centroid_intermediate_top_k": 32,
        "dtype": "bfloat16",
        "model_type": "gemma4_assistant",
        "num_centroids": 2048,
        "tie_word_embeddings": True,
        "use_ordered_embeddings": True,
    }
    if size == "tiny":
        text |= {
            "global_head_dim": 32,
            "head_dim": 32,
            "hidden_size": 64,
            "intermediate_size": 128,
            "layer_types": ["sliding_attention", "full_attention"],
            "max_position_embeddings": 1024,
            "num_hidden_layers": 2,
            "num_kv_shared_layers": 2,
            "sliding_window": 64,
            "vocab_size": 256,
        }
        config |= {"backbone_hidden_size": 128, "centroid_intermediate_top_k": 4, "num_centroids": 16}
    return config | {"text_config": text}


def iquest(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield IQuest-Q1's drafter: one layer, all its experts in two tensors, an embedding and a head of its own."""
    del layout
    hidden, size, count, width = (
        config[key] for key in ("hidden_size", "head_dim", "num_experts", "intermediate_size")
    )
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    yield plain("embed_tokens", config["vocab_size"], hidden)
    yield from norms("branch", hidden, "mtp.enorm", "mtp.hnorm", "mtp.final_layernorm")
    yield Module("mtp.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
    root = "mtp.mtp_model_layer"
    for name in ("attention_norm", "attn_out_norm", "feed_forward_norm", "ffn_out_norm"):
        yield plain(f"{root}.{name}", hidden, part="branch")
    for name, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
        yield Module(f"{root}.self_attn.{name}", (rows, hidden), Kind.ATTENTION, "branch")
    yield Module(f"{root}.self_attn.o_proj", (hidden, queries), Kind.MLP, "target")
    yield from norms("branch", size, f"{root}.self_attn.q_norm", f"{root}.self_attn.k_norm")
    yield plain(f"{root}.self_attn.sink_k", config["num_key_value_heads"], size, weight="", part="branch")
    yield Module(f"{root}.mlp.router", (count, hidden), Kind.ROUTER, "branch")
    yield Module(f"{root}.mlp.experts.fc", (count, 2 * width, hidden), Kind.EXPERT, "branch", weight="")
    yield Module(f"{root}.mlp.experts.proj", (count, hidden, width), Kind.EXPERT, "branch", weight="")
    yield plain("target_final_norm", hidden)
    yield Module("lm_head", (config["vocab_size"], hidden), Kind.HEAD)


def _iquest(size: Size) -> Config:
    config: Config = {
        "architectures": ["IQuestQ1MTP"],
        "attention_bias": False,
        "dense_intermediate_size": 12288,
        "dtype": "bfloat16",
        "enable_sink_attention": True,
        "fp32_residual_connection": True,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 3072,
        "intermediate_size": 1536,
        "max_position_embeddings": 524288,
        "model_type": "iquest_q1_mtp",
        "num_attention_heads": 48,
        "num_draft_slots": 7,
        "num_experts": 256,
        "num_experts_per_tok": 8,
        "num_hidden_layers": 1,
        "num_key_value_heads": 8,
        "num_target_layers": 88,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "rotary_dim": 32,
        "sliding_window": 512,
        "swa_rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "vocab_size": 160000,
    }
    if size == "full":
        return config
    return config | {
        "dense_intermediate_size": 256,
        "head_dim": 32,
        "hidden_size": 128,
        "intermediate_size": 64,
        "max_position_embeddings": 1024,
        "num_attention_heads": 4,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "num_key_value_heads": 2,
        "rotary_dim": 16,
        "sliding_window": 64,
        "vocab_size": 256,
    }


DRAFTERS = (
    Family(
        "iquest_q1",
        "IQuest-Q1's drafter",
        _iquest,
        iquest,
        lambda _: ["mtp*"],
        renamed={"mtp.": "model.mtp_layer."},
        declares=False,
        published="plain",
        alone=True,
        asked="<0",  # vLLM has no such class
    ),
    Family(
        "gemma4_assistant",
        "Gemma 4's assistant, of E2B",
        _gemma_assistant,
        gemma_assistant,
        lambda _: ["model.layers.*.self_attn*", "*_projection"],
        renamed={
            "model.layers.": "draft_model.layers.",
            "pre_projection": "draft_model.pre_projection",
            "post_projection": "draft_model.post_projection",
        },
        listed=("lm_head",),  # tied to the embedding, so that no tensor has its name
        declares=False,
        published="plain",
        alone=True,
        asked=">=0.21",  # before, no release has its class
    ),
)
