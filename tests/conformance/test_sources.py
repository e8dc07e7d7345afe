"""Every line the knowledge files cite exists in that release, and is no empty line."""

from __future__ import annotations

import pytest

from mtpfix.engines import load, names
from mtpfix.engines.check import all_sources
from tests.conformance.wheels import read_source, releases

pytestmark = pytest.mark.conformance


@pytest.mark.parametrize(
    ("engine", "version"), [(engine, version) for engine in names() for version in releases(engine)]
)
def test_cited_lines_exist(engine: str, version: str) -> None:
    cited = [source for source in all_sources(load(engine)) if source.endswith(f"@{version}")]
    missing = []
    for source in cited:
        path, _, line = source.rpartition("@")[0].rpartition(":")
        text = read_source(engine, version, path)
        lines = text.splitlines() if text is not None else []
        if not (0 < int(line) <= len(lines) and lines[int(line) - 1].strip()):
            missing.append(source)
    assert not missing


def test_facts_cite_many_lines() -> None:
    assert len(all_sources(load("vllm"))) > 400
    assert len(all_sources(load("sglang"))) > 200
