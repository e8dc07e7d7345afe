"""What a user may call a checkpoint, what a file inside one may be called, and how a foreign name is put in a sentence.

Knows the forms of a reference and which names stay inside a folder. Opens nothing.
"""

from __future__ import annotations

import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from mtpfix.errors import FormatError, UsageError

LONGEST_PART = 255
"""Bytes of one part of a path: what common file systems allow."""

WIDEST = 200
"""Characters of a foreign text in a sentence; the middle of a longer one is left out."""

_REPOSITORY = re.compile(r"[A-Za-z0-9_][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}", re.ASCII)
_WEB = re.compile(r"https://(?:huggingface\.co|hf\.co)/([^/?#]+/[^/?#]+)(?:/(?:tree|commit)/([^?#]+?))?/?", re.ASCII)
_KINDS = ("datasets", "spaces", "kernels", "buckets")


class PathRefusedError(FormatError):
    """A name from a checkpoint that is not followed: it leaves the folder, or is not a plain relative path."""


@dataclass(frozen=True, slots=True)
class Reference:
    """A model repository on the Hub, and which revision of it: None where that was not said."""

    repository: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repository if self.revision is None else f"{self.repository}@{self.revision}"

    @staticmethod
    def of_repository(name: object) -> Reference | None:
        """Return the reference to a repository by its name alone, None where that is no name."""
        if isinstance(name, str) and _REPOSITORY.fullmatch(name) and not name.endswith(".git"):
            return Reference(name)
        return None


def hub_reference(text: str, revision: str | None = None) -> Reference | None:
    """Return the repository that a text names, None where it has not the form of one.

    The forms are `org/name`, `org/name@revision`, `hf://org/name@revision` and the address of its page. `revision` is
    one said apart. Raises UsageError for another kind of repository, for a revision that cannot be one, and for two.
    """
    body = text.removeprefix("hf://")
    explicit = body != text
    if web := _WEB.fullmatch(text):
        name, said = web[1], unquote(web[2]) if web[2] else None
    else:
        name, mark, after = body.removeprefix("models/" if explicit and body.count("/") > 1 else "").partition("@")
        said = unquote(after) if mark else None
    if explicit and name.split("/")[0] in _KINDS:
        raise UsageError(f"{shown(text)} is not a model repository", "pass hf://org/name of a model")
    found = Reference.of_repository(name)
    if found is None:
        if explicit:
            raise UsageError(
                f"{shown(text)} names no repository", "write it as hf://org/name or hf://org/name@revision"
            )
        return None
    if said is not None and revision is not None and said != revision:
        raise UsageError(f"{shown(text)} names one revision and --revision another", "leave one of them out")
    wanted = revision if said is None else said
    if wanted is not None and not _is_revision(wanted):
        raise UsageError(
            f'"{shown(wanted)}" cannot be a revision', "pass a branch, a tag, refs/pr/1 or a commit's hash"
        )
    return Reference(found.repository, wanted)


def _is_revision(text: str) -> bool:
    """Return whether git could call something so; parts of dots would lead to another address."""
    parts = text.split("/")
    plain = text.isprintable() and not any(character in " ~^:?*[\\" for character in text)
    return bool(text) and plain and len(text) <= LONGEST_PART and not any(part in ("", ".", "..") for part in parts)


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
    try:
        found = hub_reference(text)
    except UsageError:
        found = None
    if found:
        command = shown(str(found)).replace("@", " --revision ", 1)
        raise UsageError(
            f"there is no folder {shown(text)}, and nothing is read from the Hugging Face Hub here",
            f"`mtpfix scan` reads it there; else run `hf download {command}` and pass the folder it prints",
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
