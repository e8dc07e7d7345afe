"""Ask an installed vLLM what it does with a checkpoint: builds and loads target and MTP draft, without a GPU.

Runs inside the engine's own interpreter and needs nothing but that environment:

    ENVIRONMENT/bin/python oracle.py CHECKPOINT ... [--runner v1|v2] > answers.jsonl

One JSON object a line, in the order of the checkpoints. Each is loaded in a child of its own, forked after the
engine was imported, so that nothing one model changes reaches the next.

Everything that decides is the engine's: its configuration, its choice of quantization, its model classes, its
loader, its checks after loading, and its sharing of embeddings and heads between target and draft. Replaced are only
leaves that need a GPU (kernel choice and weight repacking); each answer lists them. Refuses to know anything of the
checkpoint: no name of a family or tensor occurs here.

What counts as silent damage is measured, not asked: every write into a parameter is seen, so a parameter that nobody
wrote, wrote in part, or wrote with numbers of another kind (packed codes into 16-bit weights) is known by name.
"""

# Runs in the engine's interpreter: the one that checks types has none of its packages.
# mypy: disable-error-code="import-not-found,no-untyped-call,misc"

from __future__ import annotations

import argparse
import contextlib
import importlib
import inspect
import json
import os
import pkgutil
import re
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_PLUGINS": "",
}
CACHE_SCALE = re.compile(r"\.(k|v|q|prob)_(scale|zero_point)(_float)?$")
"""Scales of the key and value cache: the engine has defaults for them."""

PATCHES: list[str] = []

# --------------------------------------------------------------------------------- replacing GPU-only leaves


def try_import(name: str) -> ModuleType | None:
    """Return a module, or None where this release does not have it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def swap(owner: Any, name: str, value: Any, why: str) -> None:
    """Put `value` in the place of an attribute that is there, and write down why."""
    if owner is not None and hasattr(owner, name):
        setattr(owner, name, value)
        PATCHES.append(f"{owner.__name__}.{name}: {why}")


def declare_torchvision() -> Any:
    """Declare the two operators that torchvision's Python asks for; its compiled part wants CUDA."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        with contextlib.suppress(RuntimeError):
            library.define(schema)
    PATCHES.append("torchvision: operator schemas declared without their kernels")
    return library


