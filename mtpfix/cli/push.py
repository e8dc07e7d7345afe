"""The `push` command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mtpfix.cli.app import Debug, Json, Shape, command, progress_bar, show
from mtpfix.cli.judging import NoProgress, Token
from mtpfix.errors import EXIT_FINDINGS, EXIT_OK, UsageError


@command("push", "Send what a repair changed to the Hub, as a pull request.")
def push(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="What `mtpfix patch --out` wrote.")],
    repo: Annotated[str, typer.Argument(metavar="REPOSITORY", help="The repository on the Hub: org/name.")],
    create_pr: Annotated[
        bool,
        typer.Option(
            "--create-pr/--no-create-pr", help="Open a pull request, or commit to main or to org/name@branch itself."
        ),
    ] = True,
    card: Annotated[bool, typer.Option("--card", help="Add a section on the repair to the model card.")] = False,
    message: Annotated[
        str | None, typer.Option("--message", "-m", metavar="TEXT", help="The title, in place of ours.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be sent, and send nothing.")] = False,
    token: Token = None,
    shape: Shape = "text",
    as_json: Json = False,
    no_progress: NoProgress = False,
    debug: Debug = False,  # noqa: ARG001 - its callback does it
) -> int:
    """Send the files of a folder that a repository does not have so: a repair of lists moves no weights.

    Shows what differs and asks, unless --yes. The same push again finds its pull request and sends nothing. Exit code:
    0 it is there, or nothing was to be sent; 1 you said no; 2 it could not be done; 130 interrupted.
    """
    machine = as_json or shape == "json"
    _refuse_misuse(machine=machine, yes=yes, dry_run=dry_run, message=message)
    from mtpfix.push import prepare_push, send
    from mtpfix.report.delivery import delivery_text, render, sent_text

    _quieten(wanted=not (machine or no_progress))
    with progress_bar(wanted=not (machine or no_progress), doing="hashing") as progress:
        total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if progress else 0
        done = 0

        def tell(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None:
                progress(min(done, total), total)

        delivery = prepare_push(folder, repo, token=token, create_pr=create_pr, card=card, title=message, tell=tell)
    if not machine:
        show(delivery_text(delivery))
    if dry_run or not delivery.files:
        if machine:
            show(render(delivery, None))
        return EXIT_OK
    if not yes and not _agreed("Send it? [y/N] "):
        return EXIT_FINDINGS
    sent = send(delivery, create_pr=create_pr)
    show(render(delivery, sent) if machine else sent_text(sent))
    return EXIT_OK


def _refuse_misuse(*, machine: bool, yes: bool, dry_run: bool, message: str | None) -> None:
    if not (yes or dry_run) and (machine or not _is_asked()):
        raise UsageError("there is nobody to ask whether to send it", "give --yes, or --dry-run to look first")
    if message is not None and (not message.strip() or not message.isprintable() or len(message) > 200):
        raise UsageError("a title is one line of at most 200 characters", "give another --message")


def _quieten(*, wanted: bool) -> None:
    """Let the Hub's client draw its bars only where somebody sees them."""
    if not (wanted and sys.stderr.isatty()):
        from mtpfix.push import hide_bars

        hide_bars()


def _is_asked() -> bool:
    """Return whether somebody sits there who can answer."""
    return sys.stdin.isatty()


def _agreed(question: str) -> bool:
    sys.stderr.write(question)
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
