"""What a user may call a checkpoint, what a file inside one may be called, and how a foreign name is put in a sentence.

Knows the forms of a reference and which names stay inside a folder. Opens nothing.
"""

from __future__ import annotations

import os
import re
import unicodedata
from pathlib import Path

from mtpfix.errors import FormatError, UsageError

LONGEST_PART = 255
"""Bytes of one part of a path: what common file systems allow."""

WIDEST = 200
"""Characters of a foreign text in a sentence; the middle of a longer one is left out."""

_HUB = re.compile(r"hf://.+|[\w][\w.-]*/[\w][\w.-]*(@[\w./-]+)?", re.ASCII)


class PathRefusedError(FormatError):
    """A name from a checkpoint that is not followed: it leaves the folder, or is not a plain relative path."""


def shown(text: str, widest: int = WIDEST) -> str:
    r"""Return foreign text fit for a sentence: what is not printable escaped (`\x1b`), the middle of a long one cut."""
    if len(text) > widest:
        text = f"{text[: widest // 2]}...{text[-(widest // 2) :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def resolve(ref: str | os.PathLike[str]) -> Path:
    """Return the folder that `ref` names.

    Raises UsageError for a file, for a path that is not there, and for a Hub reference.
    """
    text = os.fspath(ref)
    if not text or "\0" in text:
        raise UsageError(
            f'"{shown(text)}" is not the name of a folder', "pass the folder that holds the checkpoint's files"
        )
    path = Path(text).expanduser()
    try:
        if path.is_dir():
            return path
        there = path.exists()
    except OSError as error:
        raise UsageError(
            f"{shown(text)} cannot be looked up: {error.strerror}", "check the path and its permissions"
        ) from None
    if there:
        folder = shown(str(path.parent))
        raise UsageError(f"{shown(text)} is a file, not a folder", f"pass the folder it lies in: {folder}")
    if _HUB.fullmatch(text):
        command = shown(text.removeprefix("hf://")).replace("@", " --revision ", 1)
        raise UsageError(
            f"there is no folder {shown(text)}, and reading from the Hugging Face Hub is not in this version",
            f"run `hf download {command}` and pass the folder it prints",
        )
    raise UsageError(f"there is no folder {shown(text)}", "check the path")


def safe_member(name: str) -> str:
    """Return `name` unchanged if it names a place inside a folder on every system, or raise PathRefusedError.

    Refused: an absolute path, empty parts, `.` and `..`, backslashes, colons (drives and streams of Windows), control
    and invisible characters, and parts longer than 255 bytes.
    """
    fault = _fault(name)
    if fault:
        raise PathRefusedError(f'the path "{shown(name)}" is refused: {fault}', "nothing outside the folder is read")
    return name


def _fault(name: str) -> str | None:
    if not name:
        return "it is empty"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        return "it holds control or invisible characters"
    if name.startswith("/"):
        return "it is absolute"
    if "\\" in name:
        return "it holds a backslash"
    if ":" in name:
        return "it holds a colon"
    for part in name.split("/"):
        if part in ("", ".", ".."):
            return "it leaves the folder" if part == ".." else "one of its parts is empty or a single dot"
        if len(part.encode()) > LONGEST_PART:
            return f"one of its parts is longer than {LONGEST_PART} bytes"
    return None
