"""What vLLM 0.33.0's class of Nemotron Parse 3.5 says of damage: it gathers all tensors, and copies part after part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.model import Role
from tests.checkpoints import Plan, Tensor, plan, write
from tests.conformance import environment
from tests.conformance.random_checkpoints import Case, compare

RELEASE = "0.33.0"


def changed(change: Callable[[Tensor], Tensor | None]) -> Plan:
    known = plan("nemotron_parse", "published")
    groups = tuple(tuple(one for one in map(change, group) if one is not None) for group in known.groups)
    return replace(known, groups=groups)


def renamed(old: str, new: str) -> Plan:
    return changed(lambda one: replace(one, name=one.name.replace(old, new)))


def resized(*names: str) -> Plan:
    return changed(lambda one: replace(one, shape=(one.shape[0] + 16, *one.shape[1:])) if one.name in names else one)


FITS_NOT = "AssertionError: Attempted to load weight (torch.Size({})) into parameter (torch.Size({}))"
CASES: Mapping[str, tuple[Callable[[], Plan], Role, str, str | None]] = {
    "the head first": (
        lambda: resized("lm_head.weight", "encoder.conv1.bias"),
        "target",
        "AssertionError",
        "lm_head.weight",
    ),
    "what leads from the tower before the decoder": (
        lambda: resized("decoder.layer_norm.weight", "encoder.layer_norm3.weight"),
        "target",
        FITS_NOT.format("[80]", "[64]"),
        None,
    ),
    "a name that the decoder lacks": (
        lambda: renamed("decoder.layers.0.fc1.", "decoder.layers.0.fc9."),
        "target",
        "KeyError: 'layers.0.fc9.weight'",
        None,
    ),
    "a name that the neck lacks": (
        lambda: renamed("encoder.conv2.", "encoder.conv9."),
        "target",
        "KeyError: 'Unknown Parse 3.5 encoder parameter: conv9.weight'",
        None,
    ),
    "a name that nobody knows": (
        lambda: renamed("lm_head.", "head."),
        "target",
        "KeyError: 'Unexpected Parse 3.5 checkpoint tensor: head.weight'",
        "head.weight",
    ),
    "a projection of the branch": (
        lambda: resized("decoder.extra_proj.0.bias"),
        "draft",
        FITS_NOT.format("[80]", "[64]"),
        "decoder.extra_proj.0.bias",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_damage_is_predicted(name: str, tmp_path: Path) -> None:
    make, role, error, tensor = CASES[name]
    write(tmp_path, make(), sparse=True)
    found = predict(Subject(open_checkpoint(tmp_path)), "vllm", RELEASE)
    judged = found.target if role == "target" else found.draft
    assert judged.error is not None
    assert (judged.error.partition(":")[0] if ":" not in error else judged.error) == error
    assert judged.error_tensor == tensor


@pytest.mark.engine
def test_the_release_says_what_is_predicted(tmp_path: Path) -> None:
    if environment.interpreter(RELEASE) is None:
        pytest.skip(f"no environment for vllm {RELEASE}: set {environment.VARIABLE}")
    made = [Case(make(), (name,)) for name, (make, *_) in CASES.items()]
    assert {one.changes: wrong for one, wrong in compare(f"vllm-{RELEASE}", made, tmp_path) if wrong} == {}
