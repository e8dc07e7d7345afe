from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import deserialize

from mtpfix.checkpoint import open_checkpoint
from mtpfix.checkpoint.header import read_header
from mtpfix.errors import FormatError, MtpfixError, UsageError
from mtpfix.fix.changes import Changes, EditedFile, EditedShard, Link, NewShard, NewTensor, RemovedFile
from mtpfix.fix.disk import FLUSHED, write_new
from mtpfix.fix.shard import stored_tensor
from mtpfix.fix.snapshot import MANIFEST_FILE, take_snapshot
from mtpfix.fix.stage import stage_path
from mtpfix.fix.writer import finish_in_place, write, write_in_place
from tests import checkpoints
from tests.fix import repairs

READ: Any = deserialize


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return repairs.made(tmp_path / "source")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a folder and below, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def state(folder: Path) -> dict[str, Any]:
    """Everything about the files of a folder that a repair must not touch."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mark = path.lstat()
        where = path.readlink() if path.is_symlink() else ""
        data = path.read_bytes() if path.is_file() else b""
        found[str(path)] = (mark.st_mode, mark.st_ino, mark.st_mtime_ns, mark.st_size, mark.st_uid, where, data)
    return found


def hub_cache(root: Path, folder: Path) -> Path:
    """The same files as the Hub's cache keeps them: links in a snapshot to blobs named by their hash."""
    snapshot = root / "models--org--name" / "snapshots" / "0123abc"
    blobs = root / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    for name, data in contents(folder).items():
        blob = blobs / hashlib.sha256(data).hexdigest()
        blob.write_bytes(data)
        blob.chmod(0o600)
        link = snapshot / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    return snapshot


# ---------------------------------------------------------------------------------------------- the result


@pytest.mark.parametrize("cached", [False, True], ids=["folder", "hub-cache"])
@pytest.mark.parametrize("link", [Link.AUTO, Link.HARDLINK, Link.SYMLINK, Link.COPY])
def test_a_result_is_whole_and_the_source_untouched(tmp_path: Path, source: Path, link: Link, cached: bool) -> None:
    out = tmp_path / "out"
    if cached:
        source = hub_cache(tmp_path / "hub", source)
    before, top = state(source if not cached else tmp_path / "hub"), source.stat()
    changes = repairs.all_changes(source)
    done = repairs.run(changes, out, link)
    assert state(source if not cached else tmp_path / "hub") == before
    assert (source.stat().st_mtime_ns, source.stat().st_mode) == (top.st_mtime_ns, top.st_mode)
    files = contents(out)
    changed = {change.name for change in changes.files}
    expected = {name: data for name, data in contents(source).items() if name not in changed}
    assert {name: data for name, data in files.items() if name not in changed and name != MANIFEST_FILE} == expected
    assert "tokenizer.json" not in files
    assert sum(done.kept.values()) == len(expected)
    for path in out.rglob("*"):
        if path.is_symlink():
            assert link is Link.SYMLINK
            assert path.readlink().is_absolute()
            assert path.stat().st_mode  # it leads to something
        elif str(path.relative_to(out)) in changed:
            assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask()
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~umask()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        {"source", "out"} | ({"hub"} if cached else set())
    )
    checkpoint = open_checkpoint(out, trusted=(source,))
    assert not checkpoint.problems
    names = {name for file, data in files.items() if file.endswith(".safetensors") for name, _ in READ(data)}
    assert {"mtp.added", "mtp.new.weight"} <= names


def umask() -> int:
    value = os.umask(0o22)
    os.umask(value)
    return value


def test_the_same_plan_gives_the_same_bytes_wherever_the_source_lies(tmp_path: Path, source: Path, out: Path) -> None:
    repairs.run(repairs.all_changes(source), out, Link.AUTO)
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-r", source, copy], check=True)
    repairs.run(repairs.all_changes(copy), tmp_path / "second", Link.COPY)
    assert contents(out) == contents(tmp_path / "second")


