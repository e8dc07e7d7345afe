"""Which engines an interpreter has, without importing any: importing one takes long and may fail."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from typing import Any


def detect(packages: dict[str, list[str]]) -> dict[str, Any]:
    """Return the interpreter's version and the engines it has; `packages` are distributions by import name."""
    return {
        "python": ".".join(map(str, sys.version_info[:3])),
        "executable": sys.executable,
        "engines": {
            package: {"version": _version((package, *distributions)), "place": place}
            for package, distributions in packages.items()
            if (place := _place(package)) is not None
        },
        "libraries": {name: version for name in ("torch", "transformers") if (version := _version((name,)))},
    }


def _place(package: str) -> str | None:
    """Return where a package lies, None where there is none (or only an empty folder of that name)."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return found.origin if found is not None else None


def _version(distributions: tuple[str, ...]) -> str | None:
    for name in distributions:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
