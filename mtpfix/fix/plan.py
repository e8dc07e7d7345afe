"""The plan: the cheapest repairs that make every release asked for load a checkpoint completely, and what stays open.

Pure: nothing is written, and no weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mtpfix.engines import Engine, Request, load, names, resolve_requests
from mtpfix.fix.cost import shards_rewritten
from mtpfix.fix.graft import graft
from mtpfix.fix.operations import Operation
from mtpfix.fix.repairs import WAYS
from mtpfix.fix.repairs.repair import Repair, Way, Wishes
from mtpfix.fix.search import Search, mend, not_taken, prune, tidy, wanting
from mtpfix.fix.trial import Trial, bad_of, name_of
from mtpfix.fix.wish import grant
from mtpfix.model import ROLES, Outcome, Role, Verdict
from mtpfix.rules.context import Context, Release


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
    search = Search(origin, wishes, Trial(Context(context.subject, verified_requests(), context.scalars)))
    for repair in graft(search.trial, wishes):
        search.take(repair)
    notes = grant(search)
    mend(search, ways)
    tidy(search)
    prune(search)
    plan = plan_of(context, context.checkpoint.ref, search.steps)
    used = {step.title for step in search.steps}
    return replace(
        plan,
        withheld=tuple(search.withheld.values() if plan.open else search.untidy),
        alternatives=tuple(one for title, one in search.alternatives.items() if title not in used),
        notes=(
            *notes,
            *(not_taken(search, where, repair) for where, repair in search.harm.values()),
            *wanting(search),
        ),
    )


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
