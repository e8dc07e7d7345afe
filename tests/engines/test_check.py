"""The knowledge files are whole, and the check that says so finds every kind of mistake."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from mtpfix import engines, families
from mtpfix.engines.check import check_all, check_engine, check_family
from mtpfix.facts import covers

Table = dict[str, Any]
VLLM = engines.load("vllm")


def test_the_shipped_files_are_whole() -> None:
    assert check_all() == []


def draft(table: Table) -> Table:
    return next(block for block in table["vllm"] if block["role"] == "draft")


def first_module(table: Table) -> Table:
    entry: Table = next(iter(table["modules"].values()))[0]
    return entry


def first_group(table: Table) -> Table:
    """Return the first group of the draft, one that is added where a class is never constructed."""
    groups: list[Table] = draft(table).setdefault("group", [{"disk": "", "modules": []}])
    return groups[0]


def rename_listing(table: Table) -> None:
    first_group(table)["modules"] = ["nowhere"]


def duplicate_block(table: Table) -> None:
    table["vllm"].append(deepcopy(draft(table)))


def newest(table: Table) -> str:
    """Return the newest release that has the draft's class."""
    return [one for one in VLLM.releases if covers(draft(table).get("versions", "*"), one)][-1]


SPOILT_FAMILIES: dict[str, tuple[Callable[[Table], object], str]] = {
    "unknown key of the file": (lambda table: table.update(tittle="x"), "no key is called tittle"),
    "unknown key of a block": (lambda table: draft(table).update(unknwon="x"), "no key is called unknwon"),
    "unknown key of a group": (lambda table: first_group(table).update(prefx="x"), "no key is called prefx"),
    "unknown key of a module": (lambda table: first_module(table).update(layr="row"), "no key is called layr"),
    "bad layer class": (lambda table: first_module(table).update(layer="rows"), "'rows' is no layer class"),
    "no layer class": (lambda table: first_module(table).pop("layer"), "None is no layer class"),
    "gap": (
        lambda table: draft(table).update(absent=[{"versions": f">{newest(table)}", "does": "silent"}]),
        "absent: no entry covers",
    ),
    "overlap": (
        lambda table: draft(table).update(
            absent=[{"versions": f"{how}{newest(table)}", "does": "silent"} for how in ("<=", ">=")]
        ),
        "absent: 2 entries cover",
    ),
    "bad range": (
        lambda table: draft(table).update(absent=[{"versions": "since 0.25", "does": "silent"}]),
        "'since 0.25' is not a version range",
    ),
    "unknown mapper": (lambda table: draft(table).update(mappers=["nobody"]), "no mapper is called nobody"),
    "unknown mapper in a range": (
        lambda table: draft(table).update(mappers=[{"versions": "*", "is": ["nobody"]}]),
        "no mapper is called nobody",
    ),
    "source without a line": (
        lambda table: draft(table).update(
            absent=[{"versions": "*", "does": "silent", "source": "models/x.py@0.32.0"}]
        ),
        "'models/x.py@0.32.0' is no path:line@version",
    ),
    "source at no release": (
        lambda table: draft(table).update(
            absent=[{"versions": "*", "does": "silent", "source": "models/x.py:1@9.9.9"}]
        ),
        "cites a release that is not known",
    ),
    "unknown module list": (rename_listing, "no module list is called nowhere"),
    "unknown architecture": (
        lambda table: draft(table).update(architectures=["Nobody"]),
        "Nobody is not among the file's architectures",
    ),
    "no release": (lambda table: draft(table).update(versions=">=99"), "no known release has it"),
    "two blocks at once": (duplicate_block, "2 blocks for the draft of"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in families.names() if "vllm" in families.load(name).table])
@pytest.mark.parametrize("mistake", SPOILT_FAMILIES)
def test_every_kind_of_mistake_in_a_family_file_is_found(name: str, mistake: str) -> None:
    family = families.load(name)
    table = deepcopy(dict(family.table))
    spoil, sentence = SPOILT_FAMILIES[mistake]
    spoil(table)
    faults = list(check_family(replace(family, table=table), [VLLM]))
    assert any(sentence in fault for fault in faults), faults
    assert all(fault.startswith(f"{name}.toml") for fault in faults)


def test_two_entries_of_one_module_may_not_cover_the_same_release() -> None:
    family = families.load("deepseek_v3")
    table = deepcopy(dict(family.table))
    listing = draft(table)["group"][0]["modules"][0]
    table["modules"][listing].append(deepcopy(table["modules"][listing][0]))
    faults = list(check_family(replace(family, table=table), [VLLM]))
    assert any("2 entries cover 0.32.0" in fault for fault in faults), faults


def edit_fact(table: Table, **change: object) -> None:
    fact = next(iter(table["facts"].values()))
    fact[0].update(change)


SPOILT_ENGINES: dict[str, tuple[Callable[[Table], object], str]] = {
    "gap": (lambda table: edit_fact(table, versions=">=99"), "no entry covers"),
    "overlap": (
        lambda table: next(iter(table["facts"].values())).append({"versions": "*", "is": 1}),
        "2 entries cover",
    ),
    "source": (lambda table: edit_fact(table, source="somewhere"), "'somewhere' is no path:line@version"),
    "no range": (lambda table: table["facts"].update(new=7), "new is no list of facts with versions"),
    "mismatch source": (
        lambda table: table.setdefault("mismatch", []).append({"source": "x.py:1@9.9"}),
        "cites a release that is not known",
    ),
}


@pytest.mark.parametrize("mistake", SPOILT_ENGINES)
def test_every_kind_of_mistake_in_an_engine_file_is_found(mistake: str) -> None:
    table = deepcopy(dict(VLLM.table))
    spoil, sentence = SPOILT_ENGINES[mistake]
    spoil(table)
    faults = list(check_engine(replace(VLLM, table=table)))
    assert any(sentence in fault for fault in faults), faults


def test_a_verified_release_must_be_known() -> None:
    assert list(check_engine(replace(VLLM, verified=("9.9.9",)))) == [
        "vllm.toml: 9.9.9 is verified, but is no known release"
    ]
