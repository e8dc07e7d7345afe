"""MTP families: what their checkpoints call things, and which class of each engine loads them.

The facts stand in one TOML file per family beside this module; `docs/knowledge.md` describes the form. Nothing here
knows a family by name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from mtpfix.facts import Table, covers, names_of, pick, read_table, read_text
from mtpfix.model import DIGITS

if TYPE_CHECKING:
    from mtpfix.checkpoint.index import Index

PACKAGE = __name__


@dataclass(frozen=True, slots=True)
class Family:
    """One family file: `table` is the file as read, the other fields are what every engine shares."""

    name: str
    title: str
    architectures: tuple[str, ...]
    table: Mapping[str, Any]
    _picked: dict[tuple[str, str], tuple[Table, ...]] = field(default_factory=dict, repr=False, compare=False)

    def modules(self, listing: str, version: str) -> tuple[Table, ...]:
        """Return the modules of a listing that a release of any engine has, every ranged fact picked."""
        key = (listing, version)
        if key not in self._picked:
            entries = self.table["modules"][listing]
            self._picked[key] = tuple(
                {name: pick(fact, version) for name, fact in entry.items() if name != "versions"}
                for entry in entries
                if covers(entry.get("versions", "*"), version)
            )
        return self._picked[key]

    def models(self, engine: str, role: str, architecture: str, version: str) -> list[Table]:
        """Return the model blocks of an engine for a role and an architecture at a release: none or one."""
        return [
            block
            for block in self.table.get(engine, ())
            if block["role"] == role
            and architecture in block.get("architectures", self.architectures)
            and covers(block.get("versions", "*"), version)
            and self.is_registered(engine, architecture, version)
        ]

    def is_registered(self, engine: str, architecture: str, version: str) -> bool:
        """Return whether an engine's release knows an architecture whose blocks may be those of an older one."""
        fact = self.table.get("registered", {}).get(engine, {}).get(architecture)
        return fact is None or covers(fact["versions"], version)

    def was_run(self, engine: str, architecture: str, version: str) -> bool:
        """Return whether checkpoints of an architecture were held against the real loader of an engine's release.

        Only means anything for releases that the engine's own file calls verified.
        """
        versions = self.table.get("verified", {}).get(engine, {}).get(architecture)
        return versions is not None and covers(versions, version)


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers a family's templates use: decoder `layers` (N), `mtp` layers (K), and the object they stand in.

    `declared` is whether the configuration itself names the MTP layers, rather than the family's default; `experts`
    how many each mixture has, 0 where the configuration does not say, under the keys `counted`. `own` are the keys that
    layers have for themselves, by the beginning of their names on disk, in the order of their numbers.
    """

    layers: int
    mtp: int
    declared: bool
    decoder: Mapping[str, Any]
    config: Mapping[str, Any]
    experts: int = 0
    counted: tuple[str, ...] = ()
    own: tuple[tuple[str, tuple[Mapping[str, Any], ...]], ...] = ()

    def at(self, name: str) -> Numbers:
        """Return the numbers that hold for what has this name on disk: its layer's own before those of the decoder."""
        for beginning, layers in self.own:
            number = name.removeprefix(beginning).partition(".")[0] if name.startswith(beginning) else ""
            if number.isdecimal() and len(number) <= DIGITS and int(number) < len(layers):
                decoder = {**self.decoder, **layers[int(number)]}
                return replace(self, decoder=decoder, experts=_number(self.counted, decoder, self.config) or 0)
        return self

    def value(self, key: str) -> Any:
        """Return the value of a key of the decoder's object or, where it begins with `/`, of the whole configuration.

        `outer.inner` is the key of an object inside; an absent key has the value None.
        """
        return value_of(self.config, key[1:]) if key.startswith("/") else value_of(self.decoder, key)


def load(name: str) -> Family:
    """Load one family by its name; raises FileNotFoundError for an unknown one."""
    return _load(name)


@lru_cache(maxsize=64)
def _load(name: str) -> Family:
    table = read_table(PACKAGE, f"{name}.toml")
    return Family(table["name"], table["title"], tuple(table["architectures"]), table)


