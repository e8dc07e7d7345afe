"""MTP7xx: what was settled about findings, and no longer holds."""

from __future__ import annotations

from collections.abc import Iterator

from mtpfix.model import Finding, Severity
from mtpfix.rules.context import Context
from mtpfix.rules.findings import plain_finding
from mtpfix.rules.registry import Rule, rule


@rule("MTP701", "ignore-expired", Severity.ERROR, metadata=True)
def ignore_expired(context: Context, this: Rule) -> Iterator[Finding]:
    """The configuration of mtpfix ignores findings until a day that has passed.

    The findings it named are reported again. It is an error even where none of them is left, so that nobody relies on
    it unawares.

    Repair: mend what it ignored, give it another day, or take it out.
    """
    for one in context.ignores:
        if one.expired(context.today):
            yield plain_finding(
                this,
                f"The ignore of {one.rule} held until {one.until}; its reason was: {one.reason.rstrip('.')}.",
                module=one.module,
            )
