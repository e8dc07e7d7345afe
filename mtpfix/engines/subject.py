"""A checkpoint as every engine release looks at it: its family, its counts, and what is stored under which name.

Computed once for all releases. Knows no engine's behaviour; `predict` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from mtpfix.checkpoint.names import split_name
from mtpfix.checkpoint.stored import stored_modules
from mtpfix.engines import Engine
from mtpfix.engines.blueprint import Names
from mtpfix.engines.shapes import Shapes, read_shapes
from mtpfix.families import Family, Numbers, architecture_of, branch_prefixes, match, read_numbers, served_as
from mtpfix.model import Checkpoint, Confidence, Dialect, Format, MtpSummary, Stored


@dataclass(frozen=True)
class Subject:
    """A checkpoint with everything that every engine release looks at, computed once."""

    checkpoint: Checkpoint

    @cached_property
    def architecture(self) -> str | None:
        """Return `architectures[0]` of the configuration."""
        return architecture_of(self.checkpoint.config)

    @cached_property
    def family(self) -> Family | None:
        """Return the family that knows the architecture."""
        return match(self.architecture)

    @cached_property
    def served_as(self) -> str:
        """Return the architecture that engines serve it as: its own, unless its family knows a configuration better."""
        if self.family is None or self.numbers is None:
            return self.architecture or ""
        return served_as(self.family, self.architecture or "", self.numbers)

    @cached_property
    def stored(self) -> Mapping[str, Stored]:
        """Return the stored modules by name."""
        return stored_modules(self.checkpoint.tensors)

    @cached_property
    def loadable(self) -> Mapping[str, Stored]:
        """Return the stored modules that engines get to see: where there is an index, only files it names."""
        shards = self.checkpoint.shards if self.checkpoint.has_index else ()
        dropped = {shard.name for shard in shards if shard.tensors and not shard.indexed}
        if not dropped:
            return self.stored
        return stored_modules(tensor for tensor in self.checkpoint.tensors if tensor.shard not in dropped)

    @cached_property
    def names(self) -> Names:
        """Return the index of the names that engines get to see."""
        unseen = {name: Stored(name, Format.UNKNOWN, Dialect.OTHER, (), {}) for name in self.elsewhere}
        return Names({**unseen, **self.loadable} if unseen else self.loadable)

    @cached_property
    def elsewhere(self) -> Mapping[str, frozenset[str]]:
        """Return the modules that lie in shards nobody asked for, and how the names of their tensors end."""
        found: dict[str, set[str]] = {}
        for name in self.checkpoint.elsewhere:
            module, suffix = split_name(name)
            found.setdefault(module, set()).add(suffix)
        return {module: frozenset(suffixes) for module, suffixes in found.items()}

    @cached_property
    def numbers(self) -> Numbers | None:
        """Return the layer counts, where the family is known."""
        return read_numbers(self.family, self.checkpoint.config) if self.family else None

    @cached_property
    def _shapes(self) -> dict[str, Shapes]:
        return {}

    def shapes_in(self, engine: str) -> Shapes:
        """Return the shapes that the configuration gives the tensors in an engine, where the family says."""
        if engine not in self._shapes:
            family, numbers = self.family, self.numbers
            self._shapes[engine] = read_shapes(family, numbers, engine) if family and numbers else Shapes()
        return self._shapes[engine]

    @cached_property
    def mtp(self) -> MtpSummary:
        """Return what is declared and stored of the MTP branch."""
        if self.family is None or self.numbers is None:
            return MtpSummary(0, present=False, tensors=0)
        prefixes = branch_prefixes(self.family, self.numbers)
        count = sum(tensor.count for tensor in self.checkpoint.tensors if tensor.name.startswith(prefixes))
        if not self.checkpoint.headers:
            count = sum(name.startswith(prefixes) for name in self.checkpoint.lost)
        declared = self.numbers.mtp if self.numbers.declared else 0
        return MtpSummary(declared, present=count > 0, tensors=count, prefixes=prefixes)

    def confidence(self, engine: Engine, version: str) -> Confidence:
        """Return whether a release was run with checkpoints of this architecture, of GPTQ where it is that, or read."""
        if self.family is None:
            return Confidence.DERIVED
        run = self.family.table.get("gptq", {}).get(engine.name, ())
        run = run if self.served_as in self.family.table.get("gptq_for", self.family.architectures) else ()
        if version not in run and any(block.method == "gptq" for block in self.checkpoint.declarations):
            return Confidence.DERIVED
        return engine.confidence(version, self.family, self.served_as)

    @property
    def branch_is_loadable(self) -> bool:
        """Return whether engines get to see any tensor of the branch."""
        return any(module.startswith(self._branch) for module in self.loadable) if self._branch else False

    def in_branch(self, module: str) -> bool:
        """Return whether a module, by its name on disk, belongs to the MTP branch."""
        return self.family is not None and self.numbers is not None and module.startswith(self._branch)

    @cached_property
    def _branch(self) -> tuple[str, ...]:
        return branch_prefixes(self.family, self.numbers) if self.family and self.numbers else ()
