"""How long a repository of 160 shards and 179,000 tensors takes to read from a Hub that answers after 50 ms.

Ours against `HfApi.get_safetensors_metadata`, each in a process of its own with an empty cache, in turns, against the
Hub of the tests in another process; requests are counted there. The checkpoint has the names, shapes and index of
DeepSeek-R1-NVFP4; its shards are sparse files of some gigabytes each.

    python benchmarks/hub_scan.py [--json] [--repeat N] [--folder FOLDER] [--latency SECONDS]

The peer reads the index and the headers; ours reads those and both configurations, and holds every answer against what
is listed. Runs in a checkout, as it takes the builder and the Hub of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FAMILY, SHARDS, NAME = "deepseek_v3", 160, "org/model"

MEASURE = """
import json, resource, sys, time
{setup}
begun, used = time.perf_counter(), time.process_time()
count = {call}
row = {{"seconds": time.perf_counter() - begun, "processor_seconds": time.process_time() - used, "count": count}}
row["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps(row))
"""

PEER = (
    "from huggingface_hub import HfApi, constants; from huggingface_hub.utils import tqdm; api = HfApi(token=False)",
    f"sum(len(one.tensors) for one in api.get_safetensors_metadata({NAME!r}).files_metadata.values())",
)
READ = (
    "import huggingface_hub.utils; from mtpfix.checkpoint.opening import open_any; import mtpfix.checkpoint.remote",
    f"open_any({NAME!r}).checkpoint.tensor_count",
)
SCAN = (
    "import huggingface_hub.utils, mtpfix.checkpoint.remote, mtpfix.fix, mtpfix.engines; from mtpfix import scan",
    f"scan({NAME!r}, engines=['vllm==0.32.0']).checkpoint.tensor_count",
)
BRANCH = (SCAN[0], f"scan({NAME!r}, engines=['vllm==0.32.0'], scope='mtp').mtp.tensors")


def build(folder: Path) -> None:
    """Write the checkpoint into `folder`, unless it is there already."""
    if not (folder / "model.safetensors.index.json").exists():
        code = (
            "import sys; from pathlib import Path; from tests.checkpoints import build; "
            f"build(Path(sys.argv[1]), {FAMILY!r}, 'excluded-glob', 'full', shards={SHARDS})"
        )
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=ROOT, check=True)


@contextmanager
def serving(folder: Path, latency: float) -> Iterator[str]:
    """Serve the checkpoint from another process; yields the address of the Hub."""
    command = [sys.executable, "-m", "tests.hub", f"{NAME}={folder}", "--latency", str(latency)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            yield line.strip().removeprefix("HF_ENDPOINT=")
        finally:
            process.terminate()
            process.wait(20)


def asked(endpoint: str, word: str) -> Any:
    """Ask the server what it noted."""
    with urllib.request.urlopen(f"{endpoint}/-/{word}") as answer:  # noqa: S310
        return json.load(answer)


def measure(endpoint: str, home: Path, what: Sequence[str]) -> dict[str, Any]:
    """Run one way in a process of its own, and count what it asked for."""
    asked(endpoint, "forget")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment = {**kept, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    code = MEASURE.format(setup=what[0], call=what[1])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True)
    row: dict[str, Any] = json.loads(done.stdout)
    requests = asked(endpoint, "requests")
    row["requests"] = len(requests)
    row["by_kind"] = dict(Counter(_kind(server, path) for server, _, path, _ in requests))
    return row


def _kind(server: str, path: str) -> str:
    if server == "cdn":
        return "cdn"
    return "redirect of a shard" if path.endswith(".safetensors") else "other"


def run(folder: Path, repeat: int, latency: float) -> dict[str, Any]:
    """Return what each way took, in turns, and medians."""
    rows: dict[str, list[dict[str, Any]]] = {}
    with serving(folder, latency) as endpoint, tempfile.TemporaryDirectory() as scratch:
        for turn in range(repeat):
            for name, what in (("peer", PEER), ("read", READ), ("scan", SCAN), ("branch", BRANCH)):
                home = Path(scratch) / f"{name}-{turn}"
                rows.setdefault(name, []).append(measure(endpoint, home, what))
                if name == "scan":
                    rows.setdefault("again", []).append(measure(endpoint, home, what))
    found: dict[str, Any] = {"shards": SHARDS, "latency": latency, "repeat": repeat, "processors": os.cpu_count()}
    for name, taken in rows.items():
        last = taken[-1]
        found[name] = {
            **{key: last[key] for key in ("count", "requests", "by_kind")},
            **{key: median(row[key] for row in taken) for key in ("seconds", "processor_seconds", "peak_bytes")},
        }
    found["ratio_read"] = found["peer"]["seconds"] / found["read"]["seconds"]
    found["ratio_scan"] = found["peer"]["seconds"] / found["scan"]["seconds"]
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each")
    parser.add_argument("--latency", type=float, default=0.05, help="seconds before each answer")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is, or is made and left")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch) / "model"
        build(folder)
        found = run(folder, options.repeat, options.latency)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    print(f"{SHARDS} shards, {found['peer']['count']:,} tensors, {options.latency * 1e3:.0f} ms before each answer")
    titles = {
        "peer": "get_safetensors_metadata",
        "read": "headers, index, configurations",
        "scan": "whole scan, newest release",
        "again": "the same scan again",
        "branch": "--scope mtp",
    }
    for name, title in titles.items():
        row = found[name]
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(row["by_kind"].items()))
        print(
            f"{title:32}{row['seconds']:7.2f} s {row['requests']:5} requests {row['peak_bytes'] / 1e6:5.0f} MB  {kinds}"
        )
    print(f"reading: {found['ratio_read']:.1f} times as fast; whole scan: {found['ratio_scan']:.1f} times as fast")


if __name__ == "__main__":
    main()
