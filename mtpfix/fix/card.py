"""The section of a model card that tells of a repair. Knows text; whatever else the card holds stays to the byte."""

from __future__ import annotations

from collections.abc import Sequence

from mtpfix import __version__
from mtpfix.checkpoint.card import CARD_FILE
from mtpfix.errors import FormatError

_BEGIN, _END = "<!-- mtpfix -->", "<!-- /mtpfix -->"


def with_section(card: bytes | None, operations: Sequence[str], digest: str) -> bytes:
    """Return a card with our section, at its end or in the place of the one it had; None is a card not there yet.

    Raises FormatError for a card that is no text, or whose section does not end.
    """
    try:
        text = (card or b"").decode()
    except UnicodeDecodeError:
        raise FormatError(f"{CARD_FILE} is not UTF-8", "leave out --card") from None
    end_of_line = "\r\n" if "\r\n" in text else "\n"
    section = end_of_line.join(_section(operations, digest))
    before, begun, rest = text.partition(_BEGIN)
    if begun:
        _, ended, after = rest.partition(_END)
        if not ended:
            raise FormatError(f"{CARD_FILE} holds {_BEGIN} without {_END}", "leave out --card, or mend it by hand")
        return f"{before}{section}{after}".encode()
    apart = "" if not text else end_of_line if text.endswith("\n") else end_of_line * 2
    return f"{text}{apart}{section}{end_of_line}".encode()


def _section(operations: Sequence[str], digest: str) -> list[str]:
    lines = [_BEGIN, "## MTP", "", f"The MTP branch of this checkpoint was repaired with mtpfix {__version__}:", ""]
    lines += [f"- {_plain(text)}" for text in operations or ["see mtpfix.json"]]
    return [*lines, "", f"Plan: `{digest}`", _END]


def _plain(text: str) -> str:
    """Return a line of code that cannot end early, nor begin a comment or a tag."""
    return "`" + text.replace("`", "'") + "`"
