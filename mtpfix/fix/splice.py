"""Edit JSON as text: only what differs between two values is written, and every other byte stays as it is.

Indentation, separators, line ends, the order of keys, escapes, a byte order mark and repeated keys are those of the
file; what is new takes the form of its neighbours. The result is parsed again before it is returned. Knows text, and
nothing of what the keys mean.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, NamedTuple, NoReturn

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError, MtpfixError

_BOM = b"\xef\xbb\xbf"
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_BLANK = (" ", "\n", "\t", "\r")
_SPACE = re.compile(r"[ \t\n\r]*")
_MARK = re.compile(r'[ \t]*[:,][ \t]*|"(?:[^"\\]|\\.)*"')
_DECODER = json.JSONDecoder()
_LONGEST_MATCH = 2_000  # entries of a list in which the most that can stay are looked for, in quadratic time


class _Member(NamedTuple):
    """One member of an object or list: `start` is where its key or value begins, `value` where the value does."""

    key: str | None
    start: int
    value: int
    end: int
    content: Any


@dataclass(frozen=True, slots=True)
class _Style:
    """How the file is written, for what has no neighbour: the indentation of one level (None: in one line)."""

    indent: str | None
    newline: str
    comma: str
    colon: str
    ascii: bool


def splice(raw: bytes, wanted: Any, file: str) -> bytes:
    """Return `raw` changed so that it parses to `wanted`; bytes outside the changed keys and entries stay.

    An object's new keys come behind the key they follow in `wanted`; the order of the others is not changed. Of a key
    that stands twice the last is changed, as the last is the one readers take, and all are removed. `file` names it in
    errors. Raises FormatError if `raw` is not UTF-8 JSON as Python reads it.
    """
    mark, text = _decoded(raw, file)
    current = _parse(text, file)
    if same(current, wanted):
        return raw
    start = _skip(text, 0)
    edits: list[tuple[int, int, str]] = []
    try:
        _differ(text, start, current, wanted, _style(text, start), edits)
        edits.sort(key=lambda edit: edit[:2])
        changed = _apply(text, edits)
    except RecursionError:
        _fail(file, "nested too deep")
    if not same(_parse(changed, file), wanted):
        raise MtpfixError(
            f"{shown(file)} cannot be edited: after the change it would not say what it should",
            "this is a defect of mtpfix: report it with the file; nothing was written",
        )
    return mark + changed.encode()


def same(one: Any, other: Any) -> bool:
    """Return whether two parsed JSON values are the same, types and NaN included, whatever the order of keys."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return repr(one) == repr(other) if isinstance(one, float) else bool(one == other)


# --------------------------------------------------------------------------------------------- reading


def _decoded(raw: bytes, file: str) -> tuple[bytes, str]:
    mark = _BOM if raw.startswith(_BOM) else b""
    try:
        return mark, raw[len(mark) :].decode()
    except UnicodeDecodeError as error:
        _fail(file, f"not UTF-8 at byte {error.start + len(mark)}")


def _parse(text: str, file: str) -> Any:
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        _fail(file, f"not JSON: {error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, column {error.colno}")
    except ValueError as error:
        _fail(file, f"not JSON: {str(error).partition(';')[0]}")
    except RecursionError:
        _fail(file, "nested too deep")


def _skip(text: str, place: int) -> int:
    """Return the first place from `place` on that is not white space."""
    if text[place : place + 1] not in _BLANK:
        return place
    found = _SPACE.match(text, place)
    return found.end() if found else place


def _members(text: str, start: int) -> Iterator[_Member]:
    """Yield the members of the object or list that begins at `start`, in the order of the text, which is JSON."""
    closing = "}" if text[start] == "{" else "]"
    place = _skip(text, start + 1)
    while text[place] != closing:
        begin, key = place, None
        if closing == "}":
            key, place = _DECODER.raw_decode(text, begin)
            place = _skip(text, _skip(text, place) + 1)
        content, end = _DECODER.raw_decode(text, place)
        yield _Member(key, begin, place, end, content)
        place = _skip(text, end)
        if text[place] == ",":
            place = _skip(text, place + 1)


def _style(text: str, start: int) -> _Style:
    """Return how a file is written: by its first line, its first colon, and its first comma within a line."""
    first = text.find("\n")
    newline = "\r\n" if first > 0 and text[first - 1] == "\r" else "\n"
    indent = None
    if text[start] in "{[":
        inner = _skip(text, start + 1)
        gap = text[start + 1 : inner]
        if text[inner] in "}]":
            indent = "  "
        elif "\n" in gap:
            indent = gap.rpartition("\n")[2]
    colon = next((found[0] for found in _marks(text, start, ":")), None)
    comma = ", "
    if indent is None:
        lone = "," if colon == ":" else ", "
        comma = next((found[0].lstrip() for found in _marks(text, start, ",")), lone)
    if colon is None:
        colon = ":" if comma == "," else ": "
    return _Style(indent, newline, comma, colon, text.isascii())


