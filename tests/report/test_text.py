from __future__ import annotations

import re
from dataclasses import replace

import pytest
from rich.cells import cell_len

from mtpfix.model import Confidence, Format, Outcome, Report, Severity, Verdict
from mtpfix.report.summary import repair_command, size_text
from mtpfix.report.text import render, render_verdict
from tests.report import samples
from tests.report.hostile import HOSTILE

COMMAND = "Repair: "
SGR = re.compile(r"\x1b\[[0-9;]*m")


def hostile_report(name: str) -> Report:
    """Return a failing report in which every text that comes from outside is hostile."""
    report = samples.failing()
    module = f"mtp.{name}"
    finding = replace(
        report.findings[0], module=module, message=name, error=name, evidence=(name,), stored=name, built=name
    )
    draft = samples.model(
        "draft",
        Verdict.FAILS,
        formats=(samples.built(module, Format.NVFP4),),
        events=(samples.event(module, Outcome.CRASH, "KeyError", name),),
        error=f"KeyError: {name}",
    )
    return replace(
        report,
        checkpoint=replace(report.checkpoint, ref=name, revision=name, unread=(name,)),
        architecture=name,
        stored={module: samples.stored(module)},
        engines=(samples.engine(("0.19.1",), "vllm <=0.19.1", draft),),
        findings=(finding,),
        notes=(name,),
    )


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("color", [False, True], ids=["plain", "colour"])
def test_hostile_names_reach_the_screen_as_plain_characters(name: str, color: bool) -> None:
    text = render(hostile_report(name), width=80, color=color)
    left = SGR.sub("", text) if color else text
    assert all(character.isprintable() or character == "\n" for character in left)
    assert len(text) < 20_000
    if name.isprintable() and len(name) < 60:
        assert name in " ".join(left.replace("\n", " ").split())


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
@pytest.mark.parametrize("name", ["", *HOSTILE.values()], ids=["plain", *HOSTILE])
def test_no_line_is_wider_than_the_screen(width: int, name: str) -> None:
    report = hostile_report(name) if name else samples.failing()
    lines = render(report, width=width).split("\n")
    assert max(cell_len(line) for line in lines if not line.startswith(COMMAND)) <= width


def test_the_command_that_repairs_is_one_line_to_copy() -> None:
    (line,) = (line for line in render(samples.failing(), width=40).split("\n") if line.startswith(COMMAND))
    assert line == f"{COMMAND}{repair_command(samples.failing())}"


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_every_cell_is_there_at_every_width(width: int) -> None:
    lines = render(samples.failing(), width=width).split("\n")
    row = [line.split()[1:] for line in lines if line.startswith("mtp.fc ")]
    assert [cell for cells in row for cell in cells if cell != "bf16"] == ["ok", "S", "nvfp4", "C", "nvfp4"]


def test_colour_says_nothing_that_words_do_not_say() -> None:
    plain = render(samples.failing(), width=80)
    assert SGR.sub("", render(samples.failing(), width=80, color=True)).replace(" ", "") == plain.replace(" ", "")


def test_plain_text_holds_no_escape() -> None:
    assert "\x1b" not in render(samples.failing(), width=80)
    assert "\x1b[" in render(samples.failing(), width=80, color=True)


def test_the_verdict_comes_first() -> None:
    lines = render(samples.failing(), width=120).split("\n")
    assert lines[0] == "Qwen3.5-397B-A17B-NVFP4"
    assert lines[1].startswith("MTP branch: present, 1 layer, 1,553 tensors, BF16. vllm >=0.21.0: main model and MTP")


def test_a_finding_shows_its_error_its_evidence_and_its_repair() -> None:
    text = render(samples.failing(), width=120)
    assert "error MTP101 plain-where-packed  vllm <=0.19.1" in text
    assert "raises    AssertionError" in text
    assert samples.SOURCE in text
    assert "(safe, writes 9.3 kB)" in " ".join(text.split())


