"""Where a prediction differs from what an engine did: every difference is a defect of the prediction."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mtpfix.engines import Engine
from mtpfix.model import Format, ModelPrediction, Observation, Verdict

LONGEST = 300
"""Characters of an error text that are compared."""


def shorten(text: str) -> str:
    """Cut an error text where it begins to print a set, whose order differs from run to run, and where it is long."""
    text = re.sub(r"\{.*", "{…}", text, flags=re.DOTALL)
    text = re.sub(r"(?<=Some parameters like )\S+", "{…}", text)
    text = re.sub(r"(?<=missing required parameters: ).*", "{…}", text, flags=re.DOTALL)
    text = re.sub(r"(?<=weights: )\[.*|(?<=missing destinations: )\[.*", "{…}", text, flags=re.DOTALL)
    text = re.sub(r"(?<=, got )[-+.\de]+(?= in skipped)", "{…}", text)
    return text if len(text) <= LONGEST else text[:LONGEST] + "…"


def unwrap(error: str, text: str) -> tuple[str, str]:
    """Return class and shortened text of an error, of the one inside where a configuration class wrapped it."""
    inner = re.search(r"(Value error|Assertion failed), (.*?) \[type=(?:value|assertion)_error", text, flags=re.DOTALL)
    if error == "ValidationError" and inner is not None:
        error, text = {"Value error": "ValueError", "Assertion failed": "AssertionError"}[inner[1]], inner[2]
    return error, shorten(text)


def same_words(observed: str, predicted: str) -> bool:
    """Return whether two error texts agree, but for what the engine prints in no fixed order and what was cut off."""
    pattern = re.escape(re.sub(r"\. The available parameters.*", "", observed))
    return re.fullmatch(pattern.replace(re.escape("{…}"), "…").replace("…", ".+"), predicted) is not None


def by_path(engine: Engine) -> bool:
    """Return whether layers of an engine that are given no lists are observed under the path of their parameters."""
    return bool(engine.table.get("unasked_by_path", False))


def differences(predicted: ModelPrediction, observed: Observation, *, by_path: bool) -> Iterator[str]:
    """Yield, in sentences, where a prediction differs from what the engine did with that model."""
    error, text = unwrap(observed.error, observed.text)
    raised = f"{error}: {text}" if text else error
    if predicted.verdict is not observed.verdict:
        why = predicted.error or predicted.reason
        did = f"{observed.verdict} ({raised})" if raised else str(observed.verdict)
        yield f"it {did}, predicted {predicted.verdict}" + (f" ({why})" if why else "")
        return
    if observed.verdict is Verdict.FAILS:
        if not same_words(raised, predicted.error or ""):
            yield f"it raises {raised!r}, predicted {predicted.error!r}"
        if predicted.error_tensor != observed.tensor and not _names(observed, predicted.error_tensor):
            yield f"it fails at {observed.tensor}, predicted {predicted.error_tensor}"
    if observed.modules:  # none where it could not be built
        yield from _formats(predicted, observed, by_path=by_path)


def _names(observed: Observation, tensor: str | None) -> bool:
    """Return whether an error names a tensor that nobody saw being copied: the class gathers all of them first."""
    if observed.tensor is not None or observed.phase != "load" or tensor is None:
        return False
    return any(f".{tensor}".endswith(f".{name}") for name in re.findall(r"'([\w.]+)'", observed.text))


EXPERTS = ".routed_experts"
"""How the parameter path of experts ends in some releases."""

PLAIN = frozenset(form.value for form in Format if form.plain)
"""Formats without quantization, as observations name them."""


def _formats(predicted: ModelPrediction, observed: Observation, *, by_path: bool) -> Iterator[str]:
    built = {module.prefix: module.format for module in observed.modules}
    # torch's own linear layers, embeddings, and layers without lists may ask none: they are observed under their path
    unasked = {_leaf(module.prefix) for module in observed.modules if module.layer == "Linear"}
    embeddings = {_last(module.prefix) for module in observed.modules if module.layer.endswith("Embedding")}
    unasked |= {_leaf(name.removesuffix(EXPERTS)) for name in built if name.endswith(EXPERTS)}
    unasked |= {_leaf(module.prefix) for module in observed.modules if module.layer == "FusedMoE"}
    expected = {module.prefix: module.format.value for module in predicted.built}
    for prefix in sorted(built.keys() | expected.keys()):
        ours = _shade(expected.get(prefix, "bf16"))  # what no knowledge names is never quantized
        theirs = _shade(built[prefix]) if prefix in built else "absent"
        if (
            ours == "plain"
            and theirs == "absent"
            and (by_path or _leaf(prefix) in unasked or _last(prefix) in embeddings or (embeddings and not prefix))
        ):
            continue
        if ours != theirs:
            yield f"{prefix} is built {theirs}, predicted {ours}"


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _leaf(name: str) -> str:
    return ".".join(name.split(".")[-2:])


def _shade(form: str) -> str:
    """Return a format, 16 and 32 bits alike: which of them a router keeps decides nothing."""
    return "plain" if form in PLAIN else form
