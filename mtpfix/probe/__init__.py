"""Asking an installed engine: its own configuration, its own loader, on this machine's CPU, in a process of its own.

`inside/` runs in the engine's interpreter; the modules here start it (`launch`), put a checkpoint before it (`stage`),
find out what an interpreter holds (`interpreter`), read its answer (`answer`) and hold it against the prediction
(`compare`). Which module inside knows an engine stands in the engine's file, under `probe`.
"""

from __future__ import annotations

from mtpfix.probe.ask import ask, observe

__all__ = ["ask", "observe"]
