"""Ask engine releases what they do with tiny GPTQ checkpoints: `python -m tests.conformance.packed vllm-0.32.0 …`.

Answers are shortened as in `record.py` and go to `golden/gptq/ENGINE-RELEASE.json`, by family and variant.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mtpfix.model import ROLES
from tests import gptq
from tests.conformance.record import GOLDEN, ask, digest, merge, separate

PLACE = GOLDEN / "gptq"


def cases() -> Iterator[tuple[str, str]]:
    """Yield family and variant of every checkpoint."""
    for family in gptq.FAMILIES:
        for variant in gptq.VARIANTS:
            yield family, variant


def golden(release: str) -> Mapping[str, Mapping[str, Any]]:
    """Return what a release did, by family and variant."""
    path = PLACE / f"{release}.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return {family: separate(answers) for family, answers in known.items()}


def record(release: str, families: list[str]) -> None:
    """Ask one release and write its file; families that are not asked keep their answers."""
    answers = {family: dict(known) for family, known in golden(release).items()}
    wanted = [case for case in cases() if case[0] in families]
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / family / variant for family, variant in wanted]
        for folder, (family, variant) in zip(folders, wanted, strict=True):
            gptq.build(folder, family, variant)
        for (family, variant), found in zip(wanted, ask(release, folders), strict=True):
            if "broken" in found:
                raise SystemExit(f"{family}/{variant}: {found['broken']}")
            answers.setdefault(family, {})[variant] = {role: digest(found[role]) for role in ROLES}
    PLACE.mkdir(exist_ok=True)
    kept = {family: merge(answers[family]) for family in gptq.FAMILIES if family in answers}
    text = json.dumps(kept, indent=1, ensure_ascii=False) + "\n"
    (PLACE / f"{release}.json").write_text(text, encoding="utf-8")


def main() -> None:
    """Record the releases on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.packed", description=main.__doc__)
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--family", action="append", help="record these families alone")
    options = parser.parse_args()
    for release in options.releases:
        record(release, options.family or list(gptq.FAMILIES))


if __name__ == "__main__":
    main()
