"""What `mtpfix doctor` tells: which code converts tensors on this machine, and why, for people and for machines."""

from __future__ import annotations

import json
import platform
from typing import Literal

from mtpfix import __version__
from mtpfix.nvfp4.paths import Place, Survey

PLACES: dict[Place, str] = {"cpu": "in main memory", "cuda": "on a GPU"}


def render(survey: Survey, shape: Literal["text", "json"]) -> str:
    """Return the survey as text, or as one JSON object."""
    return as_json(survey) if shape == "json" else as_text(survey)


def as_json(survey: Survey) -> str:
    """Return the survey as one JSON object, the routes in the order of preference."""
    routes = [
        {
            "place": route.place,
            "name": route.name,
            "title": route.title,
            "runs": route.runs,
            "chosen": route is survey.chosen(route.place),
            "why": route.why,
        }
        for route in survey.routes
    ]
    machine = {"python": platform.python_version(), "system": platform.system(), "machine": platform.machine()}
    content = {"schema": 1, "version": __version__, **machine, "torch": survey.torch, "routes": routes}
    return json.dumps(content, indent=2) + "\n"


def as_text(survey: Survey) -> str:
    """Return the survey in lines: for each place what converts tensors there, then what does not, and why."""
    lines = [
        f"mtpfix {__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
        f"PyTorch {survey.torch}" if survey.torch else "PyTorch is not installed: pip install 'mtpfix[quantize]'",
    ]
    for place, where in PLACES.items():
        chosen = survey.chosen(place)
        lines += ["", f"NVFP4, tensors {where}: {chosen.title if chosen else 'cannot be converted'}"]
        if chosen:
            lines.append(f"  because {chosen.why}")
        for route in survey.routes:
            if route.place == place and route is not chosen:
                state = "also there" if route.runs else "not used"
                lines.append(f"  {state}: {route.title}: {route.why}")
    return "\n".join(lines) + "\n"
