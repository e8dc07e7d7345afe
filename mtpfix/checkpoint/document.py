"""A JSON file as the engines read it: Python's rules, the last of repeated keys wins, and every repetition is told.

Knows nothing of what the keys mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, NoReturn

from mtpfix.checkpoint.header import LFS_MARK
from mtpfix.checkpoint.ref import shown
from mtpfix.errors import FormatError


@dataclass(frozen=True, slots=True)
class Document:
    """The object a file holds, and the keys that stand twice in one object anywhere in it."""

    value: dict[str, Any]
    repeated: tuple[str, ...]


def parse_document(raw: bytes, file: str, *, nan: bool) -> Document:
    """Return the object that `raw` is; `nan` allows NaN and Infinity, which transformers writes. Raises FormatError."""
    if raw.startswith(LFS_MARK):
        raise FormatError(f"{shown(file)} is a git-lfs pointer, not the file", "run `git lfs pull` in the folder")
    repeated: list[str] = []

    def as_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            repeated.extend(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        return value

    try:
        value = json.JSONDecoder(object_pairs_hook=as_dict, parse_constant=None if nan else _constant).decode(
            raw.decode()
        )
    except UnicodeDecodeError as error:
        _fail(file, f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        _fail(file, f"not JSON: {error.msg[:1].lower()}{error.msg[1:]} at line {error.lineno}, column {error.colno}")
    except ValueError as error:
        _fail(file, f"not JSON: {str(error).partition(';')[0]}")
    except RecursionError:
        _fail(file, "nested too deep")
    if not isinstance(value, dict):
        _fail(file, "not an object")
    return Document(value, tuple(repeated))


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def _fail(file: str, fault: str) -> NoReturn:
    raise FormatError(f"{shown(file)} is {fault}", "download the file again, or correct it by hand")
