"""What a repair of the configurations costs beyond a scan, on a checkpoint of 700 GB: seconds and bytes written.

    python benchmarks/metadata_repair.py [--json] [--repeat N] [--folder FOLDER] [--engine ENGINE]

The checkpoint has the shapes and names of DeepSeek-R1-NVFP4 with more layers, until it is that large, and a list that
forgets its branch: sparse files. `mtpfix scan` and `mtpfix patch --out` of it take turns, each as a command of its own,
with their own defaults (a scan judges every release that is known) or for one release; what is told is the difference
of the fastest of each, as whatever else the machine does only adds to them, and of their processor time. Bytes written
are those of every file of the result that shares no inode with the source. Runs in a checkout, as it takes the builder
of the tests.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAMILY, LAYERS, SHARDS = "deepseek_v3", 102, 163
REPAIRED = "vllm==0.32.0"
LARGEST_SECONDS, LARGEST_BYTES = 3.0, 20_000_000


def build(folder: Path) -> None:
    """Write the checkpoint into `folder`, unless it is there already."""
    if (folder / "model.safetensors.index.json").exists():
        return
    sys.path.insert(0, str(ROOT))
    from tests import checkpoints

    known = checkpoints.FAMILIES[FAMILY]
    checkpoints.FAMILIES[FAMILY] = replace(
        known, config=lambda size: known.config(size) | {"num_hidden_layers": LAYERS}
    )
    checkpoints.build(folder, FAMILY, "nothing-excluded", "full", shards=SHARDS)


def timed(*command: str) -> tuple[float, float, str]:
    """Return how long a command of mtpfix took, its processor time, both in seconds, and what it printed."""
    begun, used = time.perf_counter(), processor_time()
    done = subprocess.run(
        [sys.executable, "-m", "mtpfix", *command], check=False, cwd=ROOT, capture_output=True, text=True
    )
    passed = time.perf_counter() - begun
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return passed, processor_time() - used, done.stdout


def processor_time() -> float:
    """Return the processor time of all commands that have ended, in seconds."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def measure(folder: Path, out: Path, engine: str | None, repeat: int) -> dict[str, Any]:
    """Return the best of `repeat` runs of each, taken in turns after one run of each that is not counted."""
    scans, repairs = [], []
    scan_for, patch_for = (["--engine", engine], ["--for", engine]) if engine else ([], [])
    for _ in range(repeat + 1):
        shutil.rmtree(out, ignore_errors=True)
        scans.append(timed("scan", str(folder), *scan_for, "--json", "--no-progress")[:2])
        repairs.append(timed("patch", str(folder), "--out", str(out), *patch_for, "--json")[:2])
    verdict = json.loads(timed("scan", str(out), "--engine", engine or REPAIRED, "--json", "--no-progress")[2])
    seen = {path.stat().st_ino for path in folder.iterdir()}
    fresh = [path for path in out.iterdir() if path.stat().st_ino not in seen]
    scan, repair = (min(wall for wall, _ in runs[1:]) for runs in (scans, repairs))
    scan_used, repair_used = (min(used for _, used in runs[1:]) for runs in (scans, repairs))
    return {
        "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        "shards": len(list(folder.glob("*.safetensors"))),
        "tensors": verdict["checkpoint"]["tensors"],
        "repeat": repeat,
        "engine": engine,
        "seconds": {"scan": scan, "patch": repair},
        "processor_seconds": {"scan": scan_used, "patch": repair_used},
        "seconds_beyond_the_scan": repair - scan,
        "processor_seconds_beyond_the_scan": repair_used - scan_used,
        "bytes_written": sum(path.stat().st_size for path in fresh),
        "files_written": sorted(path.name for path in fresh),
        "findings_left": len(verdict["findings"]),
        "exit_code_of_scan": verdict["exit_code"],
    }


def main() -> int:
    """Measure and print; 0 where both limits are kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeat", type=int, default=5, help="runs of each that are counted")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is made and left")
    parser.add_argument("--engine", help="scan and repair for this release; default: every release, and the newest")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder and options.folder.parent) as scratch:
        folder = (options.folder or Path(scratch) / "model").resolve()
        builder = get_context("spawn").Process(target=build, args=(folder,))
        builder.start()
        builder.join()
        found = measure(folder, Path(scratch) / "out", options.engine, options.repeat)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        print(f"{found['bytes'] / 1e9:.0f} GB, {found['shards']} files, {found['tensors']:,} tensors")
        print(f"scan {found['seconds']['scan']:.2f} s, patch {found['seconds']['patch']:.2f} s")
        print(f"beyond the scan: {found['seconds_beyond_the_scan']:.2f} s; {found['bytes_written']:,} bytes written")
    kept = found["seconds_beyond_the_scan"] < LARGEST_SECONDS and found["bytes_written"] < LARGEST_BYTES
    return 0 if kept and found["exit_code_of_scan"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
