"""MTP4xx: the declarations themselves: files that disagree, stale blocks, entries that do nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fnmatch import fnmatchcase

from mtpfix.checkpoint.quant import declared_scheme_differences
from mtpfix.engines.gptq import NOT
from mtpfix.engines.matching import compile_pattern
from mtpfix.model import Declaration, Finding, Severity
from mtpfix.rules.context import Context, occurrences
from mtpfix.rules.findings import bundle, finding, plain_finding
from mtpfix.rules.registry import Rule, rule

CONFIG = "config.json"
HF_QUANT = "hf_quant_config.json"
TOP = ("quantization_config",)


def _top(context: Context) -> Declaration | None:
    return next((one for one in context.checkpoint.declarations if one.file == CONFIG and one.path == TOP), None)


@rule("MTP401", "config-files-disagree", Severity.WARNING, metadata=True)
def config_files_disagree(context: Context, this: Rule) -> Iterator[Finding]:
    """config.json and hf_quant_config.json declare different things.

    vLLM obeys `quantization_config` of config.json and opens hf_quant_config.json only where it is absent;
    TensorRT-LLM reads hf_quant_config.json; others mix the two. A repair of one file alone works in one engine.

    Repair: write the same lists into both.
    """
    first = _top(context)
    second = next((one for one in context.checkpoint.declarations if one.file == HF_QUANT), None)
    if first is None or second is None:
        return
    differences = declared_scheme_differences(first, second)
    if differences:
        message = f"{CONFIG} and {HF_QUANT} disagree: {'; '.join(differences)}. vLLM obeys {CONFIG}."
        yield plain_finding(this, message, count=len(differences))


@rule("MTP402", "stale-nested-block", Severity.WARNING, metadata=True)
def stale_nested_block(context: Context, this: Rule) -> Iterator[Finding]:
    """A nested quantization block contradicts the one at the top of config.json.

    Engines that promote `text_config` for the draft take the nested block instead of the outer one.

    Repair: delete the nested block, or make it equal.
    """
    first = _top(context)
    for block in context.checkpoint.declarations:
        if block.file != CONFIG or len(block.path) < 2 or first is None:
            continue
        differences = declared_scheme_differences(first, block)
        if differences:
            where = ".".join(block.path)
            yield plain_finding(
                this, f"{where} contradicts the top-level block: {'; '.join(differences)}.", module=where
            )


@rule("MTP403", "declaration-not-understood", Severity.WARNING, metadata=True)
def declaration_not_understood(context: Context, this: Rule) -> Iterator[Finding]:
    """Part of a quantization block is not known to this tool, so what it means was not judged.

    Nothing is guessed: a verdict that would need this part is reported as unknown.
    """
    for block in context.checkpoint.declarations:
        for sentence in block.not_understood:
            where = f"{block.file}: {'.'.join(block.path)}" if block.path else block.file
            harmless = sentence.startswith("keys ")
            yield plain_finding(
                this,
                f"{where}: {sentence.rstrip('.')}.",
                module=".".join(block.path),
                severity=Severity.NOTE if harmless else None,
            )


@rule("MTP404", "declaration-refused", Severity.ERROR)
def declaration_refused(context: Context, this: Rule) -> Iterator[Finding]:
    """The engine refuses the quantization block itself, before any weight is read.

    Algorithms are known from a certain release on (MIXED_PRECISION from vLLM 0.17.1, W4A16_NVFP4 from 0.21), some only
    from config.json. A note where only older releases refuse it, an error where the newest one asked for does. A draft
    whose configuration is the decoder's alone does not see config.json's block, and wants hf_quant_config.json.

    Repair: declare the block in the file and the form that the engine knows, or use a newer release.
    """
    every = list(occurrences(context, ["declaration-refused"]))
    of_targets = [one.release for one in every if one.role == "target"]  # their drafts only say it again
    found = (one for one in every if one.role == "target" or not any(one.release is known for known in of_targets))
    newest = {request.engine.name: request.releases[-1] for request in context.requests}
    for group in bundle(context, found):
        refused = any(newest[release.engine.name] == release.version for release in group.releases)
        whose = " of the draft" if group.role == "draft" else ""
        message = f"The engine refuses the quantization block{whose}" + (
            "." if refused else "; newer releases know it."
        )
        yield finding(context, this, group, message, severity=None if refused else Severity.NOTE)


@rule("MTP405", "dead-entry", Severity.NOTE)
def dead_entry(context: Context, this: Rule) -> Iterator[Finding]:
    """An entry matches neither a stored name nor a name that a judged engine asks for.

    Harmless by itself, but often a misspelled entry that was meant to do something.

    Repair: take it out, or correct it.
    """
    for block in context.deciding:
        dead = list(_dead_entries(context, block))
        if dead:
            shown = ", ".join(dead[:5]) + (f" and {len(dead) - 5} more" if len(dead) > 5 else "")
            message = f"{len(dead)} of {len(block.excludes)} entries of {block.exclude_key} match nothing: {shown}."
            yield plain_finding(this, message, module=dead[0] if len(dead) == 1 else "", count=len(dead))


_EXPERT_NUMBER = re.compile(r"\.experts\.\d+(?=\.|$)")


def _dead_entries(context: Context, block: Declaration) -> Iterator[str]:
    names = context.subject.names
    known = {
        built.prefix
        for release in context.releases
        for model in (release.prediction.target, release.prediction.draft)
        for built in model.built
    }
    spelled = [name.replace(".{}", ".0") for name in names.stored]
    everything = "\n".join((*spelled, *known))
    for entry in block.excludes:
        bare = _EXPERT_NUMBER.sub(".experts.{}", entry.rstrip("*").rstrip("."))
        if not bare or names.holds(bare) or bare in known or bare in everything:
            continue
        if entry.startswith(("re:", NOT)):
            pattern = compile_pattern(entry.partition(":")[2])
            if pattern is not None and not any(pattern.match(name) for name in (*spelled, *known)):
                yield entry
        elif any(mark in bare for mark in "*?["):
            if not any(fnmatchcase(name, entry) for name in (*spelled, *known)):
                yield entry
        else:
            yield entry
