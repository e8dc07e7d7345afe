"""What a program calls: open a checkpoint, judge it, hand back the report. Prints nothing.

Heavy imports happen inside the functions, so that importing this is cheap.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mtpfix.errors import EXIT_FINDINGS, EXIT_OK
from mtpfix.model import Ignore, Report, Role, Verification

if TYPE_CHECKING:
    from mtpfix.checkpoint.assemble import Progress
    from mtpfix.fix.changes import Written
    from mtpfix.fix.plan import Plan
    from mtpfix.fix.repairs.repair import Branch, Wishes

Scope: TypeAlias = Literal["all", "mtp"]

EVERYTHING = "every shard was read: no index tells apart which of them hold the MTP branch"


def scan(
    ref: str | os.PathLike[str],
    *,
    engines: Sequence[str] | None = None,
    ignores: Sequence[Ignore] = (),
    metadata_only: bool | None = False,
    tp: int = 1,
    scope: Scope = "all",
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Scan the checkpoint in a folder, or in a repository on the Hub, and return the report.

    `ref` is a folder, `org/name`, `org/name@revision` or `hf://org/name`; of a repository only headers, configurations
    and the index are read. A path object always means a folder, and so does a text where such a folder is.

    `engines` are requests such as `vllm`, `vllm==0.19.*` or `vllm>=0.20,<0.24`; without them every known release of
    every known engine is judged. Findings that `ignores` name are left out and counted. `metadata_only` reads no header
    and asks no engine: only what the configurations and the index say is judged; None does so where every shard is a
    git-lfs pointer. `tp` is the tensor-parallel size: with more than one rank, shapes that the engines cannot split are
    findings too. `progress` is told after each shard how many of how many are read.

    Of repositories only: the `scope` `mtp` reads the shards that hold the MTP branch and judges the branch alone;
    `revision` is a branch, a tag, `refs/pr/N` or a commit; `token` stands in for the one the user is logged in with;
    `offline` uses what was read or downloaded before.

    Raises UsageError for a request or a path that makes no sense, NothingToCheck where no checkpoint is, MtpfixError
    where a repository cannot be read; whatever can be said of a damaged checkpoint stands in the report, with
    `complete` false.
    """
    from mtpfix.checkpoint.opening import Access, open_any
    from mtpfix.engines import resolve_requests
    from mtpfix.errors import UsageError
    from mtpfix.families import files_of_branch
    from mtpfix.fix import judge

    if tp < 1:
        raise UsageError(f"a tensor-parallel size of {tp} makes no sense", "give the number of GPUs, 1 or more")
    resolve_requests(engines)  # a request that makes no sense is refused before anything is read
    collecting = gc.isenabled()
    gc.disable()  # a scan makes hundreds of thousands of objects and no cycles: looking for some costs time for nothing
    try:
        opened = open_any(
            ref,
            Access(token, offline, revision),
            progress=progress,
            headers=not metadata_only,
            pointers=metadata_only is None,
            choose=files_of_branch if scope == "mtp" else None,
        )
        report = judge(opened.checkpoint, engines, opened.read_scalars, ignores, ranks=tp)
        if any(one.action == "graft" for found in report.findings for fix in found.fixes for one in fix.operations):
            report = replace(report, base_model=opened.base_model())
        notes = (*report.notes, *opened.notes)
        if scope == "mtp" and not opened.checkpoint.left_out:
            notes = (*notes, EVERYTHING)
        return replace(report, notes=notes, complete=report.complete and opened.complete)
    finally:
        if collecting:
            gc.enable()


def match_models(pattern: str, *, token: str | None = None, offline: bool = False) -> list[str]:
    """Return the names of the model repositories on the Hub that a pattern such as `org/*` matches, sorted.

    Raises UsageError for a pattern without the name of its organization, NothingToCheck where none matches, and
    MtpfixError where the Hub cannot be asked.
    """
    from mtpfix.checkpoint.opening import Access, matching_models

    return matching_models(pattern, Access(token, offline))


def verify(
    ref: str | os.PathLike[str],
    *,
    engine_python: str | os.PathLike[str],
    engine: str | None = None,
    target: bool = True,
    draft: bool = True,
    timeout: float = 3600.0,
    memory: int | None = 4_000_000_000,
) -> Verification:
    """Run the loader of an installed engine on the checkpoint in a folder, without a GPU, and return what it did.

    `engine_python` is the interpreter that has the engine, or the folder of its environment; `engine` is needed where
    it has several. `timeout` is in seconds, `memory` in bytes (None: no limit). Large weights are not read, code in
    the checkpoint is not run, and nothing is written into the folder.

    Raises UsageError for an interpreter or a path that makes no sense, NothingToCheck where no checkpoint is, and
    MtpfixError where the engine could not be asked.
    """
    from mtpfix.probe import observe

    wanted: tuple[tuple[Role, bool], ...] = (("target", target), ("draft", draft))
    roles = [role for role, asked in wanted if asked]
    return observe(ref, engine_python, engine=engine, roles=roles, timeout=timeout, memory=memory)


