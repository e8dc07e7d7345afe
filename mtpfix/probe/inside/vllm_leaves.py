"""The leaves of vLLM that need a GPU: kernels that are chosen while layers are built, and repacking after loading.

Everything that decides stays vLLM's: its configuration, its choice of quantization, its model classes, its loader, its
checks after loading. Which of these leaves a release has differs; what is not there is not replaced.
"""

# Half of what it calls is known in the engine's interpreter alone.
# mypy: disable-error-code="attr-defined,misc,no-any-return,no-untyped-call"

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .patches import (
    Kernel,
    declare_torchvision,
    descendants,
    imported,
    note,
    submodules,
    swap,
    try_import,
)

KEPT: list[Any] = []
"""Objects that would be undone if they were collected."""


def _suits_marlin(*given: Any, **named: Any) -> bool:
    """Return whether the Marlin kernels take groups of this size; which types they take is asked before."""
    return named.get("group_size", given[1] if len(given) > 1 else -1) in (-1, 32, 64, 128)


def replace_linear_kernels() -> None:
    """Let quantized linear layers create their parameters, but choose no GEMM for them."""
    for name in ("gptq_marlin", "auto_gptq", "moe_wna16"):
        try_import(f"vllm.model_executor.layers.quantization.{name}")  # else imported when a checkpoint asks for it
    for module in imported("vllm.model_executor.layers.quantization"):
        for name in list(vars(module)):
            if re.fullmatch(r"init_\w+_linear_kernel", name):
                swap(module, name, lambda *_, **__: Kernel(), "no GEMM is chosen")
            if re.fullmatch(r"\w+LinearKernel", name) and isinstance(vars(module)[name], type):
                swap(module, name, Kernel, "no GEMM is chosen")
        swap(module, "choose_mp_linear_kernel", lambda *_, **__: Kernel, "no GEMM is chosen")
        swap(module, "verify_marlin_supported", lambda *_, **__: None, "the CPU is not asked for a GPU's kernel")
        swap(module, "check_marlin_supported", _suits_marlin, "the CPU is not asked for a GPU's kernel")
        swap(module, "marlin_make_workspace_new", lambda *_, **__: None, "no GEMM is chosen")
        swap(module, "select_nvfp4_linear_backend", lambda *_, **__: "none", "no GEMM is chosen")
        swap(module, "convert_to_nvfp4_linear_kernel_format", lambda *_, **__: None, "no repacking for a GEMM")
        swap(module, "expose_input_quant_key", lambda *_, **__: None, "no GEMM is chosen")


def replace_expert_kernels() -> None:
    """Let expert layers create their parameters, but choose no grouped GEMM and do not repack for one."""
    backends = try_import("vllm.model_executor.layers.fused_moe.oracle.nvfp4")
    if backends is not None and hasattr(backends, "NvFp4MoeBackend"):
        backend = getattr(backends.NvFp4MoeBackend, "VLLM_CUTLASS", next(iter(backends.NvFp4MoeBackend)))
        for module in (backends, *imported("vllm.model_executor.layers.quantization")):
            swap(module, "select_nvfp4_moe_backend", lambda *_, **__: (backend, Kernel), "no expert kernel is chosen")
    packed = try_import("vllm.model_executor.layers.fused_moe.oracle.int_wna16")
    if packed is not None and hasattr(packed, "WNA16MoEBackend"):
        marlin = packed.WNA16MoEBackend.MARLIN
        for module in (packed, *imported("vllm.model_executor.layers.quantization")):
            swap(module, "select_wna16_moe_backend", lambda *_, **__: (marlin, Kernel), "no expert kernel is chosen")
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
    for module in imported("vllm.model_executor.layers"):
        swap(module, "dispatch_cpu_unquantized_gemm", lambda *_, **__: None, "no repacking for the CPU")


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

    dcp_world_size = 1
    pcp_world_size = 1

    def __init__(self, *_: Any, **named: Any) -> None:
        self.__dict__.update(named)


def allow_latent_attention(platform: type) -> None:
    """Let latent attention be built where the CPU platform refuses it, and do not fold its weights after loading."""
    original = platform.get_attn_backend_cls.__func__

    def get_attn_backend_cls(cls: type, *arguments: Any, **named: Any) -> str:
        try:
            return str(original(cls, *arguments, **named))
        except (NotImplementedError, ValueError) as error:
            if "MLA" not in str(error) and "Sparse" not in str(error):
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


def allow_flash_attention() -> None:
    """Let layers with a kernel of their own be built that ask whether FlashAttention is there besides.

    The engine's own attention backends have found by then that it is not.
    """
    backends = "vllm.v1.attention.backends"
    for name in ("flash_attn", "flash_attn_diffkv", "turboquant_attn", "mla.prefill.flash_attn"):
        try_import(f"{backends}.{name}")
    module = try_import(f"{backends}.fa_utils")
    swap(module, "is_flash_attn_varlen_func_available", lambda: True, "an attention kernel is named, and never run")


