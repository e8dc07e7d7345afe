"""The JSON Schema (2020-12) of the JSON report, derived from the very types that the report is made of."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict

from mtpfix.report.json_v1 import SCHEMA, FailureV1, ReportV1

Schema = dict[str, Any]

PLAIN: Mapping[object, Schema] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    type(None): {"type": "null"},
}


def json_schema(*, closed: bool = False) -> Schema:
    """Return the schema of what `scan --format json` prints; `closed` forbids keys that it does not name.

    Readers are given the open one, because keys may be added within a version.
    """
    definitions: dict[str, Schema] = {}
    one = [_describe(ReportV1, definitions, closed=closed), _describe(FailureV1, definitions, closed=closed)]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"mtpfix scan report, schema version {SCHEMA}",
        "description": "An object for one checkpoint, an array for several, in the order asked for.",
        "anyOf": [*one, {"type": "array", "minItems": 2, "items": {"anyOf": one}}],
        "$defs": dict(sorted(definitions.items())),
    }


def _describe(kind: Any, definitions: dict[str, Schema], *, closed: bool) -> Schema:
    if kind in PLAIN:
        return dict(PLAIN[kind])
    if is_typeddict(kind):
        return _describe_table(kind, definitions, closed=closed)
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return {**_describe(arguments[0], definitions, closed=closed), "description": arguments[1]}
    if origin is Literal:
        return {"const": arguments[0]} if len(arguments) == 1 else {"enum": list(arguments)}
    if origin is list:
        return {"type": "array", "items": _describe(arguments[0], definitions, closed=closed)}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_describe(each, definitions, closed=closed) for each in arguments]}
    raise TypeError(f"no JSON Schema for {kind!r}")


def _describe_table(table: Any, definitions: dict[str, Schema], *, closed: bool) -> Schema:
    name = table.__name__.removesuffix("V1")
    if name not in definitions:
        definitions[name] = {}
        hints = get_type_hints(table, include_extras=True)
        definitions[name] = {
            "type": "object",
            "description": inspect.getdoc(table) or "",
            "properties": {key: _describe(hint, definitions, closed=closed) for key, hint in hints.items()},
            "required": sorted(table.__required_keys__),
            "additionalProperties": not closed,
        }
    return {"$ref": f"#/$defs/{name}"}