def names() -> tuple[str, ...]:
    """Return the names of all families, sorted."""
    return names_of(PACKAGE)


@lru_cache(maxsize=64)
def match(architecture: str | None) -> Family | None:
    """Return the family of an architecture (`architectures[0]` of config.json), or None when no file knows it."""
    if not architecture:
        return None
    quoted = f'"{architecture}"'
    for name in names():
        if quoted in read_text(PACKAGE, f"{name}.toml"):
            family = load(name)
            if architecture in family.architectures:
                return family
    return None


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """Return `architectures[0]` of a configuration, None where it names none."""
    listed = config.get("architectures")
    first = listed[0] if isinstance(listed, list) and listed else None
    return first if isinstance(first, str) else None


def family_of(config: Mapping[str, Any]) -> Family | None:
    """Return the family of the architecture that a configuration names, or None when no file knows it."""
    return match(architecture_of(config))


def read_numbers(family: Family, config: Mapping[str, Any]) -> Numbers:
    """Read the layer counts a family's templates need from a configuration; absent or malformed ones count as 0."""
    decoder = config
    for key in family.table.get("text", ()):
        inner = config.get(key)
        if isinstance(inner, Mapping):
            decoder = inner
            break
    facts = family.table["numbers"]
    layers = _number(facts["N"], decoder, config)
    found = _number(facts["K"], decoder, config) if "K" in facts else None
    if "K_length" in facts and found:
        pattern = _first(facts["K_length"], decoder, config)
        found = found * len(pattern) if isinstance(pattern, (str, list)) else found
    default = facts.get("K_default", 0)
    counted = tuple(facts.get("E", ()))
    experts = _number(counted, decoder, config) or 0
    own = tuple(_own_numbers(facts.get("own", ()), decoder))
    mtp = default if found is None else found
    return Numbers(layers or 0, mtp, found is not None, decoder, config, experts, counted, own)


def _own_numbers(
    facts: Sequence[Table], decoder: Mapping[str, Any]
) -> Iterator[tuple[str, tuple[Mapping[str, Any], ...]]]:
    """Yield the keys that layers have for themselves, by the beginning of their names."""
    for fact in facts:
        listed = decoder.get(fact["key"])
        if isinstance(listed, list) and listed:
            layers = tuple(one if isinstance(one, Mapping) else {} for one in listed)
            yield from ((beginning, layers) for beginning in fact["below"])


def count_layers(config: Mapping[str, Any]) -> int:
    """Return how many MTP layers a configuration counts, as it is written, and 1 where it counts none.

    The keys are those of its architecture's family; where no file knows that, those of any.
    """
    known = family_of(config)
    for family in [known] if known else map(load, names()):
        places = [config[key] for key in family.table.get("text", ()) if isinstance(config.get(key), Mapping)]
        found = _number(family.table["numbers"].get("K", ()), *places[:1], config)
        if found:
            return found
    return 1


def options_for(config: Mapping[str, Any]) -> Table:
    """Return, by engine, what it has to be started with to serve a configuration; empty where nothing is known."""
    family = family_of(config)
    return family.table.get("options", {}) if family is not None else {}


