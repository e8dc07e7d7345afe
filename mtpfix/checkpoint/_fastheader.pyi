"""The optional compiled reader of the plain form: absent where there was no compiler, and nothing is lost but time."""

from __future__ import annotations

def parse_header(
    raw: bytes, data_size: int, /
) -> tuple[bytes | None, int, list[tuple[str, str, tuple[int, ...], bytes | None, bytes]]] | None: ...
def parse_index(raw: bytes, /) -> tuple[bytes | None, int, list[tuple[str, str, bytes | None]]] | None: ...
