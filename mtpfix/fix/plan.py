"""The plan: the cheapest repairs that make every release asked for load a checkpoint completely, and what stays open.

Tries the ways of `repairs` one after another, those that write no tensor first, keeps what helps, and begins again; at
the end it takes back every list entry that nothing needs. A repair is taken only if no release that was run, and in
which the model loaded, ceases to load it. Pure: nothing is written, and no weight is read.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from mtpfix.checkpoint.names import describe_names
from mtpfix.engines import Engine, Request, load, names, resolve_requests
from mtpfix.errors import UsageError
from mtpfix.fix.cost import bytes_written, shards_rewritten
from mtpfix.fix.entries import allow, entries_title, find_entries, without_branch_entries
from mtpfix.fix.graft import graft
from mtpfix.fix.operations import AddEntry, Dequantize, Operation, Quantize
from mtpfix.fix.repairs import FILES, TENSOR_WAYS, WAYS
from mtpfix.fix.repairs.declarations import restate_mixed
from mtpfix.fix.repairs.formats import NVFP4, packable, restorable
from mtpfix.fix.repairs.repair import Repair, Way, Wishes, made
from mtpfix.fix.repairs.scales import add_input_scales, declare_inputs
from mtpfix.fix.repairs.weights import dequantized, quantize, quantized, with_fused
from mtpfix.fix.trial import Trial, bad_of, name_of
from mtpfix.model import Outcome, Role, Verdict
from mtpfix.rules.context import ROLES, Context, Release

LONGEST = 24
"""Steps a plan has at most: more would mean that repairs undo each other."""
MOST_PRUNED = 64
"""Entries that are each tried without; a longer list is left as it was found."""


@dataclass(frozen=True, slots=True)
class Open:
    """What still goes wrong after a plan: where, and what the release does."""

    release: str
    role: Role
    module: str
    kind: str
    error: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Steps in order, and what they leave: `open` is empty where every release asked for loads completely.

    `releases` are those asked for (`vllm 0.32.0`); `unpredicted` those of them about which nothing is known, with the
    reason. `withheld` are repairs that would help and are not safe; `alternatives` are dearer ones for what the steps
    do. `rewritten` are the shards that come out anew, with their bytes; `downloads` are repositories on the Hub that
    tensors are taken from, with the bytes of these. `disagreement` says in a sentence where two releases want different
    things, `apart` are then the plans for each.
    """

    ref: str
    releases: tuple[str, ...]
    steps: tuple[Repair, ...] = ()
    open: tuple[Open, ...] = ()
    unpredicted: tuple[str, ...] = ()
    withheld: tuple[Repair, ...] = ()
    alternatives: tuple[Repair, ...] = ()
    notes: tuple[str, ...] = ()
    rewritten: tuple[tuple[str, int], ...] = ()
    downloads: tuple[tuple[str, int], ...] = ()
    disagreement: str = ""
    apart: tuple[Plan, ...] = ()

    @property
    def operations(self) -> tuple[Operation, ...]:
        """Return the operations of all steps."""
        return tuple(operation for step in self.steps for operation in step.operations)

    @property
    def complete(self) -> bool:
        """Return whether every release asked for loads the result completely."""
        return not self.open


def requests_for(texts: Sequence[str] | None) -> tuple[Request, ...]:
    """Return the releases that a plan must serve: an engine's newest verified one, or all that a range names.

    Without a text these are the engines of which any release was run.
    Raises UsageError for text that names no engine or no known release.
    """
    wanted: dict[str, tuple[Engine, set[str]]] = {}
    for text in texts or default_engines():
        for request in resolve_requests([text]):
            releases = request.releases if request.explicit else (newest_verified(request.engine),)
            wanted.setdefault(request.engine.name, (request.engine, set()))[1].update(releases)
    return tuple(
        Request(engine, tuple(one for one in engine.releases if one in releases), explicit=True)
        for _, (engine, releases) in sorted(wanted.items())
    )


def default_engines() -> list[str]:
    """Return the engines that a plan serves unasked: those of which a release was run."""
    return [name for name in names() if load(name).verified] or list(names())


def newest_verified(engine: Engine) -> str:
    """Return the newest release that was run, or the newest known where none was."""
    run = [release for release in engine.releases if release in engine.verified]
    return (run or list(engine.releases))[-1]


