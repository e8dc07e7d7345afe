"""What several Qwen families are made of: gated delta networks, the vision tower, the order of layer types.

Numbers of the tower are those of its configuration class.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.modules import Config, Kind, Module, Part, plain

VISION: Config = {
    "deepstack_visual_indexes": [],
    "depth": 27,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 4304,
    "num_heads": 16,
    "num_position_embeddings": 2304,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
VISION_TINY: Config = {
    **VISION,
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "num_position_embeddings": 16,
}


def hybrid(layers: int) -> list[str]:
    """Return the layer types of a Qwen hybrid: every fourth layer attends fully."""
    return ["full_attention" if index % 4 == 3 else "linear_attention" for index in range(layers)]


def linear_attention(root: str, text: Config, part: Part) -> Iterator[Module]:
    """Yield a gated delta network; `root` is `….linear_attn`, `text` the numbers of the text model."""
    hidden, heads = text["hidden_size"], text["linear_num_value_heads"]
    keys = text["linear_num_key_heads"] * text["linear_key_head_dim"]
    values = heads * text["linear_value_head_dim"]
    kind = Kind.LINEAR_ATTENTION
    if text["model_type"] == "qwen3_next":
        rows = {"in_proj_qkvz": 2 * keys + 2 * values, "in_proj_ba": 2 * heads}
    else:
        rows = {"in_proj_qkv": 2 * keys + values, "in_proj_z": values, "in_proj_b": heads, "in_proj_a": heads}
    for name, count in rows.items():
        yield Module(f"{root}.{name}", (count, hidden), kind, part)
    yield Module(f"{root}.out_proj", (hidden, values), kind, part)
    yield plain(f"{root}.conv1d", 2 * keys + values, 1, text["linear_conv_kernel_dim"], part=part)
    yield plain(f"{root}.A_log", heads, weight="", dtype="F32", part=part)
    yield plain(f"{root}.dt_bias", heads, weight="", part=part)
    yield plain(f"{root}.norm", text["linear_value_head_dim"], part=part)


def vision_tower(vision: Config) -> Iterator[Module]:
    """Yield the vision tower with its merger."""
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    patch, merged = vision["patch_size"], vision["hidden_size"] * vision["spatial_merge_size"] ** 2
    root = "model.visual"
    shape = (width, vision["in_channels"], vision["temporal_patch_size"], patch, patch)
    yield plain(f"{root}.patch_embed.proj", *shape, part="vision")
    yield plain(f"{root}.patch_embed.proj", width, weight="bias", part="vision")
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
    yield from _with_bias(f"{root}.merger.linear_fc1", (merged, merged))
    yield from _with_bias(f"{root}.merger.linear_fc2", (vision["out_hidden_size"], merged))


def _with_bias(name: str, shape: tuple[int, ...], kind: Kind = Kind.VISION) -> Iterator[Module]:
    yield Module(name, shape, kind, "vision")
    yield plain(name, shape[0], weight="bias", part="vision")
