"""Every line the knowledge files cite is there in that release, and can bear the fact that cites it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from mtpfix import families
from mtpfix.engines import load, names
from mtpfix.engines.check import all_sources
from tests.conformance.evidence import Fact, bears, facts
from tests.conformance.wheels import read_source, releases

SOURCE = """
class Model(nn.Module):
    packed = {"qkv_proj": ["q_proj", "k_proj"]}
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"mtp.": "x."})

    def __init__(self, config, prefix=""):
        # self.fc = ColumnParallelLinear
        self.shared_experts = MLP(
            config.size,
            prefix=f"{prefix}.shared_experts",
        )
        self.head = None

    def load_weights(self, weights):
        for name, weight in weights:
            if name.endswith(".bias"):
                continue
            param = params_dict[name]
            if param.shape != weight.shape:
                raise ValueError(
                    f"shape of {name} is not what was built"
                )
            copy(param, weight)
"""


def line_of(text: str) -> int:
    return next(number for number, line in enumerate(SOURCE.splitlines(), 1) if text in line)


@pytest.mark.parametrize(
    ("line", "fact", "can"),
    [
        ("= MLP(", {"name": "mlp.shared_experts.down_proj", "layer": "row"}, True),
        ("config.size", {"name": "shared_experts", "layer": "row"}, True),
        ("config.size", {"name": "mlp.experts", "layer": "row"}, False),
        ("self.head", {"name": "lm_head", "param": "model.head", "layer": "head"}, True),
        ("self.head", {"name": "shared_experts", "layer": "row"}, False),
        ("# self.fc", {"name": "fc", "layer": "column"}, False),
        ("class Model", {"name": "model_norm", "layer": "norm"}, False),
        ("params_dict[name]", {"does": "KeyError"}, True),
        ("continue", {"does": "KeyError"}, False),
        ("continue", {"does": "skip"}, None),
        ("endswith", {"does": "KeyError", "except": [".bias"]}, True),
        ("raise ValueError", {"does": "ValueError", "text": "shape of {name} is not what was built"}, True),
        ("raise ValueError", {"does": "KeyError"}, False),
        ("!= weight.shape", {"does": "ValueError"}, True),
        ("!= weight.shape", {"does": "AssertionError", "text": "no such words there"}, False),
        ("copy(param", {"does": "RuntimeError"}, True),
        ("self.head", {"mapped": ["mtp."]}, False),
        ("hf_to_vllm_mapper", {"mapped": ["mtp.", "x."]}, True),
        ("hf_to_vllm_mapper", {"mapped": ["model."]}, False),
        ("packed", {"is": {"qkv_proj": ["q_proj"]}}, True),
        ("config.size", {"is": ["some", "other"]}, False),
        ("config.size", {"is": True}, None),
        ("self.head", {"role": "draft", "class": "Model"}, True),
        ("self.head", {"role": "draft", "class": "OtherModel"}, False),
    ],
)
def test_evidence(line: str, fact: dict[str, Any], can: bool | None) -> None:
    assert bears(SOURCE, line_of(line), fact) is can


@cache
def cited(engine: str) -> tuple[tuple[str, Fact], ...]:
    """Return every fact that cites a source of an engine, with the file that holds it."""
    known = load(engine)
    tables = [
        (f"{engine}.toml", known.table),
        *((f"{name}.toml", families.load(name).table) for name in families.names()),
    ]
    found = ((where, with_names(fact, table)) for where, table in tables for fact in facts(table))
    return tuple((where, fact) for where, fact in found if fact["source"].rpartition("@")[2] in known.releases)


def with_names(fact: Fact, table: Fact) -> Fact:
    """Return a fact that says which mappers a class has with the names that these rewrite, under `mapped`."""
    mappers, named = table.get("mappers", {}), fact.get("is")
    if not (isinstance(named, list) and named and all(isinstance(one, str) and one in mappers for one in named)):
        return fact
    rules = [pair for one in named for kind in mappers[one].values() for pair in kind]
    return {**fact, "mapped": [pair[0] for pair in rules]}


def judged(engine: str, version: str) -> Iterator[tuple[str, bool | None]]:
    """Yield each source of a release, with where it is cited, and whether it can bear its fact."""
    for where, fact in cited(engine):
        place, _, release = fact["source"].rpartition("@")
        if release == version:
            path, _, line = place.rpartition(":")
            text = read_source(engine, version, path)
            there = text is not None and 0 < int(line) <= len(text.splitlines())
            yield f"{where}: {fact['source']}", bears(text or "", int(line), fact) if there else False


@pytest.mark.conformance
@pytest.mark.parametrize(
    ("engine", "version"), [(engine, version) for engine in names() for version in releases(engine)]
)
def test_cited_lines_are_there_and_can_bear_their_facts(engine: str, version: str) -> None:
    assert [source for source, can in judged(engine, version) if can is False] == []


@pytest.mark.conformance
@pytest.mark.parametrize(("engine", "least"), [("vllm", 500), ("sglang", 100)])
def test_one_release_has_most_facts_and_most_are_judged_by_what_the_line_says(engine: str, least: int) -> None:
    most, _ = Counter(fact["source"].rpartition("@")[2] for _, fact in cited(engine)).most_common(1)[0]
    outcomes = Counter(can for _, can in judged(engine, most))
    assert outcomes[True] >= least
    assert outcomes[True] > outcomes[None]


def test_facts_cite_many_lines() -> None:
    assert len(all_sources(load("vllm"))) > 400
    assert len(all_sources(load("sglang"))) > 200
