"""Model families behind a wrapper for images or sound: GLM-OCR and EXAONE 4.5, as `tests.families` has its own.

Numbers are the published ones, or, where no public configuration was at hand, the defaults of the configuration class.
Towers are cut down to one block of each kind.
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
    grouped_attention,
    joined_by_fc,
    main_model,
    mlp,
    mtp_glob,
    norms,
    plain,
)  # fmt: skip


def _tower(name: str, *shape: int, kind: Kind = Kind.VISION, bias: bool = True) -> Iterator[Module]:
    yield Module(name, shape, kind, "vision")
    if bias:
        yield plain(name, shape[0], weight="bias", part="vision")


def _patches(vision: Config) -> tuple[int, ...]:
    return (
        vision["hidden_size"],
        vision["in_channels"],
        vision["temporal_patch_size"],
        vision["patch_size"],
        vision["patch_size"],
    )


# ------------------------------------------------------------------------------------------------------ GLM-OCR


def glm_ocr(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield GLM-OCR: dense layers with four norms, gate and up fused on disk, MTP as layer N below the wrapper."""
    del layout
    text = config["text_config"]
    yield from main_model(text, _glm_ocr_layer, "model.language_model")
    yield from glm_tower(config["vision_config"], text["intermediate_size"])
    yield from appended_layers(text, _glm_ocr_layer, "model.language_model", own=True)


def _glm_ocr_layer(root: str, text: Config, index: int, part: Part) -> Iterator[Module]:
    del index  # all are alike
    hidden, width = text["hidden_size"], text["intermediate_size"]
    names = ("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm")
    yield from norms(part, hidden, *(f"{root}.{name}" for name in names))
    for module in grouped_attention(f"{root}.self_attn", text, part):
        if not module.name.endswith(("q_norm", "k_norm")):
            yield module
    yield Module(f"{root}.mlp.gate_up_proj", (2 * width, hidden), Kind.MLP, part)
    yield Module(f"{root}.mlp.down_proj", (hidden, width), Kind.MLP, part)


def glm_tower(vision: Config, bottleneck: int) -> Iterator[Module]:
    """Yield the tower of GLM-OCR and what followed it; `bottleneck` is the width inside its merger."""
    width, inner, out, root = (
        vision["hidden_size"],
        vision["intermediate_size"],
        vision["out_hidden_size"],
        "model.visual",
    )
    yield from _tower(f"{root}.patch_embed.proj", *_patches(vision), kind=Kind.PLAIN)
    for index in range(vision["depth"]):
        block, head = f"{root}.blocks.{index}", width // vision["num_heads"]
        yield from norms("vision", width, f"{block}.norm1", f"{block}.norm2")
        yield from norms("vision", head, f"{block}.attn.q_norm", f"{block}.attn.k_norm")
        yield from _tower(f"{block}.attn.qkv", 3 * width, width)
        yield from _tower(f"{block}.attn.proj", width, width)
        yield from _tower(f"{block}.mlp.gate_proj", inner, width)
        yield from _tower(f"{block}.mlp.up_proj", inner, width)
        yield from _tower(f"{block}.mlp.down_proj", width, inner)
    yield plain(f"{root}.post_layernorm", width, part="vision")
    size = vision["spatial_merge_size"]
    yield from _tower(f"{root}.downsample", out, width, size, size, kind=Kind.PLAIN)
    yield from _tower(f"{root}.merger.post_projection_norm", out, kind=Kind.PLAIN)
    yield from _tower(f"{root}.merger.proj", out, out, bias=False)
    yield from _tower(f"{root}.merger.gate_proj", bottleneck, out, bias=False)
    yield from _tower(f"{root}.merger.up_proj", bottleneck, out, bias=False)
    yield from _tower(f"{root}.merger.down_proj", out, bottleneck, bias=False)


def _glm_ocr(size: Size) -> Config:
    """Return the configuration of GLM-OCR."""
    text: Config = {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "dtype": "bfloat16",
        "eos_token_id": [59246, 59253],
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 1536,
        "initializer_range": 0.02,
        "intermediate_size": 4608,
        "max_position_embeddings": 131072,
        "model_type": "glm_ocr_text",
        "num_attention_heads": 16,
        "num_hidden_layers": 16,
        "num_key_value_heads": 8,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 59246,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {
            "mrope_section": [16, 24, 24],
            "partial_rotary_factor": 1.0,
            "rope_theta": 10000,
            "rope_type": "default",
        },
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 59392,
    }
    vision: Config = {
        "attention_bias": True,
        "attention_dropout": 0.0,
        "depth": 24 if size == "full" else 1,
        "hidden_act": "silu",
        "hidden_size": 1024,
        "image_size": 336,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "model_type": "glm_ocr_vision",
        "num_heads": 16,
        "out_hidden_size": 1536,
        "patch_size": 14,
        "projection_intermediate_size": 4608 if size == "full" else 384,
        "rms_norm_eps": 1e-05,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
    }
    if size == "tiny":
        text |= {
            "eos_token_id": [1],
            "head_dim": 32,
            "hidden_size": 128,
            "intermediate_size": 384,
            "max_position_embeddings": 1024,
            "num_attention_heads": 4,
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "pad_token_id": 0,
            "vocab_size": 256,
        }
        text["rope_parameters"] |= {"mrope_section": [4, 6, 6]}
        vision |= {
            "hidden_size": 64,
            "image_size": 56,
            "intermediate_size": 128,
            "num_heads": 2,
            "out_hidden_size": 128,
        }
    return {
        "architectures": ["GlmOcrForConditionalGeneration"],
        "image_end_token_id": 59257 if size == "full" else 3,
        "image_start_token_id": 59256 if size == "full" else 2,
        "image_token_id": 59280 if size == "full" else 4,
        "model_type": "glm_ocr",
        "text_config": text,
        "tie_word_embeddings": False,
        "video_end_token_id": 59259 if size == "full" else 6,
        "video_start_token_id": 59258 if size == "full" else 5,
        "video_token_id": 59281 if size == "full" else 7,
        "vision_config": vision,
    }


