"""From what was read of a checkpoint's files to the `Checkpoint`: the same for a folder and for a repository.

Knows which files there are and what they say together; how their bytes were had is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from mtpfix.checkpoint.document import parse_document
from mtpfix.checkpoint.header import Header, is_odd
from mtpfix.checkpoint.index import (
    INDEX_FILE,
    LARGEST_INDEX,
    SAMPLE,
    Index,
    absent_shards,
    compare,
    lost_names,
    parse_index,
)
from mtpfix.checkpoint.quant import read_declarations
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError
from mtpfix.model import Checkpoint, Fault, Problem, Shard, Tensor

CONFIG_FILE = "config.json"
QUANT_FILE = "hf_quant_config.json"
SUFFIX = ".safetensors"

LARGEST_CONFIG = 64_000_000
"""Bytes; published ones reach six million."""

Progress: TypeAlias = Callable[[int, int], None]
"""Told after each shard how many of how many are read."""

Read: TypeAlias = Callable[[str, int], "bytes | None"]
"""Returns a file's bytes, None where it is not there; raises FormatError where it is too large or unreadable."""


@dataclass(slots=True)
class Reading:
    """What has been read of a checkpoint's shards so far; `pointers` are git-lfs pointers in place of weights."""

    headers: dict[str, Header] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    pointers: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, name: str, fault: Fault, message: str, hint: str) -> None:
        """Note that a shard cannot be read, and why."""
        self.unread.append(name)
        self.problems.append(Problem(fault, message, (name,), hint=hint))

    def close(self) -> None:
        """Tell all pointers at once."""
        if self.pointers:
            first, count = shown(self.pointers[0]), len(self.pointers)
            more = f", and {count - 1:,} more are too" if count > 1 else ""
            message = f"{first} is a git-lfs pointer, not the weights{more}"
            files, hint = tuple(self.pointers[:SAMPLE]), "run `git lfs pull` in the folder"
            self.problems.append(Problem(Fault.LFS_POINTER, message, files, (), count, hint))
            self.unread += self.pointers


@dataclass(frozen=True, slots=True)
class Documents:
    """What the configurations and the index say, and what is wrong with the configurations."""

    config: Mapping[str, Any]
    quant: Mapping[str, Any] | None
    problems: Sequence[Problem]
    has_index: bool
    index: Index | None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a checkpoint comes from: the fields of `Checkpoint` of the same names."""

    ref: str
    root: Path | None
    revision: str | None
    trusted: tuple[Path, ...] = ()


def is_shard(name: str) -> bool:
    """Return whether a file in the checkpoint's folder is a shard; hidden ones are none, as for the engines."""
    return name.endswith(SUFFIX) and not name.startswith(".")


def assemble(origin: Origin, reading: Reading, documents: Documents, left_out: Sequence[str] = ()) -> Checkpoint:
    """Return the checkpoint that shards, index and configurations make; `left_out` are shards nobody asked for."""
    reading.close()
    index, headers = documents.index, dict(sorted(reading.headers.items()))
    tensors = tuple(tensor for header in headers.values() for tensor in header.tensors)
    data_sizes = {name: header.size - header.start for name, header in headers.items()}
    indexed = frozenset(index.files if index else ())
    unknown: Collection[str] = [*reading.unread, *left_out] if left_out else reading.unread
    return Checkpoint(
        ref=origin.ref,
        root=origin.root,
        revision=origin.revision,
        config=documents.config,
        declarations=read_declarations(documents.config, documents.quant),
        shards=tuple(
            Shard(name, header.size, header.start, header.count, name in indexed, header.metadata)
            for name, header in headers.items()
        ),
        tensors=tensors,
        problems=(
            *documents.problems,
            *(index.problems if index else ()),
            *reading.problems,
            *compare(index, tensors, data_sizes, unknown),
            *_odd_names(tensors),
        ),
        unread=tuple(sorted(reading.unread)),
        has_index=index is not None and index.usable,
        trusted=origin.trusted,
        lost=lost_names(index, tensors, unknown),
        left_out=tuple(left_out),
        elsewhere=tuple(_names_in(index, frozenset(left_out))) if left_out else (),
    )


def _names_in(index: Index | None, files: Collection[str]) -> Iterator[str]:
    for (name, _), places in (index.places if index else {}).items():
        if any(file in files for file, _ in places):
            yield name


def assemble_metadata(origin: Origin, listed: Collection[str], documents: Documents) -> Checkpoint:
    """Return what the configurations and the index say: of every name in it no file was seen to hold it."""
    index = documents.index
    absent = [file for file in index.files if file not in listed] if index else []
    return Checkpoint(
        ref=origin.ref,
        root=origin.root,
        revision=origin.revision,
        config=documents.config,
        declarations=read_declarations(documents.config, documents.quant),
        shards=(),
        tensors=(),
        problems=(*documents.problems, *(index.problems if index else ()), *absent_shards(absent)),
        unread=(),
        has_index=index is not None and index.usable,
        lost=lost_names(index, (), ()),
        trusted=origin.trusted,
        headers=False,
    )


def read_index(read: Read) -> tuple[bool, Index | None]:
    """Return whether there is an index, and what it says."""
    try:
        raw = read(INDEX_FILE, LARGEST_INDEX)
    except FormatError as error:
        problem = Problem(Fault.INDEX_UNREADABLE, error.message, (INDEX_FILE,), hint=error.hint)
        return True, Index(usable=False, problems=(problem,))
    return (False, None) if raw is None else (True, parse_index(raw))


def read_configs(read: Read) -> tuple[Mapping[str, Any], Mapping[str, Any] | None, list[Problem]]:
    """Return the two configurations, and what is wrong with them; the second is None where there is none."""
    problems: list[Problem] = []
    config = _read_config(read, CONFIG_FILE, problems)
    if config is None and not problems:
        hint = "add the model's config.json: without it the engines load nothing"
        problems.append(Problem(Fault.CONFIG_UNREADABLE, f"There is no {CONFIG_FILE}", (CONFIG_FILE,), hint=hint))
    return config or {}, _read_config(read, QUANT_FILE, problems), problems


def _read_config(read: Read, file: str, problems: list[Problem]) -> Mapping[str, Any] | None:
    try:
        raw = read(file, LARGEST_CONFIG)
        if raw is None:
            return None
        document = parse_document(raw, file, nan=True)
    except FormatError as error:
        problems.append(Problem(Fault.CONFIG_UNREADABLE, error.message, (file,), hint=error.hint))
        return None
    if document.repeated:
        names, count = document.repeated[:SAMPLE], len(document.repeated)
        message = f'{file} holds "{shown(names[0])}" twice in one object: the last one is taken'
        hint = "remove the one that is not meant"
        problems.append(Problem(Fault.CONFIG_UNREADABLE, message, (file,), names, count, hint))
    return document.value


def _odd_names(tensors: Iterable[Tensor]) -> Iterator[Problem]:
    odd = [tensor for tensor in tensors if tensor.experts is None and is_odd(tensor.name)]
    if odd:
        message = f'{shown(odd[0].shard)}: the name "{shown(odd[0].name)}" holds braces or invisible characters'
        if len(odd) > 1:
            message += f", and so do {len(odd) - 1:,} more"
        files, names = dict.fromkeys(tensor.shard for tensor in odd), tuple(tensor.name for tensor in odd[:SAMPLE])
        hint = "no engine has such a parameter: write the file anew without it"
        yield Problem(Fault.ODD_NAME, message, tuple(files)[:SAMPLE], names, len(odd), hint)
