"""Find out whether a checkpoint's MTP branch will load, in which engine releases, and why not.

from mtpfix import scan

scan("path/to/checkpoint", engines=["vllm>=0.20"]).raise_if_failed()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtpfix.api import Patched, patch, plan, scan, verify
    from mtpfix.errors import FindingsError, MtpfixError
    from mtpfix.fix.plan import Plan
    from mtpfix.model import Finding, Fix, Report, Verification

__version__ = "0.1.0"

__all__ = [
    "Finding",
    "FindingsError",
    "Fix",
    "MtpfixError",
    "Patched",
    "Plan",
    "Report",
    "Verification",
    "__version__",
    "patch",
    "plan",
    "scan",
    "verify",
]

_HOMES = {
    "Patched": "mtpfix.api",
    "patch": "mtpfix.api",
    "plan": "mtpfix.api",
    "scan": "mtpfix.api",
    "verify": "mtpfix.api",
    "Plan": "mtpfix.fix.plan",
    "Finding": "mtpfix.model",
    "Fix": "mtpfix.model",
    "Report": "mtpfix.model",
    "Verification": "mtpfix.model",
    "FindingsError": "mtpfix.errors",
    "MtpfixError": "mtpfix.errors",
}


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for, so that `mtpfix --help` stays fast."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
