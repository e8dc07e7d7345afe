"""How an engine decides from an exclude list that it holds against whole names and against each of their components.

Knows SGLang's two matchers of ModelOpt lists and names the entry that decided, or the error the engine raises. Which of
them a release uses is data (`sglang.toml`); what a module is asked with is family data.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal

from mtpfix.engines.matching import FUSED_PARTLY_LISTED, QUANTIZED, Listing, Match, Packed, compile_pattern

Literally = Literal["exact", "substring", "path", "path-trimmed"]
Patterns = Literal["whole", "components", "substring"]

TAILS = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")
"""Last components of entries that also count where they are a part of a fused layer's name, in any layer."""

FUSED_PARTS: Packed = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
WRAPPER = "language_model."
_SIGNS = re.compile(r"[\\^$+?()\[\]{}|*]")


@dataclass(frozen=True, slots=True)
class ComponentRules:
    """How a release reads a list.

    `literally`: how its first matcher compares an entry with a name; `fallback`: whether that expands qkv_proj and
    gate_up_proj without a packed mapping; `experts_too`: whether entries around the name of experts count beside it,
    rather than instead. `patterns`: how its second matcher does.
    """

    literally: Literally
    fallback: bool
    experts_too: bool
    patterns: Patterns


def refused_entries(names: Iterable[str]) -> tuple[str, ...]:
    """Return the entries that this package does not run: every entry is a regular expression to the engine."""
    return tuple(
        name for name in names if _SIGNS.search(name.replace("*", "")) and compile_pattern(_pattern(name)) is None
    )


def _pattern(name: str) -> str:
    return name.replace(".", r"\.").replace("*", ".*")


@lru_cache(maxsize=65536)
def _fullmatch(pattern: str, name: str) -> bool:
    compiled = compile_pattern(pattern)
    return compiled is not None and compiled.fullmatch(name) is not None


@dataclass(frozen=True)
class ComponentList:
    """A list, prepared once and asked for many names; every answer is an entry's position, or None."""

    listing: Listing

    @cached_property
    def _trimmed(self) -> dict[str, int]:
        places: dict[str, int] = {}
        for place, name in enumerate(self.listing.entries.names):
            places.setdefault(name.rstrip("."), place)
        return places

    @cached_property
    def _untrimmed(self) -> dict[str, int]:
        places: dict[str, int] = {}
        for place, name in enumerate(self.listing.entries.names):
            places.setdefault(name, place)
        return places

    def path(self, name: str, *, trimmed: bool) -> int | None:
        """Return the first entry that is a run of this name's components."""
        places = self._trimmed if trimmed else self._untrimmed
        parts = (name.rstrip(".") if trimmed else name).split(".")
        count = len(parts)
        runs = (".".join(parts[start:end]) for start in range(count) for end in range(start + 1, count + 1))
        return min((places[run] for run in runs if run in places), default=None)

    @cached_property
    def _patterns(self) -> tuple[dict[str, int], dict[str, int], list[tuple[int, str]]]:
        """Return plain entries, entries `head*` by their head, and all others as patterns."""
        plain: dict[str, int] = {}
        heads: dict[str, int] = {}
        others: list[tuple[int, str]] = []
        for place, name in enumerate(self.listing.entries.names):
            if not _SIGNS.search(name):
                plain.setdefault(name, place)
            elif name.endswith("*") and not _SIGNS.search(name[:-1]):
                heads.setdefault(name[:-1], place)
            else:
                others.append((place, _pattern(name)))
        return plain, heads, others

    def pattern(self, names: Iterable[str]) -> int | None:
        """Return the first entry that matches one of these names as a whole."""
        plain, heads, others = self._patterns
        hits: list[int] = []
        for name in names:
            if name in plain:
                hits.append(plain[name])
            hits += (heads[name[:end]] for end in range(len(name) + 1) if name[:end] in heads)
            hits += (place for place, pattern in others if _fullmatch(pattern, name))
        return min(hits, default=None)

    @cached_property
    def _tails(self) -> dict[str, list[int]]:
        tails: dict[str, list[int]] = {}
        for place, name in enumerate(self.listing.entries.names):
            tail = name.rpartition(".")[2]
            if tail in TAILS:
                tails.setdefault(tail, []).append(place)
        return tails

    def tail(self, names: Iterable[str]) -> int | None:
        """Return the first entry whose last component is a part of a latent layer's name, whatever stands before it."""
        lasts = [name.rpartition(".")[2] for name in names]
        hits = [places[0] for tail, places in self._tails.items() if any(tail in last for last in lasts)]
        return min(hits, default=None)


