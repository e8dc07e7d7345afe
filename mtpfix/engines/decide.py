"""Decide in which format an engine builds each module: its lists, rewritten by name mappers, asked with its prefixes.

Joins the resolved declaration, the matchers and the facts of one release; knows no family.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mtpfix.engines import Engine
from mtpfix.engines.components import ComponentList, ComponentRules
from mtpfix.engines.components import excluded as excluded_by_components
from mtpfix.engines.components import skipped as skipped_by_components
from mtpfix.engines.gptq import METHODS as GPTQ
from mtpfix.engines.gptq import excluded as excluded_by_pattern
from mtpfix.engines.gptq import patterns, within
from mtpfix.engines.mapping import Entries, Manner, from_toml
from mtpfix.engines.matching import (
    Algorithms,
    Compressed,
    CompressedRules,
    Listing,
    MixedSteps,
    Packed,
    algorithm,
    compressed,
    compressed_experts,
    compressed_head,
    excluded,
    prepare,
    skipped,
)
from mtpfix.engines.resolved import FORMATS, Resolved
from mtpfix.model import Dialect, Format, Group, Scheme

ASKED = frozenset({"column", "merged", "qkv", "row", "replicated", "head", "experts", "table"})
"""Layer classes for which an engine asks its lists; the others are always plain."""

CLASS_NAMES: Mapping[str, str] = {
    "column": "ColumnParallelLinear",
    "merged": "MergedColumnParallelLinear",
    "qkv": "QKVParallelLinear",
    "row": "RowParallelLinear",
    "replicated": "ReplicatedLinear",
    "head": "ParallelLMHead",
    "table": "",
}


REWRITES: Mapping[str, str] = {
    "compressed-tensors": "ct_rewrite",
    "fp8": "fp8_rewrite",
    **dict.fromkeys(GPTQ, "gptq_rewrite"),
}
"""Facts that say which entries of an exclude list a name mapper touches, by method; else it is ModelOpt's."""


@dataclass(frozen=True)
class Lists:
    """The lists of one quantization configuration object, as the engine holds them after the mappers applied so far."""

    resolved: Resolved
    excludes: Entries
    layers: Entries
    targets: Entries
    manners: Mapping[str, Manner]
    drops: bool
    longest: bool

    def mapped(self, table: Mapping[str, Any]) -> Lists:
        """Return the lists after one more model class applied its mapper, given as in a family file."""
        mapper = from_toml(table, longest=self.longest)
        if not self.drops:
            mapper = mapper.without_drops()
        only = table.get("only", ("excludes", "layers", "targets"))
        excludes, layers = (table.get("manner", self.manners[name]) for name in ("excludes", "layers"))
        return replace(
            self,
            excludes=self.excludes.rewritten(mapper, excludes) if "excludes" in only else self.excludes,
            layers=self.layers.rewritten(mapper, layers) if "layers" in only else self.layers,
            targets=self.targets.rewritten(mapper, excludes) if "targets" in only else self.targets,
        )

    @cached_property
    def listing(self) -> Listing:
        """Return the exclude list, prepared."""
        return prepare(self.excludes)

    @cached_property
    def patterns(self) -> Listing:
        """Return the patterns of `dynamic` that exclude, prepared."""
        return prepare(patterns(self.excludes))

    @cached_property
    def within(self) -> Listing:
        """Return the names of which one is part of what is packed, prepared."""
        return prepare(self.layers)

    @cached_property
    def components(self) -> ComponentList:
        """Return the exclude list, prepared to be held against the components of names."""
        return ComponentList(self.listing)

    @cached_property
    def algorithms(self) -> Algorithms:
        """Return the allow-list, prepared."""
        return Algorithms(self.layers, self.resolved.layers)

    @cached_property
    def compressed(self) -> Compressed:
        """Return the compressed-tensors lists, prepared."""
        groups = self.resolved.declaration.groups if self.resolved.declaration else ()
        return Compressed(
            self.listing, self.targets, {target: group.scheme for group in groups for target in group.targets}
        )


