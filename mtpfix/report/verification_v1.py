"""The JSON of a verification, schema version 1: keys may be added, none is removed or renamed."""

from __future__ import annotations

import json
from typing import Annotated, Literal, TypedDict

from mtpfix import __version__
from mtpfix.model import Observation, Verification
from mtpfix.report.json_v1 import Confidence, ToolV1


class ObservedModuleV1(TypedDict):
    """One module that the engine built."""

    prefix: Annotated[str, "the name with which it asked its quantization lists"]
    path: Annotated[str, "where it stands in the engine's model"]
    layer: Annotated[str, "its class"]
    format: str


class ObservationV1(TypedDict):
    """What the engine did with one model."""

    verdict: Literal["loads", "fails", "silent", "absent", "unknown"]
    reason: Annotated[str | None, "why the verdict is unknown"]
    phase: Annotated[str, "configure, construct, load, finish, share: where it raised; else done"]
    error: Annotated[str | None, "the exception's class"]
    text: Annotated[str | None, "its text, exactly"]
    tensor: Annotated[str | None, "the tensor being loaded when it was raised"]
    frames: Annotated[list[str], "file:line, the innermost last"]
    model_class: str | None
    unwritten: Annotated[list[str], "parameters that nobody wrote"]
    partial: Annotated[list[str], "parameters that were written in part"]
    misread: Annotated[dict[str, str], "parameters written with numbers of another kind, and which"]
    untaken: Annotated[int, "tensors that were offered to the model and not taken"]
    modules: list[ObservedModuleV1]


class PredictionV1(TypedDict):
    """What was predicted."""

    version: Annotated[str, "the known release compared with"]
    exact: Annotated[bool, "whether that is the very release that was asked"]
    confidence: Confidence
    target: str
    draft: str
    differences: Annotated[list[str], "sentences; each is a defect of mtpfix"]


class VerificationV1(TypedDict):
    """What an installed engine did with a checkpoint."""

    schema: Literal[1]
    tool: ToolV1
    exit_code: Annotated[int, "0 all loads, 1 a model fails or is silently wrong, 3 none could be judged"]
    ref: str
    engine: str
    version: str
    interpreter: str
    versions: Annotated[dict[str, str], "of the engine, of Python, torch and transformers"]
    runner: Annotated[str, "which of the engine's model runners was followed; may be empty"]
    target: ObservationV1 | None
    draft: ObservationV1 | None
    prediction: PredictionV1 | None
    replaced: Annotated[list[str], "what of the engine was replaced, and why"]
    notes: list[str]
    seconds: float
    memory: Annotated[int, "peak, in bytes; 0 where the system does not tell"]


def to_document(verification: Verification) -> VerificationV1:
    """Return a verification as its JSON document."""
    prediction = verification.prediction
    return {
        "schema": 1,
        "tool": {"name": "mtpfix", "version": __version__},
        "exit_code": verification.exit_code,
        "ref": verification.ref,
        "engine": verification.engine,
        "version": verification.version,
        "interpreter": verification.interpreter,
        "versions": dict(verification.versions),
        "runner": verification.runner,
        "target": _observation(verification.target),
        "draft": _observation(verification.draft),
        "prediction": None
        if prediction is None
        else {
            "version": verification.compared,
            "exact": verification.exact,
            "confidence": prediction.confidence.value,
            "target": prediction.target.verdict.value,
            "draft": prediction.draft.verdict.value,
            "differences": list(verification.differences),
        },
        "replaced": list(verification.replaced),
        "notes": list(verification.notes),
        "seconds": verification.seconds,
        "memory": verification.memory,
    }


def render(verification: Verification) -> str:
    """Return a verification as JSON, ASCII only."""
    return json.dumps(to_document(verification), indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def _observation(model: Observation | None) -> ObservationV1 | None:
    if model is None:
        return None
    return {
        "verdict": model.verdict.value,
        "reason": model.reason or None,
        "phase": model.phase,
        "error": model.error or None,
        "text": model.text or None,
        "tensor": model.tensor,
        "frames": list(model.frames),
        "model_class": model.model_class,
        "unwritten": list(model.unwritten),
        "partial": list(model.partial),
        "misread": dict(model.misread),
        "untaken": model.untaken,
        "modules": [
            {"prefix": one.prefix, "path": one.path, "layer": one.layer, "format": one.format} for one in model.modules
        ],
    }
