"""Our matchers and mappers against the engine's own code, cut from its releases, on generated lists and prefixes."""

from __future__ import annotations

import ast
import copy
import fnmatch
import random
import re
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pytest

from mtpfix.engines import load
from mtpfix.engines.mapping import Entries, NameMapper
from mtpfix.engines.matching import (
    Algorithms,
    Compressed,
    CompressedRules,
    Match,
    MixedSteps,
    algorithm,
    compressed,
    compressed_experts,
    compressed_head,
    excluded,
    ignored,
    prepare,
    skipped,
)
from mtpfix.facts import covers
from tests.conformance.wheels import cut, find, outcome, read_source, releases, until

pytestmark = pytest.mark.conformance

QUANTIZATION = "model_executor/layers/quantization"
MODELOPT = f"{QUANTIZATION}/modelopt.py"
FP8 = f"{QUANTIZATION}/fp8.py"
COMPRESSED = f"{QUANTIZATION}/compressed_tensors/compressed_tensors.py"
CASES = 10_000
VERSIONS = releases("vllm")

PACKED: tuple[dict[str, list[str]], ...] = (
    {},
    {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]},
    {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "in_proj_qkvz": ["in_proj_qkv", "in_proj_z"],
        "proj": ["a_proj", "b_proj"],
    },
    {"gate_up_proj": ["gate_proj", "up_proj"], "fused_qkv_a_proj": ["q_a_proj", "kv_a_proj_with_mqa"]},
)

# ---------------------------------------------------------------------------------------------- generated cases

_ROOTS = ("model.", "language_model.model.", "model.language_model.", "mtp.", "", "backbone.", "model.mtp.")
_LEAVES = (
    "self_attn.qkv_proj",
    "self_attn.o_proj",
    "self_attn.q_proj",
    "self_attn.fused_qkv_a_proj",
    "self_attn.kv_b_proj",
    "linear_attn.in_proj_qkvz",
    "mlp.gate_up_proj",
    "mlp.down_proj",
    "mlp.gate",
    "mlp.experts",
    "mlp.shared_experts.gate_up_proj",
    "mlp.shared_expert.down_proj",
    "mixer.experts",
    "block_sparse_moe.experts",
    "mtp_block.self_attn.qkv_proj",
    "shared_head.head",
    "eh_proj",
    "head",
)
_WHOLE = (
    "lm_head",
    "mtp.fc",
    "fc",
    "language_model.lm_head",
    "qkv_proj",
    "experts",
    "vision_tower.blocks.0.attn.qkv_proj",
)
_PARTS = (
    "q_proj",
    "k_proj",
    "v_proj",
    "gate_proj",
    "up_proj",
    "in_proj_qkv",
    "in_proj_z",
    "q_a_proj",
    "kv_a_proj_with_mqa",
)


def a_prefix(chance: random.Random) -> str:
    if chance.random() < 0.15:
        return chance.choice(_WHOLE)
    layer = chance.choice(("6", "60", "61", "0", "1", "45"))
    return f"{chance.choice(_ROOTS)}layers.{layer}.{chance.choice(_LEAVES)}"


def an_entry(chance: random.Random, prefixes: Sequence[str]) -> str:
    """Return an entry that often hits one of the prefixes, or nearly does, in each of the ways lists are written."""
    name = chance.choice(prefixes) if chance.random() < 0.8 else a_prefix(chance)
    head, _, leaf = name.rpartition(".")
    above = head.rpartition(".")[0]
    whole = leaf in ("experts", "fc", "head")
    forms: tuple[Callable[[], str], ...] = (
        lambda: name,
        lambda: f"{head}.{chance.choice(_PARTS)}",
        lambda: f"{head}.{chance.choice(_PARTS)}*",
        lambda: f"{name}.{chance.choice(('0', '7'))}.{chance.choice(('gate_proj', 'down_proj', 'up_proj'))}",
        lambda: f"{name}.{chance.choice(('gate_proj', 'up_proj', 'gate_up_proj'))}" if whole else f"{head}*",
        lambda: f"{head}*",
        lambda: f"{head}.*",
        lambda: head,
        lambda: f"{above}*",
        lambda: f"*{above.removeprefix('model.')}*",
        lambda: f"*.{leaf}",
        lambda: f"*{leaf}*",
        lambda: leaf,
        lambda: f"language_model.{name}",
        lambda: name.removeprefix("language_model."),
        lambda: name.replace("model.layers", "model.language_model.layers"),
        lambda: name.replace("60", "6").replace("61", "6"),
        lambda: re.sub(r"\d+", "[0-9]", name),
        lambda: re.sub(r"\d+", "?", name),
        lambda: re.sub(r"\d+", "[!0-5]*", name),
        lambda: name.replace(".", "?", 1),
        lambda: chance.choice(
            ("*", "**", "", "*.*", "x", ".", "lm_head", "*lm_head*", "mtp*", "mtp.*", "experts", "[", "a[")
        ),
        name.upper,
        lambda: f"re:{re.escape(name)}$",
        lambda: f"re:.*{leaf}$",
        lambda: rf"re:.*layers\.{chance.choice(('6', '61', '[0-9]+'))}\..*",
        lambda: f"re:.*{chance.choice(('mtp', 'self_attn', 'experts', 'down_proj', 'qkv'))}.*",
        lambda: rf"re:{re.escape(head)}\.({'|'.join(chance.sample(_PARTS, 3))})",
        lambda: f"re:{leaf}",
    )
    return chance.choice(forms)()


