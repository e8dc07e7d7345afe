"""The kernels as NVIDIA's compilers make them, for every chip that is supported; nothing is launched."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.nvfp4.toolkits import Toolkit, install

pytestmark = pytest.mark.conformance

SOURCE = Path(__file__).parents[2] / "mtpfix" / "nvfp4" / "nvfp4.cu"
TARGETS = ("sm_80", "sm_89", "sm_90", "sm_100a", "sm_103a", "sm_120a", "sm_121a")
WITH_FP4 = TARGETS[3:]
INPUTS = ("bfloat16", "float16", "float32", "float8_blocks")
KERNELS = {
    *(f"{verb}_{kind}" for verb in ("amax", "quantize", "search") for kind in INPUTS),
    *(f"dequantize_{kind}" for kind in INPUTS[:3]),
    "global_scale",
}

COMPILE = """
import io, json, sys
from pathlib import Path
from cuda.core import Program, ProgramOptions
source, arch, out = sys.argv[1:]
source, log = Path(source), io.StringIO()
options = ProgramOptions(
    name="nvfp4.cu", arch=arch, fma=False, include_path=str(source.parent), ptxas_options=["-v"]
)
Path(out).write_bytes(Program(source.read_text(), "c++", options).compile("cubin", logs=log).code)
print(log.getvalue())
"""

PTX = """
import sys
from pathlib import Path
from cuda.bindings import nvrtc
source, arch, out = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
def check(answer):
    assert int(answer[0]) == 0, answer
    return answer[1] if len(answer) > 1 else None
program = check(nvrtc.nvrtcCreateProgram(source.read_bytes(), b"nvfp4.cu", 0, [], []))
options = [f"--gpu-architecture={arch}".encode(), b"--fmad=false", f"--include-path={source.parent}".encode()]
check(nvrtc.nvrtcCompileProgram(program, len(options), options))
text = bytearray(check(nvrtc.nvrtcGetPTXSize(program)))
check(nvrtc.nvrtcGetPTX(program, text))
out.write_bytes(bytes(text).rstrip(b"\\0"))
"""

OBTAIN = """
import json, sys
from mtpfix.errors import MtpfixError
from mtpfix.nvfp4 import cubin
for capability in json.loads(sys.argv[1]):
    try:
        got = cubin.obtain(tuple(capability))
    except MtpfixError as problem:
        print(json.dumps([problem.message, False, 0]))
    else:
        print(json.dumps([got.target.name, got.kept, len(got.code)]))
