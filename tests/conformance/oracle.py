"""The probe's words for scripts beside this one, which run in an engine's interpreter and have no `mtpfix` to import.

What was here lies in `mtpfix/probe/inside`: what every engine needs in `patches` and `watch`, vLLM's own in
`vllm_leaves` and `vllm_load`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

_INSIDE = Path(__file__).resolve().parents[2] / "mtpfix" / "probe" / "inside"


def _package() -> str:
    name = "mtpfix_probe"
    found: Any = importlib.util.spec_from_file_location(
        name, _INSIDE / "__init__.py", submodule_search_locations=[str(_INSIDE)]
    )
    sys.modules[name] = importlib.util.module_from_spec(found)
    return name


_NAME = _package()
_patches: Any = importlib.import_module(f"{_NAME}.patches")
WATCHING: Any = importlib.import_module(f"{_NAME}.watch")
PATCHES, swap, try_import, declare_torchvision = (
    _patches.PATCHES,
    _patches.swap,
    _patches.try_import,
    _patches.declare_torchvision,
)
Watch, answer, attempt, watch_writes = WATCHING.Watch, WATCHING.answer, WATCHING.attempt, WATCHING.watch_writes
TORCHVISION: Any = None
