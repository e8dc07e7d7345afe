"""Write what the tool itself knows into the README: `python docs/refresh.py`; with `--check` only say whether it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from mtpfix.report import tables

README = Path(__file__).parent.parent / "README.md"
LISTINGS = {"engines": tables.engines, "families": tables.families}
BLOCK = re.compile(r"(<!-- begin: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(text: str) -> str:
    """Return a document with the listing named in each block put into it."""

    def fill(block: re.Match[str]) -> str:
        table = LISTINGS[block[2]]().render("markdown", 0)
        return f"{block[1]}{table}{block[3]}"

    return BLOCK.sub(fill, text)


def main() -> None:
    """Refresh the README, or fail where it is stale."""
    old = README.read_text(encoding="utf-8")
    new = refreshed(old)
    if "--check" not in sys.argv:
        README.write_text(new, encoding="utf-8")
    elif new != old:
        sys.exit("README.md is stale: run `make docs`")


if __name__ == "__main__":
    main()
