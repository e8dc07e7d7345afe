from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import safetensors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpfix.checkpoint import header
from mtpfix.checkpoint.header import (
    LfsPointerError,
    collapse,
    fast_path_available,
    parse_header,
    parse_tensors,
    read_header,
    split_expert,
)
from mtpfix.errors import FormatError
from mtpfix.model import Tensor
from tests.checkpoint.headers import FOUR, MALFORMED, ONE, VALID, Found, Malformed, Valid, file_of, one

needs_compiled = pytest.mark.skipif(not fast_path_available(), reason="the compiled reader is not built")
quick = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=["compiled", "python"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    if name == "compiled" and not fast_path_available():
        pytest.skip("the compiled reader is not built")
    monkeypatch.setenv("MTPFIX_PURE_PYTHON", "1" if name == "python" else "")
    assert fast_path_available() is (name == "compiled")
    return name


def official(file: bytes) -> Found | None:
    try:
        found = safetensors.deserialize(file)  # type: ignore[no-untyped-call]
    except safetensors.SafetensorError:
        return None
    return {name: (each["dtype"], tuple(each["shape"])) for name, each in found}


def expanded(tensors: list[Tensor] | tuple[Tensor, ...]) -> dict[str, tuple[str, tuple[int, ...], int]]:
    found = {}
    for tensor in tensors:
        numbers = [None] if tensor.experts is None else tensor.experts
        for number, begin in zip(numbers, tensor.begins, strict=True):
            name = tensor.name if number is None else tensor.name.replace("{}", str(number))
            assert name not in found
            found[name] = (tensor.dtype, tensor.shape, begin)
    return found


def split(file: bytes) -> tuple[bytes, int]:
    length = int.from_bytes(file[:8], "little")
    return file[8 : 8 + length], len(file) - 8 - length


@pytest.mark.parametrize("case", MALFORMED, ids=[case.name for case in MALFORMED])
def test_a_malformed_header_is_refused_with_one_sentence(case: Malformed, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(case.file)
    with pytest.raises(FormatError) as caught:
        read_header(path)
    assert caught.value.message.startswith("m.safetensors: ")
    assert case.says in caught.value.message
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 400
    assert caught.value.hint


@pytest.mark.parametrize("case", MALFORMED, ids=[case.name for case in MALFORMED])
def test_the_official_reader_refuses_it_too_but_for_duplicates(case: Malformed) -> None:
    assert (official(case.file) is not None) is case.official


@pytest.mark.parametrize("case", VALID, ids=[case.name for case in VALID])
def test_an_odd_header_is_read_as_the_official_reader_does(case: Valid, reader: str, tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(case.file)
    read = read_header(path)
    assert [(name, (dtype, shape)) for name, (dtype, shape, _) in expanded(read.tensors).items()] == [
        *case.tensors.items()
    ]
    assert read.metadata == case.metadata
    assert read.size == len(case.file)
    assert read.count == len(case.tensors)
    assert case.tensors == official(case.file)


def test_there_are_enough_cases() -> None:
    assert len(MALFORMED) >= 45
    assert len(VALID) >= 18
    assert len({case.name for case in MALFORMED} | {case.name for case in VALID}) == len(MALFORMED) + len(VALID)


def test_a_git_lfs_pointer_is_called_one(reader: str, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n")
    with pytest.raises(LfsPointerError, match="git-lfs pointer"):
        read_header(path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(
    reader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of(one(), FOUR))
    whole = os.fstat

    def shrunk(descriptor: int) -> os.stat_result:
        status = whole(descriptor)
        os.truncate(path, 20)
        return status

    monkeypatch.setattr(os, "fstat", shrunk)
    with pytest.raises(FormatError, match="became shorter while it was read"):
        read_header(path)


def test_short_reads_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_of(one(), FOUR))
    whole = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, count, offset: whole(descriptor, min(count, 3), offset))
    assert read_header(path).count == 1


def test_a_hostile_name_is_escaped_and_cut(reader: str) -> None:
    text = json.dumps({"\x1b[2J\u202e" + "n" * 500: {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}})
    with pytest.raises(FormatError) as caught:
        parse_header(text.encode(), 4, "a\nb.safetensors")
    assert caught.value.message.isprintable()
    assert r"\x1b[2J\u202e" in caught.value.message
    assert len(caught.value.message) < 400


# ------------------------------------------------------------------------------------------- collapse


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("m.experts.7.up_proj.weight", ("m.experts.{}.up_proj.weight", 7)),
        ("m.experts.0.w", ("m.experts.{}.w", 0)),
        ("m.experts.999999999.w", ("m.experts.{}.w", 999_999_999)),
        ("a.experts.1.b.experts.2.c", ("a.experts.1.b.experts.{}.c", 2)),
        ("a.experts.1.experts.2.c", ("a.experts.1.experts.{}.c", 2)),
        ("a.experts.1.b.experts.x.c", ("a.experts.{}.b.experts.x.c", 1)),
        (".experts.3.", (".experts.{}.", 3)),
        ("m.experts.1000000000.w", None),
        ("m.experts.07.w", None),
        ("m.experts.-1.w", None),
        ("m.experts.7", None),
        ("experts.7.w", None),
        ("m.shared_experts.7.w", None),
        ("m.experts.٣.w", None),
        ("m.experts.7.{}", None),
        ("m.experts.7.w\u202e", None),
        ("", None),
    ],
)
def test_the_expert_number_is_the_last_one(name: str, result: tuple[str, int] | None) -> None:
    assert split_expert(name) == result


def _header_of(rows: list[tuple[str, str, list[int], int]]) -> tuple[bytes, int]:
    entries, offset = {}, 0
    for name, dtype, shape, size in rows:
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    return json.dumps(entries, separators=(",", ":")).encode(), offset


def test_experts_collapse_by_name_dtype_and_shape(reader: str) -> None:
    rows = [(f"m.experts.{expert}.{kind}", "U8", [2], 2) for expert in (10, 2, 1, 0) for kind in ("up", "down")]
    rows += [("m.experts.5.up", "U8", [3], 3), ("m.experts.6.up", "I8", [2], 2), ("n.experts.4.up", "U8", [2], 2)]
    _, tensors = parse_header(*_header_of([*rows, ("m.gate", "U8", [1], 1)]), "s")
    assert [(t.name, t.dtype, t.shape, t.experts and [*t.experts], [*t.begins]) for t in tensors] == [
        ("m.experts.{}.up", "U8", (2,), [0, 1, 2, 10], [12, 8, 4, 0]),
        ("m.experts.{}.down", "U8", (2,), [0, 1, 2, 10], [14, 10, 6, 2]),
        ("m.experts.{}.up", "U8", (3,), [5], [16]),
        ("m.experts.{}.up", "I8", (2,), [6], [19]),
        ("n.experts.{}.up", "U8", (2,), [4], [21]),
        ("m.gate", "U8", (1,), None, [23]),
    ]
    assert {(t.begins.typecode, t.experts.typecode) for t in tensors if t.experts is not None} == {("Q", "I")}


def test_a_far_expert_number_is_kept(reader: str) -> None:
    rows = [(f"m.experts.{expert}.up", "U8", [1], 1) for expert in (999_999_999, 3)]
    _, tensors = parse_header(*_header_of(rows), "s")
    assert [*(tensors[0].experts or ())] == [3, 999_999_999]


def test_collapsing_loses_nothing(reader: str) -> None:
    names = sorted((f"l.{layer}.experts.{e}.w" for layer in range(3) for e in range(70)), key=lambda name: name[::-1])
    rows: list[tuple[str, str, list[int], int]] = [(name, "F32", [], 4) for name in names]
    raw, size = _header_of(rows)
    entries = parse_tensors(raw, size, "s")
    assert expanded(parse_header(raw, size, "s")[1]) == {
        name: (e.dtype, e.shape, e.begin) for name, e in entries.items()
    }


@needs_compiled
def test_what_the_official_writer_writes_is_plain(tmp_path: Path) -> None:
    specs = {
        name: safetensors.TensorSpec(dtype="uint8", shape=[0, 2], data_ptr=0, data_len=0)
        for name in [f"model.layers.{k}.mlp.experts.{e}.up_proj.weight" for k in range(2) for e in range(20)]
        + ["a.b", "c"]
    }
    file = bytes(safetensors.serialize(specs, {"format": "pt"}))
    assert header.compiled_reader().parse_header(*split(file)) is not None


@needs_compiled
def test_the_compiled_reader_declines_what_is_not_plain() -> None:
    compiled = header.compiled_reader()
    for case in MALFORMED:
        raw, size = split(case.file)
        plain = compiled.parse_header(raw, size) if size >= 0 else None
        assert plain is None or plain[0] is not None, case.name  # metadata it leaves to Python


# ------------------------------------------------------------------------------------------ properties


def agree(file: bytes) -> None:
    """Check that both readers and the official one say the same of these bytes."""
    size = len(file) - 8 - int.from_bytes(file[:8], "little")
    if len(file) < 8 or size < 0:
        return
    raw = file[8 : len(file) - size]
    theirs = official(file)
    entries, refusal = None, ""
    try:
        entries = parse_tensors(raw, size, "s")
    except FormatError as error:
        refusal = error.message
    if entries is None:
        assert theirs is None or "stands twice" in refusal
        with pytest.raises(FormatError):
            parse_header(raw, size, "s")
        return
    assert theirs == {name: (entry.dtype, entry.shape) for name, entry in entries.items()}
    tensors = parse_header(raw, size, "s")[1]
    assert tensors == collapse(entries, "s")


SEEDS = [
    *(case.file for case in VALID if len(case.file) < 1000),
    *(case.file for case in MALFORMED if len(case.file) < 1000),
    file_of(
        '{"__metadata__":{"format":"pt"},'
        + ",".join(
            f'"m.experts.{e}.{kind}":{{"dtype":"BF16","shape":[1,2],"data_offsets":[{4 * k},{4 * k + 4}]}}'
            for k, (e, kind) in enumerate((e, kind) for e in (0, 1, 10, 11, 2) for kind in ("up", "down"))
        )
        + "}",
        b"\0" * 40,
    ),
    file_of(
        '{"m.experts.0.s":{"dtype":"F32","shape":[],"data_offsets":[0,4]},'
        '"m.experts.1.s":{"dtype":"F32","shape":[],"data_offsets":[4,8]}}',
        FOUR * 2,
    ),
]
PIECES = [
    *(bytes([byte]) for byte in b'{}[]",:0123456789.-+eE\\/ \n\t\0x\x7f\xc3\xff'),
    *(
        b'"__metadata__":',
        b'"dtype"',
        b'"shape"',
        b'"data_offsets"',
        b'"F32"',
        b'"U8"',
        b'"F4"',
        b"null",
        b"true",
        b"NaN",
    ),
    *(
        b".experts.",
        b".experts.1.",
        b'{"a":"b"}',
        b"[0,4]",
        b"[]",
        b"18446744073709551616",
        b"\\u0061",
        b"\\ud800",
        b"\\n",
    ),
    ONE.encode(),
]


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    file = draw(st.sampled_from(SEEDS))
    raw, size = split(file)
    data = file[len(file) - max(size, 0) :]
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.sampled_from([0, 0, 1, 1, 2, 5, 20])))
        other = draw(st.integers(0, len(raw)))
        piece = draw(st.sampled_from(PIECES) | st.just(raw[other : other + end - start + 3]) | st.binary(max_size=2))
        raw = raw[:start] + piece + raw[end:]
    return file_of(raw, data[: len(data) - draw(st.sampled_from([0, 0, 0, 1]))])


