"""How an engine decides from its lists whether, and how, a module is quantized: a closed set of pure functions.

Knows vLLM's matchers, and what SGLang made of those for compressed-tensors, and names the entry that decided, or the
error the engine raises. Which of them a release uses is data (`vllm.toml`, `sglang.toml`); which prefix a module is
asked with is family data; what a scheme builds is not known here.
"""

from __future__ import annotations

import re
import warnings
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import cached_property, lru_cache
from typing import Literal, assert_never

from mtpfix.engines.mapping import Entries

Packed = Mapping[str, Sequence[str]]
"""Fused names and the names of their parts: `{"qkv_proj": ["q_proj", "k_proj", "v_proj"]}`."""

Mode = Literal["exact", "substring", "suffix"]
Wildcards = Literal["regex", "substring", "glob"]

FUSED_PARTLY_LISTED = (
    "Detected some but not all shards of {prefix} are quantized. All shards of fused layers to have the same precision."
)
NO_TARGET = "Unable to find matching target for {prefix} in the compressed-tensors config."
EXPERTS_DIFFER = "All MoE projections need to have same quantization scheme but found multiple"
ALGOS_DIFFER = "Mixed quant_algo within fused layer {prefix}: {algos}. All shards must use the same quantization."


@dataclass(frozen=True, slots=True)
class Match:
    """What the lists say of one prefix.

    `plain`: the engine builds it unquantized. `scheme`: the algorithm or target that an allow-list gives it. `entry` is
    the entry that decided as the engine holds it, `written` as the file spells it; None where no entry did. `error` is
    the exception's class and its exact text; then nothing else counts.
    """

    plain: bool
    scheme: str | None = None
    entry: str | None = None
    written: str | None = None
    error: tuple[str, str] | None = None


PLAIN = Match(plain=True)
QUANTIZED = Match(plain=False)


def _error(name: str, text: str = "") -> Match:
    return Match(plain=False, error=(name, text))


# ------------------------------------------------------------------------------------------------ lists

_LONG_LIST = 256  # from here on looking up every part of the name is cheaper than trying every entry


