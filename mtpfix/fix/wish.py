"""A wish for the format of the branch: carried out before anything is mended, as far as the releases asked for allow.

Says which release forbids what is left as it was. Nothing is known here of how weights are turned from one format into
another: that is for the ways of `repairs`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from mtpfix.checkpoint.names import describe_names
from mtpfix.errors import UsageError
from mtpfix.fix.entries import allow, find_entries, without_branch_entries
from mtpfix.fix.operations import Quantize
from mtpfix.fix.repairs.declarations import restate_mixed
from mtpfix.fix.repairs.formats import NVFP4, packable, restorable
from mtpfix.fix.repairs.repair import Repair, Wishes, made
from mtpfix.fix.repairs.weights import dequantized, quantized, with_fused
from mtpfix.fix.search import Search
from mtpfix.fix.trial import Trial, name_of


def grant(search: Search) -> list[str]:
    """Store the branch as wished, before anything is mended; return what has to be said about it."""
    match search.wishes.mtp:
        case "bf16":
            return _wish_plain(search)
        case "nvfp4":
            return _wish_packed(search)
        case _:
            return []


def _wish_plain(search: Search) -> list[str]:
    subject = search.trial.context.subject
    modules = [name for name, item in subject.stored.items() if subject.in_branch(name) and restorable(item)]
    if not modules:
        return ["The branch is stored in 16 bits already."]
    for repair in dequantized(search.trial, modules, search.wishes, "dequantize the branch to BF16"):
        search.take(repair)
    return []


def _wish_packed(search: Search) -> list[str]:
    trial = search.trial
    subject = trial.context.subject
    bare = without_branch_entries(trial)
    packed: dict[str, bool] = {}
    forbids: dict[str, str] = {}
    listable: dict[str, None] = {}
    already = False
    for release, role, built in bare.built():
        if role != "draft":
            continue
        for name in built.modules:
            item = subject.stored.get(name)
            if item is None or not subject.in_branch(name) or len(item.shape) < 2:
                continue
            if item.format in NVFP4:
                already = True
                continue
            able = built.format in NVFP4 and built.layer != "head" and packable(item)
            packed[name] = packed.get(name, True) and able
            if not able and packable(item) and built.layer not in ("norm", "embedding", "head"):
                forbids.setdefault(name, name_of(release))
                if built.layer != "linear":  # torch's own, that no list is asked for
                    listable[name] = None
    wanted = [name for name, able in packed.items() if able]
    if listable and (named := _wish_restated(search, bare, [*wanted, *listable], len(wanted))):
        return _left_plain({name: by for name, by in forbids.items() if name not in named})
    step: Repair | None = None
    wishes = search.wishes
    if not any(quantized(bare, wanted, wishes)):
        wishes = replace(wishes, input_scale=1.0)  # to see whether the scale is all that is wanting
    while wanted:
        found = next(quantized(bare, wanted, wishes))
        after = bare.plus(found.operations)
        listed = find_entries(after, before=trial) or find_entries(after, before=after)
        after = listed.trial if listed is not None else after
        worse = _worse(after, trial, wanted)
        fewer = [name for name in wanted if name not in with_fused(after, worse.keys() & set(wanted))]
        if len(fewer) == len(wanted):
            step = made(trial, after, found.title, safe=True)
            break
        by = next(worse[name] for name in wanted if name in worse)
        forbids.update((name, worse.get(name, by)) for name in wanted if name not in fewer)
        wanted = fewer
    if step is not None and wishes is not search.wishes:
        raise UsageError(
            f"no scale is known for the inputs of {describe_names(wanted)}",
            "no other layer has the same projections quantized: give one with --input-scale",
        )
    notes = _left_plain(forbids)
    if step is not None:
        search.take(step)
    elif already:
        notes.append("What else there is of the branch is stored in NVFP4 already.")
    else:
        notes.append("No module of the branch can be packed in every release asked for.")
    return notes


def _left_plain(forbids: Mapping[str, str]) -> list[str]:
    """Say which modules a release, given for each, does not let be packed."""
    return [
        f"Left in 16 bits, as {release} builds nothing else: "
        f"{describe_names([one for one, by in forbids.items() if by == release])}."
        for release in dict.fromkeys(forbids.values())
    ]


def _worse(after: Trial, before: Trial, packed: Collection[str]) -> dict[str, str]:
    """Return the modules on disk of which something goes wrong that did not before, each with a release.

    Of modules that were packed whatever goes wrong counts.
    """
    wrong = {bad[2]: bad[0] for bad in sorted(after.bad)}
    built = {name: wrong[one.prefix] for _, _, one in after.built() if one.prefix in wrong for name in one.modules}
    fresh = {bad[2] for bad in after.bad - before.bad}
    return {name: by for name, by in (wrong | built).items() if name in fresh or name in packed}


def _wish_restated(search: Search, bare: Trial, modules: Sequence[str], least: int) -> list[str]:
    """Pack modules of the branch and name each in an allow-list; return those packed, none where that was not taken.

    Nor is it taken where it packs no more modules than `least`, which need no such list.
    """
    trial, wanted = search.trial, list(modules)
    while len(wanted) > least:
        found = next(quantized(bare, wanted, search.wishes), None)
        if found is None:
            return []
        packed = bare.plus(found.operations)
        best: tuple[dict[str, str], str, Trial] | None = None
        for title, listed in _named(packed, found, search.wishes):
            after = without_branch_entries(listed)  # they count beside an allow-list too
            worse = _worse(after, trial, wanted)
            if best is None or len(worse) < len(best[0]):
                best = worse, f"{found.title}; {title}", after
        if best is None:
            return []
        worse, title, after = best
        if not worse:
            search.harmful = search.wishes.unsafe
            accepted = search.accepted(made(trial, after, title, safe=True))
            search.harmful = False
            if accepted is None:
                return []
            search.take(accepted)
            return wanted
        fewer = [name for name in wanted if name not in with_fused(packed, worse.keys() & set(wanted))]
        if len(fewer) == len(wanted):
            return []
        wanted = fewer
    return []


def _named(packed: Trial, quantized: Repair, wishes: Wishes) -> Iterator[tuple[str, Trial]]:
    """Yield the trials in which modules that were just quantized stand in an allow-list, a new one or that there is."""
    for repair in restate_mixed(packed, wishes):
        yield repair.title, packed.plus(repair.operations)
    modules = [name for one in quantized.operations if isinstance(one, Quantize) for name in one.modules]
    found = allow(packed, modules)
    if found is not None:
        after, names = found
        yield f"add {describe_names(names)} to quantized_layers", after