def _marks(text: str, start: int, mark: str) -> Iterator[re.Match[str]]:
    """Yield the places of a punctuation mark outside strings, with the white space of its line around it."""
    return (found for found in _MARK.finditer(text, start) if found[0].strip() == mark)


# --------------------------------------------------------------------------------------------- comparing


def _differ(text: str, start: int, current: Any, wanted: Any, style: _Style, edits: list[tuple[int, int, str]]) -> None:
    """Add to `edits` what turns the value at `start` into `wanted`: (from, to, text), none overlapping another."""
    if isinstance(current, dict) and isinstance(wanted, dict) and all(isinstance(key, str) for key in wanted):
        _differ_object(text, start, current, wanted, style, edits)
    elif isinstance(current, list) and isinstance(wanted, list):
        _differ_list(text, start, current, wanted, style, edits)
    else:
        _, end = _DECODER.raw_decode(text, start)
        edits.append((start, end, _written(wanted, style, _indentation(text, start, style))))


def _differ_object(
    text: str, start: int, current: Any, wanted: Any, style: _Style, edits: list[tuple[int, int, str]]
) -> None:
    members = list(_members(text, start))
    last = {member.key: number for number, member in enumerate(members)}
    keep = [member.key in wanted for member in members]
    new: dict[int, list[tuple[str, Any]]] = {}
    anchor = -1
    for key, value in wanted.items():
        if key in last:
            anchor = last[key]
            if not same(current[key], value):
                _differ(text, members[anchor].value, members[anchor].content, value, style, edits)
        else:
            new.setdefault(anchor, []).append((key, value))
    _rearrange(text, start, members, keep, new, style, edits)


def _differ_list(
    text: str, start: int, current: Any, wanted: Any, style: _Style, edits: list[tuple[int, int, str]]
) -> None:
    members = list(_members(text, start))
    keep = [False] * len(members)
    new: dict[int, list[tuple[None, Any]]] = {}
    anchor = -1
    for old, now in _matched(current, wanted):
        if old is not None and now is not None:
            keep[old] = True
            anchor = old
            if not same(current[old], wanted[now]):
                _differ(text, members[old].value, current[old], wanted[now], style, edits)
        elif now is not None:
            new.setdefault(anchor, []).append((None, wanted[now]))
    _rearrange(text, start, members, keep, new, style, edits)


def _matched(current: Sequence[Any], wanted: Sequence[Any]) -> Iterator[tuple[int | None, int | None]]:
    """Yield the places of entries in both lists, in order; None where one is not in the other list.

    Between entries that stay, as many old as new ones stand for each other, so that a changed one is changed in place.
    """
    left, right = [_key(entry) for entry in current], [_key(entry) for entry in wanted]
    old, new = 0, 0
    for there, here in (*_kept(left, right), (len(left), len(right))):
        if there - old == here - new:
            yield from zip(range(old, there), range(new, here), strict=True)
        else:
            yield from ((place, None) for place in range(old, there))
            yield from ((None, place) for place in range(new, here))
        if there < len(left):
            yield there, here
        old, new = there + 1, here + 1


def _kept(left: Sequence[str], right: Sequence[str]) -> list[tuple[int, int]]:
    """Return the places of entries that stay, ascending: as many as possible, of a very long list those in order."""
    if max(len(left), len(right)) <= _LONGEST_MATCH:
        blocks = SequenceMatcher(None, left, right, autojunk=False).get_matching_blocks()
        return [(block.a + step, block.b + step) for block in blocks for step in range(block.size)]
    places: dict[str, list[int]] = {}
    for place, key in enumerate(right):
        places.setdefault(key, []).append(place)
    kept, following = [], 0
    for place, key in enumerate(left):
        found = places.get(key, ())
        number = bisect_left(found, following)
        if number < len(found):
            kept.append((place, found[number]))
            following = found[number] + 1
    return kept


def _key(entry: Any) -> str:
    return json.dumps(entry, sort_keys=True)


# --------------------------------------------------------------------------------------------- writing


