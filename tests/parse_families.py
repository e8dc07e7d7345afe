"""Nemotron Parse 3.5, as `tests.families` has its own: a decoder that reads pages, and what guesses one token ahead.

No public configuration was at hand: numbers are the defaults of Nemotron Parse's configuration class and of its tower
(vllm/transformers_utils/configs/radio.py:12@0.33.0), or COMPUTED. The class refuses every tower but one, so that the
tiny checkpoint has that one whole: its 800 MB stand in the file as a hole.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.modules import Config, Family, Kind, Layout, Module, Part, Size, norms, plain

WIDTH, BLOCKS, INNER = 1152, 27, 4304
"""Width, blocks and inner width of the tower that the class knows to have no layer scales."""

CONFIGURATION = '''"""Configuration of Nemotron Parse, for engines that leave its class to the checkpoint."""

from transformers import PretrainedConfig


class NemotronParseConfig(PretrainedConfig):
    model_type = "nemotron_parse"

    def __init__(self, encoder=None, decoder=None, **named):
        self.encoder = PretrainedConfig(**(encoder or {}))
        self.decoder = PretrainedConfig(**(decoder or {}))
        super().__init__(**named)

    def get_text_config(self, *_, **__):
        return self.decoder
'''


def parse(config: Config, layout: Layout) -> Iterator[Module]:
    """Yield the decoder, its tower, and the two projections of the branch."""
    del layout
    text = config["decoder"]
    hidden, vocabulary, inner = text["d_model"], text["vocab_size"], text["decoder_ffn_dim"]
    yield plain("decoder.embed_tokens", vocabulary, hidden)
    for index in range(text["decoder_layers"]):
        layer = f"decoder.layers.{index}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _with_bias(f"{layer}.self_attn.{name}", (hidden, hidden), Kind.ATTENTION, "target")
        yield from _with_bias(f"{layer}.fc1", (inner, hidden), Kind.MLP, "target")
        yield from _with_bias(f"{layer}.fc2", (hidden, inner), Kind.MLP, "target")
        yield from _norm("target", hidden, f"{layer}.self_attn_layer_norm", f"{layer}.final_layer_norm")
    yield from _norm("target", hidden, "decoder.layernorm_embedding", "decoder.layer_norm")
    yield Module("lm_head", (vocabulary, hidden), Kind.HEAD)
    yield from _with_bias("decoder.extra_heads.0", (hidden, hidden), Kind.MLP, "branch")
    yield from _with_bias("decoder.extra_proj.0", (hidden, hidden), Kind.GLUE, "branch")
    yield from _tower(config)


def _with_bias(name: str, shape: tuple[int, ...], kind: Kind, part: Part, *, hollow: bool = False) -> Iterator[Module]:
    yield Module(name, shape, kind, part, hollow=hollow)
    yield plain(name, shape[0], weight="bias", part=part)


def _norm(part: Part, size: int, *names: str) -> Iterator[Module]:
    for name in names:
        yield from norms(part, size, name)
        yield plain(name, size, weight="bias", part=part)


def _tower(config: Config) -> Iterator[Module]:
    hidden, patch = config["decoder"]["d_model"], config["encoder"]["patch_size"]
    arguments, root = config["encoder"]["args"], "encoder.model_encoder.radio_model.model"
    grid = arguments["cpe_max_size"] // patch
    yield plain(
        f"{root}.patch_generator.cls_token.token", arguments["register_multiple"], WIDTH, weight="", part="vision"
    )
    yield plain(f"{root}.patch_generator.pos_embed", 1, grid * grid, WIDTH, weight="", part="vision")
    yield Module(f"{root}.patch_generator.embedder", (WIDTH, 3 * patch * patch), Kind.VISION, "vision", hollow=True)
    for index in range(BLOCKS):
        block = f"{root}.blocks.{index}"
        for name, shape in {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.fc1": (INNER, WIDTH),
            "mlp.fc2": (WIDTH, INNER),
        }.items():
            yield from _with_bias(f"{block}.{name}", shape, Kind.VISION, "vision", hollow=True)
        yield from _norm("vision", WIDTH, f"{block}.norm1", f"{block}.norm2")
    space, summary = config["vision_spatial_dim"], config["vision_summary_dim"]
    yield plain("encoder.conv1", hidden, space, 1, part="vision")
    yield plain("encoder.conv1", hidden, weight="bias", part="vision")
    yield plain("encoder.conv2", hidden, hidden, 1, 4, part="vision")
    yield from _with_bias("encoder.sum_proj", (hidden, summary), Kind.VISION, "vision")
    yield from _norm("vision", hidden, *(f"encoder.layer_norm{number}" for number in (1, 2, 3)))


def _parse(size: Size) -> Config:
    tiny = size == "tiny"
    hidden, layers, heads = (64, 2, 4) if tiny else (1024, 10, 16)
    return {
        "architectures": ["RadioMBartPrefixForCausalLM"],
        "auto_map": {"AutoConfig": "configuration_nemotron_parse.NemotronParseConfig"},
        "bos_token_id": 0,
        "decoder": {
            "activation_function": "gelu",
            "add_cross_attention": False,
            "causal_vision_prefix": True,
            "d_model": hidden,
            "decoder_attention_heads": heads,
            "decoder_ffn_dim": 4 * hidden,
            "decoder_layers": layers,
            "hidden_size": hidden,
            "is_decoder": True,
            "max_position_embeddings": 1024 if tiny else 9000,
            "model_type": "nemotron_parse_text",
            "num_attention_heads": heads,
            "num_hidden_layers": layers,
            "scale_embedding": True,
            "vocab_size": 256 if tiny else 52352,
        },
        "dtype": "bfloat16",
        "encoder": {
            "args": {
                "cls_token_per_teacher": True,
                "cpe_max_size": 32 if tiny else 2048,
                "model": "vit_so400m_patch16_224",
                "register_multiple": 8,
                "teachers": [{"name": teacher} for teacher in ("siglip2-g", "dino_v3", "sam3")],
            },
            "model_type": "radio",
            "patch_size": 16,
        },
        "eos_token_id": 2,
        "image_size": [64, 64] if tiny else [2048, 1664],
        "is_encoder_decoder": False,
        "model_type": "nemotron_parse",
        "navit_packing": True,
        "pad_token_id": 1,
        "tie_word_embeddings": False,
        "vision_spatial_dim": WIDTH,
        "vision_summary_dim": 3 * WIDTH,
    }


PARSE = (
    Family(
        "nemotron_parse",
        "Nemotron Parse 3.5",
        _parse,
        parse,
        lambda _: ["decoder.extra_*"],
        files={"configuration_nemotron_parse.py": CONFIGURATION},
        vision=("encoder",),
        declares=False,
        published="plain",
    ),
)
