"""Plans and their results, for people and for machines: what is done, what it writes, what stays open."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from difflib import unified_diff
from typing import Any

from mtpfix import __version__
from mtpfix.checkpoint.names import describe_names
from mtpfix.checkpoint.ref import shown
from mtpfix.engines import load, names, range_text
from mtpfix.fix.changes import Written
from mtpfix.fix.operations import ON_JSON, described
from mtpfix.fix.patching import Prepared
from mtpfix.fix.perform import json_documents
from mtpfix.fix.plan import Open, Plan
from mtpfix.fix.repairs.repair import Repair
from mtpfix.nvfp4.format import WeightError
from mtpfix.report.summary import size_text

NARROWEST, WIDEST_PROSE = 40, 120
"""Columns that lines are wrapped to at least and at most."""
MOST_OPEN = 8
MOST_SHARDS = 4


def plan_text(plan: Plan, width: int = WIDEST_PROSE) -> str:
    """Return a plan as a person reads it, in lines of at most `width` columns where their words allow that."""
    return "".join(f"{_wrapped(line, min(width, WIDEST_PROSE))}\n" for line in _plan_lines(plan))


def _wrapped(line: str, width: int) -> str:
    """Return a line broken between words, the later pieces indented a little more than the first."""
    indent = " " * (len(line) - len(line.lstrip(" ")) + 4)
    return textwrap.fill(
        line, max(width, NARROWEST), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _plan_lines(plan: Plan) -> Iterator[str]:
    releases = _releases_text(plan.releases)
    if not plan.steps and plan.complete:
        yield f"{shown(plan.ref)}: nothing to repair for {releases}"
        yield "  A scan judges other releases too; name those that must load it with --for."
    elif plan.complete:
        yield f"{shown(plan.ref)}: loads completely in {releases} after {_count(len(plan.steps), 'step')}"
    else:
        yield f"{shown(plan.ref)}: no repair was found after which it loads completely in {releases}"
    for number, step in enumerate(plan.steps, 1):
        yield f"  {number}. {_step_text(step)}"
    if plan.rewritten:
        yield f"  rewrites {_shards_text(plan.rewritten)}"
    for name, size in plan.downloads:
        yield f"  reads {size_text(size)} of {shown(name)}"
    for text in plan.unpredicted:
        yield f"  not predicted: {shown(text)}"
    for text in plan.notes:
        yield f"  {shown(text, 600)}"
    for step in plan.alternatives:
        yield f"  instead: {_step_text(step)}"
    for step in plan.withheld:
        yield f"  with --unsafe-fixes: {_step_text(step)}"
    if plan.disagreement:
        yield f"  {shown(plan.disagreement, 600)}"
    yield from _open_lines(plan.open)
    alike: dict[tuple[object, ...], list[Plan]] = {}
    for alone in plan.apart:
        left = tuple((one.role, one.module, one.kind, one.error) for one in alone.open)
        alike.setdefault((alone.steps, left), []).append(alone)
    for group in alike.values():
        together = replace(group[0], releases=tuple(name for one in group for name in one.releases))
        for line in _plan_lines(together):
            yield f"    {line}"


def _shards_text(rewritten: Sequence[tuple[str, int]]) -> str:
    names = ", ".join(shown(name) for name, _ in rewritten[:MOST_SHARDS])
    more = f" and {len(rewritten) - MOST_SHARDS} more shards" if len(rewritten) > MOST_SHARDS else ""
    return f"{names}{more}: {size_text(sum(size for _, size in rewritten))} in all"


def _releases_text(releases: Sequence[str]) -> str:
    """Return releases as a person says them: `vllm 0.32.0`, `sglang >=0.5.10 (16 releases) and vllm 0.32.0`."""
    by_engine: dict[str, list[str]] = {}
    for release in releases:
        engine, _, version = release.partition(" ")
        by_engine.setdefault(engine, []).append(version)
    texts = []
    for engine, versions in by_engine.items():
        text = range_text(load(engine), versions) if len(versions) > 1 and engine in names() else ""
        if not text:
            texts.append(f"{engine} {', '.join(versions)}")
        elif text == engine:
            texts.append(f"all {len(versions)} known releases of {engine}")
        else:
            texts.append(f"{text} ({len(versions)} releases)")
    return " and ".join(texts)


def _open_lines(left: Sequence[Open]) -> Iterator[str]:
    """Yield what stays open: modules and releases that fail alike in one line."""
    groups: dict[tuple[str, str, str], list[Open]] = {}
    for one in left:
        groups.setdefault((one.role, one.kind, one.error), []).append(one)
    for (role, kind, error), members in list(groups.items())[:MOST_OPEN]:
        modules = describe_names(dict.fromkeys(one.module for one in members if one.module))
        where = _releases_text(list(dict.fromkeys(one.release for one in members)))
        model = "main model" if role == "target" else "MTP draft"
        at = f", {shown(modules, 300)}" if modules else ""
        said = f" ({shown(error, 300)})" if error else ""
        yield f"  still open: {model}{at}: {kind}{said} in {where}"
    if len(groups) > MOST_OPEN:
        yield f"  still open: {len(groups) - MOST_OPEN} more"


def _step_text(step: Repair) -> str:
    manner = "" if step.safe else ", not safe"
    return f"{shown(step.title, 600)} (writes {size_text(step.bytes_written)}{manner})"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)


def written_text(written: Written) -> str:
    """Return what was written as a person reads it."""
    if written.already:
        return f"{shown(str(written.folder))} is there already, just so: nothing was written\n"
    kept = ", ".join(f"{count} by {how}" for how, count in sorted(written.kept.items()))
    lines = [
        f"{shown(str(written.folder))}: wrote {size_text(written.bytes_written)}, checked"
        + " (resumed)" * written.resumed
    ]
    lines += [f"  {shown(one.name)} ({size_text(one.size)})" for one in written.changed]
    lines += [f"  {shown(name)} is gone" for name in written.removed]
    if kept:
        lines.append(f"  unchanged: {kept}")
    if written.errors:
        lines.append(_errors_line(list(written.errors.values())))
    if written.backup is not None:
        lines.append(f"  the old files are in {shown(str(written.backup))}")
    return "\n".join(lines) + "\n"


def _errors_line(errors: Sequence[WeightError]) -> str:
    plain, chosen = sum(errors, WeightError()).relative
    ratio = f" ({chosen / plain:.3f} of it)" if plain else ""
    return (
        f"  squared error of {_count(len(errors), 'weight')} in NVFP4, relative to their squares: "
        f"{plain:.3e} with plain scales, {chosen:.3e} with those searched{ratio}"
    )


def diff_text(prepared: Prepared) -> str:
    """Return what a plan changes: a unified diff of configuration files, and each operation on tensors."""
    pieces = []
    operations = prepared.plan.operations
    for name, before, after in json_documents(prepared.snapshot.folder, operations):
        old, new = (text.decode("utf-8", "replace").splitlines(keepends=True) for text in (before, after))
        pieces += [
            line if line.endswith("\n") else f"{line}\n\\ No newline at end of file\n"
            for line in unified_diff(old, new, f"a/{name}", f"b/{name}")
        ]
    rows = [described(operation) for operation in operations if not isinstance(operation, ON_JSON)]
    width = max((len(row.action) for row in rows), default=0)
    pieces += [f"{row.action:<{width}}  {shown(row.value or row.file, 300)}\n" for row in rows]
    return "".join(pieces)


def plan_object(plan: Plan) -> Mapping[str, Any]:
    """Return a plan as a JSON object."""
    return {
        "ref": plan.ref,
        "releases": list(plan.releases),
        "complete": plan.complete,
        "steps": [_step_object(step) for step in plan.steps],
        "open": [
            {
                "release": one.release,
                "role": one.role,
                "module": one.module,
                "kind": one.kind,
                "error": one.error or None,
            }
            for one in plan.open
        ],
        "unpredicted": list(plan.unpredicted),
        "withheld": [_step_object(step) for step in plan.withheld],
        "alternatives": [_step_object(step) for step in plan.alternatives],
        "notes": list(plan.notes),
        "rewritten": [{"name": name, "bytes": size} for name, size in plan.rewritten],
        "downloads": [{"name": name, "bytes": size} for name, size in plan.downloads],
        "disagreement": plan.disagreement or None,
        "apart": [plan_object(one) for one in plan.apart],
    }


def _step_object(step: Repair) -> Mapping[str, Any]:
    return {
        "title": step.title,
        "safe": step.safe,
        "bytes_written": step.bytes_written,
        "operations": [
            {"action": one.action, "file": one.file, "value": one.value} for one in map(described, step.operations)
        ],
    }


def written_object(written: Written | None) -> Mapping[str, Any] | None:
    """Return what was written as a JSON object."""
    if written is None:
        return None
    return {
        "folder": str(written.folder),
        "digest": written.digest,
        "changed": [{"name": one.name, "size": one.size, "sha256": one.sha256} for one in written.changed],
        "removed": list(written.removed),
        "kept": dict(written.kept),
        "bytes_written": written.bytes_written,
        "resumed": written.resumed,
        "already": written.already,
        "backup": None if written.backup is None else str(written.backup),
        "weight_errors": [
            {"tensor": name, "plain": error.relative[0], "searched": error.relative[1]}
            for name, error in written.errors.items()
        ],
    }


def render(plan: Plan, written: Written | None, exit_code: int) -> str:
    """Return plan and result as one JSON object; ASCII only, the same for the same input."""
    content = {
        "schema": 1,
        "tool": {"name": "mtpfix", "version": __version__},
        "exit_code": exit_code,
        "plan": plan_object(plan),
        "written": written_object(written),
    }
    return json.dumps(content, indent=2, ensure_ascii=True, allow_nan=False) + "\n"
