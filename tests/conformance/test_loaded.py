"""Every repair that is planned is one that the release's real loader was seen to load: see `loaded.py`.

Where this fails a plan has changed, perhaps for the better: `python -m tests.conformance.repaired RELEASE --changed
--record` asks the release about what has changed and notes what it loaded.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mtpfix.engines import load, names
from tests.conformance import loaded, record
from tests.conformance.repaired import planned
from tests.families import FAMILIES, LIKE_ANOTHER

VERIFIED = [f"{name}-{version}" for name in names() for version in load(name).verified]
RELEASES = [release for release in VERIFIED if loaded.golden(release)]


@pytest.mark.slow
@pytest.mark.parametrize("release", RELEASES)
def test_what_is_planned_for_a_release_was_loaded_by_it(release: str, tmp_path: Path) -> None:
    known = loaded.golden(release)
    families = list(known)
    number = RELEASES.index(release)
    family = families[number % len(families)]  # so that over all releases many have their turn
    wanted = [(family, variant) for variant in list(known[family])[number % 3 :: 3]]
    marks = {(cell.family, cell.variant): loaded.mark_of(cell) for cell, _ in planned([release], wanted, tmp_path)}
    assert marks == {(family, variant): known[family][variant] for family, variant in wanted}


@pytest.mark.parametrize("release", RELEASES)
def test_every_checkpoint_that_was_recorded_was_repaired_too(release: str) -> None:
    known = loaded.golden(release)
    recorded = {family for family in FAMILIES if family not in LIKE_ANOTHER and record.golden(release, family)}
    declaring: dict[str, set[str]] = {}
    for family, variant in record.cases():
        declaring.setdefault(family, set()).add(variant)
    assert {family: set(known[family]) for family in recorded & known.keys()} == {
        one: declaring[one] for one in recorded
    }
