"""The index of a checkpoint after its shards have changed: edited as text, so that only what moved differs.

Knows which file holds which tensor, before and after. Decides nothing: a tensor lies where the shards put it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mtpfix.checkpoint.document import parse_document
from mtpfix.checkpoint.folder import opened
from mtpfix.checkpoint.header import read_header
from mtpfix.checkpoint.index import INDEX_FILE
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError, UsageError
from mtpfix.fix.changes import Changes, EditedFile, EditedShard, NewShard, RemovedFile
from mtpfix.fix.shard import edit_layout
from mtpfix.fix.snapshot import is_shard, read_file
from mtpfix.fix.splice import splice
from mtpfix.model import EXPERT


@dataclass(frozen=True, slots=True)
class _Shard:
    """What a shard of the result holds: the names of its tensors, and its bytes of data."""

    names: tuple[str, ...]
    data_size: int


def with_index(changes: Changes, *, rebuild: bool = False) -> Changes:
    """Return the changes with the index that their shards need; unchanged where it needs no change.

    Entries of dropped tensors go, or name another file that holds the tensor; those of new ones come;
    `metadata.total_size` follows. Entries that the changes do not touch stay, right or wrong, unless `rebuild` is set:
    then the index names every tensor of every shard, and each where it lies. A folder without an index gets one as
    soon as it has more than one shard. An index among the changes is the one edited. Raises FormatError where a header
    or the index cannot be read, unless `rebuild` makes the index anew; UsageError where a file cannot be read.
    """
    if not rebuild and not any(is_shard(change.name) for change in changes.files):
        return changes
    before, after = _shards(changes)
    raw = _raw_index(changes)
    index = _parsed(raw, rebuild=rebuild)
    if index is None and len(after) < 2 and raw is None:
        return changes
    current: dict[str, Any] = index if index is not None else {"metadata": {"total_size": 0}, "weight_map": {}}
    places: dict[str, Any] = current["weight_map"]
    anew = rebuild or index is None
    wanted = {**current, "weight_map": _rebuilt(places, after) if anew else _followed(places, before, after)}
    _total(wanted, after, rebuild=rebuild)
    if index is None or raw is None:
        content = (json.dumps(wanted, indent=2) + "\n").encode()
    else:
        content = splice(raw, wanted, INDEX_FILE)
    if content == raw:
        return changes
    rest = tuple(change for change in changes.files if change.name != INDEX_FILE)
    return replace(changes, files=(*rest, EditedFile(INDEX_FILE, content)))


def _raw_index(changes: Changes) -> bytes | None:
    for change in changes.files:
        if change.name == INDEX_FILE:
            return change.content if isinstance(change, EditedFile) else None
    return read_file(changes.source.folder, INDEX_FILE) if INDEX_FILE in changes.source.files else None


def _parsed(raw: bytes | None, *, rebuild: bool) -> dict[str, Any] | None:
    """Return what the index says, None where there is none or where one that is no index is made anew."""
    if raw is None:
        return None
    try:
        index = parse_document(raw, INDEX_FILE, nan=False).value
    except FormatError:
        if rebuild:
            return None
        raise
    if isinstance(index.get("weight_map"), dict) and isinstance(index.get("metadata", {}), dict):
        return index
    if rebuild:
        return None
    raise FormatError(f"{INDEX_FILE} has no weight_map, or metadata that are no object", "rebuild the index")


def _shards(changes: Changes) -> tuple[dict[str, _Shard], dict[str, _Shard]]:
    """Return the shards before and after the changes, by file."""
    source = changes.source
    before = {name: _read(changes, name) for name in source.files if is_shard(name)}
    after = dict(before)
    for change in changes.files:
        match change:
            case RemovedFile(name):
                after.pop(name, None)
            case NewShard(name, tensors):
                names = tuple(tensor.name for tensor in tensors)
                after[name] = _Shard(names, sum(tensor.bytes for tensor in tensors))
            case EditedShard(name):
                if name not in before:
                    raise FormatError(f"{shown(name)} is not there to be changed", "make the plan anew")
                after[name] = _edited(changes, before[name], change)
            case EditedFile():
                pass
    return before, after


def _read(changes: Changes, name: str) -> _Shard:
    try:
        with opened(changes.source.folder, name) as descriptor:
            header = read_header(descriptor, name)
    except OSError as error:
        raise UsageError(f"{shown(name)} cannot be read: {error.strerror}", "check its permissions") from None
    names: list[str] = []
    for tensor in header.tensors:
        if tensor.experts is None:
            names.append(tensor.name)
        else:
            front, _, back = tensor.name.partition(EXPERT)
            names += [f"{front}{number}{back}" for number in tensor.experts]
    return _Shard(tuple(names), header.size - header.start)


def _edited(changes: Changes, shard: _Shard, change: EditedShard) -> _Shard:
    drop, old = frozenset(change.drop), frozenset(shard.names)
    new = [tensor.name for tensor in change.put if tensor.name not in old]
    with opened(changes.source.folder, change.name) as descriptor:
        size = edit_layout(descriptor, change).data_size
    return _Shard((*(name for name in shard.names if name not in drop), *new), size)


def _holders(shards: Mapping[str, _Shard]) -> Iterator[tuple[str, str]]:
    """Yield (tensor, file), files in order."""
    for file in sorted(shards):
        for name in shards[file].names:
            yield name, file


def _followed(places: Mapping[str, Any], before: Mapping[str, _Shard], after: Mapping[str, _Shard]) -> dict[str, Any]:
    """Return where tensors lie after the changes; what these do not touch stays where the index has it."""
    wanted = dict(places)
    held: dict[str, list[str]] = {}
    for name, file in _holders(after):
        held.setdefault(name, []).append(file)
    for file in sorted(before.keys() | after.keys()):
        old, new = before.get(file), after.get(file)
        if old == new:
            continue
        gone, come = frozenset(old.names if old else ()), frozenset(new.names if new else ())
        for name in gone - come:
            if wanted.get(name) == file:
                if name in held:
                    wanted[name] = held[name][0]
                else:
                    del wanted[name]
        for name in come - gone:
            if wanted.get(name) not in held[name]:
                wanted[name] = file
    return wanted if list(wanted) == list(places) else _ordered(places, wanted)


def _rebuilt(places: Mapping[str, Any], after: Mapping[str, _Shard]) -> dict[str, str]:
    """Return where every tensor of every shard lies; of several files that hold one, the index's choice stays."""
    wanted: dict[str, str] = {}
    for name, file in _holders(after):
        if name not in wanted or places.get(name) == file:
            wanted[name] = file
    return _ordered(places, wanted)


def _ordered(places: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return `wanted` in the order of `places`; new names are sorted in where those are sorted, else come last."""
    names = [name for name in places if name in wanted]
    new = [name for name in wanted if name not in places]
    if names == sorted(names):
        return {name: wanted[name] for name in sorted((*names, *new))}
    return {name: wanted[name] for name in (*names, *sorted(new))}


def _total(index: dict[str, Any], after: Mapping[str, _Shard], *, rebuild: bool) -> None:
    """Set `metadata.total_size` to the bytes of data in the files named, where it stands already or is to stand."""
    metadata = dict(index.get("metadata", {}))
    if not (rebuild or "total_size" in metadata):
        return
    named = {file for file in index["weight_map"].values() if isinstance(file, str)}
    total = sum(shard.data_size for file, shard in after.items() if file in named)
    if metadata.get("total_size") != total:
        index["metadata"] = {**metadata, "total_size": total}
