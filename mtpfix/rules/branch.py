"""MTP1xx: is the branch there at all, as the configuration says?"""

from __future__ import annotations

from collections.abc import Iterator

from mtpfix.checkpoint.names import collapse_numbers
from mtpfix.families import trailing_layers
from mtpfix.model import Finding, Outcome, Severity
from mtpfix.rules.context import Context, occurrences
from mtpfix.rules.findings import bundle, finding, plain_finding
from mtpfix.rules.registry import Rule, rule


@rule("MTP101", "mtp-absent", Severity.ERROR, metadata=True)
def mtp_absent(context: Context, this: Rule) -> Iterator[Finding]:
    """The configuration declares MTP layers whose tensors are not in the checkpoint.

    Exporters and trainers that save only the modules they instantiated lose the branch without a word. Some engine
    classes raise when they find a layer without weights; the others load a draft model of uninitialised memory, which
    drafts at 0 % acceptance.

    Repair: graft the branch from the base model, or, where the base model never published one, take the MTP keys out
    of config.json.
    """
    found = list(occurrences(context, ["layer-absent"]))
    mtp = context.subject.mtp
    declared = context.subject.numbers.mtp if context.subject.numbers else 0
    for group in bundle(context, found):
        says = "loads it all the same and drafts from uninitialised weights" if group.silent else "refuses to load"
        amount = f"{len(group.modules)} of them have no tensor" if mtp.present else "no tensor of the branch is stored"
        if mtp.present and not context.subject.branch_is_loadable:
            amount = "its tensors lie in a file that the index does not name"
        message = f"config.json declares {declared} MTP layer{'s' * (declared != 1)}, but {amount}; the engine {says}."
        yield finding(context, this, group, message)
    known = context.checkpoint.headers or context.checkpoint.has_index
    if declared and mtp.declared and not mtp.present and not found and known:
        yield plain_finding(this, f"config.json declares {declared} MTP layers, but no tensor of the branch is stored.")


@rule("MTP102", "mtp-undeclared", Severity.WARNING, metadata=True)
def mtp_undeclared(context: Context, this: Rule) -> Iterator[Finding]:
    """Tensors of an MTP branch are stored, but the configuration declares no MTP layer.

    Engines read the number of MTP layers from config.json and then never look at these tensors: they cost disk and
    download, and speculative decoding with the branch is not available.

    Repair: add the family's key (`num_nextn_predict_layers` or `mtp_num_hidden_layers`) to config.json.
    """
    mtp, family = context.subject.mtp, context.subject.family
    numbers = context.subject.numbers
    if family is None or numbers is None or numbers.mtp or "K" not in family.table["numbers"]:
        return
    key = family.table["numbers"]["K"][0]
    if mtp.present:
        yield plain_finding(this, f"{mtp.tensors} tensors of an MTP branch are stored, but config.json has no {key}.")
    elif trailing_layers(family, numbers, tuple(context.subject.stored)):
        yield plain_finding(
            this, f"Layers from {numbers.layers} on are stored, as of an MTP branch, but config.json has no {key}."
        )


@rule("MTP103", "per-layer-array-short", Severity.ERROR)
def per_layer_array_short(context: Context, this: Rule) -> Iterator[Finding]:
    """A per-layer array of the configuration is shorter than the layers the engine indexes.

    Exporters that cut the MTP layers off also cut arrays such as `layer_types` to the decoder's length; the draft's
    constructor then raises before any weight is read.

    Repair: extend the arrays to cover the MTP layers.
    """
    for group in bundle(context, occurrences(context, ["array-short"])):
        numbers = context.subject.numbers
        names = ", ".join(group.modules)
        needed = numbers.layers + numbers.mtp if numbers else 0
        have = {name: len(numbers.decoder.get(name) or ()) for name in group.modules} if numbers else {}
        message = f"{names}: {', '.join(map(str, have.values()))} entries, but {needed} layers are indexed."
        if have and min(have.values()) >= needed:
            message = f"{names} covers all {needed} layers, but the engine cuts off what lies behind the decoder's."
        yield finding(context, this, group, message)


@rule("MTP104", "weight-missing", Severity.ERROR)
def weight_missing(context: Context, this: Rule) -> Iterator[Finding]:
    """A module that the engine builds has no weight in the checkpoint, or not for all experts.

    Quantized checkpoints are loaded without a check for completeness by default, so most engines run with
    uninitialised numbers in that module.

    Repair: graft the module from the base model.
    """
    for group in bundle(context, occurrences(context, ["weight-missing"])):
        ends = "raises" if any(one.event.outcome is Outcome.CRASH for one in group.occurrences) else "says nothing"
        kept = next((stored.experts for name in group.modules if (stored := context.subject.stored.get(name))), None)
        what = f"of its experts only {collapse_numbers(kept)} are stored" if kept else "no tensor of it is stored"
        yield finding(context, this, group, f"The engine builds it, {what}; the engine {ends}.")