def _rearrange(
    text: str,
    start: int,
    members: Sequence[_Member],
    keep: Sequence[bool],
    new: dict[int, list[Any]],
    style: _Style,
    edits: list[tuple[int, int, str]],
) -> None:
    """Add to `edits` what removes members that are not kept, and puts new ones behind the member they are filed under.

    Each gap between two kept members is looked at by itself; where nothing happens in it, it stays.
    """
    if all(keep) and not new:
        return
    fresh: dict[int, list[Any]] = {}
    kept = [number for number, flag in enumerate(keep) if flag]
    for anchor, values in sorted(new.items()):  # what is filed under a removed member goes behind the last kept one
        place = bisect_right(kept, anchor)
        fresh.setdefault(kept[place - 1] if place else -1, []).extend(values)
    form = _form(text, start, members, style)
    if not kept:
        end = members[-1].end if members else start + 1
        closing = _skip(text, end)
        values = [value for number in sorted(fresh) for value in fresh[number]]
        if not values:
            edits.append((start + 1, closing, ""))
        else:
            body = form.comma.join(_member(key, value, style, form) for key, value in values)
            edits.append((start + 1, closing, f"{form.opening}{body}{form.closing}"))
        return
    if kept[0] > 0 or -1 in fresh:
        added = "".join(_member(key, value, style, form) + form.comma for key, value in fresh.get(-1, ()))
        edits.append((members[0].start, members[kept[0]].start, added))
    for here, following in pairwise(kept):
        added = "".join(form.comma + _member(key, value, style, form) for key, value in fresh.get(here, ()))
        if following - here > 1 or added:
            gap = text[members[following - 1].end : members[following].start] if following - here > 1 else ""
            if gap:
                edits.append((members[here].end, members[following].start, added + gap))
            else:
                edits.append((members[here].end, members[here].end, added))
    final = kept[-1]
    added = "".join(form.comma + _member(key, value, style, form) for key, value in fresh.get(final, ()))
    if final != len(members) - 1 or added:
        edits.append((members[final].end, members[-1].end, added))


class _Form(NamedTuple):
    """How members of one object or list are set: behind the bracket, between two, before the bracket, after a key."""

    opening: str
    comma: str
    closing: str
    colon: str
    inner: str | None


def _form(text: str, start: int, members: Sequence[_Member], style: _Style) -> _Form:
    if members:
        opening = text[start + 1 : members[0].start]
        closing = text[members[-1].end : _skip(text, members[-1].end)]
        if len(members) > 1:
            comma = text[members[-2].end : members[-1].start]
        else:
            comma = "," + opening if "\n" in opening else style.comma
        key = members[-1]
        colon = style.colon if key.key is None else _colon(text, key.start)
        inner = opening.rpartition("\n")[2] if "\n" in opening else None
        return _Form(opening, comma, closing, colon, inner)
    outer = _indentation(text, start, style)
    if style.indent is None or outer is None:
        return _Form("", style.comma, "", style.colon, None)
    inner = outer + style.indent
    return _Form(style.newline + inner, "," + style.newline + inner, style.newline + outer, style.colon, inner)


def _colon(text: str, start: int) -> str:
    """Return the colon behind the key that begins at `start`, with the white space around it."""
    _, end = _DECODER.raw_decode(text, start)
    return text[end : _skip(text, _skip(text, end) + 1)]


def _indentation(text: str, place: int, style: _Style) -> str | None:
    """Return the white space that begins the line of `place`; None in a file of one line."""
    if style.indent is None:
        return None
    begin = text.rfind("\n", 0, place) + 1
    return text[begin : _end_of_blank(text, begin)]


def _end_of_blank(text: str, place: int) -> int:
    while text[place : place + 1] in (" ", "\t"):
        place += 1
    return place


def _member(key: str | None, value: Any, style: _Style, form: _Form) -> str:
    written = _written(value, style, form.inner)
    return written if key is None else _dumped(key, style, None) + form.colon + written


def _written(value: Any, style: _Style, outer: str | None) -> str:
    """Return a value as JSON; `outer` is the indentation of the line it begins in, None to keep it in one line."""
    if outer is None or style.indent is None:
        return _dumped(value, style, None)
    return _dumped(value, style, style.indent).replace("\n", style.newline + outer)


def _dumped(value: Any, style: _Style, indent: str | None) -> str:
    separators = (style.comma if indent is None else ",", style.colon)
    text = json.dumps(value, ensure_ascii=style.ascii, indent=indent, separators=separators)
    if not style.ascii and _SURROGATE.search(text):  # half of a pair can only be escaped
        text = json.dumps(value, indent=indent, separators=separators)
    return text


def _apply(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    pieces, place = [], 0
    for begin, end, new in edits:
        if begin < place:
            raise MtpfixError("two changes of one file overlap", "this is a defect of mtpfix: nothing was written")
        pieces += [text[place:begin], new]
        place = end
    return "".join([*pieces, text[place:]])


def _fail(file: str, fault: str) -> NoReturn:
    raise FormatError(f"{shown(file)} is {fault}", "download the file again, or correct it by hand")
