"""How fast a checkpoint is quantized to NVFP4, file to file, against `model_free_ptq` of llm-compressor.

    python benchmarks/quantize_checkpoint.py [--bytes N] [--rounds 3] [--folder DIR] [--environment DIR] [--json]

Both read the same checkpoint of random BF16 matrices from the page cache, on the CPU, and write another until it is on
the device: ours by the writer that `mtpfix patch` uses, with its checksums and its rename; theirs followed by an fsync
of each file. Each runs in a process of its own, whose imports are not timed and whose memory after them is not counted.
The best round of each counts; scales are searched with both weight errors measured, as `--scale-search` does.
llm-compressor is installed from the package index into an environment made for it (`--environment` keeps it); its
scheme is NVFP4A16, which quantizes the weights alone, as ours does.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

ROWS = COLUMNS = 4096
SHARDS = 4
PACKAGES = ("torch==2.13.0", "llmcompressor")


def build(folder: Path, size: int) -> None:
    """Write a checkpoint of linear layers with numbers like a model's: small, of both signs, of many sizes."""
    folder.mkdir()
    layers = -(-size // (ROWS * COLUMNS * 2))
    generator = random.Random(0)  # noqa: S311 - weights
    halves = [int(16256 - 128 * generator.expovariate(0.35)) & 0x7FFF for _ in range(1 << 12)]
    block = b"".join((half | generator.randrange(2) << 15).to_bytes(2, "little") for half in halves)
    weight_map = {}
    for number in range(SHARDS):
        name = f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"
        header, end = {}, 0
        for layer in range(number, layers, SHARDS):
            tensor = f"model.layers.{layer}.mlp.down_proj.weight"
            begin, end = end, end + ROWS * COLUMNS * 2
            header[tensor] = {"dtype": "BF16", "shape": [ROWS, COLUMNS], "data_offsets": [begin, end]}
            weight_map[tensor] = name
        raw = json.dumps(header).encode()
        raw += b" " * (-len(raw) % 8)
        with (folder / name).open("wb") as file:
            file.write(len(raw).to_bytes(8, "little") + raw)
            for _ in range(end // len(block)):
                turn = generator.randrange(len(block) // 2) * 2
                file.write(block[turn:] + block[:turn])
            os.fsync(file.fileno())
    index = {"metadata": {"total_size": layers * ROWS * COLUMNS * 2}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))


def quantize_ours(source: Path, out: Path, *, search: bool) -> dict[str, float]:
    """Quantize every matrix by itself, write the checkpoint, and return the weight errors where scales are searched."""
    from mtpfix.checkpoint.header import parse_tensors, read_raw
    from mtpfix.fix.changes import Changes, EditedShard, NewTensor
    from mtpfix.fix.index import with_index
    from mtpfix.fix.snapshot import take_snapshot
    from mtpfix.fix.writer import write
    from mtpfix.nvfp4.format import WeightError
    from mtpfix.nvfp4.stream import QuantizedGroup, StoredTensor

    def number(group: QuantizedGroup) -> list[bytes]:
        import struct

        return [struct.pack("<f", group.global_scale())]

    edited = []
    groups: list[QuantizedGroup] = []
    for shard in sorted(source.glob("*.safetensors")):
        with shard.open("rb") as file:
            raw, size = read_raw(file.fileno(), shard.name)
        put: list[NewTensor] = []
        for name, entry in parse_tensors(raw, size, shard.name).items():
            rows, columns = entry.shape
            weight = StoredTensor(shard, 8 + len(raw) + entry.begin, entry.dtype, (rows, columns), name)
            group = QuantizedGroup([weight], scale_search=search, measure_errors=search)
            groups.append(group)
            recipe = f"{name} in NVFP4"
            put += (
                NewTensor(name, "U8", (rows, columns // 2), recipe, partial(group.codes, 0)),
                NewTensor(f"{name}_scale", "F8_E4M3", (rows, columns // 16), recipe, partial(group.block_scales, 0)),
                NewTensor(f"{name}_scale_2", "F32", (), recipe, partial(number, group)),
            )
        edited.append(EditedShard(shard.name, put=tuple(put)))
    write(with_index(Changes(take_snapshot(source), tuple(edited))), out)
    if not search:
        return {}
    whole = sum((error for group in groups if (error := group.error(0)) is not None), WeightError())
    return {"error_plain": whole.relative[0], "error_searched": whole.relative[1]}


def quantize_theirs(source: Path, out: Path) -> None:
    """Let llm-compressor do the same."""
    from llmcompressor import model_free_ptq

    model_free_ptq(str(source), str(out), scheme="NVFP4A16", ignore=[], device="cpu", max_workers=os.cpu_count() or 1)
    for file in out.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def run_part(part: str, source: Path, out: Path) -> None:
    """Run one of them and print what it took."""
    if part == "llm-compressor":
        import llmcompressor  # noqa: F401 - imports are not timed
    else:
        import mtpfix.fix.writer
        import mtpfix.nvfp4.stream  # noqa: F401
    before = resource.getrusage(resource.RUSAGE_SELF)
    begun = time.perf_counter()
    errors: dict[str, float] = {}
    if part == "llm-compressor":
        quantize_theirs(source, out)
    else:
        errors = quantize_ours(source, out, search=part == "mtpfix with search")
    seconds = time.perf_counter() - begun
    after = resource.getrusage(resource.RUSAGE_SELF)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    memory = (after.ru_maxrss - before.ru_maxrss) * 1024
    print(json.dumps({"seconds": seconds, "processor_seconds": processor, "memory": memory, **errors}))


def environment(folder: Path) -> Path:
    """Return the interpreter of an environment that has llm-compressor, made where it is not there."""
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES], check=True, stdout=sys.stderr)
        (folder / "done").touch()
    return python


def measure(folder: Path, python: Path, size: int, rounds: int) -> dict[str, dict[str, float]]:
    """Return the best round of each part."""
    source, out = folder / "source", folder / "out"
    build(source, size)
    parts = {"mtpfix": Path(sys.executable), "mtpfix with search": Path(sys.executable), "llm-compressor": python}
    best: dict[str, dict[str, float]] = {}
    for _ in range(rounds):
        for part, interpreter in parts.items():
            os.sync()
            command = [interpreter, __file__, "--part", part, str(source), str(out)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            took = json.loads(done.stdout.splitlines()[-1])
            written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
            took["bytes_written"] = written
            shutil.rmtree(out)
            if part not in best or took["seconds"] < best[part]["seconds"]:
                best[part] = took
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--bytes", type=int, default=1 << 30)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; default: a new temporary folder")
    parser.add_argument("--environment", type=Path, help="where llm-compressor is, or is put to be kept")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--part", nargs=3, metavar=("PART", "SOURCE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        run_part(options.part[0], Path(options.part[1]), Path(options.part[2]))
        return 0
    with tempfile.TemporaryDirectory(prefix="mtpfix-", dir=options.folder) as temporary:
        python = environment(options.environment or Path(temporary) / "environment")
        best = measure(Path(temporary), python, options.bytes, options.rounds)
    theirs = best["llm-compressor"]["seconds"]
    ratios = {part: theirs / best[part]["seconds"] for part in best if part != "llm-compressor"}
    if options.json:
        print(json.dumps({"bytes": options.bytes, "processors": os.cpu_count(), "parts": best, "ratios": ratios}))
    else:
        for part, took in best.items():
            ratio = f", {ratios[part]:.1f} times as fast" if part in ratios else ""
            memory = f"{took['memory'] / 1e6:,.0f} MB beyond the interpreter's own"
            print(f"{part}: {took['seconds']:.2f} s ({took['processor_seconds']:.2f} s of processors), {memory}{ratio}")
    return 0 if ratios["mtpfix"] >= 25 and ratios["mtpfix with search"] >= 10 else 1


if __name__ == "__main__":
    sys.exit(main())
