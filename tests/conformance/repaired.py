"""Repair tiny checkpoints for engine releases and ask those: `python -m tests.conformance.repaired vllm-0.32.0 …`.

For each release, family and variant the plan is made and written; then the release's real loader must load target and
draft with every parameter written, a scan of the result must find nothing, and a second repair must change nothing.
What a plan leaves open is counted: there no form is known that the release loads.

With `--record` the repairs that were loaded are noted in `golden/repaired`; with `--changed` those that stand there, as
they are planned now, are not asked about again.

With `--together` one plan serves all releases, and each of them is asked about its result. Where a plan leaves anything
open, it must say between which two of them, and offer a plan for each.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from mtpfix import scan
from mtpfix.errors import NothingToCheck
from mtpfix.fix.patching import Prepared, carry_out, prepare
from mtpfix.fix.plan import Plan
from mtpfix.fix.repairs.repair import Branch, Wishes
from mtpfix.model import ROLES, Severity
from tests.checkpoints import build
from tests.conformance import loaded
from tests.conformance.loaded import fingerprint
from tests.conformance.record import Answer, ask, cases


@dataclass(frozen=True, slots=True)
class Cell:
    """One checkpoint for one release, or for several: what became of it, and what is wrong with that.

    `outcome` is `as it was` (nothing had to be done), `repaired`, `known` (either of them, loaded when it was last
    asked about), `open` (no repair was found) or `absent` (a release has no class for it); `wrong` are sentences, none
    where everything is as promised; `told` is what the plan says of what it leaves open.
    """

    family: str
    variant: str
    outcome: str
    wrong: tuple[str, ...] = ()
    told: tuple[str, ...] = ()
    fingerprint: str = ""


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


def planned(
    releases: Sequence[str], wanted: Sequence[tuple[str, str]], root: Path, mtp: Branch = "auto"
) -> Iterator[tuple[Cell, Prepared | None]]:
    """Yield what is planned for each checkpoint for all of some releases; checkpoints are built below `root`."""
    for family, variant in wanted:
        try:
            prepared = _prepared(releases, folder_of(root, family, variant), wishes_for(root, family, variant, mtp))
        except NothingToCheck:
            yield Cell(family, variant, "absent"), None
            continue
        if prepared.plan.unpredicted:
            yield Cell(family, variant, "absent"), prepared
        elif not prepared.plan.complete:
            yield Cell(family, variant, "open", tuple(_unsaid(prepared.plan)), tuple(_told(prepared.plan))), prepared
        else:
            outcome = "repaired" if prepared.plan.operations else "as it was"
            yield Cell(family, variant, outcome, fingerprint=fingerprint(prepared)), prepared


def repaired(
    releases: Sequence[str],
    wanted: Sequence[tuple[str, str]],
    root: Path,
    out: Path,
    mtp: Branch = "auto",
    known: Mapping[str, Mapping[str, str]] | None = None,
) -> Iterator[Cell]:
    """Yield what became of each checkpoint for all of some releases (`vllm-0.32.0`); results are written below `out`.

    `mtp` is how the branch is to be stored, as `mtpfix patch --mtp` has it; `known` are fingerprints of repairs, by
    family and variant, that need not be asked about.
    """
    asked: list[tuple[Cell, Path]] = []
    for cell, prepared in planned(releases, wanted, root, mtp):
        if prepared is None or not cell.fingerprint:
            yield cell
        elif cell.fingerprint == (known or {}).get(cell.family, {}).get(cell.variant):
            yield replace(cell, outcome="known")
        elif cell.outcome == "repaired":
            place = out / cell.family / cell.variant
            place.parent.mkdir(parents=True, exist_ok=True)
            carry_out(prepared, place)
            asked.append((cell, place))
        else:
            asked.append((cell, prepared.snapshot.folder))
    answers = [ask(release, [place for _, place in asked]) for release in releases] if asked else []
    for (cell, place), *found in zip(asked, *answers, strict=True):
        wrong = [
            f"{release} {sentence}"
            for release, answer in zip(releases, found, strict=True)
            for sentence in _disagreements(answer)
        ]
        wrong += _left(releases, place, wishes_for(root, cell.family, cell.variant, mtp))
        yield replace(cell, wrong=tuple(wrong))


def _prepared(releases: Sequence[str], folder: Path, wishes: Wishes) -> Prepared:
    return prepare(str(folder), _names(releases), wishes)


def _names(releases: Sequence[str]) -> list[str]:
    """Return releases as the command line has them."""
    return [release.replace("-", "==", 1) for release in releases]


def _told(plan: Plan) -> Iterator[str]:
    """Yield what a plan says of what it leaves open."""
    if plan.disagreement:
        yield f"disagreement: {plan.disagreement}"
    yield from (f"open: {one}" for one in plan.open[:2])


def _unsaid(plan: Plan) -> Iterator[str]:
    """Yield what a plan for several releases owes where it leaves anything open: who disagrees, and a plan for each."""
    if len(plan.releases) > 1 and not (
        plan.disagreement and sum(release in plan.disagreement for release in plan.releases) > 1
    ):
        yield "nothing is said of which releases disagree"
    if len(plan.releases) > 1 and [one.releases for one in plan.apart] != [(release,) for release in plan.releases]:
        yield "there is no plan for each release"


def _disagreements(answer: Answer) -> Iterator[str]:
    """Yield what the engine does with a result that it should load completely."""
    if "broken" in answer or "unsupported" in answer:
        yield f"not asked: {answer}"
        return
    for role in ROLES:
        found = answer[role]
        if found is None and role == "target" and answer.get("alone"):
            continue  # the checkpoint is a draft alone
        if found is None or found["verdict"] != "loads":
            rest = {key: found[key] for key in ("error", "tensor", "unwritten", "partial", "misread")} if found else {}
            yield f"{role} {found and found['verdict']}: { ({key: value for key, value in rest.items() if value}) }"


def _left(releases: Sequence[str], folder: Path, wishes: Wishes) -> Iterator[str]:
    """Yield what a scan of a result still finds, and what a second repair would do."""
    report = scan(folder, engines=_names(releases))
    for found in report.findings:
        if found.severity is not Severity.NOTE:
            yield f"found: {found.rule} {found.module}: {found.message}"
    for given in (wishes, replace(wishes, graft=None, input_scale=None), replace(wishes, unsafe=False)):
        for step in _prepared(releases, folder, given).plan.steps:
            yield f"again: {step.title}"


def main() -> int:
    """Repair every tiny checkpoint for the releases on the command line, ask them, and say where anything is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.repaired", description=main.__doc__)
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--only", action="append", help="these variants alone")
    parser.add_argument("--family", action="append", help="these families alone")
    parser.add_argument("--mtp", choices=get_args(Branch), default="auto", help="how the branch is to be stored")
    parser.add_argument("--together", action="store_true", help="one repair for all of the releases")
    parser.add_argument("--record", action="store_true", help="note the repairs that were loaded")
    parser.add_argument("--changed", action="store_true", help="do not ask again about repairs that were loaded")
    options = parser.parse_args()
    if (options.record or options.changed) and (options.together or options.mtp != "auto"):
        parser.error("what is noted are repairs for one release each, with --mtp auto")
    wanted = [
        (family, variant)
        for family, variant in cases()
        if (options.only is None or variant in options.only) and (options.family is None or family in options.family)
    ]
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        for releases in [options.releases] if options.together else [[one] for one in options.releases]:
            called = " ".join(releases)
            start, counts = time.monotonic(), Counter[str]()
            known = loaded.golden(called) if options.changed else {}
            cells = []
            for cell in repaired(releases, wanted, Path(place), Path(place) / f"out-{called}", options.mtp, known):
                counts[cell.outcome] += 1
                cells.append(cell)
                bad += len(cell.wrong)
                for sentence in (*cell.wrong, *cell.told):
                    sys.stdout.write(f"{called} {cell.family}/{cell.variant}: {sentence}\n")
            if options.record:
                loaded.write(called, cells)
            told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
            sys.stdout.write(f"{called}: {told}; {time.monotonic() - start:.0f} s\n")
            sys.stdout.flush()
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
