"""The index of a checkpoint, `model.safetensors.index.json`: what it says, and where the shards say otherwise.

Knows names and files, not shapes. Compares names with their expert numbers collapsed, so that a quarter of a million
names are a few thousand. Opens nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, TypeAlias

from mtpfix.checkpoint.document import parse_document
from mtpfix.checkpoint.header import compiled_reader, split_expert
from mtpfix.checkpoint.ref import PathRefusedError, safe_member, shown
from mtpfix.errors import FormatError
from mtpfix.model import EXPERT, Fault, Problem, Tensor

INDEX_FILE = "model.safetensors.index.json"

LARGEST_INDEX = 256_000_000
"""Bytes; the largest published ones have some twenty million."""

SAMPLE = 20
"""How many names, and how many files, one problem tells at most."""

Name: TypeAlias = tuple[str, bool]
"""A tensor's name, and whether `{}` in it stands for expert numbers."""

Place: TypeAlias = tuple[str, "array[int] | None"]
"""A file, and which expert numbers it holds, ascending."""

_REBUILD = "rebuild the index from the headers of the files"


@dataclass(frozen=True, slots=True)
class Index:
    """What an index says: where each name lies, `files` to read, and `refused` paths that are not followed.

    `usable` is False where it says nothing that shards could be held against. The places of one name are in the order
    of their files.
    """

    usable: bool
    places: Mapping[Name, Sequence[Place]] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    total_size: int | None = None
    problems: tuple[Problem, ...] = ()


def parse_index(raw: bytes) -> Index:
    """Return what an index says; never raises, as whatever is wrong with it stands in `problems`."""
    return _parse_plain(raw) or _parse(raw)


def compare(
    index: Index | None, tensors: Iterable[Tensor], data_sizes: Mapping[str, int], unread: Collection[str]
) -> list[Problem]:
    """Return where index and shards disagree, one problem for each kind, and which tensors several shards hold.

    `data_sizes` are bytes of data by shard, of all shards that were read; what is said of `unread` ones is left open.
    A copy in a file the index does not name is no duplicate, as engines leave such files out: the file is the problem.
    """
    stored: dict[Name, list[Place]] = {}
    for tensor in tensors:
        stored.setdefault((tensor.name, tensor.experts is not None), []).append((tensor.shard, tensor.experts))
    if index is None or not index.usable:
        duplicate = _Sample()
        for name, places in stored.items():
            if len(places) > 1:
                for number, holders in _by_number(places).items():
                    if len(holders) > 1:
                        duplicate.add(name, number, *holders)
        return _told(duplicate=duplicate)
    absent = [file for file in index.files if file not in data_sizes and file not in unread]
    open_ended = {*absent, *unread, *index.refused}
    samples = {kind: _Sample() for kind in ("absent", "unindexed", "elsewhere", "duplicate")}
    indexed = frozenset(index.files)
    for name in dict.fromkeys((*index.places, *stored)):
        if index.places.get(name) != stored.get(name):
            for kind, number, files in _differences(
                index.places.get(name, ()), stored.get(name, ()), indexed, open_ended
            ):
                samples[kind].add(name, number, *files)
    problems = [*absent_shards(absent), *_unindexed_shards(indexed, stored, data_sizes), *_told(**samples)]
    if not problems and not open_ended and index.total_size is not None:
        problems += _total_size(index.total_size, sum(data_sizes[file] for file in index.files))
    return problems


def lost_names(index: Index | None, tensors: Iterable[Tensor], unread: Collection[str]) -> tuple[str, ...]:
    """Return names that the index holds and no file does, `{}` for expert numbers; `unread` files are left open."""
    if index is None:
        return ()
    stored = {(tensor.name, tensor.experts is not None) for tensor in tensors}
    return tuple(
        name[0]
        for name, places in index.places.items()
        if name not in stored and not any(file in unread for file, _ in places)
    )


def _differences(
    named: Sequence[Place], held: Sequence[Place], indexed: Collection[str], open_ended: Collection[str]
) -> Iterator[tuple[str, int | None, tuple[str, ...]]]:
    """Yield (kind, expert number, files) for what the index and the shards say differently of one name."""
    said, found = _by_number(named), _by_number(held)
    for number, (file,) in said.items():
        holders = found.get(number, ())
        if file in holders or file in open_ended:
            continue
        yield ("elsewhere", number, (holders[0], file)) if holders else ("absent", number, (file,))
    for number, holders in found.items():
        loaded = tuple(file for file in holders if file in indexed)  # the others are told as files already
        if len(loaded) > 1:
            yield "duplicate", number, loaded
        elif loaded and number not in said:
            yield "unindexed", number, loaded


