"""Repositories are read as folders are, whatever the network does, and what cannot be read is never called clean."""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from mtpfix import MtpfixError, Report, scan
from mtpfix.checkpoint import hub as hub_module
from mtpfix.checkpoint.answers import HubError, redirected
from mtpfix.cli import app
from mtpfix.errors import NothingToCheck, UsageError
from tests.checkpoints import Tensor, build, write_shard
from tests.hub import Fault, File, Hub, file_of
from tests.hub.conftest import Client

RELEASE = ["vllm==0.32.0"]
NAME, TOKEN = "org/model", "hf_SecretOfTheReader"
INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00004.safetensors"
RESOLVE = f"/{NAME}/resolve/*/{SHARD}"
INFO, TREE = f"/api/models/{NAME}", f"/api/models/{NAME}/tree/*"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a checkpoint that loads, of four shards."""
    made = tmp_path_factory.mktemp("checkpoint") / "model"
    build(made, "qwen3_5", "excluded-glob", "tiny", shards=4)
    return made


@pytest.fixture(scope="module")
def expected(folder: Path) -> Report:
    return scan(folder, engines=RELEASE)


@pytest.fixture
def hub(folder: Path, client: Client) -> Iterator[Hub]:
    with Hub(tokens={TOKEN: "reader", "hf_other": "other"}) as served:
        served.add(NAME, folder).readers.add("reader")
        client(served)
        yield served


def alike(report: Report, expected: Report) -> bool:
    """Return whether a report says of a repository what another says of the folder."""
    one, other = report.checkpoint, expected.checkpoint
    return (
        report.complete
        and one.tensors == other.tensors
        and one.shards == other.shards
        and one.config == other.config
        and one.declarations == other.declarations
        and report.findings == expected.findings
        and report.engines == expected.engines
    )


def blob(hub: Hub, name: str = SHARD) -> str:
    """Return where the CDN has a file."""
    commit = hub.repositories[NAME].at("main")
    assert commit
    return f"/blobs/{commit.files[name].sha256}"


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments), env={"NO_COLOR": "1", "COLUMNS": "120"})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


# ------------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("redirected", [False, True])
def test_a_repository_is_judged_as_the_folder_it_was_made_of(hub: Hub, expected: Report, redirected: bool) -> None:
    hub.redirect_regular = redirected
    report = scan(NAME, engines=RELEASE)
    assert alike(report, expected)
    assert report.checkpoint.revision == hub.repositories[NAME].refs["main"]
    assert report.checkpoint.root is None
    assert not report.notes


@pytest.mark.parametrize(
    "ref",
    [
        f"hf://{NAME}",
        f"hf://models/{NAME}@main",
        f"{NAME}@main",
        f"https://huggingface.co/{NAME}",
        f"https://huggingface.co/{NAME}/tree/main",
    ],
)
def test_every_way_to_write_it(hub: Hub, expected: Report, ref: str) -> None:
    assert alike(scan(ref, engines=RELEASE), expected)


@pytest.mark.parametrize("ref", ["hf://datasets/org/model", "hf://org", "hf://../x/y", "org/model@..", "org/model@a b"])
def test_what_names_no_repository_is_refused_before_anything_is_asked(hub: Hub, ref: str) -> None:
    with pytest.raises(UsageError):
        scan(ref, engines=RELEASE)
    assert not hub.asked()


def test_a_folder_that_is_there_is_meant_and_a_path_always(
    hub: Hub, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no folder"):
        scan(Path(NAME), engines=RELEASE)
    (tmp_path / "org").mkdir()
    (tmp_path / NAME).symlink_to(folder)
    assert scan(NAME, engines=RELEASE).checkpoint.root == Path(NAME)
    with pytest.raises(UsageError, match="--revision"):
        scan(NAME, engines=RELEASE, revision="main")
    assert not hub.asked()


def test_each_header_takes_one_redirect_and_one_range_and_a_second_scan_one_request(hub: Hub, expected: Report) -> None:
    scan(NAME, engines=RELEASE)
    assert len(hub.asked("cdn")) == 4
    assert len(hub.asked("hub", ".safetensors")) == 4 + 1  # the index
    assert len(hub.asked()) == 8 + 5
    commit = hub.repositories[NAME].refs["main"]
    assert all(commit in one for one in hub.asked("hub")[1:])
    hub.forget()
    assert alike(scan(NAME, engines=RELEASE), expected)
    assert hub.asked() == [f"GET {INFO}"]


def test_a_commit_that_comes_meanwhile_changes_nothing(hub: Hub, expected: Report) -> None:
    repository, first = hub.repositories[NAME], hub.repositories[NAME].refs["main"]

    def push(done: int, _total: int) -> None:
        if done == 1:
            repository.commit({SHARD: None, "config.json": file_of(b"{}", "config.json")})

    report = scan(NAME, engines=RELEASE, progress=push)
    assert alike(report, expected)
    assert report.checkpoint.revision == first
    later = scan(NAME, engines=RELEASE)
    assert later.checkpoint.revision == repository.refs["main"] != first
    assert later.exit_code() == 1


@pytest.mark.parametrize("revision", ["v1", "refs/pr/1", "feature/one", "commit"])
def test_a_revision_is_a_branch_a_tag_a_pull_request_or_a_commit(hub: Hub, revision: str) -> None:
    repository = hub.repositories[NAME]
    target = "main-2" if revision == "commit" else revision
    made = repository.commit({"added.txt": file_of(b"x", "added.txt")}, to=target, parent=repository.refs["main"])
    wanted = made.sha if revision == "commit" else revision
    assert scan(NAME, engines=RELEASE, revision=wanted).checkpoint.revision == made.sha
    assert scan(f"{NAME}@{wanted}", engines=RELEASE).checkpoint.revision == made.sha


def test_a_tree_of_several_pages_is_read_whole(hub: Hub, expected: Report) -> None:
    hub.page = 3
    assert alike(scan(NAME, engines=RELEASE), expected)
    assert len(hub.asked(path="/tree/")) > 2


def test_files_with_odd_names_that_nobody_needs_are_no_fault(hub: Hub, expected: Report) -> None:
    odd = ("a picture: 1.png", "back\\slash.txt", "turned\u202e.txt", "folder/of: others/x.bin")
    hub.repositories[NAME].commit({name: file_of(b"x", name) for name in odd})
    assert alike(scan(NAME, engines=RELEASE), expected)


def test_a_renamed_repository_is_found(hub: Hub, expected: Report) -> None:
    hub.renamed["org/before"] = NAME
    assert alike(scan("org/before", engines=RELEASE), expected)


def test_names_in_the_index_that_are_not_in_the_tree_are_findings_and_never_requested(hub: Hub, folder: Path) -> None:
    hub.add("victim/private", folder, private=True)
    index = json.loads((folder / INDEX).read_text())
    names = iter(index["weight_map"])
    bad = [
        f"../../../victim/private/resolve/main/{SHARD}",
        "/etc/passwd",
        "http://localhost/x.safetensors",
        "absent.safetensors",
        "%2e%2e/%2e%2e/x.safetensors",
    ]
    for name, target in zip(names, bad, strict=False):
        index["weight_map"][name] = target
    hub.repositories[NAME].commit({INDEX: file_of(json.dumps(index).encode(), INDEX)})
    report = scan(NAME, engines=RELEASE, token=TOKEN)
    assert report.exit_code() == 2
    assert {finding.name for finding in report.findings} >= {"shard-absent", "path-refused"}
    asked = " ".join(one.target for one in hub.requests)
    assert not any(text in asked for text in ("victim", "passwd", "absent", "x.safetensors", ".."))


def test_one_file_without_an_index(hub: Hub, tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", [Tensor(f"layer.{n}.{'x' * 100}", "BF16", (2,)) for n in range(2000)])
    hub.add("org/one", {"config.json": b"{}", "model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    report = scan("org/one", engines=RELEASE)
    assert report.checkpoint.tensor_count == 2000
    assert len(hub.asked("cdn")) == 2  # its header is longer than what was asked for first
    assert len(hub.asked("hub", "model.safetensors")) == 1


def test_a_repository_without_weights_is_nothing_to_check(hub: Hub) -> None:
    hub.add("org/empty", {"README.md": b"nothing"})
    with pytest.raises(NothingToCheck, match="no checkpoint in org/empty"):
        scan("org/empty", engines=RELEASE)
    assert run("scan", "org/empty")[0] == 3


def test_a_pointer_that_nobody_smudged_is_told(hub: Hub) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
    files: dict[str, bytes | File] = {"config.json": b"{}", "model.safetensors": file_of(pointer, "x", lfs=False)}
    hub.add("org/pointer", files)
    report = scan("org/pointer", engines=RELEASE)
    assert report.exit_code() == 2
    assert any("git-lfs pointer" in finding.message for finding in report.findings)


# ---------------------------------------------------------------------------------------- faults that pass

LIMIT = {"ratelimit": '"resolvers";r=0;t=0', "ratelimit-policy": '"fixed window";"resolvers";q=100;w=300'}
PASSING: Mapping[str, Fault] = {
    "429": Fault(status=429),
    "429 with Retry-After": Fault(status=429, headers={"Retry-After": "0"}),
    "429 with a date": Fault(status=429, headers={"Retry-After": formatdate(0, usegmt=True)}),
    "429 with ratelimit": Fault(status=429, headers=LIMIT, times=2),
    "408": Fault(status=408),
    "500": Fault(status=500, times=3),
    "502 as a web page": Fault(status=502, headers={"Content-Type": "text/html"}, body=b"<html>"),
    "503": Fault(status=503),
    "504": Fault(status=504),
    "reset": Fault(reset=True, times=2),
    "closed in the middle": Fault(cut=1, instead=False),
}


@pytest.mark.parametrize(
    ("where", "fault"),
    [
        *(pytest.param("cdn", fault, id=f"cdn {name}") for name, fault in PASSING.items()),
        *(
            pytest.param("resolve", PASSING[name], id=f"hub {name}")
            for name in ("429 with Retry-After", "503", "reset")
        ),
        *(pytest.param("info", PASSING[name], id=f"info {name}") for name in ("429", "500", "reset")),
        *(pytest.param("tree", PASSING[name], id=f"tree {name}") for name in ("503", "closed in the middle")),
        *(pytest.param("config", PASSING[name], id=f"config {name}") for name in ("504", "closed in the middle")),
    ],
)
def test_a_fault_that_passes_changes_nothing(hub: Hub, expected: Report, where: str, fault: Fault) -> None:
    places = {"info": INFO, "tree": TREE, "config": f"/{NAME}/resolve/*/config.json", "resolve": RESOLVE}
    path = places.get(where) or blob(hub)
    hub.fail(path, fault, server="cdn" if where == "cdn" else "hub")
    assert alike(scan(NAME, engines=RELEASE), expected)


@pytest.mark.parametrize("stall", [0, 9])
def test_a_stall_is_waited_for_no_longer_than_the_user_says(
    hub: Hub, expected: Report, stall: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    hub.fail(blob(hub), Fault(stall=stall, pause=0.6, instead=False), server="cdn")
    assert alike(scan(NAME, engines=RELEASE), expected)
    assert len(hub.asked("cdn", blob(hub))) == 2


def test_a_server_that_ignores_ranges_is_read_only_as_far_as_needed(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_shard(path, [Tensor("layer.weight", "BF16", (50_000, 50_000))], sparse=True)
    files: dict[str, bytes | File] = {"config.json": b"{}", "model.safetensors": file_of(path, "model.safetensors")}
    hub.add("org/large", files)
    hub.fail("/blobs/*", Fault(whole=True, times=0, instead=False), server="cdn")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = scan("org/large", engines=RELEASE)
    assert report.checkpoint.bytes > 5_000_000_000
    assert report.checkpoint.tensor_count == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


# ------------------------------------------------------------------------------------- faults that stay

STAYING: Mapping[str, tuple[str, Fault, str]] = {
    "500": ("hub", Fault(status=500, times=0), "an error of its own (500) (5 attempts)"),
    "429 for an hour": ("hub", Fault(status=429, headers={"Retry-After": "3600"}, times=0), "asks to wait 3600 s"),
    "reset": ("cdn", Fault(reset=True, times=0), "broke the connection off"),
    "gone": ("hub", Fault(status=404, headers={"X-Error-Code": "EntryNotFound"}, times=0), "has no file"),
    "short": ("cdn", Fault(body=b"x" * 20, headers={"content-length": "20"}, instead=False, times=0), "ended after 20"),
    "long": ("cdn", Fault(body=b"x" * 900_000, instead=False, times=0), "longer than the"),
    "another range": ("cdn", Fault(headers={"content-range": "bytes 5-9/99"}, instead=False, times=0), "are asked"),
    "no range": ("cdn", Fault(headers={"content-range": None}, instead=False, times=0), "were asked for"),
    "another size": ("cdn", Fault(headers={"content-range": "bytes 0-{last}/7"}, instead=False, times=0), "is listed"),
    "unknown size": ("cdn", Fault(headers={"content-range": "bytes 0-{last}/*"}, instead=False, times=0), "is listed"),
    "416": ("cdn", Fault(status=416, times=0), "answers 416"),
    "forbidden": ("cdn", Fault(status=403, times=0), "refuses"),
    "not at the CDN": ("cdn", Fault(status=404, times=0), "does not have"),
    "packed": ("cdn", Fault(headers={"content-encoding": "gzip"}, instead=False, times=0), "packs the file (gzip)"),
    "a web page": (
        "cdn",
        Fault(status=200, headers={"content-type": "text/html"}, body=b"<html>", times=0),
        "web page",
    ),
    "a web page that lies": ("cdn", Fault(status=200, body=b"<!doctype html>", times=0), "is listed with"),
    "linked size": ("hub", Fault(headers={"x-linked-size": "5"}, instead=False, times=0), "is listed with"),
    "linked hash": ("hub", Fault(headers={"x-linked-etag": "a" * 64}, instead=False, times=0), "another content"),
    "redirects in a circle": ("hub", Fault(status=302, headers={"location": "?again"}, times=0), "in a circle"),
    "redirect nowhere": ("hub", Fault(status=302, headers={"location": None}, times=0), "not an address"),
    "redirect to a file": (
        "hub",
        Fault(status=302, headers={"location": "file:///etc/passwd"}, times=0),
        "not an addr",
    ),
    "redirect to nobody": (
        "hub",
        Fault(status=302, headers={"location": "http://localhost:9/x"}, times=0),
        "cannot be reached",
    ),
}


@pytest.mark.parametrize(("server", "fault", "says"), STAYING.values(), ids=STAYING)
def test_a_shard_that_cannot_be_had_leaves_the_scan_incomplete(hub: Hub, server: str, fault: Fault, says: str) -> None:
    says = says.replace("are asked", "were asked for")
    path = RESOLVE if server == "hub" else blob(hub)
    if any("{last}" in (value or "") for value in fault.headers.values()):
        scan(NAME, engines=RELEASE)
        asked = next(one for one in hub.requests if one.path == path)
        last = asked.headers["range"].rpartition("-")[2]
        fault = Fault(
            headers={key: (value or "").replace("{last}", last) for key, value in fault.headers.items()},
            instead=False,
            times=0,
        )
        shutil.rmtree(constants.HF_ASSETS_CACHE)
    hub.fail(path, fault, server="hub" if server == "hub" else "cdn")
    report = scan(NAME, engines=RELEASE)
    assert report.checkpoint.unread == (SHARD,)
    assert not report.complete
    assert report.exit_code() == 2
    assert len(report.checkpoint.shards) == 3
    told = [problem for problem in report.checkpoint.problems if SHARD in problem.files]
    assert len(told) == 1
    assert says in told[0].message
    assert told[0].hint
    hub.heal()
    assert scan(NAME, engines=RELEASE).exit_code() == 0  # nothing wrong was kept


def test_an_answer_that_drips_is_given_up(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "SLOWEST", 0.2)
    hub.fail(blob(hub), Fault(stall=0, drip=0.02, instead=False, times=0), server="cdn")
    report = scan(NAME, engines=RELEASE)
    assert report.checkpoint.unread == (SHARD,)
    assert "takes more than" in report.checkpoint.problems[0].message


def test_an_expired_address_is_asked_for_anew(hub: Hub, tmp_path: Path) -> None:
    write_shard(tmp_path / "model.safetensors", [Tensor(f"layer.{n}.{'x' * 100}", "BF16", (2,)) for n in range(2000)])
    hub.add("org/one", {"config.json": b"{}", "model.safetensors": (tmp_path / "model.safetensors").read_bytes()})
    hub.fail("/blobs/*", Fault(status=403), server="cdn", skip=1)
    assert scan("org/one", engines=RELEASE).checkpoint.tensor_count == 2000
    assert len(hub.asked("hub", "model.safetensors")) == 2


def test_encryption_is_never_given_up() -> None:
    with pytest.raises(HubError, match="without encryption"):
        redirected("https://hub.example/x", "http://cdn.example/x")
    assert redirected("https://hub.example/a/b", "/c") == "https://hub.example/c"


@pytest.mark.parametrize("name", ["config.json", "hf_quant_config.json", INDEX])
@pytest.mark.parametrize("fault", [Fault(status=500, times=0), Fault(body=b"{}", instead=False, times=0)])
def test_a_document_that_cannot_be_had_leaves_it_incomplete(hub: Hub, name: str, fault: Fault) -> None:
    hub.fail(f"/{NAME}/resolve/*/{name}", fault)
    report = scan(NAME, engines=RELEASE)
    assert name in report.checkpoint.unread
    assert report.exit_code() == 2
    assert any(name in problem.files for problem in report.checkpoint.problems)


# ---------------------------------------------------------------------------- repositories that cannot be read

OTHER = {"Content-Type": "application/json"}
REFUSED: Mapping[str, tuple[str, Fault, str, str]] = {
    "portal": (INFO, Fault(status=200, headers={"Content-Type": "text/html"}, body=b"<html>"), "web page", "log in"),
    "portal elsewhere": (INFO, Fault(status=302, headers={"location": "{cdn}/login"}), "where the Hub", "again"),
    "not JSON": (INFO, Fault(body=b"hello", headers=OTHER), "not JSON", "HF_ENDPOINT"),
    "no commit": (INFO, Fault(body=b'{"id": "org/model"}', headers=OTHER), "names no commit", "HF_ENDPOINT"),
    "a commit that is none": (INFO, Fault(body=b'{"sha": "../../x"}', headers=OTHER), "names no commit", "HF_ENDPOINT"),
    "not a Hub": (INFO, Fault(status=404, body=b"?"), "does not answer as the Hub does", "HF_ENDPOINT"),
    "forbidden": (INFO, Fault(status=403), "refuses to let", "token"),
    "disabled": (
        INFO,
        Fault(status=403, headers={"X-Error-Message": "Access to this resource is disabled."}),
        "dis",
        "see",
    ),
    "500": (INFO, Fault(status=500), "an error of its own", "later"),
    "reset": (INFO, Fault(reset=True), "broke the connection off", "again"),
    "tree is no list": (TREE, Fault(body=b"{}", headers=OTHER), "not a list", "HF_ENDPOINT"),
    "tree with a path that leaves": (
        TREE,
        Fault(body=b'[{"type":"file","path":"../x.safetensors","size":1,"oid":"%s"}]' % (b"0" * 40), headers=OTHER),
        "cannot be read",
        "report",
    ),
    "tree without sizes": (
        TREE,
        Fault(body=b'[{"type":"file","path":"x","oid":"%s"}]' % (b"0" * 40), headers=OTHER),
        "no size",
        "HF_ENDPOINT",
    ),
    "tree nested deep": (TREE, Fault(body=b"[" * 100_000, headers=OTHER), "not JSON", "HF_ENDPOINT"),
    "second page": (TREE, Fault(status=500), "an error of its own", "later"),
    "pages without end": (TREE, Fault(headers={"Link": '<x?cursor=1>; rel="next"'}, instead=False), "not end", "later"),
}


@pytest.mark.parametrize(("path", "fault", "says", "hint"), REFUSED.values(), ids=REFUSED)
def test_a_hub_that_does_not_answer_as_one_is_told_in_a_sentence(
    hub: Hub, path: str, fault: Fault, says: str, hint: str, request: pytest.FixtureRequest
) -> None:
    second = request.node.callspec.id == "second page"
    hub.page = 3 if second else hub.page
    headers = {key: (value or "").replace("{cdn}", hub.cdn) for key, value in fault.headers.items()}
    kept = {name: getattr(fault, name) for name in ("status", "body", "instead", "reset")}
    hub.fail(path, Fault(headers=headers, times=0, **kept), skip=second)
    with pytest.raises(MtpfixError) as raised:
        scan(NAME, engines=RELEASE)
    assert says in raised.value.message
    assert hint in raised.value.hint
    assert raised.value.hint
    assert raised.value.exit_code == 2


@pytest.mark.parametrize(
    ("ref", "token", "says", "hint"),
    [
        ("org/absent", None, "has no repository org/absent that everybody may read", "hf auth login"),
        ("org/absent", TOKEN, "has no repository org/absent that this token may read", "check the name"),
        ("org/private", None, "that everybody may read", "hf auth login"),
        ("org/private", "hf_other", "that this token may read", "token"),
        ("org/gated", None, "org/gated is gated, and you are not logged in", "accept its terms"),
        ("org/gated", "hf_other", "org/gated is gated, and this token has no access", "ask for access"),
        (NAME, "hf_wrong", "does not know the token", "settings/tokens"),
        (f"{NAME}@absent", None, f'{NAME} has no revision "absent"', "refs/pr/1"),
        ("org/disabled", None, "has disabled access", "see"),
    ],
)
def test_who_may_not_read_is_told_what_to_do(
    hub: Hub, folder: Path, ref: str, token: str | None, says: str, hint: str
) -> None:
    hub.add("org/private", folder, private=True).readers.add("reader")
    hub.add("org/gated", folder, gated="manual").readers.add("reader")
    hub.add("org/disabled", folder).disabled = True
    code, out, err = run("scan", ref, *(("--token", token) if token else ()))
    assert code == 2
    assert says in err
    assert hint in err
    assert "Traceback" not in out + err
    if ref not in ("org/absent", NAME) and "disabled" not in ref and "@" not in ref:
        assert scan(ref, engines=RELEASE, token=TOKEN).exit_code() == 0


def test_a_misspelled_folder_is_told_of_too(hub: Hub) -> None:
    assert "and there is no folder models/absent" in run("scan", "models/absent")[2]
    assert "no folder" not in run("scan", "hf://models/absent/x")[2]


def test_nobody_at_the_endpoint(hub: Hub) -> None:
    hub.stop()
    code, _, err = run("scan", NAME)
    assert code == 2
    assert "cannot be reached" in err
    assert "--offline" in err


def test_a_gated_repository_is_not_asked_for_every_shard(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path / "model", "qwen3_5", "excluded-glob", "tiny", shards=60)
    hub.add("org/gated", tmp_path / "model", gated="manual")
    hub.latency = 0.05
    with pytest.raises(HubError, match="gated"):
        scan("org/gated", engines=RELEASE)
    assert len(hub.asked()) <= 2 + 16 + 16
    assert not hub.asked("cdn")


# ------------------------------------------------------------------------------------------ cache and offline


def entries(kind: str) -> list[Path]:
    return [path for path in Path(constants.HF_ASSETS_CACHE).rglob("*") if path.is_file() and path.parent.name == kind]


def test_offline_needs_what_was_read_before(hub: Hub, expected: Report) -> None:
    with pytest.raises(HubError, match="not at hand"):
        scan(NAME, engines=RELEASE, offline=True)
    scan(NAME, engines=RELEASE)
    hub.stop()
    assert alike(scan(NAME, engines=RELEASE, offline=True), expected)
    with pytest.raises(HubError, match="not at hand"):
        scan(f"{NAME}@v2", engines=RELEASE, offline=True)


def test_offline_says_what_was_never_read(hub: Hub) -> None:
    scan(NAME, engines=RELEASE)
    lost = min(entries("beginnings"))
    lost.unlink()
    report = scan(NAME, engines=RELEASE, offline=True)
    assert report.exit_code() == 2
    assert len(report.checkpoint.unread) == 1
    assert "nothing is asked offline" in report.checkpoint.problems[0].message


@pytest.mark.parametrize("harm", [lambda data: data[:-1], lambda data: data[:200] + b"x" + data[201:], lambda _: b""])
def test_a_kept_file_that_was_harmed_is_read_again(hub: Hub, expected: Report, harm: Callable[[bytes], bytes]) -> None:
    scan(NAME, engines=RELEASE)
    for kind in ("beginnings", "contents", "trees", "revisions"):
        for path in entries(kind):
            path.write_bytes(harm(path.read_bytes()))
    hub.forget()
    assert alike(scan(NAME, engines=RELEASE), expected)
    assert len(hub.asked("cdn")) == 4
    hub.forget()
    scan(NAME, engines=RELEASE)
    assert len(hub.asked()) == 1


def test_a_cache_that_cannot_be_written_is_no_fault(
    hub: Hub, expected: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "file"))
    assert alike(scan(NAME, engines=RELEASE), expected)


def test_what_another_endpoint_says_is_not_believed(hub: Hub, client: Client, folder: Path) -> None:
    scan(NAME, engines=RELEASE)
    with Hub() as other:
        other.add(NAME, folder)
        client(other)
        scan(NAME, engines=RELEASE)
        assert len(other.asked("cdn")) == 4


def downloaded(hub: Hub, names: list[str], *, linked: bool) -> None:
    """Put files into the Hugging Face cache, as a download leaves them."""
    repository = hub.repositories[NAME]
    commit = repository.at("main")
    assert commit
    place = Path(constants.HF_HUB_CACHE) / "models--org--model"
    snapshot = place / "snapshots" / commit.sha
    for path in (place / "blobs", place / "refs", snapshot):
        path.mkdir(parents=True)
    (place / "refs" / "main").write_text(commit.sha)
    for name in names:
        target = place / "blobs" / commit.files[name].etag if linked else snapshot / name
        target.write_bytes(commit.files[name].read())
        if linked:
            (snapshot / name).symlink_to(target)


@pytest.mark.parametrize("linked", [True, False])
def test_offline_takes_a_download(hub: Hub, folder: Path, expected: Report, linked: bool) -> None:
    names = [path.name for path in folder.iterdir()]
    downloaded(hub, names, linked=linked)
    assert alike(scan(NAME, engines=RELEASE, offline=True), expected)
    assert not hub.asked()


def test_part_of_a_download_is_not_a_damaged_checkpoint(hub: Hub) -> None:
    downloaded(hub, ["config.json", "hf_quant_config.json", INDEX], linked=True)
    report = scan(NAME, engines=RELEASE, offline=True)
    assert report.exit_code() == 2
    assert len(report.checkpoint.unread) == 4
    assert "shard-absent" not in {finding.name for finding in report.findings}


def test_what_was_downloaded_is_not_asked_for(hub: Hub, folder: Path, expected: Report) -> None:
    downloaded(hub, [path.name for path in folder.iterdir()], linked=True)
    assert alike(scan(NAME, engines=RELEASE), expected)
    assert len(hub.asked()) == 2  # which commit, and what it holds


# ------------------------------------------------------------------------------------------------- the token


def everything_written(root: Path) -> bytes:
    return b"".join(path.read_bytes() for path in root.rglob("*") if path.is_file())


@pytest.mark.parametrize("form", ["text", "json", "sarif", "html", "markdown", "github"])
@pytest.mark.parametrize("fault", [None, Fault(status=401, headers={"X-Error-Message": "x"}, times=0)])
def test_the_token_goes_to_the_hub_and_nowhere_else(
    hub: Hub,
    folder: Path,
    tmp_path: Path,
    form: str,
    fault: Fault | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MTPFIX_DEBUG", "1")
    monkeypatch.setattr(constants, "HF_DEBUG", True)
    caplog.set_level(logging.DEBUG, logger="huggingface_hub")
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "propagate", True)
    hub.add("org/private", folder, private=True).readers.add("reader")
    if fault:
        hub.fail("/org/private/resolve/*/config.json", fault)
    output = tmp_path / "report"
    code, out, err = run(
        "scan", "org/private", "-e", RELEASE[0], "--token", TOKEN, "--format", form, "-o", str(output), "--verbose"
    )
    assert code == (2 if fault else 0)
    told = out + err + everything_written(tmp_path).decode("latin-1")
    assert "/org/private" in caplog.text
    assert "Secret" not in told + caplog.text
    assert {one.token for one in hub.requests if one.server == "hub"} == {TOKEN}
    assert {one.token for one in hub.requests if one.server == "cdn"} <= {None}
    assert not any("Secret" in one.target for one in hub.requests)


def test_the_token_is_not_sent_to_where_the_api_redirects(hub: Hub) -> None:
    hub.fail(INFO, Fault(status=307, headers={"location": f"{hub.cdn}/api"}, times=0))
    with pytest.raises(MtpfixError):
        scan(NAME, engines=RELEASE, token=TOKEN)
    assert [one.token for one in hub.requests if one.server == "cdn"] == [None]


def test_the_next_page_is_asked_of_the_hub_whatever_its_link_says(hub: Hub) -> None:
    hub.fail(TREE, Fault(headers={"Link": f'<{hub.cdn}/steal?cursor=0&limit=50>; rel="next"'}, instead=False))
    scan(NAME, engines=RELEASE, token=TOKEN)
    assert not hub.asked("cdn", "steal")


@pytest.mark.parametrize("token", ["hf_Secret\nX-Evil: 1", "hf_Sécret", "hf_Secret two", ""])
def test_a_token_that_is_none_is_refused_without_being_shown(hub: Hub, token: str) -> None:
    with pytest.raises(UsageError) as raised:
        scan(NAME, engines=RELEASE, token=token)
    assert "cret" not in raised.value.message + raised.value.hint
    assert not hub.asked()


def test_offline_sends_nothing_and_a_saved_token_is_used(hub: Hub, folder: Path) -> None:
    Path(constants.HF_TOKEN_PATH).parent.mkdir(parents=True, exist_ok=True)
    Path(constants.HF_TOKEN_PATH).write_text(TOKEN)
    hub.add("org/private", folder, private=True).readers.add("reader")
    assert scan("org/private", engines=RELEASE).exit_code() == 0
    hub.forget()
    assert scan("org/private", engines=RELEASE, offline=True).exit_code() == 0
    assert not hub.asked()


# ---------------------------------------------------------------------------------------------- the branch alone


@pytest.mark.parametrize("variant", ["published", "excluded-glob", "nothing-excluded", "all-nvfp4"])
@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_next"])
def test_the_branch_alone_is_judged_as_with_the_rest(hub: Hub, tmp_path: Path, family: str, variant: str) -> None:
    build(tmp_path / "model", family, variant, "tiny", shards=6)
    hub.add("org/other", tmp_path / "model")
    whole = scan(tmp_path / "model", engines=["vllm==0.32.0", "vllm==0.19.1"])
    report = scan("org/other", engines=["vllm==0.32.0", "vllm==0.19.1"], scope="mtp")
    left_out = report.checkpoint.left_out
    assert left_out
    asked = " ".join(hub.asked())
    assert not any(name in asked for name in left_out)
    assert report.mtp == whole.mtp
    named = {name for one in report.engines for built in one.prediction.draft.built for name in built.modules}
    assert named
    assert not named & {name.rpartition(".")[0] for name in report.checkpoint.elsewhere}
    for one, other in zip(report.engines, whole.engines, strict=True):
        assert one.prediction.draft.verdict == other.prediction.draft.verdict
        assert one.prediction.target.reason == "only the shards of the MTP branch were read"
    mine = {(finding.rule, finding.module, finding.message) for finding in report.findings}
    assert mine <= {(finding.rule, finding.module, finding.message) for finding in whole.findings}
    assert {one for one in whole.findings if one.role == "draft"} or not mine
    assert "the main model was not judged" in report.notes[0]


def test_what_the_draft_shares_is_not_called_fine_unread(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path / "model", "exaone4_5", "packed-head", "tiny", shards=5)
    hub.add("org/head", tmp_path / "model")
    whole = scan(tmp_path / "model", engines=["vllm==0.32.0"])
    report = scan("org/head", engines=["vllm==0.32.0"], scope="mtp")
    assert whole.exit_code() == 1
    assert report.engines[0].prediction.draft.verdict == "unknown"
    assert "lm_head" in report.engines[0].prediction.draft.reason
    assert report.exit_code() == 3


def test_the_branch_alone_takes_ten_requests_where_it_lies_in_two_shards(hub: Hub, folder: Path) -> None:
    index = file_of(folder / INDEX, INDEX, lfs=True)
    hub.repositories[NAME].commit({INDEX: index})
    report = scan(NAME, engines=RELEASE, scope="mtp")
    assert len(report.checkpoint.shards) == len(report.checkpoint.left_out) == 2
    assert len(hub.asked()) == 10


def test_a_shard_that_no_index_names_may_hold_the_branch(hub: Hub, folder: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "extra.safetensors", [Tensor("mtp.extra.weight", "BF16", (4, 4))])
    extra = file_of((tmp_path / "extra.safetensors").read_bytes(), "extra.safetensors")
    hub.repositories[NAME].commit({"extra.safetensors": extra})
    report = scan(NAME, engines=RELEASE, scope="mtp")
    assert "extra.safetensors" in {shard.name for shard in report.checkpoint.shards}
    assert "shard-unindexed" in {finding.name for finding in report.findings}


def test_the_branch_alone_says_where_it_could_not_be_told_apart(hub: Hub, tmp_path: Path) -> None:
    build(tmp_path / "model", "qwen3_5", "excluded-glob", "tiny", shards=1)
    hub.add("org/single", tmp_path / "model")
    report = scan("org/single", engines=RELEASE, scope="mtp")
    assert not report.checkpoint.left_out
    assert any("every shard was read" in note for note in report.notes)


# ---------------------------------------------------------------------------------------- several repositories


def test_several_repositories_make_one_array_one_table_and_one_code(hub: Hub, folder: Path, tmp_path: Path) -> None:
    hub.add("org/empty", {"README.md": b"nothing"})
    named = tmp_path / "names.txt"
    named.write_text(f"# checked each night\n{NAME}\n\norg/empty  # has no weights\n")
    code, out, _ = run("scan", "--from-file", str(named), "-e", RELEASE[0], "--json")
    documents = json.loads(out)
    assert [one["exit_code"] for one in documents] == [0, 3]
    assert documents[0]["checkpoint"]["ref"] == NAME
    assert code == 3
    code, out, _ = run("scan", NAME, "org/absent", str(folder), "-e", RELEASE[0])
    assert code == 2
    table = out[out.rindex("CHECKPOINT") :].splitlines()
    *names, last = [line.split()[0] for line in table[1:4]]
    assert names == [NAME, "org/absent"]
    assert last.endswith(folder.name)  # a long path is cut in its middle
    assert "loads" in table[1]
    assert "not read" in table[2]
    assert table[-1] == "3 checkpoints: 2 clean, 1 not or not wholly read."


def test_a_pattern_stands_for_all_repositories_of_an_organization(hub: Hub, folder: Path) -> None:
    hub.add("org/model-2", folder)
    hub.add("other/model", folder)
    hub.page = 1
    code, out, _ = run("scan", "org/*", "-e", RELEASE[0], "--json")
    assert code == 0
    assert [one["checkpoint"]["ref"] for one in json.loads(out)] == [NAME, "org/model-2"]
    code, out, _ = run("scan", "org/*-2", "-e", RELEASE[0], "--json")
    assert [one["checkpoint"]["ref"] for one in json.loads(out)] == ["org/model-2"]
    code, out, err = run("scan", "nobody/*", NAME, "-e", RELEASE[0], "--json")
    assert code == 3
    assert [one["exit_code"] for one in json.loads(out)] == [3, 0]
    assert "no model repository matches nobody/*" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--from-file", "/absent"], "cannot be read"),
        ([NAME, "org/b", "--revision", "x"], "--revision is for one repository"),
        (["*/model"], "names no repositories"),
    ],
)
def test_a_request_that_makes_no_sense(hub: Hub, arguments: list[str], says: str) -> None:
    code, _, err = run("scan", *arguments)
    assert code == 2
    assert says in err


def test_the_gate_asks_no_hub(hub: Hub) -> None:
    code, _, err = run("check", NAME)
    assert code == 2
    assert "no folder" in err
    assert not hub.asked()


def test_an_interrupt_ends_it_at_once(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "FIRST_WAIT", 30.0)
    hub.fail("/blobs/*", Fault(status=503, times=0), server="cdn", skip=1)

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan(NAME, engines=RELEASE, progress=interrupt)
    assert not [thread for thread in threading.enumerate() if "ThreadPoolExecutor" in thread.name]


def test_the_environment_is_heeded_as_users_know_it(hub: Hub, tmp_path: Path) -> None:
    import subprocess
    import sys

    environment: dict[str, Any] = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.endpoint + "/",
        "HF_HOME": str(tmp_path / "place"),
        "HF_TOKEN": TOKEN,
        "NO_COLOR": "1",
    }
    command = [sys.executable, "-m", "mtpfix", "scan", NAME, "-e", RELEASE[0], "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert {one.token for one in hub.requests if one.server == "hub"} == {TOKEN}
    assert (tmp_path / "place" / "assets" / "mtpfix").is_dir()
    hub.forget()
    environment["HF_HUB_OFFLINE"] = "1"
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert not hub.asked()
