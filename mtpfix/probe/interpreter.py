"""What a Python interpreter holds: its version, and which engines, found without importing any."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mtpfix.checkpoint.ref import shown
from mtpfix.engines import Engine, load, names
from mtpfix.errors import MtpfixError, UsageError
from mtpfix.probe.launch import run

OLDEST = (3, 10)
SECONDS = 60.0
NEXT = "name the Python that has the engine, such as VENV/bin/python"


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python: `engines` maps the names of those it has to their versions, None where nothing says it."""

    path: Path
    version: str
    engines: Mapping[str, str | None]


def inspect(text: str | os.PathLike[str]) -> Interpreter:
    """Return what an interpreter holds; `text` is its path, its name on PATH, or the folder of its environment.

    Raises UsageError where it is no Python, or one that is too old.
    """
    path = find(text)
    engines = [load(name) for name in names()]
    packages = {engine.table["package"]: list(engine.table.get("distributions", ())) for engine in engines}
    outcome = run(path, "detect", [json.dumps(packages)], timeout=SECONDS)
    found = outcome.answers[-1] if outcome.answers else {}
    version = found.get("python")
    if outcome.code or not isinstance(version, str):
        said = f": {shown(outcome.printed)}" if outcome.printed else ""
        raise UsageError(f"{shown(str(path))} is not a Python of {_oldest()} or newer{said}", NEXT)
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < OLDEST:
        raise UsageError(f"{shown(str(path))} is Python {shown(version)}; the probe needs {_oldest()} or newer", NEXT)
    installed = found.get("engines", {})
    return Interpreter(
        path,
        version,
        {
            engine.name: installed[engine.table["package"]].get("version")
            for engine in engines
            if engine.table["package"] in installed
        },
    )


def choose(interpreter: Interpreter, wanted: str | None) -> Engine:
    """Return the engine to ask: the one wanted, or the only one there.

    Raises UsageError where there is none, or where several are and none is wanted.
    """
    known = ", ".join(names())
    if wanted is not None:
        engine = load(wanted.lower())
        if engine.name not in interpreter.engines:
            raise UsageError(f"{shown(str(interpreter.path))} has no {engine.title}", NEXT)
        return engine
    if not interpreter.engines:
        raise UsageError(
            f"{shown(str(interpreter.path))} (Python {interpreter.version}) has no engine; looked for {known}", NEXT
        )
    if len(interpreter.engines) > 1:
        raise UsageError(
            f"{shown(str(interpreter.path))} has {' and '.join(interpreter.engines)}", "say which one with --engine"
        )
    return load(next(iter(interpreter.engines)))


def probe_of(engine: Engine) -> str:
    """Return the module inside that knows an engine; raises MtpfixError where there is none."""
    module = engine.table.get("probe")
    if not isinstance(module, str):
        raise MtpfixError(
            f"mtpfix cannot run {engine.title}'s loader yet",
            f"`mtpfix scan --engine {engine.name}` predicts what it does",
        )
    return module


def find(text: str | os.PathLike[str]) -> Path:
    """Return the path of an interpreter; raises UsageError where nothing is there that can be executed."""
    name = os.fspath(text)
    path = Path(name).expanduser()
    if name and os.sep not in name and not path.exists() and (found := shutil.which(name)):
        path = Path(found)
    try:
        if path.is_dir() and (path / "bin" / "python").exists():
            path = path / "bin" / "python"
        if not name or not path.exists():
            raise UsageError(f"there is no interpreter {shown(name)!r}", NEXT)
        if path.is_dir():
            raise UsageError(f"{shown(name)} is a folder, and no environment of Python", NEXT)
    except (OSError, ValueError) as error:
        raise UsageError(f"{shown(name)} cannot be looked up: {error}", NEXT) from error
    if not os.access(path, os.X_OK):
        raise UsageError(f"{shown(name)} cannot be executed", NEXT)
    return path.absolute()


def _oldest() -> str:
    return ".".join(map(str, OLDEST))
