"""A repository on the Hub at one commit: its files, from wherever their bytes are at hand.

Asks in this order: what was read before, what the Hugging Face cache holds as a download, and the Hub. Whole files are
held against the hash they are listed with. Offline the Hub is never asked, and what is nowhere else is said to be
missing. Knows nothing of what the files mean, except that a safetensors file begins with its header.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpfix.checkpoint.answers import ONLINE, Entry, EntryAbsentError, HubError, is_hash
from mtpfix.checkpoint.cache import Cache, name_of
from mtpfix.checkpoint.header import PREFIX, header_length, read_at
from mtpfix.checkpoint.hub import Beginning, Hub, assets_folder, downloads_folder
from mtpfix.checkpoint.ref import PathRefusedError, Reference, safe_member, shown
from mtpfix.errors import FormatError

_CONTENTS, _BEGINNINGS, _TREES, _REVISIONS = "contents", "beginnings", "trees", "revisions"
_NEVER = "it was never read or downloaded here, and nothing is asked offline"


@dataclass(slots=True)
class Repository:
    """One commit; `files` are all that it holds, or, where `whole` is False, those that are known offline.

    `reference` names the commit. `places` are the addresses of files as far as the Hub told them, `fresh` the files
    whose beginning it sent.
    """

    reference: Reference
    files: Mapping[str, Entry]
    hub: Hub
    cache: Cache
    downloads: Path
    whole: bool = True
    places: dict[str, str] = field(default_factory=dict)
    fresh: set[str] = field(default_factory=set)

    @property
    def commit(self) -> str:
        """Return the whole hash of the commit."""
        return self.reference.revision or ""

    def read_whole(self, name: str, largest: int) -> bytes | None:
        """Return all bytes of a file, None where the commit has no such file. Raises FormatError, HubError."""
        entry = self.files.get(name)
        if entry is None:
            return None
        if entry.size > largest:
            raise FormatError(f"{shown(name)} has {entry.size} bytes, and more than {largest} are not read", _SMALLER)
        kept = self.cache.read(_CONTENTS, entry.key)
        if kept is not None and _holds(kept, entry):
            return kept
        data = self._downloaded(name, entry, 0, entry.size)
        if data is None or not _holds(data, entry):
            self._check_online(name)
            data = self.hub.whole(self.reference, name, entry) if entry.size else b""
            if not _holds(data, entry):
                raise HubError(f"{shown(name)} has another content than the one that is listed", "scan it again")
        self.cache.write(_CONTENTS, entry.key, data)
        return data

    def must_ask(self, name: str) -> bool:
        """Return whether the beginning of a file lies nowhere at hand, as far as that shows without reading it."""
        entry = self.files[name]
        paths = (*self._places_at_hand(name, entry), self.cache.folder / _BEGINNINGS / entry.key)
        return not self.hub.offline and entry.size >= PREFIX and not any(path.is_file() for path in paths)

    def locate(self, name: str) -> None:
        """Ask the Hub where it redirects to for a large file, so that reading it takes no redirect then."""
        entry = self.files[name]
        if entry.sha256 is not None:
            self.places[name] = self.hub.locate(self.reference, name, entry)

    def read_beginning(self, name: str, wanted: int) -> bytes:
        """Return the header of a safetensors file with the eight bytes before it, and what was read behind it.

        `wanted` is how many bytes are asked for at first. Raises FormatError where it can have no header, HubError.
        """
        entry = self.files[name]

        def needed(first: bytes) -> int:
            return PREFIX + header_length(first, entry.size, name)

        if entry.size < PREFIX:
            raise FormatError(f"{shown(name)}: the file has {entry.size} bytes, too few for the length of a header")
        kept = self.cache.read(_BEGINNINGS, entry.key)
        if kept is not None and PREFIX <= len(kept) <= entry.size and len(kept) >= needed(kept[:PREFIX]):
            return kept
        first = self._downloaded(name, entry, 0, PREFIX)
        if first is not None:
            length = max(needed(first), min(wanted, entry.size))
            data = self._downloaded(name, entry, 0, min(length, entry.size))
            if data is not None:
                return data
        self._check_online(name)
        place = self.places.get(name, "")
        found: Beginning = self.hub.beginning(self.reference, name, entry, wanted, needed, place)
        self.places[name] = found.place
        self.fresh.add(name)
        return found.data

    def keep_beginning(self, name: str, data: bytes) -> None:
        """Keep the beginning of a file for later, once it is known to be sound."""
        if name in self.fresh:
            self.cache.write(_BEGINNINGS, self.files[name].key, data)

    def read_range(self, name: str, start: int, count: int) -> bytes:
        """Return `count` bytes of a file from `start`. Raises HubError, FormatError where it is shorter."""
        entry = self.files.get(name)
        if entry is None:
            raise EntryAbsentError(f"{shown(name)} is not in this commit", "scan it again")
        if start < 0 or count < 0 or start + count > entry.size:
            raise FormatError(f"{shown(name)} has {entry.size} bytes, and some behind its end were wanted")
        if not count:
            return b""
        data = self._downloaded(name, entry, start, count)
        if data is None:
            self._check_online(name)
            data = self.hub.span(self.reference, name, entry, start, count, self.places.get(name, ""))
        return data

    def _check_online(self, name: str) -> None:
        if self.hub.offline:
            raise HubError(f"{shown(name)}: {_NEVER}", ONLINE)

    def _places_at_hand(self, name: str, entry: Entry) -> tuple[Path, ...]:
        """Return where the Hugging Face cache has a file, if it has it."""
        snapshot = self.downloads / "snapshots" / self.commit / name
        return (self.downloads / "blobs" / entry.key, snapshot) if entry.key else (snapshot,)

    def _downloaded(self, name: str, entry: Entry, start: int, count: int) -> bytes | None:
        """Return bytes of a file from the Hugging Face cache, None where it is not there as it is listed."""
        for path in self._places_at_hand(name, entry):
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                if os.fstat(descriptor).st_size == entry.size:
                    return read_at(descriptor, count, start, name)
            except (OSError, FormatError):
                continue
            finally:
                os.close(descriptor)
        return None


_SMALLER = "a configuration or an index is never that large: look at what it holds"


def _holds(data: bytes, entry: Entry) -> bool:
    """Return whether bytes are the content that a file is listed with; of a download without a hash only its size."""
    if len(data) != entry.size:
        return False
    if entry.sha256:
        return hashlib.sha256(data).hexdigest() == entry.sha256
    if len(entry.oid) == 40:
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == entry.oid  # noqa: S324 - git's own
    return not entry.oid or hashlib.sha256(b"blob %d\0" % len(data) + data).hexdigest() == entry.oid


def open_repository(reference: Reference, hub: Hub) -> Repository:
    """Return a repository at the commit that its revision is now, or, offline, was when it was last read.

    Raises HubError, AccessError where it cannot be read.
    """
    endpoint = name_of(hub.endpoint)[:16]  # hashes are the word of an endpoint: what one says is not kept for another
    cache = Cache(assets_folder() / endpoint)
    if hub.offline:
        return _open_offline(reference, hub, cache)
    name, commit = hub.commit(reference)
    cache.write_document(_REVISIONS, name_of(str(reference)), {"repository": name, "commit": commit})
    files = _kept_tree(cache, name, commit)
    if files is None:
        files = hub.tree(name, commit)
        listed = {path: [entry.size, entry.oid, entry.sha256] for path, entry in files.items()}
        cache.write_document(_TREES, name_of(f"{name}@{commit}"), {"files": listed})
    return Repository(Reference(name, commit), files, hub, cache, downloads_folder(name))


def _open_offline(reference: Reference, hub: Hub, cache: Cache) -> Repository:
    downloads = downloads_folder(reference.repository)
    known = cache.read_document(_REVISIONS, name_of(str(reference))) or {}
    told = Reference.of_repository(known.get("repository"))
    commits = [(told.repository if told else reference.repository, known.get("commit"))]
    commits += [(reference.repository, one) for one in (_downloaded_commit(downloads, reference), reference.revision)]
    for name, commit in commits:
        if not isinstance(commit, str) or not is_hash(commit):
            continue
        files = _kept_tree(cache, name, commit)
        if files is not None:
            return Repository(Reference(name, commit), files, hub, cache, downloads_folder(name))
        found = _downloaded_files(downloads / "snapshots" / commit)
        if found:
            return Repository(Reference(name, commit), found, hub, cache, downloads, whole=False)
    raise HubError(f"{shown(str(reference))} is not at hand: {_NEVER}", ONLINE)


def _downloaded_commit(downloads: Path, reference: Reference) -> str | None:
    """Return the commit that a revision was when the Hugging Face cache last asked."""
    try:
        return (downloads / "refs" / (reference.revision or "main")).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _downloaded_files(snapshot: Path) -> dict[str, Entry]:
    """Return the files of one download, which may be some of a commit's."""
    found = {}
    for folder, _, names in os.walk(snapshot):
        for one in names:
            path = Path(folder) / one
            try:
                target = path.resolve(strict=True)
                name = safe_member(path.relative_to(snapshot).as_posix())
                size = target.stat().st_size
            except (OSError, RuntimeError, PathRefusedError):
                continue
            digest = target.name if is_hash(target.name) else ""
            found[name] = Entry(size, digest, digest if len(digest) == 64 else None)
    return found


def _kept_tree(cache: Cache, name: str, commit: str) -> dict[str, Entry] | None:
    kept = (cache.read_document(_TREES, name_of(f"{name}@{commit}")) or {}).get("files")
    if not isinstance(kept, dict):
        return None
    try:
        return {path: _entry(*row) for path, row in kept.items()}
    except (TypeError, ValueError):
        return None


def _entry(size: Any, oid: Any, sha256: Any) -> Entry:
    if type(size) is not int or not is_hash(oid) or not (sha256 is None or is_hash(sha256)):
        raise ValueError("not an entry")
    return Entry(size, oid, sha256)


__all__ = ["Repository", "open_repository"]
