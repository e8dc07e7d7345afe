"""Build and load target and MTP draft with SGLang, on the CPU, without running them.

Everything that decides is SGLang's: its configuration and the change of architecture for a draft, its choice of
quantization, its lists and mappers, its model classes, its weight iterator and `load_weights`, its sharing of embedding
and head. What is replaced stands in `sglang_leaves`; weights are not repacked after loading.
"""

# Half of what it calls is known in the engine's interpreter alone.
# mypy: disable-error-code="attr-defined,import-not-found,misc,no-any-return,no-untyped-call"

from __future__ import annotations

import importlib
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .configuration import STAND_INS, register
from .hollow import Arena
from .patches import note, swap, try_import
from .reader import make_reader
from .sglang_leaves import one_thread, replace_leaves
from .watch import Watch, answer, attempt, held, watch_writes

ENVIRONMENT = {
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "RANK": "0",
    "SGLANG_LOG_LEVEL": "error",
    "WORLD_SIZE": "1",
}
MADE_LATER = ("_blockscale_swizzled", "_scale_swizzled")
"""Parameters that are worked out from others after loading."""

GEMMA_DRAFTS = ("Gemma4AssistantForCausalLM", "Gemma4UnifiedAssistantForCausalLM")
"""Classes that read keys and values from the main model's cache, and drop those that their own layers compute."""

NEVER_READ = {
    "GlmOcrForConditionalGeneration": (
        "visual.embeddings.position_embedding.weight",
        "visual.post_conv_layernorm.weight",
    ),
    "NemotronH_Omni_Reasoning_V3": (".ls1", ".ls2"),
    **dict.fromkeys(GEMMA_DRAFTS, ("self_attn.k_norm.weight",)),
}
"""Endings of parameters that a class inherits and never computes with, or that are ones where nothing is stored."""

REORDERS = "_reorder_embedding_to_centroid_order"
"""A method that puts the rows of a head, stored or not, into another order when all tensors were copied."""

BUFFERS = dict.fromkeys(GEMMA_DRAFTS, ("token_ordering",))
"""Buffers that a class fills from the checkpoint, and computes wrong numbers with where nothing is stored for them."""


def prepare() -> dict[str, str]:
    """Import SGLang and replace what needs a GPU; return the versions that answers come from."""
    replace_leaves()
    import torch
    import transformers

    version = str(importlib.import_module("sglang").__version__)
    return {"sglang": version, "torch": torch.__version__, "transformers": transformers.__version__}


def own_class(model_type: str) -> Any:
    """Return the configuration class that SGLang has for a model type, None where it has none."""
    for name in ("hf_transformers.common", "hf_transformers_utils"):
        registry = getattr(try_import(f"sglang.srt.utils.{name}"), "_CONFIG_REGISTRY", None)
        if registry is not None:
            return registry.get(model_type)
    return None


def read_only_small(arena: Arena) -> None:
    """Let large tensors of files have no numbers and take no memory."""
    if arena.limit is not None:
        safetensors = importlib.import_module("safetensors")
        reader = make_reader(safetensors.safe_open, arena)
        swap(safetensors, "safe_open", reader, "large tensors take no memory, and their numbers are not read")


def model_configuration(checkpoint: str, *, draft: bool) -> Any:
    """Return the engine's configuration of the target, or of the draft that lies in the same checkpoint."""
    from sglang.srt.configs.model_config import ModelConfig

    options: dict[str, Any] = {
        "dtype": "bfloat16",
        "is_draft_model": draft,
        "speculative_algorithm": "EAGLE",
        "trust_remote_code": False,
    }
    known = inspect.signature(ModelConfig.__init__).parameters
    return ModelConfig(checkpoint, **{name: value for name, value in options.items() if name in known})


def listen(configuration: Any, watch: Watch) -> None:
    """Note the name with which each layer asks its quantization configuration."""
    owner = type(configuration)
    original = vars(owner).get("__asked__") or owner.get_quant_method
    owner.__asked__ = original

    def get_quant_method(self: Any, layer: Any, prefix: str, *given: Any, **named: Any) -> Any:
        watch.asked[id(layer)] = (layer, prefix)
        return original(self, layer, prefix, *given, **named)

    owner.get_quant_method = get_quant_method


