"""Which code converts tensors on this machine, and why: the CUDA kernels, the compiled CPU library, or plain torch.

All give the same bytes. Knows the order of preference; imports torch only where it is installed. `mtpfix doctor`
prints what `survey` returns.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal

from mtpfix.nvfp4 import cpu

if TYPE_CHECKING:
    from mtpfix.nvfp4.tensors import Path

Place = Literal["cuda", "cpu"]
"""Where tensors lie that are converted: in a GPU's memory or in main memory."""

CUDA = "mtpfix.nvfp4.cuda"
"""The module of the CUDA kernels: a path (see `tensors.Path`) with a function `survey() -> Route`."""


@dataclass(frozen=True, slots=True)
class Route:
    """One way to convert tensors: `runs` says whether it can here, `why` says in a sentence why it can or cannot.

    `place` is where the tensors lie; `title` names the code, and the chip or variant it runs on.
    """

    place: Place
    name: Literal["cuda", "library", "eager"]
    title: str
    runs: bool
    why: str


@dataclass(frozen=True, slots=True)
class Survey:
    """All routes in the order of preference, and torch's version, None where it is not installed."""

    torch: str | None
    routes: tuple[Route, ...]

    def chosen(self, place: Place) -> Route | None:
        """Return the route that converts tensors there; None where nothing can."""
        return next((route for route in self.routes if route.place == place and route.runs), None)


def survey() -> Survey:
    """Find out what runs here."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = None
    return Survey(torch, (*cuda_routes(torch), library_route(), eager_route(torch)))


def library_route() -> Route:
    """Say whether the compiled library runs, and in which variant."""
    if not cpu.available():
        why = f"it is not built ({cpu.missing}): reinstall mtpfix where a C compiler is, or from a wheel"
        return Route("cpu", "library", "CPU library", runs=False, why=why)
    best, used = cpu.variants()[0], cpu.variant()
    why = f"the best of what this processor can run: {', '.join(cpu.variants())}"
    if used != best:
        why = f"MTPFIX_NVFP4_VARIANT asks for it; the best would be {best}"
    return Route("cpu", "library", f"CPU library, {used}", runs=True, why=why)


def eager_route(torch: str | None) -> Route:
    """Say whether plain torch can do the work."""
    if torch is None:
        why = "PyTorch is not installed: pip install 'mtpfix[quantize]'"
        return Route("cpu", "eager", "plain PyTorch", runs=False, why=why)
    return Route("cpu", "eager", f"plain PyTorch {torch}", runs=True, why="it needs nothing else, and is the slowest")


def cuda_routes(torch: str | None) -> tuple[Route, ...]:
    """Say what converts tensors on a GPU: our kernels, else plain torch there."""
    if torch is None:
        return (Route("cuda", "cuda", "CUDA kernels", runs=False, why="PyTorch is not installed"),)
    import torch as library

    if not library.cuda.is_available():
        return (Route("cuda", "cuda", "CUDA kernels", runs=False, why="PyTorch sees no CUDA device"),)
    eager = Route("cuda", "eager", f"plain PyTorch {torch} on the GPU", runs=True, why="it needs nothing else")
    if find_spec(CUDA) is None:
        return (Route("cuda", "cuda", "CUDA kernels", runs=False, why="this version has none"), eager)
    kernels: Route = import_module(CUDA).survey()
    return (kernels, eager)


def path_for(place: str) -> Path:
    """Return the module that converts tensors on a kind of device (`torch.device.type`)."""
    from mtpfix.nvfp4 import native, reference

    if place == "cpu":
        return native if cpu.available() else reference
    if place == "cuda" and find_spec(CUDA) is not None:
        kernels = import_module(CUDA)
        if kernels.survey().runs:
            path: Path = kernels
            return path
    return reference
