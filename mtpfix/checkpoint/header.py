"""The header of a safetensors file: as strict as the official Rust reader, and duplicate names are an error.

What the official reader (safetensors 0.8, `safetensors/src/tensor.rs`, and serde_json underneath it) accepts, this one
accepts, to the oddest corner; what that one refuses, this one refuses with a sentence that names the file and the
tensor. Knows nothing of what a tensor's name means, except that experts are numbered. Never reads a weight.

A compiled reader takes the plain form, where it is built; whatever it declines comes to the Python reader, which is
the authority. `MTPFIX_PURE_PYTHON=1` leaves the compiled one out.
"""

from __future__ import annotations

import json
import math
import os
import re
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError
from mtpfix.model import DIGITS, EXPERT, Tensor

_compiled: ModuleType | None
try:
    from mtpfix.checkpoint import _fastheader as _compiled
except ImportError:
    _compiled = None

LONGEST_HEADER = 100_000_000
"""Bytes of JSON the official reader allows."""

PREFIX = 8
"""Bytes of the little-endian number in front of the header."""

DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}
"""Bits of one element of every dtype the official reader knows."""

LFS_MARK = b"version https://git-lfs.github.com/spec/v1"
"""How a git-lfs pointer begins."""

_FIELDS = dict.fromkeys(("dtype", "shape", "data_offsets"))
_METADATA = "__metadata__"
_LARGEST = 2**64 - 1
_DEEPEST = 125  # serde_json allows 127 levels; the header and the tensor are two of them
_EXPERT = re.compile(rf"(.*\.experts\.)(0|[1-9][0-9]{{0,{DIGITS - 1}}})(\..*)", re.DOTALL)
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DAMAGED = "the file is damaged, cut short or still being written: download it again, or write it anew"


class LfsPointerError(FormatError):
    """A git-lfs pointer stands where the weights should be."""


class Entry(NamedTuple):
    """One tensor as the header tells it; `begin` and `end` count bytes from the start of the data."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """What one file's header says; `size` is the file's bytes, `start` where its data begin."""

    size: int
    start: int
    metadata: Mapping[str, str]
    tensors: tuple[Tensor, ...]

    @property
    def count(self) -> int:
        """How many tensors the file holds."""
        return sum(tensor.count for tensor in self.tensors)


def compiled_reader() -> Any:
    """Return the compiled reader, or None where it was not built or `MTPFIX_PURE_PYTHON` is set."""
    return None if os.environ.get("MTPFIX_PURE_PYTHON", "") not in ("", "0") else _compiled


def fast_path_available() -> bool:
    """Return whether plain headers and indexes are read by the compiled reader."""
    return compiled_reader() is not None


def read_header(file: int | str | os.PathLike[str], shard: str = "") -> Header:
    """Return what the header of an open file (a descriptor) or of a path says; `shard` names it in errors.

    Raises FormatError where it is malformed, LfsPointerError for a git-lfs pointer, OSError where reading fails.
    """
    if not isinstance(file, int):
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return read_header(descriptor, shard or Path(file).name)
        finally:
            os.close(descriptor)
    raw, data_size = read_raw(file, shard)
    metadata, tensors = parse_header(raw, data_size, shard)
    start = PREFIX + len(raw)
    return Header(start + data_size, start, metadata, tuple(tensors))


def read_raw(descriptor: int, shard: str) -> tuple[bytes, int]:
    """Return the header's JSON, unread, and the bytes of data behind it."""
    size = os.fstat(descriptor).st_size
    if size < PREFIX:
        _fail(shard, f"the file has {size} bytes, too few for the length of a header")
    length = header_length(os.pread(descriptor, len(LFS_MARK), 0), size, shard)
    return read_at(descriptor, length, PREFIX, shard), size - PREFIX - length


def header_length(first: bytes, size: int, shard: str) -> int:
    """Return the bytes of JSON that a file of `size` bytes announces in its first eight; more of them may be given.

    Raises FormatError where the format or the file allows no such header, LfsPointerError for a git-lfs pointer.
    """
    length = int.from_bytes(first[:PREFIX], "little")
    if length > min(LONGEST_HEADER, size - PREFIX):
        if size < 1024 and LFS_MARK.startswith(first[: len(LFS_MARK)]):
            raise LfsPointerError(
                f"{shown(shard)} is a git-lfs pointer, not the weights", "run `git lfs pull` in the folder"
            )
        if length > LONGEST_HEADER:
            _fail(shard, f"its header claims {length} bytes, and more than {LONGEST_HEADER} are not allowed")
        _fail(shard, f"its header claims {length} bytes, and the file has {size - PREFIX} left")
    return length


def read_at(descriptor: int, count: int, offset: int, name: str) -> bytes:
    """Return exactly `count` bytes at `offset`, or raise FormatError if the file ends before."""
    data = os.pread(descriptor, count, offset)
    while len(data) < count:
        more = os.pread(descriptor, count - len(data), offset + len(data))
        if not more:
            _fail(name, "the file became shorter while it was read")
        data += more
    return data


