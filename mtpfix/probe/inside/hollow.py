"""Tensors that have a place in the address space and no memory: how a model of a terabyte is built in a few hundred MB.

Their shapes, strides, types and views are real, so the engine's own weight loaders run as they are; only numbers that
nobody looks at are never stored. Small tensors stay as they are. An operation that makes a large tensor of a large one
is checked by torch's own rules for shapes and gives another hollow one; one that makes a small tensor, such as a
maximum, is computed, and a hollow tensor reads as zeros.

One number is kept: the NaN with which engines mark what was never loaded, because they look for it afterwards.
"""

# Half of what it calls is known in the engine's interpreter alone.
# mypy: disable-error-code="attr-defined,misc,no-any-return,no-untyped-call"

from __future__ import annotations

import gc
import mmap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

RESERVED_TERABYTES = (64, 16, 4, 1)
"""Address space asked for; a process has 128 TB."""

NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)
FACTORIES = {
    f"aten::{name}"
    for name in (
        "empty",
        "empty_like",
        "empty_permuted",
        "empty_strided",
        "full",
        "full_like",
        "new_empty",
        "new_empty_strided",
        "new_full",
        "new_ones",
        "new_zeros",
        "ones",
        "ones_like",
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "zeros",
        "zeros_like",
    )
}
VIEWS = {"aten::_unsafe_view", "aten::_reshape_alias"}
"""Operations that return a view without saying so."""


