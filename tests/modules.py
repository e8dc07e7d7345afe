"""The words that families are described in: modules with their shapes, and how a family is named and written.

Knows no family; `tests.families` and its companions do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

Config = dict[str, Any]
Size = Literal["tiny", "full"]
Part = Literal["target", "branch", "vision"]
Layout = Literal["each", "fused", "stacked"]
"""How experts lie on disk: one tensor for each, gate and up of all in one, or one for each projection of all."""

DECLARING = ("mtp_num_hidden_layers", "num_nextn_predict_layers", "num_mtp_modules")
"""Keys of a configuration that say how many MTP layers there are."""

TEXT = ("text_config", "llm_config")
"""Keys of a configuration whose value is that of the decoder."""

# ------------------------------------------------------------------------------------------------- modules


class Kind(StrEnum):
    """What a module is, as far as exporters treat it differently."""

    ATTENTION = "attention"
    LINEAR_ATTENTION = "linear attention"
    MLP = "mlp"
    EXPERT = "expert"
    SHARED = "shared expert"
    LATENT = "latent"
    ROUTER = "router"
    GLUE = "glue"  # joins hidden state and embedding at the entrance of the branch
    HEAD = "head"
    VISION = "vision"
    PLAIN = "plain"  # embeddings, norms, biases, convolutions: no exporter quantizes or lists them


@dataclass(frozen=True, slots=True)
class Module:
    """One weight of a model: `{}` in its name stands for the expert number where `experts` is not None.

    `weight` is the suffix of the tensor ("" where the name is the tensor's own). Where it is `hollow` its numbers are
    a hole in the file, which reads as zeros and takes no time: for what is large, and never looked at. `amax` says that
    its scales in NVFP4 hang on its own name, with the largest input in place of the scale of inputs.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind = Kind.PLAIN
    part: Part = "target"
    dtype: str = "BF16"
    weight: str = "weight"
    experts: int | None = None
    hollow: bool = False
    amax: bool = False

    @property
    def names(self) -> list[str]:
        """Return the names it stands for, one for each expert."""
        return [self.name] if self.experts is None else [self.name.format(i) for i in range(self.experts)]


def plain(name: str, *shape: int, dtype: str = "BF16", weight: str = "weight", part: Part = "target") -> Module:
    """Return a module that nobody quantizes."""
    return Module(name, shape, Kind.PLAIN, part, dtype, weight)


def norms(part: Part, size: int, *names: str) -> Iterator[Module]:
    """Yield norms of one size."""
    for name in names:
        yield plain(name, size, part=part)


def mlp(root: str, hidden: int, width: int, kind: Kind, part: Part) -> Iterator[Module]:
    """Yield a gated feed-forward block."""
    yield Module(f"{root}.gate_proj", (width, hidden), kind, part)
    yield Module(f"{root}.up_proj", (width, hidden), kind, part)
    yield Module(f"{root}.down_proj", (hidden, width), kind, part)


def experts(root: str, shape: tuple[int, int, int], part: Part, layout: Layout) -> Iterator[Module]:
    """Yield the experts of one layer in one of three layouts.

    `root` is `….mlp.experts` or, stacked, `….moe`; `shape` is (experts, width, hidden size).
    """
    kind, (count, width, hidden) = Kind.EXPERT, shape
    if layout == "fused":
        yield Module(f"{root}.gate_up_proj", (count, 2 * width, hidden), kind, part, weight="")
        yield Module(f"{root}.down_proj", (count, hidden, width), kind, part, weight="")
        return
    shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
    for name, each in shapes.items():
        if layout == "stacked":
            yield Module(f"{root}.{name}", (count, *each), kind, part)
        else:
            yield Module(f"{root}.{{}}.{name}", each, kind, part, experts=count)


def grouped_attention(
    root: str, config: Config, part: Part, *, gated: bool = False, bias: bool = False
) -> Iterator[Module]:
    """Yield grouped-query attention with norms on queries and keys; `gated` doubles the queries (Qwen)."""
    hidden, size = config["hidden_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    rows = {"q_proj": queries * (2 if gated else 1), "k_proj": keys, "v_proj": keys}
    for name, count in rows.items():
        yield Module(f"{root}.{name}", (count, hidden), Kind.ATTENTION, part)
        if bias:
            yield plain(f"{root}.{name}", count, weight="bias", part=part)
    yield Module(f"{root}.o_proj", (hidden, queries), Kind.ATTENTION, part)
    yield from norms(part, size, f"{root}.q_norm", f"{root}.k_norm")


def latent_attention(root: str, config: Config, part: Part, *, out: str = "o_proj") -> Iterator[Module]:
    """Yield latent attention as DeepSeek has it; `root` is `….self_attn`, `out` the name of the output projection."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    low, latent = config["q_lora_rank"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    shapes = {"q_proj": (heads * (nope + rope), hidden)}
    if low is not None:
        shapes = {"q_a_proj": (low, hidden), "q_b_proj": (heads * (nope + rope), low)}
    shapes |= {
        "kv_a_proj_with_mqa": (latent + rope, hidden),
        "kv_b_proj": (heads * (nope + value), latent),
        out: (hidden, heads * value),
    }
    for name, shape in shapes.items():
        yield Module(f"{root}.{name}", shape, Kind.ATTENTION, part)
    if low is not None:
        yield plain(f"{root}.q_a_layernorm", low, part=part)
    yield plain(f"{root}.kv_a_layernorm", latent, part=part)


def latent_layer(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    """Yield a decoder layer of DeepSeek-V3: norms, latent attention, experts."""
    hidden = config["hidden_size"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    yield from latent_attention(f"{root}.self_attn", config, part)
    yield from routed(root, config, index, part)


def routed(root: str, config: Config, index: int, part: Part) -> Iterator[Module]:
    """Yield the feed-forward part that DeepSeek and GLM share: dense below `first_k_dense_replace`, else experts."""
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]
    if index < config["first_k_dense_replace"]:
        yield from mlp(f"{root}.mlp", hidden, config["intermediate_size"], Kind.MLP, part)
        return
    count = config["n_routed_experts"]
    yield Module(f"{root}.mlp.gate", (count, hidden), Kind.ROUTER, part)
    yield plain(f"{root}.mlp.gate.e_score_correction_bias", count, weight="", dtype="F32", part=part)
    shared = width * config["n_shared_experts"]
    yield from mlp(f"{root}.mlp.shared_experts", hidden, shared, Kind.SHARED, part)
    yield from experts(f"{root}.mlp.experts", (count, width, hidden), part, "each")


# -------------------------------------------------------------------------------------------------- frames

Layer = Callable[[str, Config, int, Part], Iterator[Module]]
"""Yields one layer by the root of its names, the configuration, its number, and what it is a part of."""


def main_model(config: Config, layer: Layer, root: str = "model", words: str = "embed_tokens") -> Iterator[Module]:
    """Yield the embedding, whose name is `words`, the decoder layers, the last norm and the head."""
    hidden, vocabulary = config["hidden_size"], config["vocab_size"]
    yield plain(f"{root}.{words}", vocabulary, hidden)
    for index in range(config["num_hidden_layers"]):
        yield from layer(f"{root}.layers.{index}", config, index, "target")
    yield plain(f"{root}.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)


def appended_layers(
    config: Config, layer: Layer, root: str = "model", *, norm: str = "shared_head.norm", own: bool = False
) -> Iterator[Module]:
    """Yield MTP layers numbered after the decoder's; `norm` is the name of the last, `own`: with embedding and head."""
    hidden, vocabulary, last = config["hidden_size"], config["vocab_size"], config["num_hidden_layers"]
    for index in range(last, last + config.get("num_nextn_predict_layers", 0)):
        place = f"{root}.layers.{index}"
        if own:
            yield plain(f"{place}.embed_tokens", vocabulary, hidden, part="branch")
        yield from norms("branch", hidden, f"{place}.enorm", f"{place}.hnorm", f"{place}.{norm}")
        yield Module(f"{place}.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        if own:
            yield Module(f"{place}.shared_head.head", (vocabulary, hidden), Kind.HEAD, "branch")
        yield from layer(place, config, index, "branch")


def joined_by_fc(hidden: int) -> Iterator[Module]:
    """Yield what stands before the layers of a branch under `mtp.`, as Qwen has it."""
    yield Module("mtp.fc", (hidden, 2 * hidden), Kind.GLUE, "branch")
    yield from norms("branch", hidden, "mtp.norm", "mtp.pre_fc_norm_embedding", "mtp.pre_fc_norm_hidden")


# ------------------------------------------------------------------------------------------------ families


@dataclass(frozen=True)
class Family:
    """One family: its configuration at both sizes, its modules, and how exporters and engines name its branch.

    `globs` cover the whole branch by its names on disk; `block` and `head` say how vLLM renames the decoder block
    and the head of an MTP layer that is numbered like a decoder layer. `files` are written beside the
    configuration; `vision` are the roots of what is not text. `renamed` are beginnings of names on disk and what vLLM
    asks with in their place, `{N}` for the number of decoder layers, `{2N}` for twice as many; `inside` are parts of
    names, likewise; `listed` are names that exporters list though no tensor has them; `declares` is whether the
    configuration names the MTP layers. `published` is how the public list names the branch: as ModelOpt summarises it,
    by a glob, not at all, or plain where nothing is quantized. `asked` are the releases whose loader, without a GPU,
    is the one that users get. `alone`: the checkpoint holds a draft and nothing else.
    """

    name: str
    about: str
    config: Callable[[Size], Config]
    modules: Callable[[Config, Layout], Iterator[Module]]
    globs: Callable[[Config], list[str]]
    layouts: tuple[Layout, ...] = ("each",)
    files: Mapping[str, str] = field(default_factory=dict)
    block: str = ""
    head: str = ""
    vision: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    inside: Mapping[str, str] = field(default_factory=dict)
    listed: tuple[str, ...] = ()
    declares: bool = True
    published: Literal["summary", "glob", "target", "plain"] = "summary"
    asked: str = ""
    alone: bool = False


def text_of(config: Config) -> Config:
    """Return the part of a configuration that describes the decoder: the inner one, where there is one."""
    return next((config[key] for key in TEXT if key in config), config)


def mtp_glob(config: Config) -> list[str]:
    """Return the glob of a branch below `mtp.`."""
    del config
    return ["mtp*"]


def layer_globs(config: Config) -> list[str]:
    """Return the globs of a branch whose layers follow the decoder's own."""
    text = text_of(config)
    first = text["num_hidden_layers"]
    return [f"model.layers.{index}*" for index in range(first, first + text["num_nextn_predict_layers"])]
