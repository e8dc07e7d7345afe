"""Experts that lie stacked in one tensor, and under which names their family stores them one by one.

The order of alternatives in a family's file is the order of preference: where the first is stacked, experts stay so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtpfix.checkpoint.conventions import CONVENTIONS
from mtpfix.engines.blueprint import SLOTS
from mtpfix.fix.operations import Unstack
from mtpfix.model import EXPERT, Dialect, Stored

HALVES = ("w1", "w3")
"""What the rows of a fused w13 are, in their order: model_executor/models/qwen3_5.py:370@0.24.0 (chunk(2, dim=-2)),
model_executor/layers/fused_moe/routed_experts.py:1047@0.32.0 (chunk(2, dim=1))."""


def unstacked(table: Mapping[str, Any], stored: Mapping[str, Stored], modules: Sequence[str]) -> list[Unstack]:
    """Return the operations that take plain stacked experts apart, of those modules whose family stores them so."""
    found = []
    for module in modules:
        weight = stored.get(module)
        names = names_apart(table, module)
        if weight is None or not weight.format.plain or len(weight.shape) != 3 or not names:
            continue
        if weight.shape[1] % len(names) == 0:
            found.append(Unstack(module, names))
    return found


def names_apart(table: Mapping[str, Any], module: str) -> tuple[str, ...]:
    """Return the names, with `{}` for the expert number, of what a module stacks; none where its family keeps it so."""
    for entry in _expert_entries(table):
        for slot in SLOTS:
            for name in _names(entry, slot):
                if EXPERT in name or not f".{module}".endswith(f".{name}"):
                    continue
                wanted = HALVES if slot == "w13" else (slot,)
                first = [_names(entry, one)[:1] for one in wanted]
                if all(one and EXPERT in one[0] for one in first):
                    root = module[: len(module) - len(name)]
                    return tuple(root + one[0] for one in first)
    return ()


def stacked_name(table: Mapping[str, Any], module: str) -> str:
    """Return the name under which a family stacks experts that lie one by one; empty where it never does."""
    for entry in _expert_entries(table):
        for slot in SLOTS:
            names = _names(entry, slot)
            whole = next((name for name in names if EXPERT not in name), "")
            for name in names:
                if whole and EXPERT in name and f".{module}".endswith(f".{name}"):
                    return module[: len(module) - len(name)] + whole
    return ""


def packed_dialect(table: Mapping[str, Any], module: str, dialect: Dialect) -> Dialect:
    """Return the dialect in which a module is packed: AMAX for ModelOpt's where loaders know its scales as AMAX's."""
    scale = CONVENTIONS[Dialect.AMAX].global_scale
    for entry in _expert_entries(table):
        names = (name for slot in SLOTS for name in _names(entry, slot))
        if scale in entry.get("spelled", ()) and any(f".{module}".endswith(f".{name}") for name in names):
            return Dialect.AMAX if dialect is Dialect.MODELOPT else dialect
    return dialect


def _expert_entries(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, Mapping):
        if value.get("layer") == "experts":
            yield value
        for inner in value.values():
            yield from _expert_entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _expert_entries(inner)


def _names(entry: Mapping[str, Any], slot: str) -> list[str]:
    found = entry.get(slot, ())
    return [found] if isinstance(found, str) else list(found)
