from __future__ import annotations

import json
from array import array
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtpfix.checkpoint.header import fast_path_available
from mtpfix.checkpoint.index import SAMPLE, Index, compare, parse_index
from mtpfix.checkpoint.ref import PathRefusedError, safe_member
from mtpfix.model import Fault, Problem, Tensor

A, B, C = "a.safetensors", "b.safetensors", "c.safetensors"

quick = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(params=["compiled", "python"], autouse=True)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name = str(request.param)
    if name == "compiled" and not fast_path_available():
        pytest.skip("the compiled reader is not built")
    monkeypatch.setenv("MTPFIX_PURE_PYTHON", "1" if name == "python" else "")
    return name


def index_of(weight_map: Any, total_size: Any = None, **more: Any) -> Index:
    metadata = {} if total_size is None else {"total_size": total_size}
    return parse_index(json.dumps({"metadata": metadata, "weight_map": weight_map, **more}, indent=2).encode())


def tensor(name: str, shard: str, *experts: int) -> Tensor:
    begins = array("Q", range(0, 4 * (len(experts) or 1), 4))
    return Tensor(name, "F32", (), shard, begins, array("I", experts) if experts else None)


def faults(problems: list[Problem] | tuple[Problem, ...]) -> dict[Fault, Problem]:
    found = {problem.fault: problem for problem in problems}
    assert len(found) == len(problems)
    return found


# --------------------------------------------------------------------------------------------- reading


def test_names_are_collapsed_by_file() -> None:
    index = index_of({f"m.experts.{e}.w": A if e < 11 else B for e in range(12)} | {"m.gate": B}, 5)
    assert index == Index(
        usable=True,
        places={
            ("m.experts.{}.w", True): [(A, array("I", range(11))), (B, array("I", [11]))],
            ("m.gate", False): [(B, None)],
        },
        files=(A, B),
        total_size=5,
    )


def test_the_order_of_the_text_does_not_matter() -> None:
    names = {f"m.experts.{e}.{k}": (A, B)[e % 2] for e in range(30) for k in ("up", "down")}
    assert index_of(names).places == index_of(dict(sorted(names.items(), reverse=True))).places


def test_a_literal_brace_is_no_expert() -> None:
    index = index_of({"m.experts.{}.w": A, "m.experts.0.w": B})
    assert index.places == {("m.experts.{}.w", False): [(A, None)], ("m.experts.{}.w", True): [(B, array("I", [0]))]}


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (b"", "is not JSON: expecting value at line 1, column 1"),
        (b"{", "is not JSON"),
        (b"[]", "is not an object"),
        (b"null", "is not an object"),
        (b'{"weight_map": \xff}', "is not UTF-8 at byte 15"),
        (b'{"weight_map": {"a": NaN}}', "NaN is not a number"),
        (b'{"weight_map": {"a": ' + b"9" * 5000 + b"}}", "is not JSON"),
        (b'{"weight_map":' * 100_000, "is nested too deep"),
        (b"{}", "has no weight_map"),
        (b'{"weight_map": null}', "has no weight_map"),
        (b'{"weight_map": []}', "has a weight_map that is not an object"),
        (b'{"weight_map": "x"}', "has a weight_map that is not an object"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "is a git-lfs pointer"),
    ],
)
def test_an_index_that_says_nothing_is_a_problem(raw: bytes, says: str) -> None:
    index = parse_index(raw)
    assert not index.usable
    assert not index.places
    (problem,) = index.problems
    assert problem.fault is Fault.INDEX_UNREADABLE
    assert says in problem.message
    assert problem.message.isprintable()
    assert problem.hint


@pytest.mark.parametrize(
    "raw",
    [
        b'{"weight_map": {"x": "a.safetensors", "x": "b.safetensors"}}',
        b'{"weight_map": {"x": "a.safetensors", "\\u0078": "b.safetensors"}}',
        b'{"weight_map": {"x": "c.safetensors"}, "weight_map": {"x": "b.safetensors"}}',
    ],
)
def test_of_keys_that_stand_twice_the_last_counts_and_it_is_told(raw: bytes) -> None:
    index = parse_index(raw)
    assert index.places == {("x", False): [(B, None)]}
    (problem,) = index.problems
    assert problem.fault is Fault.INDEX_UNREADABLE
    assert "twice" in problem.message


def test_an_expert_that_stands_twice_is_told() -> None:
    index = parse_index(b'{"weight_map": {"m.experts.3.w": "a.safetensors", "m.experts.3.w": "b.safetensors"}}')
    assert index.places == {("m.experts.{}.w", True): [(B, array("I", [3]))]}
    assert index.problems[0].names == ("m.experts.3.w",)