def stand_in_for_operators() -> None:
    """Name the compiled operators that layers look up while they are built, where the compiled part is missing."""
    import torch

    for name in ("gelu_and_mul", "gelu_fast", "gelu_new", "gelu_quick", "gelu_tanh_and_mul", "silu_and_mul"):
        if not hasattr(torch.ops._C, name):
            setattr(torch.ops._C, name, None)
            note(f"torch.ops._C.{name}", "named without its kernel")


KERNEL_MODULES = (
    "vllm.compilation.passes.fusion.allreduce_rms_fusion",
    "vllm.model_executor.layers.mhc",
    "vllm.v1.attention.backends.mla.prefill.flash_attn",
    "vllm.vllm_flash_attn",
    "vllm.vllm_flash_attn.flash_attn_interface",
)
"""Modules of kernels that models name while they are built, and that a build for the CPU may be unable to import."""

GPU_ALONE = ("vllm.third_party.deep_gemm",)
"""Modules that only builds for a GPU have."""


class Kernels(ModuleType):
    """A module whose every name is a kernel."""

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return Repacked() if "_cast_to_" in attribute else Kernel


class Repacked(Kernel):
    """Stands where a function would that turns a weight into numbers of another type and their scales."""

    def __call__(self, weight: Any, *_: Any, **__: Any) -> Any:
        """Leave the weight as it is."""
        return weight, weight


def stand_in_for_kernel_modules() -> None:
    """Put modules of kernels that are never run in the place of those that want a GPU's compiler or library."""
    missing = []
    tiles = "vllm.model_executor.kernels.mhc.tilelang_kernels"
    if importlib.util.find_spec("tilelang") is None and try_import(tiles.rpartition(".")[0]) is not None:
        missing.append(tiles)
    missing += [name for name in KERNEL_MODULES if fails_to_import(name)]
    missing += [name for name in GPU_ALONE if try_import(name) is None and try_import(name.rpartition(".")[0])]
    for name in missing:
        sys.modules[name] = Kernels(name)
        note(name, "its kernels are named, and never run")
    utilities = try_import("vllm.utils.import_utils")
    finds = getattr(utilities, "_has_module", None)
    if finds is not None:  # before 0.23 it raises for a module that is imported and has no spec

        def still_absent(name: str) -> bool:
            return name not in missing and bool(finds(name))

        swap(utilities, "_has_module", still_absent, "what stands in for a module is not taken for it")


def keep_tables_in_memory() -> None:
    """Let tables of n-grams, which lie in pinned memory unasked, lie where all other weights do."""
    module = try_import("vllm.config.vllm")
    settings = getattr(module, "EngramConfig", None)
    if settings is not None:
        ordinary = functools.partial(settings, cpu_offload=False)
        swap(module, "EngramConfig", ordinary, "tables of n-grams lie in the model's own memory")


def fails_to_import(name: str) -> bool:
    """Return whether the engine has a module that cannot be imported here."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return not f"{name}.".startswith(f"{error.name}.")
    except (ImportError, OSError, AttributeError):  # the last where it asks a compiler that it took for there
        return True
    return False


def imported_for_a_gpu(package: Path) -> Iterator[tuple[str, str, str]]:
    """Yield what a package imports from its part for NVIDIA's GPUs: the name it gets, the module, its name there."""
    for statement in ast.walk(ast.parse(package.read_text(encoding="utf-8"))):
        if isinstance(statement, ast.ImportFrom) and statement.level == 1:
            module = statement.module or ""
            if module.partition(".")[0] == "nvidia":
                yield from ((one.asname or one.name, module, one.name) for one in statement.names)


RECIPES = "vllm.models.deepseek_v4.nvidia.ops.o_proj"
"""A module with a function that asks the GPU how a kernel wants its weights, and that models take from there."""


def build_what_a_gpu_builds() -> None:
    """Let packages of models that have a class of their own for each kind of machine give those for NVIDIA's GPUs."""
    models = importlib.util.find_spec("vllm.models")
    folders = [Path(folder) for folder in (models.submodule_search_locations or () if models else ())]
    for parts in (place for folder in folders for place in folder.iterdir() if (place / "nvidia").is_dir()):
        package = f"vllm.models.{parts.name}"
        if not (parts / "cpu").is_dir():
            build_instead_of_generic(package, parts / "__init__.py")
            continue
        chosen = importlib.import_module(package)
        for name in getattr(chosen, "__all__", ()):
            for module in map(try_import, submodules(f"{package}.nvidia")):
                kind = getattr(module, name, None)
                if isinstance(kind, type) and kind.__module__ == getattr(module, "__name__", ""):
                    swap(chosen, name, kind, "the class for CUDA is built, not the one for the CPU")
    with contextlib.suppress(
        ImportError, AttributeError
    ):  # where the release has no such part, or cannot import it here
        importlib.import_module(RECIPES)
    for module in imported("vllm.model"):
        swap(module, "compute_fp8_einsum_recipe", lambda *_, **__: ((1, 128, 128), False), "no kernel is prepared")


