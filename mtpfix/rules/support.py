"""MTP6xx: what the engine, or this tool, does not support, whatever the checkpoint holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from mtpfix.checkpoint.ref import shown
from mtpfix.engines.predict import LEFT_OUT
from mtpfix.engines.subject import Subject
from mtpfix.model import ROLES, Finding, Role, Severity, Verdict
from mtpfix.rules.context import Context, occurrences
from mtpfix.rules.findings import bundle, finding, plain_finding
from mtpfix.rules.registry import Rule, rule

MOST, WIDEST = 6, 80
"""Entries of a list that are named, and characters of each."""

ASK = "An installed engine can be asked: mtpfix verify FOLDER --engine-python PATH."
"""The next step where nothing is predicted and a release has a class for the model."""

NOT_PREDICTED: Mapping[Role, str] = {
    "target": "The main model is not predicted",
    "draft": "The MTP draft is not predicted",
}


@rule("MTP601", "architecture-unknown", Severity.NOTE, metadata=True)
def architecture_unknown(context: Context, this: Rule) -> Iterator[Finding]:
    """No family file knows the architecture, so only what is stored and what is declared was judged.

    Whether an engine loads it is not predicted: `mtpfix verify` asks one that is installed.
    """
    subject = context.subject
    if subject.family is None:
        name = subject.architecture
        what = f"The architecture {name} is" if name else "config.json names no architecture; it is"
        sentences = [f"{what} not known here: what engines build for it was not predicted."]
        sentences += _what_is_there(subject)
        sentences.append(ASK)
        yield plain_finding(this, " ".join(sentences))


def _what_is_there(subject: Subject) -> Iterator[str]:
    """Yield, in sentences, what is stored and what the lists of the quantization blocks name."""
    formats = Counter(stored.format.value for stored in subject.stored.values() if len(stored.shape) > 1)
    if formats:
        counted = ", ".join(f"{count:,} {form}" for form, count in formats.most_common())
        yield f"Modules with a matrix, the experts of a layer counted as one: {counted}."
    files: dict[tuple[tuple[str, ...], int], list[str]] = {}
    for block in subject.checkpoint.declarations:
        files.setdefault((block.excludes, len(block.layers)), []).append(block.file)
    for (excludes, layers), named in files.items():
        lists, leaves = ("list", "leave") if len(named) > 1 else ("lists", "leaves")
        where = " and ".join(named)
        if layers:
            yield f"{where} {lists} {layers:,} quantized modules."
        if excludes:
            entries = ", ".join(shown(entry, WIDEST) for entry in excludes[:MOST])
            more = f" and {len(excludes) - MOST:,} more" if len(excludes) > MOST else ""
            yield f"{where} {leaves} unquantized: {entries}{more}."
        if not layers and not excludes:
            yield f"{where} {leaves} nothing unquantized."


@rule("MTP602", "engine-cannot-build", Severity.ERROR)
def engine_cannot_build(context: Context, this: Rule) -> Iterator[Finding]:
    """The engine release cannot construct this model at all: no checkpoint of the kind loads in it.

    A defect of the release, not of the checkpoint. An error only where every release asked for has it.

    Repair: none in the checkpoint; use another release.
    """
    for group in bundle(context, occurrences(context, ["class-broken"]), lambda one: one.event.text):
        concerned = {(release.engine.name, release.version) for release in group.releases}
        able = any(
            release.model(group.role).verdict is Verdict.LOADS
            or (
                (release.engine.name, release.version) not in concerned
                and release.model(group.role).verdict is not Verdict.UNKNOWN
            )
            for release in context.releases
        )
        message = "This release raises whatever the checkpoint holds; use another release."
        yield finding(context, this, group, message, severity=Severity.WARNING if able else None)


@rule("MTP603", "release-without-class", Severity.NOTE)
def release_without_class(context: Context, this: Rule) -> Iterator[Finding]:
    """No class of the engine release is known for this architecture, or not how it reads the quantization.

    What such a release does is not predicted: it may refuse the model, or fall back to a generic implementation. Where
    it has a class whose loader is not described here for all tensors, `mtpfix verify` asks one that is installed.
    """
    family = context.subject.family
    if family is None:
        return
    reasons: dict[str, list[str]] = {}
    roles: dict[str, set[Role]] = {}
    asked: set[str] = set()
    for release in context.releases:
        for role in ROLES:
            model = release.model(role)
            if model.verdict is Verdict.UNKNOWN and model.reason not in ("", LEFT_OUT):
                reasons.setdefault(model.reason, []).append(release.version)
                roles.setdefault(model.reason, set()).add(role)
                if family.models(release.engine.name, role, context.subject.served_as, release.version):
                    asked.add(model.reason)
    every = {(release.engine.name, release.version) for release in context.releases}
    for reason, versions in reasons.items():
        concerned = [release for release in context.releases if release.version in versions]
        ranges = context.ranges(concerned)
        nothing_predicted = len({(one.engine.name, one.version) for one in concerned}) == len(every)
        severity = Severity.WARNING if nothing_predicted else None
        what = NOT_PREDICTED[next(iter(roles[reason]))] if len(roles[reason]) == 1 else "Not predicted"
        text = f"{what} for {', '.join(one.text for one in ranges)}: {reason}."
        text += f" {ASK}" if reason in asked else ""
        yield plain_finding(this, text, severity=severity)