def test_what_is_no_file_name_is_told_and_left_out() -> None:
    index = index_of({"x": A, "y": 1, "z": None, "v": [A], "w": {"file": A}})
    assert index.places == {("x", False): [(A, None)]}
    (problem,) = index.problems
    assert problem.fault is Fault.INDEX_UNREADABLE
    assert problem.names == ("y", "z", "v", "w")
    assert problem.count == 4


@pytest.mark.parametrize(
    ("said", "read"),
    [(7, 7), (7.0, 7), (0, 0), (None, None), (10**30, 10**30)],
    ids=["int", "float", "0", "none", "long"],
)
def test_total_size_may_be_written_as_a_float(said: float | None, read: int | None) -> None:
    index = index_of({"x": A}, said)
    assert index.total_size == read
    assert not index.problems


@pytest.mark.parametrize("said", ["7", True, [], {}, 7.5])
def test_a_total_size_that_is_no_number_is_told(said: Any) -> None:
    index = index_of({"x": A}, said)
    assert index.total_size is None
    assert faults(index.problems).keys() == {Fault.TOTAL_SIZE}


@pytest.mark.parametrize("metadata", [None, [], "x", 3])
def test_metadata_that_is_no_object_says_nothing(metadata: Any) -> None:
    index = index_of({"x": A}, metadata=metadata)
    assert index.usable
    assert index.total_size is None


def test_other_members_are_ignored() -> None:
    assert index_of({"x": A}, format={"deep": [1]}).places == {("x", False): [(A, None)]}


REFUSED = [
    "",
    ".",
    "..",
    "../a.safetensors",
    "x/../../a.safetensors",
    "x/./a.safetensors",
    "x//a.safetensors",
    "x/",
    "/etc/passwd",
    "//host/share/a.safetensors",
    "C:",
    "C:a.safetensors",
    "C:\\a.safetensors",
    "a.safetensors:stream",
    "\\\\host\\share\\a.safetensors",
    "..\\a.safetensors",
    "a\0.safetensors",
    "a\n.safetensors",
    "a\x1b[2J.safetensors",
    "a\x7f.safetensors",
    "a\u202e.safetensors",
    "a\u200b.safetensors",
    "a\u2028.safetensors",
    "a\ud800.safetensors",
    "n" * 256,
    "é" * 128,
    "x/" + "n" * 256 + "/a.safetensors",
]


@pytest.mark.parametrize("name", REFUSED, ids=ascii)
def test_a_path_that_is_not_plain_is_refused(name: str) -> None:
    with pytest.raises(PathRefusedError) as caught:
        safe_member(name)
    assert caught.value.message.isprintable()
    index = index_of({"x": name, "y": A})
    assert index.refused == (name,)
    assert index.files == (A,)
    (problem,) = index.problems
    assert problem.fault is Fault.PATH_REFUSED
    assert problem.message.isprintable()
    assert problem.files == (name,)


@pytest.mark.parametrize(
    "name", ["a.safetensors", "x/a.safetensors", "...", "a..b", "-", "n" * 255, "é" * 127, "模型.safetensors"]
)
def test_a_plain_path_is_not_refused(name: str) -> None:
    assert safe_member(name) == name
    assert index_of({"x": name}).files == (name,)


# ------------------------------------------------------------------------------------------- comparing


def test_agreement_is_silent() -> None:
    index = index_of({f"m.experts.{e}.w": A if e < 2 else B for e in range(4)} | {"m.gate": B}, 20)
    tensors = [tensor("m.experts.{}.w", A, 0, 1), tensor("m.experts.{}.w", B, 2, 3), tensor("m.gate", B)]
    assert compare(index, tensors, {A: 8, B: 12}, ()) == []


def test_one_name_in_two_kinds_of_one_file_is_agreement() -> None:
    index = index_of({f"m.experts.{e}.w": A for e in range(4)})
    tensors = [tensor("m.experts.{}.w", A, 1, 3), tensor("m.experts.{}.w", A, 0, 2)]
    assert compare(index, tensors, {A: 16}, ()) == []


def test_a_shard_that_is_not_there() -> None:
    index = index_of({"x": A, "y": B, "z": C})
    problem = faults(compare(index, [tensor("x", A)], {A: 4}, ()))[Fault.SHARD_ABSENT]
    assert (problem.files, problem.count) == ((B, C), 2)
    assert problem.message == "The index names 2 files that are not there: b.safetensors, c.safetensors"
    assert len(compare(index, [tensor("x", A)], {A: 4}, ())) == 1


