"""The leaves of SGLang that need a GPU or a running server: platform, groups of workers, packages with kernels.

Everything that decides stays SGLang's. A Blackwell GPU is assumed, since the engine reads NVFP4 on no other. What a
release does not have is not replaced.
"""

# Half of what it calls is known in the engine's interpreter alone.
# mypy: disable-error-code="attr-defined,import-not-found,misc,no-any-return,no-untyped-call"

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .absent import Anything, stand_in, stand_in_with_kinds
from .patches import declare_torchvision, imported, note, swap, try_import
from .watch import Watch, mark_filled, marked

ABSENT = ("orjson", "IPython")
KERNELS = "sgl_kernel"
"""A package that releases import unasked until they have `sglang.kernels`."""

GGUF = """F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL
IQ3_S IQ2_S IQ4_XS I8 I16 I32 I64 F64 IQ1_M TQ1_0 TQ2_0 MXFP4"""
BLACKWELL = "a Blackwell GPU is assumed"
KEPT: list[Any] = []
"""Objects that would be undone if they were collected."""


def replace_leaves() -> None:
    """Import what builds and loads models, and replace in it what needs a GPU."""
    import torch

    KEPT.append(declare_torchvision())
    place = importlib.util.find_spec("sglang")
    folders = [Path(folder) for folder in (place.submodule_search_locations or () if place else ())]
    old = not any((folder / "kernels").exists() for folder in folders)
    stand_in((*ABSENT, KERNELS) if old else ABSENT)
    stand_in_with_kinds("gguf", "GGMLQuantizationType", GGUF.split())
    allow_known_configurations()
    torch.set_num_threads(1)
    swap(torch.cuda, "get_device_capability", lambda *_, **__: (10, 0), BLACKWELL)
    for name in ("empty_cache", "synchronize"):
        swap(torch.cuda, name, lambda *_, **__: None, "there is no GPU")
    swap(torch.cuda, "Stream", Anything, "there is no GPU")
    swap(torch.cuda, "current_device", lambda: "cpu", "there is no GPU")
    if not hasattr(torch.cpu, "empty_cache"):
        torch.cpu.empty_cache = lambda: None
    swap(torch.Tensor, "cuda", lambda self, *_, **__: self, "there is no GPU")
    importlib.import_module("sglang")
    note("concurrent.futures", "weights are copied in the calling thread")
    context = try_import("sglang.srt.runtime_context")
    if context is not None and hasattr(context, "override_platform"):
        start_context(context)
    else:
        start_globals()
    loader = importlib.import_module("sglang.srt.model_loader.loader")
    swap(loader, "get_device_capability", lambda *_, **__: (10, 0), BLACKWELL)
    importlib.import_module("sglang.srt.layers.quantization.modelopt_quant")
    replace_leaves_of_attention()
    importlib.import_module("sglang.srt.models.registry")
    stand_in_for_casts()
    tell_padding()
    for module in imported("sglang.srt.models"):
        swap(module, "_require_cuda", lambda *_, **__: None, "there is no GPU")


def tell_padding() -> None:
    """Let the engine say of a tensor that it fills up with zeros, because too little is stored, that it did."""
    name = "pad_or_narrow_weight"
    for module in imported("sglang.srt.layers"):
        pad = getattr(module, name, None)
        if pad is not None and not hasattr(pad, "__wrapped__"):

            @functools.wraps(pad)
            def padded(*given: Any, pad: Any = pad, **named: Any) -> Any:
                return mark_filled(pad(*given, **named))

            swap(module, name, padded, "what it fills up with zeros is noted")


def stand_in_for_casts() -> None:
    """Let 16-bit weights be turned into 8-bit ones after loading, where the package for it is missing.

    It comes when the engine has found by itself that its kernels are not there.
    """
    name = "deep_gemm"
    if importlib.util.find_spec(name) is None:
        module = types.ModuleType(name)
        module.per_block_cast_to_fp8 = lambda weight, *_, **__: (weight, weight)
        sys.modules[name] = module
        note(name, "weights are not turned into 8-bit ones after loading")


def replace_leaves_of_attention() -> None:
    """Let rotary embeddings be made on the CPU, and the indexer be built as on a GPU, where it fuses two layers."""
    for name in ("sglang.srt.layers.rotary_embedding", "sglang.srt.layers.rotary_embedding.rope_variant"):
        swap(try_import(name), "get_device", lambda *_, **__: "cpu", "there is no GPU")
    for name in ("nsa.nsa_indexer", "dsa.dsa_indexer"):
        indexer = try_import(f"sglang.srt.layers.attention.{name}")
        swap(indexer, "_is_cuda", value=True, why=BLACKWELL)
        swap(indexer, "resolve_num_sms", lambda *_, **__: 148, BLACKWELL)
        if indexer is not None:
            indexer.deep_gemm = types.SimpleNamespace(get_num_sms=lambda: 148)


def allow_known_configurations() -> None:
    """Let the engine register configuration classes whose names a newer transformers already has."""
    transformers = importlib.import_module("transformers")
    register = transformers.AutoConfig.register

    def register_again(kind: str, config: Any, exist_ok: bool = False) -> None:
        del exist_ok
        with contextlib.suppress(ValueError):
            register(kind, config, exist_ok=True)

    swap(transformers.AutoConfig, "register", staticmethod(register_again), "a name already there is no error")


