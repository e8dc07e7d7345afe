"""How text from a checkpoint is written: control characters made visible, expert numbers put into names.

Names, paths and error messages are hostile text: nothing of them reaches a screen but through `shown`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from mtpfix.model import EXPERT

WIDEST = 200
"""Characters of one name on a screen; the middle of a longer one is left out."""

LONGEST = 2000
"""Characters of one message on a screen."""


def shown(text: str, limit: int = WIDEST) -> str:
    r"""Return text fit for a screen: what is not printable escaped (`\x1b`), the middle cut at `limit` characters."""
    if len(text) > limit:
        half = (limit - 3) // 2
        return f"{shown(text[:half], limit)}...{shown(text[-half:], limit)}"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )


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
