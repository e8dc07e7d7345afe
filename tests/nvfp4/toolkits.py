"""CUDA compilers and disassemblers from published packages, in an environment made for the tests; none needs a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("cuda-core", "cuda-bindings", "nvidia-cuda-nvrtc", "nvidia-cuda-nvdisasm")


@dataclass(frozen=True)
class Toolkit:
    python: Path
    nvdisasm: Path

    def run(self, script: str, *arguments: str, extra: dict[str, str] | None = None) -> str:
        """Run a script in the environment, which has NVRTC, and return what it prints."""
        done = subprocess.run(
            [str(self.python), "-c", script, *arguments],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), **(extra or {})},
        )
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def disassemble(self, cubin: Path) -> str:
        """Return the machine code of a cubin as text."""
        done = subprocess.run([str(self.nvdisasm), str(cubin)], capture_output=True, text=True, check=True)
        return done.stdout


def install(version: str) -> Toolkit:
    """Return a toolkit of a version such as "13" or "12.8", installed on the first call and kept between runs.

    Versions differ in the chips they know. MTPFIX_TEST_TOOLKITS names the folder they are kept in.
    """
    root = Path(os.environ.get("MTPFIX_TEST_TOOLKITS") or Path(tempfile.gettempdir()) / "mtpfix-toolkits")
    folder = root / f"cuda-{version}-{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / "bin" / "python"
    if not (folder / "done").exists():
        venv.create(folder, with_pip=True, clear=True)
        major, suffix = version.partition(".")[0], "" if version.startswith("13") else "-cu12"
        packages = [
            "cuda-core",
            f"cuda-bindings=={major}.*",
            f"nvidia-cuda-nvrtc{suffix}=={version}.*",
            "nvidia-cuda-nvdisasm==13.*",  # of any version: it reads what every compiler writes
        ]
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *packages]
        subprocess.run(pip, check=True, capture_output=True, text=True)
        (folder / "done").touch()
    (nvdisasm,) = folder.glob("lib/python*/site-packages/nvidia/*/bin/nvdisasm")
    return Toolkit(python, nvdisasm)
