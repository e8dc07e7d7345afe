"""Write what the tool itself knows into the documents: `python docs/refresh.py`; with `--check` only say what is stale.

README.md gets its tables; `docs/rules/` a page for each rule; `docs/commands.md` the help of every command;
`docs/report.schema.json` what `mtpfix schema` prints.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from typer.models import OptionInfo

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BLOCK = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def documents() -> Iterator[tuple[Path, str]]:
    """Yield every generated document with the text it should have."""
    yield ROOT / "README.md", _refreshed((ROOT / "README.md").read_text(encoding="utf-8"))
    yield from _rules(ROOT / "docs" / "rules")
    yield ROOT / "docs" / "commands.md", _commands()
    yield ROOT / "docs" / "report.schema.json", _schema()


def _refreshed(text: str) -> str:
    """Return a document with the listing named in each block put into it."""
    from mtpfix.report import tables

    listings = {"engines": tables.engines, "families": tables.families}

    def fill(block: re.Match[str]) -> str:
        return f"{block[1]}{listings[block[2]]().render('markdown', 0)}{block[3]}"

    return BLOCK.sub(fill, text)


def _rules(folder: Path) -> Iterator[tuple[Path, str]]:
    from mtpfix.rules import all_rules

    lines = ["# Rules", "", "| code | name | severity | what it finds |", "|---|---|---|---|"]
    for rule in all_rules():
        lines.append(f"| [{rule.code}]({rule.code}.md) | {rule.name} | {rule.severity.value} | {rule.summary} |")
        title = f"# {rule.code} {rule.name}"
        yield folder / f"{rule.code}.md", f"{title}\n\nSeverity: {rule.severity.value}.\n\n{rule.documentation}\n"
    yield folder / "README.md", "\n".join((*lines, ""))


def _commands() -> str:
    """Return every command with its arguments and options as registered: how help is printed changes with typer."""
    from mtpfix.cli import app
    from mtpfix.cli.app import ORDER

    parts = ["# Commands\n"]
    for command in sorted(app.registered_commands, key=lambda one: ORDER.index(str(one.name))):
        run: Any = command.callback
        rows = list(_parameters(run))
        usage = " ".join(given for given, _ in rows if not given.startswith("-"))
        parts.append(f"## mtpfix {command.name} {usage}".rstrip() + f"\n\n{_paragraphs(inspect.getdoc(run) or '')}\n")
        parts.append("| | |\n|---|---|\n" + "".join(f"| `{given}` | {text} |\n" for given, text in rows))
    return "\n".join(parts)


def _parameters(run: Any) -> Iterator[tuple[str, str]]:
    hints = get_type_hints(run, include_extras=True)
    for name, parameter in inspect.signature(run).parameters.items():
        kind, info = get_args(hints[name])[:2]
        first = (info.default,) if isinstance(info.default, str) else ()  # the first declaration lands there
        flag = (*first, *(info.param_decls or ())) or (f"--{name.replace('_', '-')}",)
        given = ", ".join(flag) if isinstance(info, OptionInfo) else info.metavar or name.upper()
        choices = [value for part in (kind, *get_args(kind)) if get_origin(part) is Literal for value in get_args(part)]
        value = "\\|".join(choices) if choices else info.metavar if isinstance(info, OptionInfo) else None
        default = info.show_default if isinstance(info.show_default, str) else parameter.default
        text = (info.help or "").replace("|", "\\|")
        if isinstance(default, str) and default not in text:
            text += f" Default: {default}."
        yield (f"{given} {value}" if value else given), text


def _paragraphs(text: str) -> str:
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _schema() -> str:
    from mtpfix.report.schema import json_schema

    return json.dumps(json_schema(), indent=2) + "\n"


def main() -> None:
    """Write what is stale, or fail where anything is."""
    made = dict(documents())
    stale = [path for path, text in made.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    left_over = [path for path in (ROOT / "docs" / "rules").glob("*.md") if path not in made]
    if "--check" in sys.argv:
        if stale or left_over:
            names = ", ".join(str(path.relative_to(ROOT)) for path in (*stale, *left_over))
            sys.exit(f"stale: {names}; run `make docs`")
        return
    for path in left_over:
        path.unlink()
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(made[path], encoding="utf-8")


if __name__ == "__main__":
    main()
