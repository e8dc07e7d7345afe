"""What an engine did, for people: at most 80 columns, plain text, the verdict first."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mtpfix.checkpoint.names import collapse_names
from mtpfix.checkpoint.ref import shown
from mtpfix.model import Observation, Verdict, Verification
from mtpfix.report.summary import size_text

WIDEST = 80
LABEL = 11
LONGEST = 2000
MOST = 8
"""Lines of one kind that are shown without `verbose`."""

SAYS: Mapping[Verdict, str] = {
    Verdict.LOADS: "loads",
    Verdict.FAILS: "FAILS",
    Verdict.SILENT: "SILENT: loads without a word, and is wrong",
    Verdict.ABSENT: "none",
    Verdict.UNKNOWN: "unknown",
}
TITLES = {"target": "main model", "draft": "MTP draft"}
DEFECT = (
    "A difference is a defect of mtpfix, not of the checkpoint: please report it with the output of the same command "
    "and --json, and with config.json."
)


def render(verification: Verification, *, width: int = WIDEST, verbose: bool = False) -> str:
    """Return a verification as text."""
    width = max(40, min(width, WIDEST))
    lines = [shown(verification.ref), *_wrapped(_asked(verification), width), ""]
    for model in (verification.target, verification.draft):
        if model is not None:
            lines += _model(model, width, verbose=verbose)
    lines += _labelled("prediction", _prediction(verification), width)
    shown_differences = verification.differences if verbose else verification.differences[:MOST]
    for sentence in shown_differences:
        lines += _labelled("  differs", [shown(sentence, LONGEST)], width)
    if hidden := len(verification.differences) - len(shown_differences):
        lines += _labelled("", [f"and {hidden:,} more with -v"], width)
    if verification.differences:
        lines += _labelled("", [DEFECT], width)
    for note in verification.notes:
        lines += _labelled("note", [shown(note, LONGEST)], width)
    if verbose:
        for number, what in enumerate(verification.replaced):
            lines += _labelled("" if number else "replaced", [shown(what, LONGEST)], width)
    elif verification.replaced:
        said = f"{len(verification.replaced)} leaves of the engine that need a GPU; -v lists them"
        lines += _labelled("replaced", [said], width)
    lines += _labelled("took", [f"{verification.seconds:,.0f} s, {size_text(verification.memory)} of memory"], width)
    return "\n".join(lines) + "\n"


def _asked(verification: Verification) -> str:
    versions = ", ".join(f"{name} {shown(version)}" for name, version in verification.versions.items() if version)
    runner = f", model runner {shown(verification.runner)}" if verification.runner else ""
    return f"{versions}{runner}; {shown(verification.interpreter)}"


def _model(model: Observation, width: int, *, verbose: bool) -> Iterator[str]:
    about = f"{shown(model.model_class)}, {len(model.modules):,} modules" if model.model_class else ""
    yield from _labelled(TITLES[model.role], [", ".join(filter(None, (SAYS[model.verdict], about)))], width)
    if model.reason:
        yield from _labelled("  why", [shown(model.reason, LONGEST)], width)
    if model.error:
        raised = f"{model.error}: {model.text}" if model.text else model.error
        yield from _labelled("  raises", [shown(raised, LONGEST)], width)
        yield from _labelled("  while", [PHASES.get(model.phase, model.phase)], width)
    if model.tensor is not None:
        yield from _labelled("  tensor", [shown(model.tensor)], width)
    if model.frames:
        yield from _labelled("  at", map(shown, reversed(model.frames)), width)
    if model.verdict is Verdict.SILENT:
        yield from _named("  unwritten", model.unwritten, width, verbose=verbose)
        yield from _named("  in part", model.partial, width, verbose=verbose)
        read = [f"{name} ({what})" for name, what in model.misread.items()]
        yield from _named("  misread", read, width, verbose=verbose)
    yield from _labelled("  built", _formats(model, verbose=verbose), width)


PHASES = {
    "configure": "reading the configuration",
    "construct": "building the model",
    "load": "loading the weights",
    "finish": "checking and repacking the loaded weights",
    "share": "sharing embedding and head with the main model",
}


def _formats(model: Observation, *, verbose: bool) -> list[str]:
    """Return the built formats: names of the modules for a draft, numbers of them for a main model."""
    groups: dict[str, list[str]] = {}
    for module in model.modules:
        groups.setdefault(module.format, []).append(module.prefix)
    texts = []
    for form, names in sorted(groups.items()):
        if model.role == "target" and not verbose:
            texts.append(f"{form}: {len(names):,} modules")
        else:
            texts += [f"{form}: {shown(pattern.text)}" for pattern in collapse_names(names)]
    return texts


def _named(label: str, names: Sequence[str], width: int, *, verbose: bool) -> Iterator[str]:
    patterns = [shown(pattern.text) for pattern in collapse_names(names)]
    most = len(patterns) if verbose else MOST
    more = [f"and {len(patterns) - most:,} more with -v"] if len(patterns) > most else []
    yield from _labelled(label, [*patterns[:most], *more], width)


def _prediction(verification: Verification) -> list[str]:
    prediction, release = verification.prediction, f"{verification.engine} {verification.compared}"
    if prediction is None:
        return ["none: the checkpoint could not be read whole"]
    models = [
        (predicted, observed)
        for predicted, observed in (
            (prediction.target, verification.target),
            (prediction.draft, verification.draft),
        )
        if observed is not None
    ]
    known = [
        (predicted, observed)
        for predicted, observed in models
        if Verdict.UNKNOWN not in (predicted.verdict, observed.verdict)
    ]
    if not known:
        reasons = dict.fromkeys(predicted.reason for predicted, _ in models if predicted.reason)
        return [f"none: {'; '.join(map(shown, reasons))}" if reasons else "none to compare with"]
    trust = prediction.confidence.value
    away = "" if verification.exact else f", the known release nearest to {shown(verification.version)}"
    verb = "differs from" if verification.differences else "is"
    return [f"what happened {verb} what mtpfix predicts for {release} ({trust}){away}"]


def _labelled(label: str, texts: Iterable[str], width: int) -> Iterator[str]:
    for text in texts:
        for line in _wrapped(text, width - LABEL - 1):
            yield f"{label:<{LABEL}} {line}".rstrip()
            label = ""


def _wrapped(text: str, width: int) -> list[str]:
    """Return a text in lines, broken behind spaces, then dots and slashes, then wherever it must be."""
    lines: list[str] = []
    for line in textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]:
        rest = line
        while len(rest) > width:
            cut = max(rest.rfind(mark, 1, width) for mark in (" ", ".", "/", ",")) + 1 or width
            lines.append(rest[:cut].rstrip())
            rest = rest[cut:]
        lines.append(rest)
    return lines
