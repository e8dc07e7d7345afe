"""What lies on disk: tensors grouped by module, and the format their dtypes and shapes show.

Knows the layouts of published checkpoints by dtype and shape alone. Does not know what a configuration declares: an
absent `input_scale` makes a module NVFP4_A16 here, and whether that is a fault is decided where both are known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod

from mtpfix.checkpoint.conventions import CONVENTIONS, is_amax
from mtpfix.checkpoint.names import SCALES, WEIGHTS, collapse_numbers, natural_key, split_name
from mtpfix.model import EXPERT, Dialect, Format, Part, Stored, Tensor

_BITS: Mapping[str, int] = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
_PLAIN: Mapping[str, Format] = {"BF16": Format.BF16, "F16": Format.FP16, "F32": Format.FP32}
_FP8 = frozenset({"F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ"})
_E8M0 = frozenset({"U8", "F8_E8M0"})  # published as either
_PACKED = frozenset({"U8", "I8", "F4"})
_REAL = frozenset({"F32", "BF16", "F16"})
_INPUT_SCALES = frozenset(each.input_scale for each in CONVENTIONS.values())
_EXTRAS = frozenset({"pre_quant_scale", "svdquant_lora_a", "svdquant_lora_b", "weight_shape"})
_KINDS = 8  # ways of storing the experts of one module that get an entry of their own

_Shape = tuple[int, ...]
_Signature = tuple[tuple[str, str, _Shape], ...]  # (suffix, dtype, shape) of every part


def stored_modules(tensors: Iterable[Tensor]) -> dict[str, Stored]:
    """Return every module by its name, `{}` standing for the expert number, in the order the tensors come.

    The experts of one entry hold their weights alike: one dtype and shape. Where experts of a module differ in that,
    the most numerous kind stands under the module's name, the others under `NAME#2`, `NAME#3`, … (`Stored.module` is
    NAME in all of them; `variants` finds them), and `odd` of the first names them. `Part.experts` are the experts of
    the entry that have that part. Tensors may come from several shards; a part's `order` is its first in shard order.
    """
    grouped: dict[str, dict[str, list[Tensor]]] = {}
    expert_modules: set[str] = set()
    for tensor in tensors:
        module, suffix = split_name(tensor.name)
        parts = grouped.get(module)
        if parts is None:
            parts = grouped[module] = {}
        copies = parts.get(suffix)
        if copies is None:
            parts[suffix] = [tensor]
        else:
            copies.append(tensor)
        if tensor.experts is not None:
            expert_modules.add(module)
    numbers = _ExpertNumbers()
    last_numbers = _last_numbers(grouped, expert_modules, numbers)
    found: dict[str, Stored] = {}
    for module, parts in grouped.items():
        if module in expert_modules:
            entries = _experts_module(module, parts, numbers, last_numbers[_bank(module)])
            found.update((key, item) for key, item in entries if key == module or key not in grouped)
        else:
            found[module] = _module(module, parts)
    return _with_integers_told_apart(found)


def variants(stored: Mapping[str, Stored], module: str) -> Iterator[Stored]:
    """Yield every entry of a module, the most numerous kind of its experts first; nothing where there is no module."""
    key, number = module, 1
    while key in stored:
        if stored[key].module == module:  # or a tensor's name really ends in "#2"
            yield stored[key]
        number += 1
        key = f"{module}#{number}"


# ---------------------------------------------------------------------------------------------- modules


class _ExpertNumbers:
    """Sets of expert numbers, computed once: all tensors of a layer list the same experts."""

    def __init__(self) -> None:
        self._by_array: dict[int, frozenset[int]] = {}  # by id: the arrays outlive this object
        self._by_value: dict[tuple[str, bytes], frozenset[int]] = {}
        self._unions: dict[tuple[frozenset[int], ...], frozenset[int]] = {}
        self._inside: dict[tuple[frozenset[int], frozenset[int]], frozenset[int]] = {}
        self._ends: dict[frozenset[int], tuple[int, int]] = {}

    def of(self, tensor: Tensor) -> frozenset[int]:
        """Return the experts of a tensor: for equal arrays the same object."""
        array = tensor.experts
        if not array:
            return _NONE
        found = self._by_array.get(id(array))
        if found is None:
            value = (array.typecode, array.tobytes())
            found = self._by_value.get(value) or self._by_value.setdefault(value, frozenset(array))
            self._by_array[id(array)] = found
        return found

    def union(self, sets: tuple[frozenset[int], ...]) -> frozenset[int]:
        """Return the union of sets."""
        if len(sets) == 1:
            return sets[0]
        found = self._unions.get(sets)
        return self._unions.setdefault(sets, _NONE.union(*sets)) if found is None else found

    def within(self, experts: frozenset[int], kind: frozenset[int]) -> frozenset[int]:
        """Return those of the experts that are of a kind."""
        found = self._inside.get((experts, kind))
        return self._inside.setdefault((experts, kind), experts & kind) if found is None else found

    def ends(self, experts: frozenset[int]) -> tuple[int, int]:
        """Return the smallest and the largest number of a set, -1 where it is empty."""
        found = self._ends.get(experts)
        if found is None:
            found = self._ends[experts] = (min(experts, default=-1), max(experts, default=-1))
        return found


_NONE: frozenset[int] = frozenset()


def _bank(module: str) -> str:
    """Return the name before the expert number: the modules below it belong to the same experts."""
    return module.partition(EXPERT)[0]


def _last_numbers(
    grouped: Mapping[str, Mapping[str, list[Tensor]]], modules: Iterable[str], numbers: _ExpertNumbers
) -> dict[str, int]:
    last: dict[str, int] = {}
    for module in modules:
        bank = _bank(module)
        top = last.get(bank, -1)
        for copies in grouped[module].values():
            for tensor in copies:
                top = max(top, numbers.ends(numbers.of(tensor))[1])
        last[bank] = top
    return last


def _module(
    module: str,
    parts: Mapping[str, list[Tensor]],
    experts: frozenset[int] | None = None,
    numbers: _ExpertNumbers | None = None,
) -> Stored:
    """Return a module whose parts are each of one dtype and shape, and there for all of its experts if it has any."""
    made: dict[str, Part] = {}
    size = 0
    odd: tuple[str, ...] = ()
    signature: list[tuple[str, str, _Shape]] = []
    for suffix, copies in parts.items():
        tensor = copies[0]
        if len(copies) > 1:
            tensor = min(copies, key=_by_shard)
            if experts is None and len({(copy.dtype, copy.shape) for copy in copies}) > 1:
                odd = (*odd, f"{_called(suffix)} is stored {len(copies)} times, with different dtypes or shapes")
        name, dtype, shape = tensor.name, tensor.dtype, tensor.shape
        if numbers is not None:
            name = name.replace(EXPERT, str(numbers.ends(numbers.of(tensor))[0]), 1)
        signature.append((suffix, dtype, shape))
        made[suffix] = Part(suffix, dtype, shape, (tensor.shard, name), experts)
        size += _size(dtype, shape)
    if experts is not None:
        size *= len(experts)
    reading = _read(tuple(signature))
    odd = reading.odd + odd
    return Stored(module, reading.format, reading.dialect, reading.shape, made, experts, reading.missing, odd, size)


def _experts_module(
    module: str, parts: Mapping[str, list[Tensor]], numbers: _ExpertNumbers, last_number: int
) -> Iterator[tuple[str, Stored]]:
    everyone = _alike(parts, numbers)
    if everyone is not None:
        entries = [_module(module, parts, everyone, numbers)]
    else:
        kinds = _kinds(parts, numbers)
        entries = [_experts_entry(module, parts, numbers, kind) for kind in kinds]
        everyone = _NONE.union(*kinds)
    odd = []
    if last_number + 1 > len(everyone):
        odd.append(_absent(everyone, last_number))
    odd += [
        f"{_experts(entry.experts or ())} {'are' if len(entry.experts or ()) > 1 else 'is'} stored otherwise: "
        f"{entry.format.value} {_shown(entry.shape)}"
        for entry in entries[1:]
    ]
    yield module, replace(entries[0], odd=(*entries[0].odd, *odd)) if odd else entries[0]
    for number, entry in enumerate(entries[1:], 2):
        yield f"{module}#{number}", entry


def _alike(parts: Mapping[str, list[Tensor]], numbers: _ExpertNumbers) -> frozenset[int] | None:
    """Return the experts of a module if each part is of one dtype and shape and there for all of them, else None."""
    everyone: frozenset[int] | None = None
    for copies in parts.values():
        first = copies[0]
        if len(copies) == 1:
            experts = numbers.of(first)
        else:
            if any(copy.dtype != first.dtype or copy.shape != first.shape for copy in copies):
                return None
            experts = numbers.union(tuple(map(numbers.of, copies)))
        if everyone is None:
            everyone = experts
        elif experts is not everyone and experts != everyone:
            return None
    return everyone


def _kinds(parts: Mapping[str, list[Tensor]], numbers: _ExpertNumbers) -> list[frozenset[int]]:
    """Return the experts in sets that store their weight alike, the largest set first."""
    everyone = _NONE.union(*(numbers.of(tensor) for copies in parts.values() for tensor in copies))
    weights = [
        (suffix, tensor)
        for name in WEIGHTS
        for suffix, copies in parts.items()
        if suffix.removeprefix("_") == name
        for tensor in copies
        if tensor.experts
    ]
    if len({(suffix, tensor.dtype, tensor.shape) for suffix, tensor in weights}) <= 1:
        return [everyone]
    kind_of: dict[int, tuple[str, str, _Shape]] = {}
    for suffix, tensor in weights:
        for expert in numbers.of(tensor):
            kind_of.setdefault(expert, (suffix, tensor.dtype, tensor.shape))
    members: dict[tuple[str, str, _Shape], set[int]] = {}
    for expert, kind in kind_of.items():
        members.setdefault(kind, set()).add(expert)
    ordered = sorted(members.values(), key=lambda kind: (-len(kind), min(kind)))
    if len(ordered) > _KINDS:
        ordered[_KINDS - 1 :] = [set().union(*ordered[_KINDS - 1 :])]
    ordered[0] |= everyone - kind_of.keys()  # an expert without any weight is shown as a hole in the largest kind
    return [frozenset(kind) for kind in ordered]


def _experts_entry(
    module: str, parts: Mapping[str, list[Tensor]], numbers: _ExpertNumbers, kind: frozenset[int]
) -> Stored:
    made: dict[str, Part] = {}
    odd: list[str] = []
    size = 0
    signature: list[tuple[str, str, _Shape]] = []
    for suffix, copies in parts.items():
        choices: dict[tuple[str, _Shape], list[tuple[Tensor, frozenset[int]]]] = {}
        for tensor in copies:
            inside = numbers.within(numbers.of(tensor), kind)
            if inside:
                choices.setdefault((tensor.dtype, tensor.shape), []).append((tensor, inside))
                size += _size(tensor.dtype, tensor.shape) * len(inside)
        if not choices:
            continue
        choice = max(choices, key=lambda each: sum(len(inside) for _, inside in choices[each]))
        having = numbers.union(tuple(inside for _, inside in choices[choice]))
        unlike: tuple[Part, ...] = ()
        if len(choices) > 1:
            others = {
                each: numbers.union(tuple(inside for _, inside in found))
                for each, found in choices.items()
                if each != choice
            }
            shown = [f"{each[0]} {_shown(each[1])} for {_experts(found)}" for each, found in others.items()]
            more = f" and {len(shown) - 4} other ways" if len(shown) > 4 else ""
            odd.append(f"{_called(suffix)} is {choice[0]} {_shown(choice[1])}, but {', '.join(shown[:4])}{more}")
            lacking = kind - having.union(*others.values())
            unlike = tuple(
                Part(suffix, *each, _first(choices[each], numbers), inside) for each, inside in others.items()
            )
        else:
            lacking = kind - having if len(having) < len(kind) else frozenset()
        if lacking:
            odd.append(f"{_called(suffix)} is not there for {_experts(lacking)}")
        signature.append((suffix, *choice))
        experts = kind if having is kind or having == kind else having
        made[suffix] = Part(suffix, *choice, _first(choices[choice], numbers), experts, unlike)
    reading = _read(tuple(signature))
    odd[:0] = reading.odd
    return Stored(module, reading.format, reading.dialect, reading.shape, made, kind, reading.missing, tuple(odd), size)


def _first(found: Sequence[tuple[Tensor, frozenset[int]]], numbers: _ExpertNumbers) -> tuple[str, str]:
    tensor, inside = found[0] if len(found) == 1 else min(found, key=lambda each: _by_shard(each[0]))
    return tensor.shard, tensor.name.replace(EXPERT, str(numbers.ends(inside)[0]), 1)


def _absent(total: frozenset[int], last_number: int) -> str:
    count = last_number + 1 - len(total)
    if count > 10_000:  # a made-up number: naming the holes would list millions
        return f"{count} experts are not there: numbers run to {last_number}"
    absent = frozenset(range(last_number + 1)) - total
    return f"{_experts(absent)} {'are' if count > 1 else 'is'} not there: numbers run to {last_number}"


def _experts(experts: Iterable[int]) -> str:
    numbers = frozenset(experts)
    return f"expert{'s' if len(numbers) > 1 else ''} {collapse_numbers(numbers)}"


# ---------------------------------------------------------------------------------------------- formats


@dataclass(frozen=True, slots=True)
class _Reading:
    """What the dtypes and shapes of one module's parts say."""

    format: Format
    dialect: Dialect
    shape: _Shape
    missing: tuple[str, ...] = ()
    odd: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One part, by what an engine cares about."""

    dtype: str
    shape: _Shape

    def __str__(self) -> str:
        return f"{self.dtype} {_shown(self.shape)}"


_Parts = Mapping[str, _Tensor]


@lru_cache(maxsize=4096)
def _read(signature: _Signature) -> _Reading:
    parts = {suffix.removeprefix("_"): _Tensor(dtype, shape) for suffix, dtype, shape in signature}
    if any(suffix.startswith("weight.") for suffix in parts):
        return _Reading(Format.UNKNOWN, Dialect.OTHER, (), odd=("bitsandbytes' packing is not read here",))
    holders = [suffix for suffix in WEIGHTS if suffix in parts]
    if not holders:
        return _without_weight(parts)
    name = holders[0]
    weight = parts[name]
    if name == "qweight":
        reading = _auto_packed(weight, parts)
    elif name == "blocks":
        reading = _blocks(weight, parts)
    elif name == "weight_packed" and weight.dtype == "I32":
        reading = _packed_integers(weight, parts)
    elif weight.dtype in _PLAIN:
        reading = _Reading(_PLAIN[weight.dtype], Dialect.OTHER, weight.shape)
    elif weight.dtype in _FP8 and name != "weight_packed":
        reading = _fp8(weight, parts)
    elif weight.dtype == "I8" and name != "weight_packed" and _scale(parts)[1].dtype in _REAL:
        reading = _Reading(Format.INT8, Dialect.OTHER, weight.shape)
    elif weight.dtype in _PACKED and (name == "weight_packed" or len(weight.shape) > 1):
        reading = _packed_floats(name, weight, parts)
    else:
        reading = _Reading(Format.UNKNOWN, Dialect.OTHER, weight.shape)
    odd = [*reading.odd, *_left_over(reading, parts)]
    if len(holders) > 1:
        odd.append(f"{' and '.join(map(_called, holders))} are both there")
    return replace(reading, odd=tuple(odd)) if len(odd) > len(reading.odd) else reading


def _without_weight(parts: _Parts) -> _Reading:
    """Read a module that holds only a bias, cache scales, or scales whose weight is elsewhere or lost."""
    scales = sorted(suffix for suffix in parts if suffix in SCALES and suffix != "scale")
    if scales:
        missing = ("weight_packed" if "weight_global_scale" in parts else "weight",)
        odd = (f"{', '.join(scales)} without a weight",)
        return _Reading(Format.UNKNOWN, Dialect.OTHER, (), missing, odd)
    first = next(iter(parts.values()), _Tensor("", ()))
    return _Reading(_PLAIN.get(first.dtype, Format.UNKNOWN), Dialect.OTHER, first.shape)


def _scale(parts: _Parts) -> tuple[str, _Tensor]:
    """Return the suffix and tensor of the scale nearest to the weight; "" where there is none."""
    for suffix in ("weight_scale", "weight_scale_inv", "scale"):
        if suffix in parts:
            return suffix, parts[suffix]
    return "", _Tensor("", ())


def _packed_floats(name: str, weight: _Tensor, parts: _Parts) -> _Reading:
    """Read two 4-bit floats in a byte (or the 4-bit dtype itself): NVFP4 in either dialect, or MXFP4."""
    dialect = _dialect(name, parts)
    shape = weight.shape if weight.dtype == "F4" else (*weight.shape[:-1], *(2 * size for size in weight.shape[-1:]))
    suffix, scale = _scale(parts)
    tensor_scales = [each.global_scale for each in CONVENTIONS.values() if each.global_scale in parts]
    by_32 = scale.dtype in _E8M0 and not tensor_scales and not _is_blocked(scale.shape, shape, (1, 16))
    if suffix and by_32:
        odd = _wrong_scale(suffix, scale, shape, 32, _E8M0)
        return _Reading(Format.MXFP4, dialect if name == "weight_packed" else Dialect.OTHER, shape, (), odd)
    if not tensor_scales and not (suffix and scale.dtype == "F8_E4M3"):
        return _unreadable(name, weight, parts)
    return _nvfp4(dialect, shape, parts)


def _dialect(name: str, parts: _Parts) -> Dialect:
    """Return whose names the parts of a weight in NVFP4 have, given the suffix of what holds its numbers."""
    if name == "weight_packed":
        return Dialect.COMPRESSED_TENSORS
    return Dialect.AMAX if not name and is_amax(parts) else Dialect.MODELOPT


def _unreadable(name: str, weight: _Tensor, parts: _Parts) -> _Reading:
    """Read packed bytes whose scales do not say what they are."""
    dialect = Dialect.COMPRESSED_TENSORS if name == "weight_packed" else Dialect.OTHER
    suffix, scale = _scale(parts)
    if suffix:
        odd = f"{_called(name)} {weight} with {suffix} {scale} is no layout known here"
        return _Reading(Format.UNKNOWN, dialect, weight.shape, (), (odd,))
    wanted = CONVENTIONS[_dialect(name, parts)]
    odd = f"{_called(name)} is {weight}, packed or integer, and has no scales"
    return _Reading(Format.UNKNOWN, dialect, weight.shape, (wanted.block_scale, wanted.global_scale), (odd,))


def _nvfp4(dialect: Dialect, shape: _Shape, parts: _Parts) -> _Reading:
    names = CONVENTIONS[dialect]
    suffix, scale = _scale(parts)
    odd: list[str] = []
    if not 2 <= len(shape) <= 3:
        odd.append(f"the weight has {len(shape)} dimensions, not 2 or 3")
    elif shape[-1] % 16:
        odd.append(f"{shape[-1]} columns are not a multiple of 16")
    if suffix == names.block_scale:
        odd += _wrong_scale(suffix, scale, shape, 16, frozenset({"F8_E4M3"}))
    missing = [each for each in (names.block_scale, names.global_scale) if each not in parts]
    for each in names.scalars:
        if each in parts:
            odd += _wrong_scalar(each, parts[each], shape)
    others = {each: other for other, one in CONVENTIONS.items() if other != dialect for each in one.scalars}
    strangers = [each for each in others if each in parts]
    if strangers:
        whose = " and ".join(dict.fromkeys(others[each].value for each in strangers))
        odd.append(f"{' and '.join(strangers)} ({whose}) beside a weight named as {dialect.value} does")
    quantized_inputs = names.input_scale in parts or any(each in _INPUT_SCALES for each in strangers)
    found = Format.NVFP4 if quantized_inputs else Format.NVFP4_A16
    return _Reading(found, dialect, shape, tuple(missing), tuple(odd))


def _fp8(weight: _Tensor, parts: _Parts) -> _Reading:
    suffix, scale = _scale(parts)
    odd = [] if weight.dtype == "F8_E4M3" else [f"the weight is {weight.dtype}, not F8_E4M3"]
    if not suffix:
        if len(weight.shape) < 2:
            return _Reading(Format.UNKNOWN, Dialect.OTHER, weight.shape, (), tuple(odd))
        odd.append(f"the weight is {weight} and has no scale")
        return _Reading(Format.UNKNOWN, Dialect.OTHER, weight.shape, ("weight_scale",), tuple(odd))
    if "weight_scale_inv" in parts and suffix != "weight_scale_inv":
        odd.append(f"{suffix} and weight_scale_inv are both there")
    found = _fp8_format(suffix, scale, weight.shape)
    if found is Format.UNKNOWN:
        odd.append(f"{suffix} {scale} fits no layout of a weight {_shown(weight.shape)}")
    elif scale.dtype not in _REAL | _E8M0:
        odd.append(f"{suffix} is {scale.dtype}, not F32")
    return _Reading(found, Dialect.OTHER, weight.shape, (), tuple(odd))


def _fp8_format(suffix: str, scale: _Tensor, shape: _Shape) -> Format:
    if len(shape) < 2:
        return Format.FP8 if prod(scale.shape) == 1 else Format.UNKNOWN
    blocks = _is_blocked(scale.shape, shape, (128, 128))
    if blocks and (suffix != "weight_scale" or scale.dtype in _E8M0):
        return Format.FP8_BLOCK
    if scale.dtype in _E8M0 and _is_blocked(scale.shape, shape, (1, 32)):
        return Format.MXFP8
    if _is_scalar(scale.shape, shape):
        return Format.FP8
    if scale.shape in (shape[:-1], (*shape[:-1], 1)):
        return Format.FP8_CHANNEL
    return Format.FP8_BLOCK if blocks else Format.UNKNOWN


def _blocks(weight: _Tensor, parts: _Parts) -> _Reading:
    """Read gpt-oss' MXFP4: blocks [experts, rows, groups, 16] of bytes, scales [experts, rows, groups]."""
    scale = parts.get("scales")
    if weight.dtype != "U8" or len(weight.shape) < 2:
        odd = (f"blocks are {weight}, not U8 [..., groups, 16]",)
        return _Reading(Format.UNKNOWN, Dialect.OTHER, weight.shape, (), odd)
    *rows, groups, width = weight.shape
    shape = (*rows, groups * width * 2)
    if scale is None:
        return _Reading(Format.MXFP4, Dialect.OTHER, shape, ("_scales",))
    wrong = scale.shape != (*rows, groups) or scale.dtype not in _E8M0 or width != 16
    odd = (f"scales {scale} do not fit blocks {weight}",)
    return _Reading(Format.MXFP4, Dialect.OTHER, shape, (), odd if wrong else ())