def test_the_manifest_lets_others_check_what_was_done(source: Path, out: Path) -> None:
    changes = repairs.all_changes(source)
    done = repairs.run(changes, out, Link.AUTO)
    manifest = json.loads((out / MANIFEST_FILE).read_text())
    assert manifest["plan"] == done.digest
    assert manifest["base"]["name"] == "org/name"
    assert manifest["base"]["revision"] == "0123abc"
    for row in manifest["files"]:
        data = (out / row["name"]).read_bytes()
        assert (row["size"], row["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert {row["name"] for row in manifest["files"]} == {file.name for file in done.changed}
    assert manifest["removed"] == ["tokenizer.json"]
    every = {row["name"] for row in (*manifest["files"], *manifest["unchanged"])} | {MANIFEST_FILE}
    assert every == set(contents(out))
    assert manifest["operations"] == [{"action": "graft", "file": "", "value": "mtp"}]
    assert str(source.parent) not in (out / MANIFEST_FILE).read_text()


def test_the_same_command_again_changes_nothing(source: Path, out: Path) -> None:
    changes = repairs.all_changes(source)
    first = repairs.run(changes, out, Link.AUTO)
    before = state(out)
    again = repairs.run(repairs.all_changes(source), out, Link.AUTO)
    assert again.already
    assert again.changed == first.changed
    assert state(out) == before


def test_a_result_that_was_changed_is_not_taken_for_the_result(source: Path, out: Path) -> None:
    repairs.run(repairs.all_changes(source), out, Link.AUTO)
    path = out / "model-mtp.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    before = state(out)
    with pytest.raises(UsageError, match="is there already, and is not the result"):
        repairs.run(repairs.all_changes(source), out, Link.AUTO)
    assert state(out) == before


def test_an_overlay_holds_only_what_changes_and_says_what_it_lies_over(source: Path, out: Path) -> None:
    changes = repairs.all_changes(source)
    repairs.run(changes, out, Link.AUTO, overlay=True)
    wanted = {change.name for change in changes.files if not isinstance(change, RemovedFile)} | {MANIFEST_FILE}
    assert set(contents(out)) == wanted
    manifest = json.loads((out / MANIFEST_FILE).read_text())
    assert manifest["overlay"] is True
    assert "figures/chart.png" in {row["name"] for row in manifest["unchanged"]}
    assert repairs.run(changes, out, Link.AUTO, overlay=True).already
    with pytest.raises(UsageError, match="is there already"):
        repairs.run(changes, out, Link.AUTO)


def test_an_empty_folder_may_be_the_result(source: Path, out: Path) -> None:
    out.mkdir()
    repairs.run(repairs.all_changes(source), out, Link.AUTO)
    assert MANIFEST_FILE in contents(out)


# ------------------------------------------------------------------------------------------------ refusals


def test_what_exists_is_never_written_over(tmp_path: Path, source: Path, out: Path) -> None:
    changes = repairs.metadata_changes(source)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious").write_text("mine")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("full", "file", "link"):
        with pytest.raises(UsageError, match="is there already"):
            write(changes, tmp_path / name)
    assert not (tmp_path / "elsewhere").exists()
    assert (tmp_path / "full" / "precious").read_text() == (tmp_path / "file").read_text() == "mine"
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".mtpfix")]
    del out


def test_a_result_in_the_source_is_refused(source: Path) -> None:
    changes = repairs.metadata_changes(source)
    before = state(source)
    for place in (source, source / "out", source / "figures" / "out"):
        with pytest.raises(UsageError, match=r"is the source itself|lie one in the other"):
            write(changes, place)
    with pytest.raises(UsageError, match="there is no folder"):
        write(changes, source.parent / "absent" / "out")
    assert state(source) == before


@pytest.mark.parametrize("name", ["../escaped", "/escaped", "a/../../escaped", "", "a\\b", "a\nb", ".mtpfix-stage-x"])
def test_names_that_leave_the_result_are_refused(source: Path, out: Path, name: str) -> None:
    changes = replace(repairs.metadata_changes(source), files=(EditedFile(name, b"evil"),))
    with pytest.raises(MtpfixError):
        write(changes, out)
    assert not out.exists()
    assert not (out.parent / "escaped").exists()


def test_a_link_out_of_the_source_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (source / "README.md").symlink_to("../secret")
    with pytest.raises(FormatError, match=r"README.md is a link out of the folder"):
        take_snapshot(source)


def test_a_pipe_in_the_source_is_told_and_not_waited_for(source: Path) -> None:
    os.mkfifo(source / "pipe")
    with pytest.raises(FormatError, match="pipe is a pipe, not a file"):
        take_snapshot(source)


