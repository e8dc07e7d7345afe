"""Learn a release that was not seen before: `python -m tests.conformance.learn 0.33.0` (or `sglang-0.5.24`).

Fetches its wheel and says what changed in what matters (see `essence.py`), against the newest known release before it:
in every file that the knowledge cites, and in every file of an MTP class. Then runs the loads in an environment of that
release (which it makes where there is none), writes the golden table, and holds the predictions against it. If nothing
differs, the change that adds the release is one line, which is printed; where something does, it says what.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.version import Version

from mtpfix.checkpoint import open_checkpoint
from mtpfix.engines import Engine, load
from mtpfix.engines.check import all_sources
from mtpfix.engines.predict import predict
from mtpfix.engines.subject import Subject
from mtpfix.model import Verdict
from mtpfix.probe.answer import observation
from mtpfix.probe.compare import by_path, differences
from tests.checkpoints import build
from tests.conformance import environment, record
from tests.conformance.essence import essence
from tests.conformance.wheels import list_sources, read_source

BESIDE: Mapping[str, tuple[str, ...]] = {
    "vllm": (
        "config/speculative.py",
        "model_executor/models/registry.py",
        "model_executor/model_loader/default_loader.py",
        "model_executor/model_loader/utils.py",
        "v1/spec_decode/eagle.py",
        "v1/spec_decode/llm_base_proposer.py",
        "v1/worker/gpu/spec_decode/eagle/utils.py",
    ),
}
"""Files that decide and that no fact may cite."""

PATTERNS: Mapping[str, tuple[str, ...]] = {
    "vllm": ("model_executor/models/*mtp*.py",),
    "sglang": ("srt/models/*mtp*.py", "srt/models/*nextn*.py"),
}
"""Files of MTP classes."""

ONLY: Mapping[str, str] = {"model_executor/models/registry.py": "_SPECULATIVE_DECODING_MODELS"}
"""Files of which one table alone counts."""

WIDEST = 240

EACH, MOST = 3, 60
"""How many differences are told of one model of one checkpoint, and of all together."""


@dataclass(frozen=True, slots=True)
class Change:
    """What changed in one file; `later` are the added statements that the next known release makes as well."""

    path: str
    gone: tuple[str, ...]
    added: tuple[str, ...]
    later: frozenset[str] = frozenset()


def files(engine: Engine, version: str, base: str) -> list[str]:
    """Return the files that are compared, by their paths in the engine's package."""
    cited = {source.rpartition("@")[0].rpartition(":")[0] for source in all_sources(engine)}
    mtp = {
        path
        for pattern in PATTERNS[engine.name]
        for release in (version, base)
        for path in list_sources(engine.name, release, pattern)
    }
    return sorted({*cited, *mtp, *BESIDE.get(engine.name, ())})


def changes(engine: Engine, version: str, base: str, following: str | None = None) -> Iterator[Change]:
    """Yield what changed from one release to another, file by file, in what matters."""
    for path in files(engine, version, base):
        texts = {release: read_source(engine.name, release, path) for release in (base, version)}
        if texts[base] == texts[version]:
            continue
        before, after = essence(texts[base]), essence(texts[version])
        gone, added = (
            [one for one in found if ONLY.get(path, "") in one] for found in (before - after, after - before)
        )
        if gone or added:
            next_ = essence(read_source(engine.name, following, path)) if following else Counter()
            later = frozenset(one for one in added if one in next_)
            yield Change(path, tuple(sorted(gone)), tuple(sorted(added)), later)


def neighbours(engine: Engine, version: str) -> tuple[str, str | None]:
    """Return the newest known release before a version, and the oldest after it, the version itself left out."""
    known = [release for release in engine.releases if Version(release) != Version(version)]
    before = [release for release in known if Version(release) < Version(version)]
    after = [release for release in known if Version(release) > Version(version)]
    return (before[-1] if before else known[0]), (after[0] if after else None)


def describe(change: Change, *, whole: bool) -> Iterator[str]:
    """Yield the lines that tell one change."""
    yield f"{change.path}"
    texts = {one.partition(": text ")[0] for one in (*change.gone, *change.added) if ": text " in one}
    for name in sorted(texts):
        old = next((one for one in change.gone if one.startswith(f"{name}: text ")), None)
        new = next((one for one in change.added if one.startswith(f"{name}: text ")), None)
        what = "changed" if old and new else "new" if new else "gone"
        known = ", as the next known release has it" if new in change.later else ""
        yield f"  ~ {name} {what}{known}"
        if whole and old and new:
            removed = Counter(old.splitlines()) - Counter(new.splitlines())
            appeared = Counter(new.splitlines()) - Counter(old.splitlines())
            yield from (f"      - {line.strip()}" for line in removed)
            yield from (f"      + {line.strip()}" for line in appeared)
    for sign, statements in (("-", change.gone), ("+", change.added)):
        for one in statements:
            if ": text " not in one:
                shown = one if whole or len(one) <= WIDEST else f"{one[:WIDEST]}…"
                later = "   (as the next known release has it)" if sign == "+" and one in change.later else ""
                yield f"  {sign} {shown}{later}"


