"""Every format, over the same reports: valid for its reader, and no foreign text does more than be read."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from mtpfix.errors import MtpfixError
from mtpfix.model import Outcome, Report, Severity, Verdict
from mtpfix.report import github, html, json_v1, markdown, sarif, text
from mtpfix.report.chart import draw_sides
from tests.report import samples
from tests.report.hostile import HOSTILE

REPORTS: dict[str, Callable[[], Report]] = {
    "clean": samples.clean,
    "failing": samples.failing,
    "incomplete": lambda: replace(
        samples.failing(), complete=False, checkpoint=replace(samples.failing().checkpoint, unread=("a.safetensors",))
    ),
    "unknown": lambda: replace(samples.clean(), family=None, architecture=None, engines=(), stored={}),
}
SARIF_LEVELS = {"error", "warning", "note"}


def hostile(name: str) -> Report:
    """Return a failing report in which every text that comes from outside is hostile."""
    report = samples.failing()
    module = f"mtp.{name}"
    finding = replace(
        report.findings[0], module=module, message=f"It stores {name}.", error=name, evidence=(name,), stored=name
    )
    fix = replace(finding.fixes[0], title=f"add {name}")
    form = samples.stored(module)
    return replace(
        report,
        checkpoint=replace(report.checkpoint, ref=name, unread=(name,)),
        architecture=name,
        stored={**report.stored, module: form},
        findings=(replace(finding, fixes=(fix,)),),
        notes=(name,),
    )


class Page(HTMLParser):
    """What a browser would make of a page: elements, their attributes, and the text between them."""

    def __init__(self, source: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.data: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br", "wbr"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        (self.data if self.open and self.open[-1] in ("script", "style") else self.texts).append(data)


def page(report: Report) -> Page:
    parsed = Page(html.render([report]))
    assert parsed.open == []
    return parsed


# ------------------------------------------------------------------------------------------------- SARIF


@pytest.mark.parametrize("name", REPORTS)
def test_sarif_says_each_finding_with_its_rule(name: str) -> None:
    report = REPORTS[name]()
    log: dict[str, Any] = json.loads(sarif.render([report]))
    (run,) = log["runs"]
    assert log["version"] == "2.1.0"
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(run["results"]) == len(report.findings)
    assert {result["level"] for result in run["results"]} <= SARIF_LEVELS
    for result in run["results"]:
        assert result["ruleId"] not in rules or rules[result["ruleIndex"]] == result["ruleId"]
        (place,) = result["locations"]
        assert place["physicalLocation"]["artifactLocation"]["uri"] == "Qwen3.5-397B-A17B-NVFP4/config.json"
    assert run["invocations"][0]["executionSuccessful"] is report.complete


def test_sarif_of_several_checkpoints_is_one_run_and_names_what_was_not_scanned() -> None:
    first = replace(samples.failing(), checkpoint=replace(samples.failing().checkpoint, ref="models/one"))
    error = MtpfixError("models/two is no folder", "name a folder")
    (run,) = json.loads(sarif.render([first, samples.failing()], [("models/two", error)]))["runs"]
    uris = {one["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] for one in run["results"]}
    assert uris == {"models/one/config.json", "Qwen3.5-397B-A17B-NVFP4/config.json"}
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    assert "models/two: models/two is no folder" in [
        one["message"]["text"] for one in invocation["toolExecutionNotifications"]
    ]


def test_sarif_stays_below_the_limit_and_keeps_what_is_gravest() -> None:
    notes = tuple(samples.finding(Severity.NOTE, f"layer.{number}") for number in range(6000))
    report = replace(samples.failing(), findings=(*notes, samples.finding(Severity.ERROR, "grave")))
    (run,) = json.loads(sarif.render([report]))["runs"]
    assert len(run["results"]) == 5000
    assert run["results"][0]["level"] == "error"
    assert any(
        "1,001 of 6,001" in one["message"]["text"] for one in run["invocations"][0]["toolExecutionNotifications"]
    )


def test_sarif_knows_a_finding_again() -> None:
    first, second = (json.loads(sarif.render([samples.failing()]))["runs"][0]["results"] for _ in range(2))
    prints = [result["partialFingerprints"]["mtpfix/v1"] for result in first]
    assert prints == [result["partialFingerprints"]["mtpfix/v1"] for result in second]
    assert len(set(prints)) == len(prints)


@pytest.mark.parametrize(
    ("ref", "uri"),
    [
        ("models/a b", "models/a%20b/config.json"),
        (".", "config.json"),
        ("/srv/ü", "file:///srv/%C3%BC/config.json"),
        ("a:b", "a%3Ab/config.json"),
    ],
)
def test_sarif_places_are_uris(ref: str, uri: str) -> None:
    report = replace(samples.failing(), checkpoint=replace(samples.failing().checkpoint, ref=ref))
    result = json.loads(sarif.render([report]))["runs"][0]["results"][0]
    assert result["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == uri


# ------------------------------------------------------------------------------------------------ GitHub


def decoded(line: str) -> tuple[str, dict[str, str], str]:
    """Return what the runner reads of one line: command, properties, message."""
    hit = re.fullmatch(r"::(\w+) (.*?)::(.*)", line)
    assert hit is not None, line
    undo = {"%0A": "\n", "%0D": "\r", "%3A": ":", "%2C": ",", "%25": "%"}

    def plain(value: str) -> str:
        return re.sub("%0A|%0D|%3A|%2C|%25", lambda found: undo[found[0]], value)

    properties = dict(pair.split("=", 1) for pair in hit[2].split(","))
    return hit[1], {key: plain(value) for key, value in properties.items()}, plain(hit[3])


def test_annotations_say_file_rule_and_repair() -> None:
    lines = [decoded(line) for line in github.render(samples.failing()).splitlines()]
    assert [line[0] for line in lines] == ["notice", "error", "notice"]
    _, properties, message = lines[1]
    assert properties == {
        "file": "Qwen3.5-397B-A17B-NVFP4/config.json",
        "line": "1",
        "title": "MTP101 plain-where-packed",
    }
    assert "repair: add" in message


def test_annotations_beyond_what_is_shown_are_told_in_one() -> None:
    many = tuple(samples.finding(Severity.ERROR, f"layer.{number}") for number in range(25))
    lines = [decoded(line) for line in github.render(replace(samples.failing(), findings=many)).splitlines()]
    errors = [line for line in lines if line[0] == "error"]
    assert len(errors) == 10
    assert errors[-1][2].startswith("16 more of these")


# ---------------------------------------------------------------------------------------------- Markdown


def test_markdown_shows_verdict_table_findings_and_command() -> None:
    written = markdown.render(samples.failing())
    assert "| MTP draft |  | loads | **silent** | **fails** |" in written
    assert "| `mtp.fc` | bf16 | ok | **silent**, builds nvfp4 | **raises**, builds nvfp4 |" in written
    assert "### error MTP101 plain-where-packed" in written
    assert (
        "```sh\nmtpfix patch Qwen3.5-397B-A17B-NVFP4 --out Qwen3.5-397B-A17B-NVFP4-repaired --for 'vllm>=0.18.1'\n```"
        in written
    )
    assert "Repair" not in markdown.render(samples.clean())


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_markdown_has_no_markup_from_outside(name: str) -> None:
    written = markdown.render(hostile(name))
    outside = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", re.sub(r"(?ms)^(`{3,})sh\n.*?^\1$", "", written))
    assert not re.search(r"(?<!\\)[\[<]", outside)
    assert "://" not in outside
    assert not re.search(r"@\w", outside)


# -------------------------------------------------------------------------------------------------- HTML


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_asks_for_nothing(name: str) -> None:
    parsed = page(REPORTS[name]())
    for tag, attributes in parsed.elements:
        assert not {"src", "href", "style", "onclick", "onload"} & attributes.keys(), tag
    policies = [one["content"] for tag, one in parsed.elements if one.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert (policies[0] or "").startswith("default-src 'none';")


def test_a_page_shows_every_module_of_the_branch_and_what_a_release_makes_of_it() -> None:
    parsed = page(samples.failing())
    data = json.loads(next(text for text in parsed.data if text.startswith("{")))
    modules = {cell[0] for cell in data["cells"]}
    assert {"mtp.fc", "mtp.layers.0.self_attn.q_proj", "mtp.layers.0.mlp.experts.{0..511}.gate_proj"} <= modules
    (fc,) = (cell for cell in data["cells"] if cell[0] == "mtp.fc")
    crash, silent, ok = (data["outcomes"].index(word) for word in ("raises", "silently wrong", "as stored"))
    nvfp4, bf16 = data["formats"].index("nvfp4"), data["formats"].index("bf16")
    assert fc[3] == [16 * crash + nvfp4 + 1, 16 * silent + nvfp4 + 1, 16 * ok + bf16 + 1]
    assert [step["version"] for step in data["steps"]] == ["0.18.1", "0.19.1", "0.20.2", "0.21.0", "0.33.0"]


def test_several_checkpoints_share_a_page() -> None:
    error = MtpfixError("there is no <checkpoint>", "pass a folder")
    parsed = Page(html.render([samples.clean(), samples.failing()], [("gone", error)]))
    assert [tag for tag, _ in parsed.elements].count("h1") == 3
    assert "Not scanned: there is no <checkpoint>" in parsed.texts
    links = [attributes["href"] for tag, attributes in parsed.elements if tag == "a"]
    assert links == ["#report-0", "#report-1"]
    assert {"report-0", "report-1"} <= {str(one.get("id")) for _, one in parsed.elements}


@pytest.mark.parametrize("name", [*HOSTILE.values(), "</script><script>alert(1)</script>", "<!--", '"><img src=x>'])
def test_a_hostile_name_stays_text_on_a_page(name: str) -> None:
    plain, parsed = page(hostile("x")), page(hostile(name))
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in plain.elements]
    assert [sorted(one) for _, one in parsed.elements] == [sorted(one) for _, one in plain.elements]


# ------------------------------------------------------------------------------------------------ the map


def test_the_map_has_a_row_for_a_layer_and_a_column_for_a_projection() -> None:
    (branch, main) = draw_sides(samples.failing())
    assert (branch.role, main.role) == ("draft", "target")
    (chart,) = branch.charts
    assert chart.stack == "mtp.layers"
    assert [layer.name for layer in chart.layers] == ["mtp.layers.0"]
    assert chart.projections == (
        *(f"mlp.experts.{side}_proj" for side in ("down", "gate", "up")),
        *(f"self_attn.{side}_proj" for side in "koqv"),
    )
    (fc,) = branch.outside
    assert [state and state.outcome for state in fc.states] == [Outcome.CRASH, Outcome.SILENT, Outcome.OK]
    assert fc.clashes
    assert [cell.module for cell in main.outside] == ["lm_head"]


# ----------------------------------------------------------------------------------------- every format


FORMATS: dict[str, Callable[[Report], str]] = {
    "text": text.render,
    "json": lambda report: json_v1.render([json_v1.to_document(report)]),
    "sarif": lambda report: sarif.render([report]),
    "github": github.render,
    "markdown": markdown.render,
    "html": lambda report: html.render([report]),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_no_format_passes_on_what_cannot_be_printed(form: str, name: str) -> None:
    written = FORMATS[form](hostile(name))
    allowed = {"\n", "\u200b"} if form == "markdown" else {"\n"}
    assert {character for character in written if not character.isprintable()} <= allowed
    if form == "github":
        assert all(line.startswith("::") for line in written.splitlines())
        assert "##[" not in written
    if form in ("json", "sarif"):
        json.loads(written)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", REPORTS)
def test_every_format_says_when_a_report_is_incomplete(form: str, name: str) -> None:
    written = FORMATS[form](REPORTS[name]())
    said = any(word in written for word in ("INCOMPLETE", "Incomplete", '"complete": false'))
    assert said is (name == "incomplete")


def test_verdicts_have_a_word_in_every_format() -> None:
    for words in (html.WORDS, markdown.WORDS):
        assert set(words) == set(Verdict)
