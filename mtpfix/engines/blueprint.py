"""What an engine constructs for one model: its modules, the names it gives them, and where each lies on disk.

Reads a family's model block for one release and the names that are stored; knows nothing of formats or lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mtpfix.facts import Table, covers, pick
from mtpfix.families import Family, Numbers, count_of, fill
from mtpfix.model import DIGITS, Stored

SLOTS = ("w1", "w3", "w13", "w2")


@dataclass(frozen=True, slots=True)
class Place:
    """One name on disk that feeds a module: `part` is that name below its group.

    `slot` is w1, w3, w13 or w2 for experts, else the position in the module.
    """

    module: str
    slot: str
    part: str


@dataclass(frozen=True, slots=True)
class Asked:
    """Names that an engine asks its lists for before it builds anything, and the methods under which it does.

    Under another method they count as quantized, under none as plain.
    """

    names: tuple[str, ...]
    methods: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Planned:
    """One module an engine constructs.

    `places` are the names on disk it is fed from, stored or not; `prefix` is what the engine asks its lists,
    `param` the parameter path its messages show, `root` that of its group; `index` the number of its layer, `absent`
    whether nothing of that layer is stored. It is built plain under the methods of `plain_for`, unless an allow-list
    has a name that begins with `unless_listed`; where a compressed-tensors list has the name `plain_if_listed`; and
    where an excluding pattern of GPTQ holds the text `plain_if_pattern`.
    `refused` is what its constructor raises where the lists leave it quantized. `shares_weight`: of the target's module
    only the weight is put there; `shares_packed`: and that module is built quantized whenever this one is. `experts`:
    how many a mixture has, 0 where that is unknown. `also` are other names on disk that are taken for it.
    `copied`: what copies its tensors, or those of some parts, where that is not the loader of its layer class. `apart`:
    they are copied before all others, and nobody counts those that are missing. `pieces`: the rows of each part that
    one tensor is copied in.
    `unread` are parts that the engine computes and drops, so that they need not be stored.
    `spelled`: suffixes on disk, and those of the parameters that the loader finds with them, "" for one it drops.
    `if_plain`: it is there only where these names would be built plain; `unless_plain`: only where not all would.
    `accounted`: what is raised where a part never came; `counted`: where stacked experts are not as many as they are.
    `asks`: names that the engine asks its lists for before it builds this, whatever comes of it.
    """

    name: str
    layer: str
    prefix: str
    param: str
    places: tuple[Place, ...]
    never: bool
    plain_for: tuple[str, ...]
    unless_listed: str
    shared: bool
    shares_weight: bool
    optional: bool
    required: bool
    source: str
    index: int | None
    root: str
    unknown: Table | None
    partial_scalars: Table | None
    unfused: bool
    dequantizes: tuple[str, ...] = ()
    scalars_joined: Table | None = None
    joined: bool = False
    last: int = 0
    apart: bool = False
    pieces: str = ""
    plain_if_listed: str = ""
    plain_if_pattern: str = ""
    shares_packed: bool = False
    suffixes: tuple[str, ...] = ()
    spelled: Mapping[str, str] = field(default_factory=dict)
    no_slot: Table = field(default_factory=dict)
    reads_weight: Table | None = None
    split: bool = True
    groups: Table = field(default_factory=dict)
    whole: int = 0
    also: tuple[str, ...] = ()
    experts: int = 0
    first: tuple[int, int] = (1, 1)
    absent: bool = False
    refused: Table = field(default_factory=dict)
    if_plain: Asked | None = None
    unless_plain: Asked | None = None
    copied: str | Mapping[str, str] = ""
    unread: tuple[str, ...] = ()
    accounted: Table = field(default_factory=dict)
    counted: Table = field(default_factory=dict)
    asks: tuple[str, ...] = ()

    @property
    def joins(self) -> bool:
        """Whether the loader joins the parts before it copies them, and keeps each until all are there."""
        return self.joined or self.scalars_joined is not None


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All modules of one model: `absent` MTP layers (number, name) hold nothing, `claimed` are the names it uses."""

    modules: tuple[Planned, ...]
    absent: tuple[tuple[int, str], ...]
    claimed: frozenset[str]


