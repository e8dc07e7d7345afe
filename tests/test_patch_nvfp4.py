"""`patch --mtp nvfp4`: which bytes it writes, how experts lie then, and what it tells of errors and progress."""

from __future__ import annotations

import importlib
import io
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtpfix import patch, plan, scan
from mtpfix.errors import MtpfixError
from mtpfix.fix.operations import Unstack, from_json, to_json
from mtpfix.fix.patching import carry_out, prepare
from mtpfix.fix.repairs.repair import Wishes
from mtpfix.nvfp4 import Quantized, cpu, dequantize, quantize, quantize_group, weight_error
from tests.checkpoints import build
from tests.patching import NEWEST, bytes_of

Source = Callable[[str, str], Path]
MLP = "mtp.layers.0.mlp"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    root = tmp_path_factory.mktemp("tiny")

    def made(family: str, variant: str) -> Path:
        folder = root / family / variant
        if not folder.exists():
            build(folder, family, variant)
            for number, path in enumerate(sorted(folder.glob("*.safetensors"))):
                fill(path, number)
        return folder

    return made


def fill(path: Path, seed: int) -> None:
    """Give plain weights of the branch normally distributed numbers."""
    tensors = load_file(path)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if name.startswith("mtp.") and tensor.ndim > 1 and tensor.dtype == torch.bfloat16:
            tensors[name] = (torch.randn(tensor.shape, generator=generator) * 0.02).bfloat16()
    save_file(tensors, path, {"format": "pt"})


