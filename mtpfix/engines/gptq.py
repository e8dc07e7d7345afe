"""GPTQ as vLLM reads it: the checks of its block, the names it packs, and what `dynamic` says of a prefix.

A linear layer is packed if one of the names in `modules_in_block_to_quantize` is part of its prefix; where the block
does not say these, the engine takes every module that the checkpoint stores in another type than 16 or 32-bit floats.
Experts are packed whatever those names are. `dynamic` excludes by patterns (`-:`), experts too, and may give single
modules other numbers (`+:`): that is not predicted, nor is GPTQ that Marlin kernels do not take.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtpfix.checkpoint.names import split_name
from mtpfix.engines.mapping import Entries
from mtpfix.engines.matching import FUSED_PARTLY_LISTED, QUANTIZED, Listing, Match, Packed, refused_patterns
from mtpfix.engines.resolved import KEY_MISSING, Facts, Resolved
from mtpfix.model import EXPERT, Declaration, Format, Scheme, Stored, Tensor

METHODS = frozenset({"gptq_marlin", "auto_gptq"})
NOT = "-:"
"""How a pattern of `dynamic` begins that excludes."""
PLAIN = frozenset({"F16", "BF16", "F32"})
"""Types of tensors that do not make their module a packed one."""
BITS: Mapping[int, Format] = {4: Format.INT4, 8: Format.INT8}
GROUPS = (-1, 32, 64, 128)
"""Group sizes of the Marlin kernels."""
KEYS = ("bits", "group_size", "desc_act", "sym")
NUMBERS = "Unsupported quantization config: bits={bits}, sym={sym}"
ORDERED = (
    "GPTQ group activation ordering (desc_act=True) is no longer supported. Use a checkpoint with static activation "
    "ordering or desc_act=False."
)
HIDDEN, INNER = 128, 64
"""What the two widths of experts must be multiples of, so that they are built for Marlin."""


def method_of(raw: Mapping[str, Any], facts: Facts) -> str:
    """Return the method that a block of GPTQ is read with: Marlin's, where its numbers allow that.

    Source: model_executor/layers/quantization/gptq_marlin.py:267@0.18.1, auto_gptq.py:200@0.32.0.
    """
    chosen: str = facts["gptq_method"]
    if chosen == "gptq_marlin":
        suits = raw.get("bits") in BITS and raw.get("sym") is True and raw.get("group_size") in GROUPS
        return chosen if suits and raw.get("desc_act") is not None else "gptq"
    return chosen


def resolve_gptq(block: Declaration, method: str, facts: Facts) -> Resolved:
    """Return what an engine makes of a block; raises RefusedError where it raises."""
    raw = block.raw
    for key in KEYS:
        if key not in raw:
            raise facts.refuse("ValueError", KEY_MISSING.format(keys=[key]), "gptq_method")
    bits, size, ordered, symmetric = (raw[key] for key in KEYS)
    if facts["gptq_order"] == "refused" and ordered and size != -1:
        raise facts.refuse("ValueError", ORDERED, "gptq_order")
    dynamic = raw.get("dynamic") or {}
    reason = _unread(raw, dynamic)
    if not reason and (bits not in BITS or symmetric is not True):
        raise facts.refuse("ValueError", NUMBERS.format(bits=bits, sym=symmetric), "gptq_method")
    if not reason and size not in GROUPS:
        reason = f"GPTQ in groups of {size} is not predicted"
    scheme = None if reason else Scheme(BITS[bits], "gptq", size)
    facts["gptq_empty"]  # read when a prefix is asked for; cited here
    return Resolved(
        method=method,
        declaration=block,
        scheme=scheme,
        because=tuple(facts.cited),
        excludes=() if reason else tuple(name for name in dynamic if name.startswith(NOT)),
        simulated=not reason,
        reason=reason,
        within=None if reason else _within(raw.get("modules_in_block_to_quantize")),
        head=raw.get("lm_head") is True,
    )


def _unread(raw: Mapping[str, Any], dynamic: object) -> str:
    """Return why a block is not predicted, empty where it is."""
    if raw.get("quant_method") != "gptq":
        return f"GPTQ under the name {raw.get('quant_method')} is not predicted"
    if not isinstance(dynamic, Mapping):
        return "dynamic is not an object"
    if any(not name.startswith(NOT) for name in dynamic):
        return "dynamic gives modules other numbers, and that is not predicted"
    unread = refused_patterns(f"re:{name.removeprefix(NOT)}" for name in dynamic)
    if unread:
        return f"the pattern {unread[0].removeprefix('re:')!r} is not run"
    if not _is_names(raw.get("modules_in_block_to_quantize")):
        return "modules_in_block_to_quantize is not a list of names"
    if not all(type(raw[key]) is int for key in ("bits", "group_size") if key in raw):
        return "bits or group_size is not a number"
    return ""


def _is_names(value: object) -> bool:
    if value is None:
        return True
    if not isinstance(value, list):
        return False
    inner = [one for block in value for one in (block if isinstance(block, list) else (block,))]
    return all(isinstance(one, str) for one in inner)


def _within(value: Sequence[Any] | None) -> tuple[str, ...] | None:
    """Return the names a block says, of all its lists; None where it says none."""
    found = [one for block in value or () for one in (block if isinstance(block, list) else (block,))]
    return tuple(found) or None


def packed_names(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """Return the modules that an engine takes for packed by the types of their tensors.

    Experts keep `{}` for their number: no prefix that is asked for goes so deep.
    """
    return tuple(dict.fromkeys(split_name(one.name)[0] for one in tensors if one.dtype not in PLAIN))


def within(prefix: str, listing: Listing, packed: Packed, *, all_if_empty: bool) -> Match:
    """Ask `is_layer_gptq_quantized`: whether a name is part of the prefix, or of each of its parts where it is fused.

    Source: model_executor/layers/quantization/utils/gptq_utils.py:143@0.32.0, :90@0.18.1.
    """
    if all_if_empty and not listing.entries.names:
        return QUANTIZED
    last = prefix.rpartition(".")[2]
    if last not in packed:
        return _answer(listing.inside(prefix) is not None)
    hits = {listing.inside(prefix.replace(last, part)) is not None for part in packed[last]}
    if not hits:
        return Match(plain=False, error=("AssertionError", ""))
    if len(hits) > 1:
        return Match(plain=False, error=("ValueError", FUSED_PARTLY_LISTED.format(prefix=prefix)))
    return _answer(hits.pop())


def _answer(packed: bool) -> Match:
    return QUANTIZED if packed else Match(plain=True)


def patterns(dynamic: Entries) -> Entries:
    """Return the patterns that exclude as a list holds patterns, each with what the file says."""
    return Entries(tuple(f"re:{name.removeprefix(NOT)}" for name in dynamic.names), dynamic.written)


def excluded(prefix: str, listing: Listing) -> Match:
    """Ask `get_dynamic_override` of patterns that exclude: the first that matches from the beginning decides.

    `listing` holds the patterns as `re:`. Source: model_executor/layers/quantization/utils/gptq_utils.py:92@0.32.0.
    """
    place = listing.pattern(prefix)
    return QUANTIZED if place is None else listing.answer(place)


def odd_experts(stored: Iterable[Stored], group: int) -> str:
    """Return the name of packed experts whose widths the Marlin kernels do not take, empty where there are none.

    Source: model_executor/layers/quantization/utils/marlin_utils.py:230@0.18.1.
    """
    return next(_odd(stored, group), "")


def _odd(stored: Iterable[Stored], group: int) -> Iterator[str]:
    inner = max(INNER, group)
    for item in stored:
        if EXPERT in item.module and len(item.shape) == 2 and not item.format.plain:
            rows, columns = item.shape
            if (rows % HIDDEN or columns % inner) and (columns % HIDDEN or rows % inner):
                yield item.module


__all__ = [
    "METHODS",
    "NOT",
    "excluded",
    "method_of",
    "odd_experts",
    "packed_names",
    "patterns",
    "resolve_gptq",
    "within",
]
