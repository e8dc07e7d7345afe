"""From an opened checkpoint to its report: predict the releases asked for, run the rules, offer repairs."""

from __future__ import annotations

from collections.abc import Sequence

from mtpfix.engines import resolve_requests
from mtpfix.engines.predict import Subject
from mtpfix.fix.suggest import suggest
from mtpfix.model import Checkpoint, Fault, Report
from mtpfix.rules import run
from mtpfix.rules.context import Context, Scalars


def judge(checkpoint: Checkpoint, engines: Sequence[str] | None = None, scalars: Scalars | None = None) -> Report:
    """Return the report on a checkpoint for the engines asked for (None: every known release of every known engine).

    `scalars` reads the values of one-element tensors; without it rules that compare scales stay silent. Raises
    UsageError for a request that names no known engine or release.
    """
    subject = Subject(checkpoint)
    context = Context(subject, tuple(resolve_requests(engines)), scalars)
    findings = suggest(context, run(context))
    return Report(
        checkpoint=checkpoint,
        architecture=subject.architecture,
        family=subject.family.name if subject.family else None,
        mtp=subject.mtp,
        stored=subject.stored,
        engines=context.engine_reports(),
        findings=findings,
        complete=is_complete(checkpoint),
    )


def is_complete(checkpoint: Checkpoint) -> bool:
    """Return whether everything was read that a verdict rests on: every shard, the index, and the configuration."""
    faults = {problem.fault for problem in checkpoint.problems}
    lost_index = Fault.INDEX_UNREADABLE in faults and not checkpoint.has_index
    lost_config = Fault.CONFIG_UNREADABLE in faults and not checkpoint.config
    return not (checkpoint.unread or lost_index or lost_config)
