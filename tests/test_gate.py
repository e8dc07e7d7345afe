"""The hook in a real repository, and the steps of the action as a runner's shell would run them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.checkpoints import build

ROOT = Path(__file__).resolve().parent.parent
NEW = "vllm==0.32.0"
AUTHOR = ("-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PRE_COMMIT_HOME": str(folder.parent / "hooks"), "GIT_CONFIG_GLOBAL": os.devnull}
    command = ["git", *AUTHOR, *arguments]
    return subprocess.run(
        command, cwd=folder, check=check, capture_output=True, text=True, env=environment, timeout=300
    )


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return this project as a repository of its own, as a hook would be fetched from it."""
    away = shutil.ignore_patterns(".git", ".venv*", "build", "*.egg-info", "__pycache__", "*.so", ".*_cache", "out")
    copy = Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("published") / "mtpfix", ignore=away))
    git(copy, "init", "-q")
    git(copy, "add", "-A")
    git(copy, "commit", "-qm", "release")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("hook", ["mtpfix", "mtpfix-metadata"])
def test_the_hook_blocks_a_broken_commit_and_lets_a_repaired_one_pass(
    published: Path, tmp_path: Path, hook: str
) -> None:
    model = tmp_path / "model"
    build(model, "qwen3_5", "nothing-excluded" if hook == "mtpfix" else "missing")
    git(model, "init", "-q")
    revision = git(published, "rev-parse", "HEAD").stdout.strip()
    chosen: dict[str, Any] = {"id": hook, "args": [f"--engine={NEW}"]}
    settings = {"repos": [{"repo": str(published), "rev": revision, "hooks": [chosen]}]}
    (model / ".pre-commit-config.yaml").write_text(yaml.safe_dump(settings))
    environment = {**os.environ, "PRE_COMMIT_HOME": str(tmp_path / "hooks")}
    subprocess.run(
        [sys.executable, "-m", "pre_commit", "install"], cwd=model, check=True, env=environment, capture_output=True
    )
    git(model, "add", "-A")
    refused = git(model, "commit", "-qm", "broken", check=False)
    assert refused.returncode == 1, refused.stdout + refused.stderr
    assert ("MTP201" if hook == "mtpfix" else "MTP101") in refused.stdout + refused.stderr
    build(tmp_path / "base", "qwen3_5", "excluded-glob")
    repair = [sys.executable, "-m", "mtpfix", "patch", str(model), "--out", str(tmp_path / "repaired"), "--for", NEW]
    repair += ["--graft", str(tmp_path / "base"), "--link", "copy"]
    subprocess.run(repair, check=True, capture_output=True, cwd=ROOT)
    shutil.copytree(tmp_path / "repaired", model, dirs_exist_ok=True)
    git(model, "add", "-A")
    passed = git(model, "commit", "-qm", "repaired", check=False)
    assert passed.returncode == 0, passed.stdout + passed.stderr


# ----------------------------------------------------------------------------------------------- the action


def action() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    return loaded


def step(name: str, folder: Path, **inputs: str) -> tuple[int, str, dict[str, str]]:
    """Run one step as a runner does: exit code, what it printed, what it set."""
    (found,) = (one for one in action()["runs"]["steps"] if one["id"] == name)
    given = {key: value["default"] for key, value in action()["inputs"].items()} | inputs
    environment = {
        variable: given[expression.removeprefix("${{ inputs.").removesuffix(" }}")]
        if "inputs." in expression
        else str(ROOT)
        for variable, expression in found["env"].items()
    }
    runner = {
        "RUNNER_TEMP": str(folder / "temp"),
        "GITHUB_OUTPUT": str(folder / "output"),
        "GITHUB_STEP_SUMMARY": str(folder / "summary"),
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
    }
    command = ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", found["run"]]
    done = subprocess.run(
        command, cwd=folder, env={**runner, **environment}, capture_output=True, text=True, check=False, timeout=600
    )
    output = Path(runner["GITHUB_OUTPUT"])
    lines = output.read_text().splitlines() if output.exists() else []
    return done.returncode, done.stdout + done.stderr, dict(line.split("=", 1) for line in lines)


@pytest.fixture
def runner(tmp_path: Path) -> Path:
    """Return a runner's folder in which the tool of this environment is installed."""
    program = tmp_path / "temp" / "mtpfix" / "bin" / "mtpfix"
    program.parent.mkdir(parents=True)
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mtpfix "$@"\n')
    program.chmod(0o755)
    return tmp_path