@dataclass(frozen=True)
class Listing:
    """A list, prepared once and asked for many prefixes; every answer is an entry's position, or None."""

    entries: Entries

    @cached_property
    def _places(self) -> dict[str, int]:
        places: dict[str, int] = {}
        for place, name in enumerate(self.entries.names):
            places.setdefault(name, place)
        return places

    def exact(self, name: str) -> int | None:
        """Return the first entry that is this name."""
        return self._places.get(name)

    def suffix(self, name: str) -> int | None:
        """Return the first entry that is this name, or its end after a dot."""
        ends = [name, *(name[dot + 1 :] for dot, letter in enumerate(name) if letter == ".")]
        return min((self._places[end] for end in ends if end in self._places), default=None)

    def end(self, name: str) -> int | None:
        """Return the first entry that is this name, its end after a dot, or a pattern that matches from its start."""
        return min((place for place in (self.pattern(name), self.suffix(name)) if place is not None), default=None)

    def anywhere(self, name: str) -> int | None:
        """Return the first entry that is a part of this name in any case, or a pattern that matches from its start."""
        places = (self.pattern(name), self._lowered.inside(name.lower()))
        return min((place for place in places if place is not None), default=None)

    @cached_property
    def _lowered(self) -> Listing:
        names = tuple(name.lower() for name in self.entries.names)
        return Listing(Entries(names, self.entries.written))

    def inside(self, name: str, *, proper: bool = False) -> int | None:
        """Return the first entry that is a part of this name; with `proper`, one that is not the whole name."""
        if len(self._places) <= _LONG_LIST:
            return next(
                (at for entry, at in self._places.items() if entry in name and not (proper and entry == name)), None
            )
        hits = [
            self._places[name[start : start + length]]
            for length, entries in self._by_length.items()
            for start in range(len(name) - length + 1)
            if name[start : start + length] in entries and not (proper and length == len(name))
        ]
        return min(hits, default=None)

    @cached_property
    def _by_length(self) -> dict[int, set[str]]:
        lengths: dict[int, set[str]] = {}
        for name in self._places:
            lengths.setdefault(len(name), set()).add(name)
        return lengths

    def around(self, name: str) -> int | None:
        """Return the first entry that speaks of experts and contains this name."""
        text, starts, places = self._experts
        hit = text.find(name)
        return None if hit < 0 else places[bisect_right(starts, hit) - 1]

    @cached_property
    def _experts(self) -> tuple[str, list[int], list[int]]:
        """Return all entries with "experts" as one text, where each begins in it, and its position in the list."""
        text: list[str] = []
        starts: list[int] = []
        places: list[int] = []
        length = 0
        for name, place in self._places.items():
            if "experts" in name:
                text.append(name)
                starts.append(length)
                places.append(place)
                length += len(name) + 1
        return "\0".join(text), starts, places

    def glob(self, name: str) -> int | None:
        """Return the first entry that matches the whole name as a shell pattern."""
        heads, others = self._globs
        hits = [heads[name[:length]] for length in range(len(name) + 1) if name[:length] in heads]
        if name in self._places and not _GLOB.search(name):
            hits.append(self._places[name])
        hits += (place for place, pattern in others if pattern.match(name))
        return min(hits, default=None)

    @cached_property
    def _globs(self) -> tuple[dict[str, int], list[tuple[int, re.Pattern[str]]]]:
        """Return entries `head*` by their head, and the other shell patterns compiled."""
        heads: dict[str, int] = {}
        others: list[tuple[int, re.Pattern[str]]] = []
        for name, place in self._places.items():
            if not _GLOB.search(name):
                continue
            if name.endswith("*") and not _GLOB.search(name[:-1]):
                heads.setdefault(name[:-1], place)
            else:
                others.append((place, re.compile(translate(name))))
        return heads, others

    def pattern(self, name: str) -> int | None:
        """Return the first entry that is this name or, beginning with `re:`, matches from its start."""
        hits = (place for place, pattern in self._patterns if _matches(pattern, name))
        by_pattern, by_name = next(hits, None), None if name.startswith("re:") else self._places.get(name)
        return min((place for place in (by_pattern, by_name) if place is not None), default=None)

    @cached_property
    def _patterns(self) -> list[tuple[int, str]]:
        return [(place, name[3:]) for name, place in self._places.items() if name.startswith("re:")]

    def starred(self, name: str) -> int | None:
        """Return the first entry that matches the whole name where `*` stands for anything, as vLLM before 0.12 does.

        Other signs of a regular expression keep their meaning. Entries without star and dot are passed over.
        """
        return next((place for place, pattern in self._starred if _matches_whole(pattern, name)), None)

    @cached_property
    def _starred(self) -> list[tuple[int, str]]:
        return [(place, _starred(name)) for name, place in self._places.items() if "*" in name or "." in name]

    def answer(self, place: int, *, plain: bool = True, scheme: str | None = None) -> Match:
        """Return the answer that the entry at a position gives."""
        return Match(plain, scheme, self.entries.names[place], self.entries.written[place])


_GLOB = re.compile(r"[*?\[]")


def prepare(names: Iterable[str] | Entries) -> Listing:
    """Prepare a list for many questions."""
    return Listing(names if isinstance(names, Entries) else Entries.read(names))


# ------------------------------------------------------------------------------------- patterns of files

_LONGEST = 500
_WILD, _OPTIONAL, _NARROW = 4, 4, 8


def refused_patterns(names: Iterable[str], *, starred: bool = False) -> tuple[str, ...]:
    """Return the entries that this package does not run: malformed patterns, and ones that may be too costly.

    Patterns are entries beginning with `re:`; with `starred` those that `Listing.starred` reads. A pattern is text of
    a file and may be built to run for years: accepted are few repeats, none around a repeat or around alternatives.
    """
    if starred:
        return tuple(name for name in names if ("*" in name or "." in name) and compile_pattern(_starred(name)) is None)
    return tuple(name for name in names if name.startswith("re:") and compile_pattern(name[3:]) is None)


