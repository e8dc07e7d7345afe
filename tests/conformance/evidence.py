"""Whether a cited line can bear the fact that cites it, by the syntax tree of the engine's file.

Knows some kinds of facts: a part of a model (the statement names it, or what it is a part of), a model class (the line
lies in it, or names it), and an error (the statement raises it, has the fact's number or key, or is of the kind that
raises it: a subscript for KeyError, an attribute for AttributeError, a call for RuntimeError). Of a mapper the
statement has one of its names, of a list or table the function has one of its words. Of any other fact it says nothing
but that the line has to be part of a statement, and no comment.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from string import digits
from typing import Any

Fact = Mapping[str, Any]

SHORTEST = 8
"""Letters of an error text without a placeholder from which it must stand in the function."""


def facts(value: object) -> Iterator[Fact]:
    """Yield every table that cites a source."""
    if isinstance(value, Mapping):
        if isinstance(value.get("source"), str):
            yield value
        for below_it in value.values():
            yield from facts(below_it)
    elif isinstance(value, list):
        for below_it in value:
            yield from facts(below_it)


@lru_cache(maxsize=64)
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def around(text: str, line: int) -> list[ast.AST]:
    """Return the nodes whose lines hold a line, outermost first."""
    found: list[ast.AST] = []
    level: Sequence[ast.AST] = [_tree(text)]
    while level:
        level = [child for node in level for child in ast.iter_child_nodes(node) if _holds(child, line)]
        found += level
    return found


def _holds(node: ast.AST, line: int) -> bool:
    if not isinstance(node, (ast.stmt, ast.expr, ast.keyword, ast.arg, ast.excepthandler, ast.alias)):
        return any(_holds(child, line) for child in ast.iter_child_nodes(node))
    begin = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
    end: int = node.end_lineno or begin
    return bool(begin <= line <= end)


def bears(text: str, line: int, fact: Fact) -> bool | None:
    """Return whether a line can bear a fact; None where nothing can be said but that it is part of a statement."""
    if text.splitlines()[line - 1].strip().startswith("#"):
        return False
    nodes = around(text, line)
    statements = [node for node in nodes if isinstance(node, ast.stmt)]
    if not statements:
        return False
    statement = statements[-1]
    if "role" in fact and "class" in fact and isinstance(fact["class"], str):
        inside = any(isinstance(node, ast.ClassDef) and node.name == fact["class"] for node in nodes)
        return inside or _names(statement, fact["class"], text)
    if any(_names(statement, str(number), text) for number in numbers(fact)):
        return True
    if any(_names(statement, str(one).strip("."), text) for one in (*fact.get("except", ()), *fact.get("keys", ()))):
        return True
    if fact.get("name") and "layer" in fact:
        words = [*parts(fact), *(["shard_id"] if fact.get("partial_scalars") else [])]
        return any(_names(statement, word, text) for word in words) if words else None
    does = str(fact.get("does", ""))
    if does[:1].isupper():
        function = next((one for one in reversed(statements) if isinstance(one, ast.FunctionDef)), None)
        return _raises(statement, function, does, str(fact.get("text", "")), text)
    if "mapped" in fact:
        return _maps(statement, fact["mapped"])
    if isinstance(fact.get("is"), dict) and fact["is"] and set(fact["is"]) <= PARTIAL_SCALARS:
        return "scalar" in _source(statement, text)
    if isinstance(fact.get("is"), (list, dict)) and (words := list(_strings(fact["is"]))):
        outer = next((one for one in reversed(statements) if isinstance(one, _SCOPES)), statement)
        return any(word in _source(statement, text) or word in ast.unparse(outer) for word in words)
    return None


PARTIAL_SCALARS = {"formats", "dialects"}
"""Keys of a fact that says where a loader writes a scale of one number into the first place alone."""
_SCOPES = (ast.FunctionDef, ast.ClassDef)


def _maps(statement: ast.stmt, names: Sequence[str]) -> bool:
    """Return whether a statement makes a mapper of these names, up to numbers, or takes over another class's."""
    constants = {node.value for node in ast.walk(statement) if isinstance(node, ast.Constant)}
    others = [node for node in ast.walk(statement) if isinstance(node, ast.Attribute) and node.attr.endswith("mapper")]
    return bool(others) or bool(constants.intersection((*names, *(name.partition("{")[0] for name in names))))