def build_instead_of_generic(package: str, source: Path) -> None:
    """Let a package that gives other machines the generic classes give those for NVIDIA's GPUs."""
    if "from vllm.model_executor.models" not in source.read_text(encoding="utf-8"):
        return
    chosen = importlib.import_module(package)
    for name, place, theirs in imported_for_a_gpu(source):
        with contextlib.suppress(ImportError, AttributeError):  # where its kernels ask more than a stand-in gives
            kind = getattr(importlib.import_module(f"{package}.{place}"), theirs)
            swap(chosen, name, kind, "the class for CUDA is built, not the generic one")


class Tokenizer:
    """Stands where a tokenizer would that a model asks for the numbers of some words while it is built."""

    def encode(self, *_: Any, **__: Any) -> list[int]:
        """Return no numbers: nothing is run with them."""
        return []


ASK_TOKENIZER = ("vllm.model_executor.models.nano_nemotron_vl",)
"""Modules of model classes that ask a tokenizer while they are built."""


def stand_in_for_tokenizer(architectures: Sequence[str]) -> None:
    """Give the class of an architecture a tokenizer where it asks one while it is built: none is read."""
    registry = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry
    for name in architectures:
        module = getattr(registry.models.get(name), "module_name", None)
        if module in ASK_TOKENIZER:
            place = importlib.import_module(module)
            swap(place, "cached_tokenizer_from_config", lambda *_, **__: Tokenizer(), "no tokenizer is read")


ASK_CAPABILITY = {"vllm.models.step5": ("vllm.models.step5.nvidia.sparse_attention", "vllm.models.step5.nvidia.model")}
"""By the package of model classes: its modules that ask which GPU there is while they are built."""


class Hopper:
    """The engine's platform, which says that it is a GPU of compute capability 9.0 where it is asked for that alone."""

    def __init__(self, real: Any) -> None:
        self.real = real

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self.real, attribute)

    def get_device_capability(self, *_: Any, **__: Any) -> Any:
        """Return the capability that every class here is built for."""
        return importlib.import_module("vllm.platforms.interface").DeviceCapability(9, 0)


def name_a_gpu(architectures: Sequence[str]) -> None:
    """Tell the class of an architecture of a GPU where it refuses to be built without one of a certain kind."""
    import torch

    registry = importlib.import_module("vllm.model_executor.models.registry").ModelRegistry
    for name in architectures:
        for module in ASK_CAPABILITY.get(getattr(registry.models.get(name), "module_name", ""), ()):
            place = importlib.import_module(module)
            swap(place, "current_platform", Hopper(place.current_platform), "a GPU is named, and never run")
            swap(place, "_shared_adapter", lambda _: Kernel(), "no attention kernel is prepared")
            swap(torch.accelerator, "current_device_index", lambda: 0, "there is no accelerator")


def choose_cpu() -> Any:
    """Choose the engine's CPU platform, whatever this machine or the engine's build has, and return its class."""
    platforms = importlib.import_module("vllm.platforms")
    kind = importlib.import_module("vllm.platforms.cpu").CpuPlatform
    if getattr(platforms, "_current_platform", None) is None:
        platforms._current_platform = kind()
    elif not isinstance(platforms._current_platform, kind):
        raise RuntimeError("the engine chose a GPU while it was imported")
    return kind


def replace_leaves() -> None:
    """Import what builds and loads models, and replace in it what needs a GPU."""
    import torch

    KEPT.append(declare_torchvision())
    torch.set_num_threads(1)
    platform = choose_cpu()
    for name in (
        "vllm.engine.arg_utils",
        "vllm.model_executor.model_loader.default_loader",
        "vllm.model_executor.layers.quantization.fp8",
        "vllm.model_executor.layers.quantization.modelopt",
        "vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors",
        *submodules("vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors_moe"),
        "vllm.model_executor.layers.fused_moe",
        "vllm.model_executor.models.registry",
    ):
        try_import(name)
    platform.supported_quantization = []
    swap(platform, "verify_quantization", classmethod(lambda *_: None), "the CPU platform lists fewer methods")
    replace_linear_kernels()
    replace_expert_kernels()
    allow_ungated_experts()
    allow_latent_attention(platform)
    allow_flash_attention()
    stand_in_for_operators()
    stand_in_for_kernel_modules()
    keep_tables_in_memory()
    build_what_a_gpu_builds()
    registry = try_import("vllm.model_executor.models.registry")
    swap(registry, "_run_in_subprocess", lambda function: function(), "models are inspected in this process")
    for name in ("Stream", "Event"):
        swap(torch.cuda, name, Kernel, "there is no GPU")
    if hasattr(torch, "accelerator"):
        for name in ("empty_cache", "synchronize"):
            swap(torch.accelerator, name, lambda *_, **__: None, "there is no accelerator")
