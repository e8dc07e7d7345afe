"""Predictions held against what real engine releases did: every tiny checkpoint, every recorded release.

The golden files are recordings (see `record.py`), not expectations: where one differs from a prediction, the
prediction is wrong. The test marked `engine` asks an installed release again, so that the recordings stay true.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
from packaging.version import Version

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines import load, names
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.families import load as load_family
from mtpfix.families import names as family_names
from mtpfix.model import ROLES, BuiltModule, Confidence, ModelPrediction, Observation, Verdict
from mtpfix.probe.compare import by_path, differences
from tests.checkpoints import build
from tests.conformance import environment, record
from tests.conformance.record import GOLDEN, ask, cases, digest, expand, is_asked
from tests.families import FAMILIES, LIKE_ANOTHER

RELEASES = sorted(
    (path.name for path in GOLDEN.glob("*-*")),
    key=lambda release: (release.partition("-")[0], Version(release.partition("-")[2])),
)
NEWEST = [release for release, after in pairwise([*RELEASES, "-"]) if release[:4] != after[:4]]
"""The newest recorded release of each engine."""
Role = Literal["target", "draft"]
NOT_PREDICTED = "is not predicted"
"""How the reason ends where a quantization method is named rather than guessed."""


@cache
def golden(release: str, family: str) -> Mapping[str, Any] | None:
    return record.golden(release, family)


def told(path: Path) -> str:
    """Return the verdicts of a recording, and which errors were raised at which tensors."""
    answers = json.loads(path.read_text(encoding="utf-8"))
    kept = ("verdict", "phase", "error", "tensor")
    return json.dumps(
        [
            [variant, *([(answer[role] or {}).get(key) for key in kept] for role in ROLES)]
            for variant, answer in answers.items()
        ]
    )


def recordings() -> Iterator[Any]:
    """Yield release and family of every recording.

    One that fails as the release before did, with the same errors at the same tensors, is held in the slow suite, and
    so is a family that is like another.
    """
    for family in FAMILIES:
        before = ("", "")
        for release in RELEASES:
            path = GOLDEN / release / f"{family}.json"
            if path.exists():
                now = (release.partition("-")[0], told(path))
                slow = family in LIKE_ANOTHER or (now == before and release not in NEWEST)
                marks = [pytest.mark.slow] if slow else []
                yield pytest.param(release, family, marks=marks)
                before = now


@cache
def families_of(release: str) -> set[str]:
    """Return the families that a release was asked about, and has classes for."""
    return {family for family in FAMILIES if golden(release, family)}


def answer_of(release: str, case: str) -> Mapping[str, Any]:
    """Return what a release did with a case."""
    family, _, variant = case.partition("/")
    return dict((golden(release, family) or {})[variant])


def is_recorded(release: str, case: str) -> bool:
    """Return whether a release was asked about a case; of a family that it has no class for, whether about any."""
    family, _, variant = case.partition("/")
    known = golden(release, family)
    return known is not None and (not known or variant in known)


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Subject]:
    """Every tiny checkpoint, built and read once."""
    folder = tmp_path_factory.mktemp("tiny")
    found = {}
    for family, variant in cases():
        build(folder / family / variant, family, variant, sparse=True)
        found[f"{family}/{variant}"] = Subject(open_checkpoint(folder / family / variant))
    return found


def recorded_formats(release: str, case: str, role: str) -> dict[str, tuple[str, str]]:
    """Return prefix, format and layer class of the modules that a release built."""
    built = answer_of(release, case)[role]["built"]
    return {name: (key.split()[0], key.split()[1]) for key, names in built.items() for name in expand(names)}


def observed(release: str, case: str, role: Role) -> Observation:
    """Return a recording in the form of an observation."""
    real = answer_of(release, case)[role]
    formats = recorded_formats(release, case, role)
    return Observation(
        role=role,
        verdict=Verdict(real["verdict"]),
        phase=real.get("phase", "done"),
        error=real.get("error", ""),
        text=real.get("text", ""),
        tensor=real.get("tensor"),
        modules=tuple(BuiltModule(prefix, prefix, layer, form) for prefix, (form, layer) in formats.items()),
    )


@pytest.mark.parametrize(("release", "family"), list(recordings()))
def test_prediction_is_what_the_engine_did(release: str, family: str, subjects: Mapping[str, Subject]) -> None:
    wrong: list[str] = []
    engine, _, version = release.partition("-")
    for case, subject in subjects.items():
        if not case.startswith(f"{family}/") or not is_recorded(release, case):
            continue
        prediction = predict(subject, engine, version)
        answers: dict[Role, ModelPrediction] = {"target": prediction.target, "draft": prediction.draft}
        if family not in families_of(release):
            if prediction.target.verdict is not Verdict.UNKNOWN:
                wrong.append(f"{case}: the release has no class for it, predicted {prediction.target.verdict}")
            continue
        for role, found in answers.items():
            if answer_of(release, case)[role] is None or found.reason.endswith(NOT_PREDICTED):
                continue
            real = observed(release, case, role)
            wrong += [f"{case} {role}: {one}" for one in differences(found, real, by_path=by_path(load(engine)))]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_recordings_cover_every_case_of_the_families_a_release_has() -> None:
    for release in RELEASES:
        for family in families_of(release):
            every = {variant for one, variant in cases() if one == family}
            recorded = set(golden(release, family) or ())
            assert recorded == every, (release, family)


def test_the_newest_recorded_release_was_asked_about_every_family() -> None:
    for newest in NEWEST:
        asked = [family for family in FAMILIES if is_asked(newest, family)]
        assert [family for family in asked if golden(newest, family) is None] == [], newest


SAMPLE = (
    "qwen3_5_moe/published",
    "deepseek_v3/packed-glue",
    "glm4_moe/missing",
    "step3p7/published",
    "nemotron_h/mixed",
)


@pytest.mark.engine
@pytest.mark.parametrize("case", SAMPLE)
@pytest.mark.parametrize("release", NEWEST)
def test_newest_release_still_does_what_was_recorded(release: str, case: str, tmp_path: Path) -> None:
    engine, _, version = release.partition("-")
    ready = environment.sglang_interpreter(version) if engine == "sglang" else environment.interpreter(version)
    if ready is None:
        pytest.skip(f"no environment for {release}: set {environment.VARIABLE}")
    family, _, variant = case.partition("/")
    build(tmp_path / case, family, variant)
    (found,) = ask(release, [tmp_path / case])
    for role in ROLES:
        real, kept = answer_of(release, case)[role], digest(found[role], found.get("stand_ins", ()))
        if kept is None or real is None:
            assert kept is real
            continue
        built = kept.pop("built").items()
        again = {name: (key.split()[0], key.split()[1]) for key, names in built for name in expand(names)}
        assert again == recorded_formats(release, case, role)
        assert kept == {key: value for key, value in real.items() if key != "built"}


def test_an_architecture_is_called_verified_exactly_where_it_was_recorded() -> None:
    recorded = {
        (FAMILIES[name].config("tiny")["architectures"][0], release)
        for release in RELEASES
        for name in families_of(release)
    }
    claimed = {
        (architecture, f"{engine.name}-{release}")
        for engine in map(load, names())
        for family in map(load_family, family_names())
        for architecture in family.architectures
        for release in engine.releases
        if engine.confidence(release, family, architecture) is Confidence.VERIFIED
    }
    assert claimed == recorded
