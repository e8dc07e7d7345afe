"""Build and load target and MTP draft with vLLM, on the CPU, without running them.

Everything that decides is vLLM's: its configuration, its choice of quantization, its model classes, its loader, its
checks after loading, and its sharing of embeddings and heads between target and draft. What is replaced stands in
`vllm_leaves`.
"""

# Half of what it calls is known in the engine's interpreter alone.
# mypy: disable-error-code="attr-defined,misc,no-any-return,no-untyped-call"

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .configuration import STAND_INS, register
from .hollow import Arena
from .patches import note, swap, try_import
from .reader import make_reader
from .vllm_leaves import name_a_gpu, replace_leaves, stand_in_for_tokenizer
from .watch import Watch, answer, attempt, watch_writes

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_KIMI_K3_GEMM_AR": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
}


def prepare() -> dict[str, str]:
    """Import vLLM and replace what needs a GPU; return the versions that answers come from."""
    engine = importlib.import_module("vllm")
    version = str(engine.__version__)  # an installation without it is broken, and says so here
    replace_leaves()
    import torch
    import transformers

    return {
        "vllm": version.partition("+")[0],
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


PADDED = {
    "in_proj_qkvgfab.weight": "in_proj_padding",
    "input_mix_weight_down_block_inject.weight": "pad_size",
}
"""Endings of parameters with rows of padding, and the attribute of the module around them that counts those rows."""


CONSTANT = ("model.encoder.layers.", (".ls1", ".ls2"))
"""Beginning and endings of parameters of a RADIO tower that are one: its loader passes over all tensors for them."""


def padded_rows(model: Any) -> dict[str, int]:
    """Return, by parameter, how many of its last rows no checkpoint has a tensor for."""
    found = {}
    radio = tuple(f"{name}.{CONSTANT[0]}" for name, one in model.named_modules() if type(one).__name__ == "RadioModel")
    for name, parameter in model.named_parameters():
        if name.startswith(radio) and name.endswith(CONSTANT[1]):
            found[name] = int(parameter.shape[0])
        for ending, attribute in PADDED.items():
            if name.endswith(f".{ending}"):
                found[name] = int(getattr(model.get_submodule(name.removesuffix(f".{ending}")), attribute, 0))
    return found


class Hooks:
    """The places in the engine where a `Watch` is told what happens; `watch` is the model at work.

    With `skip` nothing is loaded into it: it is built because the other one needs it.
    """

    def __init__(self, arena: Arena) -> None:
        self.watch = Watch(arena)
        self.skip = False
        loader = importlib.import_module("vllm.model_executor.model_loader.default_loader").DefaultModelLoader
        base = importlib.import_module("vllm.model_executor.model_loader.base_loader")
        original_load, original_model, original_process = (
            loader.load_weights,
            loader.load_model,
            base.process_weights_after_loading,
        )
        hooks = self
        if arena.limit is not None:
            weights = importlib.import_module("vllm.model_executor.model_loader.weight_utils")
            reader = make_reader(weights.safe_open, arena)
            swap(weights, "safe_open", reader, "large tensors take no memory, and their numbers are not read")

        def load_weights(self: Any, model: Any, *arguments: Any, **named: Any) -> Any:
            watch = hooks.watch
            watch.built(model)
            watch.padding = padded_rows(model)
            if hooks.skip:
                return None
            own = model.load_weights

            def tapped(weights: Any, *more: Any, **options: Any) -> Any:
                try:
                    return own(watch.tap(weights), *more, **options)
                finally:
                    watch.measure()

            object.__setattr__(model, "load_weights", tapped)
            try:
                result = original_load(self, model, *arguments, **named)
            finally:
                if "load_weights" in vars(model):
                    object.__delattr__(model, "load_weights")
            watch.phase = "finish"
            return result

        def load_model(self: Any, *arguments: Any, **named: Any) -> Any:
            result = original_model(self, *arguments, **named)
            hooks.watch.phase = "share"
            return result

        def process(*arguments: Any, **named: Any) -> Any:
            return None if hooks.skip else original_process(*arguments, **named)

        loader.load_weights, loader.load_model, base.process_weights_after_loading = load_weights, load_model, process

    def listen(self, configuration: Any) -> None:
        """Note the name with which each layer asks its quantization configuration."""
        owner = type(configuration)
        original, hooks = owner.get_quant_method, self

        def get_quant_method(self: Any, layer: Any, prefix: str, *arguments: Any, **named: Any) -> Any:
            hooks.watch.asked[id(layer)] = (layer, prefix)
            return original(self, layer, prefix, *arguments, **named)

        owner.get_quant_method = get_quant_method


def own_class(model_type: str) -> Any:
    """Return the configuration class that vLLM has for a model type, None where it has none."""
    registry = getattr(importlib.import_module("vllm.transformers_utils.config"), "_CONFIG_REGISTRY", {})
    return registry[model_type] if model_type in registry else None  # noqa: SIM401 - its `get` is not lazy


def further_options(checkpoint: str, options: Any) -> dict[str, Any]:
    """Return what this release has to be started with to serve a checkpoint.

    Among the engine's arguments there may be `num_speculative_tokens`, which is one of its draft's.
    """
    from packaging.specifiers import SpecifierSet

    wanted = dict(options.options.get(checkpoint, {}).get("vllm", {}))
    version = str(importlib.import_module("vllm").__version__).partition("+")[0]
    return wanted if SpecifierSet(wanted.pop("versions", "")).contains(version, prereleases=True) else {}


def engine_configuration(
    checkpoint: str, speculative: dict[str, Any] | None, ranks: int, further: dict[str, Any]
) -> Any:
    """Return the engine's configuration for a checkpoint, with or without its MTP draft, for some ranks."""
    from vllm.engine.arg_utils import EngineArgs

    options: dict[str, Any] = {
        "model": checkpoint,
        "disable_log_stats": True,
        "dtype": "bfloat16",
        "enable_chunked_prefill": False,
        "enable_prefix_caching": False,
        "enforce_eager": True,
        "load_format": "safetensors",
        "max_model_len": 64,
        "max_num_batched_tokens": 64,
        "max_num_seqs": 2,
        "safetensors_load_strategy": "lazy",
        "skip_tokenizer_init": True,
        "tensor_parallel_size": ranks,
        "trust_remote_code": False,
        "use_tqdm_on_load": False,
        **further,
    }
    if speculative is not None:
        options["speculative_config"] = speculative
    known = inspect.signature(EngineArgs).parameters
    arguments = EngineArgs(**{name: value for name, value in options.items() if name in known})
    return arguments.create_engine_config()


def start_distributed(ranks: int, configuration: Any) -> None:
    """Form a group of one, as every worker of the engine does before it loads; it takes itself for the first of many.

    Nothing is communicated while a model is built and loaded, so that one process sees what the first rank sees. The
    group for tables of n-grams, which would have to be made of so many processes, is then the same as that for tensors.
    """
    from vllm.distributed import parallel_state

    with tempfile.NamedTemporaryFile(delete=False) as file:
        method = f"file://{file.name}"
    parallel_state.init_distributed_environment(1, 0, method, 0, "gloo")
    tables = getattr(configuration, "engram_config", None)
    if tables is not None and ranks > 1:
        configuration.engram_config = None
    parallel_state.initialize_model_parallel(1, 1)
    if tables is not None:
        configuration.engram_config = tables
    if ranks > 1:
        parallel_state.get_tp_group().world_size = ranks
        note("the tensor-parallel group", f"said to be of {ranks} ranks, this process is its first")


def quantizations(configuration: Any, *, alone: bool) -> Iterator[Any]:
    """Yield the quantization configurations that layers ask: the target's, or that of a draft which stands `alone`."""
    if configuration.quant_config is not None:
        yield configuration.quant_config
    if alone and configuration.speculative_config is not None:
        draft = configuration.speculative_config.draft_model_config
        found = None
        with contextlib.suppress(Exception):  # the draft asks for it again, and its answer counts
            found = type(configuration).get_quantization_config(draft, configuration.load_config)
        yield from () if found is None else (found,)


def load_target(configuration: Any) -> Any:
    """Load the main model as a worker does."""
    from vllm.model_executor.model_loader import get_model

    return get_model(vllm_config=configuration)


def load_draft(configuration: Any, target: Any, runner: str) -> None:
    """Load the MTP draft as the model runner does, and let it share with the target."""
    asks = getattr(configuration.speculative_config, "use_gemma4_mtp", None)
    if asks is not None and asks():
        load_drafter(configuration, target, runner)
        return
    if runner == "v2":
        importlib.import_module("vllm.v1.worker.gpu.spec_decode.eagle.utils").load_eagle_model(target, configuration)
        return
    speculative = configuration.speculative_config
    kinds = [("vllm.v1.spec_decode.eagle", "EagleProposer", True)]
    asks = getattr(speculative, "use_step3p5_mtp", None)
    kinds.insert(0, ("vllm.v1.spec_decode.step3p5", "Step3p5MTPProposer", asks is not None and bool(asks())))
    found = [getattr(try_import(module), name, None) for module, name, wanted in kinds if wanted]
    proposer = prepared(next(kind for kind in found if kind is not None), configuration)
    proposer.model = proposer._get_model()
    share(proposer, target)


def load_drafter(configuration: Any, target: Any, runner: str) -> None:
    """Load a drafter that reads the target's own keys and values, as its proposer or speculator does."""
    from vllm.config import get_layers_from_vllm_config
    from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

    attention = set(get_layers_from_vllm_config(configuration, AttentionLayerBase))
    if runner == "v2":
        module = importlib.import_module("vllm.v1.worker.gpu.spec_decode.gemma4.speculator")
        loader: Any = object.__new__(module.Gemma4Speculator)
        loader.vllm_config, loader.speculative_config = configuration, configuration.speculative_config
        loader.load_draft_model(target, attention)
        return
    proposer = prepared(importlib.import_module("vllm.v1.spec_decode.gemma4").Gemma4Proposer, configuration)
    proposer.model = proposer._get_model()
    share(proposer, target)
    proposer._setup_gemma4_kv_sharing(attention)


def prepared(kind: Any, configuration: Any) -> Any:
    """Return a proposer with what loading a draft asks of it, and nothing that it runs with."""
    proposer: Any = object.__new__(kind)
    proposer.vllm_config = configuration
    proposer.speculative_config = configuration.speculative_config
    proposer.draft_model_config = configuration.speculative_config.draft_model_config
    proposer.use_local_argmax_reduction = False
    return proposer


def share(proposer: Any, target: Any) -> None:
    """Let a proposer's draft share embedding and head with the target."""
    language = target.get_language_model() if hasattr(target, "get_language_model") else target
    proposer._maybe_share_embeddings(language)
    proposer._maybe_share_lm_head(language)


def load(checkpoint: str, options: Any) -> dict[str, Any]:
    """Load target and draft of one checkpoint; the draft is tried unless the target could not even be built."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.models.registry import ModelRegistry

    main = options.main.get(checkpoint, checkpoint)
    alone = main != checkpoint
    config = json.loads((Path(main) / "config.json").read_text(encoding="utf-8"))
    architectures = [name for name in config.get("architectures") or [] if isinstance(name, str)]
    if not set(architectures) & set(ModelRegistry.get_supported_archs()):
        return {"unsupported": architectures}
    if checkpoint in options.foreign:
        register(config, own_class)
    hooks = Hooks(Arena(options.hollow or None))
    roles = [role for role in options.roles.split(",") if not (alone and role == "target")]
    refused: Exception | None = None
    further = further_options(checkpoint, options)
    tokens = further.pop("num_speculative_tokens", options.layers.get(checkpoint, 1))
    try:
        speculative = {"method": "mtp", "num_speculative_tokens": tokens}
        speculative |= {"model": checkpoint} if alone else {}
        configuration = engine_configuration(main, speculative if "draft" in roles else None, options.ranks, further)
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is its answer
        refused = error
        try:
            configuration = engine_configuration(main, None, options.ranks, further)
        except Exception as again:  # noqa: BLE001
            hooks.watch.phase = "configure"
            return {"target": answer(hooks.watch, again), "draft": None, "stand_ins": sorted(STAND_INS)}
    stand_in_for_tokenizer(architectures)
    name_a_gpu(architectures)
    runner = options.runner or runner_for(configuration)
    with set_current_vllm_config(configuration):
        start_distributed(options.ranks, configuration)
        for lists in quantizations(configuration, alone=alone):
            hooks.listen(lists)
        target = hooks.watch
        hooks.skip = "target" not in roles
        with watch_writes(target):
            failed = attempt(lambda: load_target(configuration))
        hooks.skip = False
        result: dict[str, Any] = {
            "target": answer(target, failed) if "target" in roles or failed is not None else None,
            "draft": None,
            "runner": runner,
            "tokens": getattr(configuration.speculative_config, "num_speculative_tokens", None),
            "stand_ins": sorted(STAND_INS),
            "alone": alone,
        }
        if target.model is None or "draft" not in roles:
            return result
        hooks.watch = draft = Watch(target.arena)
        if refused is not None:
            draft.phase = "configure"
            result["draft"] = answer(draft, refused)
            return result
        with watch_writes(draft):
            failed = attempt(lambda: load_draft(configuration, target.model, runner))
        if failed is None or draft.phase == "share":
            draft.forgive_shared()
        result["draft"] = answer(draft, failed)
        return result


def runner_for(configuration: Any) -> str:
    """Return the model runner that the engine uses for a configuration unasked, on a machine that has Triton.

    Releases before 0.22 take the first (vllm/v1/worker/gpu_worker.py:156@0.21.0); later ones ask the configuration.
    """
    place = importlib.import_module("vllm.config.vllm")
    here = getattr(place, "HAS_TRITON", True)
    place.HAS_TRITON = True
    try:
        return "v2" if getattr(configuration, "use_v2_model_runner", False) else "v1"
    finally:
        place.HAS_TRITON = here
