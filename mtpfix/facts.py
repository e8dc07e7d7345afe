"""Ranged facts: values in the knowledge files that hold for some releases of an engine, each with its source.

Knows how a fact is picked for a release and how the data is proved whole; knows nothing of what a fact means.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any

from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.version import Version

Table = dict[str, Any]


@lru_cache(maxsize=4096)
def covers(versions: str, version: str) -> bool:
    """Return whether a specifier set such as `>=0.20.2,<0.23` covers a release; `*` covers every release."""
    if versions in ("", "*"):
        return True
    return SpecifierSet(versions).contains(Version(version), prereleases=True)


def is_ranged(value: object) -> bool:
    """Return whether a value is a list of tables that each say for which `versions` they hold."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(entry, dict) and "versions" in entry for entry in value)
    )


def pick(value: object, version: str) -> Any:
    """Return the value of a fact at a release: a table's `is` where it has one, else the table; None in a gap."""
    if not is_ranged(value):
        return value
    for entry in value:  # type: ignore[attr-defined]
        if covers(entry["versions"], version):
            return entry.get("is", entry)
    return None


def source_of(value: object, version: str) -> str:
    """Return the `path:line@version` a fact was read from at a release, or an empty string."""
    if is_ranged(value):
        for entry in value:  # type: ignore[attr-defined]
            if covers(entry["versions"], version):
                return str(entry.get("source", ""))
    if isinstance(value, dict):
        return str(value.get("source", ""))
    return ""


def read_table(package: str, name: str) -> Table:
    """Read one knowledge file of this package."""
    return tomllib.loads(read_text(package, name))


def read_text(package: str, name: str) -> str:
    """Read one knowledge file as text, for a cheap look before parsing."""
    return (files(package) / name).read_text(encoding="utf-8")


def names_of(package: str) -> tuple[str, ...]:
    """Return the names, without suffix, of the knowledge files of a package."""
    return tuple(
        sorted(entry.name.removesuffix(".toml") for entry in files(package).iterdir() if entry.name.endswith(".toml"))
    )


def walk_ranged(value: object, path: str = "") -> Iterator[tuple[str, list[Table]]]:
    """Yield every ranged fact below a value, with the path that leads to it."""
    if is_ranged(value):
        yield path, value  # type: ignore[misc]
    if isinstance(value, dict):
        for key, below in value.items():
            yield from walk_ranged(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from walk_ranged(below, f"{path}[{number}]")


def check_cover(entries: Sequence[Table], releases: Sequence[str], where: str, *, gaps: bool) -> list[str]:
    """Return sentences about releases that no entry covers (unless `gaps` are allowed) or that several cover."""
    faults = []
    for entry in entries:
        try:
            SpecifierSet("" if entry["versions"] == "*" else entry["versions"])
        except InvalidSpecifier:
            faults.append(f"{where}: {entry['versions']!r} is not a version range")
            return faults
    for release in releases:
        hits = sum(covers(entry["versions"], release) for entry in entries)
        if hits > 1:
            faults.append(f"{where}: {hits} entries cover {release}")
        elif hits == 0 and not gaps:
            faults.append(f"{where}: no entry covers {release}")
    return faults
