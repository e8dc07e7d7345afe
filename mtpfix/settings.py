"""The settings of a project: `mtpfix.toml`, or `[tool.mtpfix]` of `pyproject.toml`. Knows their form, no more."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any

from mtpfix.checkpoint.ref import shown
from mtpfix.errors import UsageError
from mtpfix.model import Ignore

FILE, SHARED_FILE = "mtpfix.toml", "pyproject.toml"
LEVELS = ("error", "warning", "note", "never")
LARGEST = 1_000_000  # bytes


@dataclass(frozen=True, slots=True)
class Settings:
    """What a project settled: None or empty where it says nothing. `source` is the file, None for no file."""

    source: Path | None = None
    engines: tuple[str, ...] = ()
    fail_on: str | None = None
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    ignores: tuple[Ignore, ...] = ()


def find_settings(folder: Path | None, *, start: Path | None = None) -> Settings:
    """Return the settings in a model's `folder`, else the nearest above the working directory (`start`).

    Raises UsageError for a file that cannot be read or that says what is not known.
    """
    if folder is not None and (folder / FILE).is_file():
        return read_settings(folder / FILE)
    here = (start or Path.cwd()).resolve()
    for parent in (here, *here.parents):
        if (parent / FILE).is_file():
            return read_settings(parent / FILE)
        if (parent / SHARED_FILE).is_file():
            settings = read_settings(parent / SHARED_FILE)
            if settings.source is not None:
                return settings
        if (parent / ".git").exists():
            break
    return Settings()


def read_settings(path: Path) -> Settings:
    """Return what a file settles; of a `pyproject.toml` only `[tool.mtpfix]`, and nothing where it has none.

    Raises UsageError for a file that cannot be read or that says what is not known.
    """
    table = _table(path)
    if path.name == SHARED_FILE:
        tool = table.get("tool")
        section = tool.get("mtpfix") if isinstance(tool, Mapping) else None
        if section is None:
            return Settings()
        if not isinstance(section, Mapping):
            raise _refused(path, "[tool.mtpfix] is not a table")
        table = section
    known = {"engines", "fail-on", "select", "ignore", "ignores"}
    for key in table:
        if key not in known:
            raise _refused(path, f'the key "{shown(key)}" is not known', f"known are {', '.join(sorted(known))}")
    level = table.get("fail-on")
    if level is not None and level not in LEVELS:
        raise _refused(path, f"fail-on is not one of {', '.join(LEVELS)}")
    ignores = table.get("ignores", [])
    if not isinstance(ignores, list):
        raise _refused(path, "ignores is not an array of tables", 'write [[ignores]] above rule = "..."')
    return Settings(
        source=path,
        engines=_texts(path, table, "engines"),
        fail_on=level,
        select=_texts(path, table, "select"),
        ignore=_texts(path, table, "ignore"),
        ignores=tuple(_ignore(path, entry, number) for number, entry in enumerate(ignores, 1)),
    )


def _table(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > LARGEST:
            raise _refused(path, f"it has more than {LARGEST:,} bytes")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise _refused(path, error.strerror or str(error), "name a file that is there and can be read") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise _refused(path, f"it is not TOML: {error}") from None


def _texts(path: Path, table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(text, str) and text for text in value):
        raise _refused(path, f"{key} is not an array of texts")
    return tuple(value)


def _ignore(path: Path, entry: Any, number: int) -> Ignore:
    where = f"entry {number} of ignores"
    if not isinstance(entry, Mapping):
        raise _refused(path, f"{where} is not a table")
    unknown = [key for key in entry if key not in ("rule", "code", "module", "reason", "until")]
    if unknown:
        raise _refused(
            path, f'{where}: the key "{shown(unknown[0])}" is not known', "known are rule, module, reason, until"
        )
    rule, module, reason = entry.get("rule", entry.get("code")), entry.get("module", "*"), entry.get("reason")
    for name, text in (("rule", rule), ("module", module), ("reason", reason)):
        if not isinstance(text, str) or not text.strip():
            raise _refused(path, f"{where}: {name} is not a text", "say which rule, and why it is accepted")
    until = entry.get("until")
    if isinstance(until, str):
        try:
            until = date.fromisoformat(until)
        except ValueError:
            until = False
    if until is not None and (not isinstance(until, date) or isinstance(until, datetime)):
        raise _refused(path, f"{where}: until is not a day", "write it as 2027-01-31")
    return Ignore(str(rule), str(reason), str(module), until)


def _refused(path: Path, what: str, hint: str = "correct it, or pass --isolated to do without it") -> UsageError:
    return UsageError(f"{shown(str(path))}: {shown(what)}", hint)
