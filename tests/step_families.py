"""Step-5 and its wrapper for images, as `tests.families` has its own.

No public configuration was at hand: numbers are the defaults of the configuration class, or COMPUTED where these do not
fit each other.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.modules import Config, Family, Kind, Layout, Module, Part, Size, experts, layer_globs, mlp, norms, plain

FULL, SLIDING = "full_attention", "sliding_attention"


def step5(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Step-5: layers that look at all tokens have an indexer, MTP layers with dense blocks as layers N and on."""
    text = config.get("text_config", config)
    hidden, vocabulary, last = text["hidden_size"], text["vocab_size"], text["num_hidden_layers"]
    yield plain("model.embed_tokens", vocabulary, hidden)
    for index in range(last):
        yield from _layer(f"model.layers.{index}", text, index, "target", layout)
    yield plain("model.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    for index in range(last, last + text.get("num_nextn_predict_layers", 0)):
        root = f"model.layers.{index}"
        head = f"{root}.transformer.shared_head"
        yield from norms("branch", hidden, f"{root}.enorm", f"{root}.hnorm", f"{head}.norm")
        yield Module(f"{root}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        yield Module(f"{head}.output", (vocabulary, hidden), Kind.HEAD, "branch")
        yield from _layer(root, text, index, "branch", layout)
    if "vision_config" in config:
        yield from step_vision(config["vision_config"], hidden)


def _layer(root: str, text: Config, index: int, part: Part, layout: Layout) -> Iterator[Module]:
    hidden = text["hidden_size"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from _attention(f"{root}.self_attn", text, text["layer_types"][index], part)
    if index not in {int(number) for number in text["moe_layers_enum"].split(",")}:
        yield from mlp(f"{root}.mlp", hidden, text["intermediate_size"], Kind.MLP, part)
        return
    count, width = text["moe_num_experts"], text["moe_intermediate_size"]
    yield Module(f"{root}.moe.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.moe.router_bias", count, weight="", dtype="F32", part=part)
    yield from mlp(f"{root}.share_expert", hidden, text["share_expert_dim"], Kind.SHARED, part)
    place = f"{root}.moe.experts" if layout == "each" else f"{root}.moe"
    yield from experts(place, (count, width, hidden), part, "each" if layout == "each" else "stacked")


def _attention(root: str, text: Config, kind: str, part: Part) -> Iterator[Module]:
    numbers = {**text, **(text["attention_other_setting"] if kind == SLIDING else {})}
    hidden, size = text["hidden_size"], numbers["head_dim"]
    heads, groups = numbers["num_attention_heads"], numbers["num_attention_groups"]
    rows = {"q_proj": heads * size, "k_proj": groups * size, "v_proj": groups * size, "g_proj": heads}
    sparse = text["sparse_config"]
    if kind == FULL:
        wide = sparse["proxy_dim"]
        rows |= {"sparse_indexer_q": sparse["sparse_indexer_num_heads"] * wide}
        rows |= {"sparse_indexer_k": wide, "sparse_indexer_z": wide}
    for name, count in rows.items():
        yield Module(f"{root}.{name}", (count, hidden), Kind.ATTENTION, part)
    yield Module(f"{root}.o_proj", (hidden, heads * size), Kind.ATTENTION, part)
    yield from norms(part, size, f"{root}.q_norm", f"{root}.k_norm")
    if kind == FULL:
        yield Module(f"{root}.sparse_indexer_w", (sparse["sparse_indexer_num_heads"], hidden), Kind.ROUTER, part)
        yield plain(f"{root}.ssmax_s", heads, weight="", dtype="F32", part=part)
        yield from norms(part, wide, f"{root}.sparse_indexer_q_norm", f"{root}.sparse_indexer_k_norm")
        yield plain(f"{root}.sparse_indexer_k_norm", wide, weight="bias", part=part)


def with_bias(name: str, shape: tuple[int, ...], kind: Kind = Kind.VISION) -> Iterator[Module]:
    """Yield a module of a vision tower and its bias."""
    yield Module(name, shape, kind, "vision")
    yield plain(name, shape[0], weight="bias", part="vision")


def step_vision(vision: Config, hidden: int) -> Iterator[Module]:
    """Yield the vision tower that Step-3.7 and Step-5 share, and what leads from it to the decoder."""
    width, root = vision["width"], "vision_model"
    inner = int(width * vision["mlp_ratio"])
    grid = vision["image_size"] // vision["patch_size"]
    yield plain(f"{root}.conv1", width, 3, vision["patch_size"], vision["patch_size"], part="vision")
    yield plain(f"{root}.positional_embedding", grid * grid, width, weight="", part="vision")
    yield from with_bias(f"{root}.ln_pre", (width,), Kind.PLAIN)
    for index in range(vision["layers"]):
        block = f"{root}.transformer.resblocks.{index}"
        for name in ("ln_1", "ln_2"):
            yield from with_bias(f"{block}.{name}", (width,), Kind.PLAIN)
        for name in ("ls_1", "ls_2"):
            yield plain(f"{block}.{name}.gamma", width, weight="", part="vision")
        yield plain(f"{block}.attn.in_proj_weight", 3 * width, width, weight="", part="vision")
        yield plain(f"{block}.attn.in_proj_bias", 3 * width, weight="", part="vision")
        yield from with_bias(f"{block}.attn.out_proj", (width, width))
        yield from with_bias(f"{block}.mlp.c_fc", (inner, width))
        yield from with_bias(f"{block}.mlp.c_proj", (width, inner))
    for name, times in (("vit_downsampler1", 1), ("vit_downsampler2", 2)):
        yield from with_bias(f"{root}.{name}", (2 * times * width, times * width, 3, 3), Kind.PLAIN)
    yield Module("vit_large_projector", (hidden, 4 * width), Kind.VISION, "vision")


def _layer_types(layers: int, branch: list[str]) -> list[str]:
    """Return the kinds of attention: one layer of four looks at all tokens; those of the branch as they are given."""
    return [SLIDING if index % 4 else FULL for index in range(layers)] + branch


def _step5(size: Size, branch: list[str]) -> Config:
    """Return a configuration of Step-5 whose MTP layers have these kinds of attention."""
    config: Config = {
        "architectures": ["Step5ForCausalLM"],
        "att_impl_type": "GQA",
        "attention_other_setting": {
            "attention_type": SLIDING,
            "head_dim": 192,
            "num_attention_groups": 8,
            "num_attention_heads": 96,
        },
        "bos_token_id": 0,
        "eos_token_id": [1, 2],
        "fp32_residual_connection": True,
        "head_dim": 192,
        "hidden_size": 5120,
        "intermediate_size": 13312,
        "max_position_embeddings": 262144,
        "model_type": "step5",
        "moe_intermediate_size": 1280,
        "moe_layers_enum": ",".join(str(index) for index in range(3, 48)),
        "moe_num_experts": 288,
        "moe_router_activation": "sigmoid",
        "moe_router_scaling_factor": 3.0,
        "moe_top_k": 8,
        "need_fp32_gate": True,
        "norm_dtype": "bf16",
        "norm_expert_weight": True,
        "num_attention_groups": 8,
        "num_attention_heads": 64,
        "num_hidden_layers": 48,
        "num_nextn_predict_layers": len(branch),
        "rms_norm_eps": 1e-05,
        "share_expert_dim": 1280,
        "sliding_window": 512,
        "sparse_config": {
            "num_provider_groups": 8,
            "proxy_dim": 256,
            "region_block_size": 8,
            "sparse_indexer_num_heads": 16,
            "sparse_indexer_num_k_heads": 1,
            "topk": 512,
        },
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_head_wise_attn_gate": True,
        "use_moe": True,
        "use_moe_router_bias": True,
        "vocab_size": 128896,
        "zero_centered": True,
    }
    if size == "tiny":
        config |= {
            "attention_other_setting": {
                "attention_type": SLIDING,
                "head_dim": 64,
                "num_attention_groups": 2,
                "num_attention_heads": 4,
            },
            "hidden_size": 128,
            "intermediate_size": 256,
            "max_position_embeddings": 1024,
            "moe_intermediate_size": 64,
            "moe_layers_enum": "1,2",
            "moe_num_experts": 4,
            "moe_top_k": 2,
            "num_attention_groups": 2,
            "num_attention_heads": 8,
            "num_hidden_layers": 3,
            "share_expert_dim": 64,
            "sliding_window": 64,
            "sparse_config": {**config["sparse_config"], "num_provider_groups": 2, "sparse_indexer_num_heads": 4},
            "vocab_size": 256,
        }
    kinds = _layer_types(config["num_hidden_layers"], branch)
    return config | {
        "layer_types": kinds,
        "partial_rotary_factors": [0.5 if kind == FULL else 1.0 for kind in kinds],
        "rope_theta": [5000000.0 if kind == FULL else 10000.0 for kind in kinds],
        "swiglu_limits": [0.0] * len(kinds),
        "swiglu_limits_shared": [0.0] * len(kinds),
        "use_rope_layers": [],
        "yarn_only_types": [FULL],
    }


def _step5_vl(size: Size) -> Config:
    """Return Step-5 below the vision tower of Step-3.7, of whose MTP layers the first looks at all tokens."""
    text = _step5(size, [FULL, SLIDING])
    vision: Config = {
        "heads": 16,
        "hidden_act": "quick_gelu",
        "image_size": 728,
        "layers": 47,
        "ls_init_value": 0.1,
        "mlp_ratio": 8960 / 1536,
        "model_type": "perception_encoder",
        "output_dim": None,
        "patch_size": 14,
        "use_abs_posemb": True,
        "use_cls_token": False,
        "use_ln_post": False,
        "use_ln_pre": True,
        "use_rope2d": True,
        "width": 1536,
    }
    if size == "tiny":
        vision |= {"heads": 2, "image_size": 56, "layers": 1, "mlp_ratio": 2.0, "width": 64}
    return {
        "architectures": ["Step5ForConditionalGeneration"],
        "hidden_size": text["hidden_size"],
        "image_token_id": 128001 if size == "full" else 3,
        "model_type": "step5_vl",
        "projector_bias": False,
        "text_config": text,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "understand_projector_stride": 2,
        "vision_config": vision,
    }


STEP5 = (
    Family(
        "step5",
        "Step-5",
        lambda size: _step5(size, [SLIDING] * 3),
        step5,
        layer_globs,
        ("stacked",),
        block="mtp_block.",
        head="shared_head.head",
    ),
    Family(
        "step5_vl",
        "Step-5 with vision",
        _step5_vl,
        step5,
        layer_globs,
        ("stacked",),
        vision=("vision_model", "vit_large_projector"),
        block="mtp_block.",
        head="shared_head.head",
    ),
)