@dataclass(slots=True)
class Names:
    """The stored modules by name, and every dotted beginning of a name, for a quick `is anything there`."""

    stored: Mapping[str, Stored]
    beginnings: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        found: set[str] = set()
        for name in self.stored:
            while "." in name:
                name = name.rpartition(".")[0]  # noqa: PLW2901 - walking up is the point
                if name in found:
                    break
                found.add(name)
        self.beginnings = frozenset(found)

    def holds(self, beginning: str) -> bool:
        """Return whether a module of this name, or any module below it, is stored."""
        return not beginning or beginning in self.beginnings or beginning in self.stored

    def numbers_at(self, template: str) -> list[int]:
        """Return every number found on disk where a template says `{v}`, ascending."""
        pattern = re.compile(re.escape(template).replace(re.escape("{v}"), rf"(\d{{1,{DIGITS}}})"))
        hits = (pattern.fullmatch(name) for name in (*self.beginnings, *self.stored))
        return sorted({int(hit.group(1)) for hit in hits if hit})


def draw(family: Family, block: Table, numbers: Numbers, names: Names, version: str) -> Blueprint:
    """Return the modules that a model block constructs at a release for what is stored."""
    modules: list[Planned] = []
    layers_seen: dict[int, str] = {}
    for group in block.get("group", ()):
        if not covers(group.get("versions", "*"), version):
            continue
        alternatives = _list(group["disk"])
        counted = count_of(numbers, group["count"]["key"], None) if "count" in group else None
        for index in _indices(alternatives, numbers, names) if counted is None else range(counted):
            layer = _layer_of(alternatives, numbers, index)
            if not holds(group.get("when"), numbers, layer):
                continue
            roots = [fill(template, numbers, index) for template in alternatives]
            root = next((root for root in roots if names.holds(root)), None)
            empty = root is None
            if block["role"] == "draft" and any("k}" in template for template in alternatives):
                layers_seen[index or 0] = "" if root is not None else layers_seen.get(index or 0, roots[0])
            needed = counted is not None or pick(block.get("decoder_layers"), version) is not None
            if empty and block["role"] == "target" and not needed:
                continue
            found = _modules(family, group, root or roots[0], numbers, (index, layer), names, version)
            left_out = empty and block["role"] == "draft"
            modules += (replace(module, absent=True) for module in found) if left_out else found
    absent = tuple((index, root) for index, root in layers_seen.items() if root)
    claimed = frozenset(name for one in modules for name in (*(place.module for place in one.places), *one.also))
    return Blueprint(tuple(modules), absent, claimed)


def _list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def _indices(templates: Sequence[str], numbers: Numbers, names: Names) -> Iterable[int | None]:
    if any("{v}" in template for template in templates):
        return sorted({number for template in templates for number in names.numbers_at(fill(template, numbers))})
    if any("{i}" in template for template in templates):
        return range(numbers.layers)
    if any("{k}" in template or "{N+k}" in template for template in templates):
        return range(numbers.mtp)
    return (None,)


def _layer_of(templates: Sequence[str], numbers: Numbers, index: int | None) -> int | None:
    """Return the number of a layer in per-layer arrays, where MTP layers that follow the decoder's do so, too."""
    follows = index is not None and any("{N+k}" in template for template in templates)
    return numbers.layers + (index or 0) if follows else index


