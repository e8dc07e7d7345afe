"""From an opened checkpoint to its report: predict the releases asked for, run the rules, offer repairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase

from mtpfix.engines import load, resolve_requests
from mtpfix.engines.subject import Subject
from mtpfix.fix.suggest import suggest
from mtpfix.model import Checkpoint, Fault, Finding, Ignore, Report
from mtpfix.rules import run
from mtpfix.rules.context import Context, Scalars


def judge(
    checkpoint: Checkpoint,
    engines: Sequence[str] | None = None,
    scalars: Scalars | None = None,
    ignores: Sequence[Ignore] = (),
    *,
    ranks: int = 1,
) -> Report:
    """Return the report on a checkpoint for the engines asked for (None: every known release of every known engine).

    `scalars` reads the values of one-element tensors; without it rules that compare scales stay silent. Findings that
    `ignores` name are left out and counted. `ranks` is the tensor-parallel size the engines are run with. Where the
    checkpoint's headers were not read, no engine is asked about.
    Raises UsageError for a request that names no known engine or release, and for an ignore that names no rule.
    """
    subject = Subject(checkpoint)
    requests = tuple(resolve_requests(engines))
    context = Context(subject, requests if checkpoint.headers else (), scalars, tuple(ignores), ranks=ranks)
    found = run(context)
    accepted = [one for one in ignores if not one.expired(context.today)]
    kept = [finding for finding in found if not any(_ignores(one, finding) for one in accepted)]
    findings = tuple(kept) if checkpoint.left_out else suggest(context, kept)  # half a model proves no repair
    return Report(
        checkpoint=checkpoint,
        architecture=subject.architecture,
        family=subject.family.name if subject.family else None,
        mtp=subject.mtp,
        stored=subject.stored,
        engines=context.engine_reports(),
        findings=findings,
        complete=is_complete(checkpoint),
        notes=tuple(_notes(context)),
        ignored=len(found) - len(kept),
    )


def _notes(context: Context) -> Iterator[str]:
    """Yield what was left unjudged."""
    if not context.checkpoint.headers:
        yield NO_HEADERS
    read, left_out = len(context.checkpoint.shards), len(context.checkpoint.left_out)
    if left_out:
        of = f"{read:,} of {read + left_out:,} shards"
        yield f"only {of}, those of the MTP branch, were read: the main model was not judged, and no repair is offered"
    for engine in dict.fromkeys(request.engine.name for request in context.requests if context.ranks > 1):
        if "split" not in load(engine).table:
            yield f"{load(engine).title} was judged for one rank: which shapes it cannot split is not known"


NO_HEADERS = "only the configurations and the index were judged: no header of a shard was read, no engine asked about"


def _ignores(ignore: Ignore, finding: Finding) -> bool:
    named = finding.rule.startswith(ignore.rule.upper()) or finding.name == ignore.rule.lower()
    return named and fnmatchcase(finding.module, ignore.module)


def is_complete(checkpoint: Checkpoint) -> bool:
    """Return whether everything was read that a verdict rests on: every shard, the index, and the configuration."""
    faults = {problem.fault for problem in checkpoint.problems}
    lost_index = Fault.INDEX_UNREADABLE in faults and not checkpoint.has_index
    lost_config = Fault.CONFIG_UNREADABLE in faults and not checkpoint.config
    return not (checkpoint.unread or lost_index or lost_config)
