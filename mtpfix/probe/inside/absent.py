"""Packages that an engine imports and loading never calls: where one is missing, its name stands for anything.

Which packages these are, an engine's own module says. One that is installed and cannot be imported (because a compiled
part of it wants a GPU's libraries) counts as missing.
"""

# Half of what it calls is known in the engine's interpreter alone.
# mypy: disable-error-code="no-any-return"

from __future__ import annotations

import enum
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Iterator, Sequence
from typing import Any

from .patches import note

WHY = "cannot be imported here, and is not called while loading"


class Anything:
    """Stands where an object of an absent package would: it can be called, indexed, iterated and inherited from."""

    def __init__(self, *_: Any, **__: Any) -> None:
        """Take whatever is given."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Return what was given where that can only be a function to decorate, else anything."""
        if len(given) == 1 and callable(given[0]) and not named:
            return given[0]
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
    """Finds the modules of packages, before any other finder does."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = frozenset(names)

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        """Return how to make a module of these packages."""
        del path, target
        if fullname.partition(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> types.ModuleType:
        """Make a module that has every name."""
        module = AbsentModule(spec.name)
        module.__dict__.update(__path__=[], __version__="0.0.0")
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Leave the module as it was created."""


def stand_in(names: Sequence[str]) -> None:
    """Let packages be imported that are not there, or cannot be."""
    missing = [name for name in names if not is_usable(name)]
    sys.meta_path.insert(0, AbsentPackages(missing))
    for name in missing:
        note(name, WHY)


def is_usable(name: str) -> bool:
    """Return whether a package can be imported; what a failed import left behind is taken away."""
    if importlib.util.find_spec(name) is None:
        return False
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001 - compiled parts raise anything
        for left in [one for one in sys.modules if one == name or one.startswith(f"{name}.")]:
            del sys.modules[left]
        return False
    return True


def stand_in_with_kinds(name: str, enumeration: str, kinds: Sequence[str]) -> None:
    """Let a package be imported of which the members of one enumeration are looked at."""
    if is_usable(name):
        return
    module = AbsentModule(name)
    members = {kind: place for place, kind in enumerate(kinds)}
    module.__dict__.update({"__path__": [], enumeration: enum.IntEnum(enumeration, members)})
    sys.modules[name] = module
    note(name, WHY)
