"""MTP5xx: the files: index against shards, missing and unreadable files, names that no file should hold."""

from __future__ import annotations

from collections.abc import Iterator

from mtpfix.model import Fault, Finding, Severity
from mtpfix.rules.context import Context
from mtpfix.rules.findings import plain_finding
from mtpfix.rules.registry import Rule, rule


def _problems(context: Context, this: Rule, *faults: Fault) -> Iterator[Finding]:
    for problem in context.checkpoint.problems:
        if problem.fault in faults:
            module = (problem.names or problem.files or ("",))[0]
            hint = f" {problem.hint[0].upper()}{problem.hint[1:].rstrip('.')}." if problem.hint else ""
            yield plain_finding(this, f"{problem.message.rstrip('.')}.{hint}", module=module, count=problem.count)


@rule("MTP501", "shard-absent", Severity.ERROR, metadata=True)
def shard_absent(context: Context, this: Rule) -> Iterator[Finding]:
    """The index names a shard that is not in the folder.

    vLLM raises FileNotFoundError from 0.26 on; older releases load the rest and leave the tensors uninitialised.

    Repair: fetch the file, or rebuild the index.
    """
    yield from _problems(context, this, Fault.SHARD_ABSENT)


@rule("MTP502", "shard-unindexed", Severity.ERROR)
def shard_unindexed(context: Context, this: Rule) -> Iterator[Finding]:
    """A safetensors file lies in the folder, but the index does not name it.

    Engines drop files that the index does not name: an MTP branch grafted as `mtp.safetensors` is then never loaded.

    Repair: rebuild the index.
    """
    yield from _problems(context, this, Fault.SHARD_UNINDEXED)


@rule("MTP503", "tensor-absent", Severity.ERROR)
def tensor_absent(context: Context, this: Rule) -> Iterator[Finding]:
    """The index names a tensor that its shard does not hold.

    Repair: rebuild the index, or graft the tensor.
    """
    yield from _problems(context, this, Fault.TENSOR_ABSENT)


@rule("MTP504", "tensor-unindexed", Severity.WARNING)
def tensor_unindexed(context: Context, this: Rule) -> Iterator[Finding]:
    """A shard holds a tensor that the index does not name.

    Engines load every tensor of the files they open; tools that follow the index miss it.

    Repair: rebuild the index.
    """
    yield from _problems(context, this, Fault.TENSOR_UNINDEXED)


@rule("MTP505", "tensor-elsewhere", Severity.WARNING)
def tensor_elsewhere(context: Context, this: Rule) -> Iterator[Finding]:
    """A tensor lies in another shard than the index says.

    Repair: rebuild the index.
    """
    yield from _problems(context, this, Fault.TENSOR_ELSEWHERE)


@rule("MTP506", "tensor-duplicate", Severity.ERROR)
def tensor_duplicate(context: Context, this: Rule) -> Iterator[Finding]:
    """Several shards hold a tensor of the same name.

    Engines load every tensor of every file, so a stale copy can win without a word.

    Repair: drop the stale copy.
    """
    yield from _problems(context, this, Fault.TENSOR_DUPLICATE)


@rule("MTP507", "total-size", Severity.NOTE)
def total_size(context: Context, this: Rule) -> Iterator[Finding]:
    """`metadata.total_size` of the index is not the sum of the tensors' bytes.

    Some loaders plan memory by it; it also shows that a file was changed without its index.

    Repair: rebuild the index.
    """
    yield from _problems(context, this, Fault.TOTAL_SIZE)


@rule("MTP508", "path-refused", Severity.ERROR, metadata=True)
def path_refused(context: Context, this: Rule) -> Iterator[Finding]:
    """The index names a path that leaves the folder, or a file is not a plain file inside it.

    Such a path is never opened. Published indexes hold plain file names only.

    Repair: rebuild the index from the shards.
    """
    yield from _problems(context, this, Fault.PATH_REFUSED)


@rule("MTP509", "unreadable", Severity.ERROR, metadata=True)
def unreadable(context: Context, this: Rule) -> Iterator[Finding]:
    """A file cannot be read or breaks its format, so part of the checkpoint was not judged.

    A scan with an unread shard never ends clean.

    Repair: fetch the file again.
    """
    yield from _problems(context, this, Fault.SHARD_UNREADABLE, Fault.INDEX_UNREADABLE, Fault.CONFIG_UNREADABLE)


@rule("MTP510", "lfs-pointer", Severity.ERROR)
def lfs_pointer(context: Context, this: Rule) -> Iterator[Finding]:
    """A git-lfs pointer stands where the weights should be.

    The repository was cloned without its large files.

    Repair: run `git lfs pull`, or download with `hf download`.
    """
    yield from _problems(context, this, Fault.LFS_POINTER)


@rule("MTP511", "odd-name", Severity.WARNING)
def odd_name(context: Context, this: Rule) -> Iterator[Finding]:
    """A tensor's name holds control characters, text-direction marks or braces.

    No engine knows such a name, and printed raw it can mislead a terminal or a log.

    Repair: rename or drop the tensor.
    """
    yield from _problems(context, this, Fault.ODD_NAME)
