"""The verdict in a sentence: what a person wants to know before any detail, in the words of a person."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from packaging.version import InvalidVersion, Version

from mtpfix.checkpoint.ref import shown
from mtpfix.engines import load, range_text
from mtpfix.engines import names as engine_names
from mtpfix.errors import EXIT_FINDINGS, EXIT_NOTHING, EXIT_OK, EXIT_UNABLE
from mtpfix.model import Declaration, EngineReport, Finding, Outcome, Report, Severity, Verdict

SAYS: Mapping[Verdict, tuple[str, str]] = {
    Verdict.LOADS: ("loads", "load"),
    Verdict.FAILS: ("fails to load", "fail to load"),
    Verdict.SILENT: ("is silently wrong", "are silently wrong"),
    Verdict.ABSENT: ("is not there", "are not there"),
    Verdict.UNKNOWN: ("is not predicted", "are not predicted"),
}
"""What is said of a model, and of two."""


CANNOT_BUILD = "MTP602"
"""The rule of releases that raise whatever the checkpoint holds."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One part of the verdict; `outcome` is how bad it is, None where nothing can be said."""

    text: str
    outcome: Outcome | None


def counts(report: Report) -> dict[Severity, int]:
    """Return how many findings there are of each severity."""
    return {severity: sum(finding.severity is severity for finding in report.findings) for severity in Severity}


def releases_ascending(report: Report) -> list[EngineReport]:
    """Return the engine rows by engine and release, ascending."""
    return sorted(report.engines, key=_release)


def deciding(report: Report) -> Declaration | None:
    """Return the quantization block that the newest release obeys, or the first declared where no release was asked."""
    for row in reversed(releases_ascending(report)):
        if row.prediction.deciding is not None:
            return row.prediction.deciding
    return report.checkpoint.declarations[0] if report.checkpoint.declarations else None


def file_to_open(report: Report, finding: Finding) -> str:
    """Return the file a person would open to mend a finding: that of its first repair, else of the deciding block."""
    named = (operation.file for fix in finding.fixes for operation in fix.operations if operation.file)
    block = deciding(report)
    return next(named, block.file if block is not None else "config.json")


def repair_command(report: Report) -> str | None:
    """Return the command that repairs the checkpoint for every release a finding with a repair names, None without one.

    Releases that raise whatever the checkpoint holds are left out. The base model of a graft stays to be filled in
    where the checkpoint names none.
    """
    broken = [finding for finding in report.findings if finding.fixes]
    broken = [finding for finding in broken if finding.severity is not Severity.NOTE] or broken
    if not broken:
        return None
    fixes = [next((fix for fix in finding.fixes if fix.safe), finding.fixes[0]) for finding in broken]
    ref = shlex.quote(shown(report.checkpoint.ref))
    name = shown(PurePosixPath(report.checkpoint.ref).name) or "checkpoint"
    words = ["mtpfix patch", ref, f"--out {shlex.quote(f'{name}-repaired')}"]
    if report.checkpoint.root is None and report.checkpoint.revision is not None:
        words.append("--overlay")  # of a repository only what changes is written
    words += [f"--for {shlex.quote(engine)}" for engine in _requirements(report, broken)]
    if any(operation.action == "graft" for fix in fixes for operation in fix.operations):
        words.append(f"--graft {shlex.quote(report.base_model or 'BASE_MODEL')}")
    if not any(fix.safe for fix in fixes):
        words.append("--unsafe-fixes")
    return " ".join(words)


def _requirements(report: Report, broken: Sequence[Finding]) -> Iterator[str]:
    """Yield, for each engine, the scanned releases from the oldest that is broken, without those that nothing mends."""
    hopeless = _named(finding for finding in report.findings if finding.rule == CANNOT_BUILD)
    for engine, versions in sorted(_named(broken).items()):
        mendable = versions - hopeless.get(engine, set())
        if not mendable:
            continue
        rows = [row for row in report.engines if row.prediction.engine == engine]
        scanned = sorted({version for row in rows for version in row.versions}, key=Version)
        oldest, newest = min(mendable, key=Version), scanned[-1]
        if oldest == newest:
            yield f"{engine}=={newest}"
            continue
        without = sorted((v for v in hopeless.get(engine, ()) if Version(v) > Version(oldest)), key=Version)
        end = "" if newest == load(engine).releases[-1] else f",<={newest}"
        yield f"{engine}>={oldest}{end}" + "".join(f",!={version}" for version in without)


def _named(findings: Iterable[Finding]) -> dict[str, set[str]]:
    versions: dict[str, set[str]] = {}
    for releases in (releases for finding in findings for releases in finding.engines):
        versions.setdefault(releases.engine, set()).update(releases.versions)
    return versions


def _release(row: EngineReport) -> tuple[str, Version, str]:
    try:
        return row.prediction.engine, Version(row.prediction.version), row.range
    except InvalidVersion:
        return row.prediction.engine, Version("0"), row.range