def load_model(checkpoint: str, watch: Watch, *, draft: bool, index: int | None = None, skip: bool = False) -> Any:
    """Build one model and load its weights as the engine's default loader does, up to repacking.

    With `skip` nothing is loaded into it: it is built because the other one shares with it.
    """
    import torch
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader import loader as engine

    torch.set_default_dtype(torch.bfloat16)
    watch.phase = "configure"
    configuration = model_configuration(checkpoint, draft=draft)
    watch.phase = "construct"
    options = {"draft_model_idx": index} if index is not None else {}
    loading = LoadConfig(**options)
    default = engine.DefaultModelLoader(loading)
    with watch_writes(watch), torch.device("cpu"):
        model = construct(engine, configuration, loading, watch)
    watch.built(model, BUFFERS.get(type(model).__name__, ()))
    watch.padding = dropped_rows(model)
    if skip:
        return model
    if hasattr(model, "post_load_weights"):
        model.post_load_weights = lambda *_, **__: None
        note("post_load_weights", "weights are not folded for decoding")
    for name in [one for one in dir(model) if re.fullmatch(r"_prewarm_\w+", one)]:
        setattr(model, name, lambda *_, **__: None)
        note(name, "no kernel is compiled")
    if hasattr(model, REORDERS):
        setattr(model, REORDERS, unwatched(getattr(model, REORDERS), watch))
    try:
        with one_thread(watch), watch_writes(watch):
            model.load_weights(watch.tap(default._get_all_weights(configuration, model)))
    except Exception as error:
        watch.tensor = getattr(error, "while_loading", watch.tensor) or (held(error) if watch.kept_back else None)
        raise
    finally:
        watch.measure()
        unread = NEVER_READ.get(type(model).__name__, ())
        forget(watch, {name for name in watch.shapes if name.endswith((*MADE_LATER, *unread))})
    watch.phase = "share"
    return model


def unwatched(method: Callable[[], object], watch: Watch) -> Callable[[], None]:
    """Return a method whose writes into parameters do not count as anything loaded."""

    def call() -> None:
        known = {pointer: set(regions) for pointer, regions in watch.regions.items()}
        try:
            method()
        finally:
            watch.regions = known

    return call


def dropped_rows(model: Any) -> dict[str, int]:
    """Return, by parameter, how many of its last rows make keys and values that the class drops."""
    if type(model).__name__ not in GEMMA_DRAFTS:
        return {}
    found = {}
    for name, parameter in model.named_parameters():
        above, found_there, _ = name.rpartition(".qkv_proj.")
        if found_there and parameter.dim() > 1:
            attention = model.get_submodule(above)
            whole = attention.q_size + 2 * attention.kv_size
            found[name] = parameter.shape[0] * 2 * attention.kv_size // whole
    return found


def construct(engine: Any, configuration: Any, loading: Any, watch: Watch) -> Any:
    """Return the model as the engine constructs it; up to 0.5.8 construction makes the quantization configuration."""
    original = engine._get_quantization_config

    def heard(*given: Any, **named: Any) -> Any:
        quantization = original(*given, **named)
        if quantization is not None:
            listen(quantization, watch)
        return quantization

    if "quant_config" in inspect.signature(engine._initialize_model).parameters:
        return engine._initialize_model(configuration, loading, heard(configuration, loading))
    engine._get_quantization_config = heard
    try:
        return engine._initialize_model(configuration, loading)
    finally:
        engine._get_quantization_config = original


def draft_indices(checkpoint: str, layers: int) -> list[int | None]:
    """Return the numbers of the draft models that the engine loads one by one, or None for a single one."""
    import torch
    from sglang.srt.model_loader.utils import get_model_architecture

    torch.set_default_dtype(torch.bfloat16)
    kind, _ = get_model_architecture(model_configuration(checkpoint, draft=True))
    if "draft_model_idx" not in inspect.signature(kind.__init__).parameters:
        return [None]
    return list(range(layers))


