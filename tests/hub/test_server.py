"""The server answers the real client as the Hub does."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils.tqdm import disable_progress_bars

from tests.checkpoints import Tensor, write_shard
from tests.hub import Fault, Hub

ROOT = Path(__file__).resolve().parents[2]
READER, NAME = "hf_reader", "org/model"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (1, 2):
        write_shard(folder / f"model-0000{place}-of-00002.safetensors", [Tensor(f"layer.{place}", "BF16", (2, 4))])
    names = {f"layer.{place}": f"model-0000{place}-of-00002.safetensors" for place in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "notes.txt").write_text("notes")
    with Hub(tokens={READER: "reader", "hf_other": "other"}) as hub:
        hub.add(NAME, folder)
        for name, gated, private in (("org/gated", "auto", False), ("org/private", False, True)):
            hub.add(name, folder, gated=gated, private=private).readers.add("reader")  # type: ignore[arg-type]
        yield hub


@pytest.fixture
def api(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> HfApi:
    disable_progress_bars()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=hub.endpoint, token=False)


def test_info_names_the_commit_of_a_branch_a_pull_request_and_itself(hub: Hub, api: HfApi) -> None:
    repository = hub.repositories[NAME]
    first = repository.refs["main"]
    second = repository.commit({"config.json": None}, to="refs/pr/1", parent=first, title="less").sha
    assert api.model_info(NAME).sha == first
    assert api.model_info(NAME, revision="refs/pr/1").sha == second
    assert api.model_info(NAME, revision=first).sha == first
    with pytest.raises(RevisionNotFoundError):
        api.model_info(NAME, revision="absent")


def test_the_tree_is_whole_over_several_pages(hub: Hub, api: HfApi) -> None:
    hub.page = 2
    listed = {entry.path: entry for entry in api.list_repo_tree(NAME, recursive=True)}
    shard = "model-00001-of-00002.safetensors"
    assert set(listed) == {
        *("config.json", "sub", "sub/notes.txt", "model.safetensors.index.json"),
        *(shard, "model-00002-of-00002.safetensors"),
    }
    assert len(hub.asked(path="/tree/")) == 3
    entry = listed[shard]
    assert entry.size == entry.lfs.size == hub.repositories[NAME].at("main").files[shard].size  # type: ignore[union-attr]
    assert {one.path for one in api.list_repo_tree(NAME)} == set(listed) - {"sub/notes.txt"}
    assert [one.path for one in api.list_repo_tree(NAME, "sub")] == ["sub/notes.txt"]
    assert [one.path for one in api.get_paths_info(NAME, [shard, "absent"])] == [shard]


@pytest.mark.parametrize("redirected", [False, True])
def test_files_come_whole_and_large_ones_from_the_cdn_without_the_token(
    hub: Hub, tmp_path: Path, redirected: bool
) -> None:
    hub.redirect_regular = redirected
    api = HfApi(endpoint=hub.endpoint, token=READER)
    disable_progress_bars()
    for name in ("config.json", "model-00001-of-00002.safetensors"):
        path = api.hf_hub_download(NAME, name, cache_dir=tmp_path / "cache")
        assert Path(path).read_bytes() == (tmp_path / "model" / name).read_bytes()
    with pytest.raises(EntryNotFoundError):
        api.hf_hub_download(NAME, "absent.json", cache_dir=tmp_path / "cache")
    assert hub.asked("cdn")
    assert {one.token for one in hub.requests if one.server == "hub"} == {READER}
    assert {one.token for one in hub.requests if one.server == "cdn"} == {None}


def test_headers_are_read_by_ranges(hub: Hub, api: HfApi) -> None:
    found = api.get_safetensors_metadata(NAME)
    assert set(found.weight_map) == {"layer.1", "layer.2"}
    ranges = [one.headers.get("range") for one in hub.requests if one.server == "cdn"]
    assert len(ranges) == 2
    assert set(ranges) == {"bytes=0-100000"}


def test_who_may_not_read_is_told_as_the_hub_tells_it(hub: Hub, tmp_path: Path) -> None:
    nobody, reader, other, wrong = (
        HfApi(endpoint=hub.endpoint, token=token) for token in (False, READER, "hf_other", "hf_wrong")
    )
    with pytest.raises(RepositoryNotFoundError):
        nobody.model_info("org/absent")
    with pytest.raises(RepositoryNotFoundError):
        nobody.model_info("org/private")
    with pytest.raises(RepositoryNotFoundError):
        other.model_info("org/private")
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        wrong.model_info(NAME)
    assert reader.model_info("org/private").private
    assert nobody.model_info("org/gated").gated == "auto"
    for refused in (nobody, other):
        with pytest.raises(GatedRepoError):
            refused.hf_hub_download("org/gated", "config.json", cache_dir=tmp_path / "cache")
    assert reader.hf_hub_download("org/gated", "config.json", cache_dir=tmp_path / "cache")
    assert {one.id for one in nobody.list_models(author="org")} == {NAME, "org/gated"}
    assert {one.id for one in reader.list_models(author="org")} == {NAME, "org/gated", "org/private"}


def test_a_scripted_fault_happens_as_often_as_it_says(hub: Hub, api: HfApi) -> None:
    hub.fail(f"/api/models/{NAME}", Fault(status=418, times=2), skip=1)
    assert api.model_info(NAME).id == NAME
    for _ in range(2):
        with pytest.raises(HfHubHTTPError, match="418"):
            api.model_info(NAME)
    assert api.model_info(NAME).id == NAME


def test_a_renamed_repository_is_followed(hub: Hub, api: HfApi) -> None:
    hub.renamed["old/name"] = NAME
    assert api.model_info("old/name").id == NAME


def test_it_serves_folders_by_hand(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"by": "hand"}')
    command = [sys.executable, "-m", "tests.hub", f"{NAME}={tmp_path}"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            name, _, endpoint = process.stdout.readline().strip().partition("=")
            assert name == "HF_ENDPOINT"
            with urllib.request.urlopen(f"{endpoint}/{NAME}/resolve/main/config.json") as answer:  # noqa: S310
                assert json.load(answer) == {"by": "hand"}
            with urllib.request.urlopen(f"{endpoint}/-/requests") as answer:  # noqa: S310
                assert json.load(answer) == [["hub", "GET", f"/{NAME}/resolve/main/config.json", False]]
        finally:
            process.terminate()
            process.wait(10)
