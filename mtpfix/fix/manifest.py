"""`mtpfix.json`: what was done to a checkpoint, with the hashes by which anyone can check it.

The same plan gives the same bytes: there is no time in it, no path of this machine, nothing of how files were linked.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtpfix import __version__
from mtpfix.checkpoint.document import parse_document
from mtpfix.checkpoint.folder import opened, published
from mtpfix.errors import MtpfixError
from mtpfix.fix.changes import (
    Changes,
    EditedFile,
    EditedShard,
    NewShard,
    NewTensor,
    RemovedFile,
    Snapshot,
    WrittenFile,
)
from mtpfix.fix.snapshot import MANIFEST_FILE, content_digest, read_file

SCHEMA = 1

_CHUNK = 8 << 20
_TOOL = "mtpfix"


def plan_digest(changes: Changes, *, overlay: bool) -> str:
    """Return the SHA-256 that names a plan: the source's contents, the changes, and this tool's version."""
    plan = {
        "tool": [_TOOL, __version__],
        "base": [changes.base, changes.revision],
        "source": content_digest(changes.source),
        "reads": [content_digest(read) for read in changes.reads],
        "operations": [asdict(operation) for operation in changes.operations],
        "files": [_described(change) for change in changes.files],
        "overlay": overlay,
    }
    return hashlib.sha256(json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _described(change: Any) -> dict[str, Any]:
    match change:
        case EditedFile(name, content):
            return {"edit": name, "sha256": hashlib.sha256(content).hexdigest()}
        case EditedShard(name, drop, put):
            return {"shard": name, "drop": sorted(drop), "put": _tensors(put)}
        case NewShard(name, tensors, metadata):
            return {"new": name, "tensors": _tensors(tensors), "metadata": dict(metadata)}
        case RemovedFile(name):
            return {"remove": name}
        case _:
            raise TypeError(change)


def _tensors(tensors: Iterable[NewTensor]) -> list[Any]:
    return [[tensor.name, tensor.dtype, list(tensor.shape), tensor.recipe] for tensor in tensors]


def manifest_bytes(
    changes: Changes, digest: str, written: Mapping[str, WrittenFile], unchanged: Iterable[str], *, overlay: bool
) -> bytes:
    """Return the manifest: `written` are files written anew, `unchanged` the names of those as in the source."""
    source = changes.source.files
    by_name = {change.name: change for change in changes.files}
    files = []
    for name in sorted(written):
        change = by_name[name]
        row: dict[str, Any] = {
            "name": name,
            "change": "edited" if name in source else "new",
            "size": written[name].size,
            "sha256": written[name].sha256,
        }
        match change:
            case EditedShard(_, drop, put):
                row |= {"dropped": sorted(drop), "tensors": {tensor.name: tensor.recipe for tensor in put}}
            case NewShard(_, tensors):
                row |= {"tensors": {tensor.name: tensor.recipe for tensor in tensors}}
            case _:
                pass
        files.append(row)
    manifest = {
        "schema": SCHEMA,
        "tool": {"name": _TOOL, "version": __version__},
        "plan": digest,
        "base": {"name": changes.base, "revision": changes.revision, "digest": content_digest(changes.source)},
        "reads": [_read(one) for one in changes.reads],
        "overlay": overlay,
        "operations": [asdict(operation) for operation in changes.operations],
        "files": files,
        "removed": sorted(change.name for change in changes.files if isinstance(change, RemovedFile)),
        "unchanged": [{"name": name, "size": source[name].size} for name in sorted(unchanged)],
    }
    return (json.dumps(manifest, indent=2, sort_keys=False) + "\n").encode()


def _read(snapshot: Snapshot) -> dict[str, Any]:
    """Return what another checkpoint is called, as `base` does; of a folder nothing is said but its contents' hash."""
    named = published(snapshot.folder)
    return {
        "name": "" if named is None else named.repository,
        "revision": None if named is None else named.revision,
        "digest": content_digest(snapshot),
    }


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """Return what the manifest in a folder says, None if there is none that can be read."""
    try:
        return parse_document(read_file(folder, MANIFEST_FILE), MANIFEST_FILE, nan=False).value
    except MtpfixError:
        return None


def holds(folder: Path, digest: str) -> tuple[WrittenFile, ...] | None:
    """Return the changed files of a result that a plan made and that is still as it was made, else None.

    Changed files are hashed; unchanged ones are known by their size. Raises OSError.
    """
    manifest = read_manifest(folder)
    if manifest is None or manifest.get("plan") != digest or manifest.get("schema") != SCHEMA:
        return None
    try:
        files = tuple(WrittenFile(row["name"], row["size"], row["sha256"]) for row in manifest["files"])
        unchanged = [] if manifest["overlay"] else [(row["name"], row["size"]) for row in manifest["unchanged"]]
    except (KeyError, TypeError):
        return None
    try:
        for file in files:
            if file_digest(folder, file.name) != (file.size, file.sha256):
                return None
        if any((folder / name).stat().st_size != size for name, size in unchanged):
            return None
    except (MtpfixError, FileNotFoundError):
        return None
    return files


def file_digest(folder: Path, name: str) -> tuple[int, str]:
    """Return the size and the SHA-256 of a file of a folder. Raises FormatError for what is no file, OSError."""
    digest, size = hashlib.sha256(), 0
    with opened(folder, name) as descriptor:
        while data := os.pread(descriptor, _CHUNK, size):
            digest.update(data)
            size += len(data)
    return size, digest.hexdigest()