class Permissive(type):
    """A class whose every unknown attribute is a function that answers no."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: False


class Kernel(metaclass=Permissive):
    """Stands where a GPU kernel would: it is chosen, and never run."""

    supports_pre_processed_weights = False

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever a kernel takes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def process_weights_after_loading(self, *_: Any, **__: Any) -> None:
        """Leave the weights as they were loaded."""

    def input_quant_key(self, *_: Any, **__: Any) -> None:
        """Ask for no quantized input."""


def replace_linear_kernels() -> None:
    """Let quantized linear layers create their parameters, but choose no GEMM for them."""
    for module in engine_modules("vllm.model_executor.layers.quantization"):
        for name in list(vars(module)):
            if re.fullmatch(r"init_\w+_linear_kernel", name):
                swap(module, name, lambda *_, **__: Kernel(), "no GEMM is chosen")
            if re.fullmatch(r"\w+LinearKernel", name) and isinstance(vars(module)[name], type):
                swap(module, name, Kernel, "no GEMM is chosen")
        swap(module, "select_nvfp4_linear_backend", lambda *_, **__: "none", "no GEMM is chosen")
        swap(module, "convert_to_nvfp4_linear_kernel_format", lambda *_, **__: None, "no repacking for a GEMM")
        swap(module, "expose_input_quant_key", lambda *_, **__: None, "no GEMM is chosen")


def replace_expert_kernels() -> None:
    """Let expert layers create their parameters, but choose no grouped GEMM and do not repack for one."""
    backends = try_import("vllm.model_executor.layers.fused_moe.oracle.nvfp4")
    if backends is not None and hasattr(backends, "NvFp4MoeBackend"):
        backend = getattr(backends.NvFp4MoeBackend, "VLLM_CUTLASS", next(iter(backends.NvFp4MoeBackend)))
        for module in (backends, *engine_modules("vllm.model_executor.layers.quantization")):
            swap(module, "select_nvfp4_moe_backend", lambda *_, **__: (backend, Kernel), "no expert kernel is chosen")
    base = None
    for name in ("fused_moe_method_base", "layer"):
        module_ = try_import(f"vllm.model_executor.layers.fused_moe.{name}")
        base = base or getattr(module_, "FusedMoEMethodBase", None)
    for method in descendants(base):
        if "process_weights_after_loading" in vars(method):
            swap(method, "process_weights_after_loading", lambda *_, **__: None, "no repacking for a kernel")
    linear = try_import("vllm.model_executor.layers.linear")
    plain = getattr(linear, "UnquantizedLinearMethod", None)
    swap(plain, "process_weights_after_loading", lambda *_, **__: None, "no repacking for the CPU")


def submodules(package: str) -> list[str]:
    """Return the names of a package and the modules in it; of a plain module, its own."""
    module = try_import(package)
    below = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    return [package, *(f"{package}.{name}" for name in below)]


def engine_modules(prefix: str) -> list[ModuleType]:
    """Return the imported modules below a package."""
    return [module for name, module in sys.modules.items() if name.startswith(prefix)]


def descendants(base: type | None) -> list[type]:
    """Return all subclasses of a class, at any depth."""
    found: list[type] = []
    below: type
    for below in base.__subclasses__() if base is not None else ():
        found += [below, *descendants(below)]
    return found


def allow_ungated_experts() -> None:
    """Let experts without a gate be built: the CPU lacks only the kernel."""
    for name in ("config", "layer"):
        module = try_import(f"vllm.model_executor.layers.fused_moe.{name}")
        if module is None or "is_act_and_mul=False is supported only for" not in inspect.getsource(module):
            continue

        class Platform:
            """The engine's platform, which claims to be one that has the kernel."""

            def __init__(self, real: Any) -> None:
                self.real = real

            def __getattr__(self, attribute: str) -> Any:
                return getattr(self.real, attribute)

            def is_cuda_alike(self) -> bool:
                return True

            def is_xpu(self) -> bool:
                return True

        swap(module, "current_platform", Platform(module.current_platform), "experts without a gate are allowed")
    choice = try_import("vllm.model_executor.layers.fused_moe.oracle.unquantized")
    method = try_import("vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method")
    select = getattr(method, "select_unquantized_moe_backend", None)
    if choice is None or select is None or not hasattr(choice, "UnquantizedMoeBackend"):
        return

    def select_or_name(*arguments: Any, **named: Any) -> Any:
        try:
            return select(*arguments, **named)
        except (NotImplementedError, ValueError):
            return choice.UnquantizedMoeBackend.TRITON, Kernel

    swap(method, "select_unquantized_moe_backend", select_or_name, "an expert kernel is named where the CPU has none")


class LatentImplementation(Kernel):
    """Stands where a kernel for latent attention would."""

    def __init__(self, *_: Any, **named: Any) -> None:
        self.__dict__.update(named)


def allow_latent_attention(platform: type) -> None:
    """Let latent attention be built where the CPU platform refuses it, and do not fold its weights after loading."""
    original = platform.get_attn_backend_cls.__func__  # type: ignore[attr-defined]

    def get_attn_backend_cls(cls: type, *arguments: Any, **named: Any) -> str:
        try:
            return str(original(cls, *arguments, **named))
        except (NotImplementedError, ValueError) as error:
            if "MLA" not in str(error):
                raise
            common = try_import("vllm.model_executor.layers.attention.mla_attention") or try_import(
                "vllm.v1.attention.backends.mla.common"
            )

            class LatentBackend(common.MLACommonBackend):  # type: ignore[name-defined]
                get_name = staticmethod(lambda: "ORACLE")
                get_impl_cls = staticmethod(lambda: LatentImplementation)
                get_builder_cls = staticmethod(lambda: None)

            globals()["LatentBackend"] = LatentBackend
            return f"{__name__}.LatentBackend"

    swap(platform, "get_attn_backend_cls", classmethod(get_attn_backend_cls), "latent attention is allowed")
    for name in ("vllm.model_executor.layers.attention.mla_attention", "vllm.v1.attention.backends.mla.prefill"):
        module = try_import(name)
        swap(module, "get_mla_prefill_backend", lambda *_, **__: Kernel, "no prefill kernel is chosen")
        latent = getattr(module, "MLAAttention", None)
        swap(latent, "process_weights_after_loading", lambda *_, **__: None, "weights are not folded for decoding")


