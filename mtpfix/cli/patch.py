"""The `patch` command."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtpfix.cli.app import Debug, Json, Shape, command, complete_engine, progress_bar, screen, show
from mtpfix.cli.judging import NoProgress, Offline, Revision, Token
from mtpfix.errors import EXIT_FINDINGS, EXIT_OK, UsageError

if TYPE_CHECKING:
    from mtpfix.fix.patching import Prepared


@command("patch", "The smallest repair that makes the chosen engines load it, verified.")
def patch(
    ref: Annotated[
        str,
        typer.Argument(
            metavar="CHECKPOINT",
            help="A folder, or with --overlay a repository on the Hub: org/name, org/name@revision.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Where the repaired checkpoint goes.")
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            "--for",
            metavar="ENGINE",
            help="Releases that must load it: vllm, vllm==0.24.0, 'vllm>=0.23'. Repeatable; without a version the "
            "newest that was run; default: that of every engine.",
            autocompletion=complete_engine,
        ),
    ] = None,
    mtp: Annotated[
        Literal["auto", "keep", "bf16", "nvfp4"],
        typer.Option("--mtp", help="How the branch is to be stored; auto is the cheapest that loads."),
    ] = "auto",
    graft: Annotated[
        str | None,
        typer.Option(
            metavar="BASE_MODEL",
            help="The base model, from which a missing branch is taken: a folder, or on the Hub org/name, "
            "org/name@revision, of which only these tensors are read.",
        ),
    ] = None,
    input_scale: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="The scale of inputs where one is missing and none can be derived."),
    ] = None,
    scale_search: Annotated[
        bool,
        typer.Option(
            "--scale-search", help="Quantize with the block scales of least error, not ModelOpt's; tell both errors."
        ),
    ] = False,
    unsafe_fixes: Annotated[
        bool, typer.Option("--unsafe-fixes", help="Also repairs that rest on a guess or give something up.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and write nothing.")] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Show what changes in the files.")] = False,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="Write the plan there instead of carrying it out.")
    ] = None,
    apply: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Carry out exactly that plan; refuse if the source changed.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Change configuration files where they are, with a backup.")
    ] = False,
    overlay: Annotated[bool, typer.Option("--overlay", help="Write only the files that change.")] = False,
    link: Annotated[
        Literal["auto", "reflink", "hardlink", "symlink", "copy"],
        typer.Option(help="How unchanged files come into the result."),
    ] = "auto",
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Where weights are quantized: cpu, cuda, cuda:1. The bytes are equal.")
    ] = "cpu",
    revision: Revision = None,
    token: Token = None,
    offline: Offline = False,
    no_progress: NoProgress = False,
    shape: Shape = "text",
    as_json: Json = False,
    debug: Debug = False,  # noqa: ARG001 - its callback does it
) -> int:
    """Repair a checkpoint so that the chosen engines load it completely, and check the result before it appears.

    Of a repository on the Hub only headers, configurations and the tensors that the repair needs are read.

    Exit code: 0 the result loads, or nothing was to be done; 1 no repair was found for all releases asked for; 2 it
    could not be done; 3 no release is predicted; 130 interrupted. Without 0 nothing is written.
    """
    chosen = (mtp != "auto", graft, input_scale is not None, unsafe_fixes, scale_search, engine)
    writes = not dry_run and plan_file is None
    _refuse_misuse(out, in_place=in_place, writes=writes, apply=apply, plan_file=plan_file, overlay=overlay)
    if apply is not None and any(chosen):
        raise UsageError(
            "--apply does exactly what the plan says",
            "leave out --for, --mtp, --graft, --input-scale, --scale-search, --unsafe-fixes",
        )
    if input_scale is not None and not 0 < input_scale < 1e30:
        raise UsageError(f"--input-scale must be a positive number, not {input_scale!r}", "for example 1.0")
    from mtpfix.checkpoint.opening import Access
    from mtpfix.fix.changes import Link
    from mtpfix.fix.mirror import mirrors
    from mtpfix.fix.patching import carry_out, fetched, prepare, prepared_from
    from mtpfix.fix.repairs.repair import Wishes

    machine = as_json or shape == "json"
    shown = not (machine or no_progress)
    written = None
    partly = plan_file is None and (overlay or dry_run)
    with mirrors(Access(token, offline, revision), out if writes else None) as found:
        if apply is not None:
            prepared = prepared_from(apply, ref, found, in_place=writes and in_place)
        else:
            wishes = Wishes(mtp, input_scale, graft, unsafe_fixes, scale_search)
            prepared = prepare(ref, engine, wishes, found, partly=partly, in_place=writes and in_place)
        plan = prepared.plan
        code = EXIT_OK if plan.complete else EXIT_FINDINGS
        if plan_file is not None:
            _write_plan(prepared, plan_file)
        if not machine:
            from mtpfix.report.plans import diff_text, plan_text

            show(plan_text(plan, screen("never", None)[0]))
            if diff:
                show(diff_text(prepared))
        if plan.complete and plan.operations and writes:
            if found.made:
                with progress_bar(wanted=shown, doing="reading", of_bytes=True) as tell:
                    prepared = fetched(prepared, found, out, overlay=overlay, progress=tell)
            with progress_bar(wanted=shown, doing="writing", of_bytes=True) as tell:
                written = carry_out(
                    prepared, out, in_place=in_place, overlay=overlay, link=Link(link), device=device, progress=tell
                )
    if machine:
        from mtpfix.report.plans import render

        show(render(plan, written, code))
    elif written is not None:
        from mtpfix.report.plans import written_text

        show(written_text(written))
    return code


def _refuse_misuse(
    out: Path | None, *, in_place: bool, writes: bool, apply: Path | None, plan_file: Path | None, overlay: bool
) -> None:
    if out is not None and in_place:
        raise UsageError("--out and --in-place say different things", "give one of them")
    if writes and out is None and not in_place:
        raise UsageError("there is no place for the result", "give --out DIR, --in-place, --dry-run or --plan FILE")
    if overlay and in_place:
        raise UsageError("--overlay writes to a folder of its own", "give --out DIR with it")
    if apply is not None and plan_file is not None:
        raise UsageError("--plan writes a plan and --apply carries one out", "give one of them")


def _write_plan(prepared: Prepared, path: Path) -> None:
    import json

    from mtpfix.fix.planfile import plan_document
    from mtpfix.report.output import write_file

    called = {str(base.folder): base.reference for base in prepared.bases}
    document = plan_document(prepared.plan, prepared.snapshot, prepared.reads, called)
    write_file(path, json.dumps(document, indent=2, ensure_ascii=True) + "\n")
