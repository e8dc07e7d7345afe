"""Every format over scans of every family and variant, with twelve hostile names among their tensors and entries."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtpfix import scan
from mtpfix.engines import load
from tests.checkpoints import VARIANTS, Tensor, build, write_shard
from tests.families import EVERY_TIME, FAMILIES
from tests.report.hostile import HOSTILE
from tests.report.test_formats import FORMATS, Page

NEWEST = f"vllm=={load('vllm').releases[-1]}"
SHORT = [name[:2000] for name in HOSTILE.values()]


def spoil(folder: Path) -> None:
    """Put the hostile names among the tensors, and among the entries of the list."""
    tensors = [Tensor(f"{prefix}{name}.weight", "BF16", (2, 2)) for name in SHORT for prefix in ("", "mtp.layers.0.")]
    write_shard(folder / "hostile.safetensors", tensors)
    config = json.loads((folder / "config.json").read_text())
    block = config.get("quantization_config")
    if isinstance(block, dict) and isinstance(block.get("ignore"), list):
        block["ignore"] += SHORT
        (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in EVERY_TIME else pytest.mark.slow) for name in FAMILIES]
)
def test_every_format_of_every_variant_is_valid_and_harmless(family: str, tmp_path: Path) -> None:
    for variant in VARIANTS.values():
        if variant.families and family not in variant.families:
            continue
        folder = tmp_path / variant.name
        build(folder, family, variant.name, sparse=True)
        spoil(folder)
        report = scan(folder, engines=[NEWEST])
        written = {form: write(report) for form, write in FORMATS.items()}
        for form, text in written.items():
            strange = {one for one in text if not one.isprintable()} - {"\n"}
            assert strange <= ({"\u200b"} if form == "markdown" else set()), (variant.name, form)
        for form in ("json", "sarif"):
            json.loads(written[form])
        assert len(json.loads(written["sarif"])["runs"][0]["results"]) == len(report.findings)
        assert all(line.startswith("::") for line in written["github"].splitlines())
        page = Page(written["html"])
        assert page.open == []
        assert {tag for tag, _ in page.elements}.isdisjoint({"img", "iframe", "a", "svg", "object", "link"})
        assert [tag for tag, _ in page.elements].count("script") == 2
