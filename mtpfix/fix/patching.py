"""A repair from end to end: read the source, plan, write, check. The only module here with effects of its own."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from mtpfix.checkpoint import open_checkpoint, read_scalars
from mtpfix.checkpoint.opening import HF
from mtpfix.checkpoint.ref import shown
from mtpfix.engines import Request, names, resolve_requests
from mtpfix.engines.subject import Subject
from mtpfix.errors import MtpfixError, NothingToCheck, UsageError
from mtpfix.fix.changes import Changes, Link, Progress, Snapshot, Written
from mtpfix.fix.check import checker
from mtpfix.fix.graft import files_read
from mtpfix.fix.judge import is_complete
from mtpfix.fix.mirror import Mirror, Mirrors
from mtpfix.fix.packing import Packing
from mtpfix.fix.perform import changes_of
from mtpfix.fix.plan import Plan, default_engines, make_plan, plan_of, requests_for
from mtpfix.fix.planfile import check_source, moved, read_plan
from mtpfix.fix.repairs.repair import Wishes
from mtpfix.fix.snapshot import take_snapshot
from mtpfix.fix.trial import Trial
from mtpfix.fix.writer import finish_in_place, is_there, refuse_unfinished, write, write_in_place
from mtpfix.rules.context import Context


@dataclass(frozen=True)
class Prepared:
    """A plan with what it was made from: the source's files as they were, and the releases asked for.

    `source` is the source's mirror where it lies on the Hub, `bases` are those of what tensors are taken from.
    """

    plan: Plan
    context: Context
    snapshot: Snapshot
    reads: tuple[Snapshot, ...] = ()
    source: Mirror | None = None
    bases: tuple[Mirror, ...] = ()

    def changes(self, packing: Packing | None = None) -> Changes:
        """Return what the writer is to do; `packing` says how weights are quantized, and is told what came of it."""
        return changes_of(self.context.checkpoint, self.plan.operations, self.snapshot, self.reads, packing)


def prepare(
    ref: str | os.PathLike[str],
    engines: Sequence[str] | None,
    wishes: Wishes,
    mirrors: Mirrors | None = None,
    *,
    partly: bool = False,
    in_place: bool = False,
) -> Prepared:
    """Read a checkpoint, in a folder or on the Hub, and plan its repair for the releases asked for.

    `wishes.graft` may name a repository too. Without `mirrors` only folders are read. `partly` says that no more than
    changed files is wanted. With `in_place` a repair in place that was interrupted is finished first; else nothing is
    written but mirrors.
    Raises UsageError for a request that makes no sense, NothingToCheck where no release is predicted, and MtpfixError
    where part of the checkpoint cannot be read: what is not known is not repaired.
    """
    source = base = None
    if mirrors is not None:
        source = mirrors.source(ref, overlay=partly)
        base = None if wishes.graft is None else mirrors.base(wishes.graft)
    here = os.fspath(ref) if source is None else str(source.folder)
    if base is not None:
        wishes = replace(wishes, graft=str(base.folder))
    with _no_collection():
        found = _prepared(here, engines, wishes, in_place=in_place)
    if source is not None:
        found = replace(found, plan=replace(found.plan, ref=source.name), source=source)
    return found if base is None else _taking(found, (base,))


def _taking(prepared: Prepared, bases: tuple[Mirror, ...]) -> Prepared:
    """Return a plan that takes tensors from mirrors, and says how much that is."""
    taken = [(base, base.taken_by(prepared.plan.operations)) for base in bases]
    sizes = [
        (base.called, sum(end - begin for spans in files.values() for begin, end in spans)) for base, files in taken
    ]
    downloads = tuple((name, size) for name, size in sizes if size)
    return replace(prepared, plan=replace(prepared.plan, downloads=downloads), bases=bases)


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
    plan = make_plan(context, wishes)
    if len(plan.unpredicted) == len(plan.releases):
        first = context.releases[0]
        reason = first.model("target").reason or first.model("draft").reason
        raise NothingToCheck(
            f"no release asked for is predicted for {shown(ref)}: {reason}",
            "see `mtpfix families` and `mtpfix engines`",
        )
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


def prepared_from(path: Path, ref: str, mirrors: Mirrors, *, in_place: bool = False) -> Prepared:
    """Return the plan in a file with the source it was made for; `in_place` as in `prepare`.

    Raises MtpfixError where the source, or what tensors are taken from, is no longer that, UsageError and FormatError
    where the file is no plan.
    """
    mirrors.source(ref, overlay=False)  # of a repository there is no plan in a file
    plan, named = read_plan(path, ref)
    bases = tuple(mirrors.base_of(plan.operations, key) for key in named if key.startswith(HF))
    folders = {base.reference: str(base.folder) for base in bases}
    plan = replace(plan, steps=moved(plan.steps, folders))
    marks = {folders.get(key, key): files for key, files in named.items()}
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
    return _taking(Prepared(plan_of(context, ref, plan.steps), context, snapshot, tuple(reads)), bases)


def fetched(
    prepared: Prepared,
    mirrors: Mirrors,
    out: Path | None,
    *,
    overlay: bool = False,
    progress: Progress | None = None,
) -> Prepared:
    """Return a plan with all that writing it to `out` reads of mirrors filled in: nothing where the result is there.

    Raises HubError, MtpfixError.
    """
    operations = prepared.plan.operations
    if not (prepared.bases or prepared.source is not None):
        return prepared
    if out is not None and is_there(prepared.changes(), out, overlay=overlay):
        return prepared
    wanted = [(base, base.taken_by(operations)) for base in prepared.bases]
    if prepared.source is not None:
        wanted.append((prepared.source, prepared.source.needed_for(prepared.changes(), operations)))
    mirrors.fetch(wanted, progress)
    snapshot = prepared.snapshot if prepared.source is None else take_snapshot(prepared.source.folder)
    return replace(
        prepared, snapshot=snapshot, reads=tuple(take_snapshot(one.folder, one.files) for one in prepared.reads)
    )


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
