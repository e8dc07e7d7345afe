"""What is replaced in an engine, and why: only leaves that need a GPU, each written down as it is replaced."""

# Half of what it calls is known in the engine's interpreter alone.
# mypy: disable-error-code="attr-defined,misc,no-any-return,no-untyped-call"

from __future__ import annotations

import importlib
import pkgutil
import sys
from types import ModuleType
from typing import Any

PATCHES: list[str] = []
"""What was replaced, as sentences `what: why`, in order."""


def try_import(name: str) -> ModuleType | None:
    """Return a module, or None where this release does not have it, or a library that it loads is not there."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError):
        return None


def note(what: str, why: str) -> None:
    """Write down one replacement, once."""
    if (text := f"{what}: {why}") not in PATCHES:
        PATCHES.append(text)


def swap(owner: Any, name: str, value: Any, why: str) -> None:
    """Put `value` in the place of an attribute that is there, and write down why."""
    if owner is not None and hasattr(owner, name):
        setattr(owner, name, value)
        note(f"{owner.__name__}.{name}", why)


def submodules(package: str) -> list[str]:
    """Return the names of a package and the modules in it; of a plain module, its own."""
    module = try_import(package)
    below = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", ()))]
    return [package, *(f"{package}.{name}" for name in below)]


def imported(prefix: str) -> list[ModuleType]:
    """Return the imported modules below a package."""
    return [module for name, module in list(sys.modules.items()) if name.startswith(prefix)]


def descendants(base: type | None) -> list[type]:
    """Return all subclasses of a class, at any depth."""
    found: list[type] = []
    below: type
    for below in base.__subclasses__() if base is not None else ():
        found += [below, *descendants(below)]
    return found


class Permissive(type):
    """A class whose every unknown attribute is a function that answers no."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_, **__: False


class Kernel(metaclass=Permissive):
    """Stands where a GPU kernel would: it is chosen, and where a layer is run to get its weight back, gives zeros."""

    supports_pre_processed_weights = False

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever a kernel takes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def process_weights_after_loading(self, *_: Any, **__: Any) -> None:
        """Leave the weights as they were loaded."""

    def apply_weights(self, layer: Any, x: Any, *_: Any, **__: Any) -> Any:
        """Return zeros of the shape of the layer's output."""
        return x.new_zeros((*x.shape[:-1], layer.output_size_per_partition))

    def input_quant_key(self, *_: Any, **__: Any) -> None:
        """Ask for no quantized input."""


def declare_torchvision() -> Any:
    """Declare the two operators that torchvision's Python asks for; its compiled part may want another torch."""
    import contextlib

    from torch import library

    operators = library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        with contextlib.suppress(RuntimeError):
            operators.define(schema)
    note("torchvision", "operator schemas declared without their kernels")
    return operators
