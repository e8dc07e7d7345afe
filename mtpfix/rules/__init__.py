"""Rules: (stored, built) to findings. One rule is one function, and its docstring is its documentation."""

from __future__ import annotations

from collections.abc import Sequence

from mtpfix.model import Finding, Severity
from mtpfix.rules import branch, formats, layout, lists, parallel, scales, settled, support
from mtpfix.rules.context import Context
from mtpfix.rules.registry import Rule, find, registered

MODULES = (branch, formats, scales, lists, layout, parallel, support, settled)
"""The files that hold rules; importing them registers their rules."""

_SEVERITIES = list(Severity)


def run(context: Context) -> tuple[Finding, ...]:
    """Run every rule over a checkpoint: the findings, gravest first, each group by code.

    Where no header was read, only the rules that need none are run.
    """
    rules = [rule for rule in registered().values() if rule.metadata or context.checkpoint.headers]
    found = [finding for rule in rules for finding in rule.judge(context, rule)]
    return tuple(sorted(found, key=lambda finding: (_SEVERITIES.index(finding.severity), finding.rule, finding.module)))


def all_rules() -> Sequence[Rule]:
    """Return every rule, by code."""
    return tuple(registered().values())


__all__ = ["MODULES", "Context", "Rule", "all_rules", "find", "run"]
