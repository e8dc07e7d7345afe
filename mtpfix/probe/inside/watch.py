"""What one model does while it is built and loaded: its modules, its parameters, and every write into them.

Silent damage is measured, not asked: every write into a parameter is seen, so a parameter that nobody wrote, wrote in
part, or wrote with numbers of another kind (packed codes into 16-bit weights) or with a part of a larger tensor, is
known by name. The same for every engine: knows torch alone.
"""

# Half of what it calls is known in the engine's interpreter alone.
# mypy: disable-error-code="attr-defined,misc,no-any-return,no-untyped-call"

from __future__ import annotations

import contextlib
import re
import sys
import sysconfig
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from .coverage import Region, covers
from .hollow import Arena

CACHE_SCALE = re.compile(r"\.(k|v|q|prob)_(scale|zero_point)(_float)?$")
"""Scales of the key and value cache: engines have defaults for them."""

MADE_LATER = re.compile(r"(?:^|\.)w(?:13|2)_(?:bias|g_idx_sort_indices)$")
"""Parameters of packed experts that are zero where no tensor comes, or worked out after loading."""
LAST = 2
"""How many tensors may still be there when a loader is done that copies each as it comes."""
FRAMES = 4
"""Innermost frames of an exception that are told."""


def kind_of(dtype: Any) -> str:
    """Return what kind of numbers a type holds: packed or whole integers, 8-bit floats, or wider floats."""
    text = str(dtype)
    if "float8" in text:
        return "float8"
    return "float" if "float" in text else "integer"


def ignores_inputs(module: Any) -> bool:
    """Return whether a layer multiplies packed weights with 16-bit inputs, and so drops any scale of theirs."""
    method = getattr(module, "quant_method", None)
    sixteen = "A16" in type(method).__name__ or getattr(method, "use_a16", False)
    return bool(sixteen) or getattr(getattr(method, "spec", None), "activation", True) is None


def in_order(module: Any) -> bool:
    """Return whether a layer packed by GPTQ reads the order of its columns."""
    configuration = getattr(getattr(module, "quant_method", None), "quant_config", None)
    return bool(getattr(configuration, "desc_act", True))


def floored(parameter: Any) -> bool:
    """Return whether a parameter begins as the lowest number, so that its maximum ignores what nobody writes."""
    import torch

    lowest = torch.finfo(torch.float32).min
    return parameter.dtype is torch.float32 and parameter.numel() < 64 and bool((parameter == lowest).all())


def mark(weight: Any, name: str) -> None:
    """Write its name on a tensor, for loaders that keep some back until all others were handed out."""
    with contextlib.suppress(AttributeError):
        weight.name_in_file = name


def mark_filled(weight: Any) -> Any:
    """Write on a tensor, and return it, that zeros were put where the file had too little."""
    weight.filled_with_zeros = True
    return weight


def marked(values: Iterable[Any]) -> str | None:
    """Return the name of the first tensor among some values that bears one."""
    import torch

    tensors = (value for value in values if isinstance(value, torch.Tensor))
    return next((value.name_in_file for value in tensors if hasattr(value, "name_in_file")), None)


def held(error: BaseException) -> str | None:
    """Return the name of the tensor that the innermost function which has one looked at when an error was raised.

    Functions further out may still have one that they were done with.
    """
    name = None
    step = error.__traceback__
    while step is not None:
        name = marked(list(step.tb_frame.f_locals.values())) or name
        step = step.tb_next
    return name


class Given:
    """A tensor that a model was passed, and which parts of it were copied into parameters."""

    def __init__(self, weight: Any) -> None:
        self.pointer = weight.untyped_storage().data_ptr()
        self.width = weight.element_size()
        self.begin = weight.storage_offset()
        self.whole: Region = (0, tuple(weight.size()), tuple(weight.stride()))
        self.regions: set[Region] = set()
        self.names: set[str] = set()

    def read(self, source: Any, name: str) -> None:
        """Remember a part of it that was copied into a parameter; what was computed from it is another tensor."""
        offset = source.storage_offset() - self.begin
        if source.untyped_storage().data_ptr() != self.pointer or source.element_size() != self.width or offset < 0:
            return
        self.regions.add((offset, tuple(source.size()), tuple(source.stride())))
        self.names.add(name)

    def cut(self) -> set[str]:
        """Return the parameters that were written, where the parts that were read do not make up the whole."""
        return self.names if self.regions and not covers(self.whole, self.regions) else set()


