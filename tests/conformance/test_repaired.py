"""The newest verified releases load what was repaired for them: every parameter written, nothing found, nothing left.

`python -m tests.conformance.repaired` does the same for any release and every tiny checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from mtpfix.engines import load
from mtpfix.fix.repairs.repair import Branch
from tests.conformance import environment
from tests.conformance.repaired import repaired

pytestmark = pytest.mark.engine

CASES: Mapping[tuple[str, Branch], Mapping[str, Sequence[str]]] = {
    ("vllm", "auto"): {
        "qwen3_5_moe": ("nothing-excluded", "mixed", "all-nvfp4"),
        "qwen3_5": ("branch-fp8", "compressed-tensors", "conflict"),
        "deepseek_v3": ("listed-packed", "packed-glue", "no-input-scale"),
        "glm4_moe": ("missing", "packed-glue"),
        "step3p7": ("layer-arrays",),
        "inkling": ("nothing-excluded", "packed-glue"),
        "nemotron_h": ("missing", "listed-packed"),
        "mimo": ("o-proj-unlisted", "weights-only"),
    },
    ("sglang", "auto"): {
        "qwen3_5_moe": ("nothing-excluded", "branch-nvfp4", "missing"),
        "deepseek_v3": ("listed-packed", "packed-glue"),
        "glm4_moe": ("all-nvfp4", "branch-fp8"),
    },
    ("sglang", "keep"): {
        "qwen3_5_moe": ("branch-nvfp4",),
        "deepseek_v3": ("branch-nvfp4",),
        "glm4_moe": ("branch-nvfp4",),
    },
}
"""Broken checkpoints that need repairs of every kind: lists, declarations, numbers, grafts."""


@pytest.mark.parametrize(("engine", "mtp"), CASES)
def test_the_newest_release_loads_what_was_repaired(engine: str, mtp: Branch, tmp_path: Path) -> None:
    version = load(engine).verified[-1]
    ready = environment.sglang_interpreter(version) if engine == "sglang" else environment.interpreter(version)
    if ready is None:
        pytest.skip(f"no environment for {engine} {version}: set {environment.VARIABLE}")
    wanted = [(family, variant) for family, variants in CASES[engine, mtp].items() for variant in variants]
    cells = list(repaired([f"{engine}-{version}"], wanted, tmp_path / "models", tmp_path / "out", mtp))
    assert {(one.family, one.variant): one.wrong for one in cells if one.wrong} == {}
    assert [(one.family, one.variant) for one in cells] == wanted
    assert {one.outcome for one in cells} <= {"repaired", "as it was"}
    assert sum(one.outcome == "repaired" for one in cells) >= len(wanted) // 2


def test_one_repair_serves_the_newest_release_of_each_engine(tmp_path: Path) -> None:
    newest = [f"{engine}-{load(engine).verified[-1]}" for engine in ("vllm", "sglang")]
    for release in newest:
        engine, _, version = release.partition("-")
        ready = environment.sglang_interpreter(version) if engine == "sglang" else environment.interpreter(version)
        if ready is None:
            pytest.skip(f"no environment for {release}: set {environment.VARIABLE}")
    wanted = [("qwen3_5", "branch-nvfp4"), ("glm4_moe", "compressed-tensors"), ("nemotron_h", "packed-glue")]
    cells = list(repaired(newest, wanted, tmp_path / "models", tmp_path / "out"))
    assert [(one.family, one.variant, one.outcome, one.wrong) for one in cells] == [
        (*case, "repaired", ()) for case in wanted
    ]
