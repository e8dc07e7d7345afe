"""MTP3xx: are the scales there, in the right shape, and do they agree within fused layers?"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

from mtpfix.checkpoint.names import collapse_numbers
from mtpfix.model import Finding, Outcome, Severity
from mtpfix.rules.context import Context, occurrences
from mtpfix.rules.findings import bundle, finding, pattern_of, plain_finding
from mtpfix.rules.registry import Rule, rule

GLOBAL_SCALES = ("weight_scale_2", "weight_global_scale")


@rule("MTP301", "scale-missing", Severity.ERROR)
def scale_missing(context: Context, this: Rule) -> Iterator[Finding]:
    """A quantized module lacks a scale that the engine reads.

    A missing `input_scale` or `weight_scale_2` leaves uninitialised memory in its place: output that depends on the
    prompt, NaN, or one token repeated. Only newer vLLM releases check, and only `weight_scale`.

    Repair: write the scale (from sibling layers), or declare the module weight-only.
    """
    for group in bundle(
        context, occurrences(context, ["scale-missing"]), lambda one: one.event.tensor.rpartition(".")[2]
    ):
        suffix = group.newest.event.tensor.rpartition(".")[2] or "weight_scale"
        holes = _experts_without(context, group.modules, suffix)
        where = f" for experts {holes}" if holes else ""
        loud = any(one.event.outcome is Outcome.CRASH for one in group.occurrences)
        says = "the engine raises after loading" if loud else "the engine says nothing and reads uninitialised memory"
        yield finding(context, this, group, f"Stored {group.stored} without {suffix}{where}; {says}.")


def _experts_without(context: Context, modules: Iterable[str], suffix: str) -> str:
    for module in modules:
        stored = context.subject.stored.get(module)
        part = stored.parts.get(suffix) if stored else None
        if stored and stored.experts and part and part.experts is not None and part.experts != stored.experts:
            return collapse_numbers(stored.experts - part.experts)
    return ""


@rule("MTP302", "scale-odd", Severity.ERROR)
def scale_odd(context: Context, this: Rule) -> Iterator[Finding]:
    """A scale has a shape or a dtype that does not fit its weight, or no place in the fused module that is built.

    The engine raises, or reads scales of other blocks.

    Repair: quantize the module again, or store it in 16 bits.
    """
    reported: set[str] = set()
    for group in bundle(context, occurrences(context, ["scale-shape"])):
        reported.update(group.modules)
        sentences = [text for name in group.modules for text in context.subject.stored[name].odd]
        detail = sentences[0] if sentences else "The scale does not fit the layer that the engine builds"
        yield finding(context, this, group, f"{detail.rstrip('.')}.")
    sentences_by_text: dict[str, list[str]] = defaultdict(list)
    for name, stored in context.subject.stored.items():
        if name not in reported:
            for text in stored.odd:
                sentences_by_text[text].append(name)
    for text, names in sentences_by_text.items():
        yield plain_finding(
            this, f"{text.rstrip('.')}.", module=pattern_of(names), count=len(names), severity=Severity.WARNING
        )


@rule("MTP304", "scale-partly-written", Severity.WARNING)
def scale_partly_written(context: Context, this: Rule) -> Iterator[Finding]:
    """The engine writes a fused layer's global scales only in part and leaves the rest uninitialised.

    A defect of the release, not of the checkpoint: the harm depends on what memory held.

    Repair: none in the checkpoint; use another release, or store the layer in 16 bits.
    """
    for group in bundle(context, occurrences(context, ["scale-partly-written"])):
        yield finding(context, this, group, "This release leaves some slots of the layer's global scales unwritten.")


@rule("MTP303", "fused-scales-differ", Severity.WARNING)
def fused_scales_differ(context: Context, this: Rule) -> Iterator[Finding]:
    """The NVFP4 global scales differ between weights that the engine fuses into one layer.

    A fused layer has one global scale. vLLM takes the largest for q, k and v, and for experts that of gate for up as
    well, and does not rescale the blocks: the other weights are then wrong by the ratio. At 4:1 the error of an up
    projection grows a thousandfold.

    Repair: share one global scale across the group (the block scales are rescaled in place).
    """
    worst: dict[str, tuple[float, list[str], int]] = {}
    for group in fused_groups(context):
        ratio, count = _disagreement(context, group)
        if ratio > 1:
            key = "+".join(name.rpartition(".")[2] for name in group)
            known, names, total = worst.get(key, (1.0, [], 0))
            worst[key] = (max(known, ratio), [*names, *group], total + count)
    for parts, (ratio, names, count) in worst.items():
        shown = "infinitely" if math.isinf(ratio) else f"up to {ratio:.3g}:1"
        message = f"The global scales of {parts} differ {shown} in {count} fused layers."
        yield plain_finding(this, message, module=pattern_of(names), count=count)


def differing_groups(context: Context) -> list[tuple[str, ...]]:
    """Return the sets of NVFP4 modules that a judged release fuses and whose global scales differ."""
    return [group for group in fused_groups(context) if _disagreement(context, group)[0] > 1]


def fused_groups(context: Context) -> list[tuple[str, ...]]:
    """Return the sets of NVFP4 modules, by name on disk, that a judged release fuses into one layer."""
    groups: dict[tuple[str, ...], None] = {}
    for release in context.releases[-1:]:
        for model in (release.prediction.target, release.prediction.draft):
            for built in model.built:
                names = tuple(name for name in built.modules if _global_scale(context, name) is not None)
                if built.layer == "experts":
                    names = tuple(name for name in names if not name.endswith((".down_proj", ".w2", ".w2_weight")))
                if len(names) > 1:
                    groups[names] = None
    return list(groups)


def _global_scale(context: Context, module: str) -> str | None:
    stored = context.subject.stored.get(module)
    return next((suffix for suffix in GLOBAL_SCALES if stored and suffix in stored.parts), None)


def _disagreement(context: Context, group: Sequence[str]) -> tuple[float, int]:
    """Return the largest ratio between global scales of one group, and in how many fused layers they differ."""
    if _alike(context, group):
        return 1.0, 0
    values = [_scale_values(context, module) for module in group]
    shared = set(values[0]).intersection(*values[1:]) if values else set()
    worst, count = 1.0, 0
    for expert in shared:
        these = [value[expert] for value in values]
        low, high = min(these), max(these)
        if high != low:
            count += 1
            worst = max(worst, high / low if low > 0 else math.inf)
    return worst, count


def _alike(context: Context, group: Sequence[str]) -> bool:
    """Return whether the global scales of a group are equal, number for number: the common case, told fast."""
    first, *others = (
        [
            (tensor.experts, values)
            for tensor, values in context.scalar_values.get(f"{name}.{_global_scale(context, name)}", ())
        ]
        for name in group
    )
    return all(other == first for other in others)


def _scale_values(context: Context, module: str) -> Mapping[int, float]:
    found: dict[int, float] = {}
    suffix = _global_scale(context, module)
    for tensor, values in context.scalar_values.get(f"{module}.{suffix}", ()):
        numbers = tensor.experts if tensor.experts is not None else (0,)
        found.update(zip(numbers, values, strict=False))
    return found