def _packed_integers(weight: _Tensor, parts: _Parts) -> _Reading:
    """Read compressed-tensors' integers in 32-bit words; their width shows in the zero points alone.

    Where it does not show the format stays UNKNOWN and `shape` counts words, until neighbours tell.
    """
    missing = tuple(each for each in ("weight_scale", "weight_shape") if each not in parts)
    zeros, scale = parts.get("weight_zero_point"), parts.get("weight_scale")
    if len(weight.shape) < 2 or (scale is not None and scale.shape[:-1] != weight.shape[:-1]):
        odd = (f"weight_packed is {weight}, weight_scale is {'not there' if scale is None else scale}",)
        return _Reading(Format.UNKNOWN, Dialect.COMPRESSED_TENSORS, weight.shape, missing, odd)
    bits = 0
    if zeros is not None and zeros.dtype == "I32" and len(zeros.shape) == len(weight.shape):
        bits = next((each for each in (4, 8) if -(-weight.shape[-2] * each // 32) == zeros.shape[-2]), 0)
    elif scale is not None and scale.shape[-1] > 1 and weight.shape[-1] % scale.shape[-1] == 0:
        # Groups are 32, 64 or 128 columns wide: 4 words hold 32 columns at 4 bits, 32 words 128 columns at 8 bits.
        bits = {4: 4, 32: 8}.get(weight.shape[-1] // scale.shape[-1], 0)
    return _integers(bits, Dialect.COMPRESSED_TENSORS, weight.shape, missing)


def _integers(bits: int, dialect: Dialect, words: _Shape, missing: tuple[str, ...]) -> _Reading:
    found = {4: Format.INT4, 8: Format.INT8}.get(bits)
    if found is None:
        return _Reading(Format.UNKNOWN, dialect, words, missing, (_WIDTH_UNKNOWN,))
    return _Reading(found, dialect, (*words[:-1], words[-1] * 32 // bits), missing)


_WIDTH_UNKNOWN = "shapes do not tell whether these are 4-bit or 8-bit integers"


def _auto_packed(weight: _Tensor, parts: _Parts) -> _Reading:
    """Read GPTQ's qweight [columns*bits/32, rows] or AWQ's [columns, rows/8]; scales are [groups, rows] in both."""
    missing = tuple(each for each in ("scales", "qzeros") if each not in parts)
    scale, zeros = parts.get("scales"), parts.get("qzeros")
    if len(weight.shape) != 2 or weight.dtype != "I32" or scale is None or len(scale.shape) != 2:
        odd = (f"qweight is {weight}, not I32 [words, rows] with scales [groups, rows]",)
        return _Reading(Format.UNKNOWN, Dialect.OTHER, weight.shape, missing, odd)
    rows = scale.shape[1]
    if weight.shape[1] == rows:
        words = zeros.shape[-1] if zeros is not None and zeros.shape else 0
        bits = next((each for each in (4, 8) if rows and words == -(-rows * each // 32)), 0)
        return _integers(bits, Dialect.OTHER, (rows, weight.shape[0]), missing)
    if weight.shape[1] * 8 == rows:
        return _Reading(Format.INT4, Dialect.OTHER, (rows, weight.shape[0]), missing)
    odd = (f"qweight {weight} does not fit scales {scale}",)
    return _Reading(Format.UNKNOWN, Dialect.OTHER, weight.shape, missing, odd)


def _left_over(reading: _Reading, parts: _Parts) -> Iterator[str]:
    """Yield what is said of scales that have no place beside a weight of this format."""
    if reading.format is Format.UNKNOWN:
        return
    fitting = _fitting(reading, parts)
    left = sorted(suffix for suffix in parts if suffix in SCALES and suffix not in fitting)
    if reading.format in (Format.NVFP4, Format.NVFP4_A16):
        left = [suffix for suffix in left if not any(suffix in each.scalars for each in CONVENTIONS.values())]
    if left:
        yield f"{', '.join(left)} beside a {reading.format.value} weight"


def _fitting(reading: _Reading, parts: _Parts) -> frozenset[str]:
    if reading.format.plain:
        return frozenset({"scale"})  # some norms have one of their own
    if reading.format in (Format.NVFP4, Format.NVFP4_A16):
        names = CONVENTIONS[reading.dialect]
        return _EXTRAS | {names.block_scale, *names.scalars, *names.beside}
    if reading.format in (Format.INT4, Format.INT8):
        return SCALES - {"weight_scale_2", "weight_scale_inv", "weight_global_scale", "input_global_scale"}
    return _EXTRAS | {_scale(parts)[0], "scales", "weight_scale_inv", "input_scale", "input_scale_ub"}


def _wrong_scale(suffix: str, scale: _Tensor, shape: _Shape, width: int, dtypes: frozenset[str]) -> tuple[str, ...]:
    expected = (*shape[:-1], *(-(-size // width) for size in shape[-1:]))
    odd = []
    if scale.shape != expected:
        other = next((each for each in (16, 32, 64, 128) if _is_blocked(scale.shape, shape, (1, each))), 0)
        why = f": one for each {other} columns, not {width}" if other and other != width else ""
        odd.append(f"{suffix} is {_shown(scale.shape)}, expected {_shown(expected)}{why}")
    if scale.dtype not in dtypes:
        odd.append(f"{suffix} is {scale.dtype}, expected {' or '.join(sorted(dtypes))}")
    return tuple(odd)


def _wrong_scalar(suffix: str, scale: _Tensor, shape: _Shape) -> Iterator[str]:
    if not _is_scalar(scale.shape, shape):
        expected = f"one number for each of {shape[0]} experts" if len(shape) == 3 else "one number"
        yield f"{suffix} is {_shown(scale.shape)}, expected {expected}"
    if scale.dtype not in _REAL:
        yield f"{suffix} is {scale.dtype}, expected F32"


def _is_scalar(scale: _Shape, shape: _Shape) -> bool:
    """Return whether a scale is one number, or one for each expert of a 3-D weight: (E,), (E, 1) or (E, 1, 1)."""
    if len(scale) <= 1 and prod(scale) == 1:
        return True
    if prod(scale) == 1 and len(scale) <= len(shape):
        return True
    return len(shape) == 3 and 1 <= len(scale) <= 3 and scale[0] == shape[0] and prod(scale[1:]) == 1


def _is_blocked(scale: _Shape, shape: _Shape, block: tuple[int, int]) -> bool:
    """Return whether a scale holds one number for each block of (rows, columns); ModelOpt writes [r, 1, c, 1] too."""
    if len(shape) < 2:
        return False
    blocks = tuple(-(-size // width) for size, width in zip(shape[-2:], block, strict=True))
    return scale in ((*shape[:-2], *blocks), (*shape[:-2], blocks[0], 1, blocks[1], 1))


# ---------------------------------------------------------------------------------------------- integers, sizes, words


def _with_integers_told_apart(found: dict[str, Stored]) -> dict[str, Stored]:
    """Settle 4 or 8 bits of packed integers whose own shapes do not tell, by the widths of other modules.

    A layer's columns are another's rows, or the length of a norm: the reading whose column count occurs elsewhere in
    the checkpoint holds. Where both or neither do, the format stays unknown.
    """
    open_questions = [key for key, item in found.items() if _WIDTH_UNKNOWN in item.odd]
    if not open_questions:
        return found
    widths = {
        size
        for item in found.values()
        for size in (item.shape[:1] if len(item.shape) <= 2 else item.shape[-2:-1])
        if size > 1
    }
    for key in open_questions:
        item = found[key]
        words = item.shape[-1]
        fitting = [bits for bits in (4, 8) if words * 32 // bits in widths]
        if len(fitting) == 1:
            reading = _integers(fitting[0], item.dialect, item.shape, item.missing)
            odd = tuple(each for each in item.odd if each != _WIDTH_UNKNOWN)
            found[key] = replace(item, format=reading.format, shape=reading.shape, odd=odd)
    return found


def _by_shard(tensor: Tensor) -> tuple[object, ...]:
    return _shard_key(tensor.shard)


@lru_cache(maxsize=1024)
def _shard_key(shard: str) -> tuple[object, ...]:
    return natural_key(shard)


@lru_cache(maxsize=1024)
def _size(dtype: str, shape: _Shape) -> int:
    return (prod(shape) * _BITS.get(dtype, 0) + 7) // 8


def _called(suffix: str) -> str:
    return suffix.removeprefix("_") or "the tensor"


def _shown(shape: _Shape) -> str:
    return "[" + ", ".join(map(str, shape)) + "]"
