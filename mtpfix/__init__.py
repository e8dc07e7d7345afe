"""Find out whether a checkpoint's MTP branch will load, in which engine releases, and why not."""

from __future__ import annotations

__version__ = "0.1.0"