def wrapped_layer_globs(config: Config) -> list[str]:
    """Return the globs of a branch whose layers follow the decoder's own, below a wrapper's prefix."""
    text = config["text_config"]
    first = text["num_hidden_layers"]
    layers = range(first, first + text["num_nextn_predict_layers"])
    return [f"model.language_model.layers.{index}*" for index in layers]


# --------------------------------------------------------------------------------------------------- EXAONE 4.5


def exaone4_5(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield EXAONE 4.5: dense layers with norms behind them, MTP under `mtp.` as EXAONE MoE has it."""
    del layout
    text = config["text_config"]
    yield from main_model(text, _exaone_layer, "model.language_model")
    yield from _exaone_tower(config["vision_config"])
    yield from joined_by_fc(text["hidden_size"])
    for index in range(config.get("num_nextn_predict_layers", 0)):
        yield from _exaone_layer(f"mtp.layers.{index}", text, index, "branch")


def _exaone_layer(root: str, text: Config, index: int, part: Part) -> Iterator[Module]:
    del index  # all are alike
    hidden = text["hidden_size"]
    yield from norms(part, hidden, f"{root}.post_attention_layernorm", f"{root}.post_feedforward_layernorm")
    yield from grouped_attention(f"{root}.self_attn", text, part)
    yield from mlp(f"{root}.mlp", hidden, text["intermediate_size"], Kind.MLP, part)


def _exaone_tower(vision: Config) -> Iterator[Module]:
    width, inner, root = vision["hidden_size"], vision["intermediate_size"], "model.visual"
    yield plain(f"{root}.patch_embed.proj", *_patches(vision), part="vision")
    keys = vision["num_key_value_heads"] * (width // vision["num_heads"])
    for index in range(vision["depth"]):
        block = f"{root}.blocks.{index}"
        yield from norms("vision", width, f"{block}.norm1", f"{block}.norm2")
        yield from _tower(f"{block}.attn.qkv", width + 2 * keys, width)
        yield from _tower(f"{block}.attn.proj", width, width)
        yield from _tower(f"{block}.mlp.gate_proj", inner, width)
        yield from _tower(f"{block}.mlp.up_proj", inner, width)
        yield from _tower(f"{block}.mlp.down_proj", width, inner)
    merged = width * vision["spatial_merge_size"] ** 2
    yield plain(f"{root}.merger.ln_q", width, part="vision")
    yield from _tower(f"{root}.merger.mlp.0", merged, merged)
    yield from _tower(f"{root}.merger.mlp.2", vision["out_hidden_size"], merged)


def _exaone4_5(size: Size) -> Config:
    """Return the configuration of EXAONE-4.5-33B, as far as it is known, and small otherwise."""
    layers = 64 if size == "full" else 2
    text: Config = {
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "dtype": "bfloat16",
        "eos_token_id": 53,
        "head_dim": 128,
        "hidden_act": "silu",
        "hidden_size": 5120,
        "initializer_range": 0.02,
        "intermediate_size": 27392,
        "layer_types": ["full_attention" if index % 4 == 3 else "sliding_attention" for index in range(layers)],
        "max_position_embeddings": 262144,
        "model_type": "exaone4",
        "num_attention_heads": 40,
        "num_hidden_layers": layers,
        "num_key_value_heads": 8,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-05,
        "rope_parameters": {"rope_theta": 1000000, "rope_type": "default"},
        "sliding_window": 4096,
        "sliding_window_pattern": "LLLG",
        "tie_word_embeddings": False,
        "use_cache": True,
        "vocab_size": 153600,
    }
    vision: Config = {
        "depth": 28 if size == "full" else 1,
        "fullatt_block_indexes": [6, 13, 20, 27] if size == "full" else [0],
        "hidden_act": "silu",
        "hidden_size": 2048,
        "in_channels": 3,
        "initializer_range": 0.02,
        "intermediate_size": 5120,
        "model_type": "exaone4_5_vision",
        "num_heads": 32,
        "num_key_value_heads": 8,
        "out_hidden_size": 5120,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
    }
    if size == "tiny":
        text |= {
            "head_dim": 32,
            "hidden_size": 128,
            "intermediate_size": 256,
            "max_position_embeddings": 1024,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "sliding_window": 64,
            "vocab_size": 256,
        }
        vision |= {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_heads": 2,
            "num_key_value_heads": 1,
            "out_hidden_size": 128,
        }
    return {
        "architectures": ["Exaone4_5_ForConditionalGeneration"],
        "image_token_id": 67,
        "model_type": "exaone4_5",
        "num_nextn_predict_layers": 1,
        "text_config": text,
        "tie_word_embeddings": False,
        "video_token_id": 68,
        "vision_config": vision,
        "vocab_size": text["vocab_size"],
    }


WRAPPED = (
    Family(
        "glm_ocr",
        "GLM-OCR, 0.9B",
        _glm_ocr,
        glm_ocr,
        wrapped_layer_globs,
        vision=("model.visual",),
        renamed={"model.language_model.layers.": "model.layers."},
        head="head",
        published="glob",
    ),
    Family("exaone4_5", "EXAONE 4.5, 33B", _exaone4_5, exaone4_5, mtp_glob, vision=("model.visual",), published="glob"),
)
