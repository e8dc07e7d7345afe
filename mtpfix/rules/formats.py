"""MTP2xx: the engine builds one format, the disk holds another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatch

from mtpfix.checkpoint.names import describe_names
from mtpfix.model import Declaration, Finding, Outcome, Severity
from mtpfix.rules.context import Context, Occurrence, occurrences
from mtpfix.rules.findings import ROLE_WORDS, Bundle, bundle, finding
from mtpfix.rules.registry import Rule, rule


def named_by(block: Declaration | None, module: str) -> str | None:
    """Return the entry of a block's list that a person would say names this module, however the engine sees it."""
    if block is None:
        return None
    plain = module.replace(".{}", ".0")
    spellings = [module.replace(".{}", ""), plain]
    spellings += [name.replace("model.language_model.", "model.", 1) for name in spellings]
    for entry in block.excludes:
        if entry.startswith("re:"):
            continue
        bare = entry.removeprefix("language_model.").removeprefix("model.language_model.")
        for name in spellings:
            for text in (entry, bare):
                root = text.rstrip("*").rstrip(".")
                if root and (name == root or name.startswith(f"{root}.")):
                    return entry
                if "*" in text and fnmatch(name, text):
                    return entry
    return None


def _entry(one: Occurrence) -> str:
    return named_by(one.release.prediction.deciding, one.event.module) or ""


def _then(group: Bundle) -> str:
    first = group.newest
    if first.event.outcome is Outcome.CRASH:
        return "loading raises"
    return "it loads without a word, with numbers that mean nothing"


def _prefixes(group: Bundle) -> str:
    asked = dict.fromkeys(one.built.prefix or "an empty name" for one in group.occurrences if one.built is not None)
    return describe_names(asked)


@rule("MTP201", "plain-built-quantized", Severity.ERROR)
def plain_built_quantized(context: Context, this: Rule) -> Iterator[Finding]:
    """Weights are stored in 16 bits, but the engine builds the module quantized, since no list excludes it.

    The commonest fault of published MTP branches: the exporter quantizes the main model, copies the branch as it was,
    and does not list it. Column-parallel layers then raise a bare AssertionError; row-parallel layers narrow the weight
    and copy nonsense.

    Repair: add the names to `ignore` in config.json and `exclude_modules` in hf_quant_config.json, or quantize the
    tensors.
    """
    found = (one for one in occurrences(context, ["plain-into-quantized"]) if not _entry(one))
    for group in bundle(context, found):
        message = (
            f"Stored {group.stored}, built {group.built} in {ROLE_WORDS[group.role]}: "
            f"no entry excludes {_prefixes(group)}; {_then(group)}."
        )
        yield finding(context, this, group, message)


@rule("MTP202", "listed-under-another-name", Severity.ERROR)
def listed_under_another_name(context: Context, this: Rule) -> Iterator[Finding]:
    """The list excludes the module under a name that the engine never asks for.

    Engines match their own names: fused projections (`qkv_proj`), heads under another path, wrappers whose name mapper
    rewrites the list but not the draft's names. The entry looks right and does nothing.

    Repair: add the engine's spelling beside the one on disk.
    """
    found = (one for one in occurrences(context, ["plain-into-quantized"]) if _entry(one))
    for group in bundle(context, found):
        entries = describe_names(dict.fromkeys(_entry(one) for one in group.occurrences))
        asked = _prefixes(group)
        message = f"Listed as {entries}, but the engine asks for {asked}, builds {group.built}; {_then(group)}."
        yield finding(context, this, group, message)


@rule("MTP203", "quantized-built-plain", Severity.ERROR)
def quantized_built_plain(context: Context, this: Rule) -> Iterator[Finding]:
    """Weights are stored quantized where the engine builds a plain layer, whatever the lists say.

    `eh_proj`, `fc` and the heads of many MTP classes are plain layers in the engine: they take 16-bit weights only.

    Repair: dequantize these tensors to BF16.
    """
    found = (one for one in occurrences(context, ["quantized-into-plain"]) if not (one.built and one.built.excluded_by))
    for group in bundle(context, found):
        message = f"Stored {group.stored}, but the engine builds a plain layer there; {_then(group)}."
        yield finding(context, this, group, message)


