"""The JSON report, schema version 1: its own types, apart from the inner ones, so that those may change freely.

A key is never removed, renamed or given another meaning within a version; keys may be added. Names stand as they are in
the files, unescaped beyond what JSON asks: whoever prints them makes them safe.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Literal, TypedDict

from mtpfix import __version__
from mtpfix.errors import MtpfixError
from mtpfix.model import (
    EngineReport,
    Finding,
    Fix,
    Report,
    Severity,
    Verdict,
)
from mtpfix.report.rows import Row, rows_of
from mtpfix.report.summary import counts, deciding, releases_ascending, verdict_text

SCHEMA: Literal[1] = 1

Confidence = Annotated[Literal["verified", "derived"], "the engine was run (verified), or its source read (derived)"]
Verdicts = Literal["loads", "fails", "silent", "absent", "unknown"]


class ToolV1(TypedDict):
    """What wrote the report."""

    name: Literal["mtpfix"]
    version: str


class SummaryV1(TypedDict):
    """The report in a sentence and three numbers."""

    text: Annotated[str, "the verdict, as the terminal shows it"]
    errors: int
    warnings: int
    notes: int
    ignored: Annotated[int, "findings that settings name as known and accepted: they stand nowhere else"]


class QuantizationV1(TypedDict):
    """The quantization block that decides; all null where no block is declared."""

    method: Annotated[str | None, "modelopt, compressed-tensors, fp8, ... as resolved; null if none is declared"]
    algo: Annotated[str | None, "NVFP4, FP8, MIXED_PRECISION, ..."]
    source: Annotated[str | None, "the file the block stands in"]
    key: Annotated[str | None, "where in that file, keys joined by dots; empty for the top level"]


class MtpV1(TypedDict):
    """The MTP branch."""

    declared: Annotated[int, "layers that the configuration declares"]
    present: Annotated[bool, "whether any of its tensors is stored"]
    tensors: Annotated[int, "how many of its tensors are stored"]


class DeclarationV1(TypedDict):
    """One quantization block as written, and the list in it that names modules."""

    file: str
    key: Annotated[str, "where in that file, keys joined by dots; empty for the top level"]
    method: str
    algo: str | None
    list: Annotated[str, "the key of the list: exclude_modules, ignore, modules_to_not_convert, ..."]
    entries: list[str]


class CheckpointV1(TypedDict):
    """What was read."""

    ref: Annotated[str, "the folder or repository as it was asked for"]
    revision: str | None
    architecture: str | None
    family: str | None
    quantization: QuantizationV1
    declarations: Annotated[list[DeclarationV1], "every quantization block, in file order"]
    mtp: MtpV1
    files: Annotated[int, "safetensors files read"]
    tensors: int
    bytes: Annotated[int, "size of those files"]
    unread: Annotated[list[str], "files that could not be read; the report is incomplete while there are any"]


class DecidingV1(TypedDict):
    """The quantization block an engine obeys."""

    file: str
    key: str


class ModuleV1(TypedDict):
    """One module: its name on disk, unfused, experts collapsed (`experts.{0..511}.gate_proj`)."""

    module: Annotated[str, "the name on disk; expert numbers as {first..last}, or * where none is stored"]
    prefix: Annotated[str | None, "the name the engine asks its quantization lists for; null if it builds none"]
    role: Literal["target", "draft"]
    stored: Annotated[str | None, "the format on disk; null if nothing is stored"]
    built: Annotated[str | None, "the format the engine builds; null if it builds none"]
    outcome: Annotated[
        Literal["ok", "crash", "silent"], "raises at load (crash), or loads wrongly without a word (silent)"
    ]
    because: Annotated[list[str], "path:line@version in the engine's package"]


class EngineV1(TypedDict):
    """What a run of releases that behave alike does; `version` is the one the details were worked out for."""

    engine: str
    version: str
    range: Annotated[str, "the releases, as a person reads them"]
    versions: Annotated[list[str], "the releases, one by one, ascending"]
    confidence: Confidence
    method: Annotated[str | None, "the quantization method the engine picks"]
    deciding: DecidingV1 | None
    target: Annotated[Verdicts, "the main model"]
    draft: Annotated[Verdicts, "the MTP branch; absent: none declared and none stored"]
    error: Annotated[str | None, "the text of the first exception, exactly"]
    error_role: Annotated[Literal["target", "draft"] | None, "which of the two raises it"]
    error_tensor: Annotated[str | None, "the tensor being loaded when it is raised"]
    reason: Annotated[str | None, "why a verdict is unknown or absent"]
    modules: list[ModuleV1]


class EngineRangeV1(TypedDict):
    """Releases of one engine that a finding concerns."""

    engine: str
    range: str
    versions: list[str]


class OperationV1(TypedDict):
    """One change that a repair makes."""

    action: str
    file: str
    value: str


class FixV1(TypedDict):
    """A repair."""

    title: str
    safe: Annotated[bool, "whether it can be applied without asking"]
    bytes_written: int
    operations: list[OperationV1]


class FindingV1(TypedDict):
    """One cause, told once."""

    rule: Annotated[str, "the code, stable for ever; `mtpfix explain CODE`"]
    name: str
    severity: Literal["error", "warning", "note"]
    confidence: Confidence
    role: Annotated[Literal["target", "draft"] | None, "the model it concerns; null for the checkpoint as a whole"]
    module: Annotated[str, "the name on disk, collapsed; empty for the checkpoint as a whole"]
    count: Annotated[int, "how many modules the name stands for"]
    engines: Annotated[list[EngineRangeV1], "empty: whatever engine loads it"]
    stored: str
    built: str
    message: str
    error: Annotated[str | None, "the text the user will see, exactly"]
    evidence: list[str]
    fixes: list[FixV1]


class ReportV1(TypedDict):
    """The result of scanning one checkpoint."""

    schema: Literal[1]
    tool: ToolV1
    complete: Annotated[bool, "whether everything was read; an incomplete report is never clean"]
    exit_code: Annotated[int, "what the command exits with, had it scanned this checkpoint alone"]
    summary: SummaryV1
    checkpoint: CheckpointV1
    engines: list[EngineV1]
    findings: list[FindingV1]
    notes: list[str]


class FailureV1(TypedDict):
    """Stands in a report's place where a checkpoint could not be scanned at all."""

    schema: Literal[1]
    tool: ToolV1
    complete: Literal[False]
    exit_code: Literal[2, 3]
    ref: str
    error: Annotated[str, "what happened, in a sentence"]
    hint: Annotated[str, "what to do next; may be empty"]


