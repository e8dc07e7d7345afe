"""The CUDA kernels as machine code: for which chip, by which compiler, and where it is kept between runs.

Compiles `nvfp4.cu` at run time with NVRTC, by way of cuda-core, which needs no GPU for it. Knows nothing of tensors and
launches nothing.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtpfix.errors import MtpfixError

FOLDER = Path(__file__).parent
SOURCES = (FOLDER / "nvfp4.cu", FOLDER / "core.h")

OLDEST = (8, 0)
"""The oldest chip the source compiles for: BF16 conversions begin there."""

SPECIFIC = (10, 0)
"""From here on a target with the suffix `a` has the FP4 conversion instruction."""

DIGEST = 32
"""Bytes of the SHA-256 in front of a kept file's machine code."""


@dataclass(frozen=True, slots=True)
class Target:
    """What NVRTC is asked for: `name` is `sm_90`, `sm_100a`, … (`cubin`) or `compute_90` (`ptx`, for the driver)."""

    name: str
    kind: Literal["cubin", "ptx"] = "cubin"


@dataclass(frozen=True, slots=True)
class Cubin:
    """Compiled kernels, and whether they were kept from an earlier run."""

    target: Target
    code: bytes
    kept: bool


def targets_for(capability: tuple[int, int]) -> tuple[Target, ...]:
    """Return what runs on a chip of this compute capability, the best first.

    Its own code; that of the first chip of its generation, which it runs as it is; and, for a compiler that knows
    nothing of the generation, the newest PTX that such compilers know, which the driver translates. The last two, and
    a target without suffix, lack the FP4 conversion instruction: the kernels then round in software, to the same bytes.
    """
    major, minor = capability
    own = [f"sm_{major}{minor}", *([f"sm_{major}0"] if minor else [])]
    if capability >= SPECIFIC:
        own.insert(0, f"sm_{major}{minor}a")
    older = [f"compute_{name}" for name in ("90", "80") if (int(name[:-1]), int(name[-1])) < capability]
    return (*(Target(name) for name in own), *(Target(name, "ptx") for name in older))


def obtain(capability: tuple[int, int]) -> Cubin:
    """Return the kernels for a chip: those kept on disk, else compiled now and then kept.

    Raises MtpfixError for a chip that is too old, and where nothing can compile for it; ImportError without cuda-core.
    """
    if capability < OLDEST:
        chip, oldest = (f"{major}.{minor}" for major, minor in (capability, OLDEST))
        raise MtpfixError(f"this GPU has compute capability {chip}; the kernels need {oldest}", "use the CPU")
    version = compiler_version()
    refused: list[str] = []
    for target in targets_for(capability):
        place = cache_folder() / f"{key_of(target, version)}.{target.kind}"
        code = read_kept(place)
        if code is not None:
            return Cubin(target, code, kept=True)
        compiled = compile_for(target)
        if compiled is not None:
            keep(place, compiled)
            return Cubin(target, compiled, kept=False)
        refused.append(target.name)
    raise MtpfixError(
        f"NVRTC {version[0]}.{version[1]} compiles for none of {', '.join(refused)}",
        "install a newer nvidia-cuda-nvrtc, as a newer PyTorch brings it",
    )


def compiler_version() -> tuple[int, int]:
    """Return NVRTC's version. Raises ImportError without cuda-core, MtpfixError where NVRTC itself is missing."""
    from cuda.bindings import nvrtc

    try:
        error, major, minor = nvrtc.nvrtcVersion()
    except (RuntimeError, OSError, ImportError) as problem:  # what the loader of shared libraries raises
        raise MtpfixError(f"NVRTC cannot be loaded: {first_line(problem)}", "pip install nvidia-cuda-nvrtc") from None
    if int(error):
        raise MtpfixError(f"NVRTC does not work: error {int(error)}", "reinstall nvidia-cuda-nvrtc")
    return int(major), int(minor)


def compile_for(target: Target) -> bytes | None:
    """Return the kernels' code for a target, None where this NVRTC does not know it. Raises MtpfixError otherwise."""
    from cuda.core import Program, ProgramOptions

    options = ProgramOptions(name="nvfp4.cu", arch=target.name, fma=False, include_path=str(FOLDER))
    try:
        compiled = Program(SOURCES[0].read_text(encoding="utf-8"), "c++", options).compile(target.kind)
    except Exception as problem:
        text = str(problem)
        if "--gpu-architecture" in text or "--nv_arch" in text or "INVALID_OPTION" in text:
            return None
        raise MtpfixError(
            f"NVRTC cannot compile the kernels for {target.name}: {first_line(problem)}",
            "report this, with the versions of cuda-core and nvidia-cuda-nvrtc; the CPU does the same work",
        ) from problem
    code = compiled.code
    return code if isinstance(code, bytes) else code.encode()


# -------------------------------------------------------------------------------------------- what is kept


def cache_folder() -> Path:
    """Return where compiled kernels are kept: MTPFIX_CACHE, else the user's cache folder."""
    given = os.environ.get("MTPFIX_CACHE")
    if given:
        return Path(given) / "nvfp4"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtpfix" / "nvfp4"


def key_of(target: Target, version: tuple[int, int]) -> str:
    """Return the name under which code is kept: it changes with the sources, the target and the compiler."""
    digest = hashlib.sha256(f"{target.name} {target.kind} {version[0]}.{version[1]}".encode())
    for source in SOURCES:
        digest.update(b"\0" + source.read_bytes())
    return digest.hexdigest()[:DIGEST]


def read_kept(place: Path) -> bytes | None:
    """Return code that was kept, None where there is none or it was damaged."""
    try:
        content = place.read_bytes()
    except OSError:
        return None
    code = content[DIGEST:]
    return code if code and hashlib.sha256(code).digest() == content[:DIGEST] else None


def keep(place: Path, code: bytes) -> None:
    """Keep code for the next run; readers see all of it or nothing. Where that is not possible, do without."""
    temporary = None
    try:
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=place.parent, prefix=".new-")
        with os.fdopen(descriptor, "wb") as file:
            file.write(hashlib.sha256(code).digest() + code)
        Path(temporary).replace(place)
    except OSError:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def first_line(problem: BaseException) -> str:
    """Return what an exception says, in one line."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [type(problem).__name__])[0]