def a_listed_name(chance: random.Random, prefixes: Sequence[str]) -> str:
    """Return a name as an allow-list spells it: of a prefix, of one of its parts, of something below or beside it."""
    name = chance.choice(prefixes)
    head = name.rpartition(".")[0]
    below = f"{name}.{chance.choice(('0.up_proj', '12.down_proj', 'gate_proj'))}"
    return chance.choice((name, below, f"{head}.{chance.choice(_PARTS)}", f"{head}.{chance.choice(_PARTS)}"))


@dataclass(frozen=True)
class Case:
    """One list, the prefixes asked of it, the fused mapping, and the mappers applied to the list before."""

    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    packed: dict[str, list[str]]
    mappers: tuple[NameMapper, ...]


def a_mapper(chance: random.Random, *, regex: bool) -> NameMapper:
    olds = (
        "model.",
        "language_model.",
        "layers.",
        ".mlp.",
        "mtp.",
        "self_attn",
        "",
        "model.language_model.",
        "lm_head",
        "6",
    )
    news = ("language_model.model.", "model.", "", ".mtp_block.", "x.", "model.layers", "lm_head", None)

    def pairs(count: int, choices: Sequence[str]) -> tuple[tuple[str, str | None], ...]:
        chosen = chance.sample(choices, k=min(count, len(choices)))
        return tuple((old, chance.choice(news if chance.random() < 0.9 else (None,))) for old in chosen)

    patterns = (r"layers\.(\d+)\.", r"^model\.", r"q_proj$", r"(\d)")
    return NameMapper(
        regex=pairs(chance.choice((0, 0, 1, 2)), patterns) if regex else (),
        substr=pairs(chance.choice((0, 1, 2)), olds),
        prefix=pairs(chance.choice((0, 1, 2, 3)), olds),
        suffix=pairs(chance.choice((0, 0, 1)), [old for old in olds if old]),
    )