class Watch:
    """What one model does while it is built and loaded; `arena` holds what of it takes no memory."""

    def __init__(self, arena: Arena | None = None) -> None:
        self.arena = arena or Arena(None)
        self.phase = "construct"
        self.model: Any = None
        self.tensor: str | None = None
        self.kept_back = False
        """Whether tensors are still there after the last was handed out: the loader has yet to copy them."""
        self.seen: dict[str, bool] = {}
        self.asked: dict[int, tuple[Any, str]] = {}
        self.modules: list[dict[str, str]] = []
        self.storages: dict[int, str] = {}
        self.shapes: dict[str, Any] = {}
        self.floored: set[str] = set()
        self.regions: dict[int, set[Region]] = {}
        self.misread: dict[str, str] = {}
        self.owners: dict[str, Any] = {}
        self.padding: dict[str, int] = {}
        """By parameter: how many of its last rows are there for a kernel alone, so that no tensor fills them."""
        self.unwritten: list[str] = []
        self.partial: list[str] = []
        self.given: Given | None = None

    def built(self, model: Any, buffers: Iterable[str] = ()) -> None:
        """Take stock of a model whose weights are not loaded yet; `buffers` are watched as parameters are."""
        self.phase, self.model = "load", model
        own = ((name, buffer) for name, buffer in model.named_buffers() if name in buffers)
        for name, parameter in (*model.named_parameters(), *own):
            self.storages[parameter.untyped_storage().data_ptr()] = name
            self.shapes[name] = parameter
            if floored(parameter):
                self.floored.add(name)
            above = name.rpartition(".")[0]
            self.owners[name] = model.get_submodule(above) if above else model
        for path, module in model.named_modules():
            found = describe(path, module, self.asked.get(id(module), (None, None))[1])
            if found is not None:
                self.modules.append(found)

    def tap(self, weights: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
        """Pass weights on, remembering which one the model is looking at."""
        handed_out = []
        for name, weight in weights:
            self.settle()
            self.tensor = name
            self.seen.setdefault(name, False)
            mark(weight, name)
            self.given = Given(weight) if hasattr(weight, "untyped_storage") else None
            with contextlib.suppress(TypeError):
                handed_out.append(weakref.ref(weight))
            yield name, weight
        self.settle()
        self.tensor = None
        self.kept_back = sum(one() is not None for one in handed_out) > LAST

    def settle(self) -> None:
        """Judge the tensor that was passed on last: where a part of it was read, all of it must have been."""
        if self.given is not None:
            with self.arena.pause():
                self.misread.update(dict.fromkeys(self.given.cut(), "only a part of the tensor read"))
        self.given = None

    def written(self, target: Any, source: Any) -> None:
        """Remember that a region of a parameter was written, and with what kind of numbers."""
        pointer = target.untyped_storage().data_ptr()
        name = self.storages.get(pointer)
        if name is None:
            return
        region = (target.storage_offset(), tuple(target.size()), tuple(target.stride()))
        self.regions.setdefault(pointer, set()).add(region)
        if self.tensor is not None:
            self.seen[self.tensor] = True
        if self.given is not None and source is not None:
            self.given.read(source, name)
        if getattr(source, "filled_with_zeros", False):
            self.misread[name] = "filled with zeros where too little is stored"
        if name.endswith("_qzeros") and hasattr(self.owners[name], "w13_qweight"):
            return  # symmetric experts have the zero points of their type, and read none
        if hasattr(source, "dtype") and kind_of(source.dtype) != kind_of(target.dtype):
            self.misread[name] = f"{source.dtype} read as {target.dtype}".replace("torch.", "")

    def measure(self) -> None:
        """Work out which parameters were never written, or only in part."""
        with self.arena.pause():
            self._measure()

    def _measure(self) -> None:
        for name, parameter in self.shapes.items():
            if not parameter.numel():
                continue
            regions = self.regions.get(parameter.untyped_storage().data_ptr(), set())
            filled = (
                parameter.narrow(0, 0, parameter.shape[0] - self.padding[name]) if name in self.padding else parameter
            )
            if not filled.numel():
                continue  # it is what its constructor made it, whatever is stored
            whole = (filled.storage_offset(), tuple(filled.size()), tuple(filled.stride()))
            full = bool(regions) and covers(whole, regions)
            if full and self.arena.has_nan(parameter):
                self.arena.clear_nan(parameter)
            if full or CACHE_SCALE.search(name):
                continue
            if name.endswith("input_scale") and ignores_inputs(self.owners[name]):
                continue
            if MADE_LATER.search(name) and hasattr(self.owners[name], "w13_qweight"):
                continue
            if name.endswith("g_idx") and not in_order(self.owners[name]):
                continue
            now = dict(self.owners[name].named_parameters(recurse=False)).get(name.rpartition(".")[2])
            if now is not None and now.untyped_storage().data_ptr() not in self.storages:
                continue  # the loader put other storage in its place
            if not regions:
                self.unwritten.append(name)
            elif name not in self.floored:
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
    weights = [name for name in own if re.fullmatch(r"(w13_|w2_)?(weight(_packed)?|qweight)", name)]
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
    """Return the format that a module's parameters make, in the words of the caller's `Format`."""
    names = {re.sub(r"^(w13|w2)_", "", name) for name in parameters}
    weight = next(value for name, value in parameters.items() if re.search(r"weight(_packed)?$", name))
    if names & {"weight_scale_2", "weight_global_scale"}:
        inputs = names & {"input_scale", "input_global_scale"} and not weights_only
        return "nvfp4" if inputs else "nvfp4_a16"
    if {"qweight", "qzeros", "scales"} <= names:
        scales, zeros = (
            next(parameters[key] for key in parameters if key.endswith(end)) for end in ("scales", "qzeros")
        )
        return {8: "int4", 4: "int8"}.get(scales.shape[-1] // zeros.shape[-1], "unknown")
    if kind_of(weight.dtype) == "float8":
        if "weight_scale_inv" in names:
            return "fp8_block"
        return "fp8"
    short = {"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}
    return short.get(str(weight.dtype), "unknown")


def watch_writes(watch: Watch) -> Any:
    """Return a mode under which every write into a tensor is reported to `watch`, and large ones are hollow."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    aten = torch.ops.aten
    arena = watch.arena
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
            if func not in writes:
                return arena.call(func, args, kwargs or {})
            result = arena.write(func, args, kwargs or {})
            watch.written(args[0], args[1] if func is aten.copy_.default else None)
            return result

    return Writes()


# ------------------------------------------------------------------------------------------------ answering


def attempt(action: Callable[[], object]) -> Exception | None:
    """Return the exception that an action raised, or None."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is its answer
        return error
    return None


def explain(error: BaseException) -> dict[str, Any]:
    """Return class, text and innermost frames of an exception."""
    places = sorted({*sysconfig.get_paths().values(), *filter(None, sys.path)}, key=len, reverse=True)

    def relative(path: str) -> str:
        path = path.partition("site-packages/")[2] or path
        return next((path[len(place) + 1 :] for place in places if path.startswith(f"{place}/")), path)

    frames = traceback.extract_tb(error.__traceback__)
    at = [f"{relative(frame.filename)}:{frame.lineno}" for frame in frames if "/probe/inside/" not in frame.filename]
    return {"class": type(error).__name__, "text": str(error), "at": at[-FRAMES:]}


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