class Arena:
    """The reserved part of the address space; a tensor of more than `limit` bytes is hollow (None: none is)."""

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.paused = False
        self.used = 0
        self.nan: set[int] = set()
        """Addresses of storages that hold a NaN."""
        self.samples: dict[int, Callable[[], list[bytes]]] = {}
        """What reads a few bytes of the stored tensor that a storage holds, by the storage's address."""
        if limit is not None:
            self.space = reserve()
            self.begin = self._tensor(0, 1, None).untyped_storage().data_ptr()

    def holds(self, tensor: Any) -> bool:
        """Return whether a tensor is hollow."""
        if self.limit is None or self.paused or tensor.device.type != "cpu":
            return False
        return self.begin <= tensor.untyped_storage().data_ptr() < self.begin + len(self.space)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let every operation run as it is."""
        self.paused = True
        try:
            yield
        finally:
            self.paused = False

    def is_large(self, tensor: Any) -> bool:
        """Return whether a tensor is of a size that is not stored."""
        return self.limit is not None and tensor.numel() * tensor.element_size() > self.limit

    def allocate(self, like: Any) -> Any:
        """Return a hollow tensor with the size, strides and type of a tensor without data."""
        import torch

        elements = 1 + sum((count - 1) * step for count, step in zip(like.size(), like.stride(), strict=True))
        flat = self._tensor(self.used, elements, like.dtype)
        self.used += -(-elements * like.element_size() // mmap.PAGESIZE) * mmap.PAGESIZE
        return torch.empty(0, dtype=like.dtype).set_(flat.untyped_storage(), 0, like.size(), like.stride())

    def _tensor(self, offset: int, elements: int, dtype: Any) -> Any:
        import torch

        return torch.frombuffer(self.space, dtype=dtype or torch.uint8, count=elements, offset=offset)

    # ------------------------------------------------------------------------------------------ operations

    def call(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run an operation, without storing what is large."""
        from torch.utils._pytree import tree_flatten, tree_unflatten

        if self.limit is None or self.paused or function.name() in VIEWS or is_view(function):
            return function(*arguments, **named)
        if function.name() == "aten::equal" and all(map(self.holds, arguments)):
            return self.are_equal(*arguments)
        if function.name() == "aten::any" and self.holds(arguments[0]):
            return function(arguments[0].as_strided((1,), (1,)))  # every other number reads as zero
        leaves, _ = tree_flatten((arguments, named))
        tensors = [leaf for leaf in leaves if is_tensor(leaf)]
        factory = function.name().partition(".")[0] in FACTORIES
        if not factory and not any(map(self.is_large, tensors)):
            return function(*arguments, **named)
        shape = without_data(function, arguments, named)
        if shape is None:
            return function(*arguments, **named)
        if writes_first(function):
            return arguments[0] if self.holds(arguments[0]) else function(*arguments, **named)
        made, structure = tree_flatten(shape)
        if not all(is_tensor(one) and self.is_large(one) for one in made) or not made:
            return function(*arguments, **named)
        hollow = [self.allocate(one) for one in made]
        if is_nan_full(function, arguments, named) or any(self.has_nan(one) for one in tensors):
            for one in hollow:
                self.put_nan(one)
        return tree_unflatten(hollow, structure)

    def write(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        """Run a writing operation; into a hollow tensor nothing is written, but what would be refused is refused."""
        target = arguments[0]
        if not self.holds(target):
            return function(*arguments, **named)
        source = arguments[1] if len(arguments) > 1 else None
        if is_tensor(source) and function.name().startswith("aten::copy_") and not broadcasts(source, target):
            return function(*arguments, **named)  # raises before anything is written
        if is_tensor(source):
            self.follow(source, target)
        elif source is not None and source != source:  # noqa: PLR0124 - NaN alone is not itself
            self.put_nan(target)
        return target

    def follow(self, source: Any, target: Any) -> None:
        """Remember which stored tensor a hollow one now holds."""
        sample = self.samples.get(source.untyped_storage().data_ptr())
        if sample is not None:
            self.samples[target.untyped_storage().data_ptr()] = sample

    def are_equal(self, one: Any, other: Any) -> bool:
        """Return whether two hollow tensors hold the same numbers, by a few bytes of what was written into them."""
        samples = [self.samples.get(tensor.untyped_storage().data_ptr()) for tensor in (one, other)]
        if one.size() != other.size() or samples[0] is None or samples[1] is None:
            return False
        return samples[0]() == samples[1]()

    # ------------------------------------------------------------------------------------------------- NaN

    def has_nan(self, tensor: Any) -> bool:
        """Return whether a hollow tensor holds the NaN that marks what was not loaded."""
        return bool(self.nan) and tensor.untyped_storage().data_ptr() in self.nan

    def put_nan(self, tensor: Any) -> None:
        """Let the first number of a hollow tensor be NaN, or true."""
        import torch

        if tensor.dtype.is_floating_point or tensor.dtype is torch.bool:
            self.nan.add(tensor.untyped_storage().data_ptr())
            tensor.as_strided((1,), (1,)).fill_(True if tensor.dtype is torch.bool else float("nan"))

    def clear_nan(self, tensor: Any) -> None:
        """Take the NaN back, because every number was written."""
        self.nan.discard(tensor.untyped_storage().data_ptr())
        tensor.as_strided((1,), (1,)).fill_(0)


def reserve() -> mmap.mmap:
    """Return a part of the address space for which no memory is set aside."""
    gc.collect()  # what an earlier one left behind may still hold its place
    for terabytes in RESERVED_TERABYTES:
        try:
            space = mmap.mmap(-1, terabytes << 40, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE)
        except (OSError, ValueError, OverflowError):
            continue
        if hasattr(space, "madvise") and hasattr(mmap, "MADV_NOHUGEPAGE"):
            space.madvise(mmap.MADV_NOHUGEPAGE)
        return space
    raise MemoryError("this machine lends no address space without memory: overcommitting is switched off")


def is_tensor(value: Any) -> bool:
    """Return whether a value is a tensor."""
    import torch

    return isinstance(value, torch.Tensor)


def is_view(function: Any) -> bool:
    """Return whether an operation returns a view of its input, and writes nothing."""
    return any(result.alias_info is not None and not result.alias_info.is_write for result in function._schema.returns)


def writes_first(function: Any) -> bool:
    """Return whether an operation changes its first argument."""
    first = function._schema.arguments[:1]
    return bool(first) and first[0].alias_info is not None and first[0].alias_info.is_write


def without_data(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Return an operation's result without data, or None where torch cannot tell it."""
    import torch
    from torch.utils._pytree import tree_map

    def strip(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.empty_strided(leaf.size(), leaf.stride(), dtype=leaf.dtype, device="meta")
        if isinstance(leaf, torch.device):
            return torch.device("meta")
        return leaf

    if not any(argument.name == "device" for argument in function._schema.arguments):
        device: dict[str, Any] = {}
    else:
        device = {"device": "meta"}
    try:
        with torch.no_grad():
            return function(*tree_map(strip, arguments), **{**tree_map(strip, named), **device, **_unpinned(named)})
    except Exception:  # noqa: BLE001 - whatever it is, the real operation says it better
        return None


def _unpinned(named: dict[str, Any]) -> dict[str, Any]:
    return {"pin_memory": False} if named.get("pin_memory") else {}


def is_nan_full(function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> bool:
    """Return whether an operation makes a tensor full of NaN."""
    if "full" not in function.name():
        return False
    values = [*arguments[1:3], *named.values()]
    return any(isinstance(value, float) and value != value for value in values)  # noqa: PLR0124


def broadcasts(source: Any, target: Any) -> bool:
    """Return whether a source can be copied into a target."""
    given, wanted = tuple(source.size()), tuple(target.size())
    if len(given) > len(wanted):
        return False
    return all(one in (1, other) for one, other in zip(reversed(given), reversed(wanted), strict=False))
