"""Intern-S2-Preview and Intern-S2-Mobius: Qwen3.5 with an encoder of time series, and with banks of shared experts.

Numbers are those of Qwen3.5-35B-A3B, which both were trained on from, and of Mobius' banks those that public code tells
its checkpoint by; of the encoder of time series, which engines pass over, there is one small layer at either size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    joined_by_fc,
    mlp,
    mtp_glob,
    norms,
    plain,
)  # fmt: skip
from tests.qwen_modules import hybrid, linear_attention, vision_tower

CONFIGURATION = '''"""Configuration of {title} for engines that leave its class to the checkpoint."""

from transformers import PretrainedConfig


class {name}Config(PretrainedConfig):
    model_type = "{model_type}"

    def __init__(self, text_config=None, vision_config=None, **named):
        self.text_config = PretrainedConfig(**(text_config or {{}}))
        self.vision_config = PretrainedConfig(**(vision_config or {{}}))
        super().__init__(**named)

    def get_text_config(self, *_, **__):
        return self.text_config
'''

Configure = Callable[[Size], Config]
Modules = Callable[[Config, Layout], Iterator[Module]]


def _preview_modules(qwen: Modules) -> Modules:
    """Return the modules of Intern-S2-Preview: those of Qwen3.5 MoE, and the encoder of time series."""

    def modules(config: Config, layout: Layout) -> Iterator[Module]:
        yield from qwen(config, layout)
        series, root = config["ts_config"], "model.time_series"
        width, inner = series["d_model"], series["encoder_ffn_dim"]
        yield plain(f"{root}.encoder.conv1", width, series["num_mel_bins"], 3, part="vision")
        yield plain(f"{root}.encoder.conv1", width, weight="bias", part="vision")
        for index in range(series["encoder_layers"]):
            layer = f"{root}.encoder.layers.{index}"
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield Module(f"{layer}.self_attn.{name}", (width, width), Kind.VISION, "vision")
            yield Module(f"{layer}.fc1", (inner, width), Kind.VISION, "vision")
            yield Module(f"{layer}.fc2", (width, inner), Kind.VISION, "vision")
            yield from norms("vision", width, f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm")
        yield Module(f"{root}.projector.linear_1", (series["out_hidden_size"], width), Kind.VISION, "vision")

    return modules


def mobius(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield Intern-S2-Mobius: layers with a shared expert alone, banks of experts beside them, MTP under `mtp.`."""
    text, root = config["text_config"], "model.language_model"
    hidden, vocabulary, width = text["hidden_size"], text["vocab_size"], text["moe_intermediate_size"]
    yield plain(f"{root}.embed_tokens", vocabulary, hidden)
    for index in range(text["num_blocks"]):
        bank = f"{root}.meta_mlp.{index}"
        yield Module(f"{bank}.gate", (text["num_experts"], hidden), Kind.ROUTER)
        yield from experts(f"{bank}.experts", (text["num_experts"], width, hidden), "target", layout)
    for index, kind in enumerate(text["layer_types"]):
        yield from _mobius_layer(f"{root}.layers.{index}", text, kind, "target")
    yield plain(f"{root}.norm", hidden)
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    yield from vision_tower(config["vision_config"])
    yield from joined_by_fc(hidden)
    yield from _mobius_layer("mtp.layers.0", text, "full_attention", "branch")
    count = text["mtp_num_experts"]
    yield Module("mtp.layers.0.mlp.gate", (count, hidden), Kind.ROUTER, "branch")
    yield from experts("mtp.layers.0.mlp.experts", (count, width, hidden), "branch", layout)


def _mobius_layer(root: str, text: Config, attention: str, part: Part) -> Iterator[Module]:
    hidden = text["hidden_size"]
    yield from norms(part, hidden, f"{root}.input_layernorm", f"{root}.post_attention_layernorm")
    if attention == "full_attention":
        yield from grouped_attention(f"{root}.self_attn", text, part, gated=True)
    else:
        yield from linear_attention(f"{root}.linear_attn", text, part)
    yield Module(f"{root}.mlp.shared_expert_gate", (1, hidden), Kind.ROUTER, part)
    yield from mlp(f"{root}.mlp.shared_expert", hidden, text["shared_expert_intermediate_size"], Kind.SHARED, part)


def _intern(qwen: Configure, size: Size, name: str, model_type: str) -> Config:
    """Return the configuration of Qwen3.5 MoE with the numbers and the names of an Intern-S2."""
    config = qwen(size)
    if size == "full":
        config["text_config"] |= {
            "hidden_size": 2048,
            "layer_types": hybrid(40),
            "linear_num_value_heads": 32,
            "moe_intermediate_size": 512,
            "num_attention_heads": 16,
            "num_experts": 256,
            "num_experts_per_tok": 8,
            "num_hidden_layers": 40,
            "shared_expert_intermediate_size": 512,
        }
        config["vision_config"]["out_hidden_size"] = 2048
    config["vision_config"]["model_type"] = model_type
    file = model_type.replace("intern_s2", "interns2")
    return config | {
        "architectures": [f"{name}ForConditionalGeneration"],
        "auto_map": {"AutoConfig": f"configuration_{file}.{name}Config"},
        "model_type": model_type,
    }


def _preview(qwen: Configure) -> Configure:
    def config(size: Size) -> Config:
        found = _intern(qwen, size, "InternS2Preview", "intern_s2_preview")
        hidden = found["text_config"]["hidden_size"]
        series = {"d_model": 64, "encoder_ffn_dim": 128, "encoder_layers": 1, "num_mel_bins": 16}
        return found | {"ts_config": series | {"out_hidden_size": hidden}}

    return config


def _mobius(qwen: Configure) -> Configure:
    def config(size: Size) -> Config:
        found = _intern(qwen, size, "InternS2Mobius", "interns2_mobius")
        full = size == "full"
        found["text_config"] |= {
            "model_type": "interns2_mobius_text",
            "mtp_num_experts": 256 if full else 4,
            "mtp_num_experts_per_tok": 8 if full else 2,
            "norm_topk_prob": True,
            "num_blocks": 4 if full else 2,
            "num_experts": 2560 if full else 8,
        }
        return found

    return config


def intern_families(qwen: Modules, config: Configure) -> tuple[Family, ...]:
    """Return the families by the modules and the configuration of Qwen3.5 MoE."""
    names = (("InternS2Preview", "intern_s2_preview"), ("InternS2Mobius", "interns2_mobius"))
    files = {
        model_type: {
            f"configuration_{model_type.replace('intern_s2', 'interns2')}.py": CONFIGURATION.format(
                title=name, name=name, model_type=model_type
            )
        }
        for name, model_type in names
    }
    return (
        Family(
            "intern_s2_preview",
            "Intern-S2-Preview, 35B-A3B",
            _preview(config),
            _preview_modules(qwen),
            mtp_glob,
            ("each", "fused"),
            files=files["intern_s2_preview"],
            vision=("visual", "time_series"),
            published="plain",
        ),
        Family(
            "intern_s2_mobius",
            "Intern-S2-Mobius, 35B-A3B",
            _mobius(config),
            mobius,
            mtp_glob,
            ("each", "fused"),
            files=files["interns2_mobius"],
            vision=("visual",),
            published="plain",
        ),
    )
