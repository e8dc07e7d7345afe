from __future__ import annotations

import pytest

from mtpfix.checkpoint.ref import shown
from mtpfix.report.names import in_braces, with_experts
from tests.report.hostile import HOSTILE


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_only_printable_characters_are_shown(name: str) -> None:
    assert shown(name).isprintable()


def test_ordinary_names_are_shown_as_they_are() -> None:
    assert shown("model.layers.61.shared_head.head.weight") == "model.layers.61.shared_head.head.weight"
    assert shown("模型.权重") == "模型.权重"


def test_what_is_escaped_can_be_told_apart() -> None:
    assert shown("a\x1b[31mb") == "a\\x1b[31mb"
    assert shown("a\u202eb") == "a\\u202eb"
    assert shown("a\ud800b") == "a\\ud800b"


def test_the_middle_of_a_long_name_is_left_out() -> None:
    text = shown("a" * 500 + "b" * 500, 100)
    assert text == "a" * 50 + "..." + "b" * 50


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0, 1, 2, 3], "{0..3}"), ([5], "5"), ([7, 0, 1], "{0..1,7}"), (range(512), "{0..511}"), ([1, 3], "{1,3}")],
)
def test_numbers_stand_in_braces(numbers: list[int], text: str) -> None:
    assert in_braces(numbers) == text


def test_experts_stand_in_the_name() -> None:
    assert with_experts("mtp.experts.{}.up_proj", frozenset(range(4))) == "mtp.experts.{0..3}.up_proj"
    assert with_experts("mtp.experts.{}.up_proj", None) == "mtp.experts.*.up_proj"
    assert with_experts("mtp.fc", None) == "mtp.fc"