def test_rows_of_the_main_model_appear_only_when_something_is_wrong() -> None:
    report = samples.clean()
    good = samples.model("target", formats=(samples.built("lm_head", Format.BF16),))
    bad = replace(good, verdict=Verdict.SILENT, events=(samples.event("lm_head", Outcome.SILENT),))
    draft = report.engines[0].prediction.draft
    assert "lm_head" not in render(replace(report, engines=(samples.engine(("0.32.0",), "vllm 0.32.0", draft, good),)))
    assert "lm_head" in render(replace(report, engines=(samples.engine(("0.32.0",), "vllm 0.32.0", draft, bad),)))


def test_a_table_of_releases_that_build_nothing_names_no_modules() -> None:
    report = samples.clean()
    refused = samples.model("target", Verdict.FAILS, error="ValueError")
    engines = (samples.engine(("0.16.0",), "vllm 0.16.0", samples.model("draft", Verdict.UNKNOWN), refused),)
    text = render(replace(report, engines=(*report.engines, *engines)), width=40)
    assert (text.count("FAILS"), text.count("mtp.fc"), text.count("main model  ")) == (1, 1, 2)


def test_alike_modules_share_a_row() -> None:
    text = render(samples.clean(), width=120)
    assert "mtp.layers.0.mlp.experts.{0..511}.{down,gate,up}_proj" in text
    assert "mtp.layers.0.self_attn.{k,o,q,v}_proj" in text


def test_many_rows_are_cut_to_those_that_are_wrong_unless_asked_for() -> None:
    report = samples.clean()
    names = [f"mtp.layers.0.part{chr(97 + number // 26)}{chr(97 + number % 26)}.x" for number in range(100)]
    packed = tuple(samples.built(name, Format.BF16) for name in ("mtp.fc", *names))
    stored = {name: samples.stored(name, Format.FP8 if name[-3] < "n" else Format.BF16) for name in ("mtp.fc", *names)}
    draft = samples.model("draft", Verdict.SILENT, formats=packed, events=(samples.event("mtp.fc", Outcome.SILENT),))
    report = replace(report, stored=stored, engines=(samples.engine(("0.32.0",), "vllm 0.32.0", draft),))
    short, whole = render(report, width=80), render(report, width=80, verbose=True)
    assert "mtp.fc" in short
    assert "100 more rows with -v" in " ".join(short.split())
    assert "partaa" not in short
    assert "partaa" in whole


def test_an_incomplete_report_says_so_before_all_else() -> None:
    report = samples.clean()
    report = replace(report, complete=False, checkpoint=replace(report.checkpoint, unread=("model-00002.safetensors",)))
    text = render(report, width=80)
    assert text.split("\n")[1].startswith("INCOMPLETE: 1 file could not be read.")
    assert "Not read: model-00002.safetensors" in text


def test_derived_releases_are_marked() -> None:
    report = samples.clean()
    draft = report.engines[0].prediction.draft
    derived = samples.engine(("0.32.0",), "vllm 0.32.0", draft, confidence=Confidence.DERIVED)
    assert "derived" not in render(report)
    assert "derived: read from the engine's source, not run" in render(replace(report, engines=(derived,)))


def test_evidence_is_cut_unless_asked_for() -> None:
    report = samples.failing()
    sources = tuple(f"model.py:{line}@0.19.1" for line in range(10))
    report = replace(report, findings=(replace(report.findings[0], evidence=sources),))
    assert "and 6 more" in render(report)
    assert "model.py:9@0.19.1" not in render(report)
    assert "model.py:9@0.19.1" in render(report, verbose=True)


def test_the_end_counts_the_findings() -> None:
    report = samples.failing()
    warning = samples.finding(Severity.WARNING)
    assert "1 error, 1 note. More on a rule: mtpfix explain MTP101" in render(report)
    assert "1 error, 2 warnings" in render(replace(report, findings=(report.findings[0], warning, warning)))
    assert "No findings." in render(samples.clean())


def test_the_verdict_alone_is_one_line() -> None:
    text = render_verdict(samples.failing())
    assert text.count("\n") == 1
    assert text.startswith("Qwen3.5-397B-A17B-NVFP4: MTP branch: present")


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (1000, "1.0 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (416_600_000_000, "416.6 GB"),
        (2_500_000_000_000_000, "2,500.0 TB"),
    ],
)
def test_sizes_read_well(size: int, text: str) -> None:
    assert size_text(size) == text
