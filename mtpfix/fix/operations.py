"""The closed set of operations on a checkpoint: what each one says, and how it is written down and read again.

Types and their JSON only. What an operation makes of a checkpoint's description is in `preview`, what it makes of files
in `perform`. Operations are done in order, and each sees what those before it have left.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, TypeAlias, TypeVar

from mtpfix.checkpoint.names import describe_names
from mtpfix.errors import FormatError
from mtpfix.model import Dialect
from mtpfix.model import Operation as Described

CONFIG = "config.json"
HF_QUANT_CONFIG = "hf_quant_config.json"
QUANTIZE_CONFIG = "quantize_config.json"
"""Where tools that pack with GPTQ put a copy of the block in config.json."""
INDEX = "model.safetensors.index.json"

Path: TypeAlias = tuple[str, ...]
"""Keys from the top of a JSON file down to a value."""


@dataclass(frozen=True, slots=True)
class AddEntry:
    """Put a name at the end of the list at `path`, which is made where it is not there."""

    action: ClassVar[str] = "add-entry"
    file: str
    path: Path
    entry: str


@dataclass(frozen=True, slots=True)
class RemoveEntry:
    """Take a name out of the list at `path`."""

    action: ClassVar[str] = "remove-entry"
    file: str
    path: Path
    entry: str


@dataclass(frozen=True, slots=True)
class SetValue:
    """Set the value at `path`; `text` is its JSON."""

    action: ClassVar[str] = "set-value"
    file: str
    path: Path
    text: str

    @property
    def value(self) -> Any:
        """Return the value itself."""
        return json.loads(self.text)


@dataclass(frozen=True, slots=True)
class RemoveKey:
    """Take the key at the end of `path` out of its object."""

    action: ClassVar[str] = "remove-key"
    file: str
    path: Path


@dataclass(frozen=True, slots=True)
class Reindex:
    """Write the index anew from what the shards hold."""

    action: ClassVar[str] = "reindex"


@dataclass(frozen=True, slots=True)
class DropTensors:
    """Take tensors, by their full names, out of one shard."""

    action: ClassVar[str] = "drop"
    shard: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Dequantize:
    """Store a module in BF16; `{}` in its name stands for every expert number."""

    action: ClassVar[str] = "dequantize"
    module: str


@dataclass(frozen=True, slots=True)
class Quantize:
    """Store modules in NVFP4 with one global scale for all of them, those of one expert for each expert.

    `input_scale` is the scale of their inputs, in ModelOpt's sense (amax / 2688), None where inputs stay 16-bit. With
    `scale_search` block scales are those of least squared error among eight, not ModelOpt's own.
    """

    action: ClassVar[str] = "quantize"
    modules: tuple[str, ...]
    dialect: Dialect
    input_scale: float | None
    scale_search: bool = False


@dataclass(frozen=True, slots=True)
class Unstack:
    """Store stacked experts one by one, under names in which `{}` stands for every expert number.

    With several names each expert's rows are divided among them, in their order: gate and up out of the fused form.
    """

    action: ClassVar[str] = "unstack"
    module: str
    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class CopyModule:
    """Store what a module holds once more, under the name of another that is not there."""

    action: ClassVar[str] = "copy"
    module: str
    name: str


@dataclass(frozen=True, slots=True)
class AddScale:
    """Write one number as the scale `suffix` of a module (of each of its experts) that lacks it."""

    action: ClassVar[str] = "add-scale"
    module: str
    suffix: str
    value: float


@dataclass(frozen=True, slots=True)
class ShareScale:
    """Give NVFP4 modules that an engine fuses one global scale, the largest, and rescale their block scales."""

    action: ClassVar[str] = "share-scale"
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Grafted:
    """One tensor of another checkpoint: `name` here, `origin` there, in its `file`; `begin` is a byte of the file."""

    name: str
    file: str
    origin: str
    dtype: str
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True, slots=True)
class Graft:
    """Take tensors of the checkpoint in `folder` into a shard that this one does not have yet.

    `base` is what that checkpoint is called on the Hub, with its commit (`org/name@0123…`); empty where nobody knows.
    """

    action: ClassVar[str] = "graft"
    shard: str
    folder: str
    tensors: tuple[Grafted, ...]
    base: str = ""


Operation: TypeAlias = (
    AddEntry
    | RemoveEntry
    | SetValue
    | RemoveKey
    | Reindex
    | DropTensors
    | Dequantize
    | Quantize
    | Unstack
    | CopyModule
    | AddScale
    | ShareScale
    | Graft
)

_KINDS: Mapping[str, type[Operation]] = {
    kind.action: kind
    for kind in (
        AddEntry,
        RemoveEntry,
        SetValue,
        RemoveKey,
        Reindex,
        DropTensors,
        Dequantize,
        Quantize,
        Unstack,
        CopyModule,
        AddScale,
        ShareScale,
        Graft,
    )
}
ON_JSON = (AddEntry, RemoveEntry, SetValue, RemoveKey)
"""Operations that change a configuration and no tensor."""
ON_TENSORS = (DropTensors, Dequantize, Quantize, Unstack, CopyModule, AddScale, ShareScale, Graft)
"""Operations that change what the shards hold."""


def set_value(file: str, path: Path, value: object) -> SetValue:
    """Return the operation that sets a value."""
    return SetValue(file, path, json.dumps(value, ensure_ascii=False, allow_nan=False))


def described(operation: Operation) -> Described:
    """Return an operation as reports and manifests tell it: a verb, a file, and a name or value."""
    match operation:
        case AddEntry() | RemoveEntry():
            return Described(operation.action, operation.file, operation.entry)
        case SetValue():
            text = operation.text if len(operation.text) <= 200 else operation.text[:199] + "…"
            return Described(operation.action, operation.file, f"{'.'.join(operation.path)} = {text}")
        case RemoveKey():
            return Described(operation.action, operation.file, ".".join(operation.path))
        case Reindex():
            return Described(operation.action, INDEX, "")
        case DropTensors():
            more = f" and {len(operation.names) - 5} more" if len(operation.names) > 5 else ""
            return Described(operation.action, operation.shard, ", ".join(operation.names[:5]) + more)
        case Dequantize():
            return Described(operation.action, "", operation.module)
        case Quantize() | ShareScale():
            return Described(operation.action, "", ", ".join(operation.modules))
        case Unstack():
            return Described(operation.action, "", f"{operation.module} as {', '.join(operation.names)}")
        case CopyModule():
            return Described(operation.action, "", f"{operation.module} as {operation.name}")
        case AddScale():
            return Described(operation.action, "", f"{operation.module}.{operation.suffix} = {operation.value:.6g}")
        case Graft():
            names = describe_names(tensor.name for tensor in operation.tensors)
            return Described(operation.action, operation.shard, f"{names} of {operation.base or 'the base model'}")


def to_json(operations: Iterable[Operation]) -> list[dict[str, Any]]:
    """Return operations as JSON objects, each with its `action`."""
    return [{"action": operation.action} | asdict(operation) for operation in operations]


def from_json(found: object) -> tuple[Operation, ...]:
    """Return the operations that `to_json` wrote; raises FormatError for anything else."""
    if not isinstance(found, list):
        raise FormatError("the plan's operations are not a list", "write the plan again with --plan")
    return tuple(_operation(item, number) for number, item in enumerate(found, 1))


def _operation(item: object, number: int) -> Operation:
    refused = FormatError(f"operation {number} of the plan is not one this version knows", "write the plan again")
    if not isinstance(item, dict):
        raise refused
    kind = _KINDS.get(str(item.get("action")))
    if kind is None:
        raise refused
    try:
        made = _made(kind, {key: value for key, value in item.items() if key != "action"})
        if isinstance(made, SetValue):
            json.loads(made.text)
    except (TypeError, ValueError):
        raise refused from None
    return made


_Made = TypeVar("_Made", bound="Operation | Grafted")


def _made(kind: type[_Made], values: object) -> _Made:
    if not isinstance(values, dict) or set(values) != {field.name for field in fields(kind)}:
        raise TypeError(kind.__name__)
    return kind(**{field.name: _value(str(field.type), values[field.name]) for field in fields(kind)})


def _value(kind: str, value: object) -> Any:
    """Return a field's value as its type wants it; raises TypeError where it is of another type."""
    match kind:
        case "str" if isinstance(value, str):
            return value
        case "int" if isinstance(value, int) and not isinstance(value, bool):
            return value
        case "bool" if isinstance(value, bool):
            return value
        case "float" if isinstance(value, (int, float)) and not isinstance(value, bool):
            return float(value)
        case "float | None" if value is None or (isinstance(value, (int, float)) and not isinstance(value, bool)):
            return None if value is None else float(value)
        case "Dialect" if isinstance(value, str):
            return Dialect(value)
        case "Path" | "tuple[str, ...]" if _all(value, str):
            return tuple(value)  # type: ignore[arg-type]
        case "tuple[Grafted, ...]" if _all(value, dict):
            return tuple(_made(Grafted, item) for item in value)  # type: ignore[attr-defined]
        case "tuple[int, ...]" if _all(value, int):
            return tuple(value)  # type: ignore[arg-type]
    raise TypeError(kind)


def _all(value: object, kind: type) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str) and all(type(item) is kind for item in value)
