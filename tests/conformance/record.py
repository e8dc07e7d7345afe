"""Record what real engine releases do with the tiny checkpoints: `python -m tests.conformance.record 0.32.0 …`.

Each release is asked in its own environment (see `environment.py`); the answers, shortened to what a prediction can be
held against, go to `golden/vllm-RELEASE.json`. Two recordings of one release are equal: texts that print a set are
cut where it begins. A family that a release does not know is left out of its file.
"""

from __future__ import annotations

import argparse
import copy
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.checkpoints import VARIANTS, build
from tests.conformance.environment import VARIABLE, interpreter
from tests.families import FAMILIES

HERE = Path(__file__).parent
GOLDEN = HERE / "golden"
ROLES = ("target", "draft")
Answer = dict[str, Any]


def cases() -> Iterator[tuple[str, str]]:
    """Yield family and variant of every checkpoint that is recorded: all that declare an MTP branch."""
    for family in FAMILIES:
        for variant in VARIANTS.values():
            if family in variant.families and variant.declares:
                yield family, variant.name


def ask(release: str, checkpoints: Sequence[Path], runner: str | None = None) -> Iterator[Answer]:
    """Yield the oracle's answer for each checkpoint, from the environment of one release."""
    python = interpreter(release)
    if python is None:
        raise SystemExit(f"there is no environment for vllm {release}; set {VARIABLE}, or make one")
    command = [str(python), str(HERE / "oracle.py"), *map(str, checkpoints)]
    command += ["--runner", runner] if runner else []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        for line in process.stdout or ():
            yield json.loads(line)
    if process.returncode:
        raise SystemExit(f"the oracle of vllm {release} ended with {process.returncode}")


def shorten(text: str) -> str:
    """Cut an error text where it begins to print a set, whose order differs from run to run, and at 300 characters."""
    text = re.sub(r"\{.*", "{…}", text, flags=re.DOTALL)
    text = re.sub(r"(?<=Some parameters like )\S+", "{…}", text)
    return text if len(text) <= 300 else text[:300] + "…"


def unwrap(error: str, text: str) -> tuple[str, str]:
    """Return class and shortened text of an error, of the one inside where a configuration class wrapped it."""
    inner = re.search(r"Value error, (.*?) \[type=value_error", text, flags=re.DOTALL)
    if error == "ValidationError" and inner is not None:
        error, text = "ValueError", inner[1]
    return error, shorten(text)


def collapse(names: Iterable[str]) -> list[str]:
    """Join names that differ in their first number only: `layers.{0,1}.mlp`."""
    groups: dict[str, list[int]] = {}
    for name in names:
        found = re.search(r"(?<=\.)\d+(?=\.)", name)
        if found is None:
            groups.setdefault(name, [])
        else:
            groups.setdefault(f"{name[: found.start()]}{{}}{name[found.end() :]}", []).append(int(found[0]))
    joined = {name: ",".join(map(str, sorted(set(numbers)))) for name, numbers in groups.items()}
    return sorted(
        name.replace("{}", f"{{{numbers}}}" if "," in numbers else numbers) for name, numbers in joined.items()
    )


def expand(names: Iterable[str]) -> Iterator[str]:
    """Undo `collapse`."""
    for name in names:
        found = re.search(r"\{([\d,]+)\}", name)
        numbers = found[1].split(",") if found else [""]
        yield from (name[: found.start()] + number + name[found.end() :] if found else name for number in numbers)


def built(modules: Iterable[Mapping[str, str]]) -> dict[str, list[str]]:
    """Return prefixes by format and layer class."""
    groups: dict[str, list[str]] = {}
    for module in modules:
        groups.setdefault(f"{module['format']} {module['layer']}", []).append(module["prefix"])
    return {key: collapse(names) for key, names in sorted(groups.items())}


def digest(found: Answer | None) -> Answer | None:
    """Return what is kept of one model's answer."""
    if found is None:
        return None
    kept: Answer = {"verdict": found["verdict"]}
    if found["error"] is not None:
        kept["phase"] = found["phase"]
        kept["error"], kept["text"] = unwrap(found["error"]["class"], found["error"]["text"])
        if found["tensor"] is not None:
            kept["tensor"] = found["tensor"]
    if found["verdict"] == "silent":
        for key in ("unwritten", "partial", "misread"):
            if found[key]:
                kept[key] = collapse(found[key])
    kept["built"] = built(found["modules"])
    return kept


def merge(answers: Mapping[str, Answer]) -> dict[str, Answer]:
    """Return the answers with each table of built modules written once, and named by its first case after that."""
    first: dict[tuple[str, str, str], str] = {}
    for case, answer in answers.items():
        family, _, variant = case.partition("/")
        for role in ROLES:
            if (found := answer[role]) is None:
                continue
            key = (family, role, json.dumps(found["built"]))
            if key in first:
                found["built"] = first[key]
            else:
                first[key] = variant
    return dict(answers)


def separate(merged: Mapping[str, Answer]) -> dict[str, Answer]:
    """Undo `merge`: every case with its own table of built modules."""
    answers = copy.deepcopy(dict(merged))
    for case, answer in answers.items():
        for role in ROLES:
            if answer[role] is not None and isinstance(name := answer[role]["built"], str):
                answer[role]["built"] = merged[f"{case.partition('/')[0]}/{name}"][role]["built"]
    return answers


def record(release: str, wanted: Sequence[tuple[str, str]], folder: Path) -> None:
    """Ask one release for the wanted cases and write them into its golden file; checkpoints lie in `folder`."""
    names = [f"{family}/{variant}" for family, variant in wanted]
    start = time.monotonic()
    path = GOLDEN / f"vllm-{release}.json"
    known = json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else {}
    answers = separate(known)
    head: Answer = {}
    for name, found in zip(names, ask(release, [folder / name for name in names]), strict=True):
        if "broken" in found:
            raise SystemExit(f"{name}: {found['broken']}")
        head = {key: found[key] for key in ("vllm", "runner", "torch", "transformers", "patches")}
        if "unsupported" in found:
            continue
        answers[name] = {role: digest(found[role]) for role in ROLES}
    GOLDEN.mkdir(exist_ok=True)
    ordered = {name: answers[name] for name in map("/".join, cases()) if name in answers}
    content = {"engine": "vllm", "version": release, **head, "cases": merge(ordered)}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    sys.stdout.write(f"{path.name}: {len(names)} cases in {time.monotonic() - start:.0f} s\n")


def main() -> None:
    """Build the tiny checkpoints once and record the releases on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.record", description=main.__doc__)
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--only", action="append", help="record these variants alone and keep the rest of the file")
    options = parser.parse_args()
    wanted = [case for case in cases() if options.only is None or case[1] in options.only]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for family, variant in wanted:
            build(folder / family / variant, family, variant)
        for release in options.releases:
            record(release, wanted, folder)


if __name__ == "__main__":
    main()
