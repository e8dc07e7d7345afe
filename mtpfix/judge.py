"""Everything after reading: predict the releases asked for, run the rules, suggest repairs, fill the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from mtpfix.checkpoint import read_scalars
from mtpfix.engines import resolve_requests
from mtpfix.engines.predict import Subject
from mtpfix.families import branch_prefixes
from mtpfix.fix.suggest import suggest
from mtpfix.model import Checkpoint, Fault, Report
from mtpfix.rules import run
from mtpfix.rules.context import Context


def judge(checkpoint: Checkpoint, requests: Sequence[str] | None = None) -> Report:
    """Judge an opened checkpoint against the releases requested (see `mtpfix.engines.resolve_requests`).

    Reads nothing but the few scalars that rules ask for. Raises UsageError for a request that makes no sense.
    """
    subject = Subject(checkpoint)
    scalars = partial(read_scalars, checkpoint) if checkpoint.root is not None else None
    context = Context(subject, tuple(resolve_requests(requests)), scalars)
    family, numbers = subject.family, subject.numbers
    prefixes = branch_prefixes(family, numbers) if family is not None and numbers is not None else ()
    return Report(
        checkpoint=checkpoint,
        architecture=subject.architecture,
        family=family.name if family else None,
        mtp=replace(subject.mtp, prefixes=prefixes),
        stored=subject.stored,
        engines=context.engine_reports(),
        findings=suggest(context, run(context)),
        complete=_complete(checkpoint),
    )


def _complete(checkpoint: Checkpoint) -> bool:
    """Return whether nothing that decides stayed unread: every shard, the index, and the configuration."""
    faults = {problem.fault for problem in checkpoint.problems}
    config_lost = Fault.CONFIG_UNREADABLE in faults and not checkpoint.config
    return not checkpoint.unread and Fault.INDEX_UNREADABLE not in faults and not config_lost