def _starred(name: str) -> str:
    return name.replace(".", r"\.").replace("*", ".*")


@lru_cache(maxsize=65536)
def _matches(pattern: str, name: str) -> bool:
    compiled = compile_pattern(pattern)
    return compiled is not None and compiled.match(name) is not None


@lru_cache(maxsize=65536)
def _matches_whole(pattern: str, name: str) -> bool:
    compiled = compile_pattern(pattern)
    return compiled is not None and compiled.fullmatch(name) is not None


@lru_cache(maxsize=4096)
def compile_pattern(pattern: str) -> re.Pattern[str] | None:
    """Compile a pattern of a file; None where it is malformed, too costly, or read differently by `re` and `regex`."""
    if len(pattern) > _LONGEST or not _affordable(pattern):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return re.compile(pattern)
    except (re.error, Warning, OverflowError, RecursionError):
        return None


_TOKEN = re.compile(
    r"(?P<open>\((?:\?(?:P?<\w+>|<[=!]|[:=!>]|[a-z]+\)))?)"
    r"|(?P<close>\))|(?P<either>\|)"
    r"|(?P<repeat>[*+]|\{\d*(?:,\d*)?\})(?P<lazy>[?+]?)|(?P<maybe>\?)\??"
    r"|(?P<digits>\\d|\[[0-9-]+\])"
    r"|(?P<atom>\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|[^{])",
    re.DOTALL,
)


def _affordable(pattern: str) -> bool:
    counts = {"wild": 0, "narrow": 0, "optional": 0}
    groups = [False]  # for each open group, whether it holds a repeat or an alternative
    previous, closed = "", False
    at, end = 0, len(pattern)
    while at < end:
        token = _TOKEN.match(pattern, at)
        if token is None:
            return False
        at = token.end()
        kind = token.lastgroup if token.lastgroup != "lazy" else "repeat"
        if kind == "open":
            if not token.group().endswith(")"):
                groups.append(False)
        elif kind == "close":
            if len(groups) == 1:
                return False
            closed = groups.pop()
            groups[-1] = groups[-1] or closed
        elif kind == "either":
            groups[-1] = True
        elif kind == "repeat":
            if previous == "close" and closed:
                return False
            groups[-1] = True
            if at < end:  # at the very end there is nothing to come back from
                counts["narrow" if previous == "digits" else "wild"] += 1
        elif kind == "maybe":
            groups[-1] = True
            counts["optional"] += 1
        previous = kind or ""
    return counts["wild"] <= _WILD and counts["optional"] <= _OPTIONAL and counts["narrow"] <= _NARROW


# --------------------------------------------------------------------------------------- exclusion lists


def skipped(prefix: str, listing: Listing, packed: Packed, *, fused_name_listed: bool, mode: Mode = "exact") -> Match:
    """Ask `is_layer_skipped`, the matcher of fp8 and the first step of ModelOpt's.

    A fused layer is expanded into its parts, which must agree; with `fused_name_listed` (from 0.24) the fused name
    itself counts first. A prefix with "experts" is skipped when an entry with "experts" contains it.
    Source: model_executor/layers/quantization/utils/quant_utils.py:617@0.32.0, :284@0.11.2.
    """
    find = {"exact": listing.exact, "substring": listing.inside, "suffix": listing.suffix}[mode]
    last = prefix.rpartition(".")[2]
    if last in packed:
        if fused_name_listed and (place := find(prefix)) is not None:
            return listing.answer(place)
        places = [find(prefix.replace(last, part)) for part in packed[last]]
        if not places:
            return _error("AssertionError")
        hits = [place for place in places if place is not None]
        if hits and len(hits) < len(places):
            return _error("ValueError", FUSED_PARTLY_LISTED.format(prefix=prefix))
        return listing.answer(hits[0]) if hits else QUANTIZED
    place = listing.around(prefix) if "experts" in prefix and mode == "exact" else find(prefix)
    return QUANTIZED if place is None else listing.answer(place)


