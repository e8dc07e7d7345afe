"""Repositories as the Hub keeps them: files by content, commits that are whole lists of files, branches that move.

Knows nothing of HTTP. A file is held in memory or lies on disk; large files on disk are never read to be named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

LARGE = 64_000_000
"""Bytes above which the name of a file on disk is made of its beginning and its size, not of all that it holds."""

REGULAR_LIMIT = 10_000_000
"""Bytes up to which a file is kept in git itself, unless its name says that it holds weights."""

MAIN = "main"


@dataclass(frozen=True, slots=True)
class File:
    """One version of a file: `content` is its bytes or where they lie, `oid` its name in git, `sha256` that in LFS."""

    content: bytes | Path
    size: int
    oid: str
    sha256: str | None = None

    def read(self, start: int = 0, count: int | None = None) -> bytes:
        """Return `count` bytes from `start`, or all that follow."""
        count = self.size - start if count is None else count
        if isinstance(self.content, bytes):
            return self.content[start : start + count]
        with self.content.open("rb") as file:
            file.seek(start)
            return file.read(count)

    @property
    def etag(self) -> str:
        """Return what the Hub calls this content."""
        return self.sha256 or self.oid


def file_of(content: bytes | Path, name: str, *, lfs: bool | None = None) -> File:
    """Return a file as the Hub would keep it; `lfs` decides where its name and size do not."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if lfs is None:
        lfs = size > REGULAR_LIMIT or name.endswith((".safetensors", ".bin", ".pt"))
    if not lfs:
        data = content if isinstance(content, bytes) else content.read_bytes()
        return File(content, size, hashlib.sha1(b"blob %d\0" % size + data).hexdigest())  # noqa: S324 - git's own
    if isinstance(content, Path) and size > LARGE:
        with content.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest = hashlib.sha256(b"%d %s " % (size, name.encode()) + file.read(min(length, LARGE))).hexdigest()
    else:
        data = content if isinstance(content, bytes) else content.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n" % (digest.encode(), size)
    oid = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()  # noqa: S324 - git's own
    return File(content, size, oid, digest)


@dataclass(frozen=True, slots=True)
class Commit:
    """One commit: every file by path, and what was said about it."""

    sha: str
    parent: str | None
    files: Mapping[str, File]
    title: str = ""
    description: str = ""


@dataclass(slots=True)
class Pull:
    """A pull request, as its page tells it; its commits are those of `refs/pr/NUMBER`."""

    number: int
    title: str
    description: str
    author: str
    commit: str
    status: str = "open"


@dataclass(slots=True)
class Repository:
    """One model repository; `refs` lead from branches, tags and `refs/pr/N` to commits.

    `gated` lets everybody see that it is there and only `readers` read its files; `private` hides it from others.
    """

    name: str
    private: bool = False
    gated: Literal[False, "auto", "manual"] = False
    disabled: bool = False
    readers: set[str] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)
    refs: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    pulls: list[Pull] = field(default_factory=list)

    def commit(
        self,
        changes: Mapping[str, File | None],
        *,
        to: str = MAIN,
        parent: str | None = None,
        title: str = "",
        description: str = "",
    ) -> Commit:
        """Add a commit on top of `parent` (or of where `to` stands) and move `to` there; None removes a file."""
        base = self.commits.get(parent or self.refs.get(to, ""))
        files = dict(base.files) if base else {}
        for path, file in changes.items():
            if file is None:
                files.pop(path, None)
            else:
                files[path] = file
        told = [self.name, len(self.commits), base.sha if base else None, title, description]
        told.append(sorted((path, file.etag) for path, file in files.items()))
        sha = hashlib.sha1(json.dumps(told).encode()).hexdigest()  # noqa: S324 - git's own
        commit = Commit(sha, base.sha if base else None, files, title, description)
        self.commits[sha] = commit
        self.refs[to] = sha
        return commit

    def at(self, revision: str) -> Commit | None:
        """Return the commit that a branch, a tag, a pull request or a hash (whole) names."""
        return self.commits.get(self.refs.get(revision, revision))


def files_in(folder: Path) -> dict[str, File]:
    """Return the files of a folder as a commit holds them."""
    return {
        path.relative_to(folder).as_posix(): file_of(path, path.name)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
