"""What tests of repairs share: the newest verified release, lists as files hold them, and files as bytes."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtpfix.engines import load

NEWEST = f"vllm=={load('vllm').verified[-1]}"


def entries_of(folder: Path) -> dict[str, set[str]]:
    """Return the exclude list of each file that has one."""
    found = {}
    for name in ("config.json", "hf_quant_config.json"):
        if (folder / name).exists():
            content = json.loads((folder / name).read_text(encoding="utf-8"))
            block = content.get("quantization_config") or content.get("quantization") or {}
            listed = block.get("ignore", block.get("exclude_modules"))
            if listed is not None:
                found[name] = set(listed)
    return found


def bytes_of(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return each file's inode, time and content."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def set_scalar(folder: Path, name: str, value: float) -> None:
    """Write another number over a tensor of one float32 number."""
    from mtpfix.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(folder)
    starts = {shard.name: shard.header for shard in checkpoint.shards}
    (tensor,) = [one for one in checkpoint.tensors if one.name == name]
    with (folder / tensor.shard).open("r+b") as file:
        file.seek(starts[tensor.shard] + tensor.begins[0])
        file.write(struct.pack("<f", value))


@contextmanager
def set_up_json(path: Path) -> Iterator[dict[str, Any]]:
    """Change a JSON file: what is done to the object is written back."""
    content = json.loads(path.read_text(encoding="utf-8"))
    yield content
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
