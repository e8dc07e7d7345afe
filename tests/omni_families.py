"""Nemotron-H behind a wrapper for images and sound, as `tests.families` has its own: both of its layouts on disk.

Numbers are the published ones of the decoder (Nemotron-3 Super) and of the RADIO tower that engines know by name; of
the tower the tiny checkpoint has the smallest that engines know, whole: they take its sizes from a table of their own
(vllm/transformers_utils/configs/radio.py:12@0.32.0), so that 42 MB of it stand in the file as a hole. SGLang has
positions for images of 2048 pixels whatever is said (sglang/srt/configs/radio.py:75@0.5.23): where it has a class, so
has the tiny checkpoint. Sound encoders are not built here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from tests.modules import Config, Family, Kind, Layout, Module, Size, mtp_glob, norms, plain

TOWERS = {"vit_small_patch16_224": (384, 12), "vit_huge_patch16_224": (1280, 32)}
"""Width and blocks of the towers, by the name under which engines look them up."""

CONFIGURATION = '''"""Configuration of Nemotron-H with images, for engines that leave its class to the checkpoint."""

from transformers import AutoConfig, PretrainedConfig


class NemotronHOmniConfig(PretrainedConfig):
    model_type = "nemotron_h_omni"

    def __init__(self, llm_config=None, vision_config=None, **named):
        self.text_config = AutoConfig.for_model(**(llm_config or {"model_type": "nemotron_h"}))
        self.vision_config = PretrainedConfig(**(vision_config or {}))
        super().__init__(**named)

    def get_text_config(self, *_, **__):
        return self.text_config
'''

FILE = "configuration_nemotron_h_omni.py"
SUPER = "NemotronH_Super_Omni_Reasoning_V3"

Modules = Callable[[Config, Layout], Iterator[Module]]


def behind_wrapper(decoder: Modules, *, branch: str) -> Modules:
    """Return the modules of a decoder behind the wrapper; `branch` is put before the names of the MTP branch."""

    def modules(config: Config, layout: Layout) -> Iterator[Module]:
        text = config["llm_config"]
        for module in decoder(text, layout):
            root = branch if module.part == "branch" else "language_model."
            yield replace(module, name=f"{root}{module.name}")
        for module in _tower(config):
            yield replace(module, hollow=True)

    return modules


def _tower(config: Config) -> Iterator[Module]:
    vision, root = config["vision_config"], "vision_model.radio_model.model"
    width, blocks = TOWERS[vision["args"]["model"]]
    patch, frames = vision["patch_size"], vision["video_temporal_patch_size"]
    grid = vision["args"]["cpe_max_size"] // patch
    yield plain(f"{root}.patch_generator.cls_token.token", 10, width, weight="", part="vision")
    yield plain(f"{root}.patch_generator.pos_embed", 1, grid * grid, width, weight="", part="vision")
    yield Module(f"{root}.patch_generator.embedder", (width, 3 * patch * patch), Kind.VISION, "vision")
    yield Module(f"{root}.patch_generator.video_embedder", (width, 3 * frames * patch * patch), Kind.VISION, "vision")
    for index in range(blocks):
        block = f"{root}.blocks.{index}"
        for name, shape in (
            ("attn.qkv", (3 * width, width)),
            ("attn.proj", (width, width)),
            ("mlp.fc1", (4 * width, width)),
            ("mlp.fc2", (width, 4 * width)),
        ):
            yield Module(f"{block}.{name}", shape, Kind.VISION, "vision")
            yield plain(f"{block}.{name}", shape[0], weight="bias", part="vision")
        for name in ("norm1", "norm2"):
            yield plain(f"{block}.{name}", width, part="vision")
            yield plain(f"{block}.{name}", width, weight="bias", part="vision")
    around, inner, hidden = (
        width * round(1 / config["downsample_ratio"]) ** 2,
        config["projector_hidden_size"],
        config["llm_config"]["hidden_size"],
    )
    yield from norms("vision", around, "mlp1.0")
    yield Module("mlp1.1", (inner, around), Kind.VISION, "vision")
    yield Module("mlp1.3", (hidden, inner), Kind.VISION, "vision")
    yield plain("vision_projector.vision_final_layernorm", width, part="vision")
    yield plain("vision_projector.vision_final_layernorm", width, weight="bias", part="vision")


def _omni(decoder: Callable[[Size], Config], architecture: str, model_type: str) -> Callable[[Size], Config]:
    """Return the configuration of the wrapper around a decoder's."""

    def config(size: Size) -> Config:
        text = decoder(size)
        del text["auto_map"]
        tiny = size == "tiny"
        name = "vit_small_patch16_224" if tiny else "vit_huge_patch16_224"
        return {
            "architectures": [architecture],
            "auto_map": {"AutoConfig": "configuration_nemotron_h_omni.NemotronHOmniConfig"},
            "downsample_ratio": 0.5,
            "dtype": "bfloat16",
            "force_image_size": 512,
            "image_tag_type": "internvl",
            "img_context_token_id": 18,
            "llm_config": text,
            "model_type": model_type,
            "norm_mean": [0.48145466, 0.4578275, 0.40821073],
            "norm_std": [0.26862954, 0.26130258, 0.27577711],
            "patch_size": 16,
            "projector_hidden_size": 64 if tiny else 20480,
            "ps_version": "v2",
            "sound_config": None,
            "template": None,
            "video_pruning_rate": 0.0,
            "vision_config": {
                "args": {
                    "cls_token_per_teacher": True,
                    "cpe_max_size": 32 if tiny and architecture == SUPER else 2048,
                    "model": name,
                    "register_multiple": 10,
                    "teachers": [{"name": teacher} for teacher in ("siglip2-g", "dino_v3", "sam3")],
                },
                "patch_size": 16,
                "preferred_resolution": [512, 512],
                "video_temporal_patch_size": 2,
            },
            "vit_hidden_size": TOWERS[name][0],
        }

    return config


def omni_families(decoder: Callable[[Size], Config], modules: Modules) -> tuple[Family, ...]:
    """Return the families whose decoder is given: newer checkpoints keep the branch below the decoder's prefix."""
    vision = ("vision_model", "mlp1")
    return (
        Family(
            "nemotron_h_omni",
            "Nemotron-3.5 Super with images",
            _omni(decoder, "NemotronH_Omni_Reasoning_V3", "nemotron_h_omni"),
            behind_wrapper(modules, branch="language_model."),
            lambda _: ["language_model.mtp*"],
            files={FILE: CONFIGURATION},
            renamed={"language_model.mtp.": "mtp."},
            vision=vision,
            published="glob",
        ),
        Family(
            "nemotron_h_super_omni",
            "Nemotron-3 Super with images and sound",
            _omni(decoder, SUPER, SUPER),
            behind_wrapper(modules, branch=""),
            mtp_glob,
            files={FILE: CONFIGURATION.replace("nemotron_h_omni", SUPER)},
            vision=vision,
            published="glob",
        ),
    )
