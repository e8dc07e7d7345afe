"""Bytes to `Checkpoint`: the only rooms that meet hostile input."""

from __future__ import annotations

from mtpfix.checkpoint.local import open_checkpoint, read_scalars

__all__ = ["open_checkpoint", "read_scalars"]
