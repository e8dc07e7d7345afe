"""A folder that stands for a checkpoint: its files as links, and a configuration that names no code.

An engine reads and may write only here. Python files, and weights in formats that execute code, are left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpfix.errors import NothingToCheck
from mtpfix.families import count_layers, main_model, options_for

LEFT_OUT = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".py", ".pyc"}
CODE_KEYS = ("auto_map", "custom_pipelines", "trust_remote_code")
"""Keys of a configuration that name code."""


@dataclass(frozen=True, slots=True)
class Stage:
    """`foreign` is whether the checkpoint brings its own configuration class; `left_out` are files not shown.

    `layers` is how many MTP layers its configuration counts. `main` is the folder of a small main model, without
    weights, where the checkpoint is a draft alone. `options` are, by engine, what it has to be started with.
    """

    folder: Path
    foreign: bool
    left_out: tuple[str, ...]
    layers: int
    main: Path | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


def set_up(checkpoint: Path, folder: Path) -> Stage:
    """Fill an empty folder with what an engine may see of a checkpoint."""
    if not (checkpoint / "config.json").is_file():
        raise NothingToCheck(f"{checkpoint} has no config.json", "engines load nothing without one")
    left_out = []
    foreign, layers = False, 1
    main: Path | None = None
    options: Mapping[str, Any] = {}
    for path in sorted(checkpoint.iterdir()):
        if path.name.startswith(".") or not path.is_file():
            continue
        if path.suffix.lower() in LEFT_OUT:
            left_out.append(path.name)
            continue
        if path.name == "config.json":
            with suppress(OSError, ValueError, RecursionError):
                config = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(config, dict):
                    auto_map = config.get("auto_map")
                    foreign = isinstance(auto_map, dict) and "AutoConfig" in auto_map
                    layers = count_layers(config)
                    main = _beside(config, folder)
                    options = options_for(config)
                    (folder / path.name).write_text(json.dumps(without_code(config), indent=2), encoding="utf-8")
                    continue
        (folder / path.name).symlink_to(path.resolve())
    return Stage(folder, foreign, tuple(left_out), layers, main, options)


def _beside(config: dict[str, Any], folder: Path) -> Path | None:
    """Write the configuration of a small main model beside a drafter's folder, and return where."""
    model = main_model(config)
    if model is None:
        return None
    place = folder.with_name(f"{folder.name}-main")
    place.mkdir()
    (place / "config.json").write_text(json.dumps(without_code(model), indent=2), encoding="utf-8")
    return place


def without_code(value: Any) -> Any:
    """Return a configuration without the keys that name code, at any depth."""
    if isinstance(value, dict):
        return {key: without_code(below) for key, below in value.items() if key not in CODE_KEYS}
    return [without_code(below) for below in value] if isinstance(value, list) else value
