"""What the newest release does with checkpoints made at random is what is predicted, text for text.

`python -m tests.conformance.random_checkpoints` makes as many as one likes, for any release and family.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from mtpfix.engines import load
from tests.conformance import environment
from tests.conformance.random_checkpoints import CHANGES, cases, compare

LISTED = ("qwen3_5", "qwen3_next", "deepseek_v3", "glm4_moe", "nemotron_h", "qwen3_5_moe")
DAMAGED = ("qwen3_5", "deepseek_v3", "glm4_moe", "nemotron_h")


@pytest.mark.parametrize("kind", CHANGES)
def test_a_seed_makes_the_same_checkpoint_and_a_sentence_for_each_change(kind: str) -> None:
    first, again = (cases("qwen3_5", 3, 4, [kind]) for _ in range(2))
    assert first == again
    assert len({one.changes for one in first}) > 1
    assert all(2 <= len(one.changes) <= 4 for one in first)


def test_changes_are_of_the_kinds_that_are_wanted() -> None:
    dropped = cases("deepseek_v3", 1, 1, ["drop"])[0]
    assert all("dropped" in text or "renamed" in text for text in dropped.changes[1:])


@pytest.mark.engine
def test_the_newest_release_does_with_random_checkpoints_what_is_predicted(tmp_path: Path) -> None:
    version = load("vllm").verified[-1]
    if environment.interpreter(version) is None:
        pytest.skip(f"no environment for vllm {version}: set {environment.VARIABLE}")
    made = [one for family in LISTED for one in cases(family, 7, 1, ("store", "list"))]
    made += [one for family in DAMAGED for one in cases(family, 7, 1, ("drop", "alter"))]
    found = list(compare(f"vllm-{version}", made, tmp_path))
    assert [one for one, _ in found] == made
    assert {one.changes: wrong for one, wrong in found if wrong} == {}
