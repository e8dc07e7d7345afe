"""A repair to write: made without an engine's knowledge, of every kind of change, the same each time.

By hand, for the crash suite: `python -m tests.fix.repairs SOURCE OUT [--link L] [--overlay] [--in-place]`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mtpfix.checkpoint import open_checkpoint
from mtpfix.errors import MtpfixError
from mtpfix.fix.changes import Buffer, Changes, EditedFile, EditedShard, Link, NewShard, NewTensor, Written
from mtpfix.fix.index import with_index
from mtpfix.fix.snapshot import read_file, take_snapshot
from mtpfix.fix.splice import splice
from mtpfix.fix.writer import finish_in_place, write, write_in_place
from mtpfix.model import Operation
from tests import checkpoints

CONFIG = "config.json"
ADDED = "mtp*"


def made(folder: Path) -> Path:
    """Build the checkpoint that is repaired, with files beside the model's own, and return its folder."""
    checkpoints.build(folder, "qwen3_5", "nothing-excluded")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}\n')
    (folder / "figures").mkdir()
    (folder / "figures" / "chart.png").write_bytes(bytes(range(256)) * 40)
    return folder


def filled(name: str, dtype: str, shape: tuple[int, ...], fill: int) -> NewTensor:
    """Return a tensor of one byte over and over."""

    def read() -> Iterator[Buffer]:
        for begin in range(0, tensor.bytes, 1000):
            yield bytes([fill]) * min(1000, tensor.bytes - begin)

    tensor = NewTensor(name, dtype, shape, f"{fill} in every byte", read)
    return tensor


def edited(folder: Path, name: str = CONFIG) -> EditedFile:
    """Add an entry to the list of a configuration file."""
    raw = read_file(folder, name)
    wanted = json.loads(raw)
    block = wanted["quantization_config"] if name == CONFIG else wanted["quantization"]
    block["ignore" if name == CONFIG else "exclude_modules"].append(ADDED)
    return EditedFile(name, splice(raw, wanted, name))


def metadata_changes(folder: Path) -> Changes:
    """Return changes to the two configuration files alone."""
    snapshot = take_snapshot(folder)
    files = (edited(folder), edited(folder, "hf_quant_config.json"))
    return Changes(snapshot, files, (Operation("add-entry", CONFIG, ADDED),), "org/name")


def all_changes(folder: Path) -> Changes:
    """Return changes of every kind: lists, a tensor dropped, one replaced, one added, a new shard, a file removed."""
    from mtpfix.checkpoint.header import read_header
    from mtpfix.fix.changes import RemovedFile

    snapshot = take_snapshot(folder)
    shard = min(name for name in snapshot.files if name.endswith(".safetensors"))
    tensors = [tensor for tensor in read_header(folder / shard).tensors if tensor.experts is None]
    drop, replaced = tensors[1].name, tensors[-1]
    put = (filled(replaced.name, replaced.dtype, replaced.shape, 1), filled("mtp.added", "BF16", (3, 5), 2))
    files = (
        edited(folder),
        EditedShard(shard, (drop,), put),
        NewShard("model-mtp.safetensors", (filled("mtp.new.weight", "F32", (700,), 3),)),
        RemovedFile("tokenizer.json"),
    )
    return with_index(Changes(snapshot, files, (Operation("graft", "", "mtp"),), "org/name", "0123abc"))


def reads_whole(changes: Changes, folder: Path) -> None:
    """Open a result as a checkpoint, and refuse it if anything in it could not be read or disagrees."""
    checkpoint = open_checkpoint(folder, trusted=(changes.source.folder,))
    if checkpoint.unread or checkpoint.problems:
        raise MtpfixError(f"the result does not read: {checkpoint.problems}")
    if not any(ADDED in block.excludes for block in checkpoint.declarations):
        raise MtpfixError("the result lacks the entry")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one repair, and say in a sentence what stopped it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--link", type=Link, default=Link.AUTO)
    parser.add_argument("--overlay", action="store_true")
    parser.add_argument("--in-place", action="store_true")
    options = parser.parse_args(arguments)
    try:
        if options.in_place and finish_in_place(options.source):
            return 0
        changes = (metadata_changes if options.in_place else all_changes)(options.source)
        run(changes, options.out, options.link, overlay=options.overlay, in_place=options.in_place)
    except MtpfixError as error:
        sys.stderr.write(f"mtpfix: {error.message}\n  {error.hint}\n")
        return error.exit_code
    return 0


def run(changes: Changes, out: Path, link: Link, *, overlay: bool = False, in_place: bool = False) -> Written:
    """Write changes as a command does, checking the result before it is published."""

    def verify(folder: Path) -> None:
        reads_whole(changes, folder)

    if in_place:
        return write_in_place(changes, verify=verify)
    return write(changes, out, link=link, overlay=overlay, verify=verify)


if __name__ == "__main__":
    sys.exit(main())
