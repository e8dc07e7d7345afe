"""Which files of a folder a repository does not have so: what a push sends, and what it says about itself.

Compares a folder with one commit of a repository. Where the folder holds a manifest, that says which files a repair
changed, and the others are only held against it; else every file is compared. Knows hashes as git and LFS write them.
Reads of the Hub, and sends nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from mtpfix import __version__
from mtpfix.checkpoint.card import CARD_FILE
from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import read_at
from mtpfix.checkpoint.hub import Entry, is_hash
from mtpfix.checkpoint.ref import safe_member, shown
from mtpfix.checkpoint.repository import Repository
from mtpfix.errors import FormatError, MtpfixError, UsageError
from mtpfix.fix.card import with_section
from mtpfix.fix.changes import FileMark, Snapshot
from mtpfix.fix.manifest import SCHEMA, read_manifest
from mtpfix.fix.snapshot import MANIFEST_FILE, is_shard, take_snapshot
from mtpfix.fix.writer import refuse_unfinished

LARGEST_SMALL = 10_000_000
"""Bytes up to which a file is held in memory, shown as a diff, and known by the name that git would give it."""

MOST_TOLD = 20
"""Operations that a description spells out."""

MAIN = "main"
"""The branch that a repository shows."""

SHORT = 12
"""Digits of a plan's digest in a title."""

_CHUNK = 8 << 20

