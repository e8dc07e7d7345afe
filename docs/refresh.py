"""Write what the tool itself knows into the documents: `python docs/refresh.py`; with `--check` only say what is stale.

README.md gets its tables; `docs/rules/` a page for each rule; `docs/commands.md` the help of every command;
`docs/report.schema.json` what `mtpfix schema` prints; `docs/glue.md` how each release builds the layer at the entrance
of the MTP branch, and what recorded releases did with a packed one.
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
    glue = ROOT / "docs" / "glue.md"
    yield glue, BLOCK.sub(_glue, glue.read_text(encoding="utf-8"))


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


GLUE = re.compile(r"(^|\.)(eh_proj|fc(_embedding|_hidden)?|input_proj|mtp_linear_proj)(\.|$)")
"""Names of the layer that joins hidden state and embedding at the entrance of an MTP branch."""
CLASSES = {
    "linear": "torch.nn.Linear",
    "replicated": "ReplicatedLinear",
    "column": "ColumnParallelLinear",
    "row": "RowParallelLinear",
}


def _glue(block: re.Match[str]) -> str:
    """Return a block of docs/glue.md: how an engine has `built` the layer by the knowledge, or what was `seen`."""
    what, _, engine = block[2].partition("_")
    lines = _glue_built(engine) if what == "built" else _glue_seen(engine)
    return block[1] + "".join(f"| {' | '.join(cells)} |\n" for cells in lines) + block[3]


def _glue_built(name: str) -> Iterator[tuple[str, ...]]:
    from mtpfix import families
    from mtpfix.engines import load, range_text

    engine = load(name)
    header = ("family", "on disk", "class of the layer", "lists are asked with", engine.title, "source")
    yield from (header, tuple("---" for _ in header))
    for family in map(families.load, families.names()):
        found: dict[tuple[str, ...], list[str]] = {}
        for release in engine.releases:
            for row in _glue_of(family, name, release):
                found.setdefault(row, []).append(release)
        for (disk, kind, asked, source), releases in found.items():
            text = range_text(engine, releases).removeprefix(engine.name).strip() or "all"
            yield family.title, f"`{disk}`", kind, asked, text, source


def _glue_of(family: Any, engine: str, release: str) -> Iterator[tuple[str, ...]]:
    """Yield name on disk, class, name for the lists and source of the layer in one release."""
    from mtpfix.facts import covers, pick

    blocks = {id(one): one for name in family.architectures for one in family.models(engine, "draft", name, release)}
    for block in blocks.values():
        for group in block.get("group", ()):
            listings = group["modules"] if covers(group.get("versions", "*"), release) else ()
            for entry in (one for name in listings for one in family.table["modules"][name]):
                if not GLUE.search(entry["name"]) or not covers(entry.get("versions", "*"), release):
                    continue
                if entry["layer"] not in CLASSES:
                    continue
                roots = group["disk"] if isinstance(group["disk"], str) else group["disk"][0]
                disk = ".".join(part for part in (roots, entry.get("from", [entry["name"]])[0]) if part)
                prefix = pick(entry.get("prefix"), release)
                prefix = prefix or f"{pick(group.get('prefix', roots), release)}.{entry['name']}".lstrip(".")
                never = entry.get("quant") == "never" or entry["layer"] == "linear"
                asked = "not asked: always 16-bit" if never else f"`{prefix}`"
                plain = pick(entry.get("plain_for"), release) or pick(group.get("plain_for"), release)
                if plain and not never:
                    asked += f", but 16-bit under {' and '.join(plain)}"
                yield disk, CLASSES[entry["layer"]], asked, str(entry.get("source", ""))


def _glue_seen(name: str) -> Iterator[tuple[str, ...]]:
    from packaging.version import Version

    from mtpfix import families
    from mtpfix.engines import load

    golden = ROOT / "tests" / "conformance" / "golden"
    header = ("family", "the layer is packed", load(name).title, "the draft", "at")
    yield from (header, tuple("---" for _ in header))
    folders = sorted(golden.glob(f"{name}-*"), key=lambda path: Version(path.name.removeprefix(f"{name}-")))
    recorded = {path.stem for folder in folders for path in folder.glob("*.json")}
    for family in map(families.load, families.names()):
        if family.name not in recorded:
            continue
        for variant, how in (("packed-glue", "listed"), ("all-nvfp4", "not listed, as the whole branch is")):
            found: dict[tuple[str, ...], list[str]] = {}
            for folder in folders:
                path = folder / f"{family.name}.json"
                answers = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
                draft = answers.get(variant, {}).get("draft")
                if draft is not None:
                    found.setdefault(_told(draft), []).append(folder.name.removeprefix(f"{name}-"))
            for (told, tensor), releases in found.items():
                yield family.title, how, _releases(releases), told, tensor


def _told(draft: dict[str, Any]) -> tuple[str, str]:
    """Return what became of a draft, and the tensor at which it failed."""
    if draft["verdict"] != "fails":
        return str(draft["verdict"]), ""
    text = " ".join(str(draft["text"]).replace("|", "\\|").split())
    error = f"{draft['error']}: {text[:160]}" if text else str(draft["error"])
    return f"`{error}`", f"`{draft['tensor']}`" if draft.get("tensor") else ""


def _releases(releases: list[str]) -> str:
    return f"{releases[0]} to {releases[-1]}: {len(releases)} releases" if len(releases) > 3 else ", ".join(releases)


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
