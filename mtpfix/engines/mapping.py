"""How an engine rewrites names: the rules that turn a checkpoint's names into its own, as quantization lists see them.

Knows the engines' `WeightsMapper` as far as lists are concerned: it renames, and a rule may drop a name.
Knows no family's rules (those are data) and nothing of the rules that fuse tensors while weights are loaded: no release
applies them to a list.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

from mtpfix.model import DIGITS

Value = TypeVar("Value")
Pair = tuple[str, str | None]
Manner = Literal["all", "split", "paths", "expanded", "none"]
"""Which entries a mapper touches: all of them; all, after `x*` was split in two; only dotted names without `re:`; all,
after which those below `language_model.` stand there without it as well; none."""

WRAPPER = "language_model."
LAYER = re.compile(rf"(?<=\.layers\.)\d{{1,{DIGITS}}}(?!\d)")


@dataclass(frozen=True, slots=True)
class NameMapper:
    """Rules that rewrite a name, applied kind by kind and, within a kind, every rule in turn on the result of the last.

    Each rule is (old, new); a new name of None drops the name. `regex` replaces every hit of a pattern, the other kinds
    replace once. Source: vLLM's model_executor/models/utils.py:89@0.32.0 and :62@0.18.1, the first with `regex`;
    :60@0.11.2. With `longest` only the longest rule of a kind that fits is applied: SGLang's
    srt/models/utils.py:67@0.5.23. `raised` says by how much every number after `.layers.` is raised in names with a
    certain beginning, before all else: models/qwen4_exp/nvidia/mtp.py:75@0.32.0.
    """

    regex: tuple[Pair, ...] = ()
    substr: tuple[Pair, ...] = ()
    prefix: tuple[Pair, ...] = ()
    suffix: tuple[Pair, ...] = ()
    longest: bool = False
    raised: tuple[tuple[str, int], ...] = ()
    _patterns: tuple[tuple[re.Pattern[str], str | None], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        compiled = tuple((re.compile(pattern), new) for pattern, new in self.regex)
        object.__setattr__(self, "_patterns", compiled)

    def map(self, name: str) -> str | None:
        """Return the engine's name for a checkpoint's name, or None where a rule drops it."""
        for beginning, by in self.raised:
            if name.startswith(beginning):
                name = _raised(name, by)
        for pattern, new in self._patterns:
            if pattern.search(name):
                if new is None:
                    return None
                name = pattern.sub(new, name)
        for fits, replaced, rules in (
            (str.__contains__, _once, self.substr),
            (str.startswith, _once, self.prefix),
            (str.endswith, _last, self.suffix),
        ):
            for old, new in self._tried(rules):
                if fits(name, old):
                    if new is None:
                        return None
                    name = replaced(name, old, new)
                    if self.longest:
                        break
        return name

    def _tried(self, rules: tuple[Pair, ...]) -> Sequence[Pair]:
        return sorted(rules, key=lambda rule: -len(rule[0])) if self.longest and len(rules) > 1 else rules

    def without_drops(self) -> NameMapper:
        """Return the mapper without the rules that drop names, as lists see it from 0.29 on.

        Source: model_executor/models/utils.py:163@0.29.0.
        """
        return replace(
            self,
            regex=_renames(self.regex),
            substr=_renames(self.substr),
            prefix=_renames(self.prefix),
            suffix=_renames(self.suffix),
        )


def _once(name: str, old: str, new: str) -> str:
    return name.replace(old, new, 1)


def _raised(name: str, by: int) -> str:
    return LAYER.sub(lambda number: str(int(number[0]) + by), name)


def _last(name: str, old: str, new: str) -> str:
    return new.join(name.rsplit(old, 1))


def _renames(pairs: Sequence[Pair]) -> tuple[Pair, ...]:
    return tuple(pair for pair in pairs if pair[1] is not None)


def from_toml(table: Mapping[str, Any], *, longest: bool = False) -> NameMapper:
    """Build a mapper from a family file's table: lists of `[old, new]` pairs, `[old]` where the rule drops the name."""
    regex, substr, prefix, suffix = (
        tuple(_pair(rule) for rule in table.get(kind, ())) for kind in ("regex", "substr", "prefix", "suffix")
    )
    raised = tuple((beginning, int(by)) for beginning, by in table.get("raised", ()))
    return NameMapper(regex, substr, prefix, suffix, longest, raised)


def _pair(rule: Sequence[str]) -> Pair:
    return (rule[0], rule[1] if len(rule) > 1 else None)


def split_wildcards(entries: Iterable[str]) -> tuple[str, ...]:
    """Split every entry `x*` into `x` and `x.*`, as vLLM does before it maps a ModelOpt list from 0.13 on.

    An entry of one character, and one that ends in `.*`, stays. Source:
    model_executor/layers/quantization/modelopt.py:200@0.13.0.
    """
    found: list[str] = []
    for entry in entries:
        if len(entry) >= 2 and entry[-1] == "*" and entry[-2] != ".":
            found += (entry[:-1], entry[:-1] + ".*")
        else:
            found.append(entry)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of one list: `names` as the engine holds them now, `written` as the file spells each of them."""

    names: tuple[str, ...]
    written: tuple[str, ...]

    @classmethod
    def read(cls, names: Iterable[str]) -> Entries:
        """Return the entries of a list that no mapper has touched."""
        found = tuple(names)
        return cls(found, found)

    def rewritten(self, mapper: NameMapper, manner: Manner) -> Entries:
        """Return the list after a model class handed its mapper to the quantization configuration."""
        if manner == "none":
            return self
        if manner == "expanded":
            return self._expanded(mapper)
        names: list[str] = []
        written: list[str] = []
        for name, origin in zip(self.names, self.written, strict=True):
            for piece in split_wildcards((name,)) if manner == "split" else (name,):
                mapped = mapper.map(piece) if _touched(piece, manner) else piece
                if mapped is not None:
                    names.append(mapped)
                    written.append(origin)
        return Entries(tuple(names), tuple(written))

    def _expanded(self, mapper: NameMapper) -> Entries:
        """Return the list mapped, each name below the wrapper also without it, every name once."""
        found: dict[str, str] = {}
        for name, origin in zip(self.names, self.written, strict=True):
            mapped = mapper.map(name)
            if mapped is None:
                continue
            found.setdefault(mapped, origin)
            if mapped.startswith(WRAPPER):
                found.setdefault(mapped.removeprefix(WRAPPER), origin)
        return Entries(tuple(found), tuple(found.values()))

    def table(self, values: Mapping[str, Value]) -> dict[str, Value]:
        """Return the values, given by the names as written, by the names as the engine holds them.

        Where two names became one it keeps the place of the first and the value of the last, as the engine does.
        """
        return {name: values[origin] for name, origin in zip(self.names, self.written, strict=True)}


def _touched(name: str, manner: Manner) -> bool:
    return manner != "paths" or ("." in name and not name.startswith("re:"))
