"""What a repair is, and what a user wishes of it.

Proposing repairs is left to the modules beside this one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from mtpfix.fix import cost
from mtpfix.fix.operations import Operation
from mtpfix.fix.trial import Trial

DERIVED = "the largest of the same projection in other layers, doubled"
"""Where an input scale is from that nobody gave."""
Branch = Literal["auto", "keep", "bf16", "nvfp4"]


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a user wants of a repair: how the branch is stored, and the scale of inputs where none can be derived.

    `graft` is the folder of the base model, or its mirror's; `unsafe` admits repairs that are not safe. `scale_search`
    asks for the block scales of least error where weights are quantized.
    """

    mtp: Branch = "auto"
    input_scale: float | None = None
    graft: str | None = None
    unsafe: bool = False
    scale_search: bool = False


@dataclass(frozen=True, slots=True)
class Repair:
    """One step of a plan: what it does in words, its operations, and the bytes they write.

    `rest` are releases, as `vllm 0.32.0`, in which what it is for still goes wrong.
    """

    title: str
    safe: bool
    operations: tuple[Operation, ...]
    bytes_written: int
    rest: tuple[str, ...] = ()


Way = Callable[[Trial, Wishes], Iterator[Repair]]


def made(trial: Trial, after: Trial, title: str, *, safe: bool, rest: Iterable[str] = ()) -> Repair:
    """Return the repair that leads from one trial to another."""
    operations = after.operations[len(trial.operations) :]
    size = cost.bytes_written(trial.context.checkpoint, after.context.checkpoint, operations)
    return Repair(title, safe, operations, size, tuple(rest))
