from typing import TypeAlias

# name up to the expert number, what follows it, dtype, shape as written, expert numbers, begins
Stored: TypeAlias = tuple[str, str | None, str, str, bytes | None, bytes]

# name up to the expert number, what follows it, file, expert numbers
Placed: TypeAlias = tuple[str, str | None, str, bytes | None]

def parse_header(raw: bytes, data_size: int, /) -> tuple[bytes | None, list[Stored]] | None: ...
def parse_index(raw: bytes, /) -> tuple[bytes | None, list[Placed]] | None: ...