def verdict_text(report: Report) -> str:
    """Return the verdict as one line of sentences."""
    return " ".join(clause.text for clause in verdict_clauses(report))


def verdict_clauses(report: Report) -> list[Clause]:
    """Return the verdict: first what the MTP branch is, then what each run of releases does, the newest first."""
    clauses = [_incomplete(report)] if report.checkpoint.unread or not report.complete else []
    clauses.append(_branch(report))
    alike: dict[tuple[str, Verdict, Verdict, str], list[EngineReport]] = {}
    for row in reversed(releases_ascending(report)):
        target, draft = row.prediction.target, row.prediction.draft
        reason = target.reason if target.verdict is draft.verdict is Verdict.UNKNOWN else ""
        alike.setdefault((row.prediction.engine, target.verdict, draft.verdict, reason), []).append(row)
    if report.family is not None:
        clauses += [_engine(*key[1:], _ranges(key[0], rows)) for key, rows in alike.items()]
    return clauses


def _incomplete(report: Report) -> Clause:
    count = len(report.checkpoint.unread)
    what = f"{count:,} {'file' if count == 1 else 'files'} could not be read" if count else "not everything was read"
    return Clause(f"INCOMPLETE: {what}.", Outcome.CRASH)


def _branch(report: Report) -> Clause:
    mtp = report.mtp
    if report.family is None:
        known = f"the architecture {report.architecture} is" if report.architecture else "no architecture is"
        unknown = "not one that mtpfix knows" if report.architecture else "named in config.json"
        return Clause(f"MTP branch: unknown, {known} {unknown}.", None)
    layers = f"{mtp.declared:,} {'layer' if mtp.declared == 1 else 'layers'}"
    if mtp.present:
        tensors = f"{mtp.tensors:,} {'tensor' if mtp.tensors == 1 else 'tensors'}"
        declared = layers if mtp.declared else "no layer count in config.json"
        return Clause(f"MTP branch: present, {', '.join((declared, tensors, *_formats(report)))}.", Outcome.OK)
    if mtp.declared:
        return Clause(f"MTP branch: missing, {layers} declared and none of its tensors stored.", Outcome.CRASH)
    return Clause("MTP branch: none declared, none stored.", None)


def _formats(report: Report) -> list[str]:
    """Return the formats of the branch's matrices in one phrase, that of the most bytes first."""
    inside = {name for row in report.engines for built in row.prediction.draft.built for name in built.modules}
    prefixes = report.mtp.prefixes
    sizes: dict[str, int] = {}
    for name, stored in report.stored.items():
        if (name.startswith(prefixes) if prefixes else name in inside) and len(stored.shape) > 1:
            label = stored.format.value.upper()
            sizes[label] = sizes.get(label, 0) + stored.bytes
    return [" + ".join(sorted(sizes, key=lambda label: (-sizes[label], label)))] if sizes else []


def _ranges(engine: str, rows: Sequence[EngineReport]) -> str:
    """Return the releases of several rows as a person says them."""
    if len(rows) > 1 and engine in engine_names():
        return range_text(load(engine), [version for row in rows for version in row.versions])
    return ", ".join([rows[0].range, *(row.range.removeprefix(f"{engine} ") for row in rows[1:])])


def _engine(target: Verdict, draft: Verdict, reason: str, releases: str) -> Clause:
    if draft is Verdict.ABSENT:
        says = f"main model {SAYS[target][0]}, no MTP draft"
    elif reason:
        says = f"not predicted, {reason}"
    elif target is draft:
        says = f"main model and MTP draft {SAYS[target][1]}"
    else:
        says = f"main model {SAYS[target][0]}, MTP draft {SAYS[draft][0]}"
    worst = {target, draft}
    if Verdict.FAILS in worst:
        outcome: Outcome | None = Outcome.CRASH
    elif Verdict.SILENT in worst:
        outcome = Outcome.SILENT
    else:
        outcome = None if Verdict.UNKNOWN in worst else Outcome.OK
    return Clause(f"{releases}: {says}.", outcome)


def closing_text(codes: Sequence[int]) -> str:
    """Return one line on several scanned checkpoints, from their exit codes."""
    words = {
        EXIT_OK: "clean",
        EXIT_FINDINGS: "with findings",
        EXIT_UNABLE: "not or not wholly read",
        EXIT_NOTHING: "with nothing to check",
    }
    said = ", ".join(f"{codes.count(code):,} {text}" for code, text in words.items() if code in codes)
    return f"{plural(len(codes), 'checkpoint')}: {said}.\n"


def plural(count: int, noun: str) -> str:
    """Return a number of things: `1 file`, `1,024 files`."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def size_text(size: int) -> str:
    """Return a number of bytes as a person reads it, in powers of 1000: `0 bytes`, `1.2 kB`, `416.6 GB`."""
    if size < 1000:
        return plural(size, "byte")
    power = next((power for power in (1, 2, 3) if size < 999.95 * 1000**power), 4)
    return f"{size / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"
