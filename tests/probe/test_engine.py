"""Releases asked by `mtpfix verify`: tiny checkpoints, and a sparse one of 424 GB.

The newest verified release of vLLM, installed; and the newest known of SGLang, an unpacked wheel that borrows vLLM's
environment.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtpfix import probe, verify
from mtpfix.engines import load
from mtpfix.model import Verdict
from mtpfix.probe.interpreter import probe_of
from tests.checkpoints import build
from tests.conformance import environment

pytestmark = pytest.mark.engine
RELEASE = load("vllm").verified[-1]


@pytest.fixture(scope="module")
def python() -> Path:
    found = environment.interpreter(RELEASE)
    if found is None:
        pytest.skip(f"no environment for vllm {RELEASE}: set {environment.VARIABLE}")
    return found


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("qwen3_5_moe", "published"),
        ("deepseek_v3", "packed-glue"),
        ("nemotron_h", "published"),
        ("glm4_moe", "missing"),
    ],
)
def test_what_happens_is_what_is_predicted(family: str, variant: str, python: Path, tmp_path: Path) -> None:
    build(tmp_path / variant, family, variant)
    found = verify(tmp_path / variant, engine_python=python)
    assert (found.version, found.exact, found.differences) == (RELEASE, True, ())
    assert found.prediction is not None
    assert found.draft is not None
    assert found.draft.verdict is found.prediction.draft.verdict
    assert any("GEMM" in what for what in found.replaced)


def test_a_draft_can_be_asked_for_alone(python: Path, tmp_path: Path) -> None:
    build(tmp_path / "glue", "deepseek_v3", "packed-glue")
    found = verify(tmp_path / "glue", engine_python=python, target=False)
    assert found.target is None
    assert found.draft is not None
    assert (found.draft.verdict, found.draft.tensor) == (Verdict.FAILS, "model.layers.2.eh_proj.input_scale")


@pytest.mark.parametrize("layers", [1, 3])
def test_as_many_tokens_are_drafted_as_the_family_counts_layers(layers: int, python: Path, tmp_path: Path) -> None:
    build(tmp_path / "minimax", "minimax_m3", numbers={"num_mtp_modules": layers})
    text = json.loads((tmp_path / "minimax" / "config.json").read_text())["text_config"]
    assert text["num_mtp_modules"] == layers
    (found,) = probe.ask(python, probe_of(load("vllm")), [tmp_path / "minimax"])
    assert (found["target"]["verdict"], found["tokens"]) == ("loads", layers)
    assert verify(tmp_path / "minimax", engine_python=python).differences == ()


def test_a_checkpoint_of_424_gigabytes_stays_within_2_of_memory(python: Path, tmp_path: Path) -> None:
    build(tmp_path / "full", "deepseek_v3", "packed-glue", "full")
    build(tmp_path / "tiny", "deepseek_v3", "packed-glue")
    assert sum(path.stat().st_size for path in (tmp_path / "full").iterdir()) > 400e9
    full = verify(tmp_path / "full", engine_python=python, memory=2_000_000_000)
    tiny = verify(tmp_path / "tiny", engine_python=python)
    assert full.target is not None
    assert full.draft is not None
    assert tiny.target is not None
    assert tiny.draft is not None
    assert full.differences == ()
    assert (full.target.verdict, full.draft.verdict) == (tiny.target.verdict, tiny.draft.verdict)
    assert full.draft.error == tiny.draft.error == "KeyError"
    assert full.draft.tensor == "model.layers.61.eh_proj.input_scale"
    assert 0 < full.memory < 2_000_000_000


@pytest.fixture(scope="module")
def sglang() -> tuple[Path, str, Path]:
    """Return a Python that can run SGLang's newest release, that release, and the folder it was unpacked into."""
    release = load("sglang").releases[-1]
    found = environment.sglang_interpreter(release)
    if found is None:
        pytest.skip(f"no environment for sglang {release}: set {environment.VARIABLE}")
    return found, release, environment.unpacked(release)


@pytest.mark.parametrize(
    ("family", "variant", "target", "draft", "tensor"),
    [
        ("qwen3_5_moe", "excluded-glob", "loads", "loads", None),
        ("deepseek_v3", "packed-glue", "loads", "fails", "model.layers.2.eh_proj.weight"),
        ("glm4_moe", "missing", "loads", "silent", None),
    ],
)
def test_sglang_is_asked_without_a_gpu(
    family: str,
    variant: str,
    target: str,
    draft: str,
    tensor: str | None,
    sglang: tuple[Path, str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    python, release, source = sglang
    monkeypatch.setenv("PYTHONPATH", str(source))
    build(tmp_path / variant, family, variant)
    found = verify(tmp_path / variant, engine_python=python, engine="sglang")
    assert (found.version, found.exact) == (release, True)
    assert found.target is not None
    assert found.draft is not None
    assert (found.target.verdict, found.draft.verdict, found.draft.tensor) == (target, draft, tensor)
    assert found.differences == ()
    assert any("Blackwell" in what for what in found.replaced)
