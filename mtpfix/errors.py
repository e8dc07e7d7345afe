"""Errors a user can act on: each has a sentence, a next step, and an exit code."""

from __future__ import annotations

EXIT_OK = 0
EXIT_FINDINGS = 1
EXIT_UNABLE = 2
EXIT_NOTHING = 3
EXIT_INTERRUPTED = 130


class MtpfixError(Exception):
    """Something the user can act on: `message` says what happened, `hint` what to do next."""

    exit_code = EXIT_UNABLE

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MtpfixError):
    """The request itself cannot be understood: an unknown engine, a malformed version, a path that is not there."""


class FormatError(MtpfixError):
    """A file breaks the format it claims to follow."""


class TensorError(MtpfixError):
    """A tensor cannot be converted: its numbers, its shape or its dtype stand in the way; the message names it."""


class NothingToCheck(MtpfixError):
    """There is no checkpoint here: no safetensors file, and no index that names one."""

    exit_code = EXIT_NOTHING


class FindingsError(MtpfixError):
    """Raised by `Report.raise_if_failed`: the checkpoint has findings at or above the level asked for."""

    exit_code = EXIT_FINDINGS
