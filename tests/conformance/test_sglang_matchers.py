"""Our matchers and mappers of SGLang's lists against the engine's own code, on generated lists."""

from __future__ import annotations

import ast
import random
import re
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import pytest

from mtpfix.engines import load
from mtpfix.engines.components import refused_entries
from mtpfix.engines.decide import Decider, Decision, Lists, prepare_lists
from mtpfix.engines.mapping import Entries, NameMapper
from mtpfix.engines.matching import Compressed, Match, compressed, compressed_experts, compressed_head, prepare
from mtpfix.engines.resolved import FORMATS, Resolved
from mtpfix.facts import covers
from tests.conformance.test_matchers import (
    CASES,
    CLASS_NAMES,
    a_listed_name,
    broken,
    cases,
    compiled,
    compressed_rules,
    some_targets,
)
from tests.conformance.wheels import cut, find, outcome, read_source, releases, until

pytestmark = pytest.mark.conformance

QUANTIZATION = "srt/layers/quantization"
VERSIONS = releases("sglang")
MIXED_VERSIONS = [version for version in VERSIONS if covers(">=0.5.10", version)]
ENGINE = load("sglang")
ALGORITHMS = ("NVFP4", "FP8", "W4A16_NVFP4", "MXFP8", "FP8_PB_WO", "FP8_BLOCK_SCALES", "nvfp4", "INT4", "NVFP4")


class LinearBase:
    """Stands for a linear layer."""


class FusedMoE:
    """Stands for experts."""


class VocabParallelEmbedding:
    """Stands for an embedding."""


class ParallelLMHead(VocabParallelEmbedding):
    """Stands for a head."""


LAYERS = {"column": LinearBase(), "experts": FusedMoE(), "head": ParallelLMHead()}
CLASSES: Mapping[str, Any] = {
    "LinearBase": LinearBase,
    "FusedMoE": FusedMoE,
    "VocabParallelEmbedding": VocabParallelEmbedding,
    "ParallelLMHead": ParallelLMHead,
    "RadixAttention": type("RadixAttention", (), {}),
    "UnquantizedLinearMethod": lambda: None,
    "ModelOptFp8LinearMethod": lambda _config: "FP8",
    "ModelOptFp8MoEMethod": lambda _config: "FP8",
    "ModelOptFp4LinearMethod": lambda _config: "NVFP4",
    "ModelOptNvFp4A16LinearMethod": lambda _config: "W4A16_NVFP4",
    "ModelOptNvFp4FusedMoEMethod": lambda _config: "NVFP4",
    "Fp8LinearMethod": lambda config: config,
    "Fp8MoEMethod": lambda config: config,
    "re": re,
    "lru_cache": lru_cache,
    "MappingProxyType": types.MappingProxyType,
}


@lru_cache(maxsize=32)
def functions(version: str) -> dict[str, Any]:
    """Return the engine's list matchers and its mapper, each cut out and made ready to run."""
    utils = read_source("sglang", version, f"{QUANTIZATION}/utils.py")
    skip = cut(utils, ("_FALLBACK_FUSED_SHARDS", "_module_path_match", "is_layer_skipped"), CLASSES)
    modelopt = read_source("sglang", version, f"{QUANTIZATION}/modelopt_quant.py")
    given = {
        **CLASSES,
        "is_layer_skipped": skip["is_layer_skipped"],
        "_BLOCK_FP8_ALGOS": ("FP8_PB_WO", "FP8_BLOCK_SCALES"),
    }
    base = ("_get_quant_method", "is_layer_excluded", "apply_weight_name_mapper")
    shared = cut(modelopt, ("_compile_exclusion_pattern", *(f"ModelOptQuantConfig.{name}" for name in base)), given)
    nvfp4 = shared | cut(modelopt, ("ModelOptFp4Config.is_layer_excluded",), given)
    fp8 = shared | cut(modelopt, ("ModelOptFp8Config.is_layer_excluded",), given)
    names = ("_resolve_quant_algo", "_quantized_layer_prefix_candidates", "get_quant_method")
    own = cut(modelopt, [f"ModelOptMixedPrecisionConfig.{name}" for name in names], given)
    if "_quantized_layer_prefix_candidates" in own:
        own["_quantized_layer_prefix_candidates"] = staticmethod(own["_quantized_layer_prefix_candidates"])
    mapper = cut(read_source("sglang", version, "srt/models/utils.py"), ("WeightsMapper",), {})
    return {
        "modelopt_fp4": type("Config", (), nvfp4),
        "modelopt_fp8": type("Config", (), fp8),
        "modelopt_mixed": type("Config", (), shared | own),
        **mapper,
    }


