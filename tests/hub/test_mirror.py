"""A repository is repaired as its folder would be, and no more of it is read than that takes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from mtpfix import MtpfixError, patch, plan
from mtpfix.checkpoint import open_checkpoint, read_scalars
from mtpfix.checkpoint.opening import Access
from mtpfix.cli import app
from mtpfix.errors import UsageError
from mtpfix.fix.mirror import mirrors
from mtpfix.fix.snapshot import MANIFEST_FILE
from tests.checkpoints import build
from tests.hub import Fault, Hub
from tests.hub.conftest import Client
from tests.patching import NEWEST

NAME, TOKEN = "org/model", "hf_SecretOfTheOwner"


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lists") / "model"
    build(folder, "deepseek_v3", "nothing-excluded", shards=4)
    (folder / "README.md").write_text("# A model\n")
    return folder


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tensors") / "model"
    build(folder, "deepseek_v3", "packed-glue", shards=4)
    return folder


@pytest.fixture
def hub(client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with Hub(tokens={TOKEN: "owner"}) as served:
        client(served)
        yield served


def ranges(hub: Hub) -> list[tuple[int, int]]:
    """Every range of bytes that the CDN was asked for."""
    asked = [one.headers.get("range", "") for one in hub.requests if one.server == "cdn"]
    found = [re.fullmatch(r"bytes=(\d+)-(\d+)", one) for one in asked]
    return [(int(match[1]), int(match[2])) for match in found if match]


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_repair_of_lists_reads_headers_alone_and_can_be_pushed(hub: Hub, lists: Path, tmp_path: Path) -> None:
    repository = hub.add(NAME, lists)
    repository.writers.add("owner")
    done = patch(NAME, tmp_path / "out", engines=[NEWEST], overlay=True)
    assert done.plan.ref == NAME
    assert len(ranges(hub)) == 4
    assert all(begin == 0 for begin, _ in ranges(hub))
    assert not [path for path in hub.asked() if path.endswith("README.md")]
    patch(lists, tmp_path / "straight", engines=[NEWEST], overlay=True)
    found, expected = files_of(tmp_path / "out"), files_of(tmp_path / "straight")
    assert {name for name in {*found, *expected} if found.get(name) != expected.get(name)} == {MANIFEST_FILE}
    base = json.loads(found[MANIFEST_FILE])["base"]
    assert (base["name"], base["revision"]) == (NAME, repository.refs["main"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "out", "straight"]

    hub.forget()
    pushed = CliRunner().invoke(app, ["push", str(tmp_path / "out"), NAME, "--yes", "--token", TOKEN])
    assert pushed.exit_code == 0, pushed.output
    assert [row.split()[0] for row in hub.asked() if not row.startswith("GET ")] == ["POST", "POST"]
    assert not hub.asked("cdn")
    commit = repository.at("refs/pr/1")
    assert commit is not None
    assert {name: file.read() for name, file in commit.files.items()} == {**files_of(lists), **found}


def test_a_repair_of_tensors_reads_the_shard_that_it_rewrites(hub: Hub, tensors: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    hub.add(NAME, tensors)
    patch(NAME, tmp_path / "out", engines=[NEWEST], overlay=True)
    patch(tensors, tmp_path / "straight", engines=[NEWEST], overlay=True)
    found, expected = files_of(tmp_path / "out"), files_of(tmp_path / "straight")
    assert {name for name in {*found, *expected} if found.get(name) != expected.get(name)} == {MANIFEST_FILE}
    (shard,) = (name for name in found if name.endswith(".safetensors"))
    digest = hub.repositories[NAME].at("main").files[shard].sha256  # type: ignore[union-attr]
    deeper = [one for one in hub.requests if not one.headers.get("range", "bytes=0-").startswith("bytes=0-")]
    assert deeper
    assert {one.path for one in deeper if one.server == "cdn"} == {f"/blobs/{digest}"}


def test_single_numbers_are_those_of_the_repository(hub: Hub, tensors: Path, tmp_path: Path) -> None:
    hub.add(NAME, tensors)
    there = open_checkpoint(tensors)
    singles = [tensor for tensor in there.tensors if tensor.dtype == "F32" and set(tensor.shape) <= {1}]
    assert len(singles) > 10
    with mirrors(Access(), tmp_path / "out") as found:
        mirror = found.source(NAME, overlay=True)
        assert mirror is not None
        here = open_checkpoint(mirror.folder)
        assert here.tensors == there.tensors
        assert here.revision == hub.repositories[NAME].refs["main"]
        assert read_scalars(here, singles) == read_scalars(there, singles)
    assert not mirror.folder.exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".mtpfix")]


def test_only_what_changes_can_be_written_of_a_repository(hub: Hub, lists: Path, tmp_path: Path) -> None:
    hub.add(NAME, lists)
    with pytest.raises(UsageError, match="of which only what changes is written") as caught:
        patch(NAME, tmp_path / "out", engines=[NEWEST])
    assert "--overlay" in caught.value.hint
    for options in (["--in-place"], ["--plan", str(tmp_path / "plan")], ["--out", str(tmp_path / "out")]):
        assert run(*options).exit_code == 2
    assert not hub.requests
    assert not (tmp_path / "out").exists()
    assert plan(NAME, engines=[NEWEST]).ref == NAME


def run(*options: str) -> Any:
    return CliRunner().invoke(app, ["patch", NAME, "--for", NEWEST, *options])


def test_the_command_looks_and_writes(hub: Hub, lists: Path, tmp_path: Path) -> None:
    hub.add(NAME, lists)
    looked = run("--dry-run", "--diff")
    assert looked.exit_code == 0
    assert looked.output.startswith(f"{NAME}: loads completely in ")
    assert '"model.layers.2*"' in looked.output
    wrote = run("--overlay", "--out", str(tmp_path / "out"))
    assert wrote.exit_code == 0
    assert set(files_of(tmp_path / "out")) == {"config.json", "hf_quant_config.json", MANIFEST_FILE}
    again = run("--overlay", "--out", str(tmp_path / "out"))
    assert "nothing was written" in again.output


def test_a_shard_that_cannot_be_had_leaves_nothing(hub: Hub, tensors: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    hub.add(NAME, tensors)
    hub.fail("/blobs/*", Fault(status=403, times=0), server="cdn", skip=4)  # after the headers
    with pytest.raises(MtpfixError):
        patch(NAME, tmp_path / "out", engines=[NEWEST], overlay=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home"]
    hub.heal()
    assert patch(NAME, tmp_path / "out", engines=[NEWEST], overlay=True).written


def test_what_cannot_be_read_is_not_repaired(hub: Hub, lists: Path, tmp_path: Path) -> None:
    hub.add(NAME, lists)
    hub.fail(f"/{NAME}/resolve/*/model-00002-of-00004.safetensors", Fault(status=404, times=0))
    with pytest.raises(MtpfixError, match=r"cannot be read: model-00002-of-00004\.safetensors"):
        patch(NAME, tmp_path / "out", engines=[NEWEST], overlay=True)
    assert not (tmp_path / "out").exists()
