"""What an engine makes of a checkpoint's quantization blocks, and how a resolver looks up and cites its facts.

Knows no engine's order of files and keys: the resolvers do (`resolve.py`, `inline.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from mtpfix.engines import Engine
from mtpfix.model import Declaration, Format, Scheme

SIMULATED = frozenset(
    {
        "modelopt",
        "modelopt_fp4",
        "modelopt_mxfp8",
        "modelopt_mixed",
        "compressed-tensors",
        "fp8",
        "gptq_marlin",
        "auto_gptq",
    }
)
"""Methods whose matching is known here; a checkpoint without any method is simulated as well."""

FORMATS: Mapping[str, Format] = {
    "FP8": Format.FP8,
    "FP8_PER_CHANNEL_PER_TOKEN": Format.FP8_CHANNEL,
    "FP8_PB_WO": Format.FP8_BLOCK,
    "FP8_BLOCK_SCALES": Format.FP8_BLOCK,
    "NVFP4": Format.NVFP4,
    "W4A16_NVFP4": Format.NVFP4_A16,
    "MXFP8": Format.MXFP8,
}
"""What a layer is built as for each algorithm of ModelOpt."""


KEY_MISSING = "Cannot find any of {keys} in the model's quantization config."


@dataclass(frozen=True, slots=True)
class Resolved:
    """What an engine makes of a checkpoint's declarations.

    `method` is the engine's name for it, None where the model counts as unquantized. `declaration` is the block whose
    lists count; `excludes` its list under the key that the engine reads, `layers` the algorithm of each name of an
    allow-list (None where the entry has none). `algo` and `scheme` hold for the whole model, None where lists say.
    `error` is the class and exact text of the exception that refuses the block. `simulated` is False where this package
    does not know the method's matching; `reason` then says so. Of GPTQ, `within` are the names that a block says are
    packed (None: the stored tensors say so), and `head` is whether the language model head is.
    """

    method: str | None
    declaration: Declaration | None
    algo: str | None = None
    scheme: Scheme | None = None
    error: tuple[str, str] | None = None
    because: tuple[str, ...] = ()
    excludes: tuple[str, ...] = ()
    layers: Mapping[str, str | None] = field(default_factory=dict)
    simulated: bool = True
    reason: str = ""
    within: tuple[str, ...] | None = None
    head: bool = False


class RefusedError(Exception):
    """The engine raises: class and text of its exception, and the source of the text."""

    def __init__(self, name: str, text: str, source: str) -> None:
        super().__init__(text)
        self.name, self.text, self.source = name, text, source


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of one release; `cited` collects the sources of those that were asked for."""

    engine: Engine
    version: str
    cited: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> Any:
        value, source = self.engine.fact(name, self.version)
        if source and source not in self.cited:
            self.cited.append(source)
        return value

    def refuse(self, name: str, text: str, fact: str) -> RefusedError:
        """Return the refusal of a block with a class and text, whose source is that of a fact."""
        return RefusedError(name, text, self.engine.fact(fact, self.version)[1])