Change: TypeAlias = Literal["new", "edited", "removed"]
Tell: TypeAlias = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One file that is to be sent: `content` where it is small, `keys` are what git and LFS would call it."""

    name: str
    change: Change
    size: int = 0
    content: bytes | None = None
    keys: tuple[str, ...] = ()

    @property
    def large(self) -> bool:
        """Whether it is no file of the configuration, whose bytes are of interest to people."""
        return self.change != "removed" and (self.content is None or is_shard(self.name))

    def is_at(self, entry: Entry | None) -> bool:
        """Return whether a commit that lists this entry for the name holds the file as it is here."""
        if self.change == "removed" or entry is None:
            return self.change == "removed" and entry is None
        return entry.size == self.size and entry.key in self.keys


@dataclass(frozen=True, slots=True)
class Delivery:
    """What is to be sent: `files` differ from the commit of `repository`, `digest` names the plan behind them.

    `before` is the snapshot of the files that are read once more when they are sent; `branch` is what is written to, or
    a pull request is made against.
    """

    folder: Path
    repository: Repository
    files: tuple[Outgoing, ...]
    digest: str
    title: str
    description: str
    before: Snapshot
    branch: str = MAIN

    @property
    def bytes(self) -> int:
        """Bytes of all files that are sent."""
        return sum(file.size for file in self.files)


def prepare_delivery(
    folder: Path, repository: Repository, *, card: bool = False, title: str | None = None, tell: Tell | None = None
) -> Delivery:
    """Return what a folder has and a commit has not; nothing in it if they are alike.

    `card` adds a section to the model card, `title` is said in place of ours, `tell` is told of bytes that were hashed.
    Raises UsageError where the folder is no repair of this repository or was edited since, MtpfixError where it cannot
    be read or the repository changed since.
    """
    manifest = _manifest(folder)
    refuse_unfinished(folder)
    files = list(_changed(folder, manifest, repository) if manifest else _different(folder, repository, tell))
    if all(file.name == MANIFEST_FILE for file in files):
        files = []
    if manifest and files:
        _check_base(manifest, repository)
    digest = str(manifest["plan"]) if manifest else _digest_of(files)
    operations = _operations(manifest)
    if card and files:
        files = [file for file in files if file.name != CARD_FILE]
        known = repository.read_whole(CARD_FILE, LARGEST_SMALL)
        text = with_section(known, operations[:MOST_TOLD], digest)
        if text != known:
            files.append(_small(CARD_FILE, text, repository.files.get(CARD_FILE)))
    names = [file.name for file in files if file.change != "removed" and file.content is None]
    about = title or _title(files, operations)
    return Delivery(
        folder,
        repository,
        tuple(sorted(files, key=lambda file: file.name)),
        digest,
        f"{about} [mtpfix {digest[:SHORT]}]",
        _description(operations, repository, digest),
        take_snapshot(folder, names),
    )


# ------------------------------------------------------------------------------------------------ with a manifest


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    """Return the manifest in a folder, None if it has none. Raises FormatError for one that is not whole."""
    if not folder.is_dir():
        raise UsageError(f"there is no folder {shown(str(folder))}", "give the folder that `mtpfix patch --out` wrote")
    if not (folder / MANIFEST_FILE).exists():
        return None
    found = read_manifest(folder) or {}
    base = found.get("base")
    whole = (
        found.get("schema") == SCHEMA
        and isinstance(found.get("plan"), str)
        and is_hash(found["plan"])
        and isinstance(base, dict)
        and all(_is_row(row, "sha256") for row in _listed(found, "files"))
        and all(_is_row(row) for row in _listed(found, "unchanged"))
        and all(isinstance(name, str) for name in _listed(found, "removed"))
    )
    if not whole:
        hint = "write the folder again with `mtpfix patch`, or remove the file to compare every file"
        raise FormatError(f"{MANIFEST_FILE} in {shown(str(folder))} is not a manifest of this version of mtpfix", hint)
    return found


def _listed(manifest: Mapping[str, Any], key: str) -> Sequence[Any]:
    rows = manifest.get(key)
    return rows if isinstance(rows, list) else [None]


def _is_row(row: object, *texts: str) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("name"), str)
        and type(row.get("size")) is int
        and all(isinstance(row.get(text), str) for text in texts)
    )


def _changed(folder: Path, manifest: Mapping[str, Any], repository: Repository) -> Iterator[Outgoing]:
    """Yield the files that a repair changed and the commit has not so. Raises UsageError where one was edited since."""
    for row in manifest["files"]:
        name = safe_member(row["name"])
        if row["change"] == "edited" and name not in repository.files:
            raise UsageError(f"{repository.reference.repository} has no {shown(name)}, which was repaired", _OTHER)
        file = _outgoing(folder, name, repository.files.get(name), None)
        if file.size != row["size"] or row["sha256"] not in file.keys:
            raise UsageError(
                f"{shown(name)} is not what the repair wrote: it was edited since",
                f"run `mtpfix patch` again, or remove {MANIFEST_FILE} to compare every file",
            )
        if not file.is_at(repository.files.get(name)):
            yield file
    for name in map(safe_member, manifest["removed"]):
        if name in repository.files:
            yield Outgoing(name, "removed")
    file = _outgoing(folder, MANIFEST_FILE, repository.files.get(MANIFEST_FILE), None)
    if not file.is_at(repository.files.get(MANIFEST_FILE)):
        yield file


def _check_base(manifest: Mapping[str, Any], repository: Repository) -> None:
    """Raise UsageError where the commit is not what was repaired, MtpfixError where it was changed since."""
    name, entries = repository.reference.repository, repository.files
    for row in manifest["unchanged"]:
        entry = entries.get(row["name"])
        if is_shard(row["name"]) and (entry is None or entry.size != row["size"]):
            what = "is not there" if entry is None else "has another size"
            raise UsageError(f"{name} is not what was repaired: {shown(row['name'])} {what} there", _OTHER)
    revision = manifest["base"].get("revision")
    if revision == repository.commit or not isinstance(revision, str) or not is_hash(revision):
        return
    try:
        old = repository.hub.tree(name, revision)
    except MtpfixError:
        return  # a commit of the repository that this one was copied from
    for one in (*(row["name"] for row in manifest["files"]), *manifest["removed"]):
        if old.get(one) != entries.get(one):
            raise MtpfixError(
                f"{name} changed since it was repaired: {shown(one)} is another one now", f"patch {name} again"
            )


# --------------------------------------------------------------------------------------------- without a manifest


def _different(folder: Path, repository: Repository, tell: Tell | None) -> Iterator[Outgoing]:
    """Yield every file of the folder that the commit has not so; files that only the commit has stay there."""
    for name, mark in take_snapshot(folder).files.items():
        if name.split("/")[0].startswith("."):
            continue
        entry = repository.files.get(name)
        if entry is not None and entry.size != mark.size and mark.size > LARGEST_SMALL:
            yield _without_hash(name, entry, mark)
            continue
        file = _outgoing(folder, name, entry, tell)
        if not file.is_at(entry):
            yield file


def _without_hash(name: str, entry: Entry | None, mark: FileMark) -> Outgoing:
    return Outgoing(name, "new" if entry is None else "edited", mark.size)


def _digest_of(files: Iterable[Outgoing]) -> str:
    rows = [[file.name, file.change, file.size, *file.keys] for file in files]
    return hashlib.sha256(json.dumps([__version__, rows]).encode()).hexdigest()


# ---------------------------------------------------------------------------------------------------------- files


def _outgoing(folder: Path, name: str, entry: Entry | None, tell: Tell | None) -> Outgoing:
    """Return a file with its hashes. Raises FormatError for what is no file, UsageError where it cannot be read."""
    try:
        with opened(folder, name) as descriptor:
            size = os.fstat(descriptor).st_size
            if size <= LARGEST_SMALL:
                return _small(name, read_at(descriptor, size, 0, name), entry)
            digest = hashlib.sha256()
            for begin in range(0, size, _CHUNK):
                digest.update(read_at(descriptor, min(_CHUNK, size - begin), begin, name))
                if tell is not None:
                    tell(min(_CHUNK, size - begin))
    except OSError as error:
        raise UsageError(f"{shown(name)} cannot be read: {error.strerror}", "check its permissions") from None
    return Outgoing(name, "new" if entry is None else "edited", size, keys=(digest.hexdigest(),))


def _small(name: str, content: bytes, entry: Entry | None) -> Outgoing:
    blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # noqa: S324 - git's own
    keys = (hashlib.sha256(content).hexdigest(), blob)
    return Outgoing(name, "new" if entry is None else "edited", len(content), content, keys)


# ---------------------------------------------------------------------------------------------------------- words

_OTHER = "push to the repository that was repaired, or patch this one"


def _operations(manifest: Mapping[str, Any] | None) -> list[str]:
    """Return what was done, a line for each operation."""
    rows = manifest.get("operations", []) if manifest else []
    found = []
    for row in rows if isinstance(rows, list) else []:
        if isinstance(row, dict):
            file, value = shown(str(row.get("file", ""))), shown(str(row.get("value", "")))
            found.append(" ".join(part for part in (str(row.get("action", "")), value, file and f"({file})") if part))
    return found


def _title(files: Sequence[Outgoing], operations: Sequence[str]) -> str:
    if operations:
        return "Repair the MTP branch"
    return f"Update {files[0].name}" if len(files) == 1 else f"Update {len(files)} files"


def _description(operations: Sequence[str], repository: Repository, digest: str) -> str:
    lines = [f"Written by mtpfix {__version__}, on top of {repository.commit}.", ""]
    lines += [f"- {text}" for text in operations[:MOST_TOLD]]
    if len(operations) > MOST_TOLD:
        lines.append(f"- {len(operations) - MOST_TOLD} more: see {MANIFEST_FILE}")
    lines += ["", f"Plan: {digest}"]
    return "\n".join(lines)
