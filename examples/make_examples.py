"""Make example checkpoints to try `mtpfix` on: `python examples/make_examples.py FOLDER`.

Published shapes, names, shards and exclude lists, a few hundred gigabytes in appearance: the shards are sparse files,
which hold real headers and no weights, so that all of them together take about 300 MB. Needs nothing but Python.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.checkpoints import build


@dataclass(frozen=True)
class Example:
    """One example: the folder it lies in, what a scan of it shows, and what it is made of."""

    name: str
    shows: str
    family: str
    variant: str
    branch_file: str | None = None


EXAMPLES = (
    Example(
        "qwen3.5-397b-nvfp4",
        "`mtp.layers.0*` is listed, `mtp.fc` is not: vLLM fails up to 0.19.1 and loads from 0.20.0",
        "qwen3_5_moe",
        "published",
    ),
    Example(
        "qwen3.5-397b-nvfp4-repaired",
        "the same with the whole branch listed: nothing to complain of",
        "qwen3_5_moe",
        "excluded-glob",
    ),
    Example(
        "deepseek-r1-nvfp4",
        "the whole MTP layer in BF16 and listed",
        "deepseek_v3",
        "excluded-glob",
    ),
    Example(
        "step-3.7-flash-nvfp4",
        "three MTP layers declared, none there",
        "step3p7",
        "published",
    ),
    Example(
        "glm-4.6-nvfp4-packed-eh-proj",
        "`eh_proj` packed, which no release of vLLM can load",
        "glm4_moe",
        "packed-glue",
        "mtp.safetensors",
    ),
    Example(
        "nemotron-3-super-nvfp4",
        "an allow-list of 41,100 entries: the branch needs none of its own",
        "nemotron_h",
        "published",
    ),
)


def main() -> None:
    """Make the examples in a folder and say what each shows."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", type=Path, help="where to put them")
    parser.add_argument("--only", choices=[example.name for example in EXAMPLES], help="make one of them")
    options = parser.parse_args()
    for example in EXAMPLES:
        if options.only in (None, example.name):
            place = options.folder / example.name
            build(place, example.family, example.variant, "full", branch_file=example.branch_file)
            print(f"{place}: {example.shows}")


if __name__ == "__main__":
    main()