"""


@pytest.fixture(scope="session")
def toolkit() -> Toolkit:
    return install("13")


@pytest.fixture(scope="session", params=TARGETS)
def compiled(request: pytest.FixtureRequest, toolkit: Toolkit, tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    return Compiled(toolkit, request.param, tmp_path_factory.mktemp("compiled"))


class Compiled:
    """The machine code for one target, kernel by kernel, and what the assembler says of it."""

    def __init__(self, toolkit: Toolkit, target: str, folder: Path) -> None:
        self.target = target
        cubin = folder / f"{target}.cubin"
        self.log = toolkit.run(COMPILE, str(SOURCE), target, str(cubin))
        text = toolkit.disassemble(cubin)
        self.code: dict[str, list[str]] = {}
        for name in KERNELS:
            body = re.search(rf"\.text\.{name}:\n(.*?)(?=\n\t?\.section|\n//-+ \.|\Z)", text, re.DOTALL)
            assert body is not None, name
            self.code[name] = re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", body[1])

    def count(self, kernel: str, *starts: str) -> int:
        return sum(instruction.startswith(starts) for instruction in self.code[kernel])


def test_every_kernel_is_there_without_spills_or_local_memory(compiled: Compiled) -> None:
    pattern = (
        r"entry function '(\w+)'.*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
        r".*?Used (\d+) registers"
    )
    said = {name: tuple(map(int, numbers)) for name, *numbers in re.findall(pattern, compiled.log, re.DOTALL)}
    assert said.keys() == KERNELS
    for name, (stack, stores, loads, registers) in said.items():
        assert (stack, stores, loads) == (0, 0, 0), name
        assert registers <= 96, name
        assert compiled.count(name, "LDL", "STL") == 0, name
    assert "warning" not in compiled.log.lower()


def test_the_fp4_conversion_is_an_instruction_where_there_is_one(compiled: Compiled) -> None:
    for kind in INPUTS:
        for verb in ("quantize", "search"):
            conversions = sum("E2M1" in instruction for instruction in compiled.code[f"{verb}_{kind}"])
            assert (conversions > 0) == (compiled.target in WITH_FP4)


def test_fp8_is_read_by_an_instruction_where_there_is_one(compiled: Compiled) -> None:
    conversions = sum("E4M3" in instruction for instruction in compiled.code["quantize_float8_blocks"])
    assert (conversions > 0) == (compiled.target != "sm_80")


def test_memory_is_read_and_written_in_large_pieces(compiled: Compiled) -> None:
    for kind in INPUTS:
        for verb in ("amax", "quantize"):
            loads = [name for name in compiled.code[f"{verb}_{kind}"] if name.startswith("LDG") and ".128" in name]
            assert loads, (verb, kind)
    for kind in INPUTS[:3]:
        stores = [name for name in compiled.code[f"dequantize_{kind}"] if name.startswith("STG")]
        assert stores
        assert all(".128" in name for name in stores)


def test_no_multiplication_and_addition_is_fused_but_those_written_so(toolkit: Toolkit, tmp_path: Path) -> None:
    written = SOURCE.read_text().count("__fmaf_rn(")
    assert written == 2  # the correction of the reciprocal, whose fused form is what makes it exact
    for target in ("compute_80", "compute_100a"):
        ptx = tmp_path / "nvfp4.ptx"
        toolkit.run(PTX, str(SOURCE), target, str(ptx))
        kernels = dict(re.findall(r"\.entry (\w+)\((.*?)(?=\.entry|\Z)", ptx.read_text(), re.DOTALL))
        assert kernels.keys() == KERNELS
        for name, body in kernels.items():
            fused = len(re.findall(r"\b(?:fma|mad)\.\w*\.?f32", body))
            divided = len(re.findall(r"\bdiv\.rn\.f32", body))
            assert not re.search(r"\b(?:div|rcp|sqrt|ex2|lg2)\.(?:approx|full)|\.ftz", body), name
            if name.startswith(("amax", "dequantize", "global")) or name in ("quantize_float32", "search_float32"):
                assert fused == 0, name
            else:
                assert fused == 2 * 16, name  # two for each number of a block
                assert divided >= 1, name


def obtained(of: Toolkit, folder: Path, *chips: tuple[int, int]) -> list[tuple[str, bool]]:
    """Return the target that each chip gets, or why it gets none, and whether its code had been kept."""
    lines = of.run(OBTAIN, json.dumps(chips), extra={"MTPFIX_CACHE": str(folder)}).splitlines()
    return [(target, kept) for target, kept, _ in map(json.loads, lines)]


def test_each_compiler_gives_the_best_code_it_knows(toolkit: Toolkit, tmp_path: Path) -> None:
    newest = [("sm_90", False), ("sm_103a", False), ("sm_121a", False)]
    assert obtained(toolkit, tmp_path, (9, 0), (10, 3), (12, 1)) == newest
    assert obtained(toolkit, tmp_path, (9, 0), (10, 3), (12, 1)) == [(target, True) for target, _ in newest]
    (refused, _) = obtained(toolkit, tmp_path, (7, 5))[0]
    assert "compute capability 7.5" in refused
    older = install("12.8")  # what PyTorch 2.8 to 2.10 bring along
    expected = [("sm_100a", False), ("sm_100", False), ("sm_120", False)]
    assert obtained(older, tmp_path, (10, 0), (10, 3), (12, 1)) == expected
    oldest = install("12.6")  # what PyTorch 2.7 brings along; for newer chips it makes PTX, which needs a driver
    assert obtained(oldest, tmp_path, (9, 0)) == [("sm_90", False)]
