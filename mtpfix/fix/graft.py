"""What a checkpoint lacks, taken from the base model: its branch, or single modules, with what the configuration needs.

Two checkpoints fit if they are of one family and every module that both store has one shape, the vocabulary's included.
Names are carried over by the family's own templates. Formats are the base's; the plan then goes on from there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mtpfix.checkpoint import open_checkpoint
from mtpfix.checkpoint.folder import published
from mtpfix.checkpoint.header import split_expert
from mtpfix.checkpoint.names import describe_names, split_name
from mtpfix.checkpoint.ref import shown
from mtpfix.engines.subject import Subject
from mtpfix.errors import MtpfixError, NothingToCheck, UsageError
from mtpfix.families import branch_prefixes
from mtpfix.fix.arrays import indexed_keys
from mtpfix.fix.entries import find_entries
from mtpfix.fix.judge import is_complete
from mtpfix.fix.operations import CONFIG, Dequantize, Graft, Grafted, Operation, set_value
from mtpfix.fix.repairs.formats import restorable
from mtpfix.fix.repairs.repair import Repair, Wishes, made
from mtpfix.fix.repairs.weights import MISBUILT
from mtpfix.fix.trial import Trial, modules_of
from mtpfix.model import EXPERT

SHARD = "model-mtp"
_OTHER = "give the model that this one was quantized from"


def graft(trial: Trial, wishes: Wishes) -> Iterator[Repair]:
    """Offer to take what is missing from the base model that was given.

    Raises UsageError where there is no such checkpoint, MtpfixError where it is another model or has no branch either.
    """
    if wishes.graft is None:
        return
    base = _opened(wishes.graft)
    subject = trial.context.subject
    _check_family(subject, base)
    operations = [*_configuration(trial, base)]
    declared = trial.plus(operations)
    tensors = list(_missing(declared, base))
    if not tensors:
        return
    _check_shapes(declared.context.subject, base)
    shard = _free_name({one.name for one in trial.context.checkpoint.shards})
    after = declared.plus([Graft(shard, str(base.checkpoint.root), tuple(tensors), _published(base))])
    stored = after.context.subject.stored
    grafted = {split_name(one.name)[0] for one in _templates(tensors)}
    wrong = [name for name in modules_of(after.occurrences(MISBUILT)) if name in grafted and restorable(stored[name])]
    after = after.plus(Dequantize(name) for name in wrong)
    found = find_entries(after, before=trial) or find_entries(after)
    after = found.trial if found is not None else after
    names = describe_names(sorted(grafted))
    how = " in BF16" if wrong else ""
    yield made(trial, after, f"graft {names} from {_named(base)}{how}", safe=True)


def _opened(ref: str) -> Subject:
    try:
        return _subject(ref)
    except NothingToCheck as error:
        raise UsageError(f"--graft: {error.message}", _OTHER) from None


@lru_cache(maxsize=2)
def _subject(ref: str) -> Subject:
    checkpoint = open_checkpoint(ref)
    if not is_complete(checkpoint):
        unread = ", ".join(checkpoint.unread[:3]) or "its configuration"
        raise MtpfixError(f"the base model {shown(ref)} cannot be read whole: {unread}", "download it again")
    return Subject(checkpoint)


def _named(base: Subject) -> str:
    """Return what the base model is called on the Hub, or its folder."""
    return shown(_published(base) or base.checkpoint.ref)


def _published(base: Subject) -> str:
    found = None if base.checkpoint.root is None else published(base.checkpoint.root)
    return "" if found is None else str(found)


def _check_family(subject: Subject, base: Subject) -> None:
    if subject.family is None or subject.numbers is None:
        raise MtpfixError(f"no family file knows the architecture {subject.architecture}", "see `mtpfix families`")
    if base.family is None or base.family.name != subject.family.name or base.numbers is None:
        raise MtpfixError(
            f"the base model is another one: {base.architecture or 'of no architecture'}, not {subject.architecture}",
            _OTHER,
        )
    if base.numbers.layers != subject.numbers.layers:
        raise MtpfixError(
            f"the base model has {base.numbers.layers} decoder layers, this one {subject.numbers.layers}", _OTHER
        )
    if base.numbers.mtp == 0 or not base.mtp.present:
        raise MtpfixError(f"the base model {_named(base)} has no MTP branch either", _OTHER)


def _configuration(trial: Trial, base: Subject) -> Iterator[Operation]:
    """Yield what the configuration needs for the branch: the number of its layers, and arrays as long as all layers."""
    subject = trial.context.subject
    numbers, given = subject.numbers, base.numbers
    if numbers is None or given is None or subject.family is None:
        return
    inner = next(
        (key for key in subject.family.table.get("text", ()) if numbers.config.get(key) is numbers.decoder), None
    )
    path = (inner,) if inner else ()
    if numbers.mtp == 0:
        for key in subject.family.table["numbers"]["K"]:
            if key in given.decoder:
                yield set_value(CONFIG, (*path, key), given.decoder[key])
    length = numbers.layers + given.mtp
    for key in dict.fromkeys(indexed_keys(trial)):
        here, there = numbers.decoder.get(key), given.decoder.get(key)
        if isinstance(here, list) and isinstance(there, list) and numbers.layers <= len(here) < length <= len(there):
            if here[: numbers.layers] != there[: numbers.layers]:
                raise MtpfixError(f"{key} of the base model's configuration differs for the decoder's layers", _OTHER)
            yield set_value(CONFIG, (*path, key), there[:length])


def _missing(trial: Trial, base: Subject) -> Iterator[Grafted]:
    """Yield the base's tensors of the branch, and of modules that an engine misses, that are not stored here."""
    subject = trial.context.subject
    if subject.family is None or subject.numbers is None or base.numbers is None:
        return
    here = branch_prefixes(subject.family, subject.numbers)
    there = branch_prefixes(subject.family, base.numbers)
    renamed = list(zip(there, here, strict=False))
    missed = set(modules_of(trial.occurrences(["weight-missing"])))
    starts = {shard.name: shard.header for shard in base.checkpoint.shards}
    seen: set[str] = set()
    for tensor in base.checkpoint.tensors:
        name = next((new + tensor.name.removeprefix(old) for old, new in renamed if tensor.name.startswith(old)), None)
        module = split_name(name if name is not None else tensor.name)[0]
        if name is None and module not in missed:
            continue
        kept: frozenset[int | None] = frozenset((None,))
        if (stored := subject.stored.get(module)) is None:
            kept = frozenset()
        elif stored.format.plain and stored.experts and module in missed:
            kept |= stored.experts
        elif module in subject.stored:
            continue
        numbers: Any = tensor.experts if tensor.experts is not None else (None,)
        for number, begin in zip(numbers, tensor.begins, strict=True):
            if number in kept:
                continue
            called = _numbered(name if name is not None else tensor.name, number)
            if called not in seen:
                seen.add(called)
                origin = _numbered(tensor.name, number)
                at = starts[tensor.shard] + begin
                yield Grafted(called, tensor.shard, origin, tensor.dtype, tensor.shape, at)