def _by_number(places: Sequence[Place]) -> dict[int | None, tuple[str, ...]]:
    """Return the files that hold each expert of one name; None stands for a name without a number."""
    files: dict[int | None, tuple[str, ...]] = {}
    for file, experts in places:
        for number in (None,) if experts is None else experts:
            files[number] = (*files.get(number, ()), file)
    return files


# --------------------------------------------------------------------------------------------- reading


def _parse_plain(raw: bytes) -> Index | None:
    """Return what the compiled reader says, or None where it is not built or declines."""
    compiled = compiled_reader()
    plain = compiled.parse_index(raw) if compiled else None
    if plain is None:
        return None
    metadata, rows = plain
    try:
        document = parse_document(metadata or b"{}", INDEX_FILE, nan=False)
    except FormatError:
        return None  # the compiled reader looked for the end of the metadata, not at it
    if document.repeated:
        return None
    places: dict[Name, list[Place]] = {}
    for before, after, file, experts in rows:
        name = (before, False) if after is None else (f"{before}{EXPERT}{after}", True)
        places.setdefault(name, []).append((file, None if experts is None else array("I", experts)))
    return _index(places, document.value, [])


def _parse(raw: bytes) -> Index:
    try:
        document = parse_document(raw, INDEX_FILE, nan=False)
    except FormatError as error:
        return Index(usable=False, problems=(Problem(Fault.INDEX_UNREADABLE, error.message, hint=error.hint),))
    problems = []
    if document.repeated:
        count = len(document.repeated)
        message = (
            f'{INDEX_FILE} holds {_counted(count, "key")} twice in one object, such as "{shown(document.repeated[0])}":'
            " the last one is taken"
        )
        names = document.repeated[:SAMPLE]
        problems.append(Problem(Fault.INDEX_UNREADABLE, message, (INDEX_FILE,), names, count, _REBUILD))
    weight_map = document.value.get("weight_map")
    if not isinstance(weight_map, dict):
        fault = "has no weight_map" if weight_map is None else "has a weight_map that is not an object"
        problems.append(Problem(Fault.INDEX_UNREADABLE, f"{INDEX_FILE} {fault}", (INDEX_FILE,), hint=_REBUILD))
        return Index(usable=False, problems=tuple(problems))
    numbers: dict[Name, dict[str, list[int] | None]] = {}
    misplaced = []
    for name, file in weight_map.items():
        if not isinstance(file, str):
            misplaced.append(name)
        elif split := split_expert(name):
            members = numbers.setdefault((split[0], True), {}).setdefault(file, [])
            if members is not None:
                members.append(split[1])
        else:
            numbers.setdefault((name, False), {})[file] = None
    if misplaced:
        message = f"{INDEX_FILE} places {_counted(len(misplaced), 'tensor')} in what is not the name of a file"
        names = tuple(misplaced[:SAMPLE])
        problems.append(Problem(Fault.INDEX_UNREADABLE, message, (INDEX_FILE,), names, len(misplaced), _REBUILD))
    places = {
        name: [(file, None if members is None else array("I", sorted(members))) for file, members in files.items()]
        for name, files in numbers.items()
    }
    metadata = document.value.get("metadata")
    return _index(places, metadata if isinstance(metadata, dict) else {}, problems)


def _index(places: dict[Name, list[Place]], metadata: Mapping[str, Any], problems: list[Problem]) -> Index:
    for rows in places.values():
        if len(rows) > 1:
            rows.sort(key=itemgetter(0))
    named = sorted({file for rows in places.values() for file, _ in rows})
    files, refused, reason = [], [], ""
    for file in named:
        try:
            files.append(safe_member(file))
        except PathRefusedError as error:
            refused.append(file)
            reason = reason or error.message
    if refused:
        message = f"{INDEX_FILE} names {_counted(len(refused), 'path')} that cannot be followed: {reason}"
        hint = "a shard lies in the checkpoint's folder, and the index names it without a path"
        problems.append(Problem(Fault.PATH_REFUSED, message, tuple(refused[:SAMPLE]), (), len(refused), hint))
    total_size = metadata.get("total_size")
    if isinstance(total_size, float) and total_size.is_integer():
        total_size = int(total_size)
    if total_size is not None and type(total_size) is not int:
        message = f"metadata.total_size of {INDEX_FILE} is not a whole number"
        problems.append(Problem(Fault.TOTAL_SIZE, message, (INDEX_FILE,), hint=_REBUILD))
        total_size = None
    return Index(
        usable=True,
        places=places,
        files=tuple(files),
        refused=tuple(refused),
        total_size=total_size,
        problems=tuple(problems),
    )


