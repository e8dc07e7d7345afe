"""A plan in a file: what it does, step by step, and the files it was made for, so that it is done to no others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtpfix import __version__
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError, MtpfixError, UsageError
from mtpfix.fix.changes import Snapshot
from mtpfix.fix.operations import Graft, Operation, from_json, to_json
from mtpfix.fix.plan import Plan
from mtpfix.fix.repairs.repair import Repair

FORMAT = 1
_AGAIN = "write the plan again with --plan"


def plan_document(
    plan: Plan, snapshot: Snapshot, reads: tuple[Snapshot, ...] = (), called: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return a plan as a JSON object, with the size and digest of every file it was made for.

    `called` says how the repositories are called of which folders are mirrors.
    """
    names = called or {}
    return {
        "mtpfix_plan": FORMAT,
        "tool": __version__,
        "releases": list(plan.releases),
        "source": _marks(snapshot),
        "reads": {names.get(str(one.folder), str(one.folder)): _marks(one) for one in reads},
        "steps": [
            {
                "title": step.title,
                "safe": step.safe,
                "bytes_written": step.bytes_written,
                "operations": to_json(step.operations),
            }
            for step in moved(plan.steps, names)
        ],
    }


def moved(steps: Sequence[Repair], folders: Mapping[str, str]) -> tuple[Repair, ...]:
    """Return steps with other folders that tensors are taken from."""

    def here(operation: Operation) -> Operation:
        if isinstance(operation, Graft) and operation.folder in folders:
            return replace(operation, folder=folders[operation.folder])
        return operation

    return tuple(replace(step, operations=tuple(map(here, step.operations))) for step in steps)


def _marks(snapshot: Snapshot) -> dict[str, list[Any]]:
    return {name: [mark.size, mark.digest] for name, mark in sorted(snapshot.files.items())}


def read_plan(path: Path, ref: str) -> tuple[Plan, Mapping[str, Any]]:
    """Return the plan in a file, for the checkpoint `ref`, and the marks of the files it was made for, by folder.

    Raises UsageError where it cannot be read, FormatError where it is no plan of this version.
    """
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{shown(str(path))} cannot be read: {error.strerror}", "give the file --plan wrote") from None
    except (ValueError, RecursionError):
        raise FormatError(f"{shown(str(path))} is not JSON", _AGAIN) from None
    if not isinstance(document, dict) or document.get("mtpfix_plan") != FORMAT:
        raise FormatError(f"{shown(str(path))} is no plan of this version of mtpfix", _AGAIN)
    steps, releases = document.get("steps"), document.get("releases")
    source, reads = document.get("source"), document.get("reads", {})
    if (
        not isinstance(steps, list)
        or not isinstance(releases, list)
        or not isinstance(source, dict)
        or not isinstance(reads, dict)
        or not all(isinstance(one, str) for one in releases)
    ):
        raise FormatError(f"{shown(str(path))} is not whole", _AGAIN)
    plan = Plan(ref, tuple(releases), tuple(_step(step) for step in steps))
    return plan, {"": source, **reads}


def _step(step: object) -> Repair:
    if not isinstance(step, dict):
        raise FormatError("a step of the plan is not an object", _AGAIN)
    title, safe, size = step.get("title"), step.get("safe"), step.get("bytes_written")
    if not isinstance(title, str) or not isinstance(safe, bool) or not isinstance(size, int):
        raise FormatError("a step of the plan lacks its title, safe or bytes_written", _AGAIN)
    return Repair(title, safe, from_json(step.get("operations")), size)


def check_source(marks: object, snapshot: Snapshot) -> None:
    """Raise MtpfixError where a folder's files are not those a plan was made for."""
    now = _marks(snapshot)
    then = marks if isinstance(marks, dict) else {}
    for name in sorted({*then, *now}):
        if then.get(name) != now.get(name):
            what = "is new" if name not in then else "is gone" if name not in now else "is another"
            folder = shown(str(snapshot.folder))
            raise MtpfixError(f"{folder} is not what the plan was made for: {shown(name)} {what}", "make the plan anew")