def excluded(prefix: str, listing: Listing, packed: Packed, *, wildcards: Wildcards, fused_name_listed: bool) -> Match:
    """Ask ModelOpt's `is_layer_excluded`: the exact matcher first, then the wildcards of the release.

    `regex`: NVFP4 before 0.12, entries with a star or a dot against the whole prefix. `substring`: FP8 before 0.12,
    entries anywhere in the prefix. `glob`: from 0.12, entries anywhere, then shell patterns against the whole prefix.
    Source: model_executor/layers/quantization/modelopt.py:187@0.32.0, :879@0.11.2, :193@0.11.2.
    """
    if not listing.entries.names:
        return QUANTIZED
    first = skipped(prefix, listing, packed, fused_name_listed=fused_name_listed)
    if first.plain or first.error is not None:
        return first
    if wildcards == "regex":
        place = listing.starred(prefix)
    else:
        place = listing.inside(prefix, proper=True)
        if place is None and wildcards == "glob":
            place = listing.glob(prefix)
    return QUANTIZED if place is None else listing.answer(place)


# --------------------------------------------------------------------------- mixed precision: an allow-list


@dataclass(frozen=True)
class Algorithms:
    """The `quantized_layers` of a mixed checkpoint, prepared once and asked for many prefixes.

    `values` gives the algorithm of each entry by its name as written; None stands for an entry without `quant_algo`.
    """

    entries: Entries
    values: Mapping[str, str | None]

    @cached_property
    def table(self) -> Mapping[str, str]:
        """Return, for every name as the engine holds it, the name as written whose value it has."""
        return dict(zip(self.entries.names, self.entries.written, strict=True))

    def answer(self, name: str) -> Match:
        """Return the answer that the entry of this name gives."""
        written = self.table[name]
        algorithm = self.values[written]
        if algorithm is None:
            return _error("KeyError", "'quant_algo'")
        return Match(plain=False, scheme=algorithm.upper(), entry=name, written=written)

    @cached_property
    def below(self) -> Mapping[str, str]:
        """Return, for every dotted beginning of a name, the first name that has it."""
        found: dict[str, str] = {}
        for name in self.table:
            dot = name.rfind(".")
            while dot >= 0:
                found.setdefault(name[:dot], name)
                dot = name.rfind(".", 0, dot)
        return found


@dataclass(frozen=True, slots=True)
class MixedSteps:
    """Which steps a release takes: other spellings of the prefix, siblings of `experts`, parts without a packed map.

    `spellings`: `head` for `lm_head` alone, `wrapped` for the two orders of `model.` and `language_model.`, `plain` for
    names below either that lack or have `language_model.`.
    """

    spellings: tuple[str, ...]
    siblings: bool
    parts: bool


_FUSED_PARTS: Packed = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


def algorithm(prefix: str, layers: Algorithms, packed: Packed, steps: MixedSteps) -> Match:
    """Ask `_resolve_quant_algo`: the algorithm of a prefix, plain where the allow-list does not name it.

    Where the parts of a fused layer differ the engine prints a set, whose order changes from run to run; here sorted.
    Source: model_executor/layers/quantization/modelopt.py:1717@0.32.0, :1804@0.17.1.
    """
    spellings = _spellings(prefix, steps.spellings)
    for name in spellings:
        if name in layers.table:
            return layers.answer(name)
    base, dot, last = prefix.rpartition(".")
    base = base if dot else prefix
    if last in packed:
        bases = _spellings(base, steps.spellings)
        match = _agreed(prefix, layers, [f"{start}.{part}" for start in bases for part in packed[last]])
        if match is not None:
            return match
    for name in spellings:
        if name in layers.below:
            return layers.answer(layers.below[name])
    if steps.siblings and prefix.endswith(".experts"):
        parent = prefix.rsplit(".experts", 1)[0]
        if parent in layers.below:
            return layers.answer(layers.below[parent])
    if steps.parts and last in _FUSED_PARTS:
        for name in spellings:
            parent = name.rsplit(".", 1)[0]
            match = _agreed(prefix, layers, [f"{parent}.{part}" for part in _FUSED_PARTS[last]])
            if match is not None:
                return match
    return PLAIN


