"""Repair tiny checkpoints for engine releases and ask those: `python -m tests.conformance.repaired vllm-0.32.0 …`.

For each release, family and variant the plan is made and written; then the release's real loader must load target and
draft with every parameter written, a scan of the result must find nothing, and a second repair must change nothing.
What a plan leaves open is counted: there no form is known that the release loads.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from mtpfix import scan
from mtpfix.errors import NothingToCheck
from mtpfix.fix.patching import Prepared, carry_out, prepare
from mtpfix.fix.repairs import Branch, Wishes
from mtpfix.model import Severity
from tests.checkpoints import build
from tests.conformance.record import ROLES, Answer, ask, cases


@dataclass(frozen=True, slots=True)
class Cell:
    """One checkpoint for one release: what became of it, and what is wrong with that.

    `outcome` is `as it was` (nothing had to be done), `repaired`, `open` (no repair was found) or `absent` (the release
    has no class for it); `wrong` are sentences, none where everything is as promised.
    """

    family: str
    variant: str
    outcome: str
    wrong: tuple[str, ...] = ()


def folder_of(root: Path, family: str, variant: str) -> Path:
    """Return the folder of a tiny checkpoint, built where it is not there yet."""
    folder = root / family / variant
    if not folder.exists():
        build(folder, family, variant)
    return folder


def wishes_for(root: Path, family: str, variant: str, mtp: Branch = "auto") -> Wishes:
    """Return what a person would give along: a base model where the branch is missing, a scale of inputs."""
    bare = (family, variant) == ("step3p7", "published")
    base = None
    if bare or variant == "missing":
        base = str(folder_of(root, family, "layer-arrays" if bare else "excluded-glob"))
    return Wishes(mtp, graft=base, input_scale=1.0, unsafe=True)


def repaired(
    release: str, wanted: Sequence[tuple[str, str]], root: Path, out: Path, mtp: Branch = "auto"
) -> Iterator[Cell]:
    """Yield what became of each checkpoint for one release (`vllm-0.32.0`); results are written below `out`.

    `mtp` is how the branch is to be stored, as `mtpfix patch --mtp` has it.
    """
    asked: list[tuple[str, str, Path, str]] = []
    for family, variant in wanted:
        try:
            prepared = _prepared(release, folder_of(root, family, variant), wishes_for(root, family, variant, mtp))
        except NothingToCheck:
            yield Cell(family, variant, "absent")
            continue
        if not prepared.plan.complete:
            yield Cell(family, variant, "open", tuple(f"open: {one}" for one in prepared.plan.open[:2]))
            continue
        if prepared.plan.operations:
            place = out / family / variant
            place.parent.mkdir(parents=True, exist_ok=True)
            carry_out(prepared, place)
            asked.append((family, variant, place, "repaired"))
        else:
            asked.append((family, variant, prepared.snapshot.folder, "as it was"))
    answers = ask(release, [place for _, _, place, _ in asked])
    for (family, variant, place, outcome), answer in zip(asked, answers, strict=True):
        wrong = (*_disagreements(answer), *_left(release, place, wishes_for(root, family, variant, mtp)))
        yield Cell(family, variant, outcome, wrong)


def _prepared(release: str, folder: Path, wishes: Wishes) -> Prepared:
    return prepare(str(folder), [release.replace("-", "==", 1)], wishes)


def _disagreements(answer: Answer) -> Iterator[str]:
    """Yield what the engine does with a result that it should load completely."""
    if "broken" in answer or "unsupported" in answer:
        yield f"not asked: {answer}"
        return
    for role in ROLES:
        found = answer[role]
        if found is None or found["verdict"] != "loads":
            rest = {key: found[key] for key in ("error", "tensor", "unwritten", "partial", "misread")} if found else {}
            yield f"{role} {found and found['verdict']}: { ({key: value for key, value in rest.items() if value}) }"


def _left(release: str, folder: Path, wishes: Wishes) -> Iterator[str]:
    """Yield what a scan of a result still finds, and what a second repair would do."""
    report = scan(folder, engines=[release.replace("-", "==", 1)])
    for found in report.findings:
        if found.severity is not Severity.NOTE:
            yield f"found: {found.rule} {found.module}: {found.message}"
    for given in (wishes, replace(wishes, graft=None, input_scale=None), replace(wishes, unsafe=False)):
        for step in _prepared(release, folder, given).plan.steps:
            yield f"again: {step.title}"


def main() -> int:
    """Repair every tiny checkpoint for the releases on the command line, ask them, and say where anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.repaired", description=main.__doc__)
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--only", action="append", help="these variants alone")
    parser.add_argument("--family", action="append", help="these families alone")
    parser.add_argument("--mtp", choices=get_args(Branch), default="auto", help="how the branch is to be stored")
    options = parser.parse_args()
    wanted = [
        (family, variant)
        for family, variant in cases()
        if (options.only is None or variant in options.only) and (options.family is None or family in options.family)
    ]
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        for release in options.releases:
            start, counts = time.monotonic(), Counter[str]()
            for cell in repaired(release, wanted, Path(place), Path(place) / f"out-{release}", options.mtp):
                counts[cell.outcome] += 1
                for sentence in cell.wrong:
                    bad += cell.outcome != "open"
                    sys.stdout.write(f"{release} {cell.family}/{cell.variant}: {sentence}\n")
            told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
            sys.stdout.write(f"{release}: {told}; {time.monotonic() - start:.0f} s\n")
            sys.stdout.flush()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
