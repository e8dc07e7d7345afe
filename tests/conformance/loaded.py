"""Which repairs the real loaders took: `golden/repaired/ENGINE-RELEASE.json`, by family and variant.

Each entry is the fingerprint of a repair whose result that release loaded completely, `open` where no repair is known,
or `absent` where nothing is predicted, so that none is planned.
Equal fingerprints start from equal files and do the same to them: what was loaded once need not be asked again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mtpfix.fix.patching import Prepared
from mtpfix.fix.planfile import plan_document
from tests.checkpoints import VARIANTS
from tests.conformance.record import GOLDEN
from tests.families import FAMILIES

if TYPE_CHECKING:
    from tests.conformance.repaired import Cell

PLACE = GOLDEN / "repaired"


def path_of(release: str) -> Path:
    """Return the file of one release."""
    return PLACE / f"{release}.json"


def golden(release: str) -> Mapping[str, Mapping[str, str]]:
    """Return what became of each checkpoint that was repaired for a release, by family and variant."""
    path = path_of(release)
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def fingerprint(prepared: Prepared) -> str:
    """Return 12 hexadecimal digits for what a repair starts from and does, wherever the files lie."""
    called = {str(one.folder): "/".join(one.folder.parts[-2:]) for one in prepared.reads}
    document = plan_document(prepared.plan, prepared.snapshot, prepared.reads, called)
    kept = [document["source"], document["reads"], [step["operations"] for step in document["steps"]]]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]


def write(release: str, cells: Iterable[Cell]) -> None:
    """Note cells of one release in which nothing is wrong; those that something is wrong with are taken out."""
    known = {family: dict(found) for family, found in golden(release).items()}
    for cell in cells:
        found = known.setdefault(cell.family, {})
        found.pop(cell.variant, None)
        if not cell.wrong:
            found[cell.variant] = mark_of(cell)
    ordered = {
        family: {variant: known[family][variant] for variant in VARIANTS if variant in known[family]}
        for family in FAMILIES
        if known.get(family)
    }
    PLACE.mkdir(exist_ok=True)
    lines = ",\n".join(f" {json.dumps(family)}: {json.dumps(found)}" for family, found in ordered.items())
    path_of(release).write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")


def mark_of(cell: Cell) -> str:
    """Return how a cell is noted."""
    return cell.fingerprint or cell.outcome
