"""What mtpfix knows, listed: engines and releases, families, rules; for people, for machines, and for the README."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from mtpfix import engines as engine_files
from mtpfix import families as family_files
from mtpfix.model import Confidence
from mtpfix.rules import Rule, all_rules, find

Shape = Literal["text", "json", "markdown"]


@dataclass(frozen=True, slots=True)
class Listing:
    """A table: `key` names its JSON array, `header` and `rows` are its text, `items` its JSON."""

    key: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    items: tuple[Mapping[str, Any], ...]

    def render(self, shape: Shape, width: int) -> str:
        """Return the table as text of at most `width` columns where its last column allows that, JSON, or Markdown."""
        match shape:
            case "json":
                return json.dumps({"schema": 1, self.key: self.items}, indent=2) + "\n"
            case "markdown":
                lines = [self.header, tuple("---" for _ in self.header), *self.rows]
                return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
            case "text":
                return _aligned(self.header, self.rows, width)


def engines() -> Listing:
    """List the engines: which releases are verified, which derived."""
    loaded = [engine_files.load(name) for name in engine_files.names()]
    rows, items = [], []
    for engine in loaded:
        by_confidence = {
            confidence: [each for each in engine.releases if engine.confidence(each) is confidence]
            for confidence in Confidence
        }
        rows.append((engine.name, *(", ".join(releases) or "none" for releases in by_confidence.values())))
        releases = [{"version": each, "confidence": engine.confidence(each).value} for each in engine.releases]
        items.append({"engine": engine.name, "title": engine.title, "releases": releases})
    return Listing("engines", ("engine", "verified (run)", "derived (read)"), tuple(rows), tuple(items))


def families() -> Listing:
    """List the families: their architectures, and the releases that have a class for main model and draft."""
    rows, items = [], []
    for family in map(family_files.load, family_files.names()):
        known = [
            (name, role, releases)
            for name in engine_files.names()
            for role in ("target", "draft")
            if (releases := _releases(family, name, role))
        ]
        drafts = "; ".join(
            engine_files.range_text(engine_files.load(name), releases)
            for name, role, releases in known
            if role == "draft"
        )
        loads = [{"engine": name, "role": role, "versions": releases} for name, role, releases in known]
        rows.append((family.name, drafts or "none", ", ".join(family.architectures)))
        items.append(
            {"family": family.name, "title": family.title, "architectures": list(family.architectures), "loads": loads}
        )
    return Listing("families", ("family", "MTP draft in", "architectures"), tuple(rows), tuple(items))


def _releases(family: family_files.Family, engine: str, role: str) -> list[str]:
    return [
        version
        for version in engine_files.load(engine).releases
        if any(family.models(engine, role, architecture, version) for architecture in family.architectures)
    ]


def rules() -> Listing:
    """List the rules with their first sentences."""
    known = all_rules()
    return Listing(
        "rules",
        ("rule", "name", "severity", "what"),
        tuple((rule.code, rule.name, rule.severity.value, rule.summary) for rule in known),
        tuple(_rule(rule) for rule in known),
    )


def explain(text: str, shape: Shape) -> str:
    """Return the documentation of a rule; raises UsageError for an unknown one."""
    rule = find(text)
    title = f"{rule.code} {rule.name} ({rule.severity.value})"
    match shape:
        case "json":
            return json.dumps({"schema": 1, **_rule(rule)}, indent=2) + "\n"
        case "markdown":
            return f"## {title}\n\n{rule.documentation}\n"
        case "text":
            return f"{title}\n\n{rule.documentation}\n"


def _rule(rule: Rule) -> Mapping[str, Any]:
    return {
        "rule": rule.code,
        "name": rule.name,
        "severity": rule.severity.value,
        "summary": rule.summary,
        "documentation": rule.documentation,
    }


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    """Return rows as columns; cells too wide for the screen go on below themselves."""
    columns = len(header)
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(columns)]
    room = max(width, 40) - 2 * (columns - 1)
    while sum(widths) > room and max(widths) > 12:
        widest = widths.index(max(widths))
        others = sorted(each for column, each in enumerate(widths) if column != widest)
        spare = sum(widths) - room
        second = others[-1] if others else 0
        widths[widest] -= max(1, min(spare, widths[widest] - max(second, 12)))
    lines = []
    for row in (header, *rows):
        cells = [textwrap.wrap(text, size) or [""] for text, size in zip(row, widths, strict=True)]
        for number in range(max(map(len, cells))):
            parts = [cell[number] if number < len(cell) else "" for cell in cells]
            lines.append("  ".join(part.ljust(size) for part, size in zip(parts, widths, strict=True)).rstrip())
        if row is header:
            lines.append("  ".join("-" * size for size in widths))
    return "\n".join(lines) + "\n"