def choose_rules(report: Report, select: Sequence[str], ignore: Sequence[str]) -> Report:
    """Return a report with the findings of some rules only: codes, their beginnings (`MTP2`), or names.

    Raises UsageError for a text that chooses no rule.
    """
    check_rules((*select, *ignore))
    return replace(
        report,
        findings=tuple(
            finding
            for finding in report.findings
            if (not select or any(_chooses(text, finding.rule, finding.name) for text in select))
            and not any(_chooses(text, finding.rule, finding.name) for text in ignore)
        ),
    )


def check_rules(texts: Iterable[str]) -> None:
    """Raise UsageError for a text that chooses no rule."""
    from mtpfix.errors import UsageError
    from mtpfix.rules import all_rules

    for text in texts:
        if not any(_chooses(text, rule.code, rule.name) for rule in all_rules()):
            raise UsageError(f"no rule is called {text!r}", "`mtpfix explain` without a rule lists them all")


def _chooses(text: str, code: str, name: str) -> bool:
    return bool(text) and (code.startswith(text.upper()) or text.lower() == name)


# ------------------------------------------------------------------------------------------------------- repairs


@dataclass(frozen=True)
class Patched:
    """The result of `patch`: the plan, and what was written, None where nothing was: no need, no way, or not asked."""

    plan: Plan
    written: Written | None

    @property
    def exit_code(self) -> int:
        """Return 0 where every release asked for loads the result, or the checkpoint as it was, else 1."""
        return EXIT_OK if self.plan.complete else EXIT_FINDINGS


def plan(
    ref: str | os.PathLike[str],
    *,
    engines: Sequence[str] | None = None,
    mtp: Branch = "auto",
    input_scale: float | None = None,
    graft: str | os.PathLike[str] | None = None,
    unsafe: bool = False,
    scale_search: bool = False,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Plan:
    """Return the smallest repair of a checkpoint, in a folder or on the Hub, that makes the releases asked for load it.

    `engines` are requests as for `scan`; without a version the newest release that was run is meant. `mtp` says how the
    branch is to be stored: `auto` (the cheapest that loads), `keep`, `bf16` or `nvfp4`. `input_scale` is used where a
    scale of inputs is missing and none can be derived. `graft` is the base model, a folder or a repository on the
    Hub, which the branch, or what is missing of it, is taken from. `unsafe` admits repairs that are not safe.
    `scale_search` quantizes with the block scales of least error. `revision` (of `ref`), `token` and `offline` are as
    for `scan`. Nothing is written.

    Raises UsageError, NothingToCheck, and MtpfixError where part of the checkpoint cannot be read.
    """
    from mtpfix.checkpoint.opening import Access
    from mtpfix.fix.mirror import mirrors
    from mtpfix.fix.patching import prepare

    wishes = _wishes(mtp, input_scale, graft, unsafe=unsafe, scale_search=scale_search)
    with mirrors(Access(token, offline, revision)) as found:
        return prepare(ref, engines, wishes, found, partly=True).plan


def patch(
    ref: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    engines: Sequence[str] | None = None,
    mtp: Branch = "auto",
    input_scale: float | None = None,
    graft: str | os.PathLike[str] | None = None,
    unsafe: bool = False,
    scale_search: bool = False,
    in_place: bool = False,
    overlay: bool = False,
    link: str = "auto",
    device: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    offline: bool = False,
) -> Patched:
    """Repair the checkpoint in a folder as `plan` says, and write the result to the folder `out`.

    With `overlay` the checkpoint may be a repository on the Hub, as the base model may always be: of either no more is
    read than the repair needs. `in_place` changes configuration files where they are, with a backup; `overlay` writes
    only what changes; `link` is how unchanged files come into the result: auto, reflink, hardlink, symlink or copy;
    `device` is where weights are quantized: the CPU unless it names a CUDA device. The source is never changed
    otherwise. Nothing is written where nothing is to be repaired, or where the plan leaves anything open.

    Raises as `plan` does, and MtpfixError where the result is not as planned or cannot be written.
    """
    from mtpfix.checkpoint.opening import Access
    from mtpfix.fix.changes import Link
    from mtpfix.fix.mirror import mirrors
    from mtpfix.fix.patching import carry_out, fetched, prepare

    target = None if out is None else Path(out)
    wishes = _wishes(mtp, input_scale, graft, unsafe=unsafe, scale_search=scale_search)
    with mirrors(Access(token, offline, revision), target) as found:
        prepared = prepare(ref, engines, wishes, found, partly=overlay, in_place=in_place)
        if not prepared.plan.operations or not prepared.plan.complete:
            return Patched(prepared.plan, None)
        prepared = fetched(prepared, found, target, overlay=overlay)
        written = carry_out(prepared, target, in_place=in_place, overlay=overlay, link=Link(link), device=device)
    return Patched(prepared.plan, written)


def _wishes(
    mtp: Branch,
    input_scale: float | None,
    graft: str | os.PathLike[str] | None,
    *,
    unsafe: bool,
    scale_search: bool,
) -> Wishes:
    from mtpfix.fix.repairs.repair import Wishes

    base = graft if graft is None or isinstance(graft, str) else os.path.abspath(graft)  # noqa: PTH100 - not a Path
    return Wishes(mtp, input_scale, base, unsafe, scale_search)