def test_a_link_to_nothing_and_a_link_to_a_folder_are_told(source: Path) -> None:
    (source / "README.md").symlink_to("absent")
    with pytest.raises(FormatError, match="a link to a file that is not there"):
        take_snapshot(source)
    (source / "README.md").unlink()
    (source / "README.md").symlink_to("figures")
    with pytest.raises(FormatError, match="is a folder, not a file"):
        take_snapshot(source)


def test_folders_of_other_tools_are_left_out(source: Path, out: Path) -> None:
    for name in (".git", ".cache"):
        (source / name).mkdir()
        (source / name / "inside").write_text("theirs")
    repairs.run(repairs.metadata_changes(source), out, Link.AUTO)
    assert not (out / ".git").exists()
    assert not (out / ".cache").exists()


@pytest.mark.parametrize(
    ("files", "fault"),
    [
        ((EditedFile("config.json", b"{}"), RemovedFile("config.json")), "is changed twice"),
        ((RemovedFile("absent"),), "is not there to be changed"),
        ((EditedShard("absent.safetensors"),), "is not there to be changed"),
        ((NewShard("model-00001-of-00002.safetensors", ()),), "is there already"),
        ((NewShard("model.bin", ()),), "is not the name of a safetensors file"),
        ((EditedFile(MANIFEST_FILE, b"{}"),), "a name that mtpfix keeps for itself"),
    ],
)
def test_changes_that_contradict_the_source_are_refused(source: Path, out: Path, files: Any, fault: str) -> None:
    with pytest.raises(MtpfixError, match=fault):
        write(replace(repairs.metadata_changes(source), files=files), out)
    assert not out.exists()


def test_a_result_the_caller_refuses_is_not_published(source: Path, out: Path) -> None:
    def refuse(folder: Path) -> None:
        assert (folder / "config.json").is_file()
        raise MtpfixError("a finding is left")

    with pytest.raises(MtpfixError, match="a finding is left"):
        write(repairs.metadata_changes(source), out, verify=refuse)
    assert not out.exists()
    assert not stage_path(out).exists()


# ------------------------------------------------------------------------------------------ on shifting ground


@pytest.mark.parametrize("how", ["edited", "touched", "replaced", "gone", "new"])
def test_a_source_that_changes_while_it_is_repaired_is_noticed(source: Path, out: Path, how: str) -> None:
    path = source / "model-00002-of-00002.safetensors"

    def meddle(folder: Path) -> None:
        match how:
            case "edited":
                mark = (source / "hf_quant_config.json").stat()
                text = (source / "hf_quant_config.json").read_text().replace("NVFP4", "NVFP5")
                with (source / "hf_quant_config.json").open("r+") as file:
                    file.write(text)
                os.utime(source / "hf_quant_config.json", ns=(mark.st_atime_ns, mark.st_mtime_ns))
            case "touched":
                os.utime(path, (1, 1))
            case "replaced":
                path.with_name("copy").write_bytes(path.read_bytes())
                path.with_name("copy").replace(path)
            case "gone":
                path.unlink()
            case _:
                (source / "model-00003-of-00003.safetensors").write_bytes(b"")
        del folder

    with pytest.raises(
        MtpfixError, match=r"changed while it was worked on: (model-0000[23]|hf_quant_config)"
    ) as caught:
        write(repairs.metadata_changes(source), out, verify=meddle)
    assert "nothing was published" in caught.value.hint
    assert not out.exists()
    assert not stage_path(out).exists()


def test_a_base_model_that_changes_while_tensors_are_taken_from_it_is_noticed(
    tmp_path: Path, source: Path, out: Path
) -> None:
    base = repairs.made(tmp_path / "base")
    shard = "model-00001-of-00002.safetensors"
    name = read_header(base / shard).tensors[0].name
    changes = replace(
        repairs.metadata_changes(source),
        files=(NewShard("mtp.safetensors", (stored_tensor(base, shard, name, as_name="mtp.x", origin="o/n"),)),),
        reads=(take_snapshot(base, [shard]),),
    )
    with pytest.raises(MtpfixError, match=r"base changed while it was worked on: model-00001.* was written"):
        write(changes, out, verify=lambda _: os.utime(base / shard, (1, 1)))
    (base / "README.md").write_text("a new file of the base is nothing to us")
    write(replace(changes, reads=(take_snapshot(base, [shard]),)), out)
    taken = dict(READ((out / "mtp.safetensors").read_bytes()))["mtp.x"]
    assert bytes(taken["data"]) == bytes(dict(READ((base / shard).read_bytes()))[name]["data"])


