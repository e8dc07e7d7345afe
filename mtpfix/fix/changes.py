"""What is to become of a checkpoint's files: the plan's words, and all that the writer understands.

A plan describes each file that changes; every file it does not name is kept as it is:

    before = take_snapshot(folder)                       # mtpfix.fix.snapshot; before the scan that the plan rests on
    changes = Changes(
        source=before,
        files=(
            EditedFile("config.json", splice(raw, wanted, "config.json")),            # mtpfix.fix.splice
            EditedShard("model-00001-of-00002.safetensors", drop=("a.weight_scale",), put=(tensor,)),
            NewShard("model-mtp.safetensors", (grafted, ...)),
            RemovedFile("stale.safetensors"),
        ),
        operations=(Operation("add-entry", "config.json", "mtp*"),),
        base="org/name", revision="0123abc",
    )
    changes = with_index(changes)                        # mtpfix.fix.index: the index follows the shards
    write(changes, out, link=Link.AUTO, verify=check)    # mtpfix.fix.writer

Types only: nothing here opens a file or knows what an operation means. A tensor's numbers are asked for by `read`,
which may be called again when an interrupted run goes on, and must give the same bytes each time: `recipe` names
everything that they depend on, in a sentence, and is part of what makes two plans the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeAlias

from mtpfix.checkpoint.header import DTYPE_BITS
from mtpfix.model import Operation
from mtpfix.nvfp4.format import WeightError

Buffer: TypeAlias = bytes | bytearray | memoryview
"""A run of bytes; a memoryview is of single bytes and contiguous."""

Verify: TypeAlias = Callable[[Path], None]
"""Called with a folder that reads as the result will, before it is published; raises MtpfixError to refuse it.

Unchanged files may be links into the source: open it with `open_checkpoint(folder, trusted=(source,))`.
"""

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many bytes of how many are written."""


class Link(StrEnum):
    """How unchanged files come into the result."""

    AUTO = "auto"  # reflink, else hardlink, else copy
    REFLINK = "reflink"  # a copy that shares its blocks until one side is written
    HARDLINK = "hardlink"  # the same file under another name: whoever writes into one writes into both
    SYMLINK = "symlink"  # a link to the file in the source, which must stay where it is
    COPY = "copy"


@dataclass(frozen=True, slots=True)
class NewTensor:
    """One tensor to be written: `read` yields its bytes in order, as little or as much at a time as it likes.

    `dtype` is spelled as in a safetensors header; the bytes are little-endian and row-major.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    recipe: str
    read: Callable[[], Iterable[Buffer]] = field(repr=False, compare=False)

    @property
    def bytes(self) -> int:
        """How many bytes `read` must yield in all."""
        return math.prod(self.shape) * DTYPE_BITS[self.dtype] // 8


@dataclass(frozen=True, slots=True)
class EditedFile:
    """A file that is not a shard, with its new bytes; it may be one the source does not have."""

    name: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class EditedShard:
    """A shard of the source without the tensors in `drop`, and with those in `put`.

    A tensor in `put` takes the place of the one of its name, or is added. All others keep their bytes and order.
    """

    name: str
    drop: tuple[str, ...] = ()
    put: tuple[NewTensor, ...] = ()


@dataclass(frozen=True, slots=True)
class NewShard:
    """A shard that the source does not have, in the order the official writer gives it."""

    name: str
    tensors: tuple[NewTensor, ...]
    metadata: Mapping[str, str] = field(default_factory=lambda: {"format": "pt"})


@dataclass(frozen=True, slots=True)
class RemovedFile:
    """A file of the source that the result does not have."""

    name: str


FileChange: TypeAlias = EditedFile | EditedShard | NewShard | RemovedFile


@dataclass(frozen=True, slots=True)
class FileMark:
    """How a file was found: `size`, `modified` (nanoseconds) and `inode`, of the file a link leads to.

    `digest` is the SHA-256 of a shard's header, or of all bytes of another file; empty for one too large to hash.
    """

    size: int
    modified: int
    inode: int
    digest: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of a folder as they were at one time, by name relative to it; `whole` if all of them are there."""

    folder: Path
    files: Mapping[str, FileMark]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Changes:
    """All that happens to one checkpoint: each file of `source` not named in `files` is kept.

    `reads` are other folders that tensors are taken from, such as a base model, as they were when the plan was made.
    `operations`, `base` (what the source is called: `org/name`, never a path) and `revision` go into the manifest.
    """

    source: Snapshot
    files: tuple[FileChange, ...]
    operations: tuple[Operation, ...] = ()
    base: str = ""
    revision: str | None = None
    reads: tuple[Snapshot, ...] = ()


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """One file of a result that is not as in the source."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Written:
    """What a run of the writer left: the folder, the plan's digest, and what it took.

    `changed` are files written anew; `kept` counts unchanged ones by how they came in (`hardlink`: 12; `earlier`: by
    the run that this one continued); `bytes_written` is what this run wrote itself, copies included. `errors` are the
    errors, with plain and with chosen scales, of each weight that this run quantized with searched ones. `resumed`: an
    interrupted run was finished; `already`: the result was there before, and nothing was written. `backup` is where a
    repair in place put the old files.
    """

    folder: Path
    digest: str
    changed: tuple[WrittenFile, ...]
    removed: tuple[str, ...] = ()
    kept: Mapping[str, int] = field(default_factory=dict)
    bytes_written: int = 0
    resumed: bool = False
    already: bool = False
    backup: Path | None = None
    errors: Mapping[str, WeightError] = field(default_factory=dict)