def main_model(config: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of a small main model that a drafter can stand beside; None where it is no drafter.

    A drafter is a checkpoint that holds a draft alone; its family says in `beside` which model that drafts for.
    """
    family = family_of(config)
    beside = family.table.get("beside") if family is not None else None
    if family is None or beside is None:
        return None
    decoder = read_numbers(family, config).decoder
    taken = {key: config[source] for key, source in beside["numbers"].items() if source in config}
    kept = {key: value for key, value in decoder.items() if key not in beside.get("without", ())}
    return {**kept, **beside["config"], **taken}


def served_as(family: Family, architecture: str, numbers: Numbers) -> str:
    """Return the architecture that engines take a configuration for, where it is not the one that it names."""
    for entry in family.table.get("served", ()):
        condition = entry["when"]
        if entry["architecture"] == architecture:
            value = numbers.config.get(condition["key"])
            if bool(value) is condition["set"]:
                return str(entry["as"])
    return architecture


def _first(keys: Sequence[str], *places: Mapping[str, Any]) -> object:
    return next((found for place in places for key in keys if (found := value_of(place, key)) is not None), None)


def count_of(numbers: Numbers, key: str, default: int | None) -> int | None:
    """Return the number of layers under a key of the decoder's configuration; `default` where there is none."""
    found = _number([key], numbers.decoder)
    return default if found is None else found


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """Return the value of a key of a configuration, or of one inside an object of it: `outer.inner`."""
    outer, _, inner = key.partition(".")
    value = config.get(outer)
    return value_of(value if isinstance(value, Mapping) else {}, inner) if inner else value


def _number(keys: Sequence[str], *places: Mapping[str, Any]) -> int | None:
    value = _first(keys, *places)
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100_000 else None


def fill(template: str, numbers: Numbers, index: int | None = None) -> str:
    """Fill `{N}`, `{2N}`, `{K}`, `{i}`, `{k}`, `{N+k}` and `{v}` in a template; other braces stay."""
    filled = template.replace("{N}", str(numbers.layers)).replace("{K}", str(numbers.mtp))
    filled = filled.replace("{2N}", str(2 * numbers.layers))
    if index is not None:
        filled = filled.replace("{i}", str(index)).replace("{k}", str(index)).replace("{v}", str(index))
        filled = filled.replace("{N+k}", str(numbers.layers + index))
    return filled


def fill_mapper(table: Table, numbers: Numbers) -> Table:
    """Fill the templates in a name mapper's rules: one rule for each MTP layer where a rule names one."""

    def filled(rule: Sequence[str]) -> Iterator[list[str]]:
        each = any("{k}" in text or "{N+k}" in text for text in rule)
        for index in range(numbers.mtp) if each else (None,):
            yield [fill(text, numbers, index) for text in rule]

    return {
        key: [one for rule in rules for one in filled(rule)]
        if key in ("prefix", "substr", "suffix", "raised")
        else rules
        for key, rules in table.items()
    }


def branch_prefixes(family: Family, numbers: Numbers) -> tuple[str, ...]:
    """Return the name prefixes, on disk, of the tensors that belong to the MTP branch."""
    found: list[str] = []
    for template in family.table["disk"]["branch"]:
        if "{N+k}" in template or "{k}" in template:
            found += [fill(template, numbers, index) for index in range(numbers.mtp)]
        else:
            found.append(fill(template, numbers))
    return tuple(dict.fromkeys(found))


def files_of_branch(config: Mapping[str, Any], index: Index) -> frozenset[str] | None:
    """Return the files in which an index places the MTP branch, None where no family file knows the architecture.

    Decoder layers beyond the last of the main model count, whatever number of MTP layers is declared.
    """
    family = family_of(config)
    if family is None:
        return None
    numbers = read_numbers(family, config)
    prefixes, patterns = branch_prefixes(family, numbers), _trailing(family)
    return frozenset(
        file
        for (name, _), places in index.places.items()
        if name.startswith(prefixes) or _is_trailing(name, patterns, numbers)
        for file, _ in places
    )


def _trailing(family: Family) -> list[re.Pattern[str]]:
    return [
        re.compile(re.escape(template).replace(re.escape("{N+k}"), r"([0-9]{1,9})"))
        for template in family.table["disk"]["branch"]
        if "{N+k}" in template
    ]


def _is_trailing(name: str, patterns: Sequence[re.Pattern[str]], numbers: Numbers) -> bool:
    hits = (pattern.match(name) for pattern in patterns)
    return any(hit is not None and int(hit.group(1)) >= numbers.layers for hit in hits)


def trailing_layers(family: Family, numbers: Numbers, modules: Sequence[str]) -> bool:
    """Return whether any decoder layer at or beyond N is stored, whatever number of MTP layers is declared."""
    patterns = _trailing(family)
    return any(_is_trailing(module, patterns, numbers) for module in modules)
