from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mtpfix.errors import MtpfixError, NothingToCheck
from mtpfix.model import Format, Outcome, Report, Severity
from mtpfix.report.json_v1 import render, to_document, to_failure
from mtpfix.report.schema import json_schema
from tests.report import samples
from tests.report.hostile import HOSTILE
from tests.report.test_text import hostile_report

FROZEN = Path(__file__).with_name("schema_v1.json")


def documents(*reports: Report) -> Any:
    """Return what a reader of the rendered JSON gets."""
    return json.loads(render([to_document(report) for report in reports]))


def valid(content: Any) -> None:
    """Hold a document against the schema, with no key that the schema does not name."""
    jsonschema.Draft202012Validator(json_schema(closed=True)).validate(content)


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(json_schema())


def test_the_contract_does_not_change_by_accident() -> None:
    assert json_schema() == json.loads(FROZEN.read_text(encoding="utf-8"))


def test_added_keys_do_not_break_readers() -> None:
    content = documents(samples.clean())
    content["later"] = content["checkpoint"]["later"] = 1
    jsonschema.Draft202012Validator(json_schema()).validate(content)
    with pytest.raises(jsonschema.ValidationError):
        valid(content)


@pytest.mark.parametrize("report", [samples.clean(), samples.failing(), replace(samples.clean(), engines=())])
def test_reports_follow_the_schema(report: Report) -> None:
    valid(documents(report))
    valid(documents(report, report))


def test_failures_follow_the_schema() -> None:
    for error in (MtpfixError("no", "try"), NothingToCheck("empty")):
        valid(json.loads(render([to_failure("folder", error)])))
    assert to_failure("folder", NothingToCheck("empty"))["exit_code"] == 3


@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_survive_unchanged_in_ascii(name: str) -> None:
    report = hostile_report(name)
    text = render([to_document(report)])
    assert text.isascii()
    assert all(character.isprintable() or character == "\n" for character in text)
    content = json.loads(text)
    valid(content)
    assert content["checkpoint"]["ref"] == name
    assert content["findings"][0]["message"] == name
    assert content["engines"][0]["error"] == f"KeyError: {name}"


def test_the_contract_in_one_example() -> None:
    content = documents(samples.failing())
    assert content["schema"] == 1
    assert content["tool"]["name"] == "mtpfix"
    assert (content["complete"], content["exit_code"]) == (True, 1)
    assert content["checkpoint"]["quantization"] == {
        "method": "modelopt",
        "algo": "NVFP4",
        "source": "config.json",
        "key": "quantization_config",
    }
    assert content["checkpoint"]["mtp"] == {"declared": 1, "present": True, "tensors": 1553}
    old = content["engines"][0]
    assert (old["version"], old["versions"], old["range"]) == ("0.19.1", ["0.18.1", "0.19.1"], "vllm <=0.19.1")
    assert (old["target"], old["draft"], old["error"]) == ("loads", "fails", "AssertionError")
    assert (old["error_role"], old["error_tensor"]) == ("draft", "mtp.fc.weight")
    glue = next(module for module in old["modules"] if module["module"] == "mtp.fc")
    assert glue == {
        "module": "mtp.fc",
        "prefix": "mtp.fc",
        "role": "draft",
        "stored": "bf16",
        "built": "nvfp4",
        "outcome": "crash",
        "because": [samples.SOURCE],
    }
    found = content["findings"][0]
    assert (found["rule"], found["severity"], found["module"], found["count"]) == ("MTP101", "error", "mtp.fc", 1)
    assert found["engines"] == [{"engine": "vllm", "range": "vllm <=0.19.1", "versions": ["0.18.1", "0.19.1"]}]
    assert found["fixes"][0]["bytes_written"] == 9321


def test_modules_are_named_as_on_disk_with_experts_collapsed() -> None:
    names = [module["module"] for module in documents(samples.clean())["engines"][0]["modules"]]
    assert names == sorted(names)
    assert "mtp.layers.0.mlp.experts.{0..511}.gate_proj" in names
    assert "mtp.layers.0.self_attn.q_proj" in names


def test_a_module_without_tensors_or_without_a_place_is_null() -> None:
    report = samples.clean()
    draft = samples.model(
        "draft",
        formats=(samples.built("mtp.experts.{}.up_proj", Format.BF16),),
        events=(samples.event("mtp.norm", Outcome.SILENT), samples.event("layer 7", Outcome.SILENT)),
    )
    report = replace(
        report,
        stored={"mtp.norm": samples.stored("mtp.norm")},
        engines=(samples.engine(("0.33.0",), "vllm 0.33.0", draft),),
    )
    modules = documents(report)["engines"][0]["modules"]
    assert [(each["module"], each["stored"], each["built"]) for each in modules] == [
        ("mtp.experts.*.up_proj", None, "bf16"),
        ("mtp.norm", "bf16", None),
    ]


def test_the_same_report_gives_the_same_bytes() -> None:
    report = samples.failing()
    turned = replace(report, engines=tuple(reversed(report.engines)))
    assert render([to_document(report)]) == render([to_document(turned)])


def test_engines_are_in_the_order_of_their_releases() -> None:
    versions = [engine["version"] for engine in documents(samples.failing())["engines"]]
    assert versions == ["0.19.1", "0.20.2", "0.33.0"]


@pytest.mark.parametrize(("level", "code"), [(Severity.ERROR, 0), (Severity.WARNING, 1), (Severity.NOTE, 1), (None, 0)])
def test_the_exit_code_depends_on_the_level(level: Severity | None, code: int) -> None:
    report = replace(samples.clean(), findings=(samples.finding(Severity.WARNING),))
    assert to_document(report, level)["exit_code"] == code


def test_an_incomplete_report_is_never_clean() -> None:
    report = samples.failing()
    report = replace(report, checkpoint=replace(report.checkpoint, unread=("b", "a")))
    content = documents(report)
    assert (content["complete"], content["exit_code"], content["checkpoint"]["unread"]) == (False, 2, ["a", "b"])
    assert to_document(report, None)["exit_code"] == 2