def test_the_longest_name_can_be_a_result(source: Path, out: Path) -> None:
    repairs.run(repairs.metadata_changes(source), out.with_name("é" * 127), Link.AUTO)
    assert (out.with_name("é" * 127) / MANIFEST_FILE).is_file()


def interrupted(changes: Changes, out: Path, at: str) -> None:
    """Stop a run in the middle of a tensor, as a signal would."""

    def stopping(tensor: NewTensor) -> NewTensor:
        def read() -> Any:
            yield next(iter(tensor.read()))
            raise KeyboardInterrupt

        return replace(tensor, read=read) if tensor.name == at else tensor

    def with_stop(change: Any) -> Any:
        match change:
            case EditedShard():
                return replace(change, put=tuple(map(stopping, change.put)))
            case NewShard():
                return replace(change, tensors=tuple(map(stopping, change.tensors)))
            case _:
                return change

    with pytest.raises(KeyboardInterrupt):
        write(replace(changes, files=tuple(map(with_stop, changes.files))), out)


@pytest.mark.parametrize("at", ["mtp.added", "mtp.new.weight"])
def test_an_interrupted_run_goes_on_to_the_same_bytes(tmp_path: Path, source: Path, out: Path, at: str) -> None:
    changes = repairs.all_changes(source)
    repairs.run(changes, tmp_path / "straight", Link.AUTO)
    interrupted(changes, out, at)
    assert not out.exists()
    assert stage_path(out).is_dir()
    done = repairs.run(repairs.all_changes(source), out, Link.AUTO)
    assert done.resumed
    assert contents(out) == contents(tmp_path / "straight")
    assert not stage_path(out).exists()


def test_finished_files_are_not_written_again(source: Path, out: Path) -> None:
    changes = repairs.all_changes(source)
    interrupted(changes, out, "mtp.new.weight")
    kept = {path.name: path.stat().st_ino for path in (stage_path(out) / "files").iterdir()}
    assert "model-00001-of-00002.safetensors" in kept
    whole = repairs.run(changes, out.with_name("straight"), Link.AUTO).bytes_written
    done = repairs.run(changes, out, Link.AUTO)
    assert done.bytes_written < whole
    assert {name: (out / name).stat().st_ino for name in kept} == kept


def test_a_stage_of_another_plan_or_of_a_source_that_changed_is_not_continued(source: Path, out: Path) -> None:
    shard = stage_path(out) / "files" / "model-00001-of-00002.safetensors"
    interrupted(repairs.all_changes(source), out, "mtp.new.weight")
    with shard.open("r+b") as file:
        file.write(b"stale")  # so that a file taken over from this stage would show
    os.utime(source / shard.name, (5, 5))
    interrupted(repairs.all_changes(source), out, "mtp.new.weight")
    assert not shard.read_bytes().startswith(b"stale")
    done = repairs.run(repairs.metadata_changes(source), out, Link.AUTO)
    assert not done.resumed
    assert "model-mtp.safetensors" not in contents(out)


def test_a_line_of_the_journal_that_was_cut_short_is_left_out(tmp_path: Path, source: Path, out: Path) -> None:
    changes = repairs.all_changes(source)
    repairs.run(changes, tmp_path / "straight", Link.AUTO)
    for cut in (1, 30, 10_000_000):
        interrupted(changes, out, "mtp.new.weight")
        journal = stage_path(out) / "journal"
        journal.write_bytes(journal.read_bytes()[: -min(cut, journal.stat().st_size)])
        repairs.run(changes, out, Link.AUTO)
        assert contents(out) == contents(tmp_path / "straight")
        subprocess.run(["rm", "-r", out], check=True)


# --------------------------------------------------------------------------------------------- two at once


def test_a_second_run_says_that_the_first_is_at_work(source: Path, out: Path) -> None:
    changes = repairs.all_changes(source)

    def second(folder: Path) -> None:
        with pytest.raises(MtpfixError, match=f"another run is writing .*out: process {os.getpid()} on"):
            write(changes, out)
        del folder

    write(changes, out, verify=second)
    assert MANIFEST_FILE in contents(out)