def parse_header(raw: bytes, data_size: int, shard: str) -> tuple[dict[str, str], list[Tensor]]:
    """Return the metadata and the tensors, experts collapsed, in the order of their data.

    `raw` is the JSON without the eight bytes before it, `data_size` the bytes behind it. Tensors whose names differ
    only in the number after the last `.experts.`, and that agree in dtype and shape, become one, ordered by that
    number; an expert alone is one of one. Names with braces are never collapsed. Raises FormatError.
    """
    compiled = compiled_reader()
    plain = compiled.parse_header(raw, data_size) if compiled else None
    if plain is not None:
        metadata, rows = plain
        try:
            read = _metadata(_document(metadata, shard), shard) if metadata else {}
        except FormatError:
            pass  # the compiled reader looked for the end of the metadata, not at it: the whole header decides
        else:
            return read, [
                Tensor(
                    before if after is None else f"{before}{EXPERT}{after}",
                    dtype,
                    tuple(map(int, shape.split(","))) if shape else (),
                    shard,
                    array("Q", begins),
                    None if experts is None else array("I", experts),
                )
                for before, after, dtype, shape, experts, begins in rows
            ]
    read, entries = _parse(raw, data_size, shard)
    return read, collapse(entries, shard)


def parse_tensors(raw: bytes, data_size: int, shard: str) -> dict[str, Entry]:
    """Return every tensor by name, in the order of the data: the authority, always in Python. Raises FormatError."""
    return _parse(raw, data_size, shard)[1]


def collapse(entries: Mapping[str, Entry], shard: str) -> list[Tensor]:
    """Return tensors with those collapsed that differ only in their expert number, in the order of `entries`."""
    groups: dict[tuple[str, str, tuple[int, ...], bool], list[tuple[int, int]]] = {}
    for name, entry in entries.items():
        split = split_expert(name)
        key = (split[0] if split else name, entry.dtype, entry.shape, split is not None)
        groups.setdefault(key, []).append((split[1] if split else 0, entry.begin))
    tensors = []
    for (name, dtype, shape, numbered), members in groups.items():
        members.sort()
        experts = array("I", [expert for expert, _ in members]) if numbered else None
        tensors.append(Tensor(name, dtype, shape, shard, array("Q", [begin for _, begin in members]), experts))
    return tensors


def split_expert(name: str) -> tuple[str, int] | None:
    """Return a tensor's name with `{}` for the number after its last `.experts.`, and the number; None if it has none.

    The number is written without leading zeros and with at most nine digits, and a dot follows it.
    """
    if is_odd(name):
        return None
    match = _EXPERT.fullmatch(name)
    return (f"{match[1]}{EXPERT}{match[3]}", int(match[2])) if match else None


def is_odd(name: str) -> bool:
    """Return whether a tensor's name holds braces, or characters that are invisible or turn the direction of text."""
    return "{" in name or "}" in name or not name.isprintable()


def _parse(raw: bytes, data_size: int, shard: str) -> tuple[dict[str, str], dict[str, Entry]]:
    document = _document(raw, shard)
    if not isinstance(document, tuple):
        _fail(shard, f"its header is {_kind(document)}, not an object")
    metadata: dict[str, str] | None = None
    entries: dict[str, Entry] = {}
    for name, value in document:
        if name == _METADATA:
            if metadata is not None:
                _fail(shard, f"its header holds {_METADATA} twice")
            metadata = _metadata(value, shard)
        elif name in entries:
            _fail_tensor(shard, name, "stands twice in the header, and readers differ in which they take")
        else:
            entries[name] = _entry(value, shard, name)
    ordered = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _check_geometry(ordered, data_size, shard)
    return metadata or {}, ordered


