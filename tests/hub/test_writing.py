"""A push sends what differs, once, whatever the Hub answers; and says who may not, what changed, and what to do."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from mtpfix.checkpoint.hub import HubError
from mtpfix.cli import app
from mtpfix.errors import FormatError, MtpfixError, UsageError
from mtpfix.fix.changes import Link
from mtpfix.fix.outgoing import Delivery
from mtpfix.fix.snapshot import MANIFEST_FILE
from mtpfix.push import THREAD, Sent, prepare_push, send
from tests.checkpoints import build
from tests.fix import repairs
from tests.hub import Fault, Hub, Pull, Repository, file_of
from tests.hub.conftest import Client

NAME, TOKEN, READER, SCRIBE = "org/model", "hf_SecretOfTheOwner", "hf_SecretOfAReader", "hf_SecretThatOnlyReads"
COMMIT, PREUPLOAD = f"/api/models/{NAME}/commit/main", f"/api/models/{NAME}/preupload/main"
SHARD = "model-00001-of-00002.safetensors"
CONFIGS = {"config.json", "hf_quant_config.json", MANIFEST_FILE}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build what is published: broken, with files beside the model's own."""
    folder = repairs.made(tmp_path_factory.mktemp("made") / "model")
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def lists(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repair its lists."""
    out = tmp_path_factory.mktemp("lists") / "out"
    repairs.run(repairs.metadata_changes(made), out, Link.COPY)
    return out


@pytest.fixture(scope="module")
def tensors(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Repair lists and tensors, with a shard added and a file taken away."""
    out = tmp_path_factory.mktemp("tensors") / "out"
    repairs.run(repairs.all_changes(made), out, Link.COPY)
    return out


@pytest.fixture
def hub(made: Path, client: Client, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("mtpfix.push.LOOKS", (0.0, 0.01))
    users = {TOKEN: "owner", READER: "reader", SCRIBE: "scribe"}
    with Hub(tokens=users, read_only={"scribe"}) as served:
        served.add(NAME, made).writers.add("owner")
        client(served)
        yield served


def published(hub: Hub) -> Repository:
    return hub.repositories[NAME]


def prepared(folder: Path, token: str | None = TOKEN, **options: Any) -> Delivery:
    return prepare_push(folder, options.pop("repo", NAME), token=token, **options)


def pushed(folder: Path, token: str | None = TOKEN, **options: Any) -> Sent:
    create_pr = options.get("create_pr", True)
    return send(prepared(folder, token, **options), create_pr=create_pr)


def writes(hub: Hub) -> list[str]:
    """Every request that is not one to read."""
    return [row for row in hub.asked() if not row.startswith(("GET ", "HEAD "))]


def sent_rows(hub: Hub) -> list[dict[str, Any]]:
    """The lines of the last commit that was asked for."""
    request = [one for one in hub.requests if "/commit/" in one.path][-1]
    return [json.loads(line) for line in request.body.splitlines()]


def held(hub: Hub, revision: str) -> dict[str, bytes]:
    commit = published(hub).at(revision)
    assert commit is not None
    return {name: file.read() for name, file in commit.files.items()}


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ----------------------------------------------------------------------------------------------- what is sent


def test_a_repair_of_lists_is_two_posts_and_moves_no_weights(hub: Hub, lists: Path, made: Path) -> None:
    base = published(hub).refs["main"]
    sent = pushed(lists)
    assert writes(hub) == [f"POST {PREUPLOAD}", f"POST {COMMIT}"]
    assert not hub.asked("cdn")
    header, *rows = sent_rows(hub)
    assert header["value"]["parentCommit"] == base
    assert sent.delivery.digest in header["value"]["description"]
    assert {row["value"]["path"] for row in rows} == CONFIGS
    assert sent.pull == f"{hub.endpoint}/{NAME}/discussions/1"
    assert held(hub, "refs/pr/1") == files_of(lists)
    assert held(hub, "main") == files_of(made)
    assert published(hub).at("refs/pr/1") is published(hub).at(sent.commit)


def test_the_same_push_again_sends_nothing(hub: Hub, lists: Path) -> None:
    first = pushed(lists)
    hub.forget()
    again = pushed(lists)
    assert (again.already, again.pull, again.commit) == (True, first.pull, first.commit)
    assert not writes(hub)
    assert len(published(hub).pulls) == 1


def test_what_was_merged_is_not_sent(hub: Hub, lists: Path) -> None:
    pushed(lists)
    published(hub).refs["main"] = published(hub).refs["refs/pr/1"]
    hub.forget()
    sent = pushed(lists)
    assert (sent.delivery.files, sent.pull, sent.already) == ((), "", True)
    assert not writes(hub)


def test_a_pull_request_that_was_closed_does_not_count(hub: Hub, lists: Path) -> None:
    pushed(lists)
    published(hub).pulls[0].status = "closed"
    assert pushed(lists).pull.endswith("/discussions/2")


def test_changed_shards_are_uploaded_without_the_token_and_others_stay(hub: Hub, tensors: Path) -> None:
    sent = pushed(tensors)
    assert held(hub, "refs/pr/1") == files_of(tensors)
    uploads = [one for one in hub.requests if one.method == "PUT"]
    assert len(uploads) == 2  # one is new, one was rewritten
    assert {one.server for one in uploads} == {"cdn"}
    assert all("authorization" not in one.headers for one in hub.requests if one.server == "cdn")
    gone = [row["value"]["path"] for row in sent_rows(hub) if row["key"] == "deletedFile"]
    assert gone == ["tokenizer.json"]
    assert {file.name: file.change for file in sent.delivery.files} == {
        "config.json": "edited",
        SHARD: "edited",
        "model-mtp.safetensors": "new",
        "model.safetensors.index.json": "edited",
        "tokenizer.json": "removed",
        MANIFEST_FILE: "new",
    }


def test_what_was_uploaded_is_not_uploaded_again(hub: Hub, tensors: Path) -> None:
    hub.fail(COMMIT, Fault(status=500))
    with pytest.raises(HubError, match="error of its own"):
        pushed(tensors)
    assert len([one for one in hub.requests if one.method == "PUT"]) == 2
    hub.forget()
    assert pushed(tensors).pull
    assert not [one for one in hub.requests if one.method == "PUT"]
    assert held(hub, "refs/pr/1") == files_of(tensors)


def test_a_commit_can_go_to_the_branch_itself(hub: Hub, lists: Path) -> None:
    base = published(hub).refs["main"]
    sent = pushed(lists, create_pr=False)
    assert sent.pull == ""
    assert published(hub).refs["main"] == sent.commit
    assert sent_rows(hub)[0]["value"]["parentCommit"] == base
    assert held(hub, "main") == files_of(lists)
    assert not published(hub).pulls


def test_a_branch_can_be_named_for_a_commit_and_not_for_a_pull_request(hub: Hub, lists: Path) -> None:
    published(hub).refs["next"] = published(hub).refs["main"]
    pushed(lists, create_pr=False, repo=f"{NAME}@next")
    assert held(hub, "next") == files_of(lists)
    assert "mtpfix.json" not in held(hub, "main")
    with pytest.raises(UsageError, match="is made against main"):
        prepared(lists, repo=f"{NAME}@next")
    with pytest.raises(UsageError, match="a commit cannot be added to a commit"):
        prepared(lists, repo=f"{NAME}@{'0' * 40}", create_pr=False)


def test_without_a_manifest_every_file_is_compared_and_none_removed(hub: Hub, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}\n")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "token").write_text("theirs")
    for name in (SHARD, "model.safetensors.index.json"):
        shutil.copy(made / name, folder / name)
    sent = pushed(folder)
    assert [file.name for file in sent.delivery.files] == ["config.json"]
    assert held(hub, "refs/pr/1") == {**files_of(made), "config.json": b"{}\n"}
    again = pushed(folder)
    assert (again.already, again.pull) == (True, sent.pull)
    with (folder / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")  # of the same size, and another
    assert [file.name for file in prepared(folder).files] == ["config.json", SHARD]


def test_a_large_index_is_kept_as_the_hub_wants_it(hub: Hub, lists: Path) -> None:
    hub.regular_limit = 100
    pushed(lists)
    assert held(hub, "refs/pr/1") == files_of(lists)
    assert {row["key"] for row in sent_rows(hub)} == {"header", "lfsFile"}
    assert pushed(lists).already


# ------------------------------------------------------------------------------------------------ lost answers

LOST = {
    "502": Fault(status=502, instead=False),
    "504": Fault(status=504, instead=False),
    "reset": Fault(reset=True, instead=False),
    "cut": Fault(cut=20),
    "portal": Fault(body=b"<html>log in</html>", headers={"Content-Type": "text/html"}, instead=False),
    "empty": Fault(body=b"{}", instead=False),
    "nonsense": Fault(body=b'{"commitUrl": 1, "commitOid": [], "pullRequestUrl": null}', instead=False),
}


@pytest.mark.parametrize("create_pr", [True, False], ids=["pull", "commit"])
@pytest.mark.parametrize("fault", LOST.values(), ids=LOST)
def test_an_answer_that_is_lost_makes_no_second_commit(hub: Hub, lists: Path, fault: Fault, create_pr: bool) -> None:
    hub.fail(COMMIT, fault)
    sent = pushed(lists, create_pr=create_pr)
    assert len([row for row in writes(hub) if row == f"POST {COMMIT}"]) == 1
    assert len(published(hub).pulls) == int(create_pr)
    assert held(hub, "refs/pr/1" if create_pr else "main") == files_of(lists)
    assert published(hub).at(sent.commit)
    assert bool(sent.pull) is create_pr


@pytest.mark.parametrize("fault", [Fault(status=503), Fault(reset=True)], ids=["503", "reset"])
def test_where_the_commit_did_not_happen_the_same_push_makes_one(hub: Hub, lists: Path, fault: Fault) -> None:
    hub.fail(COMMIT, fault)
    with pytest.raises(HubError, match="whether the commit is there is not known") as caught:
        pushed(lists)
    assert "never sends a second" in caught.value.hint
    assert not published(hub).pulls
    assert pushed(lists).pull.endswith("/discussions/1")


def test_a_pull_request_that_shows_up_late_is_found_by_the_next_push(hub: Hub, lists: Path) -> None:
    hub.fail(COMMIT, Fault(status=504, instead=False))
    hub.fail(f"/api/models/{NAME}/discussions", Fault(body=b'{"discussions": [], "count": 0, "start": 0}', times=3))
    with pytest.raises(HubError, match="is not known"):
        pushed(lists)
    assert pushed(lists).already
    assert len(published(hub).pulls) == 1


@pytest.fixture
def patience(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait one second for an answer, and at the end for the threads that go on waiting, which share our client."""
    monkeypatch.setattr("mtpfix.push.SLOWEST", 1.0)
    yield
    for thread in threading.enumerate():
        if thread.name == THREAD:
            thread.join(20)


def test_a_hub_that_falls_silent_is_not_waited_for_for_ever(hub: Hub, lists: Path, patience: None) -> None:
    delivery = prepared(lists)
    hub.fail(COMMIT, Fault(stall=0, pause=3.0))
    assert send(delivery).pull.endswith("/discussions/1")  # it was made, and its answer does not come
    published(hub).pulls[0].status = "closed"
    hub.fail(PREUPLOAD, Fault(stall=0, pause=3.0))
    with pytest.raises(HubError, match="did not answer within 1 s"):
        send(delivery)
    assert len(published(hub).pulls) == 1


def test_a_commit_that_is_made_long_after_it_was_asked_for_is_found(hub: Hub, lists: Path, patience: None) -> None:
    delivery = prepared(lists)
    hub.fail(COMMIT, Fault(delay=2.5))
    with pytest.raises(HubError, match="whether the commit is there is not known"):
        send(delivery)
    deadline = time.monotonic() + 20
    while not published(hub).pulls and time.monotonic() < deadline:
        time.sleep(0.05)
    again = send(delivery)
    assert (again.already, len(published(hub).pulls)) == (True, 1)


# ---------------------------------------------------------------------------------------------------- refusals


def test_a_hub_that_limits_is_given_the_time_it_asks_for(hub: Hub, lists: Path) -> None:
    hub.fail(COMMIT, Fault(status=429, headers={"Retry-After": "0"}, times=2))
    pushed(lists)
    assert len(published(hub).pulls) == 1
    published(hub).pulls.clear()
    hub.fail(COMMIT, Fault(status=429, headers={"Retry-After": "7200"}))
    with pytest.raises(HubError, match=r"limits how much is asked \(429\)"):
        pushed(lists)


def test_reading_and_preupload_are_asked_again_after_a_fault_that_passes(hub: Hub, lists: Path) -> None:
    hub.fail(PREUPLOAD, Fault(status=503))
    hub.fail(f"/api/models/{NAME}/discussions", Fault(reset=True, times=2))
    assert pushed(lists).pull


REFUSED: dict[str, tuple[str | None, bool, str, str]] = {
    "nobody": (None, True, "you are not logged in", "hf auth login"),
    "stranger to the branch": (READER, False, "this token may not", "send a pull request"),
    "token that only reads": (SCRIBE, True, "this token may not", "a token that may write"),
    "unknown token": ("hf_Unknown", True, "does not know the token", ""),
}


@pytest.mark.parametrize(("token", "create_pr", "message", "hint"), REFUSED.values(), ids=REFUSED)
def test_who_may_not_write_is_told(
    hub: Hub, lists: Path, token: str | None, create_pr: bool, message: str, hint: str
) -> None:
    before = dict(published(hub).refs)
    with pytest.raises(MtpfixError, match=message) as caught:
        pushed(lists, token, create_pr=create_pr)
    assert hint in caught.value.hint
    assert published(hub).refs == before


def test_everybody_who_can_read_may_send_a_pull_request(hub: Hub, lists: Path) -> None:
    assert pushed(lists, READER).pull
    assert published(hub).pulls[0].author == "reader"


def test_a_repository_that_is_absent_private_or_hidden_is_told(hub: Hub, lists: Path) -> None:
    hub.add("org/private", {"config.json": b"{}"}, private=True)
    for name in ("org/absent", "org/private"):
        with pytest.raises(HubError, match=f"has no repository {name}"):
            prepared(lists, repo=name)
    with pytest.raises(UsageError, match="names no repository"):
        prepared(lists, repo="../elsewhere")
    assert not writes(hub)


def test_a_branch_that_moved_meanwhile_is_not_written_over(hub: Hub, lists: Path) -> None:
    delivery = prepared(lists, create_pr=False)
    theirs = published(hub).commit({"config.json": file_of(b'{"theirs": 1}', "config.json")}).sha
    with pytest.raises(HubError, match="changed while this was prepared") as caught:
        send(delivery, create_pr=False)
    assert "run the same command again" in caught.value.hint
    assert published(hub).refs["main"] == theirs
    assert held(hub, "main")["config.json"] == b'{"theirs": 1}'


def test_files_that_the_repository_ignores_are_missed(hub: Hub, lists: Path) -> None:
    published(hub).commit({".gitignore": file_of(b"mtpfix.json\n", ".gitignore")})
    with pytest.raises(HubError, match=r"mtpfix.json is not as it was sent") as caught:
        pushed(lists)
    assert ".gitignore" in caught.value.hint


@pytest.mark.parametrize("path", [PREUPLOAD, COMMIT])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_what_the_hub_says_is_passed_on_without_the_token(hub: Hub, lists: Path, path: str, status: int) -> None:
    said = f"no:\x1b[31m Bearer {TOKEN}"
    hub.fail(path, Fault(status=status, headers={"X-Error-Message": said.encode("unicode_escape").decode()}, times=0))
    with pytest.raises(HubError) as caught:
        pushed(lists)
    assert TOKEN not in caught.value.message + caught.value.hint
    assert str(status) in caught.value.message
    assert not published(hub).pulls


def test_an_upload_that_is_refused_sends_no_commit(hub: Hub, tensors: Path) -> None:
    hub.fail("/uploads/*", Fault(status=403, times=0), server="cdn", method="PUT")
    with pytest.raises(MtpfixError):
        pushed(tensors)
    assert f"POST {COMMIT}" not in writes(hub)
    hub.heal()
    assert pushed(tensors).pull


def test_an_upload_that_breaks_off_is_tried_again(hub: Hub, tensors: Path) -> None:
    hub.fail("/uploads/*", Fault(status=500), server="cdn", method="PUT")
    pushed(tensors)
    assert held(hub, "refs/pr/1") == files_of(tensors)


def test_nothing_is_sent_offline(hub: Hub, lists: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UsageError, match="nothing can be sent offline"):
        prepared(lists)
    assert not hub.requests


def test_a_hub_that_is_not_there_is_told(hub: Hub, lists: Path) -> None:
    delivery = prepared(lists)
    hub.stop()
    with pytest.raises(HubError, match="cannot be reached"):
        send(delivery)


# ------------------------------------------------------------------------------------- what does not fit together


def test_a_file_that_was_edited_after_the_repair_is_not_sent(hub: Hub, lists: Path, tmp_path: Path) -> None:
    folder = tmp_path / "edited"
    shutil.copytree(lists, folder)
    (folder / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"config.json is not what the repair wrote"):
        prepared(folder)
    assert not writes(hub)


def test_a_shard_that_changes_while_it_is_sent_is_noticed(hub: Hub, tensors: Path, tmp_path: Path) -> None:
    folder = tmp_path / "changing"
    shutil.copytree(tensors, folder)
    limit = 1000
    for name in (SHARD, "model-mtp.safetensors"):
        assert (folder / name).stat().st_size > limit
    from mtpfix.fix import outgoing

    with pytest.MonkeyPatch.context() as patching:
        patching.setattr(outgoing, "LARGEST_SMALL", limit)
        delivery = prepared(folder)
    with (folder / SHARD).open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    with pytest.raises(MtpfixError, match="changed while it was worked on"):
        send(delivery)
    assert f"POST {COMMIT}" not in writes(hub)
    assert not published(hub).pulls


def test_a_repair_in_place_is_sent_when_it_is_finished(hub: Hub, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made, folder)
    repairs.run(repairs.metadata_changes(folder), folder, Link.AUTO, in_place=True)
    pushed(folder)
    assert held(hub, "refs/pr/1") == {
        name: data for name, data in files_of(folder).items() if not name.startswith(".mtpfix-backup-")
    }
    stopped = folder / ".mtpfix-in-place"
    stopped.mkdir()
    (stopped / "journal").write_text('{"backup": ".mtpfix-backup-0"}\n{"commit": true}\n')
    with pytest.raises(MtpfixError, match="in place was interrupted"):
        prepared(folder)


def test_another_repository_is_not_what_was_repaired(hub: Hub, lists: Path, tmp_path: Path) -> None:
    build(tmp_path / "other", "deepseek_v3", "nothing-excluded")
    hub.add("org/other", tmp_path / "other").writers.add("owner")
    with pytest.raises(UsageError, match=r"org/other is not what was repaired: .* has another size there") as caught:
        prepared(lists, repo="org/other")
    assert "the repository that was repaired" in caught.value.hint
    hub.add("org/empty", {"config.json": b"{}"}).writers.add("owner")
    with pytest.raises(UsageError, match=r"org/empty has no hf_quant_config.json, which was repaired"):
        prepared(lists, repo="org/empty")


def downloaded(made: Path, commit: str, root: Path) -> Path:
    """The files as the Hub's cache keeps them, so that the repair knows the commit."""
    folder = root / "models--org--model" / "snapshots" / commit
    shutil.copytree(made, folder)
    return folder


def test_what_others_changed_since_is_kept_or_stops_the_push(hub: Hub, made: Path, tmp_path: Path) -> None:
    source = downloaded(made, published(hub).refs["main"], tmp_path)
    changes = replace(repairs.metadata_changes(source), revision=published(hub).refs["main"], base=NAME)
    repairs.run(changes, tmp_path / "out", Link.COPY)
    published(hub).commit({"README.md": file_of(b"# Better words\n", "README.md")})
    pushed(tmp_path / "out")
    assert held(hub, "refs/pr/1")["README.md"] == b"# Better words\n"  # not brought back to what it was
    published(hub).commit({"config.json": file_of(b'{"theirs": 1}', "config.json")})
    hub.forget()
    with pytest.raises(MtpfixError, match=r"changed since it was repaired: config.json is another one now"):
        prepared(tmp_path / "out")
    assert not writes(hub)


@pytest.mark.parametrize("number", [0, 1])
def test_a_pull_request_of_this_plan_with_other_files_is_not_taken_for_ours(hub: Hub, lists: Path, number: int) -> None:
    delivery = prepared(lists)
    theirs = published(hub).commit({"config.json": file_of(b"{}", "config.json")}, to="refs/pr/1", parent=None).sha
    text = delivery.digest if number else "something else"
    published(hub).pulls.append(Pull(1, delivery.title, text, "somebody", theirs))
    if number:
        with pytest.raises(HubError, match="is open for this very plan, and holds other files"):
            send(delivery)
    else:
        assert send(delivery).pull.endswith("/discussions/2")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda found: found["files"].append({"name": "../../escaped", "change": "new", "size": 1, "sha256": "0" * 64}),
        lambda found: found["removed"].append("/etc/passwd"),
        lambda found: found.update(plan="x"),
        lambda found: found.update(files=None),
        lambda found: found.update(base=[]),
    ],
)
def test_a_manifest_that_is_none_is_refused(
    hub: Hub, lists: Path, tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(lists, folder)
    found = json.loads((folder / MANIFEST_FILE).read_text())
    spoil(found)
    (folder / MANIFEST_FILE).write_text(json.dumps(found))
    with pytest.raises(FormatError):
        prepared(folder)
    assert not writes(hub)


# ------------------------------------------------------------------------------------------------ the model card


def test_the_card_gets_a_section_that_is_renewed(hub: Hub, lists: Path, made: Path) -> None:
    first = pushed(lists, card=True)
    card = held(hub, "refs/pr/1")["README.md"].decode()
    assert card.startswith((made / "README.md").read_text())
    assert card.count("<!-- mtpfix -->") == card.count("<!-- /mtpfix -->") == 1
    assert first.delivery.digest in card
    assert "add-entry mtp*" in card
    published(hub).refs["main"] = first.commit
    published(hub).commit({"config.json": file_of((made / "config.json").read_bytes(), "config.json")})
    again = pushed(lists, card=True)
    assert held(hub, again.commit)["README.md"].decode() == card


def test_a_card_that_is_not_there_is_made_and_a_bad_one_told(hub: Hub, lists: Path) -> None:
    published(hub).commit({"README.md": None})
    pushed(lists, card=True)
    assert held(hub, "refs/pr/1")["README.md"].startswith(b"<!-- mtpfix -->\n## MTP\n")
    published(hub).pulls.clear()
    published(hub).commit({"README.md": file_of(b"---\nlicense: [\n---\n", "README.md")})
    with pytest.raises(HubError, match='"license" must be one of'):
        pushed(lists, card=True)
    assert not published(hub).pulls


# --------------------------------------------------------------------------------------------------- the command


def run(*arguments: str, answer: str | None = None) -> Any:
    with pytest.MonkeyPatch.context() as patching:
        patching.setattr("mtpfix.cli.push._is_asked", lambda: answer is not None)
        return CliRunner().invoke(app, ["push", *arguments], input=answer)


def test_the_command_shows_the_difference_and_asks(hub: Hub, lists: Path) -> None:
    refused = run(str(lists), NAME, "--token", TOKEN, answer="n\n")
    assert refused.exit_code == 1
    assert '+      "mtp*"' in refused.output
    assert "Send it?" in refused.output
    assert '"sha256"' not in refused.output  # our own file is told by its name alone
    assert not writes(hub)
    agreed = run(str(lists), NAME, "--token", TOKEN, answer="y\n")
    assert agreed.exit_code == 0
    assert f"sent: {hub.endpoint}/{NAME}/discussions/1" in agreed.output
    nobody = run(str(lists), NAME, "--token", TOKEN)
    assert nobody.exit_code == 2
    assert "nobody to ask" in nobody.output


def test_a_dry_run_sends_nothing_and_needs_no_token(hub: Hub, lists: Path) -> None:
    done = run(str(lists), NAME, "--dry-run")
    assert done.exit_code == 0
    assert '+      "mtp*"' in done.output
    assert "mtpfix.json" in done.output
    assert not writes(hub)
    found = json.loads(run(str(lists), NAME, "--dry-run", "--json").output)
    assert {row["name"] for row in found["files"]} == CONFIGS
    assert (found["sent"], found["pull_request"]) == (False, None)


def test_the_command_answers_in_json_and_again(hub: Hub, lists: Path) -> None:
    first = json.loads(run(str(lists), NAME, "--token", TOKEN, "--yes", "--json", "-m", "Let it load").output)
    again = json.loads(run(str(lists), NAME, "--token", TOKEN, "--yes", "--json").output)
    assert (first["sent"], first["already"]) == (True, False)
    assert (again["sent"], again["already"]) == (False, True)
    assert again["pull_request"] == first["pull_request"] == f"{hub.endpoint}/{NAME}/discussions/1"
    assert published(hub).pulls[0].title.startswith("Let it load [mtpfix ")
    assert run(str(lists), NAME, "--yes", "-m", "two\nlines").exit_code == 2


def test_the_token_is_nowhere_but_in_requests_to_the_hub(
    hub: Hub, tensors: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    caplog.set_level("DEBUG", logger="huggingface_hub")
    hub.fail(COMMIT, Fault(status=400, headers={"X-Error-Message": f"token {TOKEN} is bad"}))
    said = [
        run(str(tensors), NAME, "--token", TOKEN, *options).output
        for options in (["--yes"], ["--yes", "--json"], ["--yes"], ["--dry-run"])
    ]
    assert len(published(hub).pulls) == 1
    assert TOKEN not in "".join(said) + caplog.text
    assert {one.token for one in hub.requests if one.server == "hub"} == {TOKEN}
    assert all(TOKEN not in str(one.headers) + one.target for one in hub.requests if one.server == "cdn")
    assert all(TOKEN.encode() not in one.body and TOKEN not in one.target for one in hub.requests)
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert kept
    assert not any(TOKEN.encode() in data for data in kept)
    assert base64.b64encode(TOKEN.encode()) not in b"".join(kept)
