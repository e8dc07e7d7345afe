"""Names of tensors and modules: how a tensor's name splits, how names sort, and how many names read as few.

Knows the suffixes that weights and their scales carry in published checkpoints. Knows no family and no layer numbers
beyond their being numbers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mtpfix.model import DIGITS, EXPERT

CACHE_SCALES = frozenset(
    {"k_scale", "v_scale", "q_scale", "kv_scale", "prob_scale", "output_scale", "k_zero_point", "v_zero_point"}
)
"""Suffixes of scales that belong to the attention cache and say nothing of the weight beside them."""

SCALES = frozenset(
    {
        *("weight_scale", "weight_scale_2", "weight_scale_inv", "weight_global_scale", "weight_zero_point"),
        *("weight_shape", "weight_g_idx", "input_scale", "input_global_scale", "input_zero_point", "input_scale_ub"),
        *("scale", "scales", "qzeros", "g_idx", "pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b", "SCB"),
        *("scale2", "input_amax", "original_shape"),
    }
)
"""Suffixes of what stands beside a quantized weight."""

WEIGHTS = ("weight_packed", "qweight", "weight", "blocks", "")
"""Suffixes of the tensor that holds a module's numbers; "" where the name itself is the tensor's."""

_DOTTED = frozenset({*SCALES, *CACHE_SCALES, "weight", "bias", "weight_packed", "qweight"})
_FLAT = frozenset({*SCALES, "blocks", "bias", "weight_packed"})  # gpt-oss: gate_up_proj_blocks; llama4: .._weight_scale
_FLAT_AFTER = "_proj_"
_BITSANDBYTES = frozenset({"absmax", "quant_map", "nested_absmax", "nested_quant_map"})
_DIGITS = re.compile(r"([0-9]+)")
_NUMBER = re.compile(rf"(?:0|[1-9][0-9]{{0,{DIGITS - 1}}})\Z")
_COMPONENTS = 32  # longer names are left as they are
_RUNS = 6  # runs of numbers, or words, that are spelt out between braces


def split_name(name: str) -> tuple[str, str]:
    """Return (module, suffix) of a tensor's name.

    The suffix is "" where the tensor is no known part of a module (`A_log`, a fused `experts.gate_up_proj`), begins
    with "_" where an underscore joins it (`gate_up_proj_blocks`), and with "weight." for bitsandbytes' states.
    """
    module, dot, last = name.rpartition(".")
    if last in _DOTTED and (module or not dot):
        return module, last
    head, flat, tail = last.rpartition(_FLAT_AFTER)
    if flat and tail in _FLAT:
        cut = len(name) - len(tail) - 1
        return name[:cut], name[cut:]
    states = last in _BITSANDBYTES or last.startswith("bitsandbytes__")
    head, middle, tail = name.partition(".weight.")
    return (head, f"weight.{tail}") if states and head and middle else (name, "")


def tensor_name(module: str, suffix: str) -> str:
    """Return the tensor's name that `split_name` splits into these two."""
    if not suffix or suffix[0] == "_":
        return module + suffix
    return f"{module}.{suffix}" if module else suffix


def is_weight(module: str) -> bool:
    """Return whether a module's own name is that of its weight (`experts.w13_weight`), so that scales follow a dot."""
    return module.endswith("_weight")


def natural_key(text: str) -> tuple[str | tuple[int, str], ...]:
    """Return a sort key in which numbers compare as numbers, as vLLM orders shards.

    Source: model_executor/model_loader/weight_utils.py:147@0.32.0.
    """
    pieces: list[str | tuple[int, str]] = list(_DIGITS.split(text))
    for position in range(1, len(pieces), 2):
        digits = str(pieces[position]).lstrip("0")
        pieces[position] = (len(digits), digits)
    return tuple(pieces)


@dataclass(frozen=True, slots=True)
class NamePattern:
    """Several names written as one: `text` has `{3..60}` for numbers, `{a,b}` for words, `*` for every expert."""

    text: str
    count: int


def collapse_numbers(numbers: Iterable[int]) -> str:
    """Return numbers as `5`, `{0..255}` or `{0..2,5}`; many runs are cut short by `…` before the last one."""
    ordered = sorted(set(numbers))
    if len(ordered) == 1:
        return str(ordered[0])
    runs: list[list[int]] = []
    for number in ordered:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [_run(first, last) for first, last in runs]
    return "{" + ",".join(_shortened(texts)) + "}"


