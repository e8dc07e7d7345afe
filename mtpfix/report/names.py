"""How the numbers of experts are written into the names of their modules."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mtpfix.model import EXPERT


def in_braces(numbers: Iterable[int]) -> str:
    """Return every number, runs as ranges: `{0..511}`, `{0..3,7}`, or `7` alone."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    texts = [str(first) if first == last else f"{first}..{last}" for first, last in runs]
    return texts[0] if len(runs) == 1 and runs[0][0] == runs[0][1] else "{" + ",".join(texts) + "}"


def with_experts(name: str, experts: Collection[int] | None) -> str:
    """Return a module's name with its expert numbers in place of `{}`: `experts.{0..511}.gate_proj`, `*` if unknown."""
    return name.replace(EXPERT, in_braces(experts) if experts else "*")
