from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import deserialize

from mtpfix.checkpoint.header import DTYPE_BITS
from mtpfix.errors import FormatError, MtpfixError
from mtpfix.fix.changes import Buffer, Changes, EditedFile, EditedShard, NewShard, NewTensor, RemovedFile
from mtpfix.fix.index import with_index
from mtpfix.fix.shard import CHUNK, edit_layout, new_layout, produce, stored_tensor
from mtpfix.fix.snapshot import take_snapshot
from tests import checkpoints

INDEX = "model.safetensors.index.json"
READ: Any = deserialize


def new(name: str, dtype: str = "F32", shape: tuple[int, ...] = (2,), fill: int = 7) -> NewTensor:
    def read() -> Iterator[Buffer]:
        data = bytes([fill]) * tensor.bytes
        yield data[:3]
        yield memoryview(data)[3:]

    tensor = NewTensor(name, dtype, shape, f"{fill} everywhere", read)
    return tensor


def written(path: Path, change: EditedShard) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return b"".join(bytes(piece) for piece in produce(edit_layout(descriptor, change), descriptor))
    finally:
        os.close(descriptor)


def contents(raw: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """What the official reader says."""
    return {name: (value["dtype"], list(value["shape"]), bytes(value["data"])) for name, value in READ(raw)}


def header(raw: bytes) -> dict[str, Any]:
    value = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert isinstance(value, dict)
    return value


names = st.sampled_from(["a", "b.weight", "b.weight_scale", "é", "layers.0.x", "layers.1.x", "z" * 40])
dtypes = st.sampled_from(["U8", "F8_E4M3", "BF16", "F32", "I64"])
tensors = st.dictionaries(names, st.tuples(dtypes, st.lists(st.integers(0, 5), max_size=3)), max_size=6)


@settings(max_examples=80, deadline=None)
@given(tensors, tensors, st.data())
def test_the_official_reader_finds_what_was_asked_for(
    tmp_path_factory: pytest.TempPathFactory, old: dict[str, Any], fresh: dict[str, Any], data: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "property.safetensors"
    checkpoints.write_shard(path, (checkpoints.Tensor(name, kind, tuple(shape)) for name, (kind, shape) in old.items()))
    raw = path.read_bytes()
    before = contents(raw)
    drop = data.draw(st.sets(st.sampled_from(sorted(old)))) - fresh.keys() if old else set()
    put = tuple(new(name, kind, tuple(shape)) for name, (kind, shape) in fresh.items())
    result = written(path, EditedShard(path.name, tuple(sorted(drop)), put))
    expected = {name: value for name, value in before.items() if name not in drop and name not in fresh}
    expected |= {one.name: (one.dtype, list(one.shape), b"\7" * one.bytes) for one in put}
    assert contents(result) == expected
    assert header(result)["__metadata__"] == header(raw)["__metadata__"]
    untouched = [name for name in before if name not in drop and name not in fresh]
    assert [name for name in header(result) if name in untouched] == [name for name in header(raw) if name in untouched]
    length = int.from_bytes(result[:8], "little")
    assert length % 8 == 0
    for name, entry in header(result).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % (DTYPE_BITS[entry["dtype"]] // 8) == 0


def test_a_shard_that_does_not_change_keeps_its_bytes(tmp_path: Path) -> None:
    checkpoints.build(tmp_path, "qwen3_5")
    for path in tmp_path.glob("*.safetensors"):
        assert written(path, EditedShard(path.name)) == path.read_bytes()


def write_raw(path: Path, head: dict[str, Any], data: bytes) -> None:
    text = json.dumps(head).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_order_metadata_and_unknown_fields_stay(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    head = {
        "z": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8], "note": "kept"},
        "__metadata__": {"format": "pt", "é": "\n"},
        "gone": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "a": {"shape": [2], "data_offsets": [8, 12], "dtype": "BF16"},
    }
    write_raw(path, head, b"GONEzzzzaaaa")
    result = header(written(path, EditedShard(path.name, ("gone",))))
    assert list(result) == ["z", "__metadata__", "a"]
    assert result["z"] == {"dtype": "U8", "shape": [4], "data_offsets": [0, 4], "note": "kept"}
    assert list(result["a"]) == ["shape", "data_offsets", "dtype"]
    assert result["__metadata__"] == head["__metadata__"]


def test_data_that_would_lose_its_alignment_are_put_in_order(tmp_path: Path) -> None:
    path = tmp_path / "unordered.safetensors"
    head = {
        "bytes": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "odd": {"dtype": "U8", "shape": [3], "data_offsets": [4, 7]},
        "one": {"dtype": "U8", "shape": [1], "data_offsets": [7, 8]},
        "numbers": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
    }
    write_raw(path, head, b"bbbbooo1nnnn")
    result = written(path, EditedShard(path.name, ("one",)))
    assert header(result)["numbers"]["data_offsets"] == [0, 4]
    assert list(header(result)) == ["bytes", "odd", "numbers"]
    assert contents(result)["odd"][2] == b"ooo"
    aligned = written(path, EditedShard(path.name, ("bytes",)))  # a whole number of float32: nothing moves
    assert header(aligned)["numbers"]["data_offsets"] == [4, 8]


def test_a_new_shard_is_ordered_as_by_the_official_writer(tmp_path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save

    arrays = {"b": np.full(3, 1, "uint8"), "c": np.full(2, 2, "float32"), "a": np.full(2, 3, "float32")}
    official = save(arrays, {"format": "pt"})
    kinds = {"uint8": "U8", "float32": "F32"}
    mine = tuple(
        NewTensor(name, kinds[str(array.dtype)], array.shape, "", lambda array=array: [array.tobytes()])  # type: ignore[misc]
        for name, array in arrays.items()
    )
    assert b"".join(bytes(piece) for piece in produce(new_layout(NewShard("n.safetensors", mine)), None)) == official


def test_memory_is_bounded_by_a_chunk(tmp_path: Path) -> None:
    path = tmp_path / "large.safetensors"
    big = checkpoints.Tensor("big", "U8", (5, CHUNK))
    checkpoints.write_shard(path, [big, checkpoints.Tensor("small", "U8", (1,))], sparse=True)
    descriptor = os.open(path, os.O_RDONLY)
    layout = edit_layout(descriptor, EditedShard(path.name, ("small",), (new("more", "U8", (3 * CHUNK,)),)))
    assert max(len(piece) for piece in produce(layout, descriptor)) == CHUNK
    os.close(descriptor)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (EditedShard("s.safetensors", ("absent",)), 'holds no tensor "absent"'),
        (EditedShard("s.safetensors", ("a", "a")), '"a" is changed twice'),
        (EditedShard("s.safetensors", ("a",), (new("a"),)), '"a" is changed twice'),
        (EditedShard("s.safetensors", (), (new("x", "F7"),)), "no tensor that safetensors can hold"),
        (EditedShard("s.safetensors", (), (new("__metadata__"),)), "no tensor that safetensors can hold"),
    ],
)
def test_a_change_that_does_not_fit_is_refused(tmp_path: Path, change: EditedShard, fault: str) -> None:
    path = tmp_path / change.name
    checkpoints.write_shard(path, [checkpoints.Tensor("a", "F32", (1,))])
    with pytest.raises(MtpfixError, match=fault):
        written(path, change)


@pytest.mark.parametrize(("count", "fault"), [(7, "fewer than its 8 bytes"), (9, "more than its 8 bytes")])
def test_a_tensor_that_yields_too_few_or_too_many_bytes_is_refused(count: int, fault: str) -> None:
    wrong = NewTensor("a", "F32", (2,), "", lambda: [bytes(count)])
    with pytest.raises(MtpfixError, match=fault):
        list(produce(new_layout(NewShard("n.safetensors", (wrong,))), None))


def test_a_stored_tensor_is_taken_byte_by_byte_under_another_name(tmp_path: Path) -> None:
    checkpoints.write_shard(tmp_path / "base.safetensors", [checkpoints.Tensor("mtp.fc.weight", "BF16", (4, 6))])
    expected = contents((tmp_path / "base.safetensors").read_bytes())["mtp.fc.weight"]
    taken = stored_tensor(tmp_path, "base.safetensors", "mtp.fc.weight", as_name="model.mtp.fc.weight", origin="o/n@r")
    assert (taken.name, taken.dtype, list(taken.shape)) == ("model.mtp.fc.weight", *expected[:2])
    assert b"".join(taken.read()) == expected[2]
    assert taken.recipe == "the bytes of mtp.fc.weight in o/n@r:base.safetensors at 0"
    with pytest.raises(FormatError, match="holds no tensor"):
        stored_tensor(tmp_path, "base.safetensors", "absent")


# --------------------------------------------------------------------------------------------------- index


def index_after(folder: Path, *files: Any, rebuild: bool = False) -> dict[str, Any] | None:
    changes = with_index(Changes(take_snapshot(folder), files), rebuild=rebuild)
    for change in changes.files:
        if isinstance(change, EditedFile) and change.name == INDEX:
            value = json.loads(change.content)
            assert isinstance(value, dict)
            return value
    return None


def test_the_index_follows_the_shards(tmp_path: Path) -> None:
    checkpoints.build(tmp_path, "qwen3_5", "excluded-glob")
    old = json.loads((tmp_path / INDEX).read_text())
    shards = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    gone = next(name for name, file in old["weight_map"].items() if file == shards[0])
    size = len(contents((tmp_path / shards[0]).read_bytes())[gone][2])
    index = index_after(
        tmp_path,
        EditedShard(shards[0], (gone,), (new("mtp.new", "U8", (5,)),)),
        NewShard("model-mtp.safetensors", (new("mtp.more", "U8", (3,)),)),
    )
    assert index is not None
    expected = {name: file for name, file in old["weight_map"].items() if name != gone}
    expected |= {"mtp.new": shards[0], "mtp.more": "model-mtp.safetensors"}
    assert list(index["weight_map"].items()) == sorted(expected.items())
    assert index["metadata"]["total_size"] == old["metadata"]["total_size"] - size + 8


def test_an_index_that_needs_no_change_is_left_alone(tmp_path: Path) -> None:
    checkpoints.build(tmp_path, "qwen3_5")
    assert index_after(tmp_path, EditedFile("config.json", b"{}")) is None
    assert index_after(tmp_path, rebuild=True) is None
    shard = min(tmp_path.glob("*.safetensors")).name
    assert index_after(tmp_path, EditedShard(shard)) is None


def test_a_dropped_copy_leaves_the_name_with_the_file_that_still_holds_it(tmp_path: Path) -> None:
    one, two = (checkpoints.Tensor(name, "F32", (1,)) for name in ("a", "b"))
    checkpoints.write_shard(tmp_path / "1.safetensors", [one, two])
    checkpoints.write_shard(tmp_path / "2.safetensors", [one])
    (tmp_path / INDEX).write_text('{"weight_map": {"b": "1.safetensors", "a": "2.safetensors"}}')
    assert index_after(tmp_path, RemovedFile("2.safetensors")) == {
        "weight_map": {"b": "1.safetensors", "a": "1.safetensors"}
    }


def test_a_rebuilt_index_says_where_everything_lies(tmp_path: Path) -> None:
    checkpoints.build(tmp_path, "deepseek_v3")
    right = json.loads((tmp_path / INDEX).read_text())
    wrong = {**right["weight_map"], "stale": "absent.safetensors"}
    del wrong[next(iter(wrong))]
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": wrong}))
    assert index_after(tmp_path, rebuild=True) == right
    (tmp_path / INDEX).write_text("{damaged")
    assert index_after(tmp_path, rebuild=True) == right
    with pytest.raises(FormatError, match="not JSON"):
        index_after(tmp_path, NewShard("n.safetensors", (new("x"),)))
    (tmp_path / INDEX).unlink()
    assert index_after(tmp_path, rebuild=True) == right


def test_a_folder_of_one_shard_gets_an_index_with_its_second(tmp_path: Path) -> None:
    checkpoints.build(tmp_path, "qwen3_5", shards=1)
    assert index_after(tmp_path, EditedShard("model.safetensors")) is None
    index = index_after(tmp_path, NewShard("model-mtp.safetensors", (new("mtp.x"),)))
    assert index is not None
    assert index["weight_map"]["mtp.x"] == "model-mtp.safetensors"
    assert set(index["weight_map"].values()) == {"model.safetensors", "model-mtp.safetensors"}
    assert index["metadata"]["total_size"] > 8