def _agreed(prefix: str, layers: Algorithms, names: Sequence[str]) -> Match | None:
    """Return the one algorithm of those names that are listed, an error where they differ, None where none is."""
    matches = [layers.answer(name) for name in names if name in layers.table]
    failed = next((match for match in matches if match.error is not None), None)
    if failed is not None:
        return failed
    found = sorted({match.scheme for match in matches if match.scheme is not None})
    if len(found) > 1:
        algos = "{" + ", ".join(map(repr, found)) + "}"
        return _error("ValueError", ALGOS_DIFFER.format(prefix=prefix, algos=algos))
    return matches[0] if matches else None


def _spellings(prefix: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """Return the prefix and its other spellings.

    Source: vLLM's model_executor/layers/quantization/modelopt.py:2362@0.22.0, SGLang's
    srt/layers/quantization/modelopt_quant.py:988@0.5.20.
    """
    found = [prefix]
    if "head" in kinds and prefix.endswith(".lm_head"):
        found.append("lm_head")
    wrapped, inner, plain = "language_model.model.", "model.language_model.", "model."
    if "wrapped" in kinds and prefix.startswith(wrapped):
        found.append(inner + prefix.removeprefix(wrapped))
    elif "wrapped" in kinds and prefix.startswith(inner):
        found.append(wrapped + prefix.removeprefix(inner))
        if "plain" in kinds:
            found.append(plain + prefix.removeprefix(inner))
    elif "plain" in kinds and prefix.startswith(plain):
        found.append(inner + prefix.removeprefix(plain))
    return tuple(dict.fromkeys(found))


# -------------------------------------------------------------------------------------- compressed-tensors


@dataclass(frozen=True, slots=True)
class CompressedRules:
    """How a release reads a compressed-tensors configuration.

    `shards`: every part of a fused layer is tried, unless the list names the fused layer; without it (from 0.30) any
    entry that matches the fused name wins first. `fused_first` (from 0.27.1): parts are tried before class names.
    `unmatched_raises` (to 0.20.2): a layer that no target matches is an error. `experts`: `Linear` before 0.12, then
    the parts of the first expert; `listed` (SGLang before 0.5.9): `Linear`, unless the ignore list names them.
    `experts_class` is the class name that experts have. `entries`: an entry of the ignore list is a name or a pattern;
    or (SGLang) a part of a name; or the end of one. `head`: never quantized (`listed`: yet an error of the ignore list
    counts); as a linear layer, but an error means plain; or (SGLang from 0.5.19) where a target names it. `differ` is
    the text where parts of a fused layer differ.
    """

    shards: bool
    fused_first: bool
    unmatched_raises: bool
    experts: Literal["linear", "first", "listed"]
    experts_class: str
    head: Literal["plain", "listed", "asked", "named"]
    entries: Literal["pattern", "part", "end"]
    differ: str

    def find(self, listing: Listing, name: str) -> int | None:
        """Return the first entry of an ignore list that names a layer."""
        match self.entries:
            case "pattern":
                return listing.pattern(name)
            case "part":
                return listing.anywhere(name)
            case "end":
                return listing.end(name)
            case other:
                assert_never(other)


def ignored(prefix: str, listing: Listing, packed: Packed, rules: CompressedRules) -> Match:
    """Ask `should_ignore_layer`: plain where the ignore list names the layer or all parts of a fused one.

    Source: model_executor/layers/quantization/compressed_tensors/utils.py:53@0.32.0, :22@0.11.2;
    model_executor/layers/quantization/utils/config_utils.py:344@0.32.0. SGLang's
    srt/layers/quantization/compressed_tensors/utils.py:24@0.5.23.
    """
    last = prefix.rpartition(".")[2]
    fused = last in packed
    whole = listing.exact(prefix) if fused and rules.shards else rules.find(listing, prefix)
    if whole is not None:
        return listing.answer(whole)
    if not fused:
        return QUANTIZED
    places = [rules.find(listing, prefix.replace(last, part)) for part in packed[last]]
    hits = [place for place in places if place is not None]
    if not places:
        return _error("AssertionError") if rules.shards else PLAIN
    if hits and len(hits) < len(places):
        text = rules.differ.replace("{parts}", str(list(packed[last]))).replace("{prefix}", prefix)
        return _error("ValueError", text)
    return listing.answer(hits[0]) if hits else QUANTIZED


def target(prefix: str, class_name: str, targets: Listing, packed: Packed, *, fused_first: bool) -> Match:
    """Ask `find_matched_target`: the target of `config_groups` for a layer, plain where none matches.

    A target is a layer's name, `re:` and a pattern, or a part of a class name in any case ("Linear"). The parts of a
    fused layer must each match one; the first part's counts.
    Source: model_executor/layers/quantization/compressed_tensors/utils.py:73@0.32.0, :85@0.11.2.
    """
    finders = [_by_class, _by_parts]
    if fused_first:
        finders.reverse()
    place = targets.pattern(prefix)
    for find in finders:
        # The engine chains its searches with `or`: an empty target counts as no hit.
        if place is None or not targets.entries.names[place]:
            place = find(prefix, class_name, targets, packed)
    if place is None:
        return PLAIN
    return targets.answer(place, plain=False, scheme=targets.entries.names[place])


def _by_class(_prefix: str, class_name: str, targets: Listing, _packed: Packed) -> int | None:
    for place, name in enumerate(targets.entries.names):
        if _matches(name[3:], class_name) if name.startswith("re:") else name.lower() in class_name.lower():
            return place
    return None


def _by_parts(prefix: str, _class_name: str, targets: Listing, packed: Packed) -> int | None:
    fused = next((name for name in packed if prefix.endswith(name)), None)
    if fused is None or not packed[fused]:
        return None
    places = [targets.pattern(prefix.replace(fused, part)) for part in packed[fused]]
    return places[0] if all(place is not None and targets.entries.names[place] for place in places) else None


@dataclass(frozen=True)
class Compressed:
    """A compressed-tensors configuration, prepared once: its ignore list and the scheme of each target, in order.

    `schemes` is keyed by the targets as written; a scheme is anything that can be compared.
    """

    ignore: Listing
    entries: Entries
    values: Mapping[str, object]

    @cached_property
    def schemes(self) -> Mapping[str, object]:
        """Return the scheme of every target as the engine holds it."""
        return self.entries.table(self.values)

    @cached_property
    def targets(self) -> Listing:
        """Return the targets, ready to be asked."""
        return prepare(self._distinct(self.entries))

    @staticmethod
    def _distinct(entries: Entries) -> Entries:
        """Return the entries without later ones of the same name, whose value the first then has."""
        found = dict(zip(entries.names, entries.written, strict=True))
        return Entries(tuple(found), tuple(found.values()))

    def with_experts(self, class_name: str) -> Compressed:
        """Return the configuration as the engine extends it for experts: what targets "Linear" targets them too."""
        names = self.entries.names
        if "Linear" not in names or class_name in names:
            return self
        linear = dict(zip(names, self.entries.written, strict=True))["Linear"]
        entries = Entries((*names, class_name), (*self.entries.written, linear))
        return Compressed(self.ignore, entries, self.values)


def compressed(prefix: str, class_name: str, lists: Compressed, packed: Packed, rules: CompressedRules) -> Match:
    """Ask `get_scheme_dict`: plain where ignored or untargeted, else the target, whose group says the scheme.

    Source: model_executor/layers/quantization/compressed_tensors/compressed_tensors.py:998@0.32.0, :633@0.11.2.
    """
    first = ignored(prefix, lists.ignore, packed, rules)
    if first.plain or first.error is not None:
        return first
    if not lists.entries.names:
        return PLAIN
    found = target(prefix, class_name, lists.targets, packed, fused_first=rules.fused_first)
    if found.plain and rules.unmatched_raises:
        return _error("ValueError", NO_TARGET.format(prefix=prefix))
    return found


def compressed_head(prefix: str, class_name: str, lists: Compressed, packed: Packed, rules: CompressedRules) -> Match:
    """Ask for a language model head.

    Source: model_executor/layers/quantization/compressed_tensors/compressed_tensors.py:187@0.32.0. SGLang's
    srt/layers/quantization/compressed_tensors/compressed_tensors.py:1095@0.5.23.
    """
    match rules.head:
        case "plain":
            return PLAIN
        case "listed":
            first = ignored(prefix, lists.ignore, packed, rules)
            return PLAIN if first.error is None else first
        case "asked":
            found = compressed(prefix, class_name, lists, packed, rules)
            return PLAIN if found.error is not None and found.error[0] == "ValueError" else found
        case "named":
            if not lists.entries.names:
                return PLAIN
            first = ignored(prefix, lists.ignore, packed, rules)
            if first.plain or first.error is not None:
                return first
            place = rules.find(lists.targets, prefix)
            named = lists.targets.entries.names
            return PLAIN if place is None else lists.targets.answer(place, plain=False, scheme=named[place])
        case other:
            assert_never(other)


EXPERT_PARTS = ("gate_proj", "up_proj", "down_proj")


def compressed_experts(
    prefix: str, lists: Compressed, packed: Packed, rules: CompressedRules, parts: Sequence[str] = EXPERT_PARTS
) -> Match:
    """Ask for experts; `parts` names gate, up and down as the checkpoint does.

    From 0.12 on the first expert's parts stand for all and must have one scheme; "Linear" then also targets experts.
    Before, "Linear" targets experts whatever the ignore list says, or (SGLang before 0.5.9) unless it names them.
    Source: .../compressed_tensors/compressed_tensors_moe/compressed_tensors_moe.py:28@0.32.0,
    .../compressed_tensors/compressed_tensors_moe.py:106@0.11.2. SGLang's
    srt/layers/quantization/compressed_tensors/compressed_tensors.py:880@0.5.23, compressed_tensors_moe.py:106@0.5.8.
    """
    if rules.experts == "listed":
        first = ignored(prefix, lists.ignore, packed, rules)
        linear = lists.targets.exact("Linear")
        if first.plain or first.error is not None:
            return first
        if linear is None:
            return _error("KeyError", "'Linear'")
        return lists.targets.answer(linear, plain=False, scheme="Linear")
    if rules.experts == "linear":
        return _experts_by_linear(lists, packed, rules)
    extended = lists.with_experts(rules.experts_class)
    matches: list[Match] = []
    for part in parts:
        match = compressed(f"{prefix}.0.{part}", rules.experts_class, extended, packed, rules)
        if match.error is not None:
            return match
        matches.append(match)
    found = [None if match.scheme is None else extended.schemes[match.scheme] for match in matches]
    if any(scheme != found[-1] for scheme in found):
        return _error("ValueError", EXPERTS_DIFFER)
    return matches[-1]


def _experts_by_linear(lists: Compressed, packed: Packed, rules: CompressedRules) -> Match:
    linear = lists.targets.exact("Linear")
    if linear is not None:
        return lists.targets.answer(linear, plain=False, scheme="Linear")
    match = PLAIN
    current: object = None
    for part in ("down_proj", "gate_proj", "up_proj"):
        name = f"re:.*{part}.*"
        match = target(name, rules.experts_class, lists.targets, packed, fused_first=rules.fused_first)
        if match.scheme is None:
            return _error("ValueError", NO_TARGET.format(prefix=name))
        if current is None:
            current = lists.schemes[match.scheme]
        elif current != lists.schemes[match.scheme]:
            return _error("AssertionError")
    return match
