"""What a rule is: a code, a name, a severity, and a function whose docstring is its documentation."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from mtpfix.errors import UsageError
from mtpfix.model import Finding, Severity
from mtpfix.rules.context import Context

Judge = Callable[[Context, "Rule"], Iterable[Finding]]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: `code` is stable, `name` is how people say it, `judge` yields its findings.

    `metadata` says that it needs no header of a shard.
    """

    code: str
    name: str
    severity: Severity
    judge: Judge
    metadata: bool = False

    @property
    def documentation(self) -> str:
        """Return the rule's docstring: the first line is its summary."""
        return inspect.getdoc(self.judge) or ""

    @property
    def summary(self) -> str:
        """Return the first sentence of the documentation."""
        return self.documentation.split("\n\n", 1)[0].replace("\n", " ")


_RULES: dict[str, Rule] = {}


def rule(code: str, name: str, severity: Severity, *, metadata: bool = False) -> Callable[[Judge], Judge]:
    """Register a function as the rule of this code."""

    def register(judge: Judge) -> Judge:
        _RULES[code] = Rule(code, name, severity, judge, metadata)
        return judge

    return register


def registered() -> Mapping[str, Rule]:
    """Return the registered rules by code, in ascending order."""
    return dict(sorted(_RULES.items()))


def find(text: str) -> Rule:
    """Return a rule by its code or its name; raises UsageError for an unknown one."""
    for known in _RULES.values():
        if text.lower() in (known.code.lower(), known.name):
            return known
    raise UsageError(f"no rule is called {text!r}", "`mtpfix explain` without a rule lists them all")
