"""A repair of the lists that is offered mends what it says: applied to the files, the finding is gone, none is new."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from mtpfix import Report, scan
from mtpfix.model import Finding, Fix, Severity
from tests.checkpoints import VARIANTS, build, plan
from tests.families import EVERY_TIME

LIST_ACTIONS = {"add-entry", "remove-entry"}
UNLISTED = {"missing", "no-mtp", "no-input-scale", "weights-only", "hf-quant-only", "fused-experts", "short-arrays"}
"""Variants whose lists are those of another one, or whose faults no list entry mends."""
EVERY_RUN = dict(zip(VARIANTS, cycle(sorted(EVERY_TIME))))
"""Each variant with the family that is tried every time."""
ALIKE = ("step3p7", "qwen3_5_moe")
"""Families whose lists are those of another one."""
CELLS = [
    pytest.param(family, variant.name, marks=() if family == EVERY_RUN[variant.name] else pytest.mark.slow)
    for number, variant in enumerate(VARIANTS.values())
    for other, family in enumerate(variant.families)
    if variant.name not in UNLISTED and family not in ALIKE
    if family in EVERY_TIME or (number + other) % 3 == 0  # each family with a third of the variants, all in turn
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


def made(root: Path, family: str, variant: str) -> Path:
    folder = root / family / variant
    if not folder.exists():
        build(folder, family, variant, sparse=True)
    return folder


def lists_of(content: dict[str, Any]) -> Iterator[list[str]]:
    """Yield the exclude lists of a configuration file, at its top or in the block of the other file."""
    for block in (content.get("quantization_config"), content.get("quantization")):
        for key in ("ignore", "exclude_modules"):
            if isinstance(block, dict) and isinstance(block.get(key), list):
                yield block[key]


def apply(folder: Path, fix: Fix) -> None:
    for operation in fix.operations:
        content = json.loads((folder / operation.file).read_text())
        (entries,) = lists_of(content)
        if operation.action == "add-entry":
            assert operation.value not in entries
            entries.append(operation.value)
        else:
            entries.remove(operation.value)
        (folder / operation.file).write_text(json.dumps(content))


def list_fixes(report: Report) -> list[tuple[Finding, Fix]]:
    return [
        (finding, fix)
        for finding in report.findings
        for fix in finding.fixes
        if finding.severity is Severity.ERROR
        and fix.operations
        and {operation.action for operation in fix.operations} <= LIST_ACTIONS
    ]


def errors(report: Report) -> set[tuple[str, str | None, str]]:
    """Return the errors, release by release: (rule, role, release), the release empty for the files themselves.

    Whether a module that should be listed is so under another name, or not at all, is one error here.
    """
    return {
        (finding.rule.replace("MTP202", "MTP201"), finding.role, version)
        for finding in report.findings
        if finding.severity is Severity.ERROR
        for version in [one for engine in finding.engines for one in engine.versions] or [""]
    }


def tiny_excludes(family: str) -> list[str]:
    return list(plan(family, "nothing-excluded").excludes)


def test_an_entry_that_excludes_packed_layers_is_offered_to_be_removed(tmp_path: Path) -> None:
    entries = [*tiny_excludes("qwen3_5"), "mtp*", "model.language_model.layers.0.mlp*"]
    build(tmp_path / "model", "qwen3_5", "excluded-glob", excludes=entries)
    before = scan(tmp_path / "model", engines=["vllm==0.32.0"])
    finding, fix = list_fixes(before)[0]
    assert finding.rule == "MTP207"
    assert {(one.action, one.file, one.value) for one in fix.operations} == {
        ("remove-entry", file, entries[-1]) for file in ("config.json", "hf_quant_config.json")
    }
    apply(tmp_path / "model", fix)
    assert scan(tmp_path / "model", engines=["vllm==0.32.0"]).exit_code() == 0


def test_entries_of_layer_20_to_69_do_not_name_layer_2(tmp_path: Path) -> None:
    others = [f"model.layers.{layer}*" for layer in range(20, 70)]
    build(tmp_path / "model", "deepseek_v3", "excluded-glob", excludes=[*tiny_excludes("deepseek_v3"), *others])
    before = scan(tmp_path / "model", engines=["vllm==0.32.0"])
    assert {rule for rule, _, _ in errors(before)} == {"MTP201"}
    (dead,) = [finding for finding in before.findings if finding.rule == "MTP405"]
    assert dead.count >= len(others)
    _, fix = list_fixes(before)[0]
    assert {operation.value for operation in fix.operations} == {"model.layers.2*"}
    apply(tmp_path / "model", fix)
    assert scan(tmp_path / "model", engines=["vllm==0.32.0"]).exit_code() == 0


@pytest.mark.parametrize(("family", "variant"), CELLS)
def test_a_repair_of_the_lists_mends_every_release_it_claims(
    family: str, variant: str, root: Path, tmp_path: Path
) -> None:
    folder = made(root, family, variant)
    before = scan(folder)
    tried = set()
    for finding, fix in list_fixes(before):
        if "still fails" in fix.title or fix.operations in tried:
            continue
        tried.add(fix.operations)
        copy = tmp_path / str(len(tried))
        shutil.copytree(folder, copy)
        apply(copy, fix)
        after = scan(copy)
        assert fix.safe
        assert (finding.rule.replace("MTP202", "MTP201"), finding.role) not in {error[:2] for error in errors(after)}, (
            fix.title
        )
        assert errors(after) < errors(before)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe", "deepseek_v3", "glm4_moe", "step3p5", "nemotron_h"])
def test_the_repair_of_an_unlisted_branch_makes_the_newest_release_load(
    family: str, root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(made(root, family, "nothing-excluded"), folder)
    before = scan(folder, engines=["vllm==0.32.0"])
    assert before.exit_code() == 1
    apply(folder, list_fixes(before)[0][1])
    after = scan(folder, engines=["vllm==0.32.0"])
    assert after.exit_code() == 0
    assert not errors(after)


def test_a_repair_edits_both_files_and_says_how_much_it_writes(root: Path) -> None:
    folder = made(root, "qwen3_5", "nothing-excluded")
    _, fix = list_fixes(scan(folder))[0]
    assert {operation.file for operation in fix.operations} == {"config.json", "hf_quant_config.json"}
    sizes = sum((folder / file).stat().st_size for file in ("config.json", "hf_quant_config.json"))
    assert sizes < fix.bytes_written < sizes + 1000


def test_a_repair_is_not_written_where_the_entry_already_is(root: Path) -> None:
    _, fix = list_fixes(scan(made(root, "qwen3_5", "conflict")))[0]
    assert {operation.file for operation in fix.operations} == {"config.json"}


def test_a_clean_checkpoint_is_offered_nothing(root: Path) -> None:
    report = scan(made(root, "qwen3_5", "excluded-glob"), engines=["vllm==0.32.0"])
    assert not [fix for finding in report.findings for fix in finding.fixes]
