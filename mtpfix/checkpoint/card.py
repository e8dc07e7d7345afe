"""What a checkpoint says of the model it was made from: the front matter of its card, and its configuration.

Knows the few lines of YAML that the Hub writes there, and takes nothing that is not the name of one repository. A card
is anyone's word: the name is for a person to look at, and nothing is read from there unasked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mtpfix.checkpoint.ref import Reference

CARD_FILE = "README.md"
LARGEST_CARD = 4_000_000
"""Bytes of a card that is read."""

_FRONT = re.compile(r"\A---[ \t]*\n(.*?)^---[ \t]*$", re.DOTALL | re.MULTILINE)
_KEY = re.compile(r"^base_model[ \t]*:[ \t]*(.*)$((?:\n[ \t]*-[ \t]+.*$)*)", re.MULTILINE)
_ITEM = re.compile(r"^[ \t]*-[ \t]+(.*)$", re.MULTILINE)
_KEYS = ("base_model", "_name_or_path")


def base_model_of(card: bytes, config: Mapping[str, Any], own: str = "") -> str:
    """Return the repository that a card, else a configuration, names as the base model, empty where neither names one.

    `own` is what the checkpoint itself is called: that is no base model.
    """
    said: list[str] = [value for key in _KEYS if isinstance(value := config.get(key), str)]
    for names in (_of_card(card), *([name] for name in said)):
        found = [name for name in names if Reference.of_repository(name) is not None and name != own]
        if len(found) == len(names) == 1:
            return found[0]
    return ""


def _of_card(card: bytes) -> Sequence[str]:
    front = _FRONT.match(card.decode("utf-8", "replace").replace("\r\n", "\n"))
    key = _KEY.search(front[1]) if front else None
    if key is None:
        return []
    inline = key[1].split(" #", 1)[0].strip()
    if inline.startswith("[") and inline.endswith("]"):
        found = inline[1:-1].split(",")
    else:
        found = [inline] if inline else _ITEM.findall(key[2])
    return [name.strip().strip("\"'") for name in found]
