"""What a push would send, and what became of it, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from difflib import unified_diff
from typing import TYPE_CHECKING, Any

from mtpfix import __version__
from mtpfix.checkpoint.ref import shown
from mtpfix.fix.outgoing import LARGEST_SMALL, Delivery, Outgoing
from mtpfix.fix.snapshot import MANIFEST_FILE
from mtpfix.report.summary import size_text

if TYPE_CHECKING:
    from mtpfix.push import Sent

LONGEST_LINE = 400
MOST_LINES = 400
"""Lines of one file's difference that are shown."""


def delivery_text(delivery: Delivery) -> str:
    """Return what would be sent: how small files differ, all but our own of them, then every file with its size."""
    name, commit = delivery.repository.reference.repository, delivery.repository.commit
    if not delivery.files:
        return f"{shown(name)} has all of {shown(str(delivery.folder))} already, at {commit}: nothing is to be sent\n"
    pieces = [line for file in delivery.files for line in _difference(delivery, file)]
    pieces.append(f"{shown(delivery.title, LONGEST_LINE)}\n")
    pieces.append(f"to {shown(name)}, on top of {commit}: {size_text(delivery.bytes)}\n")
    for file in delivery.files:
        size = "" if file.change == "removed" else f" ({size_text(file.size)})"
        pieces.append(f"  {file.change:<8} {shown(file.name)}{size}\n")
    return "".join(pieces)


def _difference(delivery: Delivery, file: Outgoing) -> Iterator[str]:
    if file.content is None or file.large or file.name == MANIFEST_FILE:
        return
    entry = delivery.repository.files.get(file.name)
    small = entry is not None and entry.size <= LARGEST_SMALL
    before = delivery.repository.read_whole(file.name, LARGEST_SMALL) if small else b""
    old, new = ((text or b"").decode("utf-8", "replace").splitlines() for text in (before, file.content))
    origin = f"a/{file.name}" if entry else "/dev/null"
    lines = list(unified_diff(old, new, origin, f"b/{file.name}", lineterm=""))
    for line in lines[:MOST_LINES]:
        yield f"{shown(line, LONGEST_LINE)}\n"
    if len(lines) > MOST_LINES:
        yield f"… {len(lines) - MOST_LINES} more lines\n"


def sent_text(sent: Sent) -> str:
    """Return what became of a push, in a sentence."""
    if not sent.delivery.files:
        return ""
    where = sent.pull or f"{shown(sent.delivery.repository.reference.repository)} at {sent.commit}"
    return f"{'already there' if sent.already else 'sent'}: {shown(where, LONGEST_LINE)}\n"


def render(delivery: Delivery, sent: Sent | None) -> str:
    """Return a push as JSON; `sent` is None where nothing was to be done but look."""
    rows: list[dict[str, Any]] = [
        {"name": file.name, "change": file.change, "bytes": file.size} for file in delivery.files
    ]
    value = {
        "schema": 1,
        "tool": {"name": "mtpfix", "version": __version__},
        "repository": delivery.repository.reference.repository,
        "base": delivery.repository.commit,
        "plan": delivery.digest,
        "title": delivery.title,
        "files": rows,
        "bytes": delivery.bytes,
        "sent": sent is not None and bool(delivery.files) and not sent.already,
        "already": sent is not None and sent.already,
        "pull_request": (sent.pull or None) if sent else None,
        "commit": (sent.commit or None) if sent else None,
    }
    return json.dumps(value, indent=2) + "\n"