def verified_requests() -> tuple[Request, ...]:
    """Return every release of every engine that was run."""
    known = [load(name) for name in names()]
    return tuple(
        Request(engine, tuple(one for one in engine.releases if one in engine.verified), explicit=False)
        for engine in known
        if engine.verified
    )


# ---------------------------------------------------------------------------------------------------- searching


@dataclass(slots=True)
class _Search:
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


def make_plan(context: Context, wishes: Wishes, ways: Sequence[Way] = WAYS) -> Plan:
    """Return the plan for the releases of a context.

    Raises UsageError where a wish cannot be met for want of an input scale.
    """
    found = _planned(context, wishes, ways)
    return _taken_apart(found, context, wishes, ways) if found.open else found


def plan_of(context: Context, ref: str, steps: Sequence[Repair]) -> Plan:
    """Return the plan that consists of these steps, whatever they lead to, for the releases of a context.

    Raises FormatError where a step does not apply.
    """
    trial = Trial(context, tuple(operation for step in steps for operation in step.operations))
    before, after = context.checkpoint, trial.context.checkpoint
    unknown = [
        (one, one.model("target").reason or one.model("draft").reason)
        for one in trial.context.releases
        if Verdict.UNKNOWN in (one.model("target").verdict, one.model("draft").verdict)
    ]
    return Plan(
        ref=ref,
        releases=tuple(map(name_of, context.releases)),
        steps=tuple(steps),
        open=tuple(_open(trial)),
        unpredicted=tuple(f"{name_of(one)}: {reason}" for one, reason in unknown),
        rewritten=tuple(shards_rewritten(before, after, trial.operations).items()) if steps else (),
    )


def _planned(context: Context, wishes: Wishes, ways: Sequence[Way]) -> Plan:
    origin = Trial(context)
    search = _Search(origin, wishes, Trial(Context(context.subject, verified_requests(), context.scalars)))
    for repair in graft(search.trial, wishes):
        search.take(repair)
    notes = _wish(search)
    _mend(search, ways)
    _tidy(search)
    _prune(search)
    plan = plan_of(context, context.checkpoint.ref, search.steps)
    used = {step.title for step in search.steps}
    return replace(
        plan,
        withheld=tuple(search.withheld.values() if plan.open else search.untidy),
        alternatives=tuple(one for title, one in search.alternatives.items() if title not in used),
        notes=(
            *notes,
            *(_not_taken(search, where, repair) for where, repair in search.harm.values()),
            *_wanting(search),
        ),
    )


def _not_taken(search: _Search, where: str, repair: Repair) -> str:
    """Say which repair was left out for the sake of a release that nobody asked for, and how to have it."""
    restored = {one.module for step in search.steps for one in step.operations if isinstance(one, Dequantize)}
    kept = "--mtp keep " if any(map(search.trial.context.subject.in_branch, restored)) else ""
    text = f"Not taken, as {where} would no longer load it: {repair.title} (writes {repair.bytes_written:,} bytes)"
    unasked = where not in {name_of(release) for release in search.trial.context.releases}
    return f"{text}. {kept}--unsafe-fixes takes it." if unasked and not search.wishes.unsafe else f"{text}."


def _wanting(search: _Search) -> Iterator[str]:
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


def _mend(search: _Search, ways: Sequence[Way]) -> None:
    """Mend what goes wrong; where a packed branch is wished for, first without unpacking any of it."""
    if search.wishes.mtp == "nvfp4":
        _mend_with(search, ways, replace(search.wishes, mtp="keep"))
    _mend_with(search, ways, search.wishes)


def _mend_with(search: _Search, ways: Sequence[Way], wishes: Wishes) -> None:
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


def _helping(search: _Search, ways: Sequence[Way], wishes: Wishes) -> Iterator[tuple[Way, Repair]]:
    for way in ways:
        for repair in way(search.trial, wishes):
            if search.trial.plus(repair.operations).gain(search.trial):
                accepted = search.accepted(repair)
                if accepted is not None:
                    yield way, accepted