def _document(raw: bytes, shard: str) -> Any:
    """Return JSON as serde_json reads it, objects as tuples of pairs, so that nothing that stands twice is lost."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        _fail(shard, f"its header is not UTF-8 at byte {error.start}")
    try:
        document = _DECODER.decode(text)
        if _SURROGATE.search(text):
            json.dumps(document, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        _fail(shard, f"its header is not JSON: {_lower(error.msg)} at character {error.pos}")
    except UnicodeEncodeError:
        _fail(shard, "its header is not JSON: half of a surrogate pair is escaped alone")
    except ValueError as error:
        _fail(shard, f"its header is not JSON: {error}")
    except RecursionError:
        _fail(shard, "its header is nested too deep")
    return document


def _integer(text: str) -> int | float:
    if text.isdigit() and len(text) <= 20:
        number = int(text)
        if number <= _LARGEST:
            return number
    return _real(text)  # negative, -0, or beyond 64 bits: no number a header can use, but JSON all the same


def _real(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError("a number is out of range")
    return number


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


_DECODER = json.JSONDecoder(object_pairs_hook=tuple, parse_float=_real, parse_int=_integer, parse_constant=_constant)


def _metadata(value: Any, shard: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, tuple):
        _fail(shard, f"its {_METADATA} is {_kind(value)}, not an object of strings")
    for key, text in value:
        if not isinstance(text, str):
            _fail(shard, f'"{shown(key)}" in its {_METADATA} is {_kind(text)}, not a string')
    return dict(value)


def _entry(value: Any, shard: str, name: str) -> Entry:
    """Return one tensor's fields; the official reader also takes them as an array of three, and so does this one."""
    fields = _fields(value, shard, name)
    shape = fields["shape"]
    if not _are_sizes(shape):
        _fail_tensor(shard, name, "has a shape that is not a list of whole numbers from 0 to 2^64-1")
    offsets = fields["data_offsets"]
    if not _are_sizes(offsets) or len(offsets) != 2:
        _fail_tensor(shard, name, "has data_offsets that are not two whole numbers from 0 to 2^64-1")
    return Entry(_dtype(fields["dtype"], shard, name), tuple(shape), offsets[0], offsets[1])


def _fields(value: Any, shard: str, name: str) -> dict[str, Any]:
    if isinstance(value, list):
        if len(value) != len(_FIELDS):
            _fail_tensor(shard, name, f"is an array of {len(value)}, not an object of dtype, shape and data_offsets")
        return dict(zip(_FIELDS, value, strict=True))
    if not isinstance(value, tuple):
        _fail_tensor(shard, name, f"is {_kind(value)}, not an object of dtype, shape and data_offsets")
    fields = dict(value)
    if len(fields) == len(value) and fields.keys() == _FIELDS.keys():
        return fields
    fields = {}
    for key, content in value:
        if key not in _FIELDS:
            if _is_deeper(content, _DEEPEST):
                _fail_tensor(shard, name, f'has a field "{shown(key)}" that is nested too deep')
        elif key in fields:
            _fail_tensor(shard, name, f"has {key} twice")
        else:
            fields[key] = content
    for key in _FIELDS:
        if key not in fields:
            _fail_tensor(shard, name, f"has no {key}")
    return fields


def _dtype(field: Any, shard: str, name: str) -> str:
    if isinstance(field, tuple) and len(field) == 1 and field[0][1] is None:
        value: object = field[0][0]  # {"F32": null}: how serde writes a variant at length
    else:
        value = field
    if not isinstance(value, str):
        _fail_tensor(shard, name, f"has a dtype that is {_kind(value)}, not a string")
    if value not in DTYPE_BITS:
        _fail_tensor(shard, name, f'has the dtype "{shown(value)}", which safetensors does not know')
    return value


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and {int}.issuperset(map(type, value))


def _check_geometry(entries: Mapping[str, Entry], data_size: int, shard: str) -> None:
    """Check that tensors, in the order of their data, follow each other from 0 to the end of the file."""
    position = 0
    for name, (dtype, shape, begin, end) in entries.items():
        if begin != position:
            gap = "overlaps the tensor before it" if begin < position else "leaves a gap before it"
            _fail_tensor(shard, name, f"begins at byte {begin} of the data, not at {position}: it {gap}")
        if end < begin:
            _fail_tensor(shard, name, f"ends at byte {end} of the data, before its begin at {begin}")
        bits = 1
        for factor in (*shape, DTYPE_BITS[dtype]):
            bits *= factor
            if bits > _LARGEST:
                _fail_tensor(shard, name, f"has the shape {_listed(shape)}, whose size overflows 64 bits")
        if bits % 8:
            _fail_tensor(shard, name, f"has {bits} bits of {dtype}, which is not a whole number of bytes")
        if end - begin != bits // 8:
            _fail_tensor(
                shard, name, f"has {end - begin} bytes of data, and {dtype} of shape {_listed(shape)} has {bits // 8}"
            )
        position = end
    if position != data_size:
        _fail(shard, f"its tensors have {position} bytes of data, and the file has {data_size} behind the header")


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        level = [child for container in level for child in _children(container)]
        if not level:
            return False
    return True


def _children(value: Any) -> Iterable[Any]:
    if isinstance(value, tuple):
        return [child for _, child in value]
    return value if isinstance(value, list) else ()


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "a string", list: "an array"}
    return kinds.get(type(value), "an object")


def _listed(shape: tuple[int, ...]) -> str:
    return shown(str(list(shape)))


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _fail_tensor(shard: str, name: str, fault: str) -> NoReturn:
    _fail(shard, f'the tensor "{shown(name)}" {fault}')


def _fail(shard: str, fault: str, hint: str = _DAMAGED) -> NoReturn:
    raise FormatError(f"{shown(shard)}: {fault}", hint)