def collapse_names(names: Iterable[str]) -> tuple[NamePattern, ...]:
    """Return few patterns that stand for all names: layer and expert numbers and last words are put between braces.

    Each name is counted once and lies under exactly one pattern. The patterns are in the natural order of their texts.
    """
    rows: set[_Row] = set()
    for name in names:
        components = tuple(name.split("."))
        rows.add(components if len(components) <= _COMPONENTS else (name,))
    rows = _merged_last_words(rows)
    for position in range(max(map(len, rows), default=0) - 1, -1, -1):
        rows = _merged_numbers(rows, position)
    patterns = [_pattern(row) for row in rows]
    return tuple(sorted(patterns, key=lambda pattern: (natural_key(pattern.text), pattern.text, pattern.count)))


def describe_names(names: Iterable[str], limit: int = 3) -> str:
    """Return names as a phrase for a sentence: the `limit` largest patterns with counts, then how many names remain.

    Each pattern shows at most 120 characters.
    """
    patterns = sorted(collapse_names(names), key=lambda pattern: -pattern.count)
    shown = [_counted(pattern) for pattern in patterns[:limit]]
    rest = sum(pattern.count for pattern in patterns[limit:])
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


_Component = str | frozenset[str]
_Row = tuple[_Component, ...]


def _merged_last_words(rows: Iterable[_Row]) -> set[_Row]:
    words: dict[_Row, list[str]] = {}
    kept: set[_Row] = set()
    for row in rows:
        last = row[-1]
        if len(row) > 1 and isinstance(last, str) and last != EXPERT and not _NUMBER.match(last):
            words.setdefault(row[:-1], []).append(last)
        else:
            kept.add(row)
    kept.update((*head, last[0] if len(last) == 1 else frozenset(last)) for head, last in words.items())
    return kept


def _merged_numbers(rows: Iterable[_Row], position: int) -> set[_Row]:
    numbers: dict[tuple[_Row, _Row], list[str]] = {}
    kept: set[_Row] = set()
    for row in rows:
        component = row[position] if position < len(row) else EXPERT
        if isinstance(component, str) and _NUMBER.match(component):
            numbers.setdefault((row[:position], row[position + 1 :]), []).append(component)
        else:
            kept.add(row)
    for (head, tail), found in numbers.items():
        kept.add((*head, found[0] if len(found) == 1 else frozenset(found), *tail))
    return kept


def _pattern(row: _Row) -> NamePattern:
    count = 1
    texts = []
    for component in row:
        if isinstance(component, str):
            texts.append("*" if component == EXPERT else component)
            continue
        count *= len(component)
        numeric = all(_NUMBER.match(word) for word in component)
        texts.append(collapse_numbers(map(int, component)) if numeric else _braced(component))
    return NamePattern(".".join(texts), count)


def _braced(words: Iterable[str]) -> str:
    """Return `{down,gate,up}_proj` for words that share a beginning or an end at an underscore."""
    ordered = sorted(words, key=lambda word: (natural_key(word), word))
    before = _shared_start(ordered)
    before = before[: before.rfind("_") + 1]
    middles = [word[len(before) :] for word in ordered]
    after = _shared_start([word[::-1] for word in middles])[::-1]
    after = after[after.find("_") :] if "_" in after else ""
    middles = [word[: len(word) - len(after)] for word in middles]
    return before + "{" + ",".join(_shortened(middles)) + "}" + after


def _shared_start(words: Sequence[str]) -> str:
    first, last = min(words), max(words)
    length = next((at for at, letter in enumerate(first) if last[at : at + 1] != letter), len(first))
    return first[:length]


def _run(first: int, last: int) -> str:
    if last - first < 2:
        return str(first) if first == last else f"{first},{last}"
    return f"{first}..{last}"


def _shortened(texts: Sequence[str]) -> Sequence[str]:
    return texts if len(texts) <= _RUNS + 2 else (*texts[:_RUNS], "…", texts[-1])


def _counted(pattern: NamePattern) -> str:
    text = pattern.text if len(pattern.text) <= 120 else pattern.text[:119] + "…"
    return text if pattern.count == 1 else f"{text} ({pattern.count})"