def _strings(value: object) -> Iterator[str]:
    """Yield every word of more than two letters in a value."""
    if isinstance(value, str):
        yield from (word for word in re.findall(r"\w+", value) if len(word) > 2)
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from (*_strings(key), *_strings(one))
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)


def numbers(fact: Fact) -> list[int]:
    """Return the numbers of a fact, and for a length the last number that it counts."""
    found = [fact[key] for key in ("multiple", "padded", "length") if isinstance(fact.get(key), int)]
    return [*found, *(number - 1 for number in found)]


def parts(fact: Fact) -> list[str]:
    """Return the words of which one must stand in the statement that makes a part of a model, or the part around it."""
    names = [fact["name"], *fact.get("from", ()), *fact.get("also", ()), fact.get("param", ""), fact.get("prefix", "")]
    words = [word for name in names if isinstance(name, str) for word in name.split(".")]
    words += [word.rstrip(digits) for word in words if re.search(r"_\d+$", word)]  # the number is put in where it runs
    return [word for word in dict.fromkeys(words) if word.isidentifier() and word not in ("model", "layers")]


def _names(statement: ast.stmt, name: str, text: str) -> bool:
    """Return whether a statement, of a compound one its head, names something; a class may be called after it."""
    if isinstance(statement, ast.ClassDef) and name.replace("_", "").lower() in statement.name.lower():
        return True
    return re.search(rf"(?<!\w){re.escape(name)}(?![A-Za-z0-9])", _source(statement, text)) is not None


def _source(statement: ast.stmt, text: str) -> str:
    lines = text.splitlines()
    end = statement.end_lineno or statement.lineno
    body = getattr(statement, "body", None)
    if isinstance(body, list) and body:
        end = max(statement.lineno, body[0].lineno - 1)
    return "\n".join(lines[statement.lineno - 1 : end])


def _raises(statement: ast.stmt, function: ast.AST | None, does: str, said: str, text: str) -> bool:
    if isinstance(statement, ast.Raise):
        return does in ast.unparse(statement)
    if isinstance(statement, ast.Assert):
        return does == "AssertionError"
    inside = list(ast.walk(function or statement))
    if any(
        isinstance(node, (ast.Raise, ast.Assert)) and _raises(node, None, does, "", text) for node in below(statement)
    ):
        return True
    chunks = [chunk.strip() for chunk in re.split(r"\{\w*…?\}", said)]
    longest = max(chunks, key=len, default="")
    if len(longest) >= SHORTEST and longest in _constants(inside):
        return True
    kinds: dict[str, tuple[type[ast.AST], ...]] = {
        "KeyError": (ast.Subscript,),
        "IndexError": (ast.Subscript,),
        "AmbiguousGlobalPerLayerAttributeError": (ast.Attribute, ast.Call),
        "AttributeError": (ast.Attribute, ast.Call),
        "RuntimeError": (ast.Call,),
        "TypeError": (ast.Call, ast.arguments),
        "ValueError": (ast.Call,),
        "AssertionError": (ast.Call,),
        "ValidationError": (ast.Call, ast.stmt),
        "StrictDataclassFieldValidationError": (ast.Call,),
    }
    head = (
        [statement]
        if not hasattr(statement, "body")
        else [one for one in ast.iter_child_nodes(statement) if not isinstance(one, ast.stmt)]
    )
    return any(isinstance(node, kinds.get(does, ())) for one in head for node in ast.walk(one))


def below(statement: ast.stmt) -> Sequence[ast.AST]:
    """Return the statements directly in a compound one that is no function or class."""
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return ()
    return [*getattr(statement, "body", ()), *getattr(statement, "orelse", ())]


def _constants(nodes: Sequence[ast.AST]) -> str:
    return " ".join(" ".join(str(node.value).split()) for node in nodes if isinstance(node, ast.Constant))