def _numbered(name: str, number: int | None) -> str:
    return name if number is None else name.replace(EXPERT, str(number), 1)


def _templates(tensors: list[Grafted]) -> Iterator[Grafted]:
    """Yield tensors with `{}` for their expert numbers, as modules are called."""
    for tensor in tensors:
        found = split_expert(tensor.name)
        yield tensor if found is None else replace(tensor, name=found[0])


def _check_shapes(subject: Subject, base: Subject) -> None:
    """Raise MtpfixError where a module that both checkpoints store has two shapes."""
    common = [name for name in subject.stored if name in base.stored and not subject.in_branch(name)]
    if not common:
        raise MtpfixError("the base model and this one have no module of the same name", _OTHER)
    for name in common:
        here, there = subject.stored[name].shape, base.stored[name].shape
        if here and there and here != there:
            raise MtpfixError(
                f"the base model is another one: {shown(name.replace(EXPERT, '*'))} is {list(there)} there, "
                f"{list(here)} here",
                _OTHER,
            )


def _free_name(taken: set[str]) -> str:
    number = 1
    while (name := f"{SHARD}{'' if number == 1 else f'-{number}'}.safetensors") in taken:
        number += 1
    return name


def files_read(operations: tuple[Operation, ...]) -> dict[Path, list[str]]:
    """Return the files of other checkpoints that operations take tensors from, by folder."""
    found: dict[Path, dict[str, None]] = {}
    for operation in operations:
        if isinstance(operation, Graft):
            files = found.setdefault(Path(operation.folder), {})
            files.update(dict.fromkeys(tensor.file for tensor in operation.tensors))
    return {folder: list(files) for folder, files in found.items()}