def _tidy(search: _Search) -> None:
    """Put the files in order, where that spoils nothing."""
    for way in FILES:
        for repair in way(search.trial, search.wishes):
            after = search.trial.plus(repair.operations)
            accepted = None if after.bad - search.trial.bad else search.accepted(repair)
            if accepted is not None:
                search.take(accepted)
            elif repair.title in search.withheld:
                search.untidy.append(repair)


def _prune(search: _Search) -> None:
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


# ---------------------------------------------------------------------------------------------------- wishes


def _wish(search: _Search) -> list[str]:
    """Store the branch as wished, before anything is mended; return what has to be said about it."""
    match search.wishes.mtp:
        case "bf16":
            return _wish_plain(search)
        case "nvfp4":
            return _wish_packed(search)
        case _:
            return []


def _wish_plain(search: _Search) -> list[str]:
    subject = search.trial.context.subject
    modules = [name for name, item in subject.stored.items() if subject.in_branch(name) and restorable(item)]
    if not modules:
        return ["The branch is stored in 16 bits already."]
    for repair in dequantized(search.trial, modules, search.wishes, "dequantize the branch to BF16"):
        search.take(repair)
    return []


def _wish_packed(search: _Search) -> list[str]:
    trial = search.trial
    subject = trial.context.subject
    bare = without_branch_entries(trial)
    packed: dict[str, bool] = {}
    forbids: dict[str, str] = {}
    listable: dict[str, None] = {}
    already = False
    for release, role, built in bare.built():
        if role != "draft":
            continue
        for name in built.modules:
            item = subject.stored.get(name)
            if item is None or not subject.in_branch(name) or len(item.shape) < 2:
                continue
            if item.format in NVFP4:
                already = True
                continue
            able = built.format in NVFP4 and built.layer != "head" and packable(item)
            packed[name] = packed.get(name, True) and able
            if not able and packable(item) and built.layer not in ("norm", "embedding", "head"):
                forbids.setdefault(name, name_of(release))
                if built.layer != "linear":  # torch's own, that no list is asked for
                    listable[name] = None
    wanted = [name for name, able in packed.items() if able]
    if listable and (named := _wish_restated(search, bare, [*wanted, *listable], len(wanted))):
        return _left_plain({name: by for name, by in forbids.items() if name not in named})
    step: Repair | None = None
    wishes = search.wishes
    if not any(quantized(bare, wanted, wishes)):
        wishes = replace(wishes, input_scale=1.0)  # to see whether the scale is all that is wanting
    while wanted:
        found = next(quantized(bare, wanted, wishes))
        after = bare.plus(found.operations)
        listed = find_entries(after, before=trial) or find_entries(after, before=after)
        after = listed.trial if listed is not None else after
        worse = _worse(after, trial, wanted)
        fewer = [name for name in wanted if name not in with_fused(after, worse.keys() & set(wanted))]
        if len(fewer) == len(wanted):
            step = made(trial, after, found.title, safe=True)
            break
        by = next(worse[name] for name in wanted if name in worse)
        forbids.update((name, worse.get(name, by)) for name in wanted if name not in fewer)
        wanted = fewer
    if step is not None and wishes is not search.wishes:
        raise UsageError(
            f"no scale is known for the inputs of {describe_names(wanted)}",
            "no other layer has the same projections quantized: give one with --input-scale",
        )
    notes = _left_plain(forbids)
    if step is not None:
        search.take(step)
    elif already:
        notes.append("What else there is of the branch is stored in NVFP4 already.")
    else:
        notes.append("No module of the branch can be packed in every release asked for.")
    return notes


def _left_plain(forbids: Mapping[str, str]) -> list[str]:
    """Say which modules a release, given for each, does not let be packed."""
    return [
        f"Left in 16 bits, as {release} builds nothing else: "
        f"{describe_names([one for one, by in forbids.items() if by == release])}."
        for release in dict.fromkeys(forbids.values())
    ]


def _worse(after: Trial, before: Trial, packed: Collection[str]) -> dict[str, str]:
    """Return the modules on disk of which something goes wrong that did not before, each with a release.

    Of modules that were packed whatever goes wrong counts.
    """
    wrong = {bad[2]: bad[0] for bad in sorted(after.bad)}
    built = {name: wrong[one.prefix] for _, _, one in after.built() if one.prefix in wrong for name in one.modules}
    fresh = {bad[2] for bad in after.bad - before.bad}
    return {name: by for name, by in (wrong | built).items() if name in fresh or name in packed}


