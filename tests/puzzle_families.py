"""Nemotron-H whose layers have configurations of their own, as `tests.families` has the plain one.

Numbers are those that are said of Nemotron-3-Puzzle-75B-A9B; which of its 40 layers with experts has which width is not
known here, so that widths and experts per token take turns between the least and the most. The tiny checkpoint has
layers with different numbers of experts, too. Names are the published ones: the decoder lies below `model.`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tests.modules import Config, Family, Kind, Layout, Module, Part, Size, mtp_glob, norms, plain

CONFIGURATION = '''"""Configuration of Nemotron-H Puzzle for engines that leave its class to the checkpoint."""

import copy

from transformers import PretrainedConfig

LETTERS = {"mamba": "M", "moe": "E", "attention": "*", "mlp": "-"}


class NemotronHPuzzleConfig(PretrainedConfig):
    model_type = "nemotron_h_puzzle"

    def __init__(self, block_configs=(), mtp_block_configs=(), **named):
        self.block_configs = list(block_configs)
        self.mtp_block_configs = list(mtp_block_configs)
        super().__init__(**named)

    @property
    def hybrid_override_pattern(self):
        return "".join(LETTERS[block["block_type"]] for block in self.block_configs)

    @property
    def mtp_hybrid_override_pattern(self):
        return "".join(LETTERS[block["block_type"]] for block in self.mtp_block_configs)

    @property
    def mtp_n_routed_experts(self):
        return max(block.get("n_routed_experts", 0) for block in self.mtp_block_configs)

    def get_nemotron_h_config_for_layer(self, layer_idx):
        own = copy.copy(self)
        for key, value in [*self.block_configs, *self.mtp_block_configs][layer_idx].items():
            setattr(own, key, value)
        return own
'''

KINDS = {"M": "mamba", "E": "moe", "*": "attention"}
OF_EXPERTS = (
    "n_routed_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "moe_latent_size",
    "moe_shared_expert_intermediate_size",
)
"""What a layer with experts says for itself."""
WITHIN = ("num_experts_per_tok", "moe_intermediate_size")
"""What of it the configuration as a whole does not say."""
FULL = ((1280, 512, 4), (2048, 512, 12), (2688, 512, 18))
TINY = ((32, 4, 1), (64, 2, 2))
"""Width, number of experts, and experts per token of the layers that have experts, by turns."""

Layer = Callable[[str, Config, str, Part], Iterator[Module]]


def _blocks(pattern: str, config: Config, turns: tuple[tuple[int, int, int], ...]) -> list[Config]:
    found: list[Config] = []
    count = 0
    for letter in pattern:
        block: Config = {"block_type": KINDS[letter]}
        if letter == "E":
            width, experts, chosen = turns[count % len(turns)]
            block |= {key: config[key] for key in OF_EXPERTS}
            block |= {"moe_intermediate_size": width, "n_routed_experts": experts, "num_experts_per_tok": chosen}
            count += 1
        found.append(block)
    return found


def _puzzle(decoder: Callable[[Size], Config]) -> Callable[[Size], Config]:
    """Return the configuration of a decoder with a configuration for each layer."""

    def config(size: Size) -> Config:
        whole = decoder(size)
        layers, branch = whole.pop("hybrid_override_pattern"), whole.pop("mtp_hybrid_override_pattern")
        own = (whole["moe_intermediate_size"], whole["n_routed_experts"], whole["num_experts_per_tok"])
        blocks = _blocks(layers, whole, FULL if size == "full" else TINY)
        last = _blocks(branch, whole, (own,))
        return {key: value for key, value in whole.items() if key not in WITHIN} | {
            "architectures": ["NemotronHPuzzleForCausalLM"],
            "auto_map": {"AutoConfig": "configuration_nemotron_h_puzzle.NemotronHPuzzleConfig"},
            "block_configs": blocks,
            "layers_block_type": [block["block_type"] for block in blocks],
            "model_type": "nemotron_h_puzzle",
            "mtp_block_configs": last,
            "mtp_layers_block_type": [block["block_type"] for block in last],
        }

    return config


def _modules(layer: Layer) -> Callable[[Config, Layout], Iterator[Module]]:
    """Return what yields the modules of such a decoder and of its branch, by what yields one layer."""
    letters = {kind: letter for letter, kind in KINDS.items()}

    def modules(config: Config, layout: Layout) -> Iterator[Module]:
        del layout
        hidden = config["hidden_size"]
        yield plain("model.embeddings", config["vocab_size"], hidden)
        for index, block in enumerate(config["block_configs"]):
            yield from layer(f"model.layers.{index}", config | block, letters[block["block_type"]], "target")
        yield plain("model.norm_f", hidden)
        yield Module("lm_head", (config["vocab_size"], hidden), Kind.HEAD)
        yield from norms("branch", hidden, "mtp.layers.0.enorm", "mtp.layers.0.hnorm")
        yield Module("mtp.layers.0.eh_proj", (hidden, 2 * hidden), Kind.GLUE, "branch")
        for index, block in enumerate(config["mtp_block_configs"]):
            yield from layer(f"mtp.layers.{index}", config | block, letters[block["block_type"]], "branch")
        yield plain(f"mtp.layers.{len(config['mtp_block_configs']) - 1}.final_layernorm", hidden, part="branch")

    return modules


def puzzle_families(decoder: Callable[[Size], Config], layer: Layer) -> tuple[Family, ...]:
    """Return the family whose decoder and layers are given."""
    return (
        Family(
            "nemotron_h_puzzle",
            "Nemotron-3 Puzzle, 75B-A9B",
            _puzzle(decoder),
            _modules(layer),
            mtp_glob,
            files={"configuration_nemotron_h_puzzle.py": CONFIGURATION},
        ),
    )