def engine_mapper(version: str, rules: NameMapper) -> Any:
    """Return the engine's mapper with the same rules."""
    kind = functions(version)["WeightsMapper"]
    mapper = kind.__new__(kind)
    mapper.__dict__.update(
        orig_to_new_substr=dict(rules.substr),
        orig_to_new_prefix=dict(rules.prefix),
        orig_to_new_suffix=dict(rules.suffix),
    )
    return mapper


def as_table(rules: NameMapper) -> dict[str, list[list[str]]]:
    """Return the rules of a mapper as a family file writes them."""
    kinds = {"substr": rules.substr, "prefix": rules.prefix, "suffix": rules.suffix}
    return {kind: [[old] if new is None else [old, new] for old, new in pairs] for kind, pairs in kinds.items()}


def our_lists(version: str, resolved: Resolved, mappers: tuple[NameMapper, ...]) -> Lists:
    """Return the lists after the mappers, as the engine file says that the release applies them."""
    lists = prepare_lists(resolved, ENGINE, version)
    for mapper in mappers:
        lists = lists.mapped(as_table(mapper))
    return lists


def same(ours: Decision, theirs: tuple[str, Any]) -> bool:
    """Return whether a decision is the engine's answer: its error, or the algorithm it builds a layer with."""
    kind, value = theirs
    if kind != "ok":
        algos = re.sub(r"\{('[^{}]*')\}", lambda hit: "{" + ", ".join(sorted(hit[1].split(", "))) + "}", value)
        return ours.error == (kind, algos)
    built = None if value is None else FORMATS[value]
    return ours.error is None and (ours.format.plain if built is None else ours.format is built)


def runnable(names: tuple[str, ...]) -> bool:
    """Return whether this package runs every entry: a malformed pattern raises in the engine, and is not run here."""
    return not refused_entries(names)


@pytest.mark.parametrize("version", [version for version in VERSIONS if covers(">=0.5.9", version)])
def test_mappers_rewrite_names_alike(version: str) -> None:
    compared = 0
    for case in cases(f"sglang mapper {version}", regex=False, count=2 * CASES):
        for rules in case.mappers:
            ours = NameMapper(substr=rules.substr, prefix=rules.prefix, suffix=rules.suffix, longest=True)
            theirs = engine_mapper(version, rules)
            for name in (*case.names, *case.prefixes):
                compared += 1
                assert ours.map(name) == theirs._map_name(name), (version, rules, name)
            table = dict.fromkeys((*case.names, *case.prefixes), 1) | dict.fromkeys(case.names, 2)
            listed = Entries.read(table).rewritten(ours, "all")
            assert list(listed.table(table).items()) == list(theirs.apply_dict(table).items())
            config = functions(version)["modelopt_fp4"]()
            config.exclude_modules = list(table)
            config.apply_weight_name_mapper(theirs)
            assert list(Entries.read(table).rewritten(ours, "expanded").names) == config.exclude_modules
    assert compared >= CASES


@pytest.mark.parametrize("method", ["modelopt_fp4", "modelopt_fp8"])
@pytest.mark.parametrize("version", VERSIONS)
def test_exclude_lists_match_alike(version: str, method: str) -> None:
    compared = decided = 0
    mapped = ENGINE.fact("modelopt_rewrite", version)[0] != "none"
    linear = "ModelOptFp4LinearMethod" if method == "modelopt_fp4" else "ModelOptFp8LinearMethod"
    algo = "NVFP4" if method == "modelopt_fp4" else "FP8"
    for case in cases(f"sglang {method} {version}", regex=False, count=2 * CASES):
        mappers = case.mappers if mapped else ()
        lists = our_lists(version, Resolved(method, None, algo=algo, excludes=case.names), mappers)
        if not runnable(lists.excludes.names):
            continue
        theirs = functions(version)[method]()
        theirs.exclude_modules, theirs.packed_modules_mapping = list(case.names), case.packed
        theirs.kv_cache_quant_algo = None
        for rules in mappers:
            theirs.apply_weight_name_mapper(engine_mapper(version, rules))
        assert list(lists.excludes.names) == theirs.exclude_modules
        decider = Decider(lists, ENGINE, version, case.packed)
        for prefix in case.prefixes:
            for layer, stand_in in LAYERS.items():
                ours = decider.decide(prefix, layer, plain=False)
                answer = outcome(
                    theirs._get_quant_method, stand_in, prefix, Linear=CLASSES[linear], Moe=lambda _config: algo
                )
                assert same(ours, answer), (version, layer, prefix, lists.excludes.names, case.packed, ours, answer)
                assert ours.entry is None or ours.entry in case.names
                compared += 1
                decided += ours.format.plain
    assert compared >= CASES
    assert decided > compared / 20


