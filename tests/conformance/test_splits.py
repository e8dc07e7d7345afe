"""Predictions for several ranks held against what real engine releases raised; see `splits.py`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.model import ROLES, Event
from tests.conformance.record import GOLDEN
from tests.conformance.splits import CASES, make

RECORDED = sorted(path.parent.name.removeprefix("vllm-") for path in GOLDEN.glob("vllm-*/splits.json"))


def golden(release: str) -> Mapping[str, Any]:
    return dict(json.loads((GOLDEN / f"vllm-{release}" / "splits.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="session")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Subject]:
    folder = tmp_path_factory.mktemp("splits")
    return {name: Subject(open_checkpoint(make(folder / name, case))) for name, case in CASES.items()}


def first(events: tuple[Event, ...]) -> dict[str, str] | None:
    found = next((event for event in events if event.kind == "unsplittable"), None)
    return None if found is None else {"error": found.error, "text": found.text}


@pytest.mark.parametrize("release", RECORDED)
def test_what_ranks_cannot_split_is_what_the_engine_refused(release: str, subjects: Mapping[str, Subject]) -> None:
    wrong = []
    for name, real in golden(release).items():
        prediction = predict(subjects[name], "vllm", release, ranks=CASES[name].ranks)
        for role in ROLES:
            found = first(getattr(prediction, role).events)
            if role in real["tried"] and found != real[role]:
                wrong.append(f"{name} {role}: {real[role]}, predicted {found}")
    assert not wrong, "\n".join(wrong)


def test_at_least_five_releases_were_asked() -> None:
    assert len(RECORDED) >= 5


@pytest.mark.parametrize("name", CASES)
def test_one_rank_splits_nothing(name: str, subjects: Mapping[str, Subject]) -> None:
    for release in RECORDED[-1:]:
        prediction = predict(subjects[name], "vllm", release)
        assert not [role for role in ROLES if first(getattr(prediction, role).events)]