def start_context(context: Any) -> None:
    """Form a group of one and the runtime context of a worker, as from 0.5.19 on."""
    state = importlib.import_module("sglang.srt.distributed.parallel_state")
    context.override_platform(is_blackwell=True, is_sm100=True).install()
    note("runtime_context", BLACKWELL)
    context.get_context().override_server_args(model_path="none", device="cuda").install()
    join_group(state)
    parallel = context.get_parallel()
    if not hasattr(context, "derive_spawn_ranks"):
        return
    sizes = ("tp_size", "ep_join_rank_offset", "attn_cp_size", "attn_tp_size", "moe_dp_size", "moe_ep_size")
    ranks = context.derive_spawn_ranks(world_rank=0, **{name: getattr(parallel, name) for name in sizes})
    ranks.update(dp_rank=None, launch_world_rank=0, attn_dcp_rank=0)
    ranks.update(context._attention_ranks(parallel, 0))
    parallel.override_permanently(**ranks)


def start_globals() -> None:
    """Form a group of one and set the global arguments of a worker, as up to 0.5.18."""
    arguments = importlib.import_module("sglang.srt.server_args")
    quantization = "sglang.srt.layers.quantization"
    for name in (
        "sglang.srt.utils.common",
        "sglang.srt.utils",
        f"{quantization}.modelopt_quant",
        f"{quantization}.compressed_tensors.compressed_tensors",
        "sglang.srt.layers.moe.fused_moe_triton.layer",
    ):
        module = try_import(name)
        for question in ("is_blackwell_supported", "is_sm100_supported"):
            swap(module, question, lambda *_, **__: True, BLACKWELL)
        swap(module, "is_sm120_supported", lambda *_, **__: False, BLACKWELL)
    given = arguments.ServerArgs(model_path="dummy")
    values = {"device": "cuda", "moe_runner_backend": "auto", "moe_a2a_backend": "none", "attention_backend": "triton"}
    for name, value in values.items():
        with contextlib.suppress(AttributeError, TypeError):
            object.__setattr__(given, name, value)
    arguments.set_global_server_args_for_scheduler(given)
    context = try_import("sglang.srt.runtime_context")
    if context is not None and hasattr(context.get_context(), "set_server_args"):
        context.get_context().set_server_args(given)
    join_group(importlib.import_module("sglang.srt.distributed.parallel_state"))
    attention = importlib.import_module("sglang.srt.layers.dp_attention")
    config = types.SimpleNamespace(hidden_size=128, dtype=None, hf_config=None)
    try:
        attention.initialize_dp_attention(given, config)
    except Exception:  # noqa: BLE001 - it asks the scheduler's groups, which a group of one does not have
        for name in ("_ATTN_DP_RANK", "_ATTN_TP_RANK", "_LOCAL_ATTN_DP_RANK"):
            setattr(attention, name, 0)
        for name in ("_ATTN_TP_SIZE", "_ATTN_DP_SIZE", "_LOCAL_ATTN_DP_SIZE"):
            setattr(attention, name, 1)
        attention._ENABLE_DP_ATTENTION_FLAG = False
        note("sglang.srt.layers.dp_attention", "a group of one")
    experts = try_import("sglang.srt.layers.moe.utils")
    if experts is not None and hasattr(experts, "initialize_moe_config"):
        experts.initialize_moe_config(given)


def join_group(state: Any) -> None:
    """Form a group of one, as every worker does before it loads."""
    with tempfile.NamedTemporaryFile(delete=False) as file:
        method = f"file://{file.name}"
    state.init_distributed_environment(
        world_size=1, rank=0, local_rank=0, backend="gloo", distributed_init_method=method
    )
    known = inspect.signature(state.initialize_model_parallel).parameters
    state.initialize_model_parallel(**({"backend": "gloo"} if "backend" in known else {}))


class SerialExecutor:
    """Does at once, in the calling thread, what a pool of threads would do; errors still come out of the futures."""

    watch = Watch()

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever a pool takes."""

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to wait for."""

    def shutdown(self, *_: Any, **__: Any) -> None:
        """There is nothing to end."""

    def submit(self, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Return a finished future; what it raises remembers which tensor was looked at."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(function(*given, **named))
        except Exception as error:  # noqa: BLE001 - a future keeps whatever was raised
            error.while_loading = marked((*given, *named.values())) or self.watch.tensor
            future.set_exception(error)
        return future


@contextlib.contextmanager
def one_thread(watch: Watch) -> Iterator[None]:
    """Copy weights in the calling thread, where every write is seen, in the order in which they were handed out."""
    pool, wait = concurrent.futures.ThreadPoolExecutor, concurrent.futures.as_completed
    SerialExecutor.watch = watch
    concurrent.futures.ThreadPoolExecutor = SerialExecutor  # type: ignore[assignment]
    concurrent.futures.as_completed = lambda futures: iter(list(futures))  # type: ignore[assignment]
    try:
        yield
    finally:
        concurrent.futures.ThreadPoolExecutor, concurrent.futures.as_completed = pool, wait