DocumentV1 = ReportV1 | FailureV1


def to_document(report: Report, level: Severity | None = Severity.ERROR) -> ReportV1:
    """Return a report as its JSON document; `level` is the severity that fails the scan."""
    tally = counts(report)
    return {
        "schema": SCHEMA,
        "tool": _tool(),
        "complete": report.complete and not report.checkpoint.unread,
        "exit_code": report.exit_code(level),
        "summary": {
            "text": verdict_text(report),
            "errors": tally[Severity.ERROR],
            "warnings": tally[Severity.WARNING],
            "notes": tally[Severity.NOTE],
            "ignored": report.ignored,
        },
        "checkpoint": _checkpoint(report),
        "engines": [_engine(row, report) for row in releases_ascending(report)],
        "findings": [_finding(finding) for finding in report.findings],
        "notes": list(report.notes),
    }


def to_failure(ref: str, error: MtpfixError) -> FailureV1:
    """Return the document of a checkpoint that could not be scanned."""
    return {
        "schema": SCHEMA,
        "tool": _tool(),
        "complete": False,
        "exit_code": 3 if error.exit_code == 3 else 2,
        "ref": ref,
        "error": error.message,
        "hint": error.hint,
    }


def render(documents: Sequence[DocumentV1], *, several: bool | None = None) -> str:
    """Return one document as a JSON object and several as an array; ASCII only, the same for the same input.

    `several` says which of the two is meant, whatever their number.
    """
    content = list(documents) if several or (several is None and len(documents) != 1) else documents[0]
    return json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def _tool() -> ToolV1:
    return {"name": "mtpfix", "version": __version__}


def _checkpoint(report: Report) -> CheckpointV1:
    checkpoint = report.checkpoint
    return {
        "ref": checkpoint.ref,
        "revision": checkpoint.revision,
        "architecture": report.architecture,
        "family": report.family,
        "quantization": _quantization(report),
        "declarations": [
            {
                "file": block.file,
                "key": ".".join(block.path),
                "method": block.method,
                "algo": block.algo,
                "list": block.exclude_key,
                "entries": list(block.excludes),
            }
            for block in checkpoint.declarations
        ],
        "mtp": {"declared": report.mtp.declared, "present": report.mtp.present, "tensors": report.mtp.tensors},
        "files": len(checkpoint.shards),
        "tensors": checkpoint.tensor_count,
        "bytes": checkpoint.bytes,
        "unread": sorted(checkpoint.unread),
    }


def _quantization(report: Report) -> QuantizationV1:
    block = deciding(report)
    if block is None:
        return {"method": None, "algo": None, "source": None, "key": None}
    return {"method": block.method, "algo": block.algo, "source": block.file, "key": ".".join(block.path)}


def _engine(row: EngineReport, report: Report) -> EngineV1:
    prediction = row.prediction
    models = (prediction.target, prediction.draft)
    raising = next((model for model in models if model.error is not None), None)
    block = prediction.deciding
    reasons = [model.reason for model in models if model.reason and model.verdict in (Verdict.UNKNOWN, Verdict.ABSENT)]
    return {
        "engine": prediction.engine,
        "version": prediction.version,
        "range": row.range,
        "versions": list(row.versions),
        "confidence": prediction.confidence.value,
        "method": prediction.method,
        "deciding": None if block is None else {"file": block.file, "key": ".".join(block.path)},
        "target": prediction.target.verdict.value,
        "draft": prediction.draft.verdict.value,
        "error": raising.error if raising else None,
        "error_role": raising.role if raising else None,
        "error_tensor": raising.error_tensor if raising else None,
        "reason": "; ".join(dict.fromkeys(reasons)) or None,
        "modules": [_module(row) for model in models for row in rows_of(model, report)],
    }


def _module(row: Row) -> ModuleV1:
    return {
        "module": row.name,
        "prefix": row.prefix,
        "role": row.role,
        "stored": row.stored.value if row.stored else None,
        "built": row.built.value if row.built else None,
        "outcome": row.outcome.value,
        "because": list(row.because),
    }


def _finding(finding: Finding) -> FindingV1:
    return {
        "rule": finding.rule,
        "name": finding.name,
        "severity": finding.severity.value,
        "confidence": finding.confidence.value,
        "role": finding.role,
        "module": finding.module,
        "count": finding.count,
        "engines": [
            {"engine": each.engine, "range": each.text, "versions": list(each.versions)} for each in finding.engines
        ],
        "stored": finding.stored,
        "built": finding.built,
        "message": finding.message,
        "error": finding.error or None,
        "evidence": list(finding.evidence),
        "fixes": [_fix(fix) for fix in finding.fixes],
    }


def _fix(fix: Fix) -> FixV1:
    return {
        "title": fix.title,
        "safe": fix.safe,
        "bytes_written": fix.bytes_written,
        "operations": [
            {"action": operation.action, "file": operation.file, "value": operation.value}
            for operation in fix.operations
        ],
    }
