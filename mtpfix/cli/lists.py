"""The commands that list what is known: `engines`, `families`, `explain`, `schema`."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from mtpfix.cli.app import FALLBACK_WIDTH, Json, Shape, Table, command, complete_rule, show
from mtpfix.errors import EXIT_OK

if TYPE_CHECKING:
    from mtpfix.report.tables import Listing


@command("engines", "The engines and releases that mtpfix knows.")
def list_engines(shape: Table = "text", as_json: Json = False) -> int:
    """List the engines and releases that mtpfix knows: verified were run, derived were read."""
    from mtpfix.report import tables

    return _list(tables.engines(), "json" if as_json else shape)


@command("families", "The model families that mtpfix knows.")
def list_families(shape: Table = "text", as_json: Json = False) -> int:
    """List the model families that mtpfix knows, their architectures, and the releases that load them."""
    from mtpfix.report import tables

    return _list(tables.families(), "json" if as_json else shape)


@command("explain", "What a rule means, or all rules.")
def explain(
    rule: Annotated[
        str | None,
        typer.Argument(metavar="[RULE]", help="A code or a name; without it, all rules.", autocompletion=complete_rule),
    ] = None,
    shape: Table = "text",
    as_json: Json = False,
) -> int:
    """Explain a rule, or list all rules."""
    from mtpfix.report import tables

    if rule is None:
        return _list(tables.rules(), "json" if as_json else shape)
    show(tables.explain(rule, "json" if as_json else shape))
    return EXIT_OK


@command("schema", "The JSON Schema of the JSON report.")
def schema(shape: Shape = "json", as_json: Json = False) -> int:  # noqa: ARG001 - one shape only, asked for like others
    """Print the JSON Schema of what `scan --format json` prints."""
    import json

    from mtpfix.report.schema import json_schema

    show(json.dumps(json_schema(), indent=2) + "\n")
    return EXIT_OK


def _list(listing: Listing, shape: Literal["text", "json", "markdown"]) -> int:
    show(listing.render(shape, shutil.get_terminal_size((FALLBACK_WIDTH, 24)).columns))
    return EXIT_OK
