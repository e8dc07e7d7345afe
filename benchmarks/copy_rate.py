"""How fast unchanged shards are copied, against `cp` of the same files in the same run.

    python benchmarks/copy_rate.py [--bytes 2000000000] [--rounds 3] [--folder DIR] [--json]

Both write to the same file system and are measured until everything is on the device, as that is where ours ends: `cp`
is followed by `sync -f`. They take turns, so that whatever else the machine does hits both; the best round of each
counts. The source is in the page cache for both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mtpfix.fix.changes import Changes, EditedFile, Link
from mtpfix.fix.snapshot import take_snapshot
from mtpfix.fix.writer import write

SHARDS = 4


def build(folder: Path, size: int) -> None:
    """Write shards that are valid, of random bytes, and a configuration."""
    folder.mkdir()
    (folder / "config.json").write_text("{}\n")
    block = os.urandom(1 << 24)
    for number in range(SHARDS):
        data = size // SHARDS
        header = json.dumps({f"t{number}": {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}}).encode()
        with (folder / f"model-{number:05}.safetensors").open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for begin in range(0, data, len(block)):
                file.write(block[: min(len(block), data - begin)])
            os.fsync(file.fileno())


def measure(folder: Path, size: int, rounds: int) -> dict[str, float]:
    """Return bytes per second of both, the best of some rounds."""
    source, out = folder / "source", folder / "out"
    build(source, size)
    best = {"cp": 0.0, "mtpfix": 0.0}
    for number in range(2 * rounds):
        name = ("cp", "mtpfix")[number % 2]
        os.sync()
        begun = time.perf_counter()
        if name == "cp":
            subprocess.run(["cp", "--reflink=never", "--sparse=never", "-r", source, out], check=True)
            subprocess.run(["sync", "-f", out], check=True)
        else:
            changes = Changes(take_snapshot(source), (EditedFile("config.json", b"{ }\n"),))
            write(changes, out, link=Link.COPY)
        best[name] = max(best[name], size / (time.perf_counter() - begun))
        shutil.rmtree(out)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bytes", type=int, default=2_000_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: a new temporary folder")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mtpfix-", dir=options.folder) as folder:
        rates = measure(Path(folder), options.bytes, options.rounds)
    ratio = rates["mtpfix"] / rates["cp"]
    if options.json:
        print(json.dumps({"bytes": options.bytes, "bytes_per_second": rates, "ratio": ratio}))
    else:
        print(f"cp {rates['cp'] / 1e6:,.0f} MB/s, mtpfix {rates['mtpfix'] / 1e6:,.0f} MB/s: {100 * ratio:.0f} %")
    return 0 if ratio >= 0.9 else 1


if __name__ == "__main__":
    sys.exit(main())
