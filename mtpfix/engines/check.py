"""Prove the knowledge files whole: known keys only, one fact for each release, every name and source well formed.

Run as `python -m mtpfix.engines.check`; the tests run it too. Whether a source line says what the fact says is proved
against the engines' own code elsewhere.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtpfix import engines, families
from mtpfix.engines import Engine
from mtpfix.engines.blueprint import SLOTS
from mtpfix.facts import Table, check_cover, covers, is_ranged, walk_ranged
from mtpfix.families import Family

SOURCE = re.compile(r"[\w./-]+\.py:\d+@\d+\.\d+(\.\w+)*")

FAMILY_KEYS = {
    "name", "title", "architectures", "registered", "verified", "gptq", "gptq_for", "served", "text", "numbers", "disk",
    "mappers", "modules", "beside", "options", "shapes",
}  # fmt: skip
BLOCK_KEYS = {
    "role", "versions", "architectures", "class", "mappers", "packed", "lists", "takes", "skips", "unknown",
    "unknown_experts", "absent", "incomplete", "arrays", "group", "broken", "refuses", "cache_scales", "deferred",
    "splits", "layers", "decoder_layers", "experts", "runs", "gathers", "unpredicted", "unpredicted_reason",
    "undescribed", "undescribed_reason", "unpredicted_when", "g_idx", "levels", "unshared", "unlisted",
    "source",
}  # fmt: skip
GROUP_KEYS = {
    "disk", "count", "prefix", "param", "modules", "versions", "when", "plain_for", "plain_unless_listed",
    "plain_if_pattern", "source",
}  # fmt: skip
MODULE_KEYS = {
    "name", "from", "also", "layer", "quant", "plain_for", "prefix", "param", "shared", "optional", "required", "when",
    "versions", "source", "unknown", "partial_scalars", "unfused", "plain_unless_listed", "dequantizes", "suffixes",
    "spelled", "scalars_joined", "joined", "last", "apart", "pieces", "first", "plain_if_listed",
    "plain_when", "whole", "no_slot", "reads_weight", "split", "groups", "refused", "if_plain", "unless_plain",
    "completes", "copied", "same_as", "unread", "accounted", "counted", "asks",
    *SLOTS,
}  # fmt: skip
LAYERS = {
    "column", "merged", "qkv", "row", "replicated", "linear", "head", "embedding", "experts", "norm", "table",
    "batched",
}  # fmt: skip
MAY_HAVE_GAPS = {
    "arrays", "broken", "decoder_layers", "deferred", "param", "partial_scalars", "prefix", "reads_weight", "refused",
    "refuses", "unknown", "unlisted", "unpredicted", "unpredicted_when", "unshared",
}  # fmt: skip
"""Facts that need not cover every release: absent means the default that docs/knowledge.md gives."""


def check_all() -> list[str]:
    """Return sentences about everything that is wrong in the knowledge files; an empty list means they are whole."""
    known = [engines.load(name) for name in engines.names()]
    faults = [fault for engine in known for fault in check_engine(engine)]
    for name in families.names():
        faults += check_family(families.load(name), known)
    return faults


def check_engine(engine: Engine) -> Iterator[str]:
    """Yield what is wrong in one engine file."""
    where = f"{engine.name}.toml"
    unknown = set(engine.verified) - set(engine.releases)
    yield from (f"{where}: {one} is verified, but is no known release" for one in unknown)
    for name, fact in engine.table["facts"].items():
        if not is_ranged(fact):
            yield f"{where}: {name} is no list of facts with versions"
            continue
        yield from check_cover(fact, engine.releases, f"{where}: {name}", gaps=False)
        yield from _sources(fact, engine, f"{where}: {name}")
    for table in ("mismatch", "split", "split_numbers"):
        for number, row in enumerate(engine.table.get(table, ())):
            yield from _sources([row], engine, f"{where}: {table} {number}")


def check_family(family: Family, known: Sequence[Engine]) -> Iterator[str]:
    """Yield what is wrong in one family file."""
    where = f"{family.name}.toml"
    yield from _unknown_keys(family.table, FAMILY_KEYS | {engine.name for engine in known}, where)
    yield from _check_registered(family, known, where)
    yield from _check_verified(family, known, where)
    for name, run in family.table.get("gptq", {}).items():
        releases = next((engine.verified for engine in known if engine.name == name), ())
        yield from (f"{where}: gptq: {one} is no release of {name} that was run" for one in set(run) - set(releases))
    yield from (
        f"{where}: gptq_for: {one} is not among the file's architectures"
        for one in family.table.get("gptq_for", ())
        if one not in family.architectures
    )
    yield from (
        f"{where}: served: {name} is not among the file's architectures"
        for entry in family.table.get("served", ())
        for name in (entry["architecture"], entry["as"])
        if name not in family.architectures
    )
    for listing, entries in family.table["modules"].items():
        for entry in entries:
            name = f"{where}: modules.{listing} {entry.get('name', '?')}"
            yield from _unknown_keys(entry, MODULE_KEYS, name)
            if entry.get("layer") not in LAYERS:
                yield f"{name}: {entry.get('layer')!r} is no layer class"
    yield from _check_shapes(family, known, where)
    for engine in known:
        for block in family.table.get(engine.name, ()):
            yield from _check_block(family, block, engine, f"{where}: {engine.name} {block.get('role')}")
        yield from _check_blocks_apart(family, engine, where)


_TERM = r"[\w.]+(?: \* [\w.]+)*(?: / [\w.]+)*"
_SUM = rf"{_TERM}(?: \+ {_TERM})*"
FORMULA = re.compile(rf"{_SUM}(?:, {_SUM})*")


def _check_shapes(family: Family, known: Sequence[Engine], where: str) -> Iterator[str]:
    """Yield what is wrong in the shapes that a family's tensors have."""
    releases = {release for engine in known for release in engine.releases}
    for name, fact in family.table.get("shapes", {}).items():
        for row in fact if isinstance(fact, list) else [fact]:
            yield from _unknown_keys(row, {"is", "when", "engine", "source"}, f"{where}: shapes {name}")
            if row.get("engine") not in (None, *(engine.name for engine in known)):
                yield f"{where}: shapes {name}: no engine is called {row['engine']}"
            if not FORMULA.fullmatch(row["is"]):
                yield f"{where}: shapes {name}: {row['is']!r} is no list of sums of products"
            source = row.get("source", "")
            if not SOURCE.fullmatch(source) or source.rpartition("@")[2] not in releases:
                yield f"{where}: shapes {name}: {source!r} is no path:line@version of a known release"


