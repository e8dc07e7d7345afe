"""A branch is taken from a base model on the Hub: its tensors alone, of one commit, and not twice by one command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from mtpfix import MtpfixError, patch, plan, scan
from mtpfix.checkpoint import open_checkpoint
from mtpfix.checkpoint.answers import AccessError, HubError
from mtpfix.checkpoint.header import DTYPE_BITS
from mtpfix.cli import app
from mtpfix.fix import mirror
from mtpfix.fix.snapshot import MANIFEST_FILE
from mtpfix.report.summary import repair_command
from tests.checkpoints import build
from tests.hub import Fault, Hub
from tests.hub.conftest import Client
from tests.hub.repository import file_of
from tests.hub.test_mirror import files_of, ranges
from tests.patching import NEWEST

BASE, TOKEN = "org/base", "hf_SecretOfAReader"
FAMILY = "qwen3_5"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("given") / "base"
    build(folder, FAMILY, "excluded-glob", shards=4)
    return folder


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bare") / "model"
    build(folder, FAMILY, "missing")
    return folder


@pytest.fixture
def hub(client: Client, monkeypatch: pytest.MonkeyPatch, given: Path) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(mirror, "NEIGHBOURS", 0)
    with Hub(tokens={TOKEN: "reader"}) as served:
        client(served)
        served.add(BASE, given)
        yield served


def branch_of(folder: Path) -> dict[str, tuple[int, int]]:
    """Return where the tensors of the branch lie: begin and end in their file, by name."""
    checkpoint = open_checkpoint(folder)
    starts = {shard.name: shard.header for shard in checkpoint.shards}
    found = {}
    for tensor in checkpoint.tensors:
        if tensor.name.startswith("mtp."):
            size = DTYPE_BITS[tensor.dtype] // 8
            for one in tensor.shape:
                size *= one
            begin = starts[tensor.shard] + tensor.begins[0]
            found[tensor.name] = (begin, begin + size)
    return found


def deeper(hub: Hub) -> list[tuple[int, int]]:
    """Return the ranges behind headers that were asked for."""
    return [(begin, end + 1) for begin, end in ranges(hub) if begin]


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["patch", *map(str, arguments)], env={"NO_COLOR": "1", "COLUMNS": "100"})


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "home")


def test_only_the_bytes_of_the_branch_are_read(hub: Hub, bare: Path, given: Path, tmp_path: Path) -> None:
    done = patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    commit = hub.repositories[BASE].refs["main"]
    wanted = sorted(branch_of(given).values())
    asked = sorted(deeper(hub))
    assert sum(end - begin for begin, end in asked) == sum(end - begin for begin, end in wanted)
    assert len(asked) < len(wanted)  # neighbours come together
    assert all(any(begin <= first and last <= end for begin, end in asked) for first, last in wanted)
    assert done.plan.downloads == ((f"{BASE}@{commit}", sum(end - begin for begin, end in wanted)),)
    assert done.plan.steps[0].title.endswith(f" from {BASE}@{commit}")

    patch(bare, tmp_path / "straight", engines=[NEWEST], graft=given)
    found, expected = files_of(tmp_path / "out"), files_of(tmp_path / "straight")
    assert {name for name in {*found, *expected} if found.get(name) != expected.get(name)} == {MANIFEST_FILE}
    told, local = (json.loads(files[MANIFEST_FILE]) for files in (found, expected))
    (read,), (straight,) = told["reads"], local["reads"]
    assert (read["name"], read["revision"]) == (BASE, commit)
    assert (straight["name"], straight["revision"]) == ("", None)
    assert read["digest"] == straight["digest"]
    assert next(row["value"] for row in told["operations"] if row["action"] == "graft").endswith(f"of {BASE}@{commit}")
    assert str(given) not in json.dumps(local)
    assert left_in(tmp_path) == ["out", "straight"]


@pytest.mark.parametrize("name", [BASE, f"hf://{BASE}", f"{BASE}@main", f"https://huggingface.co/{BASE}"])
def test_a_dry_run_reads_headers_and_tells_what_would_be_read(hub: Hub, bare: Path, given: Path, name: str) -> None:
    found = run(bare, "--for", NEWEST, "--graft", name, "--dry-run", "--json")
    assert found.exit_code == 0, found.output
    size = sum(end - begin for begin, end in branch_of(given).values())
    commit = hub.repositories[BASE].refs["main"]
    assert json.loads(found.stdout)["plan"]["downloads"] == [{"name": f"{BASE}@{commit}", "bytes": size}]
    assert not deeper(hub)
    assert f" of {BASE}@{commit}" in " ".join(run(bare, "--for", NEWEST, "--graft", name, "--dry-run").stdout.split())


def test_a_range_that_breaks_off_is_asked_for_again(hub: Hub, bare: Path, given: Path, tmp_path: Path) -> None:
    hub.fail("/blobs/*", Fault(cut=10, instead=False), server="cdn", skip=4)
    hub.fail("/blobs/*", Fault(status=503), server="cdn", skip=5)
    assert patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE).written
    patch(bare, tmp_path / "straight", engines=[NEWEST], graft=given)
    shard = "model-mtp.safetensors"
    assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "straight" / shard).read_bytes()


def test_what_was_fetched_is_not_fetched_again(
    hub: Hub, bare: Path, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PIECE", 1000)
    monkeypatch.setattr(mirror, "THREADS", 1)
    hub.fail("/blobs/*", Fault(status=403, times=0), server="cdn", skip=9)  # four headers, five pieces
    with pytest.raises(MtpfixError):
        patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    assert left_in(tmp_path) == [".mtpfix-mirror-out"]
    hub.heal()
    first = set(deeper(hub)[:5])
    hub.forget()
    patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    assert deeper(hub)
    assert not first & set(deeper(hub))
    assert left_in(tmp_path) == ["out"]
    patch(bare, tmp_path / "straight", engines=[NEWEST], graft=given)
    assert (
        files_of(tmp_path / "out")["model-mtp.safetensors"] == files_of(tmp_path / "straight")["model-mtp.safetensors"]
    )


def test_a_piece_that_was_spoilt_meanwhile_is_fetched_again(
    hub: Hub, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "PIECE", 1000)
    monkeypatch.setattr(mirror, "THREADS", 1)
    hub.fail("/blobs/*", Fault(status=403, times=0), server="cdn", skip=9)
    with pytest.raises(MtpfixError):
        patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    hub.heal()
    begin, end = deeper(hub)[0]
    for shard in (tmp_path / ".mtpfix-mirror-out").rglob("*.safetensors"):
        with shard.open("r+b") as file:
            file.seek(begin)
            data = file.read(end - begin)
            file.seek(begin)
            file.write(bytes(byte ^ 1 for byte in data))
    hub.forget()
    patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    assert (begin, end) in deeper(hub)


def test_a_base_model_that_lacks_a_shard_is_refused(hub: Hub, bare: Path, tmp_path: Path) -> None:
    hub.fail(f"/{BASE}/resolve/*/model-00002-of-00004.safetensors", Fault(status=404, times=0))
    with pytest.raises(MtpfixError, match=r"base model org/base cannot be read whole: model-00002-of-00004"):
        patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    assert left_in(tmp_path) == []


def test_a_gated_base_model_is_read_with_a_token(hub: Hub, bare: Path, tmp_path: Path) -> None:
    repository = hub.repositories[BASE]
    repository.gated = "auto"
    repository.readers.add("reader")
    with pytest.raises(AccessError):
        patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    assert left_in(tmp_path) == []
    found = run(bare, "--for", NEWEST, "--graft", BASE, "--out", tmp_path / "out", "--token", TOKEN)
    assert found.exit_code == 0, found.output
    assert not [one for one in hub.requests if one.server == "cdn" and one.token]
    assert TOKEN not in "".join(path.read_text("latin-1") for path in (tmp_path / "out").iterdir())


def test_a_shard_of_another_size_than_listed_is_refused(hub: Hub, bare: Path, tmp_path: Path) -> None:
    wrong = Fault(headers={"Content-Range": "bytes 0-9/10"}, instead=False, times=0)
    hub.fail("/blobs/*", wrong, server="cdn", skip=4)
    with pytest.raises(HubError):
        patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    assert left_in(tmp_path) == []


def test_one_run_reads_one_commit(
    hub: Hub, bare: Path, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repositories[BASE]
    first = repository.refs["main"]
    fetch = mirror.Mirrors.fetch

    def moved(*arguments: Any) -> int:
        zeros = {path.name: file_of(bytes(path.stat().st_size), path.name) for path in given.glob("*.safetensors")}
        repository.commit(zeros, title="all zero")
        return fetch(*arguments)

    monkeypatch.setattr(mirror.Mirrors, "fetch", moved)
    patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE)
    assert repository.refs["main"] != first
    patch(bare, tmp_path / "straight", engines=[NEWEST], graft=given)
    shard = "model-mtp.safetensors"
    assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "straight" / shard).read_bytes()
    assert json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())["reads"][0]["revision"] == first


def test_offline_takes_what_was_downloaded(
    hub: Hub, bare: Path, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan(bare, engines=[NEWEST], graft=BASE)  # headers are kept
    hub.forget()
    with pytest.raises(HubError, match="nothing is asked offline"):
        patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE, offline=True)
    commit = hub.repositories[BASE].refs["main"]
    folder = Path(constants.HF_HUB_CACHE) / "models--org--base" / "snapshots" / commit
    folder.mkdir(parents=True)
    for name, data in files_of(given).items():
        (folder / name).write_bytes(data)
    assert patch(bare, tmp_path / "out", engines=[NEWEST], graft=BASE, offline=True).written
    assert not hub.requests


def test_a_plan_in_a_file_holds_for_its_commit(hub: Hub, bare: Path, given: Path, tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    found = run(bare, "--for", NEWEST, "--graft", BASE, "--plan", file)
    assert found.exit_code == 0, found.output
    commit = hub.repositories[BASE].refs["main"]
    document = json.loads(file.read_text())
    assert list(document["reads"]) == [f"hf://{BASE}"]
    (graft,) = (one for step in document["steps"] for one in step["operations"] if one["action"] == "graft")
    assert (graft["folder"], graft["base"]) == (f"hf://{BASE}", f"{BASE}@{commit}")
    assert ".mtpfix-" not in file.read_text()

    hub.forget()
    done = run(bare, "--apply", file, "--out", tmp_path / "out")
    assert done.exit_code == 0, done.output
    patch(bare, tmp_path / "straight", engines=[NEWEST], graft=given)
    shard = "model-mtp.safetensors"
    assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "straight" / shard).read_bytes()

    moved = hub.repositories[BASE].commit({"README.md": file_of(b"# other\n", "README.md")})
    refused = run(bare, "--apply", file, "--out", tmp_path / "again")
    assert refused.exit_code == 2
    said = " ".join(refused.stderr.split())
    assert f"hf://{BASE} is at {moved.sha} now, and the plan was made for {commit}" in said
    assert f"--graft {BASE}@{commit}" in said
    pinned = run(bare, "--for", NEWEST, "--graft", f"{BASE}@{commit}", "--plan", file)
    assert pinned.exit_code == 0
    assert run(bare, "--apply", file, "--out", tmp_path / "again").exit_code == 0
    assert (tmp_path / "again" / shard).read_bytes() == (tmp_path / "out" / shard).read_bytes()


def test_source_and_base_model_may_both_lie_on_the_hub(hub: Hub, bare: Path, given: Path, tmp_path: Path) -> None:
    hub.add("org/model", bare)
    done = patch("org/model", tmp_path / "out", engines=[NEWEST], graft=BASE, overlay=True)
    assert (done.plan.ref, done.written is not None) == ("org/model", True)
    assert "model-mtp.safetensors" in files_of(tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / MANIFEST_FILE).read_text())
    assert (manifest["base"]["name"], manifest["reads"][0]["name"]) == ("org/model", BASE)
    hub.forget()
    again = patch("org/model", tmp_path / "out", engines=[NEWEST], graft=BASE, overlay=True)
    assert again.written is not None
    assert again.written.already
    assert not deeper(hub)


def test_a_scan_asks_for_the_card_only_where_a_graft_is_offered(hub: Hub, bare: Path, given: Path) -> None:
    card = file_of(f"---\nbase_model: {BASE}\n---\n".encode(), "README.md")
    for name, folder in (("org/model", bare), ("org/sound", given)):
        hub.add(name, folder).commit({"README.md": card})
    command = str(repair_command(scan("org/model", engines=["vllm"])))
    assert command.startswith("mtpfix patch org/model --out model-repaired --overlay --for ")
    assert command.endswith(f"--graft {BASE}")
    hub.forget()
    scan("org/sound", engines=["vllm"])
    assert not hub.asked(path="README.md")


def test_a_name_that_is_nowhere_is_told(hub: Hub, bare: Path, tmp_path: Path) -> None:
    found = run(bare, "--for", NEWEST, "--graft", "org/nowhere", "--out", tmp_path / "out")
    assert found.exit_code == 2
    assert "org/nowhere" in found.stderr
    assert left_in(tmp_path) == []


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_reads_is_continued(hub: Hub, bare: Path, given: Path, tmp_path: Path) -> None:
    build(tmp_path / "spread", FAMILY, "excluded-glob", shards=24)
    hub.add("org/spread", tmp_path / "spread")
    held = {path.name for path in (tmp_path / "spread").glob("*.safetensors")}
    hub.fail("/blobs/*", Fault(stall=1, pause=60, instead=False, times=0), server="cdn", skip=len(held) + 1)
    command = [sys.executable, "-m", "mtpfix", "patch", str(bare), "--for", NEWEST, "--graft", "org/spread"]
    command += ["--out", str(tmp_path / "out"), "--no-progress"]
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    journal = tmp_path / ".mtpfix-mirror-out" / "journal"
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as running:
        try:
            for _ in range(1200):
                if journal.exists() and journal.read_bytes().count(b"\n") > 1:
                    break
                time.sleep(0.05)
        finally:
            running.kill()
    assert running.wait() == -signal.SIGKILL
    assert left_in(tmp_path) == [".mtpfix-mirror-out", "spread"]
    rows = [json.loads(line) for line in journal.read_text().splitlines()[1:]]
    kept = {int(row["file"].rpartition(":")[2]) for row in rows}
    assert kept
    hub.heal()
    hub.forget()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    asked = deeper(hub)
    assert asked
    assert kept.isdisjoint(begin for begin, _ in asked)
    assert left_in(tmp_path) == ["out", "spread"]
    patch(bare, tmp_path / "straight", engines=[NEWEST], graft=tmp_path / "spread")
    shard = "model-mtp.safetensors"
    assert (tmp_path / "out" / shard).read_bytes() == (tmp_path / "straight" / shard).read_bytes()
