"""How fast a BF16 weight becomes NVFP4: ours against nvidia-modelopt, compressed-tensors, plain torch and memcpy.

All in one process on one weight of 2048 x 7168, in turns; the figures are medians, in million elements per second of
one core's own time (`time.thread_time`). Where threads share the work they are of the clock, which means little on a
busy machine, and of the time of all cores together: equal figures for one and two threads mean that nothing is lost by
sharing, and twice the speed where both cores are free. "Whole" is the largest magnitude and then codes and scales,
into memory that is there already, as for memcpy (2 + 2 bytes per element); the peers, and `quantize`, also allocate
what they return. Peers are cut from their published wheels.

    python benchmarks/nvfp4.py [--json] [--rounds N] [--rows N]

Needs torch, and runs in a checkout, as it takes the peers from the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from mtpfix.nvfp4 import cpu, dequantize, quantize, reference  # noqa: E402
from mtpfix.nvfp4.format import scale_of  # noqa: E402
from tests.conformance import quantizers  # noqa: E402
from tests.nvfp4 import numbers  # noqa: E402

COLUMNS = 7168


def contenders(weight: torch.Tensor, variant: str, threads: int) -> dict[str, Callable[[], object]]:
    """Return what one variant of the library is timed at."""
    count = weight.numel()
    packed, scales = torch.empty(count // 2, dtype=torch.uint8), torch.empty(count // 16, dtype=torch.uint8)

    def places() -> tuple[int, int]:
        return packed.data_ptr(), scales.data_ptr()

    half, single = weight.half(), weight.float()
    codes = weight.clamp(-448, 448).to(torch.float8_e4m3fn)
    inverse = torch.rand(-(-len(weight) // 128), COLUMNS // 128)
    back = torch.empty_like(weight)
    scale = scale_of(cpu.amax(weight.data_ptr(), "BF16", count))

    def whole(source: torch.Tensor, dtype: str, *, search: bool = False) -> Callable[[], object]:
        def run() -> None:
            cpu.use(variant)
            amax = cpu.amax(source.data_ptr(), dtype, count, threads=threads)
            cpu.quantize(
                source.data_ptr(), dtype, count, scale_of(amax), *places(), scale_search=search, threads=threads
            )

        return run

    def whole_fp8() -> None:
        cpu.use(variant)
        where = codes.data_ptr(), inverse.data_ptr(), len(weight), COLUMNS
        cpu.quantize_fp8(*where, scale_of(cpu.amax_fp8(*where, threads=threads)), *places(), threads=threads)

    def read_back() -> None:
        cpu.use(variant)
        cpu.dequantize(*places(), "BF16", count, scale, back.data_ptr(), threads=threads)

    return {
        "whole": whole(weight, "BF16"),
        "whole_fp16": whole(half, "F16"),
        "whole_fp32": whole(single, "F32"),
        "whole_fp8_block": whole_fp8,
        "whole_search": whole(weight, "BF16", search=True),
        "dequantize": read_back,
    }


def measure(work: dict[str, Callable[[], object]], elements: int, rounds: int, clock: Callable[[], float]) -> Any:
    """Run each in turn, `rounds` times after one for warmth; return million elements per second, median and best."""
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(rounds + 1):
        for name, run in work.items():
            begun = clock()
            run()
            if turn:
                times[name].append(clock() - begun)
    return {
        name: {"median": round(elements / median(taken) / 1e6, 1), "best": round(elements / min(taken) / 1e6, 1)}
        for name, taken in times.items()
    }


def errors(search: bool) -> dict[str, float]:
    """Return the squared error of a weight, relative to its square, by distribution."""
    found = {}
    for distribution in (numbers.gaussian, numbers.heavy_tailed):
        weight = distribution(1 << 22).view(-1, 2048)
        read = dequantize(*quantize(weight, scale_search=search), dtype=torch.float32)
        found[distribution.__name__] = float((read - weight).double().square().sum() / weight.double().square().sum())
    return found


def processor() -> str:
    """Return the processor's name and number of cores."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    name = next((line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")), "")
    return f"{name or platform.processor()}, {cpu.usable_processors()} cores"


def main() -> None:
    """Print the table, or one JSON object."""
    options = argparse.ArgumentParser()
    options.add_argument("--json", action="store_true")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--rows", type=int, default=2048)
    chosen = options.parse_args()
    torch.set_num_threads(1)
    weight = numbers.gaussian(chosen.rows * COLUMNS).view(-1, COLUMNS).to(torch.bfloat16)
    target = torch.empty_like(weight)
    modelopt, compressed = quantizers.modelopt(), quantizers.compressed_tensors_writer()
    scale = scale_of(reference.measure(weight))
    load = os.getloadavg()[0]
    work: dict[str, Callable[[], object]] = {
        "memcpy": lambda: target.copy_(weight),
        "modelopt": lambda: modelopt.quantize(weight, 16),
        "compressed_tensors": lambda: compressed(weight),
        "torch_eager": lambda: (reference.measure(weight), reference.pack(weight, scale)),
        "quantize": lambda: (cpu.use(cpu.variants()[0]) if cpu.available() else None, quantize(weight)),
    }
    for variant in cpu.variants():
        work |= {f"{variant}_{name}": run for name, run in contenders(weight, variant, 1).items()}
    one = measure(work, weight.numel(), chosen.rounds, time.thread_time)
    best = cpu.variants()[0] if cpu.available() else None
    two, both = {}, {}
    if best is not None:
        pair = {f"{best}_{name}_{threads}": run
                for threads in (1, 2) for name, run in contenders(weight, best, threads).items()
                if name in ("whole", "whole_fp8_block", "dequantize")}  # fmt: skip
        two = measure(pair, weight.numel(), chosen.rounds, time.perf_counter)
        both = measure(pair, weight.numel(), chosen.rounds, time.process_time)
    ratios = {
        f"{variant}_to_{peer}": round(one[f"{variant}_whole"]["median"] / one[peer]["median"], 3)
        for variant in cpu.variants()
        for peer in ("modelopt", "compressed_tensors", "torch_eager", "memcpy")
    }
    plain, searched = errors(search=False), errors(search=True)
    result = {
        "processor": processor(),
        "torch": torch.__version__,
        "elements": weight.numel(),
        "rounds": chosen.rounds,
        "load_average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "million_elements_per_core_second": one,
        "million_elements_per_clock_second_by_threads": two,
        "million_elements_per_core_second_by_threads": both,
        "ratios_of_medians": ratios,
        "squared_error_plain": plain,
        "squared_error_search_to_plain": {name: round(searched[name] / plain[name], 4) for name in plain},
    }
    if chosen.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, number in value.items():
                print(f"  {key:32} {number}")
        else:
            print(f"{name}: {value}")


if __name__ == "__main__":
    main()