@pytest.mark.parametrize("version", MIXED_VERSIONS)
def test_allow_lists_match_alike(version: str) -> None:
    chance = random.Random(f"sglang mixed {version}")  # noqa: S311 - repeatable cases, no secrets
    compared = quantized = 0
    for case in cases(f"sglang mixed {version}", regex=False, count=2 * CASES):
        excludes = case.names if chance.random() < 0.3 else ()
        names = [a_listed_name(chance, case.prefixes) for _ in range(chance.choice((1, 2, 4, 12)))]
        layers = {name: chance.choice(ALGORITHMS if chance.random() < 0.3 else ALGORITHMS[:1]) for name in names}
        resolved = Resolved("modelopt_mixed", None, algo="MIXED_PRECISION", excludes=excludes, layers=layers)
        lists = our_lists(version, resolved, case.mappers)
        if not runnable(lists.excludes.names):
            continue
        theirs = functions(version)["modelopt_mixed"]()
        theirs.__dict__.update(exclude_modules=list(excludes), packed_modules_mapping=case.packed)
        theirs.quantized_layers = {name: {"quant_algo": algo} for name, algo in layers.items()}
        theirs.__dict__.update(
            fp8_config="FP8", nvfp4_config="NVFP4", nvfp4a16_config="W4A16_NVFP4", mxfp8_config="MXFP8"
        )
        theirs.__dict__.update(fp8_block_config="FP8_PB_WO", fp8_pb_wo_config="FP8_PB_WO", kv_cache_quant_algo=None)
        for rules in case.mappers:
            mapper = engine_mapper(version, rules)
            theirs.apply_weight_name_mapper(mapper)
            theirs.quantized_layers = mapper.apply_dict(theirs.quantized_layers)
        decider = Decider(lists, ENGINE, version, case.packed)
        for prefix in case.prefixes:
            for layer, stand_in in LAYERS.items():
                ours = decider.decide(prefix, layer, plain=False)
                answer = outcome(theirs.get_quant_method, stand_in, prefix)
                shown = (version, layer, prefix, theirs.quantized_layers, excludes, case.packed, ours, answer)
                assert same(ours, answer), shown
                compared += 1
                quantized += not ours.format.plain
    assert compared >= CASES
    assert quantized > compared / 50


# ------------------------------------------------------------------------------------------- compressed-tensors

COMPRESSED = f"{QUANTIZATION}/compressed_tensors"


@lru_cache(maxsize=32)
def compressed_class(version: str) -> Any:
    """Return the engine's configuration class, whose methods answer with the scheme in the place of what it makes."""
    names = (
        *("should_ignore_layer", "check_equal_or_regex_match", "find_matched_target"),
        *("_find_first_match", "_is_equal_or_regex_match", "_match_fused_layer"),
    )
    matchers = cut(read_source("sglang", version, f"{COMPRESSED}/utils.py"), names, CLASSES)
    text = read_source("sglang", version, f"{COMPRESSED}/compressed_tensors.py") or ""
    chooser = type("CompressedTensorsMoEMethod", (), {})
    given = {
        **CLASSES,
        **matchers,
        "CompressedTensorsMoEMethod": chooser,
        "CompressedTensorsLinearMethod": lambda config: config,
        "CompressedTensorsFusedMoEMethod": lambda config: config,
        "UnquantizedFusedMoEMethod": lambda *_: None,
    }
    wanted = ("get_quant_method", "get_scheme_dict", "_add_fused_moe_to_target_scheme_map", "get_lm_head_scheme")
    mappers = ("apply_weight_name_mapper", "apply_sglang_mapper")
    body = cut(text, [f"CompressedTensorsConfig.{name}" for name in (*wanted, *mappers)], given)

    def beginning(source: str, name: str) -> Any:
        whole = find(ast.parse(source), name)
        assert isinstance(whole, ast.FunctionDef)
        return whole

    if "get_scheme_dict" in body:
        body["get_moe_scheme"] = compiled(
            until(beginning(text, "CompressedTensorsConfig.get_moe_scheme"), "weight_quant"), given
        )

        def get_linear_scheme(self: Any, layer: Any, layer_name: str, matched_target: str | None = None) -> Any:
            more = () if matched_target is None else (matched_target,)
            found = self.get_scheme_dict(layer, layer_name, *more)
            return None if found is None else found["weights"]

        body["get_linear_scheme"] = get_linear_scheme
    else:  # before 0.5.9 its lines stood in get_scheme, and experts were chosen elsewhere
        whole = beginning(text, "CompressedTensorsConfig.get_scheme")
        lines = [node for node in whole.body if isinstance(node, ast.If) and "target_scheme_map" in ast.unparse(node)]
        ends = ast.parse("return weight_quant if self.target_scheme_map else None").body
        body["get_scheme"] = compiled(
            ast.FunctionDef(whole.name, whole.args, [*lines[:1], *ends], [], None, None), given
        )
        other = read_source("sglang", version, f"{COMPRESSED}/compressed_tensors_moe.py") or ""
        experts = compiled(until(beginning(other, "CompressedTensorsMoEMethod.get_moe_method"), "weight_quant"), given)
        chooser.get_moe_method = staticmethod(  # type: ignore[attr-defined]
            lambda config, layer, prefix: setattr(layer, "scheme", experts(config, layer, prefix))
        )
    body["_is_mxfp4_moe"] = lambda _self, layer_name: not layer_name
    return type("CompressedTensorsConfig", (), body)


