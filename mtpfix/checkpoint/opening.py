"""What a user names, opened: a folder where there is one, else a repository on the Hub.

Knows which of the two is meant, and nothing of how either is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtpfix.checkpoint.assemble import Progress
from mtpfix.checkpoint.card import CARD_FILE, LARGEST_CARD, base_model_of
from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import read_at
from mtpfix.checkpoint.local import open_checkpoint, read_scalars
from mtpfix.checkpoint.ref import Reference, hub_reference, shown
from mtpfix.errors import MtpfixError, NothingToCheck, UsageError
from mtpfix.model import Checkpoint

if TYPE_CHECKING:
    from mtpfix.checkpoint.remote import Choose, Remote

HF = "hf://"


@dataclass(frozen=True, slots=True)
class Access:
    """How the Hub is asked: with which token (None: the one the user is logged in with), at all, and which revision."""

    token: str | None = None
    offline: bool = False
    revision: str | None = None

    def __repr__(self) -> str:
        """Return a text without the token."""
        return f"Access(offline={self.offline}, revision={self.revision!r})"


@dataclass(frozen=True, slots=True)
class Opened:
    """An open checkpoint: `read_scalars` reads single numbers of it, `remote` is where it lies if that is the Hub."""

    checkpoint: Checkpoint
    read_scalars: Callable[[Any], Any]
    remote: Remote | None = None

    def base_model(self) -> str:
        """Return the repository that the checkpoint names as its base model, empty where it names none."""
        card = b""
        with suppress(MtpfixError, OSError):
            if self.remote is not None:
                card = self.remote.repository.read_whole(CARD_FILE, LARGEST_CARD) or b""
            elif self.checkpoint.root is not None:
                with opened(self.checkpoint.root, CARD_FILE) as descriptor:
                    card = read_at(descriptor, min(os.fstat(descriptor).st_size, LARGEST_CARD), 0, CARD_FILE)
        return base_model_of(card, self.checkpoint.config, self.checkpoint.ref)

    @property
    def notes(self) -> Sequence[str]:
        """Return sentences about the reading itself."""
        return tuple(self.remote.notes) if self.remote else ()

    @property
    def complete(self) -> bool:
        """Whether all numbers that were asked for could be read."""
        return self.remote.complete if self.remote else True


def meant(ref: str | os.PathLike[str], revision: str | None = None) -> Reference | None:
    """Return the repository on the Hub that a user means, None where a folder is meant.

    A folder that is there is meant, unless the text begins with `hf://`; a path object always means a folder. Raises
    UsageError for a reference that cannot be one, and for a revision of a folder.
    """
    if isinstance(ref, str) and (ref.startswith(HF) or not _is_there(ref)):
        found = hub_reference(ref, revision)
        if found:
            return found
    if revision is not None:
        raise UsageError("--revision is for repositories on the Hub, and this is a folder", "leave it out")
    return None


def open_any(
    ref: str | os.PathLike[str],
    access: Access | None = None,
    *,
    progress: Progress | None = None,
    headers: bool = True,
    pointers: bool = False,
    choose: Choose | None = None,
) -> Opened:
    """Open what a user names; `choose` concerns repositories, `pointers` folders, the rest is as of `open_checkpoint`.

    Raises UsageError, NothingToCheck, and HubError where a repository cannot be read at all.
    """
    access = access or Access()
    reference = meant(ref, access.revision)
    if reference is None:
        checkpoint = open_checkpoint(ref, progress=progress, headers=headers, pointers=pointers)
        return Opened(checkpoint, partial(read_scalars, checkpoint))
    from mtpfix.checkpoint.answers import RepositoryAbsentError
    from mtpfix.checkpoint.hub import connect
    from mtpfix.checkpoint.remote import open_remote

    hub, name = connect(token=access.token, offline=access.offline), reference.repository
    try:
        remote = open_remote(reference, hub, ref=name, progress=progress, headers=headers, choose=choose)
    except RepositoryAbsentError as error:
        if str(ref).startswith((HF, "https://")):
            raise
        raise RepositoryAbsentError(f"{error.message}, and there is no folder {shown(str(ref))}", error.hint) from None
    return Opened(remote.checkpoint, remote.read_scalars, remote)


def matching_models(pattern: str, access: Access) -> list[str]:
    """Return the model repositories on the Hub that `org/pattern` matches, sorted.

    Raises UsageError for a pattern without an organization, NothingToCheck where none matches, HubError.
    """
    organization, _, rest = pattern.removeprefix(HF).partition("/")
    if Reference.of_repository(f"{organization}/any") is None or not rest or "/" in rest:
        raise UsageError(f"{shown(pattern)} names no repositories", "write org/* or org/name-*")
    from mtpfix.checkpoint.hub import connect

    names = connect(token=access.token, offline=access.offline).models(organization)
    found = [name for name in names if fnmatchcase(name.partition("/")[2], rest)]
    if not found:
        raise NothingToCheck(f"no model repository matches {shown(pattern)}", "check the name of the organization")
    return found


def _is_there(text: str) -> bool:
    try:
        return bool(text) and "\0" not in text and Path(text).expanduser().exists()
    except (OSError, RuntimeError):
        return True  # then the reader of folders tells what is wrong with it
