"""GPTQ: predictions held against what real releases did with checkpoints as GPTQModel writes them.

The golden files are recordings (see `packed.py`): where one differs from a prediction, the prediction is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from mtpfix import patch
from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines import load
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.families import load as load_family
from mtpfix.model import ROLES, BuiltModule, Observation, Verdict
from mtpfix.probe.compare import by_path, differences
from tests import gptq
from tests.conformance import environment
from tests.conformance.packed import PLACE, cases, golden
from tests.conformance.record import ask, expand

RELEASES = sorted(path.stem for path in PLACE.glob("*.json"))
Role = Literal["target", "draft"]


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Subject]:
    folder = tmp_path_factory.mktemp("gptq")
    found = {}
    for family, variant in cases():
        gptq.build(folder / family / variant, family, variant, sparse=True)
        found[f"{family}/{variant}"] = Subject(open_checkpoint(folder / family / variant))
    return found


def observed(real: Mapping[str, Any], role: Role) -> Observation:
    modules = [
        BuiltModule(prefix, prefix, key.split()[1], key.split()[0])
        for key, names in real["built"].items()
        for prefix in expand(names)
    ]
    return Observation(
        role=role,
        verdict=Verdict(real["verdict"]),
        error=real.get("error", ""),
        text=real.get("text", ""),
        tensor=real.get("tensor"),
        modules=tuple(modules),
    )


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("family", gptq.FAMILIES)
def test_prediction_is_what_the_engine_did(release: str, family: str, subjects: Mapping[str, Subject]) -> None:
    engine, _, version = release.partition("-")
    wrong: list[str] = []
    for variant, answer in golden(release)[family].items():
        found = predict(subjects[f"{family}/{variant}"], engine, version)
        for role in ROLES:
            if answer[role] is None:
                continue
            predicted = found.target if role == "target" else found.draft
            real = observed(answer[role], predicted.role)
            texts = differences(predicted, real, by_path=by_path(load(engine)))
            wrong += [f"{variant} {role}: {one}" for one in texts]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def test_every_case_was_recorded() -> None:
    assert len(RELEASES) >= 3
    for family in ("qwen3_next", "qwen3_5", "glm4_moe"):
        assert [f"vllm-{release}" for release in load_family(family).table["gptq"]["vllm"]] == RELEASES
    for release in RELEASES:
        known = golden(release)
        assert {(family, variant) for family in known for variant in known[family]} == set(cases()), release


REPAIRED = (
    ("qwen3_next", "open", False),
    ("qwen3_next", "listed-packed", False),
    ("qwen3_next", "within", False),
    ("glm4_moe", "open", False),
    ("glm4_moe", "packed", True),
    ("qwen3_5_moe", "open", False),
)
"""Broken checkpoints that one repair mends for every recorded release, and whether it needs to be allowed."""


@pytest.mark.engine
def test_repaired_checkpoints_are_loaded_completely(tmp_path: Path) -> None:
    engines = [release.replace("-", "==", 1) for release in RELEASES]
    outs = []
    for family, variant, unsafe in REPAIRED:
        folder, out = tmp_path / f"{family}-{variant}", tmp_path / f"{family}-{variant}-repaired"
        gptq.build(folder, family, variant)
        assert patch(folder, out, engines=engines, unsafe=unsafe, link="copy").written
        outs.append(out)
    asked = [release for release in RELEASES if environment.interpreter(release.partition("-")[2]) is not None]
    if not asked:
        pytest.skip(f"no environment: set {environment.VARIABLE}")
    for release in asked:
        for out, found in zip(outs, ask(release, outs), strict=True):
            assert {role: found[role]["verdict"] for role in ROLES} == dict.fromkeys(ROLES, "loads"), (release, out)
