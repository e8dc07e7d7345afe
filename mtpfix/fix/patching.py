"""A repair from end to end: read the source, plan, write, check. The only module here with effects of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mtpfix.checkpoint import open_checkpoint, read_scalars
from mtpfix.checkpoint.ref import shown
from mtpfix.engines import Request, names, resolve_requests
from mtpfix.engines.predict import Subject
from mtpfix.errors import MtpfixError, NothingToCheck, UsageError
from mtpfix.fix.changes import Changes, Link, Progress, Snapshot, Written
from mtpfix.fix.check import checker
from mtpfix.fix.graft import files_read
from mtpfix.fix.judge import is_complete
from mtpfix.fix.mirror import Mirror
from mtpfix.fix.packing import Packing
from mtpfix.fix.perform import changes_of
from mtpfix.fix.plan import Plan, default_engines, make_plan, plan_of, requests_for
from mtpfix.fix.planfile import check_source, read_plan
from mtpfix.fix.repairs import Wishes
from mtpfix.fix.snapshot import take_snapshot
from mtpfix.fix.trial import Trial
from mtpfix.fix.writer import finish_in_place, refuse_unfinished, write, write_in_place
from mtpfix.model import Verdict
from mtpfix.rules.context import Context


@dataclass(frozen=True)
class Prepared:
    """A plan with what it was made from: the source's files as they were, and the releases asked for."""

    plan: Plan
    context: Context
    snapshot: Snapshot
    reads: tuple[Snapshot, ...] = ()

    def changes(self, packing: Packing | None = None) -> Changes:
        """Return what the writer is to do; `packing` says how weights are quantized, and is told what came of it."""
        return changes_of(self.context.checkpoint, self.plan.operations, self.snapshot, self.reads, packing)


def prepare(ref: str, engines: Sequence[str] | None, wishes: Wishes, *, in_place: bool = False) -> Prepared:
    """Read a checkpoint and plan its repair for the releases asked for.

    With `in_place` a repair in place that was interrupted is finished first; else nothing is written.
    Raises UsageError for a request that makes no sense, NothingToCheck where no release is predicted, and MtpfixError
    where part of the checkpoint cannot be read: what is not known is not repaired.
    """
    with _no_collection():
        return _prepared(ref, engines, wishes, in_place=in_place)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Look for no cycles meanwhile: predictions make millions of objects and none of those."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _prepared(ref: str, engines: Sequence[str] | None, wishes: Wishes, *, in_place: bool) -> Prepared:
    requests = requests_for(engines)
    snapshot, context = _opened(ref, requests, in_place=in_place)
    if all(
        Verdict.UNKNOWN in (release.model("target").verdict, release.model("draft").verdict)
        for release in context.releases
    ):
        first = context.releases[0]
        reason = first.model("target").reason or first.model("draft").reason
        raise NothingToCheck(
            f"no release asked for is predicted for {shown(ref)}: {reason}",
            "see `mtpfix families` and `mtpfix engines`",
        )
    plan = make_plan(context, wishes)
    others = [name for name in names() if not engines and name not in default_engines()]
    if others:
        text = f"Not considered: {', '.join(others)}, of which no release was run here; ask for it with --for."
        plan = replace(plan, notes=(*plan.notes, text))
    reads = tuple(take_snapshot(folder, files) for folder, files in files_read(plan.operations).items())
    return Prepared(plan, context, snapshot, reads)


def _opened(ref: str, requests: tuple[Request, ...], *, in_place: bool) -> tuple[Snapshot, Context]:
    folder = Path(ref)
    if folder.is_dir():
        if in_place:
            finish_in_place(folder)
        else:
            refuse_unfinished(folder)
    checkpoint = open_checkpoint(ref) if not folder.is_dir() else None  # tells what is wrong with the name
    snapshot = take_snapshot(folder)
    checkpoint = checkpoint or open_checkpoint(ref)
    if not is_complete(checkpoint):
        unread = ", ".join(checkpoint.unread[:3]) or "its index or configuration"
        raise MtpfixError(
            f"{shown(ref)} is not repaired while part of it cannot be read: {unread}",
            "`mtpfix scan` says what is wrong; repair or download the files again",
        )
    return snapshot, Context(Subject(checkpoint), requests, partial(read_scalars, checkpoint))


def prepared_from(path: Path, ref: str, *, in_place: bool = False) -> Prepared:
    """Return the plan in a file with the source it was made for; `in_place` as in `prepare`.

    Raises MtpfixError where the source is no longer that, UsageError and FormatError where the file is no plan.
    """
    plan, marks = read_plan(path, ref)
    texts = [text.replace(" ", "==", 1) for text in plan.releases]
    requests = tuple(Request(one.engine, one.releases, explicit=True) for one in resolve_requests(texts))
    snapshot, context = _opened(ref, requests, in_place=in_place)
    check_source(marks[""], snapshot)
    reads = []
    for folder, known in marks.items():
        if folder:
            found = take_snapshot(Path(folder), list(known))
            check_source(known, found)
            reads.append(found)
    return Prepared(plan_of(context, ref, plan.steps), context, snapshot, tuple(reads))


def fetched(prepared: Prepared, mirror: Mirror, progress: Progress | None = None) -> Prepared:
    """Return a plan of a mirror with all that writing it reads filled in. Raises HubError, MtpfixError."""
    mirror.fetch(prepared.changes(), prepared.plan.operations, progress)
    return replace(prepared, snapshot=take_snapshot(mirror.folder))


def carry_out(
    prepared: Prepared,
    out: Path | None,
    *,
    in_place: bool = False,
    overlay: bool = False,
    link: Link = Link.AUTO,
    device: str | None = None,
    progress: Progress | None = None,
) -> Written:
    """Write a plan's result to `out`, or into the source itself, checked before anything is published.

    `device` is where weights are quantized: the CPU unless it names a CUDA device; the bytes are the same. Raises
    UsageError where neither or both of `out` and `in_place` are given, and whatever the writer and the check raise.
    """
    if (out is None) == (not in_place):
        raise UsageError("give either a folder for the result or --in-place", "for example --out DIR")
    trial = Trial(prepared.context, prepared.plan.operations)
    verify = checker(prepared.context, prepared.plan.operations, trial.bad)
    packing = Packing(device)
    changes = prepared.changes(packing)
    if out is None:
        return write_in_place(changes, verify=verify)
    written = write(changes, out, link=link, overlay=overlay, verify=verify, progress=progress)
    return replace(written, errors=packing.errors)
