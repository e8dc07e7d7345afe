"""How long a checkpoint of 160 files and 180,000 tensors takes: ours against `safetensors.safe_open`, in one process.

The checkpoint has the names, shapes and index of DeepSeek-R1-NVFP4 and a list that excludes its branch: sparse files.
The peer opens each file and asks each tensor for its dtype and shape; it knows no index, no configuration, no scales.

    python benchmarks/local_scan.py [--json] [--repeat N] [--folder FOLDER]

Needs safetensors and numpy, and runs in a checkout, as it takes the builder of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAMILY, SHARDS = "deepseek_v3", 160


def build(folder: Path) -> None:
    """Write the checkpoint into `folder`, unless it is there already."""
    if (folder / "model.safetensors.index.json").exists():
        return
    sys.path.insert(0, str(ROOT))
    from tests.checkpoints import build as build_checkpoint

    build_checkpoint(folder, FAMILY, "excluded-glob", "full", shards=SHARDS)


def read_as_peer(folder: Path) -> int:
    """Open every file with the official package, ask for every dtype and shape; return how many tensors there are."""
    from safetensors import safe_open

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                tensor = file.get_slice(name)
                tensor.get_dtype()
                tensor.get_shape()
                count += 1
    return count


def read_as_we_do(folder: Path) -> int:
    """Read headers, index and configurations, and compare them; return how many tensors there are."""
    from mtpfix.checkpoint import open_checkpoint

    return open_checkpoint(folder).tensor_count


def scan_one_release(folder: Path) -> int:
    """Scan for the newest release: everything above, and the verdict, the rules, the scales."""
    from mtpfix import scan

    return scan(folder, engines=["vllm==0.32.0"]).checkpoint.tensor_count


def scan_every_release(folder: Path) -> int:
    """Scan for every release that is known."""
    from mtpfix import scan

    return scan(folder).checkpoint.tensor_count


def peak() -> int:
    """Return the most bytes this process held so far."""
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


def timed(read: Callable[[Path], int], folder: Path) -> tuple[float, float, int]:
    """Return seconds that passed, seconds of processor time, and what `read` returned."""
    started, used = time.perf_counter(), time.process_time()
    count = read(folder)
    return time.perf_counter() - started, time.process_time() - used, count


def measure(folder: Path, repeat: int) -> dict[str, Any]:
    """Return medians of `repeat` runs of each, taken in turns after one run of each that is not counted."""
    from mtpfix.checkpoint.header import fast_path_available

    # ours runs first, so that the peak is ours and not the peer's
    memory = {"before": peak()}
    read_as_we_do(folder)
    memory["ours"] = peak()
    read_as_peer(folder)
    whole = {"scan_one_release": scan_one_release, "scan_every_release": scan_every_release}
    for scan in whole.values():
        scan(folder)
    memory["scan"] = peak()
    readers = {"peer": read_as_peer, "ours": read_as_we_do, **whole}
    rows: dict[str, list[tuple[float, float, int]]] = {name: [] for name in readers}
    for _ in range(repeat):
        for name, read in readers.items():
            rows[name].append(timed(read, folder))
    counts = {count for row in rows.values() for _, _, count in row}
    if len(counts) != 1:
        raise SystemExit(f"the two readers count differently: {counts}")
    seconds = {name: median(wall for wall, _, _ in row) for name, row in rows.items()}
    processor = {name: median(used for _, used, _ in row) for name, row in rows.items()}
    return {
        "shards": len(list(folder.glob("*.safetensors"))),
        "tensors": counts.pop(),
        "header_bytes": sum(_header_size(path) for path in folder.glob("*.safetensors")),
        "index_bytes": (folder / "model.safetensors.index.json").stat().st_size,
        "compiled": fast_path_available(),
        "processors": os.cpu_count(),
        "repeat": repeat,
        "seconds": seconds,
        "processor_seconds": processor,
        "ratio": seconds["peer"] / seconds["ours"],
        "ratio_scan_one_release": seconds["peer"] / seconds["scan_one_release"],
        "peak_bytes_scan": memory["scan"],
        "peak_bytes": memory["ours"],
        "peak_bytes_before": memory["before"],
    }


def _header_size(path: Path) -> int:
    with path.open("rb") as file:
        return int.from_bytes(file.read(8), "little")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeat", type=int, default=9, help="runs of each that are counted")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is made and left")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        builder = get_context("spawn").Process(target=build, args=(folder,))  # its memory is not ours
        builder.start()
        builder.join()
        found = measure(folder, options.repeat)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(
        f"{found['shards']} files, {found['tensors']:,} tensors, {'compiled' if found['compiled'] else 'Python'} reader"
    )
    titles = {
        "peer": "safe_open, dtype and shape of each",
        "ours": "headers, index, configurations",
        "scan_one_release": "whole scan, newest release",
        "scan_every_release": "whole scan, every release",
    }
    for name, title in titles.items():
        print(f"{title:36}{found['seconds'][name] * 1e3:8.1f} ms")
    print(f"reading: {found['ratio']:.1f} times as fast; {found['peak_bytes'] / 1e6:.0f} MB resident at most")
    print(f"one release: {found['ratio_scan_one_release']:.1f} times as fast, {found['peak_bytes_scan'] / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
