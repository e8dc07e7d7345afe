"""The command line: options to calls, results to reports, outcomes to exit codes. Judges and formats nothing."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

from mtpfix.cli import check, diff, doctor, lists, patch, push, scan, verify
from mtpfix.cli.app import app
from mtpfix.errors import EXIT_OK

__all__ = ["app", "check", "diff", "doctor", "lists", "main", "patch", "push", "scan", "verify"]


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    for ending in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(ending) is signal.SIG_DFL:  # as Ctrl-C: what was begun is put away first
            signal.signal(ending, signal.default_int_handler)
    app()
    sys.exit(EXIT_OK)