def stand_in_for_operators() -> None:
    """Name the compiled operators that layers look up while they are built, where the compiled part is missing."""
    import torch

    for name in ("gelu_quick",):
        if not hasattr(torch.ops._C, name):
            setattr(torch.ops._C, name, None)
            PATCHES.append(f"torch.ops._C.{name}: named without its kernel")


def prepare_engine() -> ModuleType:
    """Import the engine and replace what needs a GPU; return the engine's package."""
    import torch

    globals()["TORCHVISION"] = declare_torchvision()
    torch.set_num_threads(1)
    engine = importlib.import_module("vllm")
    for name in (
        "vllm.engine.arg_utils",
        "vllm.model_executor.model_loader.default_loader",
        "vllm.model_executor.layers.quantization.modelopt",
        "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
        *submodules("vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe"),
        "vllm.model_executor.layers.fused_moe",
        "vllm.model_executor.models.registry",
    ):
        try_import(name)
    platform = type(importlib.import_module("vllm.platforms").current_platform)
    platform.supported_quantization = []
    swap(platform, "verify_quantization", classmethod(lambda *_: None), "the CPU platform lists fewer methods")
    replace_linear_kernels()
    replace_expert_kernels()
    allow_ungated_experts()
    allow_latent_attention(platform)
    stand_in_for_operators()
    registry = try_import("vllm.model_executor.models.registry")
    swap(registry, "_run_in_subprocess", lambda function: function(), "models are inspected in this process")
    if hasattr(torch, "accelerator"):
        for name in ("empty_cache", "synchronize"):
            swap(torch.accelerator, name, lambda *_, **__: None, "there is no accelerator")
    return engine


# ------------------------------------------------------------------------------------------------ watching


def kind_of(dtype: Any) -> str:
    """Return what kind of numbers a type holds: packed or whole integers, 8-bit floats, or wider floats."""
    text = str(dtype)
    if "float8" in text:
        return "float8"
    return "float" if "float" in text else "integer"


def ignores_inputs(module: Any) -> bool:
    """Return whether a layer multiplies packed weights with 16-bit inputs, and so drops any scale of theirs."""
    method = getattr(module, "quant_method", None)
    sixteen = "W4A16" in type(method).__name__ or getattr(method, "use_a16", False)
    return bool(sixteen) or getattr(getattr(method, "spec", None), "activation", True) is None


def floored(parameter: Any) -> bool:
    """Return whether a parameter begins as the lowest number, so that its maximum ignores what nobody writes."""
    import torch

    lowest = torch.finfo(torch.float32).min
    return parameter.dtype is torch.float32 and parameter.numel() < 64 and bool((parameter == lowest).all())


