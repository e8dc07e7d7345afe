"""What runs inside an engine's interpreter, tried on small models of torch alone."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import mtpfix.probe

INSIDE = Path(mtpfix.probe.__file__).parent / "inside"


def test_nothing_inside_imports_mtpfix_or_anything_beside_torch_transformers_and_an_engine() -> None:
    allowed = {*sys.stdlib_module_names, "torch", "transformers", "packaging", "vllm", "sglang"}
    # packaging is a requirement of transformers
    for path in INSIDE.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
        for node in ast.walk(tree):
            names = [one.name for one in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            assert {name.partition(".")[0] for name in names} <= allowed, path.name


def test_the_probe_shows_its_neighbours_to_nobody(tmp_path: Path) -> None:
    (tmp_path / "vllm").mkdir()
    (tmp_path / "vllm" / "__init__.py").write_text(
        "import sys\nraise ImportError([n for n in ('watch', 'mtpfix') if __import__('importlib').util.find_spec(n)])"
    )
    out = tmp_path / "out"
    command = [sys.executable, str(INSIDE / "start.py"), "vllm_load", "--out", str(out), "nowhere"]
    subprocess.run(command, check=True, cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, timeout=60)
    assert "ImportError: []" in out.read_text() or "mtpfix" in out.read_text()  # mtpfix where it is installed there
    assert "watch" not in out.read_text()


STARTER = """
import subprocess, sys, time
subprocess.Popen([sys.executable, *sys.argv[1:]])
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_an_engine_does_not_outlive_the_process_that_asked_it(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "vllm.py").write_text(f"file = open({str(fifo)!r}, 'w')\nimport time\ntime.sleep(60)")
    probe = [str(INSIDE / "start.py"), "vllm_load", "--out", str(tmp_path / "out"), "nowhere"]
    starter = subprocess.Popen([sys.executable, "-c", STARTER, *probe], env={"PYTHONPATH": str(tmp_path)})
    with fifo.open() as alive:  # the engine is being imported, and holds the other end as long as it lives
        starter.kill()
        starter.wait()
        begun = time.monotonic()
        assert alive.read() == ""
    assert time.monotonic() - begun < 30


