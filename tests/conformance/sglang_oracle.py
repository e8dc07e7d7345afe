"""Ask SGLang what it does with a checkpoint: builds and loads target and MTP draft, without a GPU.

Runs in an interpreter that has SGLang's own dependencies (an environment of vLLM has nearly all of them), on an
unpacked wheel:

    ENVIRONMENT/bin/python sglang_oracle.py --source WHEEL_FOLDER CHECKPOINT ... > answers.jsonl

Everything that decides is the engine's: its configuration and the change of architecture for a draft, its choice of
quantization, its lists and mappers, its model classes, its weight iterator and `load_weights`, its sharing of embedding
and head. Replaced are packages and leaves that need a GPU; each answer lists them. Weights are not repacked after
loading. The form of the answers is that of `oracle.py`, which also watches every write.
"""

# Runs in the engine's interpreter: the one that checks types has none of its packages.
# mypy: disable-error-code="import-not-found,no-untyped-call,misc,no-any-return,attr-defined"

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import enum
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import signal
import sys
import tempfile
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

sys.path.insert(0, str(Path(__file__).parent))
import oracle
from oracle import PATCHES, Watch, answer, attempt, swap, try_import, watch_writes

ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "LOCAL_RANK": "0",
    "MASTER_ADDR": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "RANK": "0",
    "SGLANG_LOG_LEVEL": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_OFFLINE": "1",
    "WORLD_SIZE": "1",
}
ABSENT = ("orjson", "IPython")
"""Packages that loading never calls: where one is not installed its name stands for anything."""

MADE_LATER = ("_blockscale_swizzled", "_scale_swizzled")
"""Parameters that are worked out from others after loading."""

# ------------------------------------------------------------------------------------- packages that are not there


class Anything:
    """Stands where an object of an absent package would: it can be called, indexed, iterated and inherited from."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever is given."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        if len(given) == 1 and callable(given[0]) and not named:
            return given[0]  # as a decorator it changes nothing
        return Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __mro_entries__(self, _bases: Any) -> tuple[type, ...]:
        return (object,)

    def __getitem__(self, _key: Any) -> Any:
        return Anything()

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __or__(self, other: Any) -> Any:
        return other

    def __ror__(self, other: Any) -> Any:
        return other


class AbsentModule(types.ModuleType):
    """A module of an absent package: names in capitals are classes, all others anything."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        value = type(name, (), {}) if name[:1].isupper() else Anything()
        setattr(self, name, value)
        return value