def _modules(
    family: Family,
    group: Table,
    root: str,
    numbers: Numbers,
    place: tuple[int | None, int | None],
    names: Names,
    version: str,
) -> Iterator[Planned]:
    index, layer = place
    numbers = numbers.at(root)
    prefix = fill(pick(group.get("prefix", root), version), numbers, index)
    param = fill(pick(group.get("param", prefix), version), numbers, index)
    plain_for = pick(group.get("plain_for"), version) or ()
    plain_if_pattern = str(pick(group.get("plain_if_pattern"), version) or "")
    for listing in group["modules"]:
        for entry in family.modules(listing, version):
            if not holds(entry.get("when"), numbers, layer):
                continue
            places = _places(entry, root, names)
            block = entry.get("completes")
            required = _applies(entry.get("required"), numbers, layer) or ("when" in entry and block is None)
            required = required or any(names.holds(_at(root, name)) for name in block or ())
            if not required and not any(place.module in names.stored for place in places):
                continue
            name = entry["name"]
            yield Planned(
                name=name,
                layer=entry["layer"],
                prefix=_whole_name(entry.get("prefix"), prefix, name, numbers, index),
                param=_whole_name(entry.get("param"), param, name, numbers, index),
                places=places,
                also=tuple(_at(root, part) for part in _list(entry.get("also", ()))),
                never=entry.get("quant") == "never" or _is_plain(entry.get("plain_when"), numbers, layer),
                plain_for=(*(entry.get("plain_for") or ()), *plain_for),
                unless_listed=str(
                    pick(entry.get("plain_unless_listed", group.get("plain_unless_listed")), version) or ""
                ),
                shared=bool(entry.get("shared")),
                shares_weight=entry.get("shared") in ("weight", "packed"),
                shares_packed=entry.get("shared") == "packed",
                optional=_applies(entry.get("optional"), numbers, layer),
                required=required,
                source=str(entry.get("source", "")),
                index=index,
                root=param,
                unknown=entry.get("unknown"),
                partial_scalars=_partial(entry.get("partial_scalars")),
                unfused=bool(entry.get("unfused")),
                dequantizes=tuple(entry.get("dequantizes", ())),
                scalars_joined=entry.get("scalars_joined"),
                joined=bool(entry.get("joined")),
                last=int(entry.get("last", 0)),
                apart=bool(entry.get("apart")),
                pieces=str(entry.get("pieces", "")),
                plain_if_listed=_below(prefix, entry["plain_if_listed"]) if "plain_if_listed" in entry else "",
                plain_if_pattern=plain_if_pattern,
                suffixes=tuple(entry.get("suffixes", ())),
                spelled=entry.get("spelled", {}),
                no_slot=entry.get("no_slot", {}),
                reads_weight=entry.get("reads_weight"),
                split=bool(entry.get("split", True)),
                groups=entry.get("groups", {}),
                whole=int(entry.get("whole", 0)),
                experts=numbers.experts if entry["layer"] == "experts" else 0,
                first=_first_share(entry.get("first"), numbers),
                refused=entry.get("refused") or {},
                if_plain=_asked(entry.get("if_plain"), prefix),
                unless_plain=_asked(entry.get("unless_plain"), prefix),
                copied=entry.get("copied") or "",
                accounted=entry.get("accounted") or {},
                counted=entry.get("counted") or {},
                asks=tuple(_below(prefix, one) for one in entry.get("asks", ())),
                unread=tuple(entry.get("unread", ())),
            )


def _partial(fact: object) -> Table | None:
    """Return which builds keep scales of one number unwritten: what is said of all is said of no format."""
    return fact if isinstance(fact, dict) else {} if fact else None


def _asked(fact: Table | None, prefix: str) -> Asked | None:
    if fact is None:
        return None
    return Asked(tuple(_below(prefix, name) for name in fact["names"]), tuple(fact["methods"]))


def _first_share(keys: Sequence[str] | None, numbers: Numbers) -> tuple[int, int]:
    """Return the queries' share of the rows of queries, keys and values, from the keys of the numbers of heads."""
    counts = [count for key in keys or () if isinstance(count := numbers.decoder.get(key), int) and count > 0]
    if len(counts) != 2:
        return 1, 1
    return counts[0], counts[0] + 2 * counts[1]


def _whole_name(given: object, parent: str, name: str, numbers: Numbers, index: int | None) -> str:
    if isinstance(given, str):
        return fill(given, numbers, index)
    return _below(parent, name)


def _below(parent: str, name: str) -> str:
    return f"{parent}.{name}" if parent and name else parent or name


def _at(root: str, part: str) -> str:
    """Return a name on disk: below a group's root, or as it stands where it begins with a slash."""
    return part[1:] if part.startswith("/") else _below(root, part)


def _places(entry: Table, root: str, names: Names) -> tuple[Place, ...]:
    if entry["layer"] == "experts":
        return tuple(_expert_places(entry, root, names))
    parts = [one for part in _list(entry.get("from", entry["name"])) for one in _each(part, root, names)]
    places = [Place(_at(root, part), str(position), part) for position, part in enumerate(parts)]
    if not any(place.module in names.stored for place in places):
        wholes = [Place(_at(root, part), "whole", part) for part in _list(entry.get("also", ()))]
        stored = [whole for whole in wholes if whole.module in names.stored]
        if stored:
            return (stored[0],)
    return tuple(places)