class Watch:
    """What one model does while it is built and loaded."""

    def __init__(self) -> None:
        self.phase = "construct"
        self.model: Any = None
        self.tensor: str | None = None
        self.seen: dict[str, bool] = {}
        self.asked: dict[int, tuple[Any, str]] = {}
        self.modules: list[dict[str, str]] = []
        self.storages: dict[int, str] = {}
        self.shapes: dict[str, Any] = {}
        self.floored: set[str] = set()
        self.regions: dict[int, list[tuple[int, tuple[int, ...], tuple[int, ...]]]] = {}
        self.misread: dict[str, str] = {}
        self.owners: dict[str, Any] = {}
        self.unwritten: list[str] = []
        self.partial: list[str] = []

    def built(self, model: Any) -> None:
        """Take stock of a model whose weights are not loaded yet."""
        self.phase, self.model = "load", model
        for name, parameter in model.named_parameters():
            self.storages[parameter.untyped_storage().data_ptr()] = name
            self.shapes[name] = parameter
            if floored(parameter):
                self.floored.add(name)
            self.owners[name] = model.get_submodule(name.rpartition(".")[0])
        for path, module in model.named_modules():
            found = describe(path, module, self.asked.get(id(module), (None, None))[1])
            if found is not None:
                self.modules.append(found)

    def tap(self, weights: Any) -> Any:
        """Pass weights on, remembering which one the model is looking at."""
        for name, weight in weights:
            self.tensor = name
            self.seen.setdefault(name, False)
            yield name, weight
        self.tensor = None

    def written(self, target: Any, source: Any) -> None:
        """Remember that a region of a parameter was written, and with what kind of numbers."""
        pointer = target.untyped_storage().data_ptr()
        name = self.storages.get(pointer)
        if name is None:
            return
        region = (target.storage_offset(), tuple(target.size()), tuple(target.stride()))
        self.regions.setdefault(pointer, []).append(region)
        if self.tensor is not None:
            self.seen[self.tensor] = True
        if hasattr(source, "dtype") and kind_of(source.dtype) != kind_of(target.dtype):
            self.misread[name] = f"{source.dtype} read as {target.dtype}".replace("torch.", "")

    def measure(self) -> None:
        """Work out which parameters were never written, or only in part."""
        import torch

        for name, parameter in self.shapes.items():
            if CACHE_SCALE.search(name) or not parameter.numel():
                continue
            if name.endswith("input_scale") and ignores_inputs(self.owners[name]):
                continue
            now = dict(self.owners[name].named_parameters(recurse=False)).get(name.rpartition(".")[2])
            if now is not None and now.untyped_storage().data_ptr() not in self.storages:
                continue  # the loader put other storage in its place
            storage = parameter.untyped_storage()
            regions = self.regions.get(storage.data_ptr(), [])
            if not regions:
                self.unwritten.append(name)
                continue
            mask = torch.zeros(storage.nbytes() // parameter.element_size(), dtype=torch.bool)
            for offset, size, stride in regions:
                mask.as_strided(size, stride, offset).fill_(1)
            view = mask.as_strided(parameter.size(), parameter.stride(), parameter.storage_offset())
            if not bool(view.all()) and name not in self.floored:
                self.partial.append(name)

    def forgive_shared(self) -> None:
        """Drop parameters of modules that the engine has since replaced by the target's."""

        def alive(name: str) -> bool:
            try:
                return self.model.get_submodule(name.rpartition(".")[0]) is self.owners[name]
            except AttributeError:
                return False

        self.unwritten = [name for name in self.unwritten if alive(name)]
        self.partial = [name for name in self.partial if alive(name)]
        self.misread = {name: text for name, text in self.misread.items() if alive(name)}


def describe(path: str, module: Any, asked: str | None) -> dict[str, str] | None:
    """Return prefix, path, layer class and built format of a module that could be quantized, else None."""
    import torch

    own = dict(module.named_parameters(recurse=False))
    weights = [name for name in own if re.fullmatch(r"(w13_|w2_)?weight(_packed)?|qweight", name)]
    linear = isinstance(module, torch.nn.Linear)
    if not weights or not (linear or hasattr(module, "quant_method")):
        return None
    prefix = asked if asked is not None else getattr(module, "prefix", None) or path
    return {
        "prefix": prefix,
        "path": path,
        "layer": "Linear" if linear else type(module).__name__,
        "format": format_of(own, weights_only=ignores_inputs(module)),
    }


def format_of(parameters: dict[str, Any], *, weights_only: bool) -> str:
    """Return the format that a module's parameters make: the same words as `mtpfix.model.Format`."""
    names = {re.sub(r"^(w13|w2)_", "", name) for name in parameters}
    weight = next(value for name, value in parameters.items() if re.search(r"weight(_packed)?$", name))
    if names & {"weight_scale_2", "weight_global_scale"}:
        inputs = names & {"input_scale", "input_global_scale"} and not weights_only
        return "nvfp4" if inputs else "nvfp4_a16"
    if kind_of(weight.dtype) == "float8":
        if "weight_scale_inv" in names:
            return "fp8_block"
        return "fp8"
    short = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}
    return short.get(str(weight.dtype), "unknown")


