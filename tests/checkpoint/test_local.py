from __future__ import annotations

import json
import os
import socket
import stat
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mtpfix.checkpoint import open_checkpoint, read_scalars
from mtpfix.checkpoint.header import fast_path_available
from mtpfix.checkpoint.ref import resolve
from mtpfix.errors import EXIT_NOTHING, FormatError, NothingToCheck, UsageError
from mtpfix.model import Checkpoint, Fault, Problem
from tests.checkpoint.headers import FOUR, file_of, one

INDEX = "model.safetensors.index.json"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


@pytest.fixture(params=["compiled", "python"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    if name == "compiled" and not fast_path_available():
        pytest.skip("the compiled reader is not built")
    monkeypatch.setenv("MTPFIX_PURE_PYTHON", "1" if name == "python" else "")
    return name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete checkpoint of two shards."""
    root = tmp_path / "model"
    root.mkdir()
    (root / "config.json").write_text('{"architectures": ["X"]}')
    write(root / "a.safetensors", {"x": 1.0, "m.experts.0.s": 2.0, "m.experts.1.s": 3.0})
    write(root / "b.safetensors", {"y": 4.0})
    place(
        root,
        {
            "x": "a.safetensors",
            "m.experts.0.s": "a.safetensors",
            "m.experts.1.s": "a.safetensors",
            "y": "b.safetensors",
        },
        16,
    )
    return root


def write(path: Path, values: dict[str, float], gap: int = 0) -> None:
    """Write float32 scalars, in this order, each behind `gap` other bytes."""
    entries: dict[str, Any] = {}
    data = b""
    for name, value in values.items():
        if gap:
            entries[f"gap.{name}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [len(data), len(data) + gap]}
            data += bytes(gap)
        entries[name] = {"dtype": "F32", "shape": [], "data_offsets": [len(data), len(data) + 4]}
        data += struct.pack("<f", value)
    path.write_bytes(file_of(json.dumps(entries, separators=(",", ":")), data))


def place(root: Path, weight_map: dict[str, str], total_size: int) -> None:
    (root / INDEX).write_text(json.dumps({"metadata": {"total_size": total_size}, "weight_map": weight_map}))


def only(checkpoint: Checkpoint) -> Problem:
    (problem,) = checkpoint.problems
    assert problem.message.isprintable()
    assert problem.hint
    return problem


# ---------------------------------------------------------------------------------------- a good folder


def test_a_complete_checkpoint_has_no_problem(folder: Path) -> None:
    read = open_checkpoint(folder)
    assert read.problems == ()
    assert read.unread == ()
    assert read.has_index
    assert read.config == {"architectures": ["X"]}
    assert read.ref == str(folder)
    assert read.root == folder
    assert read.revision is None
    assert [(shard.name, shard.tensors, shard.indexed) for shard in read.shards] == [
        ("a.safetensors", 3, True),
        ("b.safetensors", 1, True),
    ]
    assert read.bytes == sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert read.tensor_count == 4
    assert [(tensor.name, tensor.shard, tensor.count) for tensor in read.tensors] == [
        ("x", "a.safetensors", 1),
        ("m.experts.{}.s", "a.safetensors", 2),
        ("y", "b.safetensors", 1),
    ]


def test_one_file_needs_no_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / "b.safetensors").unlink()
    read = open_checkpoint(str(folder))
    assert read.problems == ()
    assert not read.has_index


def test_the_header_is_where_the_data_begin(folder: Path) -> None:
    for shard in open_checkpoint(folder).shards:
        raw = (folder / shard.name).read_bytes()
        assert shard.header == 8 + int.from_bytes(raw[:8], "little")
        assert shard.size == len(raw)


def test_metadata_is_kept(folder: Path) -> None:
    (folder / "b.safetensors").write_bytes(
        file_of('{"__metadata__":{"format":"pt"},' + one()[1:].replace('"a"', '"y"'), FOUR)
    )
    assert open_checkpoint(folder).shards[1].metadata == {"format": "pt"}


def test_progress_is_told_after_each_shard(folder: Path) -> None:
    told: list[tuple[int, int]] = []
    open_checkpoint(folder, progress=lambda done, of: told.append((done, of)))
    assert told == [(1, 2), (2, 2)]


def test_a_shard_in_a_folder_below_is_read_if_the_index_names_it(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "b.safetensors").rename(folder / "sub" / "b.safetensors")
    index = (folder / INDEX).read_text().replace("b.safe", "sub/b.safe")
    (folder / INDEX).write_text(index)
    read = open_checkpoint(folder)
    assert read.problems == ()
    assert [shard.name for shard in read.shards] == ["a.safetensors", "sub/b.safetensors"]


def test_hidden_files_are_no_shards(folder: Path) -> None:
    (folder / "._a.safetensors").write_bytes(b"\0\5\x16\7")
    assert open_checkpoint(folder).problems == ()


# ------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize("config", [None, "{}"])
def test_a_folder_without_a_checkpoint(tmp_path: Path, config: str | None) -> None:
    if config:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(NothingToCheck) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.exit_code == EXIT_NOTHING
    assert caught.value.hint


def test_an_index_alone_is_a_checkpoint_with_absent_shards(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / f"{name}.safetensors").unlink()
    read = open_checkpoint(folder)
    problem = only(read)
    assert (problem.fault, problem.count, read.shards, read.unread) == (Fault.SHARD_ABSENT, 2, (), ())


@pytest.mark.parametrize(
    ("ref", "says", "hint"),
    [
        ("no/such/folder/here", "there is no folder", "check the path"),
        ("", "is not the name of a folder", "pass the folder"),
        ("a\0b", "is not the name of a folder", "pass the folder"),
        ("x" * 300, "cannot be looked up", "check the path"),
        ("org/name", "nothing is read from the Hugging Face Hub here", "`hf download org/name`"),
        ("org/name@v1.0", "nothing is read from the Hugging Face Hub here", "`hf download org/name --revision v1.0`"),
        ("hf://org/name", "nothing is read from the Hugging Face Hub here", "`hf download org/name`"),
        ("\x1b[31m/x/y", r"\x1b[31m/x/y", "check the path"),
    ],
)
def test_a_reference_that_is_no_folder(
    ref: str, says: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_checkpoint(ref)
    assert says in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.message.isprintable()


def test_a_file_is_no_folder(folder: Path) -> None:
    with pytest.raises(UsageError, match="is a file, not a folder") as caught:
        open_checkpoint(folder / "a.safetensors")
    assert str(folder) in caught.value.hint


def test_a_folder_that_looks_like_a_hub_name_is_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert resolve("org/name") == Path("org/name")


# ------------------------------------------------------------------------------------------- one shard


def test_a_malformed_shard_is_unread(folder: Path) -> None:
    (folder / "b.safetensors").write_bytes(b"\0\0")
    read = open_checkpoint(folder)
    assert only(read).fault is Fault.SHARD_UNREADABLE
    assert only(read).message.startswith("b.safetensors: ")
    assert read.unread == ("b.safetensors",)
    assert [shard.name for shard in read.shards] == ["a.safetensors"]


def test_git_lfs_pointers_are_one_problem(folder: Path) -> None:
    (folder / "a.safetensors").write_text(POINTER)
    (folder / "b.safetensors").write_text(POINTER)
    read = open_checkpoint(folder)
    problem = only(read)
    assert (problem.fault, problem.count) == (Fault.LFS_POINTER, 2)
    assert "git lfs pull" in problem.hint
    assert read.unread == problem.files == ("a.safetensors", "b.safetensors")


@pytest.mark.parametrize("kind", ["folder", "pipe", "socket"])
def test_only_regular_files_are_read(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "b.safetensors"
    path.unlink()
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            monkeypatch.chdir(folder)  # the path of a socket is short
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(path.name)
    read = open_checkpoint(folder)
    assert only(read).fault is Fault.SHARD_UNREADABLE
    assert read.unread == ("b.safetensors",)


def test_a_device_is_not_read(folder: Path) -> None:
    (folder / "b.safetensors").unlink()
    (folder / "b.safetensors").symlink_to("/dev/zero")
    assert only(open_checkpoint(folder)).fault is Fault.PATH_REFUSED


def test_a_shard_without_permission_is_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.open

    def refusing(path: Any, flags: int) -> int:
        if str(path).endswith("b.safetensors"):
            raise PermissionError(13, "Permission denied")
        return whole(path, flags)

    monkeypatch.setattr(os, "open", refusing)
    read = open_checkpoint(folder)
    assert only(read).message == "b.safetensors cannot be read: Permission denied"
    assert read.unread == ("b.safetensors",)


def test_a_shard_that_vanishes_is_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.open

    def removing(path: Any, flags: int) -> int:
        (folder / "b.safetensors").unlink(missing_ok=True)
        return whole(path, flags)

    monkeypatch.setattr(os, "open", removing)
    read = open_checkpoint(folder)
    assert "vanished" in only(read).message
    assert read.unread == ("b.safetensors",)


def test_a_file_is_not_left_open(folder: Path) -> None:
    (folder / "c.safetensors").mkdir()
    (folder / "d.safetensors").write_bytes(b"")
    before = len([*Path("/dev/fd").iterdir()])
    for _ in range(3):
        open_checkpoint(folder)
    assert len([*Path("/dev/fd").iterdir()]) == before


def test_a_shard_is_not_inherited_by_other_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags: list[int] = []
    whole = os.open

    def noting(path: Any, flag: int) -> int:
        flags.append(flag)
        return whole(path, flag)

    monkeypatch.setattr(os, "open", noting)
    open_checkpoint(folder)
    assert flags
    assert all(flag & os.O_CLOEXEC and flag & os.O_NOFOLLOW for flag in flags)


# -------------------------------------------------------------------------------------------- symlinks


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    path = tmp_path / "outside" / "b.safetensors"
    write(path, {"y": 4.0})
    return path


@pytest.mark.parametrize("relative", [True, False])
def test_a_link_out_of_the_folder_is_refused(folder: Path, outside: Path, relative: bool) -> None:
    (folder / "b.safetensors").unlink()
    (folder / "b.safetensors").symlink_to("../outside/b.safetensors" if relative else outside)
    read = open_checkpoint(folder)
    assert only(read).fault is Fault.PATH_REFUSED
    assert read.unread == ("b.safetensors",)


def test_a_link_inside_the_folder_is_followed(folder: Path) -> None:
    (folder / "b.safetensors").rename(folder / "weights")
    (folder / "b.safetensors").symlink_to("weights")
    assert open_checkpoint(folder).problems == ()


def test_a_linked_folder_on_the_way_out_is_refused(folder: Path, outside: Path) -> None:
    (folder / "sub").symlink_to(outside.parent, target_is_directory=True)
    (folder / INDEX).write_text((folder / INDEX).read_text().replace('"b.safe', '"sub/b.safe'))
    (folder / "b.safetensors").unlink()
    read = open_checkpoint(folder)
    assert only(read).fault is Fault.PATH_REFUSED
    assert read.unread == ("sub/b.safetensors",)


@pytest.mark.parametrize("target", ["b.safetensors", "c.safetensors"])
def test_a_loop_of_links_is_unread(folder: Path, target: str) -> None:
    (folder / "b.safetensors").unlink()
    (folder / "b.safetensors").symlink_to(target)
    if target != "b.safetensors":
        (folder / target).symlink_to("b.safetensors")
    read = open_checkpoint(folder)
    assert read.unread[0] == "b.safetensors"
    assert {problem.fault for problem in read.problems} == {Fault.SHARD_UNREADABLE}


def test_a_link_to_nothing_is_unread(folder: Path) -> None:
    (folder / "b.safetensors").unlink()
    (folder / "b.safetensors").symlink_to("gone")
    read = open_checkpoint(folder)
    assert "link to a file that is not there" in only(read).message
    assert read.unread == ("b.safetensors",)


@pytest.mark.parametrize("name", ["config.json", INDEX])
def test_configurations_are_not_followed_out_of_the_folder(folder: Path, outside: Path, name: str) -> None:
    (folder / name).rename(outside.parent / name)
    (folder / name).symlink_to(outside.parent / name)
    read = open_checkpoint(folder)
    assert only(read).fault is (Fault.CONFIG_UNREADABLE if name == "config.json" else Fault.INDEX_UNREADABLE)
    assert "link out of the folder" in only(read).message


def cached(folder: Path, where: Path) -> Path:
    """Return the snapshot of a Hub cache that holds the files of `folder`."""
    repository = where / "models--org--name"
    snapshot = repository / "snapshots" / "0123abcd"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(repository / "blobs" / f"blob{number}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"blob{number}"))
    return snapshot


def test_a_snapshot_of_the_hub_cache_links_into_its_blobs(folder: Path, tmp_path: Path) -> None:
    snapshot = cached(folder, tmp_path / "hub")
    read = open_checkpoint(snapshot)
    assert read.problems == ()
    assert read.tensor_count == 4
    assert read.revision == "0123abcd"


def test_a_snapshot_reached_through_a_link_is_the_same(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "here").symlink_to(cached(folder, tmp_path / "hub"))
    assert open_checkpoint(tmp_path / "here").problems == ()


def test_a_snapshot_does_not_link_into_the_blobs_of_others(folder: Path, outside: Path, tmp_path: Path) -> None:
    snapshot = cached(folder, tmp_path / "hub")
    blobs = tmp_path / "hub" / "models--other--name" / "blobs"
    blobs.mkdir(parents=True)
    outside.rename(blobs / "blob")
    (snapshot / "b.safetensors").unlink()
    (snapshot / "b.safetensors").symlink_to("../../../models--other--name/blobs/blob")
    assert only(open_checkpoint(snapshot)).fault is Fault.PATH_REFUSED


def test_a_folder_called_blobs_is_nothing_special(folder: Path, outside: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    outside.rename(tmp_path / "blobs" / "b")
    (folder / "b.safetensors").unlink()
    (folder / "b.safetensors").symlink_to("../blobs/b")
    assert only(open_checkpoint(folder)).fault is Fault.PATH_REFUSED


# ------------------------------------------------------------------------------- index against shards


def test_index_and_shards_are_compared(folder: Path) -> None:
    place(folder, {"x": "b.safetensors", "y": "b.safetensors", "z": "a.safetensors", "v": "gone.safetensors"}, 0)
    read = open_checkpoint(folder)
    assert {problem.fault: problem.count for problem in read.problems} == {
        Fault.SHARD_ABSENT: 1,
        Fault.TENSOR_ABSENT: 1,
        Fault.TENSOR_UNINDEXED: 2,
        Fault.TENSOR_ELSEWHERE: 1,
    }


def test_a_total_size_of_zero_is_told(folder: Path) -> None:
    (folder / INDEX).write_text((folder / INDEX).read_text().replace('"total_size": 16', '"total_size": 0'))
    assert only(open_checkpoint(folder)).fault is Fault.TOTAL_SIZE


def test_a_shard_the_index_does_not_name_is_read(folder: Path) -> None:
    write(folder / "mtp.safetensors", {"mtp.fc": 1.0})
    read = open_checkpoint(folder)
    assert (only(read).fault, only(read).files) == (Fault.SHARD_UNINDEXED, ("mtp.safetensors",))
    assert not next(shard for shard in read.shards if shard.name == "mtp.safetensors").indexed
    assert "mtp.fc" in {tensor.name for tensor in read.tensors}


def test_a_path_the_index_must_not_name_is_not_read(folder: Path, outside: Path) -> None:
    (folder / "b.safetensors").unlink()
    (folder / INDEX).write_text((folder / INDEX).read_text().replace('"b.safe', '"../outside/b.safe'))
    read = open_checkpoint(folder)
    assert only(read).fault is Fault.PATH_REFUSED
    assert read.unread == ("../outside/b.safetensors",)
    assert "y" not in {tensor.name for tensor in read.tensors}


def test_an_index_that_cannot_be_read_is_one_problem(folder: Path) -> None:
    (folder / INDEX).write_text("{")
    read = open_checkpoint(folder)
    assert only(read).fault is Fault.INDEX_UNREADABLE
    assert not read.has_index
    assert read.tensor_count == 4


@pytest.mark.parametrize(("name", "most"), [(INDEX, 256_000_000), ("config.json", 64_000_000)])
def test_a_file_that_is_too_large_is_not_read(folder: Path, name: str, most: int) -> None:
    os.truncate(folder / name, most + 1)
    problem = only(open_checkpoint(folder))
    assert f"more than {most}" in problem.message
    assert problem.files == (name,)


def test_odd_names_are_told(folder: Path) -> None:
    (folder / INDEX).unlink()
    write(folder / "b.safetensors", {"y{}": 1.0, "m.experts.{}.s": 1.0, "a\x1b[2J": 1.0, "b\u202e": 1.0, "é": 1.0})
    problem = only(open_checkpoint(folder))
    assert problem.fault is Fault.ODD_NAME
    assert problem.names == ("y{}", "m.experts.{}.s", "a\x1b[2J", "b\u202e")
    assert problem.count == 4


# ------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize("name", ["config.json", "hf_quant_config.json"])
@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is not JSON"),
        (b"[]", "is not an object"),
        (b'{"a": \xff}', "is not UTF-8"),
        (b'{"a":' * 100_000, "is nested too deep"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (POINTER.encode(), "is a git-lfs pointer"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_a_problem(folder: Path, name: str, raw: bytes, says: str) -> None:
    (folder / name).write_bytes(raw)
    read = open_checkpoint(folder)
    assert only(read).fault is Fault.CONFIG_UNREADABLE
    assert only(read).message.startswith(f"{name} {says}")
    assert read.tensor_count == 4
    assert read.config == ({} if name == "config.json" else {"architectures": ["X"]})


def test_a_configuration_may_hold_nan_as_transformers_writes_it(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": NaN, "b": -Infinity}')
    read = open_checkpoint(folder)
    assert read.problems == ()
    assert str(read.config["a"]) == "nan"


def test_a_key_that_stands_twice_is_told_and_the_last_counts(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": {"b": 1, "b": 2}}')
    read = open_checkpoint(folder)
    assert (only(read).fault, only(read).names) == (Fault.CONFIG_UNREADABLE, ("b",))
    assert read.config == {"a": {"b": 2}}


def test_a_missing_configuration_is_told_and_tensors_are_read(folder: Path) -> None:
    (folder / "config.json").unlink()
    read = open_checkpoint(folder)
    assert only(read).message == "There is no config.json"
    assert read.config == {}
    assert read.tensor_count == 4


def test_declarations_come_from_both_files(folder: Path) -> None:
    quant = {"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    block = {"quant_method": "modelopt", **quant}
    (folder / "config.json").write_text(json.dumps({"quantization_config": block}))
    (folder / "hf_quant_config.json").write_text(json.dumps({"producer": {"name": "modelopt"}, **quant}))
    files = [declaration.file for declaration in open_checkpoint(folder).declarations]
    assert files == ["config.json", "hf_quant_config.json"]


# --------------------------------------------------------------------------------------------- scalars


@pytest.mark.parametrize("gap", [0, 3, 4096, 5000, 600_000])
def test_scalars_are_read_wherever_they_lie(folder: Path, gap: int) -> None:
    (folder / INDEX).unlink()
    values = {f"m.experts.{expert}.s": float(expert * 10) for expert in (3, 0, 10, 2)}
    write(folder / "b.safetensors", {**values, "y": -0.5}, gap)
    read = open_checkpoint(folder)
    found = read_scalars(read, [tensor for tensor in read.tensors if tensor.dtype == "F32"])
    assert {key: [*numbers] for key, numbers in found.items()} == {
        ("a.safetensors", "x"): [1.0],
        ("a.safetensors", "m.experts.{}.s"): [2.0, 3.0],
        ("b.safetensors", "m.experts.{}.s"): [0.0, 20.0, 30.0, 100.0],
        ("b.safetensors", "y"): [-0.5],
    }


def test_few_bytes_are_read_for_scalars_that_lie_far_apart(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / INDEX).unlink()
    write(folder / "b.safetensors", {"y": 1.0, "z": 2.0}, 3_000_000)
    read = open_checkpoint(folder)
    sizes: list[int] = []
    whole = os.pread

    def noting(descriptor: int, count: int, offset: int) -> bytes:
        sizes.append(count)
        return whole(descriptor, count, offset)

    monkeypatch.setattr(os, "pread", noting)
    read_scalars(read, [tensor for tensor in read.tensors if tensor.name in ("y", "z")])
    assert sizes == [4, 4]


def test_a_scalar_may_have_dimensions_of_one(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / "b.safetensors").write_bytes(file_of(one(shape="[1,1]"), struct.pack("<f", 7.0)))
    read = open_checkpoint(folder)
    assert read_scalars(read, read.tensors[-1:])["b.safetensors", "a"][0] == 7.0


@pytest.mark.parametrize(("dtype", "shape"), [("BF16", "[2]"), ("F32", "[1]")])
def test_what_is_no_scalar_is_refused(folder: Path, dtype: str, shape: str) -> None:
    (folder / INDEX).unlink()
    (folder / "b.safetensors").write_bytes(file_of(one(f'"{dtype}"', shape), FOUR))
    read = open_checkpoint(folder)
    tensor = read.tensors[-1]
    if dtype == "F32":
        assert read_scalars(read, [tensor])
        (folder / "b.safetensors").unlink()
        with pytest.raises(FormatError, match=r"b\.safetensors cannot be read"):
            read_scalars(read, [tensor])
    else:
        with pytest.raises(FormatError, match="is not one float32 number"):
            read_scalars(read, [tensor])


def test_a_file_that_changed_since_is_refused(folder: Path) -> None:
    read = open_checkpoint(folder)
    with (folder / "b.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(FormatError, match="the file changed"):
        read_scalars(read, [read.tensors[-1]])


# -------------------------------------------------------------------------------------- a whole process


def test_reading_needs_neither_torch_nor_the_network_client(folder: Path, reader: str) -> None:
    code = (
        "import sys; from mtpfix.checkpoint import open_checkpoint; open_checkpoint(sys.argv[1]);"
        "print([m for m in ('torch', 'numpy', 'safetensors', 'rich', 'typer', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_nothing_is_written(folder: Path) -> None:
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    for path in (*folder.iterdir(), folder):
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    open_checkpoint(folder)
    assert before == {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    folder.chmod(0o755)
