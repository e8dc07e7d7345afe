"""Operations tried on the prediction: what would still go wrong in the judged releases, were they carried out.

The only place that says what "better" means: something that went wrong no longer does, and nothing else begins to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

from mtpfix.errors import FormatError
from mtpfix.fix.operations import Operation
from mtpfix.fix.preview import preview
from mtpfix.fix.values import scalars_after
from mtpfix.model import ROLES, Built, Format, Outcome, Role, Verdict
from mtpfix.rules.context import Context, Occurrence, Release, occurrences

Bad: TypeAlias = frozenset[tuple[str, Role, str, str]]
"""What goes wrong, as (release, role, module, kind of event)."""


@dataclass(frozen=True)
class Trial:
    """Operations that nobody has carried out: `origin` is the checkpoint as it lies there, `context` as it would be."""

    origin: Context
    operations: tuple[Operation, ...] = ()

    @cached_property
    def context(self) -> Context:
        """Return the checkpoint after the operations; raises FormatError where one does not apply."""
        if not self.operations:
            return self.origin
        checkpoint, scalars = self.origin.checkpoint, self.origin.scalars
        after = None if scalars is None else scalars_after(checkpoint, scalars, self.operations)
        return self.origin.of(preview(checkpoint, self.operations), after)

    def plus(self, operations: Iterable[Operation]) -> Trial:
        """Return the trial with more operations at the end."""
        return Trial(self.origin, (*self.operations, *operations))

    @cached_property
    def bad(self) -> Bad:
        """Return everything that goes wrong in a judged release."""
        return frozenset[tuple[str, Role, str, str]]().union(*map(bad_of, self.context.releases))

    @cached_property
    def known(self) -> frozenset[tuple[str, Role]]:
        """Return the judged releases, and which of their models, of which something is predicted."""
        pairs = ((release, role) for release in self.context.releases for role in ROLES)
        return frozenset((name_of(release), role) for release, role in pairs if is_known(release, role))

    @cached_property
    def unread(self) -> frozenset[str]:
        """Return the judged releases of which nothing is predicted, although they obey a block of the checkpoint."""
        return frozenset(
            name_of(release)
            for release in self.context.releases
            if not is_known(release, "target") and release.prediction.method is not None
        )

    def gain(self, before: Trial) -> int:
        """Return how much less goes wrong than before; 0 where anything goes wrong that did not, or does not apply.

        Nor does it count where a release is no longer predicted: that nothing is known to go wrong there is no gain.
        That one begins to be predicted is. What a release does that refused the declaration before, or of which nothing
        was predicted, could not be seen then, and is not held against it.
        """
        hidden = {bad[0] for bad in before.bad if bad[3] == "declaration-refused"} | before.unread
        try:
            for release in self.context.predicted():
                now = bad_of(release)
                if any((name_of(release), role) in before.known for role in ROLES if not is_known(release, role)):
                    return 0
                unseen = name_of(release) in hidden and all(bad[3] != "declaration-refused" for bad in now)
                if not now <= before.bad and not unseen:
                    return 0
        except FormatError:
            return 0
        return len(before.bad - self.bad) + len(before.unread - self.unread)

    def occurrences(self, kinds: Sequence[str], role: Role | None = None) -> list[Occurrence]:
        """Return the events of some kinds, of one model or both."""
        return [one for one in occurrences(self.context, kinds) if role is None or one.role == role]

    @cached_property
    def formats(self) -> dict[tuple[str, Role, str], Format]:
        """Return how every module is built, by release, role and prefix."""
        return {(name_of(release), role, built.prefix): built.format for release, role, built in self.built()}

    def built(self) -> Iterator[tuple[Release, Role, Built]]:
        """Yield every module that a judged release builds."""
        for release in self.context.releases:
            for role in ROLES:
                for built in release.model(role).built:
                    yield release, role, built

    def changed_beyond(self, before: Trial, modules: Iterable[str]) -> bool:
        """Return whether a module is built otherwise than before that none of these names on disk feeds."""
        meant = frozenset(modules)
        return any(
            before.formats.get((name_of(release), role, built.prefix), built.format) is not built.format
            and meant.isdisjoint(built.modules)
            for release, role, built in self.built()
        )


def is_known(release: Release, role: Role) -> bool:
    """Return whether anything is predicted of a model in one release."""
    return release.model(role).verdict is not Verdict.UNKNOWN


def bad_of(release: Release) -> Bad:
    """Return everything that goes wrong in one release."""
    return frozenset(
        (name_of(release), role, event.module, event.kind)
        for role in ROLES
        for event in release.model(role).events
        if event.outcome is not Outcome.OK
    )


def name_of(release: Release) -> str:
    """Return how a release is called: `vllm 0.32.0`."""
    return f"{release.engine.name} {release.version}"


def modules_of(found: Iterable[Occurrence]) -> list[str]:
    """Return the names on disk of events, each once, in their order."""
    return list(dict.fromkeys(one.event.module for one in found if one.event.module))
