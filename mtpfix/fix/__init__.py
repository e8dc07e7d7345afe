"""From findings to repairs. Today it offers them; it writes nothing."""

from __future__ import annotations

from mtpfix.fix.judge import judge

__all__ = ["judge"]
