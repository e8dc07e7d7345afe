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
    mtp_glob,
    norms,
    plain,
)  # fmt: skip

# ---------------------------------------------------------------------------------------------------- Qwen3-MoE


def qwen3_moe(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Qwen3-MoE with a branch like that of Qwen3-Next, under `mtp.`."""
    del layout
    hidden = config["hidden_size"]
    yield plain("model.embed_tokens", config["vocab_size"], hidden)
    for index in range(config["num_hidden_layers"]):
        yield from _qwen3_moe_layer(f"model.layers.{index}", config, "target")
    yield plain("model.norm", hidden)
    yield Module("lm_head", (config["vocab_size"], hidden), Kind.HEAD)
    yield Module("mtp.fc", (hidden, 2 * hidden), Kind.GLUE, "branch")
    yield from norms("branch", hidden, "mtp.norm", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden")
    yield from _qwen3_moe_layer("mtp.layers.0", config, "branch")


def _qwen3_moe_layer(root: str, config: Config, part: Part) -> Iterator[Module]:
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


SGLANG = (
    Family(
        "qwen3_moe",
        "Qwen3-MoE with an MTP branch",
        _qwen3_moe,
        qwen3_moe,
        mtp_glob,
        asked="<0",  # vLLM has no such branch
    ),
)