class Weights(str):
    """Stands for what a group says of its weights."""

    __slots__ = ()
    block_structure = None


def stand_in(layer: str) -> Any:
    """Return a layer of a class that has the engine's name for it."""
    name = CLASS_NAMES.get(layer, "FusedMoE")
    bases = {"head": ParallelLMHead, "experts": FusedMoE}
    made = type(name, (bases.get(layer, LinearBase),), {})()
    made.scheme = None
    return made


def built_scheme(config: Any, layer: Any, prefix: str) -> str | None:
    """Return the scheme that the engine gives a layer, None where it builds it plain."""
    config.get_quant_method(layer, prefix)
    scheme = layer.scheme
    return None if scheme is None else str(scheme)


@pytest.mark.parametrize("version", VERSIONS)
def test_compressed_tensors_lists_match_alike(version: str) -> None:
    chance = random.Random(f"sglang targets {version}")  # noqa: S311 - repeatable cases, no secrets
    rules = compressed_rules("sglang", version)
    rewrite = ENGINE.fact("ct_rewrite", version)[0]
    compared = quantized = 0
    for case in cases(f"sglang compressed {version}", regex=False, prefixes=6):
        targets = some_targets(chance, case.prefixes)
        config = compressed_class(version)()
        schemes = {name: {"weights": Weights(scheme), "format": "f"} for name, scheme in targets.items()}
        config.__dict__.update(ignore=list(case.names), target_scheme_map=schemes, packed_modules_mapping=case.packed)
        config.__dict__.update(sparsity_scheme_map={}, sparsity_ignore_list=[], kv_cache_scheme=None)
        config.__dict__.update(linear_fp8_config=None, quant_format="f")
        entries, targeted = Entries.read(case.names), Entries.read(targets)
        for found in case.mappers if rewrite != "none" else ():
            ours = NameMapper(substr=found.substr, prefix=found.prefix, suffix=found.suffix, longest=True)
            apply = getattr(config, "apply_weight_name_mapper", None) or config.apply_sglang_mapper
            apply(engine_mapper(version, found))
            entries, targeted = entries.rewritten(ours, rewrite), targeted.rewritten(ours, rewrite)
        if any(broken(name) for name in (*entries.names, *targeted.names)):
            continue  # a mapper tore a pattern apart
        lists = Compressed(prepare(entries), targeted, targets)
        assert list(lists.ignore.entries.names) == config.ignore
        assert list(lists.schemes) == list(config.target_scheme_map)
        before = dict(config.target_scheme_map)
        for prefix in case.prefixes:
            for layer in (chance.choice(("column", "merged", "qkv", "row", "replicated")), "head", "experts"):
                config.target_scheme_map = dict(before)
                kind, value = outcome(built_scheme, config, stand_in(layer), prefix)
                match: Match
                if layer == "experts":
                    match = compressed_experts(prefix, lists, case.packed, rules)
                else:
                    ask = compressed_head if layer == "head" else compressed
                    match = ask(prefix, CLASS_NAMES[layer], lists, case.packed, rules)
                table = lists.with_experts(rules.experts_class).schemes if layer == "experts" else lists.schemes
                scheme = None if match.plain else table.get(match.scheme or "")
                shown = (version, layer, prefix, config.ignore, before, case.packed, match, kind, value)
                if kind == "ok":
                    assert (match.error, scheme) == (None, value), shown
                else:
                    assert match.error == (kind, value), shown
                compared += 1
                quantized += scheme is not None
    assert compared >= CASES
    assert quantized > compared / 20