def _each(part: str, root: str, names: Names) -> list[str]:
    """Return a name on disk below a group, or one for every number found there in the place of `{v}`."""
    if "{v}" not in part:
        return [part]
    return [part.replace("{v}", str(number)) for number in names.numbers_at(_at(root, part))]


def _expert_places(entry: Table, root: str, names: Names) -> Iterator[Place]:
    """Yield where experts lie on disk; a projection that is nowhere stands under its first name, as missing."""
    options = {slot: [Place(_below(root, name), slot, name) for name in _list(entry.get(slot, ()))] for slot in SLOTS}
    stored = {slot: [place for place in places if place.module in names.stored] for slot, places in options.items()}
    for slot in SLOTS:
        covered = slot == "w13" or (slot in ("w1", "w3") and stored["w13"])
        yield from stored[slot] or ([] if covered else options[slot][:1])


def _applies(fact: bool | Condition | None, numbers: Numbers, index: int | None) -> bool:
    """Return whether a fact holds that data gives as true, as false, or as a condition."""
    return fact if isinstance(fact, bool) else fact is not None and holds(fact, numbers, index)


def _is_plain(condition: Table | None, numbers: Numbers, index: int | None) -> bool:
    return condition is not None and holds(condition, numbers, index)


Condition = Table | Sequence[Table]
"""What a `when` says: a condition, or several that all have to hold."""


def holds(condition: Condition | None, numbers: Numbers, index: int | None) -> bool:
    """Return whether a module's `when` holds for one layer; see docs/knowledge.md for the closed set of conditions."""
    if condition is None:
        return True
    if not isinstance(condition, Mapping):
        return all(holds(one, numbers, index) for one in condition)
    value = numbers.value(condition["key"])
    if "set" in condition:
        return (value is not None) is condition["set"]
    if "value" in condition:
        return bool(value == condition["value"])
    if "differs" in condition:
        return value is not None and bool(value != condition["differs"])
    if "same" in condition:
        return (value == numbers.value(condition["of"])) is condition["same"]
    if "divides" in condition:
        whole = numbers.value(condition["of"]) if "of" in condition else numbers.layers
        return _divides(value, whole) is condition["divides"]
    if "among" in condition:
        return _at_layer(value, index) in condition["among"]
    if "numbered" in condition:
        numbered = isinstance(value, list) and index is not None and index + 1 in value
        return numbered is condition["numbered"]
    if "holds" in condition:
        return isinstance(value, list) and condition["holds"] in value
    if "reaches" in condition:
        return any(number >= numbers.layers for number in _numbers_in(value)) is condition["reaches"]
    if "group" in condition:
        return _ends_group(value, numbers, index, tail=bool(condition.get("tail"))) is (condition["group"] == "last")
    if "layer" in condition:
        if not isinstance(value, int) or index is None:
            return bool(condition["layer"] == "below")
        return (index >= value) is (condition["layer"] == "at_least")
    return bool(_at_layer(value, index) == condition["equals"])


def _at_layer(value: Any, index: int | None) -> Any:
    """Return an array's entry for a layer, None where it has none; what is no array as it is."""
    if not isinstance(value, list):
        return value
    return value[index] if index is not None and index < len(value) else None


def _numbers_in(value: Any) -> Iterator[int]:
    """Yield the numbers of an array, or of a text with commas between them."""
    entries = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else ()
    texts = (str(entry).strip() for entry in entries)
    yield from (int(text) for text in texts if text.isdecimal() and len(text) <= DIGITS)


def _divides(size: Any, whole: Any) -> bool:
    """Return whether a number is a multiple of `size`; what is no such number is nobody's to judge."""
    counts = all(isinstance(one, int) and not isinstance(one, bool) for one in (size, whole))
    return not counts or size < 1 or whole % size == 0


def _ends_group(size: Any, numbers: Numbers, index: int | None, *, tail: bool) -> bool:
    """Return whether a layer is the last of its group of `size`; with `tail` all layers of a short group are."""
    if not isinstance(size, int) or isinstance(size, bool) or size < 1 or index is None:
        return True
    return (index + 1) % size == 0 or (tail and index >= numbers.layers // size * size)


def full_names(stored: Stored) -> Iterator[tuple[str, str]]:
    """Yield (suffix, name of the first tensor) of a stored module, the expert number filled in."""
    for suffix, part in stored.parts.items():
        yield suffix, part.order[1]
