"""A wheel built from this source: what it carries, and that the library in it runs."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler"),
]

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(".*", "build", "dist", "*.so", "*.egg-info", "__pycache__", "tests", "out")
VARIANTS = {"x86_64": ("avx512", "avx2", "portable"), "aarch64": ("neon", "portable")}
USE = """
import struct, sys
sys.path.insert(0, sys.argv[1])
from mtpfix.nvfp4 import cpu
assert cpu.__file__.startswith(sys.argv[1]), cpu.__file__
packed, scales = bytearray(8), bytearray(1)
cpu.quantize(struct.pack("<16f", *range(16)), "F32", 16, 15 / 2688, packed, scales)
print(packed.hex(), scales.hex())
"""


def test_a_wheel_fits_every_python_and_holds_every_variant(tmp_path: Path) -> None:
    shutil.copytree(ROOT, tmp_path / "source", ignore=LEFT_OUT)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path)]
    subprocess.run([*command, str(tmp_path / "source")], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp311-abi3-" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        library = archive.read(next(name for name in names if name.startswith("mtpfix/nvfp4/_nvfp4.")))
        archive.extractall(tmp_path / "installed")
    assert {"mtpfix/nvfp4/nvfp4.cu", "mtpfix/nvfp4/core.h"} <= set(names)  # for the compiler of a GPU's machine
    for variant in VARIANTS.get(platform.machine(), ("portable",)):
        assert f"{variant}\0".encode() in library
    done = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path / "installed")], capture_output=True, text=True, check=True
    )
    # in units of the step 2.5 the numbers are 0, 0.4, 0.8 to 6: the codes 0 1 2 2 3 4 4 5 5 6 6 6 6 7 7 7
    assert done.stdout.split() == ["1022435465667677", "7e"]
