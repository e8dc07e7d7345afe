"""Ways to change the numbers of a configuration: longer arrays, no MTP layer."""

from __future__ import annotations

from collections.abc import Iterator

from mtpfix.fix.arrays import extended
from mtpfix.fix.operations import CONFIG, Operation, set_value
from mtpfix.fix.repairs.repair import Repair, Wishes, made
from mtpfix.fix.trial import Trial, modules_of


def extend_arrays(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Extend per-layer arrays of the configuration to the MTP layers, after the decoder layer each resembles."""
    del wishes
    keys = modules_of(trial.occurrences(["array-short"]))
    operations, how = extended(trial, keys)
    if operations:
        yield made(trial, trial.plus(operations), f"extend {', '.join(keys)} to the MTP layers, {how}", safe=False)


def switch_off(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Declare no MTP layer, where the branch is not there."""
    del wishes
    subject = trial.context.subject
    numbers, family = subject.numbers, subject.family
    if numbers is None or family is None or not numbers.mtp or not trial.occurrences(["layer-absent"]):
        return
    inner = next((key for key in family.table.get("text", ()) if numbers.config.get(key) is numbers.decoder), None)
    path = (inner,) if inner else ()
    keys = [key for key in family.table["numbers"]["K"] if key in numbers.decoder]
    operations: list[Operation] = [set_value(CONFIG, (*path, key), 0) for key in keys]
    outer = [key for key in family.table["numbers"]["K"] if inner and key in numbers.config]
    operations += [set_value(CONFIG, (key,), 0) for key in outer]
    if not operations:
        operations = [set_value(CONFIG, (*path, family.table["numbers"]["K"][0]), 0)]
    title = f"switch the branch off: set {', '.join([*keys, *outer] or ['the MTP key'])} to 0 in {CONFIG}"
    yield made(trial, trial.plus(operations), title, safe=False)
