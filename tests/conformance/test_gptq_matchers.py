"""GPTQ: decisions held against the engine's own code, cut from its releases, on generated names and patterns."""

from __future__ import annotations

import copy
import random
import re
import types
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

import pytest

from mtpfix.engines import load
from mtpfix.engines.decide import Decider, Lists, prepare_lists
from mtpfix.engines.gptq import NOT, _unread
from mtpfix.engines.resolved import Resolved
from mtpfix.model import Format, Scheme
from tests.conformance.test_matchers import CASES, QUANTIZATION, VERSIONS, Case, an_entry, cases, engine_mapper, mapped
from tests.conformance.wheels import cut, outcome, read_source

pytestmark = pytest.mark.conformance

PLAIN, PACKED = "plain", "packed"


class Linear:
    """Stands for a linear layer."""


class Head:
    """Stands for the language model head."""


class Experts:
    """Stands for experts."""

    moe_config = None


class Config:
    """Stands for the engine's configuration object, with the fields that its functions read."""

    weight_bits, group_size, desc_act, is_sym = 4, 128, False, True
    TYPE_MAP = types.MappingProxyType({(4, True): "uint4b8", (8, True): "uint8b128"})

    def __init__(self, dynamic: dict[str, Any], names: list[str], packed: dict[str, list[str]], *, head: bool) -> None:
        self.dynamic, self.modules_in_block_to_quantize, self.packed_modules_mapping = dynamic, names, packed
        self.lm_head_quantized = head

    def get_name(self) -> str:
        return "gptq_marlin"


_GIVEN = {
    "re": re,
    "deepcopy": copy.deepcopy,
    "Fraction": Fraction,
    "MappingProxyType": types.MappingProxyType,
    "LinearBase": Linear,
    "ParallelLMHead": Head,
    "FusedMoE": Experts,
    "RoutedExperts": Experts,
    "GPTQMarlinConfig": Config,
    "GPTQConfig": Config,
    "AutoGPTQConfig": Config,
    "UnquantizedLinearMethod": lambda: PLAIN,
    "UnquantizedEmbeddingMethod": lambda: PLAIN,
    "UnquantizedFusedMoEMethod": lambda _: PLAIN,
}


@lru_cache(maxsize=32)
def functions(version: str) -> dict[str, Any]:
    """Return what decides, of one release."""
    text = read_source("vllm", version, f"{QUANTIZATION}/utils/gptq_utils.py")
    names = ("flatten_list", "override_config", "get_dynamic_override", "is_layer_gptq_quantized")
    found = cut(text, (*names, "get_linear_quant_method"), _GIVEN)
    for file in ("auto_gptq.py", "gptq_marlin.py"):
        text = read_source("vllm", version, f"{QUANTIZATION}/{file}")
        if text is not None:
            return found | cut(text, ["get_moe_quant_method"], _GIVEN | found)
    raise AssertionError(version)


def a_pattern(chance: random.Random, case: Case) -> str:
    """Return a pattern that excludes, as a `dynamic` holds them: of names, of layers, of parts, or anything."""
    name = chance.choice(case.prefixes)
    entry = an_entry(chance, case.prefixes)
    parts = [
        re.escape(name),
        re.escape(name) + "$",
        re.escape(name.rpartition(".")[0]),
        name,
        entry.removeprefix("re:"),
    ]
    parts += [".*mtp.*", r".*\.mlp\.gate$", "^lm_head$", ".*experts.*", "", ".*", r".*layers\.6\..*", "mtp", "("]
    return NOT + chance.choice(parts)


def asked(seed: str) -> Iterator[tuple[Case, dict[str, Any], bool]]:
    chance = random.Random(seed)  # noqa: S311 - repeatable cases, no secrets
    for case in cases(seed, regex=False, count=2 * CASES):
        count = chance.choice((0, 0, 1, 2, 3))
        yield case, {a_pattern(chance, case): {} for _ in range(count)}, chance.random() < 0.5


@pytest.mark.parametrize("version", VERSIONS)
def test_modules_are_packed_alike(version: str) -> None:
    theirs = functions(version)
    engine = load("vllm")
    compared = plain = refused = 0
    for case, dynamic, head in asked(f"gptq {version}"):
        if _unread({"quant_method": "gptq"}, dynamic):
            continue  # a pattern that is malformed, or that this package does not run
        names = mapped(version, case, "all")
        config = Config(dynamic, list(case.names), case.packed, head=head)
        for mapper in case.mappers:
            config.modules_in_block_to_quantize = engine_mapper(version, mapper).apply_list(
                config.modules_in_block_to_quantize
            )
        resolved = Resolved(
            "auto_gptq",
            None,
            scheme=Scheme(Format.INT4, "gptq", 128),
            excludes=tuple(dynamic),
            within=case.names,
            head=head,
        )
        fresh = prepare_lists(resolved, engine, version)
        lists = Lists(resolved, fresh.excludes, names, fresh.targets, fresh.manners, fresh.drops, fresh.longest)
        decider = Decider(lists, engine, version, case.packed)
        for prefix in case.prefixes:
            for layer, kind in (("column", Linear), ("head", Head), ("experts", Experts)):
                ours = decider.decide(prefix, layer, plain=False)
                call = theirs["get_moe_quant_method" if kind is Experts else "get_linear_quant_method"]
                answer = outcome(call, config, kind(), prefix, lambda *_: PACKED)
                if ours.error is not None:
                    assert answer == ours.error, (version, prefix, case, dynamic)
                    refused += 1
                else:
                    wanted = (PLAIN, None) if ours.format.plain else (PACKED,)
                    assert answer[0] == "ok", (version, prefix, case, dynamic, answer)
                    assert answer[1] in wanted, (version, prefix, layer, case, dynamic, answer, ours)
                    plain += ours.format.plain
                compared += 1
    assert compared >= CASES
    assert compared / 20 < plain < compared
    assert refused > 20
