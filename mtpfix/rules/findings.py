"""Turn occurrences into findings: one cause, one line, over all modules and releases it concerns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from mtpfix.checkpoint.names import collapse_names
from mtpfix.model import Confidence, Finding, Outcome, Role, Severity
from mtpfix.rules.context import Context, Occurrence, Release
from mtpfix.rules.registry import Rule

ROLE_WORDS: dict[Role, str] = {"target": "the main model", "draft": "the MTP branch"}


@dataclass(slots=True)
class Bundle:
    """Occurrences of one cause: modules that fail alike in the same releases."""

    role: Role
    stored: str
    built: str
    modules: list[str] = field(default_factory=list)
    occurrences: list[Occurrence] = field(default_factory=list)

    @property
    def releases(self) -> list[Release]:
        """Return the releases concerned, each once."""
        seen = {(one.release.engine.name, one.release.version): one.release for one in self.occurrences}
        return list(seen.values())

    @property
    def newest(self) -> Occurrence:
        """Return the occurrence that comes first in the newest release's loading order."""
        newest = self.releases[-1]
        mine = [one for one in self.occurrences if one.release is newest]
        crashes = [one for one in mine if one.event.outcome is Outcome.CRASH]
        return min(crashes or mine, key=lambda one: one.event.order)

    @property
    def silent(self) -> bool:
        """Return whether no release says anything about it."""
        return all(one.event.outcome is Outcome.SILENT for one in self.occurrences)


def bundle(
    context: Context, found: Iterable[Occurrence], key: Callable[[Occurrence], str] = lambda _: ""
) -> Iterator[Bundle]:
    """Group occurrences by role, formats, `key`, and the set of releases in which a module fails."""
    modules: dict[tuple[str, ...], dict[str, list[Occurrence]]] = {}
    for one in found:
        stored = context.subject.stored.get(one.event.module)
        cause = (
            one.role,
            stored.format.value if stored else "absent",
            one.built.format.value if one.built else "",
            key(one),
        )
        modules.setdefault(cause, {}).setdefault(one.event.module, []).append(one)
    for (role, stored_format, built_format, _), by_module in modules.items():
        groups: dict[tuple[tuple[str, str], ...], Bundle] = {}
        for module, mine in by_module.items():
            where = tuple(dict.fromkeys((one.release.engine.name, one.release.version) for one in mine))
            group = groups.setdefault(where, Bundle(_role(role), stored_format, built_format))
            group.modules.append(module)
            group.occurrences += mine
        yield from groups.values()


def _role(text: str) -> Role:
    return "draft" if text == "draft" else "target"


def finding(context: Context, rule: Rule, group: Bundle, message: str, *, severity: Severity | None = None) -> Finding:
    """Return the finding of a bundle: the error is what its newest release prints."""
    first = group.newest
    event = first.event
    error = f"{event.error}: {event.text}" if event.error and event.text else event.error
    return Finding(
        rule=rule.code,
        name=rule.name,
        severity=severity or rule.severity,
        confidence=confidence_of(group.releases),
        module=pattern_of(group.modules),
        count=count_modules(context, group.modules),
        engines=context.ranges(group.releases),
        stored=group.stored,
        built=group.built,
        message=message,
        error=error,
        evidence=tuple(source for source in event.because if source),
        role=group.role,
    )


MOST_PATTERNS = 6


def pattern_of(modules: Sequence[str]) -> str:
    """Return module names written as few patterns, the largest first: `mtp.layers.0.mlp.{gate,up}_proj, mtp.fc`."""
    patterns = sorted(collapse_names(modules), key=lambda pattern: -pattern.count)
    texts = [pattern.text for pattern in patterns[:MOST_PATTERNS]]
    return ", ".join([*texts, "…"] if len(patterns) > MOST_PATTERNS else texts)


def confidence_of(releases: Sequence[Release]) -> Confidence:
    """Return verified only if every release concerned was run."""
    verified = all(release.prediction.confidence is Confidence.VERIFIED for release in releases)
    return Confidence.VERIFIED if releases and verified else Confidence.DERIVED


def count_modules(context: Context, modules: Sequence[str]) -> int:
    """Return how many modules names stand for, experts counted one by one."""
    total = 0
    for module in modules:
        stored = context.subject.stored.get(module)
        total += len(stored.experts) if stored and stored.experts else 1
    return total


def plain_finding(
    rule: Rule,
    message: str,
    *,
    module: str = "",
    count: int = 1,
    severity: Severity | None = None,
    stored: str = "",
    evidence: tuple[str, ...] = (),
) -> Finding:
    """Return a finding about the files themselves, which no engine release has to confirm."""
    return Finding(
        rule=rule.code,
        name=rule.name,
        severity=severity or rule.severity,
        confidence=Confidence.VERIFIED,
        module=module,
        count=count,
        engines=(),
        stored=stored,
        built="",
        message=message,
        evidence=evidence,
    )