def share(target: Any, draft: Any) -> None:
    """Put the target's embedding and head in the draft's place, as its worker does after loading."""
    embed, head = target.get_embed_and_head()  # the target is asked first
    draft.set_embed_and_head(embed, head)
    head = getattr(target, "lm_head", None)
    if head is not None and hasattr(draft, "set_lm_head_from_target"):
        draft.set_lm_head_from_target(head)


def replaced(model: Any, watch: Watch) -> set[str]:
    """Return the parameters that sharing took out of a model or put other storage behind.

    Scales beside a weight that became one of 16 bits count as well: the engine passes over them from then on.
    """
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    moved = {
        name
        for name, parameter in watch.shapes.items()
        if name not in now or now[name].untyped_storage().data_ptr() != parameter.untyped_storage().data_ptr()
    }
    plain = {name.rpartition(".")[0] for name in moved if name in now and now[name].dtype.itemsize > 1}
    return moved | {name for name in watch.shapes if name.rpartition(".")[0] in plain}


def forget(watch: Watch, names: set[str]) -> None:
    """Drop parameters from what a watch found damaged."""
    watch.unwritten = [name for name in watch.unwritten if name not in names]
    watch.partial = [name for name in watch.partial if name not in names]
    watch.misread = {name: text for name, text in watch.misread.items() if name not in names}


def load(checkpoint: str, options: Any) -> dict[str, Any]:
    """Load target and draft of one checkpoint; the draft is loaded whatever became of the target.

    Of a checkpoint that is a draft alone the target is another model, which is built and gets no weights.
    """
    from sglang.srt.models.registry import ModelRegistry

    main = options.main.get(checkpoint, checkpoint)

    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    architectures = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    if not set(architectures) & set(ModelRegistry.get_supported_archs()):
        return {"unsupported": architectures}
    if checkpoint in options.foreign:
        register(config, own_class)
    arena = Arena(options.hollow or None)
    read_only_small(arena)
    roles = [role for role in options.roles.split(",") if main == checkpoint or role != "target"]
    target = Watch(arena)
    failed = attempt(lambda: load_model(main, target, draft=False, skip="target" not in roles))
    result: dict[str, Any] = {
        "target": answer(target, failed) if "target" in roles else None,
        "draft": load_drafts(checkpoint, options.layers.get(checkpoint, 1), target) if "draft" in roles else None,
    }
    return {**result, "stand_ins": sorted(STAND_INS), "alone": main != checkpoint}


def load_drafts(checkpoint: str, layers: int, target: Watch) -> dict[str, Any] | None:
    """Load the draft, or the drafts one by one; None where the target could not be built that they share with."""
    indices: list[int | None] = [None]
    refused = attempt(lambda: indices.__setitem__(slice(None), draft_indices(checkpoint, layers)))
    answers = []
    for index in indices:
        watch = Watch(target.arena)

        def load_draft(watch: Watch = watch, index: int | None = index) -> None:
            model = load_model(checkpoint, watch, draft=True, index=index)
            if target.model is not None:
                share(target.model, model)
                forget(watch, replaced(model, watch))

        if refused is not None:
            watch.phase = "configure"
        answers.append(answer(watch, refused or attempt(load_draft)))
    found = joined(answers)
    return None if target.model is None and found["verdict"] != "fails" else found


def joined(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the answers of several draft models as one: the first that fails, else all that is damaged."""
    failed = next((one for one in answers if one["verdict"] == "fails"), None)
    if failed is not None or len(answers) == 1:
        return failed or answers[0]
    whole = dict(answers[0])
    whole["verdict"] = "silent" if any(one["verdict"] == "silent" for one in answers) else "loads"
    for key in ("unwritten", "partial"):
        whole[key] = sorted({name for one in answers for name in one[key]})
    whole["misread"] = {name: text for one in answers for name, text in one["misread"].items()}
    whole["untaken"] = sorted(set.intersection(*(set(one["untaken"]) for one in answers)))
    return whole
