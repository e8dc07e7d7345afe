"""Reports: one result, written for machines (`json_v1`) or for people (`text`). Judges nothing."""

from __future__ import annotations
