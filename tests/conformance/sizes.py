"""Tiny checkpoints in which every size of the configuration has a value of its own.

    python -m tests.conformance.random_checkpoints vllm-0.32.0 --family qwen3_5 --sizes

No two sizes are equal, so that a shape by the configuration that takes a wrong key, and is right by chance where both
have one value, is not the one that the engine builds. Knows keys by their names and what a value has to be a multiple
of; knows no family.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.checkpoints import Plan, Variant, plan
from tests.families import FAMILIES
from tests.modules import Config

UNQUANTIZED = Variant(
    "unquantized",
    "as a base model ships: nothing is quantized, arrays as long as all layers",
    quantized=False,
    arrays="whole",
)

SIZES = (
    # (how a key ends, what its values are multiples of, the least, the greatest)
    (r"(head_dim|_channels|d_rel)", 16, 32, 224),
    (r"(_rank|latent_size|lowrank)", 16, 48, 400),
    (r"vocab_size", 1, 260, 400),
    (r"(hidden_size|intermediate_size|hidden_dim|expert_dim|embed_dim|d_model|ffn_dim|width)", 16, 128, 640),
    (r"(n_routed_experts|num_experts|num_local_experts|zero_expert_num)", 1, 5, 13),
    (r"(n_shared_experts|num_shared_experts)", 1, 2, 3),
    (r"(conv_kernel|conv_kernel_dim|conv_kernel_size|sconv_kernel_size)", 1, 3, 6),
    (r"(num_centroids|num_position_embeddings)", 1, 17, 36),
)
HEADS = {
    "num_attention_heads": "num_key_value_heads",
    "swa_num_attention_heads": "swa_num_key_value_heads",
    "linear_num_value_heads": "linear_num_key_heads",
    "mamba_num_heads": "n_groups",
    "num_heads": "num_key_value_heads",
}
"""Numbers of heads, and those of which they are a multiple where the configuration has any."""
GROUPS = {"num_key_value_heads": "num_attention_groups"}
ALONE = ("index_n_heads", "linear_num_heads", "hc_mult", "hc_count", "indexer_n_heads")
KEPT: Mapping[str, frozenset[str]] = {
    "mimo": frozenset({"head_dim", "num_attention_heads", "hidden_size"}),
    "gemma4_assistant": frozenset({"vocab_size", "num_centroids"}),
    "minimax_m3": frozenset({"num_key_value_heads", "num_attention_heads", "head_dim"}),
    "glm_ocr": frozenset({"head_dim"}),
    "qwen3_5": frozenset({"head_dim"}),
    "qwen3_5_moe": frozenset({"head_dim"}),
    "qwen4_exp": frozenset({"head_dim"}),
    "deepseek_v4": frozenset({"num_attention_heads", "qk_rope_head_dim", "head_dim", "index_head_dim"}),
    "dots3_note": frozenset({"qk_rope_head_dim", "kv_lora_rank", "swa_kv_lora_rank", "swa_qk_rope_head_dim"}),
    "bailing_v3": frozenset({"num_shared_experts"}),
    "bailing_v3_even": frozenset({"num_shared_experts"}),
    "bailing_v3_vl": frozenset({"num_shared_experts", "qk_rope_head_dim", "head_dim"}),
    "bailing_v3_vl_even": frozenset({"num_shared_experts", "qk_rope_head_dim", "head_dim"}),
}
FIXED: Mapping[str, Mapping[str, int]] = {"deepseek_v4": {"head_dim": 512, "o_groups": 8}}
"""Sizes of which engines know a few values only, where the tiny checkpoint's is that of another size, too."""


@dataclass
class Draw:
    """Values drawn so far, none of them twice."""

    random: Random
    kept: frozenset[str]
    taken: set[int] = field(default_factory=set)

    def one(self, values: range) -> int | None:
        """Return a value that was not drawn before, None where none is left."""
        free = [value for value in values if value not in self.taken]
        if not free:
            return None
        self.taken.add(found := self.random.choice(free))
        return found


def sized(family: str, random: Random, kept: frozenset[str] = frozenset()) -> Plan:
    """Plan an unquantized tiny checkpoint of a family whose sizes all differ, but for the keys that are `kept`."""
    config = FAMILIES[family].config("tiny")
    text = config.get("text_config", {})
    draw = Draw(random, kept | KEPT.get(family, frozenset()))
    left = {**config, **text, **FIXED.get(family, {})}
    draw.taken |= {left[key] for key in draw.kept if isinstance(left.get(key), int)}
    numbers = dict(_changed({key: value for key, value in config.items() if key != "text_config"}, draw))
    return plan(family, UNQUANTIZED, numbers={**numbers, **dict(_changed(text, draw)), **FIXED.get(family, {})})


def _changed(config: Mapping[str, Any], draw: Draw) -> Iterator[tuple[str, Any]]:
    """Yield the keys of an object of a configuration that get another value, and which."""
    yield from _heads(config, draw)
    for key, value in config.items():
        if isinstance(value, dict):
            yield key, {**value, **dict(_changed(value, draw))}
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0 and key not in draw.kept:
            found = _size(key, draw)
            if found is not None:
                yield key, found


def _size(key: str, draw: Draw) -> int | None:
    for pattern, step, least, greatest in SIZES:
        if re.fullmatch(rf"\w*{pattern}", key):
            return draw.one(range(least, greatest + 1, step))
    return None


def _heads(config: Config | Mapping[str, Any], draw: Draw) -> Iterator[tuple[str, int]]:
    """Yield numbers of heads: equal ones stay equal, others are a multiple; none where heads share a hidden size."""
    if not any("head_dim" in key or key == "qk_channels" for key in config):
        return
    for many, key in HEADS.items():
        few = key if key in config else GROUPS.get(key, key)
        if many not in config or many in draw.kept:
            continue
        if few not in config or config[few] == config[many]:
            heads = draw.one(range(6, 30, 2))
            yield many, heads or config[many]
            if few in config:
                yield few, heads or config[few]
        else:
            groups = draw.one(range(2, 8)) or config[few]
            yield few, groups
            yield many, groups * draw.random.choice((2, 3))
    for key in ALONE:
        if key in config and key not in draw.kept:
            yield key, draw.one(range(3, 12)) or config[key]
