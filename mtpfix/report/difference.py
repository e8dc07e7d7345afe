"""What differs between two checkpoints, or two reports of them: stored formats, lists, verdicts, findings.

A JSON report says less than a checkpoint: the format is known only of modules that some engine builds or stumbles over.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from mtpfix.checkpoint.names import collapse_names, natural_key
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import UsageError
from mtpfix.model import Report
from mtpfix.report.names import with_experts

ABSENT = "absent"
MOST = 40  # lines of one kind on a screen
LONGEST = 400


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is compared: formats by module, entries by list, verdicts by release, findings as (rule, module)."""

    ref: str
    formats: Mapping[str, str]
    lists: Mapping[str, tuple[str, ...]]
    verdicts: Mapping[str, tuple[str, str]]
    findings: frozenset[tuple[str, str]]


class ChangeV1(TypedDict):
    """One thing that was otherwise before; null where it was not there, or is no longer."""

    name: str
    before: str | None
    after: str | None


class ListV1(TypedDict):
    """One quantization list: entries that came and went."""

    list: str
    added: list[str]
    removed: list[str]


class DifferenceV1(TypedDict):
    """What differs; `same` says that nothing does."""

    schema: int
    before: str
    after: str
    same: bool
    formats: list[ChangeV1]
    lists: list[ListV1]
    verdicts: list[ChangeV1]
    findings: list[ChangeV1]


def of_report(report: Report) -> Snapshot:
    """Return what is compared of a checkpoint just scanned."""
    return Snapshot(
        ref=report.checkpoint.ref,
        formats={with_experts(one.module, one.experts): one.format.value for one in report.stored.values()},
        lists={
            _list_name(block.file, ".".join(block.path), block.exclude_key): block.excludes
            for block in report.checkpoint.declarations
        },
        verdicts={
            f"{row.prediction.engine} {version}": (
                row.prediction.target.verdict.value,
                row.prediction.draft.verdict.value,
            )
            for row in report.engines
            for version in row.versions
        },
        findings=frozenset((finding.rule, finding.module) for finding in report.findings),
    )


def of_document(text: str, name: str) -> Snapshot:
    """Return what is compared of a JSON report; raises UsageError for any other text, and for a report of several."""
    try:
        document: Any = json.loads(text)
        if isinstance(document, list) and len(document) == 1:
            (document,) = document
        if isinstance(document, list):
            raise UsageError(f"{shown(name)} is a report of several checkpoints", "compare reports of one each")
        if document["schema"] != 1 or "checkpoint" not in document:
            raise UsageError(
                f"{shown(name)} is no report of a scan", "write one with `mtpfix scan FOLDER --json -o FILE`"
            )
        return Snapshot(
            ref=str(document["checkpoint"]["ref"]),
            formats={
                str(module["module"]): str(module["stored"])
                for row in document["engines"]
                for module in row["modules"]
                if module["stored"] is not None
            },
            lists={
                _list_name(one["file"], one["key"], one["list"]): tuple(map(str, one["entries"]))
                for one in document["checkpoint"].get("declarations", ())
            },
            verdicts={
                f"{row['engine']} {version}": (str(row["target"]), str(row["draft"]))
                for row in document["engines"]
                for version in row["versions"]
            },
            findings=frozenset((str(one["rule"]), str(one["module"])) for one in document["findings"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UsageError(
            f"{shown(name)} is no report of a scan", "write one with `mtpfix scan FOLDER --json -o FILE`"
        ) from None


def _list_name(file: str, key: str, name: str) -> str:
    return f"{file}: {f'{key}.{name}' if key else name}"


def compare(before: Snapshot, after: Snapshot) -> DifferenceV1:
    """Return what differs. Releases that only one side was judged for are left out."""
    formats = _changes(before.formats, after.formats)
    lists = [
        ListV1(
            list=name,
            added=[entry for entry in after.lists.get(name, ()) if entry not in before.lists.get(name, ())],
            removed=[entry for entry in before.lists.get(name, ()) if entry not in after.lists.get(name, ())],
        )
        for name in sorted({*before.lists, *after.lists})
    ]
    lists = [one for one in lists if one["added"] or one["removed"]]
    both = [release for release in before.verdicts if release in after.verdicts]
    verdicts = _changes(
        {release: _verdicts(before.verdicts[release]) for release in both},
        {release: _verdicts(after.verdicts[release]) for release in both},
    )
    gone = sorted(before.findings - after.findings)
    new = sorted(after.findings - before.findings)
    findings = [ChangeV1(name=f"{rule} {module}".rstrip(), before="found", after=None) for rule, module in gone]
    findings += [ChangeV1(name=f"{rule} {module}".rstrip(), before=None, after="found") for rule, module in new]
    return {
        "schema": 1,
        "before": before.ref,
        "after": after.ref,
        "same": not (formats or lists or verdicts or findings),
        "formats": formats,
        "lists": lists,
        "verdicts": verdicts,
        "findings": findings,
    }


def _verdicts(pair: tuple[str, str]) -> str:
    return f"main model {pair[0]}, MTP draft {pair[1]}"


def _changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[ChangeV1]:
    names = sorted({*before, *after}, key=natural_key)
    return [
        ChangeV1(name=name, before=before.get(name), after=after.get(name))
        for name in names
        if before.get(name) != after.get(name)
    ]


def render(difference: DifferenceV1) -> str:
    """Return what differs as text, one section for each kind, names that change alike as one."""
    lines = [f"--- {shown(difference['before'])}", f"+++ {shown(difference['after'])}"]
    if difference["same"]:
        return "\n".join((*lines, "", "No differences in stored formats, lists, verdicts and findings.", ""))
    lines += _section("stored formats", _alike(difference["formats"]))
    for one in difference["lists"]:
        entries = [*(f"- {entry}" for entry in one["removed"]), *(f"+ {entry}" for entry in one["added"])]
        lines += _section(one["list"], entries)
    lines += _section("verdicts", [_line(one["name"], one["before"], one["after"]) for one in difference["verdicts"]])
    marks = [("- " if one["after"] is None else "+ ") + one["name"] for one in difference["findings"]]
    lines += _section("findings", marks)
    return "\n".join((*lines, ""))


def _section(title: str, lines: Sequence[str]) -> Iterable[str]:
    if not lines:
        return
    yield ""
    yield shown(title)
    yield from (f"  {shown(line, LONGEST)}" for line in lines[:MOST])
    if len(lines) > MOST:
        yield f"  and {len(lines) - MOST:,} more; --json has all"


def _alike(changes: Sequence[ChangeV1]) -> list[str]:
    kinds: dict[tuple[str | None, str | None], list[str]] = {}
    for one in changes:
        kinds.setdefault((one["before"], one["after"]), []).append(one["name"])
    return [_line(pattern.text, *kind) for kind, names in kinds.items() for pattern in collapse_names(names)]


def _line(name: str, before: str | None, after: str | None) -> str:
    return f"{name}: {before or ABSENT} -> {after or ABSENT}"