def cases(seed: str, *, regex: bool, prefixes: int = 12, count: int = CASES) -> Iterator[Case]:
    """Yield lists and prefixes, `count` pairs in all, some of them with mappers (with patterns only if `regex`)."""
    chance = random.Random(seed)  # noqa: S311 - repeatable cases, no secrets
    for number in range(-(-count // prefixes)):
        asked = tuple(a_prefix(chance) for _ in range(prefixes))
        size = chance.choice((0, 1, 2, 3, 5, 8, 300 if number % 97 == 0 else 4))
        names = tuple(an_entry(chance, asked) for _ in range(size))
        if chance.random() < 0.3 and names:  # fused halves: exactly the parts of one asked layer, or all but one
            name = chance.choice(asked)
            head, _, leaf = name.rpartition(".")
            parts = next((packed[leaf] for packed in PACKED if leaf in packed), [])
            listed = parts if chance.random() < 0.5 else parts[1:]
            names += tuple(f"{head}.{part}" for part in listed)
        mappers = tuple(a_mapper(chance, regex=regex) for _ in range(chance.choice((0, 0, 1, 2))))
        yield Case(names, asked, dict(chance.choice(PACKED)), mappers)


# -------------------------------------------------------------------------------------------- the engine's side


def _copied(instance: Any, **values: Any) -> Any:
    other = copy.copy(instance)
    other.__dict__.update(values)
    return other


_GIVEN = {"re": re, "fnmatch": fnmatch.fnmatch, "replace": _copied, "MappingProxyType": types.MappingProxyType}


@lru_cache(maxsize=64)
def pieces(version: str, path: str, names: tuple[str, ...], **_: Any) -> dict[str, Any]:
    return cut(read_source("vllm", version, path), names, _GIVEN)


@lru_cache(maxsize=64)
def skip_function(version: str) -> Callable[..., bool]:
    function: Callable[..., bool] = pieces(version, f"{QUANTIZATION}/utils/quant_utils.py", ("is_layer_skipped",))[
        "is_layer_skipped"
    ]
    return function


def engine_mapper(version: str, rules: NameMapper) -> Any:
    """Return the engine's mapper with the same rules, in the variant it hands to quantization configurations."""
    kind = pieces(version, "model_executor/models/utils.py", ("WeightsMapper",))["WeightsMapper"]
    mapper = kind.__new__(kind)
    mapper.__dict__.update(
        orig_to_new_regex={re.compile(old): new for old, new in rules.regex},
        orig_to_new_substr=dict(rules.substr),
        orig_to_new_prefix=dict(rules.prefix),
        orig_to_new_suffix=dict(rules.suffix),
        orig_to_new_stacked={".q_proj": (".qkv_proj", "q")},
        orig_to_new_renaming=[],
        orig_to_new_renamings=[],
    )
    for variant in ("get_rename_mapper", "get_unstacked_mapper"):
        if hasattr(kind, variant):
            return getattr(mapper, variant)()
    return mapper


def rules_of(version: str, mapper: NameMapper) -> NameMapper:
    return mapper if fact(version, "mapper_drops") else mapper.without_drops()


def fact(version: str, name: str) -> Any:
    return load("vllm").fact(name, version)[0]


def same(ours: Match, theirs: tuple[str, Any], expected: Callable[[Any], tuple[bool, Any]]) -> bool:
    """Return whether a Match says what the engine's answer says; `expected` gives (plain, scheme) of a result."""
    kind, value = theirs
    if kind != "ok":
        return ours.error == (kind, _sorted_set(value))
    plain, scheme = expected(value)
    return ours.error is None and ours.plain == plain and (plain or ours.scheme == scheme)


def _sorted_set(text: str) -> str:
    """Return an error's text with the Python set in it, if any, in sorted order."""
    return re.sub(r"\{('[^{}]*')\}", lambda hit: "{" + ", ".join(sorted(hit.group(1).split(", "))) + "}", text)


def fail(version: str, case: Case, prefix: str, ours: object, theirs: object) -> None:
    pytest.fail(f"vllm {version}: {prefix!r} in {case.names!r}, packed {case.packed!r}: ours {ours}, theirs {theirs}")


# ------------------------------------------------------------------------------------------------------ mapping


@pytest.mark.parametrize("version", VERSIONS)
def test_mappers_rewrite_names_alike(version: str) -> None:
    regex = covers(">=0.18.1", version)
    compared = 0
    for case in cases(f"mapper {version}", regex=regex, count=2 * CASES):
        for mapper in case.mappers:
            theirs, ours = engine_mapper(version, mapper), rules_of(version, mapper)
            for name in (*case.names, *case.prefixes):
                compared += 1
                assert ours.map(name) == theirs._map_name(name), (version, mapper, name)
            table = dict.fromkeys((*case.names, *case.prefixes), 1) | dict.fromkeys(case.names, 2)
            listed = Entries.read(table).rewritten(ours, "all")
            assert list(listed.table(table).items()) == list(theirs.apply_dict(table).items())
            assert list(listed.names) == theirs.apply_list(list(table))
    assert compared >= CASES


def mapped(version: str, case: Case, manner: Any) -> Entries:
    entries = Entries.read(case.names)
    for mapper in case.mappers:
        entries = entries.rewritten(rules_of(version, mapper), manner)
    return entries


# ----------------------------------------------------------------------------------------------- ModelOpt, fp8


def modelopt_class(version: str, method: str) -> Any:
    name = "ModelOptQuantConfigBase"
    if not covers(">=0.12", version):
        name = "ModelOptFp8Config" if method == "modelopt" else "ModelOptNvFp4Config"
    given = {**_GIVEN, "is_layer_skipped": skip_function(version)}
    names = [f"{name}.is_layer_excluded", f"{name}.apply_vllm_mapper"]
    methods = cut(read_source("vllm", version, MODELOPT), names, given)
    return type("Config", (), methods)


@pytest.mark.parametrize("method", ["modelopt_fp4", "modelopt"])
@pytest.mark.parametrize("version", VERSIONS)
def test_modelopt_excludes_alike(version: str, method: str) -> None:
    kind = modelopt_class(version, method)
    wildcards = fact(version, "modelopt_fp8_wildcards" if method == "modelopt" else "modelopt_wildcards")
    listed = fact(version, "fused_name_listed")
    compared = decided = 0
    for case in cases(f"modelopt {method} {version}", regex=covers(">=0.18.1", version), count=2 * CASES):
        if wildcards == "regex" and any(mark in name for name in case.names for mark in "[?|("):
            continue  # a regular expression there: malformed ones raise in the engine, and are not run by us
        theirs = kind()
        theirs.exclude_modules, theirs.packed_modules_mapping = list(case.names), case.packed
        for mapper in case.mappers:
            theirs.apply_vllm_mapper(engine_mapper(version, mapper))
        entries = mapped(version, case, fact(version, "modelopt_rewrite"))
        assert list(entries.names) == theirs.exclude_modules
        listing = prepare(entries)
        for prefix in case.prefixes:
            ours = excluded(prefix, listing, case.packed, wildcards=wildcards, fused_name_listed=listed)
            answer = outcome(theirs.is_layer_excluded, prefix)
            if not same(ours, answer, lambda value: (value, None)):
                fail(version, case, prefix, ours, answer)
            assert ours.entry is None or ours.entry in entries.names
            compared += 1
            decided += ours.plain
    assert compared >= CASES
    assert decided > compared / 20


@pytest.mark.parametrize("version", VERSIONS)
def test_fp8_skips_alike(version: str) -> None:
    theirs = skip_function(version)
    listed = fact(version, "fused_name_listed")
    modes: dict[Any, dict[str, Any]] = {"exact": {}, "substring": {"skip_with_substr": True}}
    if covers(">=0.28", version):
        modes = {mode: {"match_mode": mode} for mode in ("exact", "substring", "suffix")}
    compared = 0
    for case in cases(f"fp8 {version}", regex=False):
        entries = mapped(version, case, fact(version, "fp8_rewrite"))
        listing = prepare(entries)
        for mode, options in modes.items():
            for prefix in case.prefixes:
                ours = skipped(prefix, listing, case.packed, fused_name_listed=listed, mode=mode)
                answer = outcome(theirs, prefix, list(entries.names), case.packed, **options)
                if not same(ours, answer, lambda value: (value, None)):
                    fail(version, case, prefix, (mode, ours), answer)
                compared += 1
    assert compared >= CASES


# --------------------------------------------------------------------------------------------- mixed precision

_ALGOS = ("NVFP4", "FP8", "nvfp4", "W4A16_NVFP4", None)


@pytest.mark.parametrize("version", [version for version in VERSIONS if covers(">=0.17.1", version)])
def test_mixed_layers_resolve_alike(version: str) -> None:
    name = "ModelOptMixedPrecisionConfig"
    methods = cut(
        read_source("vllm", version, MODELOPT),
        (f"{name}._resolve_quant_algo", f"{name}._quantized_layer_prefix_candidates"),
        _GIVEN,
    )
    kind = type("Config", (), methods)
    steps = MixedSteps(*(fact(version, f"mixed_{step}") for step in ("spellings", "siblings", "parts")))
    chance = random.Random(f"algos {version}")  # noqa: S311 - repeatable
    compared = found = 0
    for case in cases(f"mixed {version}", regex=covers(">=0.18.1", version)):
        names = (*case.names, *(a_listed_name(chance, case.prefixes) for _ in range(chance.choice((0, 2, 6)))))
        layers = {name: chance.choice(_ALGOS[: chance.choice((1, 2, 4, 5))]) for name in names}
        theirs = kind()
        theirs.packed_modules_mapping = case.packed
        theirs.quantized_layers = {name: {} if algo is None else {"quant_algo": algo} for name, algo in layers.items()}
        entries = Entries.read(layers)
        for mapper in case.mappers:
            theirs.quantized_layers = engine_mapper(version, mapper).apply_dict(theirs.quantized_layers)
            entries = entries.rewritten(rules_of(version, mapper), "all")
        table = Algorithms(entries, layers)
        for prefix in case.prefixes:
            ours = algorithm(prefix, table, case.packed, steps)
            answer = outcome(theirs._resolve_quant_algo, prefix)
            if not same(ours, answer, lambda value: (value is None, value)):
                fail(version, case, prefix, ours, answer)
            compared += 1
            found += not ours.plain
    assert compared >= CASES
    assert found > compared / 20


# ------------------------------------------------------------------------------------------- compressed-tensors

CLASS_NAMES = {
    "column": "ColumnParallelLinear",
    "merged": "MergedColumnParallelLinear",
    "qkv": "QKVParallelLinear",
    "row": "RowParallelLinear",
    "replicated": "ReplicatedLinear",
    "head": "ParallelLMHead",
}
_TARGETS = (
    "Linear",
    "re:.*experts.*",
    "FusedMoE",
    "QKVParallelLinear",
    "RowParallel",
    "ParallelLMHead",
    "re:.*Head",
    "re:.*",
)


def some_targets(chance: random.Random, prefixes: Sequence[str]) -> dict[str, str]:
    """Return targets of config_groups, each with the scheme of its group."""
    targets = dict.fromkeys(chance.sample(_TARGETS, chance.choice((0, 1, 1, 2))), "A")
    targets |= {an_entry(chance, prefixes): chance.choice("AB") for _ in range(chance.choice((0, 1, 4)))}
    return {name: scheme for name, scheme in targets.items() if name not in ("a[", "[")}


def compressed_functions(version: str) -> dict[str, Any]:
    folder = f"{QUANTIZATION}/compressed_tensors"
    names = (
        "is_equal_or_regex_match",
        "find_matching_patterns",
    )
    shared = cut(read_source("vllm", version, f"{QUANTIZATION}/utils/config_utils.py"), names, _GIVEN)
    wanted = (
        "should_ignore_layer",
        "check_equal_or_regex_match",
        "find_matched_target",
        "_find_first_match",
        "_is_equal_or_regex_match",
        "_match_fused_layer",
    )
    matchers = cut(read_source("vllm", version, f"{folder}/utils.py"), wanted, {**_GIVEN, **shared})
    given = {**_GIVEN, **matchers}
    name = "CompressedTensorsConfig"
    methods = ("apply_vllm_mapper", "get_scheme_dict", "_add_fused_moe_to_target_scheme_map")
    config = cut(read_source("vllm", version, COMPRESSED), [f"{name}.{method}" for method in methods], given)
    if "get_scheme_dict" not in config:  # before 0.12 its lines stood in get_scheme
        config["get_scheme_dict"] = _scheme_lines(version, given)
    return {**matchers, **config, "experts": _experts_function(version, given)}


def _scheme_lines(version: str, given: Mapping[str, Any]) -> Any:
    tree = ast.parse(read_source("vllm", version, COMPRESSED) or "")
    whole = find(tree, "CompressedTensorsConfig.get_scheme")
    assert isinstance(whole, ast.FunctionDef)
    begin = until(whole, "weight_quant")
    begin.body[-1:] = [
        node for node in whole.body if isinstance(node, ast.If) and "target_scheme_map" in ast.unparse(node)
    ][:1]
    begin.body.append(ast.parse("return scheme_dict if self.target_scheme_map else None").body[0])
    return compiled(begin, given)


def _experts_function(version: str, given: Mapping[str, Any]) -> Any:
    """Return the beginning of get_moe_method, up to where the scheme's weights are known."""
    for path in ("compressed_tensors_moe/compressed_tensors_moe.py", "compressed_tensors_moe.py"):
        text = read_source("vllm", version, f"{QUANTIZATION}/compressed_tensors/{path}")
        if text is not None:
            whole = find(ast.parse(text), "CompressedTensorsMoEMethod.get_moe_method")
            assert isinstance(whole, ast.FunctionDef)
            return compiled(until(whole, "weight_quant"), {**given, "UnquantizedFusedMoEMethod": lambda *_: None})
    raise AssertionError(version)


def compressed_rules(engine: str, version: str) -> CompressedRules:
    """Return how a release reads a compressed-tensors configuration, as the engine file says."""
    names = ("shards", "fused_first", "unmatched_raises", "experts", "experts_class", "head", "entries")
    values = {name: load(engine).fact(f"ct_{name}", version)[0] for name in names}
    return CompressedRules(**values, differ=load(engine).fact("ct_differ", version)[0]["text"])


def compiled(function: ast.FunctionDef, given: Mapping[str, Any]) -> Any:
    function.decorator_list = []
    return cut(ast.unparse(ast.fix_missing_locations(function)), (function.name,), given)[function.name]


@pytest.mark.parametrize("version", VERSIONS)
def test_compressed_tensors_target_alike(version: str) -> None:
    functions = compressed_functions(version)
    methods = ("apply_vllm_mapper", "get_scheme_dict", "_add_fused_moe_to_target_scheme_map")
    kind = type("Config", (), {name: functions[name] for name in methods if name in functions})
    rules = compressed_rules("vllm", version)
    chance = random.Random(f"targets {version}")  # noqa: S311 - repeatable
    compared = 0
    for case in cases(f"compressed {version}", regex=covers(">=0.18.1", version), prefixes=6):
        targets = some_targets(chance, case.prefixes)
        theirs = kind()
        schemes = {name: {"weights": scheme, "format": "f"} for name, scheme in targets.items()}
        theirs.__dict__.update(
            ignore=list(case.names),
            target_scheme_map=schemes,
            sparsity_scheme_map={},
            sparsity_ignore_list=[],
            kv_cache_scheme=None,
            packed_modules_mapping=case.packed,
            quant_format="f",
        )
        entries, targeted = Entries.read(case.names), Entries.read(targets)
        manner = fact(version, "ct_rewrite")
        for mapper in case.mappers:
            theirs.apply_vllm_mapper(engine_mapper(version, mapper))
            entries = entries.rewritten(rules_of(version, mapper), manner)
            targeted = targeted.rewritten(rules_of(version, mapper), manner)
        if any(broken(name) for name in (*entries.names, *targeted.names)):
            continue  # a mapper tore a pattern apart: before 0.13 it touched patterns too
        lists = Compressed(prepare(entries), targeted, targets)
        assert list(lists.schemes) == list(theirs.target_scheme_map)
        for prefix in case.prefixes:
            compared += _compare_compressed(version, case, prefix, theirs, lists, rules, functions)
    assert compared >= CASES


def broken(name: str) -> bool:
    try:
        return name.startswith("re:") and re.compile(name[3:]) is None
    except re.error:
        return True


def _compare_compressed(
    version: str, case: Case, prefix: str, theirs: Any, lists: Compressed, rules: CompressedRules, functions: Any
) -> int:
    ours = ignored(prefix, lists.ignore, case.packed, rules)
    answer = outcome(functions["should_ignore_layer"], prefix, list(lists.ignore.entries.names), case.packed)
    if not same(ours, answer, lambda value: (value, None)):
        fail(version, case, prefix, ours, answer)
    for layer, name in CLASS_NAMES.items():
        if layer == "head" and rules.head == "plain":
            continue  # before 0.20.2 a head is not asked for
        module = type(name, (), {})()
        answer = outcome(theirs.get_scheme_dict, module, prefix)
        if layer == "head" and answer[0] == "ValueError":
            answer = ("ok", None)
        ask = compressed_head if layer == "head" else compressed
        ours = ask(prefix, name, lists, case.packed, rules)
        if not _same_scheme(ours, answer, lists):
            fail(version, case, prefix, (name, ours), (answer, theirs.target_scheme_map))
    layer_of_experts = type(rules.experts_class, (), {})()
    layer_of_experts.__dict__.update(
        moe_config=None, ckpt_gate_proj_name="gate_proj", ckpt_up_proj_name="up_proj", ckpt_down_proj_name="down_proj"
    )
    arguments = (theirs, layer_of_experts) if rules.experts == "linear" else (theirs, layer_of_experts, prefix)
    before = dict(theirs.target_scheme_map)
    answer = outcome(functions["experts"], *arguments)
    theirs.target_scheme_map = before
    if answer[0] == "ok" and answer[1] is not None:
        answer = ("ok", {"weights": answer[1]})
    ours = compressed_experts(prefix, lists, case.packed, rules)
    if not _same_scheme(ours, answer, lists.with_experts(rules.experts_class)):
        fail(version, case, prefix, ("experts", ours), (answer, theirs.target_scheme_map))
    return 1 + len(CLASS_NAMES)


def _same_scheme(ours: Match, answer: tuple[str, Any], lists: Compressed) -> bool:
    scheme = None if ours.scheme is None else lists.schemes[ours.scheme]
    return same(
        ours, answer, lambda value: (value is None, ours.scheme if value and value["weights"] == scheme else None)
    )