ABSENT = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
from mtpfix.probe.inside.absent import stand_in, stand_in_with_kinds
from mtpfix.probe.inside.patches import PATCHES
stand_in(("json", "a_package_that_is_not_there", "broken_package"))
stand_in_with_kinds("kinds_of_nothing", "Kind", ("F32", "F16"))
from a_package_that_is_not_there.deep.down import something, Base
from broken_package import kernel
from kinds_of_nothing import Kind
import json
class Mine(Base): pass
@something
def untouched(): return 7
assert untouched() == 7 and list(something) == [] and something.a[0](1, b=2) is not None
assert Kind.F16 == 1 and json.loads("3") == 3 and not hasattr(something, "__wrapped__")
assert "broken_package.part" not in sys.modules
print(*sorted(line.partition(":")[0] for line in PATCHES))
"""


def test_packages_that_are_missing_or_broken_stand_for_anything_and_are_listed(tmp_path: Path) -> None:
    (tmp_path / "broken_package").mkdir()
    (tmp_path / "broken_package" / "part.py").write_text("")
    (tmp_path / "broken_package" / "__init__.py").write_text(
        "from . import part\nraise OSError('libcuda.so.1: cannot open shared object file')"
    )
    command = [sys.executable, "-c", ABSENT, str(tmp_path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["a_package_that_is_not_there", "broken_package", "kinds_of_nothing"]


torch = pytest.importorskip("torch")
from mtpfix.probe.inside.coverage import covers  # noqa: E402
from mtpfix.probe.inside.hollow import Arena  # noqa: E402
from mtpfix.probe.inside.sglang_leaves import one_thread  # noqa: E402
from mtpfix.probe.inside.sglang_load import joined  # noqa: E402
from mtpfix.probe.inside.watch import Watch, mark_filled, watch_writes  # noqa: E402


@pytest.mark.parametrize(
    ("whole", "regions", "full"),
    [
        ((0, (100, 64), (64, 1)), {(0, (30, 64), (64, 1)), (1920, (70, 64), (64, 1))}, True),
        ((0, (100, 64), (64, 1)), {(0, (30, 64), (64, 1)), (1984, (69, 64), (64, 1))}, False),
        ((0, (100, 64), (64, 1)), {(0, (64, 100), (1, 64))}, True),
        ((0, (4,), (1,)), {(i, (), ()) for i in range(4)}, True),
        ((0, (4,), (1,)), {(i, (), ()) for i in range(3)}, False),
        ((0, (8, 2, 50, 64), (6400, 3200, 64, 1)), {(6400 * i, (100, 64), (64, 1)) for i in range(8)}, True),
        ((0, (6, 4), (4, 1)), {(0, (6, 2), (4, 1)), (2, (6, 2), (4, 1))}, True),
        ((0, (6, 4), (4, 1)), {(0, (6, 2), (4, 1)), (3, (6, 1), (4, 1))}, False),
        # a stack of experts with 2^40 numbers, one region for each half of each
        ((0, (1 << 10, 1 << 30), (1 << 30, 1)), {(i << 29, (1 << 29,), (1,)) for i in range(1 << 11)}, True),
        ((0, (1 << 10, 1 << 30), (1 << 30, 1)), {(i << 29, (1 << 29,), (1,)) for i in range((1 << 11) - 1)}, False),
    ],
)
def test_coverage(whole: Any, regions: Any, full: bool) -> None:
    assert covers(whole, regions) is full


class Layer(torch.nn.Module):  # type: ignore[misc,name-defined]
    """A layer with the parameters of packed weights, as engines make them."""

    def __init__(self, rows: int, columns: int) -> None:
        super().__init__()

        def parameter(data: Any) -> Any:
            return torch.nn.Parameter(data, requires_grad=False)

        self.weight = parameter(torch.empty(rows, columns // 2, dtype=torch.uint8))
        self.weight_scale = parameter(torch.full((rows, columns // 16), float("nan")))
        self.weight_scale_2 = parameter(torch.zeros(2))

    def load_half(self, half: int, weight: Any, scale: Any) -> None:
        rows = self.weight.shape[0] // 2
        self.weight.data.narrow(0, half * rows, rows).copy_(weight)
        self.weight_scale.data[half * rows : (half + 1) * rows] = scale
        self.weight_scale_2.data[half] = 0.5

    def is_loaded(self) -> bool:
        return not bool(torch.isnan(self.weight_scale.float()).any())


def load(limit: int | None, rows: int, columns: int, halves: tuple[int, ...]) -> tuple[Watch, bool]:
    """Build and load a layer; return what was seen, and whether the layer itself thinks that it was loaded."""
    watch = Watch(Arena(limit))
    with watch_writes(watch):
        layer = Layer(rows, columns)
        watch.built(layer)
        for half in halves:
            layer.load_half(
                half,
                torch.empty(rows // 2, columns // 2, dtype=torch.uint8),
                torch.ones(rows // 2, columns // 16),
            )
        watch.measure()
        return watch, layer.is_loaded()


@pytest.mark.parametrize("limit", [None, 16, 1 << 16])
@pytest.mark.parametrize(
    ("halves", "unwritten", "partial"),
    [
        ((0, 1), [], []),
        ((1,), [], ["weight", "weight_scale", "weight_scale_2"]),
        ((), ["weight", "weight_scale", "weight_scale_2"], []),
    ],
)
def test_what_was_not_written_is_known_with_and_without_memory(
    limit: int | None, halves: tuple[int, ...], unwritten: list[str], partial: list[str]
) -> None:
    watch, loaded = load(limit, 64, 128, halves)
    assert sorted(watch.unwritten) == unwritten
    assert sorted(watch.partial) == partial
    assert loaded is (halves == (0, 1))


def test_a_layer_of_terabytes_takes_no_memory() -> None:
    watch, loaded = load(1 << 16, 1 << 20, 1 << 22, (0, 1))  # 2 TB of weights, and as many of scales
    assert loaded
    assert not watch.unwritten
    assert not watch.partial
    status = Path("/proc/self/status")
    if status.exists():
        kept = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
        assert int(kept.split()[1]) < 2_000_000


@pytest.mark.parametrize("limit", [None, 16])
def test_a_shape_that_does_not_fit_raises_what_torch_raises(limit: int | None) -> None:
    with pytest.raises(RuntimeError, match=r"The size of tensor a \(64\) must match the size of tensor b \(128\)"):  # noqa: SIM117
        with watch_writes(Watch(Arena(limit))):
            torch.empty(64, 64).copy_(torch.empty(64, 128))


@pytest.mark.parametrize(("padding", "partial"), [(32, []), (31, ["weight"])])
def test_rows_that_pad_a_weight_are_not_missed(padding: int, partial: list[str]) -> None:
    watch = Watch(Arena(16))
    with watch_writes(watch):
        layer = Layer(64, 128)
        watch.built(layer)
        watch.padding = {"weight": padding}
        layer.load_half(0, torch.empty(32, 64, dtype=torch.uint8), torch.ones(32, 8))
        watch.measure()
    assert [name for name in watch.partial if name == "weight"] == partial


def test_numbers_of_another_kind_are_called_misread() -> None:
    watch = Watch(Arena(16))
    with watch_writes(watch):
        layer = Layer(64, 128)
        watch.built(layer)
        layer.weight.data.copy_(torch.ones(64, 64, dtype=torch.bfloat16))
    assert watch.misread == {"weight": "bfloat16 read as uint8"}


@pytest.mark.parametrize(
    ("parts", "misread"),
    [([(0, 4)], {"weight": "only a part of the tensor read"}), ([(0, 4), (4, 8)], {}), ([(0, 8)], {})],
)
def test_a_tensor_of_which_only_a_part_is_copied_is_called_misread(
    parts: list[tuple[int, int]], misread: dict[str, str]
) -> None:
    watch, model = Watch(Arena(None)), torch.nn.Module()
    with watch_writes(watch):
        model.weight = torch.nn.Parameter(torch.empty(8, 2))
        watch.built(model)
        for _, tensor in watch.tap([("weight", torch.ones(9, 2)[:8]), ("other", torch.ones(3))]):
            if len(tensor) == 8:
                for begin, end in parts:
                    model.weight.data[begin:end].copy_(tensor[begin:end])
    assert watch.misread == misread


def test_a_tensor_that_the_engine_filled_up_with_zeros_is_called_misread() -> None:
    watch, model = Watch(Arena(None)), torch.nn.Module()
    with watch_writes(watch):
        model.weight = torch.nn.Parameter(torch.empty(8, 2))
        model.other = torch.nn.Parameter(torch.empty(8, 2))
        watch.built(model)
        for _, tensor in watch.tap([("weight", torch.ones(4, 2))]):
            filled = torch.cat([tensor, torch.zeros(4, 2)])
            model.weight.data.copy_(mark_filled(filled))
            model.other.data.copy_(torch.ones(8, 2))
        watch.measure()
    assert watch.misread == {"weight": "filled with zeros where too little is stored"}


def test_small_results_of_large_tensors_are_computed() -> None:
    with watch_writes(Watch(Arena(1 << 10))):
        assert float(torch.zeros(1 << 12).max()) == 0.0
        small = torch.full((4,), 3.0)
        assert float(small.sum()) == 12.0
        assert torch.cat([torch.zeros(1 << 20), torch.zeros(1 << 20)]).shape == (1 << 21,)


def test_a_pool_of_threads_works_in_the_calling_one_and_remembers_the_tensor_that_failed() -> None:
    import concurrent.futures
    import threading

    watch, seen = Watch(), []
    real = concurrent.futures.ThreadPoolExecutor

    def copy(number: int) -> int:
        seen.append(threading.current_thread() is threading.main_thread())
        if number == 2:
            raise KeyError("third")
        return number

    with one_thread(watch), concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        weights = watch.tap([(str(number), number) for number in range(3)])
        futures = [pool.submit(copy, number) for _, number in weights]
        watch.tensor = "another"
        done = [future.exception() or future.result() for future in concurrent.futures.as_completed(futures)]
    assert concurrent.futures.ThreadPoolExecutor is real
    assert seen == [True, True, True]
    assert done[:2] == [0, 1]
    assert isinstance(done[2], KeyError)
    assert done[2].while_loading == "2"  # type: ignore[attr-defined]


def test_drafts_that_are_loaded_one_by_one_are_told_as_one() -> None:
    def draft(verdict: str, unwritten: list[str], untaken: list[str]) -> dict[str, Any]:
        return {"verdict": verdict, "unwritten": unwritten, "partial": [], "misread": {}, "untaken": untaken}

    first, second = draft("loads", [], ["a", "b"]), draft("silent", ["x"], ["b", "c"])
    found = joined([first, second])
    assert (found["verdict"], found["unwritten"], found["untaken"]) == ("silent", ["x"], ["b"])
    assert joined([first, draft("fails", [], [])])["verdict"] == "fails"
    assert joined([first]) is first


LAYERED = """
from mtpfix.probe.inside.configuration import LAYERED, of_blocks
blocks = [{"block_type": "mamba"}, {"block_type": "moe", "n_routed_experts": 4}]
branch = [{"block_type": "attention"}, {"block_type": "moe", "n_routed_experts": 2}]
known = LAYERED["nemotron_h_puzzle"]
print(of_blocks({"block_configs": blocks, "mtp_block_configs": branch}, known))
print(of_blocks({"block_configs": None}, known))
"""


def test_what_published_classes_make_of_the_keys_of_each_layer_is_made_of_them() -> None:
    done = subprocess.run([sys.executable, "-c", LAYERED], check=True, capture_output=True, text=True, timeout=60)
    assert [ast.literal_eval(line) for line in done.stdout.splitlines()] == [
        {"hybrid_override_pattern": "ME", "mtp_hybrid_override_pattern": "*E", "mtp_n_routed_experts": 2},
        {},
    ]
