"""How names from a checkpoint are written for people: numbers collapsed into ranges, control characters made visible.

Knows nothing of what a name means. Names are hostile text: nothing printed bypasses `shown`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from math import prod

from mtpfix.model import EXPERT

WIDEST = 200
"""Characters of one name on a screen; the middle of a longer one is left out."""

MOST_RUNS = 6
"""Runs of numbers in one pair of braces on a screen; the middle of more is left out."""


def shown(text: str, limit: int = WIDEST) -> str:
    r"""Return text fit for a screen: each character that is not printable escaped (`\x1b`), the middle cut at `limit`."""
    if len(text) > 4 * limit:
        text = text[: 2 * limit] + text[-2 * limit :]
        cut = True
    else:
        cut = False
    safe = "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode("ascii")
        for character in text
    )
    if len(safe) <= limit and not cut:
        return safe
    half = (limit - 3) // 2
    return f"{safe[:half]}...{safe[-half:]}"


def number_runs(numbers: Iterable[int]) -> list[str]:
    """Return the ascending runs of a set of numbers: `0..3`, `7`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return [str(first) if first == last else f"{first}..{last}" for first, last in runs]


def in_braces(numbers: Iterable[int], most: int | None = None) -> str:
    """Return numbers as they stand in a collapsed name: `{0..511}`, `{0..3,7}`, or just `7`; `most` limits the runs."""
    runs = number_runs(numbers)
    if most is not None and len(runs) > most:
        runs = [*runs[: most - 1], "...", runs[-1]]
    if len(runs) == 1 and ".." not in runs[0]:
        return runs[0]
    return "{" + ",".join(runs) + "}"


def with_experts(name: str, experts: Collection[int] | None) -> str:
    """Return a module's name with its expert numbers in place of `{}`: `experts.{0..511}.gate_proj`, `*` if unknown."""
    if EXPERT not in name:
        return name
    return name.replace(EXPERT, in_braces(experts) if experts else "*")


def collapse(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return names that differ only in numbers between dots as one, each with the names it stands for.

    Numbers collapse together only where every combination is there; otherwise the last that varies collapses alone.
    """
    groups: dict[tuple[str | None, ...], list[str]] = {}
    for name in names:
        shape = tuple(None if _is_number(part) else part for part in name.split("."))
        groups.setdefault(shape, []).append(name)
    collapsed: dict[str, tuple[str, ...]] = {}
    for members in groups.values():
        collapsed.update(_collapse_alike(members))
    return collapsed


def _is_number(part: str) -> bool:
    return len(part) < 10 and part.isascii() and part.isdigit() and (part == "0" or part[0] != "0")


def _collapse_alike(names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    split = [name.split(".") for name in dict.fromkeys(names)]
    varying = [place for place in range(len(split[0])) if len({parts[place] for parts in split}) > 1]
    if not varying:
        return {names[0]: (names[0],)}
    values = [sorted({int(parts[place]) for parts in split}) for place in varying]
    if len(varying) == 1 or len(split) == prod(len(numbers) for numbers in values):
        parts = list(split[0])
        for place, numbers in zip(varying, values, strict=True):
            parts[place] = in_braces(numbers, MOST_RUNS)
        return {".".join(parts): tuple(".".join(member) for member in split)}
    collapsed: dict[str, tuple[str, ...]] = {}
    alike: dict[tuple[str, ...], list[str]] = {}
    for parts in split:
        alike.setdefault(tuple(parts[place] for place in varying[:-1]), []).append(".".join(parts))
    for members in alike.values():
        collapsed.update(_collapse_alike(members))
    return collapsed