def test_the_action_annotates_summarises_and_fails(runner: Path) -> None:
    build(runner / "broken model", "qwen3_5", "nothing-excluded")
    code, printed, set_by_it = step("check", runner, path="broken model", engines=f"{NEW}\n", sarif="found.sarif")
    assert (code, set_by_it) == (1, {"exit-code": "1"})
    assert "::error file=broken model/config.json,line=1,title=MTP201" in printed
    assert "MTP201" in (runner / "summary").read_text()
    assert json.loads((runner / "found.sarif").read_text())["runs"][0]["results"]


def test_the_action_passes_what_loads(runner: Path) -> None:
    build(runner / "good", "qwen3_5", "excluded-glob")
    code, printed, set_by_it = step("check", runner, path="good", engines=NEW)
    assert (code, set_by_it) == (0, {"exit-code": "0"})
    assert "::error" not in printed


@pytest.mark.parametrize(
    "name",
    [
        "$(touch pwned)",
        "--output=pwned",
        "x\ny",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("`touch pwned`", "; touch pwned", "'")),
    ],
)
def test_no_input_is_run(runner: Path, name: str) -> None:
    for place in ("path", "engines", "fail-on"):
        code, _, _ = step("check", runner, **{"path": ".", place: name})
        assert code == 2
    assert not (runner / "pwned").exists()


def test_the_steps_take_inputs_from_the_environment_alone() -> None:
    for one in action()["runs"]["steps"]:
        assert "${{" not in one["run"]
        assert one["shell"] == "bash"


@pytest.mark.slow
def test_the_action_installs_itself(tmp_path: Path) -> None:
    (tmp_path / "temp").mkdir()
    code, printed, _ = step("install", tmp_path)
    assert code == 0, printed
    program = tmp_path / "temp" / "mtpfix" / "bin" / "mtpfix"
    assert subprocess.run([program, "--version"], check=True, capture_output=True, text=True).stdout.startswith(
        "mtpfix"
    )


def test_the_examples_are_what_their_readers_expect() -> None:
    hooks = {one["id"] for one in yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())}
    config = yaml.safe_load((ROOT / "examples" / "pre-commit-config.yaml").read_text())
    assert {one["id"] for one in config["repos"][0]["hooks"]} <= hooks
    workflow = yaml.safe_load((ROOT / "examples" / "workflow.yml").read_text())
    (used,) = (one for one in workflow["jobs"]["mtpfix"]["steps"] if "mtpfix@" in one["uses"])
    assert set(used["with"]) <= set(action()["inputs"])


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("qwen3_5", "missing"),
        ("deepseek_v3", "nothing-excluded"),
        pytest.param("qwen3_5", "nothing-excluded", marks=pytest.mark.slow),
        pytest.param("glm4_moe", "packed-glue", marks=pytest.mark.slow),
        pytest.param("qwen3_next", "nothing-excluded", marks=pytest.mark.slow),
    ],
)
def test_the_command_a_check_prints_makes_the_gate_pass(runner: Path, family: str, variant: str) -> None:
    build(runner / "my model", family, variant)
    build(runner / "base", family, "published")
    shell = {"PATH": f"{runner / 'temp' / 'mtpfix' / 'bin'}:{os.environ['PATH']}", "HOME": str(runner), "COLUMNS": "40"}

    def mtpfix(command: str) -> subprocess.CompletedProcess[str]:
        environment = {**shell, "PYTHONPATH": str(ROOT)}
        return subprocess.run(
            ["sh", "-c", command], cwd=runner, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    refused = mtpfix("mtpfix check 'my model' -e vllm==0.32.0 -e vllm==0.25.1")
    assert refused.returncode == 1, refused.stderr
    (command,) = (line for line in refused.stdout.splitlines() if line.startswith("Repair: "))
    repaired = mtpfix(command.removeprefix("Repair: ").replace("BASE_MODEL", "base"))
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    passed = mtpfix("mtpfix check 'my model-repaired' -e vllm==0.32.0 -e vllm==0.25.1")
    assert passed.returncode == 0, passed.stdout


def test_the_upload_example_stops_before_anything_is_sent(tmp_path: Path) -> None:
    build(tmp_path / "models" / "broken", "qwen3_5", "missing")
    for name, says in (("broken", "not uploaded: "), ("none", "not uploaded: there is no folder models/none")):
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / "upload.py", f"models/{name}", "org/name"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HF_ENDPOINT": "http://127.0.0.1:9"},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(says)
