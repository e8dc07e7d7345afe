from __future__ import annotations

import difflib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpfix.errors import FormatError
from mtpfix.fix.splice import same, splice

PUBLISHED = """{
    "producer": {
        "name": "modelopt",
        "version": "0.39.0"
    },
    "quantization": {
        "quant_algo": "NVFP4",
        "exclude_modules": [
            "lm_head",
            "model.embed_tokens",
            "model.layers.61*"
        ]
    }
}
"""

scalars = (
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_infinity=True) | st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=20,
)
entries = st.sampled_from(["lm_head", "mtp*", "model.norm", "é\n", "", "\U0001f600"])


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """Another value that has much in common with the first, in the same order."""
    match value:
        case dict():
            kept: dict[str, Any] = {}
            for key, content in value.items():
                if draw(st.integers(0, 5)) == 0:
                    kept.setdefault("new " + draw(st.text(max_size=3)), draw(values))
                if draw(st.integers(0, 5)):
                    kept[key] = draw(changed(content))
            return kept | draw(st.dictionaries(st.text(max_size=5), values, max_size=1))
        case list():
            result = []
            for content in value:
                if draw(st.integers(0, 5)) == 0:
                    result.append(draw(values))
                if draw(st.integers(0, 5)):
                    result.append(draw(changed(content)))
            return result + draw(st.lists(entries, max_size=2))
        case _:
            return draw(values) if draw(st.integers(0, 9)) == 0 else value


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Any, Any]:
    value = draw(values)
    return value, draw(changed(value))


styles = st.sampled_from([(None, None), (2, None), (4, None), ("\t", None), (0, None), (None, (",", ":")), (1, None)])


@settings(max_examples=80, deadline=None)
@given(pairs(), styles, st.booleans(), st.sampled_from(["", "\n", "\n\n", " "]))
def test_a_file_in_one_style_comes_out_as_if_written_in_it(
    pair: tuple[Any, Any], style: tuple[Any, Any], crlf: bool, end: str
) -> None:
    indent, separators = style
    first, second = ({"first": [0, {"key": 1}], "value": value} for value in pair)

    def written(value: Any) -> bytes:
        text = json.dumps(value, indent=indent, separators=separators) + end
        return text.replace("\n", "\r\n" if crlf else "\n").encode()

    result = splice(written(first), second, "config.json")
    assert same(json.loads(result), second)
    assert result == written(second) or list(_orders(json.loads(result))) != list(_orders(second))


def _orders(value: Any) -> Any:
    """The order of keys, which a splice keeps even where the wanted value has another."""
    if isinstance(value, dict):
        yield tuple(value)
        for key in sorted(value):
            yield from _orders(value[key])
    elif isinstance(value, list):
        for content in value:
            yield from _orders(content)


@st.composite
def untidy(draw: st.DrawFn, value: Any) -> str:
    """JSON with white space anywhere, escapes nobody needs, and keys that stand twice."""
    space = st.sampled_from(["", "", " ", "\n", "\t", "\r\n", "\n   "])

    def text(string: str) -> str:
        if draw(st.integers(0, 3)) == 0:
            units = string.encode("utf-16-be", "surrogatepass").hex()
            return '"' + "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4)) + '"'
        return json.dumps(string, ensure_ascii=bool(draw(st.booleans())))

    match value:
        case dict():
            members = [
                f"{draw(space)}{text(key)}{draw(space)}:{draw(space)}{draw(untidy(content))}{draw(space)}"
                for key, content in value.items()
            ]
            if value and draw(st.integers(0, 4)) == 0:
                members.insert(0, f"{text(draw(st.sampled_from(list(value))))}: [0, 1]")
            return "{" + (",".join(members) or draw(space)) + "}"
        case list():
            items = [f"{draw(space)}{draw(untidy(content))}{draw(space)}" for content in value]
            return "[" + (",".join(items) or draw(space)) + "]"
        case str():
            return text(value)
        case _:
            return json.dumps(value)


@settings(max_examples=80, deadline=None)
@given(pairs(), st.data())
def test_an_untidy_file_says_what_is_wanted_afterwards_and_again_before(pair: tuple[Any, Any], data: Any) -> None:
    first, second = pair
    raw = data.draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + data.draw(untidy(first)).encode()
    result = splice(raw, second, "config.json")
    assert same(json.loads(result.decode("utf-8-sig")), second)
    assert splice(raw, first, "config.json") == raw
    assert result.startswith(b"\xef\xbb\xbf") == raw.startswith(b"\xef\xbb\xbf")


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 99), unique=True, min_size=1), st.data())
def test_bytes_outside_the_changed_entries_stay(numbers: list[int], data: Any) -> None:
    gone = data.draw(st.sets(st.sampled_from(numbers)))
    pieces = {number: data.draw(st.sampled_from([" {} ", "\n{}", "{}\t", "\r\n  {}"])) for number in numbers}
    front, back = '{"é" : [1,2 ], "list"  :[', ' ],\n\n"after":{ "x" :1e3 } }  '

    def written(kept: list[int]) -> str:
        return front + ",".join(pieces[number].format(number) for number in kept) + back

    kept = [number for number in numbers if number not in gone]
    result = splice(written(numbers).encode(), {**json.loads(written(numbers)), "list": kept}, "config.json").decode()
    assert result.startswith(front.removesuffix("["))
    assert result.endswith(back.removeprefix(" "))
    inside = result[len(front) :]
    for number in kept:  # between kept neighbours every byte is as it was, where nothing stood between
        place = numbers.index(number)
        if place and numbers[place - 1] in kept:
            before = pieces[numbers[place - 1]].format(numbers[place - 1]).lstrip()
            here = pieces[number].format(number)
            assert before + "," + here.rstrip() in inside