def _check_registered(family: Family, known: Sequence[Engine], where: str) -> Iterator[str]:
    """Yield what is wrong in what a family says of the releases that know an architecture."""
    engines_by_name = {engine.name: engine for engine in known}
    for name, facts in family.table.get("registered", {}).items():
        if name not in engines_by_name:
            yield f"{where}: registered: no engine is called {name}"
            continue
        yield from _sources(list(facts.values()), engines_by_name[name], f"{where}: registered")
        for architecture, fact in facts.items():
            if architecture not in family.architectures:
                yield f"{where}: registered: {architecture} is not among the file's architectures"
            if not any(covers(fact["versions"], release) for release in engines_by_name[name].releases):
                yield f"{where}: registered: {architecture}: no known release has it"


def _check_verified(family: Family, known: Sequence[Engine], where: str) -> Iterator[str]:
    """Yield what is wrong in what a family says of the releases it was run with."""
    engines_by_name = {engine.name: engine for engine in known}
    for name, ranges in family.table.get("verified", {}).items():
        if name not in engines_by_name:
            yield f"{where}: verified: no engine is called {name}"
            continue
        for architecture, versions in ranges.items():
            if architecture not in family.architectures:
                yield f"{where}: verified: {architecture} is not among the file's architectures"
            faults = check_cover([{"versions": versions}], (), f"{where}: verified: {architecture}", gaps=True)
            if faults:
                yield from faults
            elif not any(covers(versions, release) for release in engines_by_name[name].verified):
                yield f"{where}: verified: {versions} holds no release of {name} that was run"


