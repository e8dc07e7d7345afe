from __future__ import annotations

from dataclasses import replace

from mtpfix.model import EngineRange, Finding, Fix, Format, MtpSummary, Operation, Report, Severity, Verdict
from mtpfix.report.summary import closing_text, counts, repair_command, verdict_text
from tests.report import samples


def test_the_branch_is_described_by_layers_tensors_and_formats() -> None:
    assert verdict_text(samples.clean()).startswith("MTP branch: present, 1 layer, 1,553 tensors, BF16.")


def test_mixed_formats_are_named_the_largest_first() -> None:
    report = samples.clean()
    stored = {name: samples.stored(name, Format.NVFP4 if "experts" in name else Format.BF16) for name in report.stored}
    stored["mtp.fc"] = replace(stored["mtp.fc"], bytes=10**12)
    assert "1,553 tensors, BF16 + NVFP4." in verdict_text(replace(report, stored=stored))


def test_a_branch_that_is_declared_but_missing() -> None:
    report = replace(samples.clean(), mtp=MtpSummary(3, present=False, tensors=0))
    assert "MTP branch: missing, 3 layers declared and none of its tensors stored." in verdict_text(report)


def test_a_branch_that_nothing_declares() -> None:
    report = replace(samples.clean(), mtp=MtpSummary(0, present=True, tensors=1))
    assert "MTP branch: present, no layer count in config.json, 1 tensor" in verdict_text(report)


def test_no_branch_at_all() -> None:
    draft = samples.model("draft", Verdict.ABSENT)
    report = replace(
        samples.clean(),
        mtp=MtpSummary(0, present=False, tensors=0),
        engines=(samples.engine(("0.33.0",), "vllm 0.33.0", draft),),
    )
    assert (
        verdict_text(report) == "MTP branch: none declared, none stored. vllm 0.33.0: main model loads, no MTP draft."
    )


def test_an_unknown_architecture_is_named() -> None:
    unknown = replace(samples.model("target", Verdict.UNKNOWN), reason="no family file knows it")
    engines = (samples.engine(("0.33.0",), "vllm", replace(unknown, role="draft"), unknown),)
    report = replace(samples.clean(), family=None, architecture="OtherForCausalLM", engines=engines)
    assert (
        verdict_text(report) == "MTP branch: unknown, the architecture OtherForCausalLM is not one that mtpfix knows."
    )


def test_releases_of_one_verdict_are_said_once_and_the_newest_first() -> None:
    report = samples.failing()
    loads = report.engines[2].prediction.draft
    rows = (
        samples.engine(("0.18.0", "0.18.1"), "vllm <=0.18.1", loads),
        samples.engine(("0.19.0",), "vllm 0.19.0", samples.model("draft", Verdict.FAILS, error="KeyError")),
        samples.engine(("0.19.1", "0.20.0"), "vllm 0.19.1 - 0.20.0", loads),
    )
    text = verdict_text(replace(report, engines=rows))
    assert text.endswith(
        "vllm 0.18.0 - 0.18.1, 0.19.1 - 0.20.0: main model and MTP draft load. "
        "vllm 0.19.0: main model loads, MTP draft fails to load."
    )


def test_why_a_release_is_not_predicted() -> None:
    unknown = replace(samples.model("target", Verdict.UNKNOWN), reason="vLLM 0.16.0 has no class for it")
    draft = replace(samples.model("draft", Verdict.UNKNOWN), reason="vLLM 0.16.0 has no class for it")
    report = replace(samples.clean(), engines=(samples.engine(("0.16.0",), "vllm 0.16.0", draft, unknown),))
    assert verdict_text(report).endswith("vllm 0.16.0: not predicted, vLLM 0.16.0 has no class for it.")


def test_findings_are_counted_by_severity() -> None:
    assert [count for _, count in sorted(counts(samples.failing()).items())] == [1, 1, 0]


def test_several_checkpoints_are_closed_by_one_line() -> None:
    assert closing_text([0, 1, 1, 2]) == "4 checkpoints: 1 clean, 2 with findings, 1 not or not wholly read.\n"


NAME = "Qwen3.5-397B-A17B-NVFP4"
BEGINNING = f"mtpfix patch {NAME} --out {NAME}-repaired"


def broken(*findings: Finding) -> Report:
    return replace(samples.failing(), findings=findings)


def test_the_repair_names_the_releases_it_is_for() -> None:
    assert repair_command(samples.clean()) is None
    assert repair_command(samples.failing()) == f"{BEGINNING} --for 'vllm>=0.18.1'"


def test_the_repair_is_for_no_release_that_was_not_scanned() -> None:
    old, between, new = samples.failing().engines
    some = replace(samples.failing(), engines=(old, between, replace(new, versions=("0.21.0",))))
    assert repair_command(some) == f"{BEGINNING} --for 'vllm>=0.18.1,<=0.21.0'"
    found = replace(samples.finding(), engines=(EngineRange("vllm", ("0.20.2",), "vllm 0.20.2"),))
    one = replace(broken(found), engines=(between,))
    assert repair_command(one) == f"{BEGINNING} --for vllm==0.20.2"


def test_the_repair_leaves_out_releases_that_nothing_mends() -> None:
    cannot = replace(samples.finding(Severity.WARNING), rule="MTP602", fixes=())
    later = replace(cannot, engines=(EngineRange("vllm", ("0.19.1", "0.20.2"), "vllm 0.19.1 - 0.20.2"),))
    assert repair_command(broken(samples.finding(), later)) == f"{BEGINNING} --for 'vllm>=0.18.1,!=0.19.1,!=0.20.2'"
    assert repair_command(broken(samples.finding(), cannot)) == BEGINNING


def test_the_repair_asks_for_what_it_needs() -> None:
    found = samples.finding()
    graft = Fix("graft", safe=True, operations=(Operation("graft", "", "mtp"),), bytes_written=1)
    off = Fix("switch off", safe=False, operations=(Operation("remove-key", "config.json", "n"),), bytes_written=1)
    command = repair_command(broken(replace(found, fixes=(off, graft))))
    assert command == f"{BEGINNING} --for 'vllm>=0.18.1' --graft BASE_MODEL"
    command = repair_command(broken(replace(found, fixes=(off,))))
    assert command == f"{BEGINNING} --for 'vllm>=0.18.1' --unsafe-fixes"


def test_the_repair_is_for_releases_whose_arrays_a_graft_makes_long_enough() -> None:
    short = replace(samples.finding(), rule="MTP103", fixes=())
    assert repair_command(broken(samples.finding(), short)) == f"{BEGINNING} --for 'vllm>=0.18.1'"