def diff(raw: str, wanted: Any) -> list[str]:
    result = splice(raw.encode(), wanted, "config.json").decode()
    lines = difflib.unified_diff(raw.splitlines(), result.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]


def test_a_diff_shows_the_entries_and_nothing_else() -> None:
    wanted = json.loads(PUBLISHED)
    names = wanted["quantization"]["exclude_modules"]
    wanted["quantization"]["exclude_modules"] = [names[0], "mtp*", *names[1:]]
    assert diff(PUBLISHED, wanted) == ['+            "mtp*",']
    wanted["quantization"]["exclude_modules"] = names[1:]
    assert diff(PUBLISHED, wanted) == ['-            "lm_head",']
    wanted["quantization"]["exclude_modules"] = [*names, "mtp*"]
    assert diff(PUBLISHED, wanted) == [
        '-            "model.layers.61*"',
        '+            "model.layers.61*",',
        '+            "mtp*"',
    ]


def test_a_new_list_takes_the_form_of_the_file() -> None:
    wanted = json.loads(PUBLISHED)
    wanted["quantization"]["group_size"] = 16
    wanted["more"] = {"empty": [], "list": ["a"]}
    assert splice(PUBLISHED.encode(), wanted, "x").decode() == json.dumps(wanted, indent=4) + "\n"
    wanted["quantization"]["exclude_modules"] = []
    emptied = splice(PUBLISHED.encode(), wanted, "x")
    assert b'"exclude_modules": [],' in emptied
    wanted["quantization"]["exclude_modules"] = ["a", "b"]
    assert splice(emptied, wanted, "x").decode() == json.dumps(wanted, indent=4) + "\n"


def test_a_list_in_one_line_stays_in_one_line() -> None:
    raw = '{\n  "ignore": ["lm_head"],\n  "other": [ "a", "b" ]\n}'
    result = splice(raw.encode(), {"ignore": ["lm_head", "mtp*"], "other": ["a", "b", "c"]}, "x").decode()
    assert result == '{\n  "ignore": ["lm_head", "mtp*"],\n  "other": [ "a", "b", "c" ]\n}'


def test_of_repeated_keys_the_last_is_changed_and_all_are_removed() -> None:
    raw = b'{"a": [1], "b": 0, "a": [2]}'
    assert splice(raw, {"a": [2, 3], "b": 0}, "x") == b'{"a": [1], "b": 0, "a": [2, 3]}'
    assert splice(raw, {"b": 0}, "x") == b'{"b": 0}'


def test_numbers_that_python_would_write_otherwise_stay() -> None:
    raw = b'{"eps": 1e-06, "big": 1.0E+2, "long": 0.10000000000000000001, "list": []}'
    wanted = {**json.loads(raw), "list": ["a"]}
    assert splice(raw, wanted, "x") == raw.replace(b"[]", b'["a"]')


def test_one_is_not_true_and_not_one_point_nought() -> None:
    assert splice(b'{"a": 1, "b": 1}', {"a": True, "b": 1.0}, "x") == b'{"a": true, "b": 1.0}'


def test_a_huge_list_keeps_every_other_byte() -> None:
    names = [f"model.layers.{number}.mlp" for number in range(60_000)]
    raw = json.dumps({"ignore": names}, indent=2).encode()
    wanted = [*names[:10], "mtp*", *names[11:30_000], *names[30_001:], "lm_head"]
    assert splice(raw, {"ignore": wanted}, "x") == json.dumps({"ignore": wanted}, indent=2).encode()


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"a": 1,}', "not JSON"),
        (b"// no\n{}", "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not UTF-8 at byte 0"),
        (b"[" * 200_000 + b"]" * 200_000, "nested too deep"),
        (b'{"a": ' + b"1" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_json_is_told(raw: bytes, fault: str) -> None:
    with pytest.raises(FormatError, match=fault):
        splice(raw, {}, "config.json")


def test_half_of_a_surrogate_pair_stays_escaped() -> None:
    raw = '{"é": "\\ud83d", "list": []}'.encode()
    assert splice(raw, {"é": "\ud83d", "list": ["\ud83d"]}, "x") == raw.replace(b"[]", b'["\\ud83d"]')