class AbsentPackages(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules of packages that are not installed, after every other finder failed."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        del path, target
        if fullname.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        module = AbsentModule(spec.name)
        module.__dict__.update(__path__=[], __version__="0.0.0")
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave the module as it was created."""


def stand_in_for_packages(names: tuple[str, ...]) -> None:
    """Let names of absent packages be imported, and say which packages they were."""
    missing = tuple(name for name in names if importlib.util.find_spec(name) is None)
    sys.meta_path.append(AbsentPackages(missing))
    PATCHES.extend(f"{name}: not installed, and not called while loading" for name in missing)
    if importlib.util.find_spec("gguf") is None:
        module = AbsentModule("gguf")
        kinds = ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K")
        more = ("Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S", "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS")
        every = [*kinds, *more, "I8", "I16", "I32", "I64", "F64", "IQ1_M", "TQ1_0", "TQ2_0", "MXFP4"]
        module.__dict__["__path__"] = []
        module.__dict__["GGMLQuantizationType"] = enum.IntEnum(
            "GGMLQuantizationType", {kind: place for place, kind in enumerate(every)}
        )
        sys.modules["gguf"] = module
        PATCHES.append("gguf: not installed, and not called while loading")


# ------------------------------------------------------------------------------------------- GPU-only leaves


def prepare_engine(source: Path) -> str:
    """Import the engine from its unpacked wheel and replace what needs a GPU; return its version."""
    import torch

    oracle.WATCHING.ignores_inputs = ignores_inputs
    oracle.TORCHVISION = oracle.declare_torchvision()
    old = not (source / "sglang" / "kernels").exists()
    stand_in_for_packages((*ABSENT, "sgl_kernel") if old else ABSENT)
    sys.path.insert(0, str(source))
    transformers = importlib.import_module("transformers")
    register = transformers.AutoConfig.register

    def register_again(kind: str, config: Any, exist_ok: bool = False) -> None:
        del exist_ok
        with contextlib.suppress(ValueError):
            register(kind, config, exist_ok=True)

    transformers.AutoConfig.register = staticmethod(register_again)
    PATCHES.append("AutoConfig.register: a name that a newer transformers already has is no error")
    torch.set_num_threads(1)
    swap(torch.cuda, "get_device_capability", lambda *_, **__: (10, 0), "a Blackwell GPU is assumed")
    for name in ("empty_cache", "synchronize"):
        swap(torch.cuda, name, lambda *_, **__: None, "there is no GPU")
    torch.Tensor.cuda = lambda self, *_, **__: self  # type: ignore[method-assign]
    PATCHES.append("torch.Tensor.cuda: there is no GPU")
    package = importlib.import_module("sglang")
    PATCHES.append("concurrent.futures: weights are copied in the calling thread")
    start = start_context if try_import("sglang.srt.runtime_context") and has_platform() else start_globals
    start()
    loader = importlib.import_module("sglang.srt.model_loader.loader")
    swap(loader, "get_device_capability", lambda *_, **__: (10, 0), "a Blackwell GPU is assumed")
    importlib.import_module("sglang.srt.layers.quantization.modelopt_quant")
    importlib.import_module("sglang.srt.models.registry")
    return str(package.__version__)


def ignores_inputs(module: Any) -> bool:
    """Return whether a layer multiplies packed weights with 16-bit inputs, and so drops any scale of theirs."""
    return "A16" in type(getattr(module, "quant_method", None)).__name__


def has_platform() -> bool:
    """Return whether this release keeps its platform in the runtime context, from 0.5.19 on."""
    return hasattr(importlib.import_module("sglang.srt.runtime_context"), "override_platform")


def start_context() -> None:
    """Form a group of one and the runtime context of a worker, as from 0.5.19 on."""
    context = importlib.import_module("sglang.srt.runtime_context")
    state = importlib.import_module("sglang.srt.distributed.parallel_state")
    context.override_platform(is_blackwell=True, is_sm100=True).install()
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
            swap(module, question, lambda *_, **__: True, "a Blackwell GPU is assumed")
        swap(module, "is_sm120_supported", lambda *_, **__: False, "a Blackwell GPU is assumed")
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
        PATCHES.append("dp_attention: a group of one")
    experts = try_import("sglang.srt.layers.moe.utils")
    if experts is not None and hasattr(experts, "initialize_moe_config"):
        experts.initialize_moe_config(given)


def join_group(state: Any) -> None:
    """Form a group of one."""
    state.init_distributed_environment(world_size=1, rank=0, local_rank=0, backend="gloo")
    known = inspect.signature(state.initialize_model_parallel).parameters
    state.initialize_model_parallel(**({"backend": "gloo"} if "backend" in known else {}))


class SerialExecutor:
    """Does at once, in the calling thread, what a pool of threads would do; errors still come out of the futures."""

    watch = Watch()

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever a pool takes."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to wait for."""

    def shutdown(self, *_: Any, **__: Any) -> None:
        """There is nothing to end."""

    def submit(self, function: Callable[..., Any], *given: Any, **named: Any) -> Any:
        """Return a finished future."""
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        try:
            future.set_result(function(*given, **named))
        except Exception as error:  # noqa: BLE001 - a future keeps whatever was raised
            error.while_loading = self.watch.tensor
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


# ------------------------------------------------------------------------------------------------- loading


def model_configuration(checkpoint: str, *, draft: bool) -> Any:
    """Return the engine's configuration of the target, or of the draft that lies in the same checkpoint."""
    from sglang.srt.configs.model_config import ModelConfig

    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    options: dict[str, Any] = {
        "dtype": "bfloat16",
        "is_draft_model": draft,
        "speculative_algorithm": "EAGLE",
        "trust_remote_code": "auto_map" in config,
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


def load_model(checkpoint: str, watch: Watch, *, draft: bool, index: int | None = None) -> Any:
    """Build one model and load its weights as the engine's default loader does, up to repacking."""
    import torch
    from sglang.srt.configs.load_config import LoadConfig
    from sglang.srt.model_loader import loader as engine

    torch.set_default_dtype(torch.bfloat16)
    configuration = model_configuration(checkpoint, draft=draft)
    options = {"draft_model_idx": index} if index is not None else {}
    loading = LoadConfig(**options)
    default = engine.DefaultModelLoader(loading)
    with torch.device("cpu"):
        model = construct(engine, configuration, loading, watch)
    watch.built(model)
    if hasattr(model, "post_load_weights"):
        model.post_load_weights = lambda *_, **__: None
    try:
        with one_thread(watch), watch_writes(watch):
            model.load_weights(watch.tap(default._get_all_weights(configuration, model)))
    except Exception as error:
        watch.tensor = getattr(error, "while_loading", watch.tensor)
        raise
    finally:
        watch.measure()
        forget(watch, {name for name in watch.shapes if name.endswith(MADE_LATER)})
    watch.phase = "share"
    return model


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


def draft_indices(checkpoint: str) -> list[int | None]:
    """Return the numbers of the draft models that the engine loads one by one, or None for a single one."""
    import torch
    from sglang.srt.model_loader.utils import get_model_architecture

    torch.set_default_dtype(torch.bfloat16)
    kind, _ = get_model_architecture(model_configuration(checkpoint, draft=True))
    if "draft_model_idx" not in inspect.signature(kind.__init__).parameters:
        return [None]
    config = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    return list(range(int(text.get("num_nextn_predict_layers") or 1)))


def share(target: Any, draft: Any) -> None:
    """Put the target's embedding and head in the draft's place, as its worker does after loading."""
    draft.set_embed_and_head(*target.get_embed_and_head())
    head = getattr(target, "lm_head", None)
    if head is not None and hasattr(draft, "set_lm_head_from_target"):
        draft.set_lm_head_from_target(head)


def replaced(model: Any, watch: Watch) -> set[str]:
    """Return the parameters that sharing took out of a model or put other storage behind.

    Scales beside a weight that became one of 16 bits count as well: the engine passes over them from then on.
    """
    now = dict(model.named_parameters())
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


def load(checkpoint: str) -> dict[str, Any]:
    """Load target and draft of one checkpoint; the draft is loaded whatever became of the target."""
    from sglang.srt.models.registry import ModelRegistry

    architectures = json.loads((Path(checkpoint) / "config.json").read_text(encoding="utf-8"))["architectures"]
    if not set(architectures) & set(ModelRegistry.get_supported_archs()):
        return {"unsupported": architectures}
    target, models = Watch(), {}

    def load_target() -> None:
        models["target"] = load_model(checkpoint, target, draft=False)

    failed = attempt(load_target)
    result: dict[str, Any] = {"target": answer(target, failed)}
    indices: list[int | None] = [None]
    refused = attempt(lambda: indices.__setitem__(slice(None), draft_indices(checkpoint)))
    answers = []
    for index in indices:
        draft = Watch()

        def load_draft(draft: Watch = draft, index: int | None = index) -> None:
            models["draft"] = load_model(checkpoint, draft, draft=True, index=index)
            if "target" in models or target.model is not None:
                share(models.get("target", target.model), models["draft"])
                forget(draft, replaced(models["draft"], draft))

        answers.append(answer(draft, refused or attempt(load_draft)))
    draft_answer = joined(answers)
    alone = target.model is None and draft_answer["verdict"] != "fails"  # nothing there that it could share
    result["draft"] = None if alone else draft_answer
    return result


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


# --------------------------------------------------------------------------------------------------- process


def in_child(work: Callable[[], dict[str, Any]], limit: int) -> dict[str, Any]:
    """Do the work in a forked child and return its answer; `limit` is in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "answer.json"
        child = os.fork()
        if child == 0:
            signal.alarm(limit)
            try:
                path.write_text(json.dumps(work()), encoding="utf-8")
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
    parser.add_argument("--source", type=Path, required=True, help="folder of an unpacked wheel of sglang")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one checkpoint")
    options = parser.parse_args()
    os.environ.setdefault("MASTER_PORT", str(20000 + os.getpid() % 20000))
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever the engine prints goes to stderr
    version = prepare_engine(options.source.resolve())
    import torch
    import transformers

    for checkpoint in options.checkpoints:
        start = time.monotonic()
        head = {
            "checkpoint": checkpoint,
            "sglang": version,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "patches": PATCHES,
        }
        found = in_child(lambda checkpoint=checkpoint: load(checkpoint), options.limit)
        out.write(json.dumps({**head, **found, "seconds": round(time.monotonic() - start, 1)}) + "\n")
        out.flush()


if __name__ == "__main__":
    main()