def _wish_restated(search: _Search, bare: Trial, modules: Sequence[str], least: int) -> list[str]:
    """Pack modules of the branch and name each in an allow-list; return those packed, none where that was not taken.

    Nor is it taken where it packs no more modules than `least`, which need no such list.
    """
    trial, wanted = search.trial, list(modules)
    while len(wanted) > least:
        found = next(quantized(bare, wanted, search.wishes), None)
        if found is None:
            return []
        packed = bare.plus(found.operations)
        best: tuple[dict[str, str], str, Trial] | None = None
        for title, listed in _named(packed, found, search.wishes):
            after = without_branch_entries(listed)  # they count beside an allow-list too
            worse = _worse(after, trial, wanted)
            if best is None or len(worse) < len(best[0]):
                best = worse, f"{found.title}; {title}", after
        if best is None:
            return []
        worse, title, after = best
        if not worse:
            search.harmful = search.wishes.unsafe
            accepted = search.accepted(made(trial, after, title, safe=True))
            search.harmful = False
            if accepted is None:
                return []
            search.take(accepted)
            return wanted
        fewer = [name for name in wanted if name not in with_fused(packed, worse.keys() & set(wanted))]
        if len(fewer) == len(wanted):
            return []
        wanted = fewer
    return []


def _named(packed: Trial, quantized: Repair, wishes: Wishes) -> Iterator[tuple[str, Trial]]:
    """Yield the trials in which modules that were just quantized stand in an allow-list, a new one or that there is."""
    for repair in restate_mixed(packed, wishes):
        yield repair.title, packed.plus(repair.operations)
    modules = [name for one in quantized.operations if isinstance(one, Quantize) for name in one.modules]
    found = allow(packed, modules)
    if found is not None:
        after, names = found
        yield f"add {describe_names(names)} to quantized_layers", after


# ------------------------------------------------------------------------------------------------- what is left


def _open(trial: Trial) -> list[Open]:
    left: dict[tuple[str, Role, str, str], Open] = {}
    for release in trial.context.releases:
        for role in ROLES:
            for event in release.model(role).events:
                if event.outcome is Outcome.OK:
                    continue
                error = f"{event.error}: {event.text}" if event.error and event.text else event.error
                key = (name_of(release), role, event.module, event.kind)
                left.setdefault(key, Open(*key, error=error))
    return list(left.values())


def _taken_apart(found: Plan, context: Context, wishes: Wishes, ways: Sequence[Way]) -> Plan:
    """Return the plan with the plans for each release, where several were asked for and any has one of its own."""
    releases = context.releases
    if len(releases) < 2:
        return found
    apart = []
    for release in releases:
        alone = Context(context.subject, (Request(release.engine, (release.version,), explicit=True),), context.scalars)
        own = _planned(alone, wishes, ways)
        if not own.unpredicted:
            apart.append(own)
    able = [one for one in apart if one.complete]
    if not able:
        return found
    return replace(found, disagreement=_disagreement(found, context, releases), apart=tuple(apart))


def _disagreement(found: Plan, context: Context, releases: Sequence[Release]) -> str:
    """Say at which module two releases want different things."""
    first = found.open[0]
    trial = Trial(context, found.operations)
    failing = {one.release for one in found.open if one.module == first.module}
    builds = {
        name_of(release): built.format.value for release, _, built in trial.built() if first.module in built.modules
    }
    other = next((name_of(one) for one in releases if name_of(one) not in failing and name_of(one) in builds), None)
    stored = trial.context.subject.stored.get(first.module)
    what = stored.format.value if stored else "nothing"
    if other is None or builds[other] == builds.get(first.release):
        loading = (one for one in trial.context.releases if one.model("target").verdict is Verdict.LOADS)
        sound = next((name_of(one) for one in loading if not bad_of(one)), None)
        where = first.module or "the model as a whole"
        tail = f", {sound} loads it" if sound else ""
        return f"{where}: {first.release} fails whatever is tried ({first.error or first.kind}){tail}."
    here = builds.get(first.release, "not at all")
    return (
        f"{first.module}, stored as {what}: {first.release} builds it {here}, {other} {builds[other]}, "
        "and nothing that was tried serves both."
    )