def judge(engine: Engine, version: str, cases: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Run the loads, write the golden table, and yield where the predictions differ from it."""
    release = f"{engine.name}-{version}"
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for family, variant in cases:
            build(folder / family / variant, family, variant)
        record.record(release, cases, folder)
        for family, variant in cases:
            real = (record.golden(release, family) or {}).get(variant)
            if real is None:
                continue
            prediction = predict(Subject(open_checkpoint(folder / family / variant)), engine, version)
            for predicted in (prediction.target, prediction.draft):
                found = real[predicted.role]
                if found is None or predicted.verdict is Verdict.UNKNOWN:
                    continue
                seen = observation(predicted.role, record.undigested(found), (), "\0", "")
                for sentence in differences(predicted, seen, by_path=by_path(engine)):
                    yield f"{family}/{variant} {predicted.role}: {sentence}"


def shortened(found: Iterable[str]) -> Iterator[str]:
    """Yield the first few of each model's differences (`family/variant role: sentence`), and count the rest.

    A module that is built otherwise differs in every checkpoint, and a layer that is has many modules.
    """
    groups: dict[str, list[str]] = {}
    for sentence in found:
        groups.setdefault(sentence.partition(": ")[0], []).append(sentence)
    lines: list[str] = []
    for case, sentences in groups.items():
        lines += sentences[:EACH]
        lines += [f"{case}: and {len(sentences) - EACH} more"] if len(sentences) > EACH else []
    yield from lines[:MOST]
    if len(lines) > MOST:
        total = sum(map(len, groups.values()))
        yield f"and {len(lines) - MOST} more lines: {total} differences in {len(groups)} models in all"


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn one release; return 1 if anything that matters changed or a prediction differs, 2 if it cannot be run."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.learn", description=main.__doc__)
    parser.add_argument("release", help="0.33.0, or sglang-0.5.24")
    parser.add_argument("--against", help="the release to compare with; default: the newest known before it")
    parser.add_argument("--no-loads", action="store_true", help="compare the sources alone")
    parser.add_argument("--only", action="append", help="load these variants alone")
    parser.add_argument("--whole", action="store_true", help="show changed functions line by line")
    options = parser.parse_args(arguments)
    name, _, version = options.release.rpartition("-")
    engine = load(name or "vllm")
    before, after = neighbours(engine, version)
    base = options.against or before
    release = f"{engine.name}-{version}"
    try:
        found = list(changes(engine, version, base, after))
    except subprocess.CalledProcessError:
        sys.stdout.write(f"the wheel of {release} or {base} cannot be had from the package index\n")
        return 2
    say = sys.stdout.write
    say(f"{engine.title} {version} against {base}: {len(files(engine, version, base))} files compared\n")
    for change in found:
        say("\n".join(describe(change, whole=options.whole)) + "\n")
    if not found:
        say("nothing that matters changed\n")
    wrong: list[str] = []
    if not options.no_loads:
        if engine.name == "vllm" and environment.interpreter(version) is None:
            try:
                environment.make(version)
            except subprocess.CalledProcessError as error:
                shutil.rmtree(environment.folder() / version, ignore_errors=True)
                say(f"there is no environment of {release}: {' '.join(map(str, error.cmd[3:6]))} … failed\n")
                return 2
        cases = [
            case
            for case in record.cases()
            if (options.only is None or case[1] in options.only) and record.is_asked(release, case[0])
        ]
        wrong = list(judge(engine, version, cases))
        say("".join(f"{one}\n" for one in shortened(wrong)) or "every prediction is what the release did\n")
    if not wrong:
        run = not options.no_loads and not options.only
        lists = [("releases", engine.releases), *([("verified", engine.verified)] if run else [])]
        missing = " and ".join(f"`{name}`" for name, known in lists if version not in known)
        say(f'{engine.name}.toml: add "{version}" to {missing}' if missing else f"{engine.name}.toml has {version}")
        say("; read the changes above first\n" if found else "\n")
    return 1 if found or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