def _check_block(family: Family, block: Table, engine: Engine, where: str) -> Iterator[str]:
    yield from _unknown_keys(block, BLOCK_KEYS, where)
    releases = [one for one in engine.releases if covers(block.get("versions", "*"), one)]
    if not releases:
        yield f"{where}: no known release has it"
    yield from (
        f"{where}: {one} is not among the file's architectures"
        for one in block.get("architectures", ())
        if one not in family.architectures
    )
    for path, fact in walk_ranged(
        {
            key: value
            for key, value in block.items()
            if key not in ("group", "arrays", "levels", "splits", "unpredicted_when")
        }
    ):
        gaps = path.partition(".")[0].partition("[")[0] in MAY_HAVE_GAPS
        yield from check_cover(fact, releases, f"{where}: {path}", gaps=gaps)
        yield from _sources(fact, engine, f"{where}: {path}")
    for key in ("levels", "splits", "unpredicted_when"):
        yield from _sources(block.get(key, ()), engine, f"{where}: {key}")
    for mapper in _mapper_names(block.get("mappers", ())):
        if mapper not in family.table.get("mappers", {}):
            yield f"{where}: no mapper is called {mapper}"
    for group in block.get("group", ()):
        yield from _unknown_keys(group, GROUP_KEYS, f"{where}: group {group.get('disk')}")
        for listing in group["modules"]:
            if listing not in family.table["modules"]:
                yield f"{where}: no module list is called {listing}"
                continue
            yield from _check_listing(family.table["modules"][listing], releases, engine, f"{where}: modules.{listing}")


def _check_listing(entries: Sequence[Table], releases: Sequence[str], engine: Engine, where: str) -> Iterator[str]:
    by_name: dict[str, list[Table]] = {}
    for entry in entries:
        key = f"{entry['name']} {json.dumps(entry.get('when'), sort_keys=True)} {entry.get('from', '')}"
        by_name.setdefault(key, []).append({"versions": "*", **entry})
        yield from _sources([entry], engine, f"{where}: {entry['name']}")
    for name, same in by_name.items():
        if len(same) > 1:
            yield from check_cover(same, releases, f"{where}: {name}", gaps=True)


def _check_blocks_apart(family: Family, engine: Engine, where: str) -> Iterator[str]:
    for release in engine.releases:
        for architecture in family.architectures:
            for role in ("target", "draft"):
                count = len(family.models(engine.name, role, architecture, release))
                if count > 1:
                    yield f"{where}: {count} blocks for the {role} of {architecture} in {engine.name} {release}"


def _mapper_names(value: Any) -> Iterator[str]:
    for one in value:
        yield from one.get("is", ()) if isinstance(one, dict) else [one]


def _unknown_keys(table: Mapping[str, Any], known: set[str], where: str) -> Iterator[str]:
    yield from (f"{where}: no key is called {key}" for key in table if key not in known)


def _sources(entries: Iterable[Table], engine: Engine, where: str) -> Iterator[str]:
    for entry in entries:
        source = entry.get("source")
        if source is None:
            continue
        if not SOURCE.fullmatch(source):
            yield f"{where}: {source!r} is no path:line@version"
        elif source.rpartition("@")[2] not in engine.releases:
            yield f"{where}: {source!r} cites a release that is not known"


def all_sources(engine: Engine) -> dict[str, list[str]]:
    """Return every source cited for an engine, with where it is cited."""
    found: dict[str, list[str]] = {}
    places: list[tuple[str, object]] = [(f"{engine.name}.toml", engine.table)]
    for name in families.names():
        table = families.load(name).table
        places += [(f"{name}.toml", table.get(key, ())) for key in (engine.name, "modules", "served")]
    for where, value in places:
        for source in _cited(value):
            if source.rpartition("@")[2] in engine.releases:
                found.setdefault(source, []).append(where)
    return found


def _cited(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, below in value.items():
            if key == "source" and isinstance(below, str):
                yield below
            else:
                yield from _cited(below)
    elif isinstance(value, list):
        for below in value:
            yield from _cited(below)


if __name__ == "__main__":
    FAULTS = check_all()
    sys.stderr.writelines(f"{fault}\n" for fault in FAULTS)
    sys.exit(1 if FAULTS else 0)