def skipped(prefix: str, lists: ComponentList, packed: Packed, rules: ComponentRules) -> Match:
    """Ask the first matcher, `is_layer_skipped`; a fused layer is expanded into its parts, which must agree.

    Source: srt/layers/quantization/utils.py:70@0.5.23, :46@0.5.10, :46@0.5.6.
    """
    last = prefix.rpartition(".")[2]
    parts = packed.get(last) if last in packed else (FUSED_PARTS.get(last) if rules.fallback else None)
    if parts is not None:
        places = [_literally(prefix.replace(last, part), lists, rules) for part in parts]
        if not places:
            return Match(plain=False, error=("AssertionError", ""))
        hits = [place for place in places if place is not None]
        if hits and len(hits) < len(places):
            return Match(plain=False, error=("ValueError", FUSED_PARTLY_LISTED.format(prefix=prefix)))
        return lists.listing.answer(hits[0]) if hits else QUANTIZED
    place = _literally(prefix, lists, rules)
    if "gate_up_proj" in prefix:
        halves = [lists.listing.exact(prefix.replace("gate_up_proj", half)) for half in ("gate_proj", "up_proj")]
        place = halves[0] if None not in halves else place
    elif "experts" in prefix:
        around = lists.listing.around(prefix)
        place = around if place is None or not rules.experts_too else place
    return QUANTIZED if place is None else lists.listing.answer(place)


def _literally(name: str, lists: ComponentList, rules: ComponentRules) -> int | None:
    if rules.literally == "exact":
        return lists.listing.exact(name)
    if rules.literally == "substring":
        return lists.listing.inside(name)
    return lists.path(name, trimmed=rules.literally == "path-trimmed")


def excluded(prefix: str, lists: ComponentList, rules: ComponentRules) -> Match:
    """Ask the second matcher, `is_layer_excluded`.

    `components`: from 0.5.9, an entry against the whole name, without the wrapper's, and each component. `whole`:
    NVFP4 before, against the whole name. `substring`: FP8 before, an entry anywhere in the name.
    Source: srt/layers/quantization/modelopt_quant.py:379@0.5.23, :1011@0.5.8, :300@0.5.8.
    """
    names = [prefix]
    if rules.patterns == "whole":
        return _whole(prefix, lists)
    if prefix.startswith(WRAPPER):
        names.append(prefix.removeprefix(WRAPPER))
    if rules.patterns == "substring":
        places = [lists.listing.inside(name) for name in names]
    else:
        places = [lists.pattern([*names, *_components(names)]), lists.tail(names)]
    place = min((one for one in places if one is not None), default=None)
    return QUANTIZED if place is None else lists.listing.answer(place)


def _components(names: Sequence[str]) -> set[str]:
    return {part for name in names for part in name.split(".")}


def _whole(prefix: str, lists: ComponentList) -> Match:
    """Ask as before 0.5.9: an entry for a part of a latent layer needs names of five components."""
    place, tail = lists.pattern([prefix]), lists.tail([prefix])
    if tail is not None and (place is None or tail < place):
        if prefix.count(".") != 4 or lists.listing.entries.names[tail].count(".") != 4:
            return Match(plain=False, error=("AssertionError", ""))
        place = tail
    return QUANTIZED if place is None else lists.listing.answer(place)