def tensors_of(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def stored(tensors: dict[str, Tensor], module: str) -> Quantized:
    suffixes = "weight", "weight_scale", "weight_scale_2"
    return Quantized(*(tensors[f"{module}.{suffix}"] for suffix in suffixes))


def same(first: Quantized, second: Quantized) -> bool:
    scales = [one.block_scale.view(torch.uint8) for one in (first, second)]
    return (
        torch.equal(first.packed, second.packed)
        and torch.equal(*scales)
        and torch.equal(first.global_scale, second.global_scale)
    )


@pytest.mark.parametrize("search", [False, True])
def test_what_is_fused_shares_a_scale_and_the_bytes_are_those_of_the_library(
    source: Source, tmp_path: Path, search: bool
) -> None:
    folder = source("qwen3_5_moe", "excluded-glob")
    result = patch(folder, tmp_path / "out", engines=[NEWEST], mtp="nvfp4", input_scale=1.0, scale_search=search)
    old, new = tensors_of(folder), tensors_of(tmp_path / "out")
    groups = [[f"mtp.layers.0.self_attn.{part}_proj" for part in "qkv"], ["mtp.layers.0.self_attn.o_proj"]]
    groups += [[f"{MLP}.experts.{n}.{part}_proj" for part in ("gate", "up")] for n in range(4)]
    for group in groups:
        wanted = quantize_group([old[f"{module}.weight"] for module in group], scale_search=search)
        assert all(same(stored(new, module), one) for module, one in zip(group, wanted, strict=True)), group
    assert result.written is not None
    errors = result.written.errors
    assert bool(errors) == search
    for name, error in errors.items():
        module = name.removesuffix(".weight")
        mine = stored(new, module)
        assert error.relative[1] == pytest.approx(weight_error(old[name], mine), rel=1e-6)
        plain = quantize(old[name], global_scale=mine.global_scale)
        assert error.relative[0] == pytest.approx(weight_error(old[name], plain), rel=1e-6)
    if search:
        assert len(errors) == 4 + 3 * 4 + 3
        assert all(error.chosen < error.plain for error in errors.values())


def test_stacked_experts_are_written_one_by_one(source: Source, tmp_path: Path) -> None:
    folder = source("qwen3_5_moe", "fused-experts")
    before = bytes_of(folder)
    result = patch(folder, tmp_path / "out", engines=[NEWEST], mtp="nvfp4", input_scale=1.0)
    assert result.exit_code == 0
    assert bytes_of(folder) == before
    old, new = tensors_of(folder), tensors_of(tmp_path / "out")
    stacked, down = old[f"{MLP}.experts.gate_up_proj"], old[f"{MLP}.experts.down_proj"]
    assert not {f"{MLP}.experts.gate_up_proj", f"{MLP}.experts.down_proj"} & new.keys()
    for expert, (both, back) in enumerate(zip(stacked, down, strict=True)):
        wanted = *quantize_group(both.chunk(2)), quantize(back)
        for part, one in zip(("gate", "up", "down"), wanted, strict=True):
            assert same(stored(new, f"{MLP}.experts.{expert}.{part}_proj"), one)
    report = scan(tmp_path / "out", engines=[NEWEST])
    assert report.stored[f"{MLP}.experts.{{}}.gate_proj"].format == "nvfp4"
    for row in report.engines:
        assert {row.prediction.target.verdict, row.prediction.draft.verdict} == {"loads"}


def test_a_grafted_branch_is_packed_from_the_base_model(source: Source, tmp_path: Path) -> None:
    folder, base = source("qwen3_5_moe", "missing"), source("qwen3_5_moe", "fused-experts")
    wishes: dict[str, Any] = {"mtp": "nvfp4", "graft": base, "input_scale": 1.0}
    result = patch(folder, tmp_path / "out", engines=[NEWEST], **wishes)
    assert result.exit_code == 0
    old, new = tensors_of(base), tensors_of(tmp_path / "out")
    for expert, both in enumerate(old[f"{MLP}.experts.gate_up_proj"]):
        for part, one in zip(("gate", "up"), quantize_group(both.chunk(2)), strict=True):
            assert same(stored(new, f"{MLP}.experts.{expert}.{part}_proj"), one)
    assert torch.equal(new["mtp.fc.weight"], old["mtp.fc.weight"])


def test_experts_stay_stacked_where_their_family_says_so(source: Source) -> None:
    found = plan(source("step3p5", "excluded-glob"), engines=["vllm==0.32.0"], mtp="nvfp4", input_scale=1.0)
    assert found.complete
    assert not [one for one in found.operations if isinstance(one, Unstack)]


def test_an_fp8_branch_is_packed_from_its_own_bytes(source: Source, tmp_path: Path) -> None:
    folder = source("qwen3_5_moe", "branch-fp8")
    result = patch(folder, tmp_path / "out", engines=[NEWEST], mtp="nvfp4", input_scale=1.0)
    assert result.exit_code == 0
    old, new = tensors_of(folder), tensors_of(tmp_path / "out")
    name = "mtp.layers.0.self_attn.o_proj"
    assert old[f"{name}.weight"].dtype == torch.float8_e4m3fn
    assert same(stored(new, name), quantize(old[f"{name}.weight"], scale_inv=old[f"{name}.weight_scale_inv"].float()))
    assert f"{name}.weight_scale_inv" not in new


@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_a_weight_that_is_not_finite_is_named_and_nothing_is_left(tmp_path: Path, number: float) -> None:
    folder, name = tmp_path / "source", "mtp.layers.0.self_attn.o_proj.weight"
    build(folder, "qwen3_5_moe", "excluded-glob")
    path = next(path for path in folder.glob("*.safetensors") if name in load_file(path))
    tensors = load_file(path)
    tensors[name][3, 5] = number
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(MtpfixError, match=rf"tensor {re.escape(name)} holds 1 number .* at \[3, 5\]") as caught:
        patch(folder, tmp_path / "out", engines=[NEWEST], mtp="nvfp4", input_scale=1.0)
    assert caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_plan_keeps_what_was_asked_for(source: Source) -> None:
    folder = source("qwen3_5_moe", "fused-experts")
    found = plan(folder, engines=[NEWEST], mtp="nvfp4", input_scale=1.0, scale_search=True)
    document = json.loads(json.dumps(to_json(found.operations)))
    assert from_json(document) == found.operations
    assert any(item.get("scale_search") is True for item in document)


def test_progress_reaches_the_size_of_the_result(source: Source, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    prepared = prepare(str(source("qwen3_5_moe", "excluded-glob")), [NEWEST], Wishes("nvfp4", 1.0))
    carry_out(prepared, tmp_path / "out", progress=lambda done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1] > 0
    assert sorted(told) == told


def test_the_bar_tells_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    frame = importlib.import_module("mtpfix.cli.app")  # the package has an attribute of that name
    monkeypatch.setattr(frame, "PATIENCE", -1.0)
    for name in ("AI_AGENT", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with frame.progress_bar(wanted=True, doing="writing", of_bytes=True) as tell:
        assert tell is not None
        for step in range(1, 6):
            tell(step * 10_000_000, 100_000_000)
            time.sleep(0.15)
    shown = terminal.getvalue()
    assert "writing" in shown
    assert "MB/s" in shown
    assert "50.0/100.0 MB" in shown
    assert "0:00:0" in shown


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(source: Source, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(MtpfixError, match="PyTorch sees no CUDA device"):
        patch(
            *(source("qwen3_5_moe", "excluded-glob"), tmp_path / "out"),
            engines=[NEWEST], mtp="nvfp4", input_scale=1.0, device="cuda",
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not cpu.available(), reason=f"the CPU library is not built: {cpu.missing}")
def test_packing_needs_no_torch(source: Source, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from mtpfix import patch; "
        f"patch(sys.argv[1], sys.argv[2], engines=['{NEWEST}'], mtp='nvfp4', input_scale=1.0)"
    )
    arguments = [str(source("qwen3_5_moe", "excluded-glob")), str(tmp_path / "out")]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, timeout=60)
    assert (tmp_path / "out" / "mtpfix.json").exists()


@pytest.mark.slow
def test_ctrl_c_while_packing_leaves_the_source_and_no_result_and_is_resumed(source: Source, tmp_path: Path) -> None:
    folder = tmp_path / "large"
    build(folder, "qwen3_5_moe", "excluded-glob")
    path = next(
        path for path in folder.glob("*.safetensors") if any(name.startswith("mtp.") for name in load_file(path))
    )
    fill(path, 0)
    before = bytes_of(folder)
    arguments = ["patch", str(folder), "-o", str(tmp_path / "out"), "--for", NEWEST, "--mtp", "nvfp4"]
    arguments += ["--input-scale", "1", "--scale-search"]
    slow = (
        "import sys, time; from mtpfix.nvfp4 import workspace; quantize = workspace.NativeWorkspace.quantize\n"
        "def slowly(*a, **k): time.sleep(0.2); return quantize(*a, **k)\n"
        "workspace.NativeWorkspace.quantize = slowly; from mtpfix.cli import main; sys.exit(main())"
    )
    command = [sys.executable, "-c", slow, *arguments]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    part = tmp_path / ".mtpfix-stage-out" / "part"
    deadline = time.monotonic() + 60
    while not part.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 130, said
    assert "interrupted" in said
    assert "Traceback" not in said
    assert bytes_of(folder) == before
    assert not (tmp_path / "out").exists()
    done = subprocess.run([sys.executable, "-m", "mtpfix", *arguments], capture_output=True, text=True, check=True)
    assert "of it)" in done.stdout
    whole = tensors_of(tmp_path / "out")
    again = tmp_path / "again"
    patch(folder, again, engines=[NEWEST], mtp="nvfp4", input_scale=1.0, scale_search=True)
    assert all(torch.equal(tensor.view(torch.uint8), whole[name].view(torch.uint8))
               for name, tensor in tensors_of(again).items() if tensor.ndim)  # fmt: skip
    first, second = ({path.name for path in folder.iterdir()} for folder in (tmp_path / "out", again))
    assert first == second
    assert dequantize(*stored(whole, "mtp.layers.0.self_attn.o_proj")).isfinite().all()