@quick
@given(mutated())
def test_readers_agree_on_mutated_files(file: bytes) -> None:
    agree(file)


_numbers = st.sampled_from(
    [0, 1, 2, 3, 4, 8, 2**31, 2**32, 2**59, 2**61, 2**63, 2**64 - 1, 2**64, -1, 1.5, True, None, "1"]
)
_names = st.sampled_from(["a", "b", "", "é", "{", "m.experts.0.w", "m.experts.1.w", "m.experts.01.w", "__metadata__"])
_dtypes = st.sampled_from([*header.DTYPE_BITS, "F128", "", 1, None, {"F32": None}, {"F32": 1}])


@st.composite
def arbitrary(draw: st.DrawFn) -> bytes:
    """A header that fits together, in which some fields are then replaced by anything."""
    pairs, offset = [], 0
    for _ in range(draw(st.integers(0, 5))):
        dtype = draw(st.sampled_from([*header.DTYPE_BITS]))
        shape: Any = draw(st.lists(st.integers(0, 4), max_size=3))
        bits = header.DTYPE_BITS[dtype]
        for size in shape:
            bits *= size
        fields: dict[str, Any] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + bits // 8]}
        offset += bits // 8
        match draw(st.integers(0, 12)):
            case 0:
                fields["shape"] = draw(st.lists(_numbers, max_size=3))
            case 1:
                fields["data_offsets"] = draw(st.lists(_numbers, max_size=3))
            case 2:
                fields["dtype"] = draw(_dtypes)
            case 3:
                fields[draw(st.sampled_from(["x", "shape ", ""]))] = draw(st.lists(_numbers, max_size=2))
            case 4:
                fields.pop(draw(st.sampled_from([*fields])))
        pairs.append((draw(_names), fields))
    draw(st.randoms(use_true_random=False)).shuffle(pairs)
    spaces = draw(st.sampled_from([(",", ":"), (", ", ": ")]))
    text = ",".join(json.dumps(name) + ":" + json.dumps(fields, separators=spaces) for name, fields in pairs)
    return file_of("{" + text + "}", b"\0" * (offset + draw(st.sampled_from([0, 0, 0, 1]))))


@quick
@given(arbitrary())
def test_readers_agree_on_arbitrary_headers(file: bytes) -> None:
    agree(file)


@needs_compiled
@quick
@given(
    st.lists(
        st.tuples(st.sampled_from(["m", "n"]), st.integers(0, 30), st.sampled_from(["up", "down", "s"])), unique=True
    ),
    st.sampled_from([(",", ":"), (", ", ": ")]),
)
def test_the_compiled_reader_takes_every_order_of_experts(
    members: list[tuple[str, int, str]], spaces: tuple[str, str]
) -> None:
    rows = [(f"{model}.experts.{expert}.{kind}", "U8", [2, 1], 2) for model, expert, kind in members]
    raw, size = _header_of([*rows, ("m.gate", "U8", [1], 1)])
    raw = json.dumps(json.loads(raw), separators=spaces).encode()
    assert header.compiled_reader().parse_header(raw, size) is not None
    assert parse_header(raw, size, "s")[1] == collapse(parse_tensors(raw, size, "s"), "s")