def test_what_a_dead_process_held_is_taken_over(source: Path, out: Path) -> None:
    stage = stage_path(out)
    stage.mkdir(mode=0o700)
    holding = (
        f"import fcntl,time; f=open({str(stage / 'lock')!r},'w'); fcntl.flock(f, 2); print(flush=True); time.sleep(99)"
    )
    with subprocess.Popen([sys.executable, "-c", holding], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(MtpfixError, match="another run is writing"):
            write(repairs.metadata_changes(source), out)
        process.send_signal(signal.SIGKILL)
    write(repairs.metadata_changes(source), out)
    assert not stage.exists()


def test_a_stage_that_is_not_ours_is_not_entered(tmp_path: Path, source: Path, out: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    stage_path(out).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(MtpfixError, match="is not a folder of yours"):
        write(repairs.metadata_changes(source), out)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_runs_that_race_for_one_result_leave_one(tmp_path: Path, source: Path, out: Path) -> None:
    command = [sys.executable, "-m", "tests.fix.repairs", str(source), str(out)]
    runs = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ends = [(run.communicate()[1], run.returncode) for run in runs]
    assert 0 in [code for _, code in ends]
    assert all(code == 0 or "another run is writing" in text for text, code in ends), ends
    repairs.run(repairs.all_changes(source), tmp_path / "straight", Link.AUTO)
    assert contents(out) == contents(tmp_path / "straight")
    assert not stage_path(out).exists()


# --------------------------------------------------------------------------------------------- real faults


def test_a_file_larger_than_allowed_is_told_and_resumed(tmp_path: Path, source: Path, out: Path) -> None:
    changes = repairs.all_changes(source)
    before = state(source)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(MtpfixError, match=r"cannot write model-00001.*larger than") as caught:
            write(changes, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "run the same command again" in caught.value.hint
    assert not out.exists()
    assert state(source) == before
    repairs.run(changes, tmp_path / "straight", Link.AUTO)
    assert repairs.run(changes, out, Link.AUTO).resumed
    assert contents(out) == contents(tmp_path / "straight")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_is_told(source: Path, tmp_path: Path) -> None:
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(MtpfixError, match="permission denied"):
        write(repairs.metadata_changes(source), tmp_path / "closed" / "out")


def test_too_little_room_is_told_before_anything_is_written(source: Path, out: Path) -> None:
    huge = NewTensor("huge", "U8", (1 << 60,), "nothing", list)
    changes = replace(repairs.metadata_changes(source), files=(NewShard("huge.safetensors", (huge,)),))
    with pytest.raises(MtpfixError, match=r"1,152,921,504,606,\d+,\d+ bytes are to be written"):
        write(changes, out)


# ------------------------------------------------------------------------------------------------ in place


def test_a_repair_in_place_replaces_the_configurations_and_keeps_the_old_ones(tmp_path: Path, source: Path) -> None:
    before = state(source)
    (tmp_path / "second-name").hardlink_to(source / "config.json")
    old = contents(source)
    changes = repairs.metadata_changes(source)
    done = repairs.run(changes, source, Link.AUTO, in_place=True)
    assert done.backup == source / f".mtpfix-backup-{done.digest[:12]}"
    assert contents(done.backup) == {name: old[name] for name in ("config.json", "hf_quant_config.json")}
    assert (tmp_path / "second-name").read_bytes() == old["config.json"]
    for change in changes.files:
        assert isinstance(change, EditedFile)
        assert (source / change.name).read_bytes() == change.content
    after = state(source)
    changed = {str(source / change.name) for change in changes.files}
    assert {name: mark for name, mark in before.items() if name not in changed}.items() <= after.items()
    assert not (source / ".mtpfix-in-place").exists()
    assert json.loads((source / MANIFEST_FILE).read_text())["plan"] == done.digest
    assert not finish_in_place(source)


def test_only_configurations_that_are_files_are_changed_in_place(tmp_path: Path, source: Path) -> None:
    before = state(source)
    with pytest.raises(UsageError, match="only configuration files can"):
        write_in_place(repairs.all_changes(source))
    snapshot = hub_cache(tmp_path / "hub", source)
    with pytest.raises(UsageError, match="is a link, and what it leads to may be shared"):
        write_in_place(repairs.metadata_changes(snapshot))
    assert state(source) == before


def test_a_refused_repair_in_place_changes_nothing(source: Path) -> None:
    before = state(source)

    def refuse(folder: Path) -> None:
        assert repairs.ADDED in (folder / "config.json").read_text()
        raise MtpfixError("a finding is left")

    with pytest.raises(MtpfixError, match="a finding is left"):
        write_in_place(repairs.metadata_changes(source), verify=refuse)
    assert state(source) == before


def test_while_one_repairs_in_place_another_waits(source: Path) -> None:
    changes = repairs.metadata_changes(source)

    def second(folder: Path) -> None:
        with pytest.raises(MtpfixError, match="another run is writing"):
            write_in_place(changes)
        with pytest.raises(MtpfixError, match="another run is writing"):
            finish_in_place(source)
        del folder

    write_in_place(changes, verify=second)


def test_progress_ends_where_it_said_it_would(source: Path, out: Path) -> None:
    told: list[tuple[int, int]] = []
    write(repairs.all_changes(source), out, link=Link.COPY, progress=lambda done, total: told.append((done, total)))
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] == told[0][1]


def test_a_metadata_repair_writes_no_shard(source: Path, out: Path) -> None:
    done = repairs.run(repairs.metadata_changes(source), out, Link.HARDLINK)
    names = ("config.json", "hf_quant_config.json", MANIFEST_FILE)
    assert done.bytes_written == sum((out / name).stat().st_size for name in names)
    for shard in source.glob("*.safetensors"):
        assert (out / shard.name).samefile(shard)


@pytest.mark.slow
def test_a_device_that_fills_up_is_told_and_the_run_goes_on_when_there_is_room(tmp_path: Path, source: Path) -> None:
    """Needs the right to mount."""
    small = tmp_path / "small"
    small.mkdir()
    sized = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(small)]
    if subprocess.run(sized, capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        changes = repairs.all_changes(source)  # the changed shard fits, the unchanged one does not
        with pytest.raises(MtpfixError, match=r"cannot keep model-00002.*: there is no space left") as caught:
            repairs.run(changes, small / "out", Link.AUTO)
        assert "run the same command again" in caught.value.hint
        assert not (small / "out").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        done = repairs.run(changes, small / "out", Link.AUTO)
        assert done.resumed
        assert done.kept == {"copy": 1, "earlier": 2}
        repairs.run(changes, tmp_path / "straight", Link.AUTO)
        assert contents(small / "out") == contents(tmp_path / "straight")
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        with pytest.raises(MtpfixError, match="the file system is read-only"):
            repairs.run(changes, small / "second", Link.AUTO)
    finally:
        subprocess.run(["umount", str(small)], check=True)


@pytest.mark.slow
def test_a_metadata_repair_of_a_full_shape_checkpoint_costs_little_beyond_the_scan(tmp_path: Path, out: Path) -> None:
    folder = tmp_path / "full"
    checkpoints.build(folder, "deepseek_v3", "nothing-excluded", "full", shards=163)
    begun = time.perf_counter()
    done = write(repairs.metadata_changes(folder), out)
    assert time.perf_counter() - begun < 3
    assert done.bytes_written < 20_000_000
    assert sum(path.stat().st_size for path in out.glob("*.safetensors")) > 400e9


def test_a_device_that_refuses_while_a_file_is_written_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = iter([OSError(errno.EIO, os.strerror(errno.EIO))])

    def refuse_once(_: int) -> None:  # as the system does: the next who asks is told that all is well
        if (error := next(refusals, None)) is not None:
            raise error

    monkeypatch.setattr("mtpfix.fix.disk._FLUSH", refuse_once)
    pieces = [bytes(FLUSHED)] * 2
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        write_new(tmp_path / "part", 2 * FLUSHED, pieces)


def test_a_large_file_is_written_whole(tmp_path: Path) -> None:
    pieces = [bytes([number]) * (FLUSHED // 2 + number) for number in range(6)]
    content = b"".join(pieces)
    assert write_new(tmp_path / "part", len(content), pieces) == hashlib.sha256(content).hexdigest()
    assert (tmp_path / "part").read_bytes() == content
