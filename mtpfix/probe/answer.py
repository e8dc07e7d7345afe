"""From what a probe wrote to what is known of a model; a stranger's program wrote it, so nothing is taken on trust."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mtpfix.model import BuiltModule, Observation, Role, Verdict

VERDICTS = {"fails": Verdict.FAILS, "loads": Verdict.LOADS, "silent": Verdict.SILENT}


def observation(role: Role, found: Mapping[str, Any], stand_ins: tuple[str, ...], here: str, real: str) -> Observation:
    """Return what a model did; `here` is the folder that the engine was shown, `real` the checkpoint's own.

    An error that names an attribute of a stand-in's says nothing of the checkpoint: the verdict is then unknown.
    """

    def text(value: object) -> str:
        return str(value or "").replace(here, real)

    error = found.get("error")
    error = error if isinstance(error, Mapping) else {}
    verdict = VERDICTS.get(str(found.get("verdict")), Verdict.UNKNOWN)
    said, reason = text(error.get("text")), ""
    if error.get("class") == "AttributeError" and (name := next((one for one in stand_ins if one in said), None)):
        verdict = Verdict.UNKNOWN
        reason = f"the checkpoint's own configuration class, which is not run, would have had it: {name}: {said}"
    misread = found.get("misread")
    return Observation(
        role=role,
        verdict=verdict,
        phase=str(found.get("phase", "")),
        error=str(error.get("class", "")),
        text=said,
        tensor=str(found["tensor"]) if found.get("tensor") is not None else None,
        frames=tuple(text(frame) for frame in _list(error.get("at"))),
        model_class=str(found["class"]) if found.get("class") is not None else None,
        modules=tuple(_module(one) for one in _list(found.get("modules")) if isinstance(one, Mapping)),
        unwritten=tuple(map(str, _list(found.get("unwritten")))),
        partial=tuple(map(str, _list(found.get("partial")))),
        misread={str(key): str(value) for key, value in misread.items()} if isinstance(misread, Mapping) else {},
        untaken=len(_list(found.get("untaken"))),
        reason=reason,
    )


def _module(found: Mapping[str, Any]) -> BuiltModule:
    return BuiltModule(*(str(found.get(key, "")) for key in ("prefix", "path", "layer", "format")))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []
