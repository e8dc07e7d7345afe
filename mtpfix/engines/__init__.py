"""Engines: which releases are known, which were run, and the facts that concern every family.

The facts stand in one TOML file per engine beside this module. A release that nobody ran is `derived`, never fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from packaging.requirements import InvalidRequirement, Requirement
from packaging.version import Version

from mtpfix.errors import UsageError
from mtpfix.facts import names_of, pick, read_table, source_of
from mtpfix.families import Family
from mtpfix.model import Confidence

PACKAGE = __name__

NOT_PREDICTED = dict.fromkeys(("tensorrt-llm", "tensorrt_llm", "trtllm", "trt-llm"), "TensorRT-LLM")
"""Engines that people ask for and no file speaks of: of none of their releases could the whole source be read."""


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine file: `releases` in ascending order, `verified` those whose real loader was run."""

    name: str
    title: str
    releases: tuple[str, ...]
    verified: tuple[str, ...]
    table: Mapping[str, Any]

    def fact(self, name: str, version: str) -> tuple[Any, str]:
        """Return a family-independent fact at a release, and the source it was read from; (None, "") if unknown."""
        value = self.table["facts"].get(name)
        return pick(value, version), source_of(value, version)

    def confidence(self, version: str, family: Family | None = None, architecture: str = "") -> Confidence:
        """Return whether this release was run, or only read; of a family, whether it was run with that architecture."""
        if version not in self.verified:
            return Confidence.DERIVED
        if family is not None and not family.was_run(self.name, architecture, version):
            return Confidence.DERIVED
        return Confidence.VERIFIED


@lru_cache(maxsize=16)
def load(name: str) -> Engine:
    """Load one engine by its name; raises UsageError for an unknown one."""
    if name in NOT_PREDICTED:
        raise UsageError(
            f"{NOT_PREDICTED[name]} is not predicted: none of its releases could be read whole, or run",
            f"docs/tensorrt-llm.md says what is known of it; predicted are {', '.join(names())}",
        )
    if name not in names():
        raise UsageError(f"unknown engine {name!r}", f"known engines: {', '.join(names())}")
    table = read_table(PACKAGE, f"{name}.toml")
    releases = tuple(sorted(table["releases"], key=Version))
    return Engine(table["name"], table["title"], releases, tuple(table["verified"]), table)


def names() -> tuple[str, ...]:
    """Return the names of all engines, sorted."""
    return names_of(PACKAGE)


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asked of one engine: the matching releases, ascending; `explicit` if a version was named."""

    engine: Engine
    releases: tuple[str, ...]
    explicit: bool


def resolve_requests(texts: Sequence[str] | None) -> list[Request]:
    """Turn `vllm`, `vllm==0.19.*`, `vllm>=0.20,<0.24` into releases; None or nothing asks for all known engines.

    Raises UsageError for text that is no requirement, an unknown engine, or a range without a known release.
    """
    asked: dict[str, tuple[set[str], bool]] = {}
    for text in texts or names():
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise UsageError(
                f"{text!r} does not name an engine and a version range",
                "write for example vllm, vllm==0.19.* or 'vllm>=0.20,<0.24'",
            ) from error
        engine = load(requirement.name.lower())
        matching = {release for release in engine.releases if requirement.specifier.contains(release, prereleases=True)}
        if not matching:
            raise UsageError(
                f"no known {engine.title} release matches {text!r}",
                f"known releases are {engine.releases[0]} to {engine.releases[-1]}; see `mtpfix engines`",
            )
        known, explicit = asked.get(engine.name, (set(), False))
        asked[engine.name] = (known | matching, explicit or bool(requirement.specifier))
    return [
        Request(load(name), tuple(sorted(releases, key=Version)), explicit)
        for name, (releases, explicit) in sorted(asked.items())
    ]


def range_text(engine: Engine, releases: Iterable[str]) -> str:
    """Write releases as a person says them: `vllm`, `vllm <=0.19.1`, `vllm 0.20.2 - 0.22.0`, `vllm 0.18.1, 0.30.0`.

    Runs are counted over all known releases of the engine, so a text never claims a release that was not judged.
    """
    wanted = set(releases)
    known = engine.releases
    runs: list[list[str]] = []
    for position, release in enumerate(known):
        if release in wanted:
            if runs and position and runs[-1][-1] == known[position - 1]:
                runs[-1].append(release)
            else:
                runs.append([release])
    if not runs:
        return engine.name
    if len(runs) == 1 and len(runs[0]) == len(known):
        return engine.name
    return f"{engine.name} " + ", ".join(_run_text(run, known) for run in runs)


def _run_text(run: Sequence[str], known: Sequence[str]) -> str:
    if len(run) == 1 and run[0] not in (known[0], known[-1]):
        return run[0]
    if run[0] == known[0] and len(run) > 1:
        return f"<={run[-1]}"
    if run[-1] == known[-1] and len(run) > 1:
        return f">={run[0]}"
    return run[0] if len(run) == 1 else f"{run[0]} - {run[-1]}"