def test_what_an_unread_shard_holds_is_left_open() -> None:
    assert compare(index_of({"x": A, "y": B}, 9), [tensor("x", A)], {A: 4}, (B,)) == []


def test_a_shard_the_index_does_not_name() -> None:
    index = index_of({"x": A})
    found = compare(index, [tensor("x", A), tensor("mtp.fc", B), tensor("x", C)], {A: 4, B: 4, C: 4}, ())
    assert found == [*faults(found).values()]
    problem = faults(found)[Fault.SHARD_UNINDEXED]
    assert problem.files == (B, C)
    assert [*faults(found)] == [Fault.SHARD_UNINDEXED]


def test_an_empty_shard_needs_no_index() -> None:
    assert compare(index_of({"x": A}), [tensor("x", A)], {A: 4, B: 0}, ()) == []


def test_a_tensor_that_is_not_there() -> None:
    index = index_of({f"m.experts.{e}.w": A for e in range(4)} | {"y": A})
    problem = faults(compare(index, [tensor("m.experts.{}.w", A, 0, 3)], {A: 8}, ()))[Fault.TENSOR_ABSENT]
    assert problem.names == ("m.experts.1.w", "m.experts.2.w", "y")
    assert problem.count == 3
    assert '"m.experts.1.w" in a.safetensors' in problem.message


def test_a_tensor_the_index_does_not_name() -> None:
    found = compare(index_of({"x": A}), [tensor("x", A), tensor("m.experts.{}.w", A, 5)], {A: 8}, ())
    problem = faults(found)[Fault.TENSOR_UNINDEXED]
    assert (problem.names, problem.files, problem.count, len(found)) == (("m.experts.5.w",), (A,), 1, 1)


def test_a_tensor_in_another_file() -> None:
    found = compare(
        index_of({"x": A, "y": B, "z": A}), [tensor("x", B), tensor("y", B), tensor("z", A)], {A: 4, B: 8}, ()
    )
    problem = faults(found)[Fault.TENSOR_ELSEWHERE]
    assert (problem.names, problem.count, len(found)) == (("x",), 1, 1)
    assert '"x" in b.safetensors, not in a.safetensors' in problem.message


def test_a_tensor_in_two_files() -> None:
    tensors = [tensor("m.experts.{}.w", A, 0, 1), tensor("m.experts.{}.w", B, 1, 2)]
    index = index_of({"m.experts.0.w": A, "m.experts.1.w": A, "m.experts.2.w": B})
    for said in (index, None, parse_index(b"{}")):
        found = compare(said, tensors, {A: 8, B: 8}, ())
        problem = faults(found)[Fault.TENSOR_DUPLICATE]
        assert (problem.names, problem.files, problem.count, len(found)) == (("m.experts.1.w",), (A, B), 1, 1)


def test_a_copy_in_a_file_the_index_leaves_out_is_told_as_a_file() -> None:
    found = compare(index_of({"x": A}), [tensor("x", A), tensor("x", B)], {A: 4, B: 4}, ())
    assert [*faults(found)] == [Fault.SHARD_UNINDEXED]


@pytest.mark.parametrize("said", [0, 7, 9, -8])
def test_a_total_size_that_is_wrong(said: int) -> None:
    problem = faults(compare(index_of({"x": A, "y": B}, said), [tensor("x", A), tensor("y", B)], {A: 4, B: 4}, ()))
    assert f"is {said} bytes, and the tensors it names have 8" in problem[Fault.TOTAL_SIZE].message


def test_a_total_size_follows_from_other_faults() -> None:
    found = compare(index_of({"x": A, "y": A}, 8), [tensor("x", A)], {A: 4}, ())
    assert [*faults(found)] == [Fault.TENSOR_ABSENT]


def test_without_an_index_nothing_is_unindexed() -> None:
    assert compare(None, [tensor("x", A), tensor("y", B)], {A: 4, B: 4}, ()) == []
    assert compare(parse_index(b"[]"), [tensor("x", A), tensor("y", B)], {A: 4, B: 4}, ()) == []


def test_samples_are_capped_and_counts_are_not() -> None:
    index = index_of({f"t{k}": f"f{k}.safetensors" for k in range(100)})
    problem = faults(compare(index, [], {f"f{k}.safetensors": 0 for k in range(100)}, ()))[Fault.TENSOR_ABSENT]
    assert (problem.count, len(problem.names), len(problem.files)) == (100, SAMPLE, SAMPLE)
    absent = faults(compare(index, [], {}, ()))[Fault.SHARD_ABSENT]
    assert (absent.count, len(absent.files)) == (100, SAMPLE)


