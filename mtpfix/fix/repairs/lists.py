"""Ways to change exclude lists and allow-lists, so that an engine builds modules as they are stored."""

from __future__ import annotations

from collections.abc import Iterator

from mtpfix.checkpoint.names import describe_names
from mtpfix.fix.entries import allow, entries_title, find_entries, removals
from mtpfix.fix.repairs.repair import Repair, Wishes, made
from mtpfix.fix.trial import Trial, modules_of
from mtpfix.model import ROLES


def list_plain(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Exclude modules that are stored in 16 bits and built quantized; of one model where no entries mend both."""
    del wishes
    for role in (None, *ROLES):
        found = find_entries(trial, role)
        if found is not None:
            title = entries_title(trial.context.checkpoint, found.entries)
            yield made(trial, found.trial, title, safe=True, rest={bad[0] for bad in found.rest})
            return


def relist(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Take out the entries that exclude quantized modules, and name instead the plain ones they were for."""
    del wishes
    unwanted = _covering(trial)
    operations = removals(trial.context.checkpoint, unwanted)
    if not operations:
        return
    bare = trial.plus(operations)
    found = find_entries(bare, before=trial)
    after = found.trial if found is not None and found.trial.gain(trial) > bare.gain(trial) else bare
    added = found.entries if found is not None and after is found.trial else ()
    yield made(trial, after, entries_title(trial.context.checkpoint, added, unwanted), safe=True)


def _covering(trial: Trial) -> list[str]:
    """Return the entries that exclude quantized modules: behind one that goes another may come to light."""
    entries: dict[str, None] = {}
    after = trial
    while True:
        found = after.occurrences(["quantized-into-plain", "fused-partly-listed"])
        fresh = {one.built.excluded_by for one in found if one.built and one.built.excluded_by} - entries.keys()
        if not fresh:
            return list(entries)
        entries.update(dict.fromkeys(sorted(fresh)))
        after = trial.plus(removals(trial.context.checkpoint, entries))


def allow_packed(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Name modules that are stored quantized in the allow-list that lacks them."""
    del wishes
    modules = modules_of(trial.occurrences(["quantized-into-plain", "other-format"]))
    found = allow(trial, modules) if modules else None
    if found is not None:
        after, named = found
        yield made(trial, after, f"add {describe_names(named)} to quantized_layers", safe=True)
