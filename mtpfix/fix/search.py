"""The search for a repair: what is decided so far, what helps next, and what was met on the way.

Tries the ways of `repairs` one after another, those that write no tensor first, keeps what helps, and begins again; at
the end it takes back every list entry that nothing needs. A repair is taken only if no release that was run, and in
which the model loaded, ceases to load it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from mtpfix.fix.cost import bytes_written
from mtpfix.fix.entries import entries_title, find_entries
from mtpfix.fix.operations import AddEntry, Dequantize, Operation
from mtpfix.fix.repairs import FILES, TENSOR_WAYS
from mtpfix.fix.repairs.repair import Repair, Way, Wishes, made
from mtpfix.fix.repairs.scales import add_input_scales, declare_inputs
from mtpfix.fix.repairs.weights import quantize
from mtpfix.fix.trial import Trial, name_of
from mtpfix.model import ROLES, Role, Verdict

LONGEST = 24
"""Steps a plan has at most: more would mean that repairs undo each other."""
MOST_PRUNED = 64
"""Entries that are each tried without; a longer list is left as it was found."""


@dataclass(slots=True)
class Search:
    """A search under way: what is decided so far, and what was met on the way."""

    trial: Trial
    wishes: Wishes
    guard: Trial
    steps: list[Repair] = field(default_factory=list)
    withheld: dict[str, Repair] = field(default_factory=dict)
    alternatives: dict[str, Repair] = field(default_factory=dict)
    harm: dict[str, tuple[str, Repair]] = field(default_factory=dict)
    untidy: list[Repair] = field(default_factory=list)
    harmful: bool = False
    lost: set[tuple[str, Role]] = field(default_factory=set)

    def take(self, repair: Repair) -> None:
        """Make a repair part of the plan."""
        self.steps.append(repair)
        self.trial = self.trial.plus(repair.operations)

    def accepted(self, repair: Repair) -> Repair | None:
        """Return a repair as it is taken, None where it is not safe, or spoils a release that was run.

        Entries that only such a release needs are added to it. Releases that were spoilt knowingly count no longer.
        """
        operations = (*self.trial.operations, *repair.operations)
        spoilt = self.spoilt(operations)
        if spoilt:
            richer = self.spared(repair)
            if richer is not None:
                return self.accepted(richer)
            self.harm[repair.title] = (spoilt, repair)
            if not self.harmful:
                return None
            repair = replace(repair, safe=False)
        if not repair.safe and not self.wishes.unsafe:
            self.withheld.setdefault(repair.title, repair)
            return None
        self.harm.pop(repair.title, None)
        if spoilt:
            self.lost.update(self._spoilt(operations))
        return repair

    def spared(self, repair: Repair) -> Repair | None:
        """Return a repair with entries that keep the releases loading that it would spoil; None where none do."""
        spoiling = Trial(self.guard.origin, (*self.trial.operations, *repair.operations))
        found = find_entries(spoiling)
        if found is None:
            return None
        after = self.trial.plus(found.trial.operations[len(self.trial.operations) :])
        if self.spoilt(after.operations) or not after.gain(self.trial):
            return None
        return made(self.trial, after, repair.title, safe=repair.safe)

    def spoilt(self, operations: Sequence[Operation]) -> str:
        """Return a release that was run, loaded the checkpoint, and would no longer; empty where there is none."""
        return next((name for name, _ in self._spoilt(operations)), "")

    def _spoilt(self, operations: Sequence[Operation]) -> Iterator[tuple[str, Role]]:
        before = _loading(self.guard) - self.lost
        for release in Trial(self.guard.origin, tuple(operations)).context.predicted():
            for role in ROLES:
                if (name_of(release), role) in before and release.model(role).verdict not in _SOUND:
                    yield name_of(release), role


_SOUND = (Verdict.LOADS, Verdict.ABSENT)


def _loading(trial: Trial) -> set[tuple[str, Role]]:
    return {
        (name_of(release), role)
        for release in trial.context.releases
        for role in ROLES
        if release.model("target").verdict is release.model(role).verdict is Verdict.LOADS
    }


def not_taken(search: Search, where: str, repair: Repair) -> str:
    """Say which repair was left out for the sake of a release that nobody asked for, and how to have it."""
    restored = {one.module for step in search.steps for one in step.operations if isinstance(one, Dequantize)}
    kept = "--mtp keep " if any(map(search.trial.context.subject.in_branch, restored)) else ""
    text = f"Not taken, as {where} would no longer load it: {repair.title} (writes {repair.bytes_written:,} bytes)"
    unasked = where not in {name_of(release) for release in search.trial.context.releases}
    return f"{text}. {kept}--unsafe-fixes takes it." if unasked and not search.wishes.unsafe else f"{text}."


def wanting(search: Search) -> Iterator[str]:
    """Say what a person could give along that would bring a plan further."""
    trial, wishes = search.trial, search.wishes
    if not trial.bad:
        return
    if wishes.graft is None and trial.occurrences(["layer-absent", "weight-missing"]):
        yield "The base model may have what is missing here: name it with --graft."
    if wishes.input_scale is None:
        given = replace(wishes, input_scale=1.0)
        for way in (add_input_scales, declare_inputs, quantize):
            if any(trial.plus(one.operations).gain(trial) for one in way(trial, given)):
                yield "No scale of inputs is known from which others could be derived: give one with --input-scale."
                return


def mend(search: Search, ways: Sequence[Way]) -> None:
    """Mend what goes wrong; where a packed branch is wished for, first without unpacking any of it."""
    if search.wishes.mtp == "nvfp4":
        _mend_with(search, ways, replace(search.wishes, mtp="keep"))
    _mend_with(search, ways, search.wishes)


def _mend_with(search: Search, ways: Sequence[Way], wishes: Wishes) -> None:
    search.harmful = False
    while (search.trial.bad or search.trial.unread) and len(search.steps) < LONGEST:
        taken = next(_helping(search, ways, wishes), None)
        if taken is None and search.wishes.unsafe and not search.harmful:
            search.harmful = True
            continue
        if taken is None:
            return
        way, repair = taken
        if way not in TENSOR_WAYS:
            for other in TENSOR_WAYS:
                for one in other(search.trial, search.wishes):
                    if search.trial.plus(one.operations).gain(search.trial):
                        search.alternatives.setdefault(one.title, one)
        search.take(repair)


def _helping(search: Search, ways: Sequence[Way], wishes: Wishes) -> Iterator[tuple[Way, Repair]]:
    for way in ways:
        for repair in way(search.trial, wishes):
            if search.trial.plus(repair.operations).gain(search.trial):
                accepted = search.accepted(repair)
                if accepted is not None:
                    yield way, accepted


def tidy(search: Search) -> None:
    """Put the files in order, where that spoils nothing."""
    for way in FILES:
        for repair in way(search.trial, search.wishes):
            after = search.trial.plus(repair.operations)
            accepted = None if after.bad - search.trial.bad else search.accepted(repair)
            if accepted is not None:
                search.take(accepted)
            elif repair.title in search.withheld:
                search.untidy.append(repair)


def prune(search: Search) -> None:
    """Take back every list entry that nothing needs."""
    entries = list(
        dict.fromkeys(one.entry for step in search.steps for one in step.operations if isinstance(one, AddEntry))
    )
    if not 1 < len(entries) <= MOST_PRUNED:
        return
    kept = search.steps
    for entry in reversed(entries):
        fewer = [
            replace(
                step,
                operations=tuple(
                    one for one in step.operations if not (isinstance(one, AddEntry) and one.entry == entry)
                ),
            )
            for step in kept
        ]
        without = Trial(search.trial.origin, tuple(one for step in fewer for one in step.operations))
        if _says(without, entry) or without.bad - search.trial.bad:
            continue
        if not search.spoilt(without.operations):
            kept = fewer
    if kept is not search.steps:
        search.steps = [_repriced(Trial(search.trial.origin), kept, number) for number in range(len(kept))]
        search.steps = [step for step in search.steps if step.operations]
        search.trial = Trial(search.trial.origin, tuple(one for step in search.steps for one in step.operations))


def _says(trial: Trial, entry: str) -> bool:
    """Return whether one of the files has the entry all the same, so that the other is only to say the same."""
    return any(entry in block.excludes for block in trial.context.checkpoint.declarations)


def _repriced(origin: Trial, steps: Sequence[Repair], number: int) -> Repair:
    step = steps[number]
    before = origin.plus(one for earlier in steps[:number] for one in earlier.operations)
    after = before.plus(step.operations)
    added = [one.entry for one in step.operations if isinstance(one, AddEntry)]
    title = step.title
    if added and title.startswith("add "):
        title = entries_title(before.context.checkpoint, list(dict.fromkeys(added)))
    size = bytes_written(before.context.checkpoint, after.context.checkpoint, step.operations)
    return replace(step, title=title, bytes_written=size)
