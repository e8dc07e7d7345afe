"""Which stored modules an engine fuses into one layer, and so need one global scale and one scale of inputs.

Experts are fused in pairs, gate and up; the projection back stands alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from mtpfix.fix.trial import Trial

BACK = ("down_proj", "w2", "w2_weight")
"""Last components of the experts' projection back to the model's width."""


def fused_parts(trial: Trial, modules: Collection[str]) -> Iterator[tuple[str, ...]]:
    """Yield modules in sets that a judged release fuses, each module once; one that none fuses stands alone."""
    group_of: dict[str, set[str]] = {name: {name} for name in sorted(modules)}
    for _, _, built in trial.built():
        parts = [name for name in built.modules if name in group_of]
        if built.layer == "experts":
            back = [name for name in parts if name.rpartition(".")[2] in BACK]
            for name in back:
                parts.remove(name)
        if len(parts) > 1:
            joined = set[str]().union(*(group_of[name] for name in parts))
            for name in joined:
                group_of[name] = joined
    told: set[str] = set()
    for name, group in group_of.items():
        if name not in told:
            told |= group
            yield tuple(sorted(group))