def prepare_lists(resolved: Resolved, engine: Engine, version: str) -> Lists:
    """Return the lists of a freshly made configuration object, which no mapper has touched."""
    rewrite = REWRITES.get(resolved.method or "", "modelopt_rewrite")
    groups: Sequence[Group] = resolved.declaration.groups if resolved.declaration else ()
    return Lists(
        resolved=resolved,
        excludes=Entries.read(resolved.excludes),
        layers=Entries.read(resolved.layers if resolved.within is None else resolved.within),
        targets=Entries.read(target for group in groups for target in group.targets),
        manners={"excludes": engine.fact(rewrite, version)[0], "layers": engine.fact("mixed_rewrite", version)[0]},
        drops=bool(engine.fact("mapper_drops", version)[0]),
        longest=bool(engine.fact("mapper_longest", version)[0]),
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """How one module is built: `entry` is the list entry, as written, that made it plain; `error` what is raised."""

    format: Format
    dialect: Dialect
    entry: str | None = None
    because: tuple[str, ...] = ()
    error: tuple[str, str] | None = None


class Decider:
    """Answers for one model of one release how each of its modules is built."""

    def __init__(self, lists: Lists, engine: Engine, version: str, packed: Packed) -> None:
        """Take the lists as the model's configuration object holds them, and the fused mapping its matcher uses."""
        self.lists = lists
        self.packed = packed
        self._engine = engine
        self._version = version
        self._facts: dict[str, Any] = {}

    def decide(self, prefix: str, layer: str, *, plain: bool) -> Decision:
        """Return how the module of this prefix and layer class is built; `plain` where the model class says so."""
        method = self.lists.resolved.method
        if plain or method is None or layer not in ASKED:
            return Decision(Format.BF16, Dialect.OTHER)
        if method == "compressed-tensors":
            return self._compressed(prefix, layer)
        if method == "fp8":
            return self._fp8(prefix, layer)
        if method in GPTQ:
            return self._gptq(prefix, layer)
        if layer == "table" and method == "modelopt_mixed":
            return self._table(prefix)
        if self._fact("modelopt_matcher") == "components":
            return self._by_components(prefix, layer, method)
        return self._modelopt(prefix, layer, method)

    def _fact(self, name: str) -> Any:
        if name not in self._facts:
            self._facts[name] = self._engine.fact(name, self._version)[0]
        return self._facts[name]

    def _sources(self, *names: str) -> tuple[str, ...]:
        found = (self._engine.fact(name, self._version)[1] for name in names)
        return tuple(source for source in found if source)

    def _modelopt(self, prefix: str, layer: str, method: str) -> Decision:
        if layer == "head" and not self._fact("modelopt_head"):
            return Decision(Format.BF16, Dialect.MODELOPT, because=self._sources("modelopt_head"))
        fp8 = method == "modelopt"
        kind = "modelopt_fp8_wildcards" if fp8 else "modelopt_wildcards"
        because = self._sources(kind)
        if not (fp8 and layer == "experts" and not self._fact("modelopt_fp8_experts_listed")):
            match = excluded(
                prefix,
                self.lists.listing,
                self.packed,
                wildcards=self._fact(kind),
                fused_name_listed=self._fact("fused_name_listed"),
            )
            if match.plain or match.error is not None:
                return Decision(Format.BF16, Dialect.MODELOPT, match.written, because, match.error)
        if method == "modelopt_mixed":
            return self._mixed(prefix, layer)
        if layer != "experts" and any(part in prefix for part in self._fact("plain_name_parts")):
            return Decision(Format.BF16, Dialect.MODELOPT, because=self._sources("plain_name_parts"))
        return Decision(self._format(self.lists.resolved.algo or "", layer), Dialect.MODELOPT, None, because)

    def _by_components(self, prefix: str, layer: str, method: str) -> Decision:
        mixed = self._mixed(prefix, layer) if method == "modelopt_mixed" else None
        if mixed is not None and mixed.error is not None:
            return mixed  # the allow-list is looked into before the class of the layer: for a head as well
        if layer == "head" and not self._fact("modelopt_head"):
            return Decision(Format.BF16, Dialect.MODELOPT, because=self._sources("modelopt_head"))
        because = self._sources("list_patterns")
        fp8 = method == "modelopt_fp8"
        rules = ComponentRules(
            self._fact("list_literally"),
            self._fact("list_fallback"),
            self._fact("list_experts_too"),
            self._fact("list_patterns_fp8" if fp8 else "list_patterns"),
        )
        asked = [] if layer == "experts" else [skipped_by_components(prefix, self.lists.components, self.packed, rules)]
        if self._fact("experts_listed") or layer != "experts":
            asked.append(excluded_by_components(prefix, self.lists.components, rules))
        for match in asked:
            if match.plain or match.error is not None:
                return Decision(Format.BF16, Dialect.MODELOPT, match.written, because, match.error)
        if mixed is not None:
            return mixed
        return Decision(self._format(self.lists.resolved.algo or "", layer), Dialect.MODELOPT, None, because)

    def _format(self, algorithm: str, layer: str) -> Format:
        built = FORMATS.get(algorithm, Format.UNKNOWN)
        if built is Format.NVFP4_A16 and layer == "experts" and not self._fact("weight_only_experts"):
            return Format.NVFP4
        return built

    def _mixed(self, prefix: str, layer: str) -> Decision:
        steps = MixedSteps(
            tuple(self._fact("mixed_spellings")), self._fact("mixed_siblings"), self._fact("mixed_parts")
        )
        match = algorithm(prefix, self.lists.algorithms, self.packed, steps)
        because = self._sources("mixed_experts" if layer == "experts" else "mixed_linear")
        if match.error is not None or match.plain:
            return Decision(Format.BF16, Dialect.MODELOPT, None, because, match.error)
        known = self._fact("mixed_experts" if layer == "experts" else "mixed_linear")
        if match.scheme not in known:
            return Decision(Format.BF16, Dialect.MODELOPT, None, because)
        return Decision(self._format(match.scheme or "", layer), Dialect.MODELOPT, None, because)

    def _table(self, prefix: str) -> Decision:
        """Return how a table of embeddings is built where there is an allow-list: FP8 or 16-bit, never packed."""
        found = self._mixed(prefix, "table")
        return found if found.format is Format.FP8 or found.error else replace(found, format=Format.BF16)

    def _fp8(self, prefix: str, layer: str) -> Decision:
        because = self._sources("fused_name_listed")
        if layer == "head":
            return Decision(Format.BF16, Dialect.OTHER, because=self._sources("fp8_head"))
        match = skipped(prefix, self.lists.listing, self.packed, fused_name_listed=self._fact("fused_name_listed"))
        if match.plain or match.error is not None:
            return Decision(Format.BF16, Dialect.OTHER, match.written, because, match.error)
        scheme = self.lists.resolved.scheme
        return Decision(scheme.format if scheme else Format.UNKNOWN, Dialect.OTHER, None, because)

    def _gptq(self, prefix: str, layer: str) -> Decision:
        scheme = self.lists.resolved.scheme
        packed = Decision(
            scheme.format if scheme else Format.UNKNOWN,
            Dialect.OTHER,
            None,
            self._sources("gptq_experts" if layer == "experts" else "gptq_empty"),
        )
        if layer == "table" or (layer == "head" and not self.lists.resolved.head):
            return replace(packed, format=Format.BF16)
        match = excluded_by_pattern(prefix, self.lists.patterns)
        if layer != "experts":
            listed = within(prefix, self.lists.within, self.packed, all_if_empty=self._fact("gptq_empty"))
            if listed.plain or listed.error is not None:
                return replace(packed, format=Format.BF16, entry=match.written, error=listed.error)
        if match.plain:
            return replace(packed, format=Format.BF16, entry=match.written)
        return packed

    def _compressed(self, prefix: str, layer: str) -> Decision:
        rules = CompressedRules(
            shards=self._fact("ct_shards"),
            fused_first=self._fact("ct_fused_first"),
            unmatched_raises=self._fact("ct_unmatched_raises"),
            experts=self._fact("ct_experts"),
            experts_class=self._fact("ct_experts_class"),
            head=self._fact("ct_head"),
            entries=self._fact("ct_entries"),
            differ=self._fact("ct_differ")["text"],
        )
        because = self._sources("ct_head" if layer == "head" and rules.head == "plain" else "ct_shards")
        if layer == "experts":
            match = compressed_experts(prefix, self.lists.compressed, self.packed, rules)
        else:
            ask = compressed_head if layer == "head" else compressed
            match = ask(prefix, CLASS_NAMES[layer], self.lists.compressed, self.packed, rules)
        if match.plain or match.error is not None:
            return Decision(Format.BF16, Dialect.COMPRESSED_TENSORS, match.written, because, match.error)
        scheme = self.lists.compressed.schemes.get(match.scheme or "")
        if scheme is None and match.written is not None:
            scheme = self.lists.compressed.values.get(match.written)
        built = scheme.format if isinstance(scheme, Scheme) else Format.UNKNOWN
        return Decision(built, Dialect.COMPRESSED_TENSORS, None, because)