@rule("MTP204", "fused-partly-listed", Severity.ERROR)
def fused_partly_listed(context: Context, this: Rule) -> Iterator[Finding]:
    """Some projections of a fused layer are excluded, the others are not.

    An engine that fuses q, k and v (or gate and up) builds one layer and cannot give its parts different formats.

    Repair: list all of them, or none.
    """
    for group in bundle(context, occurrences(context, ["fused-partly-listed"])):
        yield finding(context, this, group, "The list names some parts of a fused layer only; construction raises.")


@rule("MTP205", "other-format", Severity.ERROR)
def other_format(context: Context, this: Rule) -> Iterator[Finding]:
    """Weights are stored in one quantized format, the engine builds another, or the scales follow another dialect.

    ModelOpt and compressed-tensors store the same numbers under different names, with reciprocal scales.

    Repair: declare the format that is stored, or convert the tensors.
    """
    for group in bundle(context, occurrences(context, ["other-format"])):
        message = f"Stored {group.stored}, built {group.built}; {_then(group)}."
        yield finding(context, this, group, message)


@rule("MTP208", "shape-odd", Severity.ERROR)
def shape_odd(context: Context, this: Rule) -> Iterator[Finding]:
    """A tensor has another shape than the one that its module is built with after the numbers of config.json.

    The configuration is that of another model, or was edited, or the tensors come from elsewhere.

    Repair: publish the configuration that belongs to the tensors, or the tensors that belong to it (`--graft` takes
    an MTP branch from a base model).
    """
    subject = context.subject

    def shapes(one: Occurrence) -> str:
        module = one.event.module
        suffix = one.event.tensor.rpartition(".")[2]
        known = subject.shapes_in(one.release.engine.name).of(module)
        wanted = known.get(suffix) or known.get("weight") or known.get("")
        stored = subject.stored[module].shape
        told = f", config.json makes it {_sizes(wanted)}" if wanted else ""
        return f"Stored {_sizes(stored[-len(wanted) :] if wanted else stored)}{told}"

    for group in bundle(context, occurrences(context, ["shape-differs"]), key=shapes):
        yield finding(context, this, group, f"{shapes(group.newest)}; {_then(group)}.")


def _sizes(shape: Sequence[int]) -> str:
    """Return a shape as people write it: 7168 x 2048."""
    return " x ".join(map(str, shape))


@rule("MTP206", "unknown-tensor", Severity.ERROR)
def unknown_tensor(context: Context, this: Rule) -> Iterator[Finding]:
    """A tensor names no parameter of the model that the engine builds.

    Loaders either raise at such a tensor, or drop it with at most a warning.

    Repair: drop the tensor, or rename it to what the engine knows.
    """
    for group in bundle(context, occurrences(context, ["unknown-tensor"])):
        crash = group.newest.event.outcome is Outcome.CRASH
        says = "refuses it" if crash else "drops it"
        message = f"The engine has no parameter of this name and {says}."
        yield finding(context, this, group, message, severity=None if crash else Severity.WARNING)


@rule("MTP207", "excluded-but-quantized", Severity.ERROR)
def excluded_but_quantized(context: Context, this: Rule) -> Iterator[Finding]:
    """An entry excludes modules that are stored quantized: the entry is too broad, or should not be there.

    Globs such as `language_model*`, and names that are contained in others (`model.layers.6` in `model.layers.60`),
    make the engine build plain layers for packed weights.

    Repair: narrow or remove the entry, or dequantize the tensors.
    """
    found = (one for one in occurrences(context, ["quantized-into-plain"]) if one.built and one.built.excluded_by)
    for group in bundle(context, found):
        entries = dict.fromkeys(one.built.excluded_by or "" for one in group.occurrences if one.built)
        excluded = "excludes it" if len(entries) == 1 else "exclude them"
        message = f"{describe_names(entries)} {excluded}, but stored is {group.stored}; {_then(group)}."
        yield finding(context, this, group, message)