def watch_writes(watch: Watch) -> Any:
    """Return a mode under which every write into a tensor is reported to `watch`."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    writes = {
        aten.copy_.default,
        aten.fill_.Scalar,
        aten.fill_.Tensor,
        aten.index_copy_.default,
        aten.index_put_.default,
        aten.zero_.default,
    }

    class Writes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if func in writes:
                watch.written(args[0], args[1] if func is aten.copy_.default else None)
            return result

    return Writes()


class Hooks:
    """The places in the engine where a `Watch` is told what happens; `watch` is the model at work."""

    def __init__(self) -> None:
        self.watch = Watch()
        loader = importlib.import_module("vllm.model_executor.model_loader.default_loader").DefaultModelLoader
        original_load, hooks = loader.load_weights, self

        def load_weights(self: Any, model: Any, *arguments: Any, **named: Any) -> Any:
            watch = hooks.watch
            watch.built(model)
            own = model.load_weights

            def tapped(weights: Any, *more: Any, **options: Any) -> Any:
                try:
                    with watch_writes(watch):
                        return own(watch.tap(weights), *more, **options)
                finally:
                    watch.measure()

            object.__setattr__(model, "load_weights", tapped)
            try:
                result = original_load(self, model, *arguments, **named)
            finally:
                with contextlib.suppress(AttributeError):
                    object.__delattr__(model, "load_weights")
            watch.phase = "finish"
            return result

        loader.load_weights = load_weights
        original_model = loader.load_model

        def load_model(self: Any, *arguments: Any, **named: Any) -> Any:
            result = original_model(self, *arguments, **named)
            hooks.watch.phase = "share"
            return result

        loader.load_model = load_model

    def listen(self, configuration: Any) -> None:
        """Note the name with which each layer asks its quantization configuration."""
        owner = type(configuration)
        original, hooks = owner.get_quant_method, self

        def get_quant_method(self: Any, layer: Any, prefix: str, *arguments: Any, **named: Any) -> Any:
            hooks.watch.asked[id(layer)] = (layer, prefix)
            return original(self, layer, prefix, *arguments, **named)

        owner.get_quant_method = get_quant_method


# ------------------------------------------------------------------------------------------------- loading


def engine_configuration(checkpoint: str, speculative: dict[str, Any] | None) -> Any:
    """Return the engine's configuration for a checkpoint, with or without its MTP draft."""
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
        "skip_tokenizer_init": True,
        "trust_remote_code": "auto_map" in json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8")),
    }
    if speculative is not None:
        options["speculative_config"] = speculative
    known = inspect.signature(EngineArgs).parameters
    arguments = EngineArgs(**{name: value for name, value in options.items() if name in known})
    return arguments.create_engine_config()


def start_distributed() -> None:
    """Form a group of one, as every worker of the engine does before it loads."""
    from vllm.distributed import parallel_state

    with tempfile.NamedTemporaryFile(delete=False) as file:
        method = f"file://{file.name}"
    parallel_state.init_distributed_environment(1, 0, method, 0, "gloo")
    parallel_state.initialize_model_parallel(1, 1)


def load_target(configuration: Any) -> Any:
    """Load the main model as a worker does."""
    from vllm.model_executor.model_loader import get_model

    return get_model(vllm_config=configuration)


def load_draft(configuration: Any, target: Any, runner: str) -> None:
    """Load the MTP draft as the model runner does, and let it share with the target."""
    if runner == "v2":
        importlib.import_module("vllm.v1.worker.gpu.spec_decode.eagle.utils").load_eagle_model(target, configuration)
        return
    speculative = configuration.speculative_config
    kinds = [("vllm.v1.spec_decode.eagle", "EagleProposer", True)]
    asks = getattr(speculative, "use_step3p5_mtp", None)
    kinds.insert(0, ("vllm.v1.spec_decode.step3p5", "Step3p5MTPProposer", asks is not None and bool(asks())))
    found = [getattr(try_import(module), name, None) for module, name, wanted in kinds if wanted]
    proposer: Any = object.__new__(next(kind for kind in found if kind is not None))
    proposer.vllm_config = configuration
    proposer.speculative_config = speculative
    proposer.draft_model_config = speculative.draft_model_config
    proposer.use_local_argmax_reduction = False
    proposer.model = proposer._get_model()
    language = target.get_language_model() if hasattr(target, "get_language_model") else target
    proposer._maybe_share_embeddings(language)
    proposer._maybe_share_lm_head(language)


def default_runner(version: str) -> str:
    """Return the model runner that a release uses unasked: the second from 0.29 on."""
    major, minor = (int(part) for part in version.split(".")[:2])
    return "v2" if (major, minor) >= (0, 29) else "v1"


def explain(error: BaseException) -> dict[str, Any]:
    """Return class, text and place of an exception."""
    frames = traceback.extract_tb(error.__traceback__)
    place = [f"{frame.filename.partition('site-packages/')[2] or frame.filename}:{frame.lineno}" for frame in frames]
    return {"class": type(error).__name__, "text": str(error), "at": place[-4:]}


