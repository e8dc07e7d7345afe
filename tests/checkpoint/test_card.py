"""What a card or a configuration names as the base model: one repository, or nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtpfix import scan
from mtpfix.checkpoint.card import base_model_of
from mtpfix.report.summary import repair_command
from tests.checkpoints import build

CARD = "---\nlicense: mit\n{}\ntags:\n- nvfp4\n---\n# A model\nbase_model: org/wrong\n"


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("base_model: Qwen/Qwen3.5-397B-A17B", "Qwen/Qwen3.5-397B-A17B"),
        ('base_model: "Qwen/Qwen3.5-397B-A17B"  # quantized', "Qwen/Qwen3.5-397B-A17B"),
        ("base_model:\n- Qwen/Qwen3.5-397B-A17B", "Qwen/Qwen3.5-397B-A17B"),
        ("base_model:\n  - 'Qwen/Qwen3.5-397B-A17B'\nbase_model_relation: quantized", "Qwen/Qwen3.5-397B-A17B"),
        ("base_model: [Qwen/Qwen3.5-397B-A17B]", "Qwen/Qwen3.5-397B-A17B"),
        ("base_model:\n- Qwen/one\n- Qwen/two", ""),
        ("base_model: ../../etc/passwd", ""),
        ("base_model: org/name; rm -rf", ""),
        ("base_model: org/itself", ""),
        ("base_model:", ""),
        ("base_models: Qwen/one", ""),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_card_names_one_base_model_or_none(lines: str, expected: str, end: str) -> None:
    card = CARD.format(lines).replace("\n", end).encode()
    assert base_model_of(card, {}, "org/itself") == expected


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"base_model": "org/base"}, "org/base"),
        ({"_name_or_path": "org/base"}, "org/base"),
        ({"_name_or_path": "/models/base"}, ""),
        ({"_name_or_path": "org/itself"}, ""),
        ({"base_model": ["org/base"]}, ""),
    ],
)
def test_a_configuration_is_asked_where_the_card_is_silent(config: dict[str, Any], expected: str) -> None:
    assert base_model_of(b"# no front matter\nbase_model: org/other\n", config, "org/itself") == expected
    assert base_model_of(b"---\nbase_model: org/card\n---\n", config, "org/itself") == "org/card"


def test_a_scan_suggests_the_base_model_that_the_card_names(tmp_path: Path) -> None:
    build(tmp_path / "model", "qwen3_5", "missing")
    command = repair_command(scan(tmp_path / "model", engines=["vllm"]))
    assert command is not None
    assert command.endswith("--graft BASE_MODEL")
    (tmp_path / "model" / "README.md").write_text(CARD.format("base_model: Qwen/Qwen3.5-9B"))
    command = repair_command(scan(tmp_path / "model", engines=["vllm"]))
    assert command is not None
    assert command.endswith("--graft Qwen/Qwen3.5-9B")
