"""A result before it is published: is every tensor and list as the operations say, and do the engines now load it?

Reads the staged folder with the reader that scans, holds it against the preview that the plan was judged by, predicts
the releases asked for, and looks again at single numbers of every kind of tensor that was made, and at bytes of those
that were only moved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random

from mtpfix.checkpoint import open_checkpoint, read_scalars
from mtpfix.checkpoint.ref import shown
from mtpfix.checkpoint.stored import stored_modules
from mtpfix.errors import MtpfixError
from mtpfix.fix.decode import Weight
from mtpfix.fix.holding import Held, Holding
from mtpfix.fix.operations import Dequantize, Operation, Quantize, ShareScale, Unstack
from mtpfix.fix.preview import preview
from mtpfix.fix.sample import check_samples
from mtpfix.fix.trial import Bad, Trial
from mtpfix.model import EXPERT, Checkpoint, Stored
from mtpfix.rules.context import Context

SAMPLED_MODULES = 8
"""Modules of each operation whose numbers are looked at."""
SAMPLED_NUMBERS = 24
"""Numbers of each of them."""
SEARCHED = 2.0
"""Half steps by which a number may be off where its block's scale was searched: a smaller one cuts the largest off."""
_AGAIN = "this is a defect of mtpfix: nothing was published; please report it"


def checker(context: Context, operations: Sequence[Operation], expected: Bad) -> Callable[[Path], None]:
    """Return what the writer calls with the staged folder: it raises MtpfixError where that is not what was planned.

    `expected` is what the plan says still goes wrong; `context` is the source with the releases asked for.
    """

    def verify(folder: Path) -> None:
        trusted = (context.checkpoint.root,) if context.checkpoint.root is not None else ()
        result = open_checkpoint(folder, trusted=trusted)
        _same_description(result, preview(context.checkpoint, operations))
        worse = Trial(context.of(result, partial(read_scalars, result))).bad - expected
        if worse:
            release, role, module, kind = min(worse)
            raise MtpfixError(
                f"the result does not load as planned: {release}, {role}, {shown(module)}: {kind}", _AGAIN
            )
        _same_numbers(context.checkpoint, result, operations)
        check_samples(context.checkpoint, result, operations)

    return verify


def _same_description(result: Checkpoint, planned: Checkpoint) -> None:
    if result.unread:
        raise MtpfixError(f"the result cannot be read: {result.problems[0].message}", _AGAIN)
    found, wanted = _rows(result), _rows(planned)
    for row in sorted(found.items() ^ wanted.items()):
        verb = "is not in the result as planned" if row in wanted.items() else "is in the result and was not planned"
        raise MtpfixError(f"{shown(row[0][0])} {verb}", _AGAIN)
    if result.config != planned.config or result.declarations != planned.declarations:
        raise MtpfixError("a configuration of the result is not as planned", _AGAIN)


def _rows(checkpoint: Checkpoint) -> dict[tuple[str, str, tuple[int, ...], str], int]:
    """Return how many tensors there are of each name, dtype, shape and shard."""
    rows: dict[tuple[str, str, tuple[int, ...], str], int] = {}
    for tensor in checkpoint.tensors:
        key = (tensor.name, tensor.dtype, tensor.shape, tensor.shard)
        rows[key] = rows.get(key, 0) + tensor.count
    return rows


# ------------------------------------------------------------------------------------------------------ numbers


def _same_numbers(source: Checkpoint, result: Checkpoint, operations: Sequence[Operation]) -> None:
    """Hold single numbers of modules that were stored otherwise against those they were made from."""
    before, after = _stored(source), _stored(result)
    old, new = Holding(source), Holding(result)
    searched = {name for one in operations if isinstance(one, Quantize) and one.scale_search for name in one.modules}
    stacks = {name: one for one in operations if isinstance(one, Unstack) for name in one.names}
    chance = Random(0)  # noqa: S311 - a sample, the same in every run
    for operation in operations:
        for module in _sample(operation, chance):
            stack = stacks.get(module)
            origin = module if stack is None else stack.module
            if origin not in before or module not in after:
                continue  # grafted: what it was made from lies in another checkpoint
            for number in _some(after[module], chance):
                first = _weight(old, before[origin], number if stack is None else None)
                second = _weight(new, after[module], number)
                skip = 0
                if stack is not None:
                    place = (number or 0) * len(stack.names) + stack.names.index(module)
                    skip = place * math.prod(second.shape)
                _compare(module, first, second, chance, slack=SEARCHED if module in searched else 1.0, skip=skip)


def _stored(checkpoint: Checkpoint) -> Mapping[str, Stored]:
    return stored_modules(checkpoint.tensors)


def _sample(operation: Operation, chance: Random) -> Iterator[str]:
    match operation:
        case Dequantize():
            yield operation.module
        case Unstack():
            yield from operation.names
        case Quantize() | ShareScale():
            yield from chance.sample(operation.modules, min(SAMPLED_MODULES, len(operation.modules)))
        case _:
            pass


def _some(stored: Stored, chance: Random) -> list[int | None]:
    if stored.experts is None:
        return [None]
    numbers = sorted(stored.experts)
    return list(chance.sample(numbers, min(2, len(numbers))))


def _weight(holding: Holding, stored: Stored, number: int | None) -> Weight:
    parts: Mapping[str, Held] = holding.module(stored.module)[number]
    return Weight(parts, stored.format, stored.shape)


def _compare(module: str, first: Weight, second: Weight, chance: Random, *, slack: float, skip: int) -> None:
    count = math.prod(second.shape)
    for _ in range(min(SAMPLED_NUMBERS, count)):
        index = chance.randrange(count)
        was, was_step = first.value(skip + index)
        now, now_step = second.value(index)
        step = now_step if not second.format.plain else max(now_step, abs(was) / 256)
        if not first.format.plain and not second.format.plain:
            step = max(was_step, now_step)
        if not abs(was - now) <= step * slack * 1.07 + 1e-30:
            where = module.replace(EXPERT, "…")
            raise MtpfixError(f"{shown(where)}: number {index} is {now!r} in the result, {was!r} in the source", _AGAIN)