def answer(watch: Watch, error: BaseException | None) -> dict[str, Any]:
    """Return what became of one model."""
    damaged = watch.unwritten or watch.partial or watch.misread
    return {
        "verdict": "fails" if error is not None else "silent" if damaged else "loads",
        "phase": watch.phase if error is not None else "done",
        "error": explain(error) if error is not None else None,
        "tensor": watch.tensor if error is not None and watch.phase == "load" else None,
        "class": type(watch.model).__name__ if watch.model is not None else None,
        "modules": watch.modules,
        "unwritten": sorted(watch.unwritten),
        "partial": sorted(watch.partial),
        "misread": dict(sorted(watch.misread.items())),
        "untaken": sorted(name for name, taken in watch.seen.items() if not taken),
    }


def mtp_layers(checkpoint: str) -> int:
    """Return how many tokens to draft: the number of MTP layers the configuration declares, or one."""
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    return int(text.get("num_nextn_predict_layers") or text.get("mtp_num_hidden_layers") or 1)


def load(checkpoint: str, runner: str) -> dict[str, Any]:
    """Load target and draft of one checkpoint; the draft is tried unless the target could not even be built."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.models.registry import ModelRegistry

    architectures = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))["architectures"]
    if not set(architectures) & set(ModelRegistry.get_supported_archs()):
        return {"unsupported": architectures}
    hooks = Hooks()
    refused: Exception | None = None
    try:
        speculative = {"method": "mtp", "num_speculative_tokens": mtp_layers(checkpoint)}
        configuration = engine_configuration(checkpoint, speculative)
    except Exception as error:  # noqa: BLE001
        refused = error
        try:
            configuration = engine_configuration(checkpoint, None)
        except Exception as again:  # noqa: BLE001
            hooks.watch.phase = "configure"
            return {"target": answer(hooks.watch, again), "draft": None}
    with set_current_vllm_config(configuration):
        start_distributed()
        if configuration.quant_config is not None:
            hooks.listen(configuration.quant_config)
        target = hooks.watch
        failed = attempt(lambda: load_target(configuration))
        result: dict[str, Any] = {"target": answer(target, failed), "draft": None}
        if target.model is None:
            return result
        hooks.watch = draft = Watch()
        if refused is not None:
            draft.phase = "configure"
            result["draft"] = answer(draft, refused)
            return result
        failed = attempt(lambda: load_draft(configuration, target.model, runner))
        if failed is None or draft.phase == "share":
            draft.forgive_shared()
        result["draft"] = answer(draft, failed)
        return result


def attempt(action: Any) -> Exception | None:
    """Return the exception that an action raised, or None."""
    try:
        action()
    except Exception as error:  # noqa: BLE001
        return error
    return None


# --------------------------------------------------------------------------------------------------- process


def in_child(checkpoint: str, runner: str, limit: int) -> dict[str, Any]:
    """Load one checkpoint in a forked child and return its answer; `limit` is in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answer.json"
        child = os.fork()
        if child == 0:
            signal.alarm(limit)
            try:
                path.write_text(json.dumps(load(checkpoint, runner)), encoding="utf-8")
            except BaseException:  # noqa: BLE001
                path.write_text(json.dumps({"broken": traceback.format_exc()}), encoding="utf-8")
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not path.exists():
            return {"broken": f"the child ended with status {status}"}
        return dict(json.loads(path.read_text(encoding="utf-8")))


def main() -> None:
    """Answer for each checkpoint on the command line, one JSON object a line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--runner", choices=("v1", "v2"), help="default: the release's own")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one checkpoint")
    options = parser.parse_args()
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the engine prints goes to stderr
    engine = prepare_engine()
    import torch
    import transformers

    runner = options.runner or default_runner(engine.__version__)
    for checkpoint in options.checkpoints:
        start = time.monotonic()
        head = {
            "checkpoint": checkpoint,
            "vllm": engine.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "runner": runner,
            "patches": PATCHES,
        }
        found = in_child(checkpoint, runner, options.limit)
        out.write(json.dumps({**head, **found, "seconds": round(time.monotonic() - start, 1)}) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