def test_hostile_names_are_escaped_in_sentences() -> None:
    name = "\x1b]0;x\x07\u202e"
    for problem in compare(
        index_of({name: A, "y": A}), [tensor("\x1b[31m", A), tensor("y", A), tensor("y", B)], {A: 4, B: 4}, ()
    ):
        assert problem.message.isprintable()


# ------------------------------------------------------------------------------------------ properties

_names = st.builds("{}.experts.{}.{}".format, st.sampled_from("mn"), st.integers(0, 12), st.sampled_from(["w", "s"]))
_maps = st.dictionaries(
    _names | st.sampled_from(["g", "", "{}", "é", "x.experts.01.w"]), st.sampled_from([A, B, C]), max_size=30
)


def expanded(index: Index) -> Mapping[str, str]:
    return {
        name if number is None else name.replace("{}", str(number)): file
        for (name, _), places in index.places.items()
        for file, experts in places
        for number in ([None] if experts is None else experts)
    }


@quick
@given(_maps, st.sampled_from([None, 2]), st.booleans())
def test_an_index_is_read_as_it_was_written(weight_map: dict[str, str], indent: int | None, ascii_only: bool) -> None:
    raw = json.dumps({"weight_map": weight_map, "metadata": {"total_size": 3}}, indent=indent, ensure_ascii=ascii_only)
    index = parse_index(raw.encode())
    assert expanded(index) == weight_map
    assert index.files == tuple(sorted(set(weight_map.values())))
    assert not index.problems


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    weight_map = draw(_maps)
    raw = json.dumps(
        {"metadata": {"total_size": 3}, "weight_map": weight_map}, indent=draw(st.sampled_from([None, 1]))
    ).encode()
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(raw)))
        end = min(len(raw), start + draw(st.sampled_from([0, 1, 1, 2, 8, 40])))
        other = draw(st.integers(0, len(raw)))
        piece = draw(
            st.sampled_from(
                [bytes([byte]) for byte in b'{}[]",:\\0/. '] + [b'"metadata"', b'"weight_map":', b'"../x"', b"1e400"]
            )
            | st.just(raw[other : other + 60])
        )
        raw = raw[:start] + piece + raw[end:]
    return raw


@pytest.mark.skipif(not fast_path_available(), reason="the compiled reader is not built")
@quick
@given(mutated())
def test_both_readers_say_the_same(raw: bytes) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MTPFIX_PURE_PYTHON", "1")
        slow = parse_index(raw)
        patch.setenv("MTPFIX_PURE_PYTHON", "")
        assert parse_index(raw) == slow


_tensors = st.lists(
    st.tuples(
        st.sampled_from(["m.experts.{}.w", "n.experts.{}.w"]),
        st.sampled_from([A, B]),
        st.sets(st.integers(0, 4), min_size=1),
    ),
    max_size=4,
    unique_by=lambda row: row[:2],
)


@quick
@given(_maps, _tensors, st.sets(st.sampled_from([A, B, C])))
def test_every_disagreement_is_counted_once(
    weight_map: dict[str, str], rows: list[tuple[str, str, set[int]]], unread: set[str]
) -> None:
    tensors = [tensor(name, shard, *sorted(experts)) for name, shard, experts in rows if shard not in unread]
    held: dict[str, list[str]] = {}
    for each in tensors:
        for number in each.experts or ():
            held.setdefault(each.name.replace("{}", str(number)), []).append(each.shard)
    found = faults(compare(index_of(weight_map), tensors, dict.fromkeys({A, B} - unread, 0), unread))
    files = set(weight_map.values())
    open_ended = unread | (files - {A, B})
    wrong = [n for n, f in weight_map.items() if f not in open_ended and f not in held.get(n, [])]
    expected = {
        Fault.SHARD_ABSENT: len(files & {C} - unread),
        Fault.SHARD_UNINDEXED: len({each.shard for each in tensors} - files),
        Fault.TENSOR_ABSENT: sum(name not in held for name in wrong),
        Fault.TENSOR_ELSEWHERE: sum(name in held for name in wrong),
        Fault.TENSOR_UNINDEXED: sum(
            name not in weight_map and len(files.intersection(shards)) == 1 for name, shards in held.items()
        ),
        Fault.TENSOR_DUPLICATE: sum(len(files.intersection(shards)) > 1 for shards in held.values()),
    }
    assert {fault: problem.count for fault, problem in found.items()} == {f: n for f, n in expected.items() if n}