# --------------------------------------------------------------------------------------------- telling


@dataclass(slots=True)
class _Sample:
    """The first few of many disagreements of one kind, and how many there are; `first` are the files of the first."""

    count: int = 0
    names: list[str] = field(default_factory=list)
    files: dict[str, None] = field(default_factory=dict)
    first: tuple[str, ...] = ()

    def add(self, name: Name, number: int | None, *files: str) -> None:
        if not self.count:
            self.first = files
        self.count += 1
        if len(self.names) < SAMPLE:
            self.names.append(name[0] if number is None else name[0].replace(EXPERT, str(number)))
        if len(self.files) < SAMPLE:
            self.files.update(dict.fromkeys(files))


def _told(**samples: _Sample) -> list[Problem]:
    problems = []
    for kind, sample in samples.items():
        if not sample.count:
            continue
        example, files = f'"{shown(sample.names[0])}"', [shown(file) for file in sample.first]
        one = sample.count == 1
        match kind:
            case "absent":
                fault = Fault.TENSOR_ABSENT
                text = f"The index places {_counted(sample.count, 'tensor')} in files that do not hold "
                text += f"{'it' if one else 'them'}: {example} in {files[0]}"
                hint = f"{_REBUILD}, or restore the missing tensors"
            case "unindexed":
                fault = Fault.TENSOR_UNINDEXED
                text = f"The index does not name {_counted(sample.count, 'tensor')} that its files hold: "
                text += f"{example} in {files[0]}"
                hint = _REBUILD
            case "elsewhere":
                fault = Fault.TENSOR_ELSEWHERE
                text = f"{_counted(sample.count, 'tensor')} {'lies' if one else 'lie'} in another file than the index "
                text += f"says: {example} in {files[0]}, not in {files[1]}"
                hint = _REBUILD
            case _:
                fault = Fault.TENSOR_DUPLICATE
                text = f"{_counted(sample.count, 'tensor')} {'lies' if one else 'lie'} in several files: "
                text += f"{example} in {' and '.join(files[:3])}"
                hint = "remove all copies but one: engines differ in which they load"
        problems.append(Problem(fault, text, tuple(sample.files)[:SAMPLE], tuple(sample.names), sample.count, hint))
    return problems


def absent_shards(absent: Sequence[str]) -> Iterator[Problem]:
    """Yield the problem of files that the index names and the folder lacks, if there are any."""
    if absent:
        text = f"The index names {_counted(len(absent), 'file')} that {'is' if len(absent) == 1 else 'are'} not there: "
        hint = f"download what is missing, or {_REBUILD}"
        yield Problem(Fault.SHARD_ABSENT, text + _sampled(absent), tuple(absent[:SAMPLE]), (), len(absent), hint)


def _unindexed_shards(
    indexed: Collection[str], stored: Mapping[Name, Sequence[Place]], data_sizes: Mapping[str, int]
) -> Iterator[Problem]:
    holding = {file for places in stored.values() for file, _ in places}
    files = [file for file in data_sizes if file in holding and file not in indexed]
    if files:
        text = f"The index does not name {_counted(len(files), 'file')} that {'holds' if len(files) == 1 else 'hold'} "
        hint = f"{_REBUILD}, or move away what does not belong to the model"
        yield Problem(
            Fault.SHARD_UNINDEXED, f"{text}tensors: {_sampled(files)}", tuple(files[:SAMPLE]), (), len(files), hint
        )


def _total_size(said: int, found: int) -> list[Problem]:
    if said == found:
        return []
    text = f"metadata.total_size of {INDEX_FILE} is {said} bytes, and the tensors it names have {found}"
    return [Problem(Fault.TOTAL_SIZE, text, (INDEX_FILE,), hint=_REBUILD)]


def _sampled(files: Sequence[str]) -> str:
    rest = f" and {len(files) - 3} more" if len(files) > 3 else ""
    return ", ".join(shown(file) for file in files[:3]) + rest


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
