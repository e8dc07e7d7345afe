"""What the rules look at: one checkpoint, and what each judged engine release does with it.

Predictions are made once for each distinct set of facts, not once for each release.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from functools import cached_property

from mtpfix.engines import Engine, Request, range_text
from mtpfix.engines.predict import knowledge_key, predict
from mtpfix.engines.subject import Subject
from mtpfix.model import (
    ROLES,
    Built,
    Checkpoint,
    Confidence,
    Declaration,
    EngineRange,
    EngineReport,
    Event,
    Ignore,
    ModelPrediction,
    Prediction,
    Role,
    Tensor,
    Verdict,
)

Scalars = Callable[[Sequence[Tensor]], Mapping[tuple[str, str], "array[float]"]]
"""Reads the values of one-element tensors: (shard, name) to the values, in the order of the tensor's experts."""

GLOBAL_SCALES = (".weight_scale_2", ".weight_global_scale")


@dataclass(frozen=True, slots=True)
class Release:
    """One engine release and its prediction."""

    engine: Engine
    version: str
    prediction: Prediction

    def model(self, role: Role) -> ModelPrediction:
        """Return the prediction for the target or the draft."""
        return self.prediction.target if role == "target" else self.prediction.draft


@dataclass(frozen=True)
class Context:
    """A checkpoint under judgement: `requests` are the engines and releases asked for, `ignores` what is accepted."""

    subject: Subject
    requests: tuple[Request, ...]
    scalars: Scalars | None = None
    ignores: tuple[Ignore, ...] = ()
    today: date = field(default_factory=date.today)
    ranks: int = 1

    @property
    def checkpoint(self) -> Checkpoint:
        """Return the checkpoint itself."""
        return self.subject.checkpoint

    @cached_property
    def releases(self) -> tuple[Release, ...]:
        """Return every judged release with its prediction, engine by engine, in ascending order."""
        return tuple(self._predict())

    def predicted(self) -> Iterator[Release]:
        """Yield every judged release, predicted as it is asked for: what stops at one leaves the others undone."""
        if "releases" in self.__dict__:
            yield from self.releases
            return
        done = []
        for release in self._predict():
            done.append(release)
            yield release
        self.__dict__["releases"] = tuple(done)

    def of(self, checkpoint: Checkpoint, scalars: Scalars | None) -> Context:
        """Return the same question about another description of the checkpoint, as a repair would leave it.

        `scalars` reads the numbers of that description.
        """
        other = Context(Subject(checkpoint), self.requests, scalars, ranks=self.ranks)
        if other.subject.architecture == self.subject.architecture:
            other.__dict__["_keys"] = self._keys  # they depend on the family alone
        return other

    def _predict(self) -> Iterator[Release]:
        for request in self.requests:
            made: dict[str, Prediction] = {}
            for version in request.releases:
                key = self._keys[request.engine.name, version]
                if key not in made:
                    made[key] = predict(self.subject, request.engine, version, ranks=self.ranks)
                yield Release(request.engine, version, restamped(made[key], self.subject, request.engine, version))

    @cached_property
    def _keys(self) -> Mapping[tuple[str, str], str]:
        return {
            (request.engine.name, version): knowledge_key(self.subject, request.engine, version)
            if len(request.releases) > 1
            else ""
            for request in self.requests
            for version in request.releases
        }

    @cached_property
    def deciding(self) -> tuple[Declaration, ...]:
        """Return the quantization blocks that decide in at least one release whose matching is predicted."""
        predicted = (one.prediction for one in self.releases if one.prediction.target.verdict is not Verdict.UNKNOWN)
        found = {id(prediction.deciding): prediction.deciding for prediction in predicted}
        return tuple(block for block in found.values() if block is not None)

    def ranges(self, releases: Iterable[Release]) -> tuple[EngineRange, ...]:
        """Return releases as ranges, one for each engine."""
        by_engine: dict[str, tuple[Engine, list[str]]] = {}
        for release in releases:
            by_engine.setdefault(release.engine.name, (release.engine, []))[1].append(release.version)
        return tuple(
            EngineRange(engine.name, tuple(versions), range_text(engine, versions))
            for engine, versions in by_engine.values()
        )

    @cached_property
    def scalar_values(self) -> Mapping[str, list[tuple[Tensor, array[float]]]]:
        """Return the values of every one-element global scale by tensor name; empty where nothing can read them."""
        found: dict[str, list[tuple[Tensor, array[float]]]] = {}
        wanted = [
            tensor
            for tensor in self.checkpoint.tensors
            if tensor.dtype == "F32" and tensor.name.endswith(GLOBAL_SCALES) and math.prod(tensor.shape) == 1
        ]
        values = self.scalars(wanted) if self.scalars is not None and wanted else {}
        for tensor in wanted:
            if (tensor.shard, tensor.name) in values:
                found.setdefault(tensor.name, []).append((tensor, values[tensor.shard, tensor.name]))
        return found

    def engine_reports(self) -> tuple[EngineReport, ...]:
        """Return one line for each release that was named, or for each run of releases that behave alike."""
        return tuple(self._reports())

    def _reports(self) -> Iterator[EngineReport]:
        for request in self.requests:
            mine = [release for release in self.releases if release.engine.name == request.engine.name]
            runs: list[list[Release]] = []
            for release in mine:
                if runs and not request.explicit and behaviour(runs[-1][-1]) == behaviour(release):
                    runs[-1].append(release)
                else:
                    runs.append([release])
            for run in runs:
                shown = next(
                    (one for one in reversed(run) if one.prediction.confidence is Confidence.VERIFIED), run[-1]
                )
                versions = tuple(release.version for release in run)
                text = (
                    range_text(request.engine, versions)
                    if len(versions) > 1
                    else f"{request.engine.name} {versions[0]}"
                )
                run_here = (one for one in run if one.prediction.confidence is Confidence.VERIFIED)
                yield EngineReport(shown.prediction, versions, text, tuple(one.version for one in run_here))


def behaviour(release: Release) -> tuple[object, ...]:
    """Return what a user notices of a release: the verdicts and the errors of target and draft."""
    return tuple((release.model(role).verdict, release.model(role).error) for role in ROLES)


def restamped(prediction: Prediction, subject: Subject, engine: Engine, version: str) -> Prediction:
    """Return a prediction for another release of which all facts are equal."""
    return Prediction(
        engine=prediction.engine,
        version=version,
        confidence=subject.confidence(engine, version),
        target=prediction.target,
        draft=prediction.draft,
        method=prediction.method,
        deciding=prediction.deciding,
    )


@dataclass(frozen=True, slots=True)
class Occurrence:
    """One event in one release, with what the engine builds for the module (None where it builds nothing)."""

    release: Release
    role: Role
    event: Event
    built: Built | None


def occurrences(context: Context, kinds: Sequence[str]) -> Iterator[Occurrence]:
    """Yield every event of the given kinds in every judged release."""
    for release in context.releases:
        for role in ROLES:
            model = release.model(role)
            if model.verdict in (Verdict.ABSENT, Verdict.UNKNOWN):
                continue
            built: dict[str, Built] | None = None
            for event in model.events:
                if event.kind not in kinds:
                    continue
                if built is None:
                    built = {name: one for one in model.built for name in one.modules}
                yield Occurrence(release, role, event, built.get(event.module))
