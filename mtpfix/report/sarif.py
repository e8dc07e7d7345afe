"""The report as SARIF 2.1.0, for code scanning. Knows the limits of GitHub's upload; judges nothing.

Limits: https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import quote

from mtpfix import __version__
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import MtpfixError
from mtpfix.model import Finding, Report, Severity
from mtpfix.report.summary import file_to_open, verdict_text
from mtpfix.rules import Rule, all_rules

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
MOST_RESULTS = 5000  # GitHub shows no more of one run
LONGEST = 1000  # characters of a message
LEVELS: Mapping[Severity, str] = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "note"}


def render(reports: Sequence[Report], failures: Sequence[tuple[str, MtpfixError]] = ()) -> str:
    """Return one SARIF log with one run for all checkpoints; `failures` are those that could not be scanned."""
    rules = [rule for rule in all_rules() if any(rule.code == each.rule for one in reports for each in one.findings)]
    found = [(report, finding) for report in reports for finding in report.findings]
    order = list(Severity)
    found.sort(key=lambda pair: order.index(pair[1].severity))
    complete = not failures and all(report.complete and not report.checkpoint.unread for report in reports)
    run = {
        "tool": {"driver": _driver(rules)},
        "automationDetails": {"id": "mtpfix/"},
        "columnKind": "utf16CodeUnits",
        "invocations": [
            {
                "executionSuccessful": complete,
                "toolExecutionNotifications": list(_notifications(reports, failures, len(found))),
            }
        ],
        "results": [
            _result(report, finding, [rule.code for rule in rules]) for report, finding in found[:MOST_RESULTS]
        ],
    }
    log = {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=True, allow_nan=False) + "\n"


def _driver(rules: Iterable[Rule]) -> Mapping[str, Any]:
    return {
        "name": "mtpfix",
        "semanticVersion": __version__,
        "rules": [
            {
                "id": rule.code,
                "name": "".join(word.capitalize() for word in rule.name.split("-")),
                "shortDescription": {"text": rule.summary},
                "fullDescription": {"text": rule.documentation},
                "help": {"text": rule.documentation, "markdown": rule.documentation},
                "defaultConfiguration": {"level": LEVELS[rule.severity]},
                "properties": {"tags": ["mtp", "quantization"], "precision": "high"},
            }
            for rule in rules
        ],
    }


def _notifications(
    reports: Sequence[Report], failures: Sequence[tuple[str, MtpfixError]], results: int
) -> Iterable[Mapping[str, Any]]:
    for report in reports:
        yield _notification("note", f"{report.checkpoint.ref}: {verdict_text(report)}")
        for name in sorted(report.checkpoint.unread):
            yield _notification("error", f"{report.checkpoint.ref}: {name} could not be read")
    for ref, error in failures:
        yield _notification("error", f"{ref}: {error.message}")
    if results > MOST_RESULTS:
        yield _notification("warning", f"{results - MOST_RESULTS:,} of {results:,} findings are left out")


def _notification(level: str, text: str) -> Mapping[str, Any]:
    return {"level": level, "message": {"text": shown(text, LONGEST)}}


def _result(report: Report, finding: Finding, codes: Sequence[str]) -> Mapping[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "level": LEVELS[finding.severity],
        "message": {"text": _message(finding)},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(report.checkpoint.ref, file_to_open(report, finding))},
                    "region": {"startLine": 1},
                },
                **({"logicalLocations": [_logical(finding)]} if finding.module else {}),
            }
        ],
        "partialFingerprints": {"mtpfix/v1": _fingerprint(finding)},
        "properties": {
            "confidence": finding.confidence.value,
            "engines": [each.text for each in finding.engines],
            "evidence": list(finding.evidence),
            "repairs": [fix.title for fix in finding.fixes],
        },
    }
    if finding.rule in codes:
        result["ruleIndex"] = codes.index(finding.rule)
    return result


def _message(finding: Finding) -> str:
    where = f"{finding.module}: " if finding.module else ""
    engines = f" In {', '.join(each.text for each in finding.engines)}." if finding.engines else ""
    raises = f" Raises: {finding.error}." if finding.error else ""
    repair = f" Repair: {finding.fixes[0].title}." if finding.fixes else ""
    return shown(f"{where}{finding.message}{engines}{raises}{repair}", LONGEST)


def _logical(finding: Finding) -> Mapping[str, Any]:
    return {"fullyQualifiedName": shown(finding.module, LONGEST), "kind": "module"}


def _uri(ref: str, file: str) -> str:
    """Return a file of a checkpoint as a URI: relative where the checkpoint's folder was given relative."""
    path = PurePosixPath(ref) / file
    text = quote(str(path), safe="/:@", errors="surrogateescape") if ref else quote(file)
    return f"file://{text}" if path.is_absolute() else text.replace(":", "%3A")


def _fingerprint(finding: Finding) -> str:
    parts = (finding.rule, finding.role or "", finding.module, *sorted({each.engine for each in finding.engines}))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()
