"""Tables of what vLLM's matchers say; each cell was derived by running the engine's own code of that release."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest

from mtpfix.engines.mapping import Entries
from mtpfix.engines.matching import (
    Algorithms,
    Compressed,
    CompressedRules,
    Match,
    MixedSteps,
    Mode,
    Wildcards,
    algorithm,
    compile_pattern,
    compressed,
    compressed_experts,
    compressed_head,
    excluded,
    ignored,
    prepare,
    refused_patterns,
    skipped,
)

PACKED: Mapping[str, Sequence[str]] = {
    "qkv_proj": ["q_proj", "k_proj", "v_proj"],
    "gate_up_proj": ["gate_proj", "up_proj"],
}
ATTENTION = "model.layers.6.self_attn"
QKV = f"{ATTENTION}.qkv_proj"
PARTS = tuple(f"{ATTENTION}.{part}" for part in PACKED["qkv_proj"])
PARTLY = (
    f"Detected some but not all shards of {QKV} are quantized. All shards of fused layers to have the same precision."
)


def said(match: Match) -> str:
    return "E" if match.error else "x" if match.plain else "-"


# Columns: NVFP4 and FP8 of vLLM 0.11.2, ModelOpt of 0.12 to 0.23 and from 0.24; fp8 to 0.23 and from 0.24.
MODELOPT: list[tuple[str, tuple[str, ...], bool, str]] = [
    ("model.layers.60.mlp.down_proj", ("model.layers.6",), False, "- x x x - -"),
    ("model.layers.60.mlp.down_proj", ("model.layers.6*",), False, "x - x x - -"),
    ("model.layers.60.mlp.down_proj", ("model.layers.6.*",), False, "- - - - - -"),
    ("mtp.fc", ("mtp.layers.0*",), False, "- - - - - -"),
    ("mtp.fc", ("mtp*",), False, "x - x x - -"),
    ("model.mtp.fc", ("mtp*",), False, "- - - - - -"),
    ("model.mtp.fc", ("*mtp*",), False, "x - x x - -"),
    (QKV, (QKV,), True, "x - x x - x"),
    (QKV, PARTS[:1], True, "E E E E E E"),
    (QKV, PARTS[:1], False, "- - - - - -"),
    (QKV, PARTS, True, "x x x x x x"),
    (QKV, ("*self_attn.q_proj*",), True, "- - - - - -"),
    ("model.layers.6.mlp.experts", ("model.layers.6.mlp.experts.0.gate_proj",), True, "x x x x x x"),
    ("layers.6.mlp.experts", ("language_model.model.layers.6.mlp.experts.9.up_proj",), True, "x x x x x x"),
    (
        "model.layers.6.mlp.shared_experts.down_proj",
        ("model.layers.6.mlp.shared_experts.down_proj",),
        True,
        "x x x x x x",
    ),
    ("model.layers.6.mlp.gate_up_proj", ("model.layers.6.mlp.gate",), False, "- x x x - -"),
    ("language_model.model.layers.1.mlp.down_proj", ("model.layers.1.mlp",), False, "- x x x - -"),
    ("model.layers.1.mlp.down_proj", ("model.layers.?.mlp.*",), False, "- - x x - -"),
    ("model.layers.1.mlp.down_proj", ("model.layers.[0-3].mlp.down_proj",), False, "x - x x - -"),
    ("model.layers[1].mlp.down_proj", ("model.layers[1].mlp.*",), False, "- - - - - -"),
    ("lm_head", ("lm_head",), False, "x x x x x x"),
    ("model.lm_head", ("lm_head",), False, "- x x x - -"),
    ("lm_head", ("",), False, "- x x x - -"),
    ("lm_head", ("LM_HEAD*",), False, "- - - - - -"),
    ("lm_head", (), False, "- - - - - -"),
]


@pytest.mark.parametrize(("prefix", "names", "fused", "expected"), MODELOPT)
def test_exclusion_lists(prefix: str, names: tuple[str, ...], *, fused: bool, expected: str) -> None:
    packed = PACKED if fused else {}
    kinds: tuple[tuple[Wildcards, bool], ...] = (
        ("regex", False),
        ("substring", False),
        ("glob", False),
        ("glob", True),
    )
    listing = prepare(names)
    found = [
        excluded(prefix, listing, packed, wildcards=wildcards, fused_name_listed=listed) for wildcards, listed in kinds
    ]
    found += [skipped(prefix, listing, packed, fused_name_listed=listed) for listed in (False, True)]
    assert " ".join(map(said, found)) == expected
    for match in found:
        assert match.entry is None or match.entry in names
        assert (match.entry is not None) == (match.plain and match.error is None)
        assert match.error in (None, ("ValueError", PARTLY))


@pytest.mark.parametrize(
    ("mode", "names", "expected"),
    [
        ("exact", ("b_proj",), "-"),
        ("substring", ("b_proj",), "x"),
        ("suffix", ("b_proj",), "x"),
        ("suffix", ("_proj",), "-"),
        ("suffix", ("self_attn.b_proj",), "x"),
        ("suffix", ("x.model.layers.0.self_attn.b_proj",), "-"),
        ("exact", ("model.layers.0.self_attn.b_proj",), "x"),
    ],
)
def test_modes_of_the_exact_matcher(mode: Mode, names: tuple[str, ...], expected: str) -> None:
    match = skipped("model.layers.0.self_attn.b_proj", prepare(names), {}, fused_name_listed=True, mode=mode)
    assert said(match) == expected


def test_experts_are_looked_for_inside_entries_only_in_exact_mode() -> None:
    listing = prepare(["model.layers.0.mlp.experts.3.up_proj"])
    assert said(skipped("layers.0.mlp.experts", listing, {}, fused_name_listed=True)) == "x"
    assert said(skipped("layers.0.mlp.experts", listing, {}, fused_name_listed=True, mode="substring")) == "-"


def test_a_fused_layer_without_parts_stops_the_engine() -> None:
    match = skipped("a.qkv_proj", prepare(["x"]), {"qkv_proj": []}, fused_name_listed=False)
    assert match.error == ("AssertionError", "")


def test_a_match_names_the_entry_as_the_file_spells_it() -> None:
    listing = prepare(Entries(("language_model.model.layers.61", "lm_head"), ("model.layers.61*", "lm_head")))
    match = excluded(
        "language_model.model.layers.61.mlp.down_proj", listing, {}, wildcards="glob", fused_name_listed=True
    )
    assert (match.entry, match.written) == ("language_model.model.layers.61", "model.layers.61*")


@pytest.mark.parametrize("padding", [0, 400])
def test_the_first_entry_that_hits_is_named_in_short_and_long_lists(padding: int) -> None:
    names = [*(f"model.layers.{number}.x" for number in range(padding)), "layers.7", "mlp", "*mlp*", "model.layers.7"]
    match = excluded("model.layers.7.mlp.down_proj", prepare(names), {}, wildcards="glob", fused_name_listed=True)
    assert match.entry == "layers.7"
    assert prepare(names).inside("model.layers.7", proper=True) == padding
    assert prepare(["model.layers.7", *names]).inside("model.layers.7", proper=True) == padding + 1


# --------------------------------------------------------------------------------------------- mixed precision

ALL = MixedSteps(spellings=("head", "wrapped"), siblings=True, parts=True)
NONE = MixedSteps(spellings=(), siblings=False, parts=False)


def resolved(
    prefix: str, layers: Mapping[str, str | None], steps: MixedSteps, packed: Mapping[str, Sequence[str]]
) -> Match:
    return algorithm(prefix, Algorithms(Entries.read(layers), layers), packed, steps)


@pytest.mark.parametrize(
    ("prefix", "layers", "old", "new"),
    [
        ("a.o_proj", {"a.o_proj": "nvfp4"}, "NVFP4", "NVFP4"),
        ("a.o_proj", {"a.q_proj": "NVFP4"}, None, None),
        ("a.qkv_proj", {"a.q_proj": "FP8", "a.k_proj": "FP8"}, None, "FP8"),
        ("a.experts", {"a.experts.0.up_proj": "NVFP4"}, "NVFP4", "NVFP4"),
        ("a.experts", {"a.up_proj": "NVFP4"}, None, "NVFP4"),
        ("a.shared", {"a.sharedexpert.up": "FP8"}, None, None),
        ("model.lm_head", {"lm_head": "NVFP4"}, None, "NVFP4"),
        ("language_model.model.fc", {"model.language_model.fc": "FP8"}, None, "FP8"),
        ("model.language_model.fc", {"language_model.model.fc": "FP8"}, None, "FP8"),
        ("mtp.fc", {}, None, None),
    ],
)
def test_an_allow_list_gives_algorithms(prefix: str, layers: dict[str, str], old: str | None, new: str | None) -> None:
    for steps, expected in ((NONE, old), (ALL, new)):
        match = resolved(prefix, layers, steps, {})
        assert (match.scheme, match.plain) == (expected, expected is None)
        assert match.entry is None or match.entry in layers


def test_parts_of_a_fused_layer_must_have_one_algorithm() -> None:
    layers = {"a.q_proj": "NVFP4", "a.k_proj": "FP8"}
    text = (
        "Mixed quant_algo within fused layer a.qkv_proj: {'FP8', 'NVFP4'}. All shards must use the same quantization."
    )
    assert resolved("a.qkv_proj", layers, NONE, PACKED).error == ("ValueError", text)
    assert resolved("a.qkv_proj", layers, ALL, {}).error == ("ValueError", text)
    assert resolved("a.qkv_proj", layers, NONE, {}).plain


def test_an_entry_without_algorithm_is_a_missing_key() -> None:
    assert resolved("a", {"a": None}, ALL, {}).error == ("KeyError", "'quant_algo'")


def test_a_long_allow_list_is_asked_quickly() -> None:
    leaves = ("up_proj", "down_proj")
    layers = {
        f"model.layers.{layer}.mixer.experts.{expert}.{leaf}": "NVFP4"
        for layer in range(40)
        for expert in range(512)
        for leaf in leaves
    }
    assert len(layers) > 40_000
    prefixes = [
        f"model.layers.{layer}.mixer.{leaf}" for layer in range(400) for leaf in ("experts", "in_proj", "q", "k", "v")
    ]
    begun = time.perf_counter()
    table = Algorithms(Entries.read(layers), layers)
    found = [algorithm(prefix, table, PACKED, ALL) for prefix in prefixes]
    assert time.perf_counter() - begun < 2  # measured 0.15 s; a search through the list takes minutes
    assert sum(match.scheme == "NVFP4" for match in found) == 40


# ------------------------------------------------------------------------------------------- compressed-tensors

OLD = CompressedRules(
    shards=True,
    fused_first=False,
    unmatched_raises=True,
    experts="first",
    experts_class="FusedMoE",
    head="asked",
    entries="pattern",
    differ="{parts} of {prefix} differ",
)
NEW = replace(OLD, shards=False, fused_first=True, unmatched_raises=False, experts_class="RoutedExperts")
FIRST = replace(OLD, experts="linear")
LINEAR = "ColumnParallelLinear"


def lists(ignore: Sequence[str], targets: Mapping[str, object]) -> Compressed:
    return Compressed(prepare(ignore), Entries.read(targets), targets)


@pytest.mark.parametrize(
    ("prefix", "names", "old", "new"),
    [
        (QKV, PARTS, "x", "x"),
        (QKV, PARTS[:2], "E", "E"),
        (QKV, (QKV,), "x", "x"),
        (QKV, ("re:.*qkv_proj",), "-", "x"),
        (QKV, ("re:.*self_attn.*",), "x", "x"),
        (QKV, ("re:.*q_proj",), "E", "E"),
        ("mtp.fc", ("mtp",), "-", "-"),
        ("mtp.fc", ("re:mtp",), "x", "x"),
        ("model.mtp.fc", ("re:mtp",), "-", "-"),
        ("mtp.fc", ("re:mtp[",), "-", "-"),
    ],
)
def test_ignore_lists_of_compressed_tensors(prefix: str, names: tuple[str, ...], old: str, new: str) -> None:
    before, after = (ignored(prefix, prepare(names), PACKED, rules) for rules in (OLD, NEW))
    assert (said(before), said(after)) == (old, new)
    if old == "E":
        error = ("ValueError", f"['q_proj', 'k_proj', 'v_proj'] of {QKV} differ")
        assert (before.error, after.error) == (error, error)


@pytest.mark.parametrize(
    ("prefix", "entry", "part", "end"),
    [
        (f"{ATTENTION}.o_proj", "self_attn.o_proj", "x", "x"),
        (f"{ATTENTION}.o_proj", "SELF_attn", "x", "-"),
        (f"{ATTENTION}.o_proj", "attn.o_proj", "x", "-"),
        ("model.layers.0.mlp.experts.0.gate_proj", "model.layers.0.mlp.experts.0", "x", "-"),
        ("model.layers.60.mtp", "model.layers.6", "x", "-"),
        (QKV, "q_proj", "E", "E"),
        (QKV, "self_attn", "x", "-"),
        (QKV, "re:.*self_attn.*", "x", "x"),
        ("mtp.fc", "re:FC", "-", "-"),
    ],
)
def test_sglang_took_entries_for_parts_of_names_and_takes_them_for_ends(
    prefix: str, entry: str, part: str, end: str
) -> None:
    answers = (ignored(prefix, prepare((entry,)), PACKED, replace(OLD, entries=one)) for one in ("part", "end"))
    assert tuple(map(said, answers)) == (part, end)


def test_a_head_may_need_a_target_that_names_it() -> None:
    rules = replace(OLD, head="named", entries="end")
    for target, quantized in (("ParallelLMHead", False), ("Linear", False), ("lm_head", True), ("re:.*lm_head", True)):
        match = compressed_head("model.lm_head", "ParallelLMHead", lists((), {target: "A"}), {}, rules)
        assert match.plain is not quantized
    assert compressed_head("lm_head", "ParallelLMHead", lists(("lm_head",), {"lm_head": "A"}), {}, rules).plain


def test_experts_may_be_ignored_by_their_own_name_or_else_are_what_linear_is() -> None:
    rules = replace(OLD, experts="listed")
    experts = "model.layers.0.mlp.experts"
    assert compressed_experts(experts, lists((experts,), {"Linear": "A"}), {}, rules).plain
    assert (
        compressed_experts(experts, lists((f"{experts}.0.gate_proj",), {"Linear": "A"}), {}, rules).scheme == "Linear"
    )
    assert compressed_experts(experts, lists((), {"re:.*": "A"}), {}, rules).error == ("KeyError", "'Linear'")


def test_targets_are_names_patterns_or_parts_of_class_names() -> None:
    targets = {"Linear": "A", f"{ATTENTION}.o_proj": "B", "re:.*down_proj": "C"}
    for prefix, expected in ((f"{ATTENTION}.o_proj", "B"), ("x.down_proj", "C"), ("x.other", "A")):
        match = compressed(prefix, "RowParallelLinear", lists((), targets), {}, NEW)
        assert match.scheme is not None
        assert targets[match.scheme] == expected


def test_parts_of_a_fused_layer_come_before_class_names_only_from_0_27_1() -> None:
    prepared = lists((), {"Linear": "A", **dict.fromkeys(PARTS, "B")})
    assert compressed(QKV, "QKVParallelLinear", prepared, PACKED, OLD).scheme == "Linear"
    assert compressed(QKV, "QKVParallelLinear", prepared, PACKED, NEW).scheme == PARTS[0]
    assert compressed(QKV, "QKVParallelLinear", lists((), {PARTS[0]: "B"}), PACKED, NEW).plain


def test_a_layer_without_target_was_an_error_and_is_plain() -> None:
    prepared = lists((), {"re:.*experts.*": "A"})
    text = "Unable to find matching target for mtp.fc in the compressed-tensors config."
    assert compressed("mtp.fc", LINEAR, prepared, {}, OLD).error == ("ValueError", text)
    assert compressed("mtp.fc", LINEAR, prepared, {}, NEW) == Match(plain=True)
    assert compressed("mtp.fc", LINEAR, lists((), {}), {}, OLD).plain


def test_a_head_needs_a_target_that_names_it_and_swallows_errors() -> None:
    assert compressed_head("lm_head", "ParallelLMHead", lists((), {"Linear": "A"}), {}, OLD).plain
    assert (
        compressed_head("lm_head", "ParallelLMHead", lists((), {"re:.*lm_head": "A"}), {}, OLD).scheme == "re:.*lm_head"
    )
    assert compressed_head("lm_head", "ParallelLMHead", lists((), {"ParallelLMHead": "A"}), {}, NEW).scheme is not None


def test_experts_follow_the_parts_of_the_first_expert() -> None:
    first = "model.layers.0.mlp.experts"
    for rules in (OLD, NEW):
        assert compressed_experts(first, lists((), {"Linear": "A"}), {}, rules).written == "Linear"
        assert compressed_experts(first, lists(("re:.*experts.*",), {"Linear": "A"}), {}, rules).plain
        assert not compressed_experts(first, lists((first,), {"Linear": "A"}), {}, rules).plain
        mixed = lists((f"{first}.0.down_proj",), {"Linear": "A"})
        text = "All MoE projections need to have same quantization scheme but found multiple"
        assert compressed_experts(first, mixed, {}, rules).error == ("ValueError", text)
    assert compressed_experts(first, lists((), {"re:.*self_attn.*": "A"}), {}, NEW).plain
    renamed = lists((f"{first}.0.w1", f"{first}.0.w2", f"{first}.0.w3"), {"Linear": "A"})
    assert compressed_experts(first, renamed, {}, NEW, parts=("w1", "w3", "w2")).plain


def test_before_0_12_linear_targets_experts_whatever_is_ignored() -> None:
    first = "model.layers.0.mlp.experts"
    assert compressed_experts(first, lists((f"re:{first}.*",), {"Linear": "A"}), {}, FIRST).scheme == "Linear"
    patterns = {"re:.*(down|gate|up)_proj.*": "A"}
    assert compressed_experts(first, lists((), patterns), {}, FIRST).scheme == "re:.*(down|gate|up)_proj.*"
    text = "Unable to find matching target for re:.*down_proj.* in the compressed-tensors config."
    assert compressed_experts(first, lists((), {"re:.*o_proj": "A"}), {}, FIRST).error == ("ValueError", text)
    apart = {"re:.*down_proj.*": "A", "re:.*(gate|up)_proj.*": "B"}
    assert compressed_experts(first, lists((), apart), {}, FIRST).error == ("AssertionError", "")


# ----------------------------------------------------------------------------------------- patterns of files


@pytest.mark.parametrize(
    "pattern",
    [
        ".*",
        ".*mtp.*",
        r".*\.layers\.45\..*",
        r"model\.layers\.\d+\.mlp\.(gate|up)_proj",
        r".*layers\.(?:[0-9]|1[0-9])\.mlp\.experts\.\d+\..*_proj",
        "^lm_head$",
        r"(?i).*MTP.*",
        r"(?:model\.)?mtp.*",
        "visual.*",
        r".*\.mlp\.shared_experts?\..*",
        "[a-z_]+[.]fc",
    ],
)
def test_patterns_as_published_lists_have_them_are_run(pattern: str) -> None:
    assert compile_pattern(pattern) is not None
    assert refused_patterns([f"re:{pattern}"]) == ()


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a*)*b",
        "(?:a|a)*b",
        "(x+x+)+y",
        "((a)+)+",
        "(a?){30}",
        "(.*a){20}",
        ".*.*.*.*.*.*x",
        "a?a?a?a?a?a?b",
        "[",
        "(",
        ")",
        "*",
        "a{e<=1}",
        "[[:alpha:]]+x",
        r"\p{L}",
        "(?R)",
        "x" * 1000,
        "(" * 400 + ")" * 400 + "{",
    ],
)
def test_patterns_that_may_run_for_years_or_mean_something_else_are_refused(pattern: str) -> None:
    assert compile_pattern(pattern) is None
    name = f"re:{pattern}"
    assert refused_patterns([name, "lm_head"]) == (name,)
    begun = time.perf_counter()
    assert not ignored("a" * 200, prepare([name]), {}, NEW).plain
    assert time.perf_counter() - begun < 1


def test_starred_entries_of_0_11_are_patterns_too() -> None:
    assert refused_patterns(["*.a", "model.layers.*.mlp", "lm_head", "["], starred=True) == ()
    assert refused_patterns(["[.", "*a*b*c*d*e*f*", "(.a+)+"], starred=True) == ("[.", "*a*b*c*d*e*f*", "(.a+)+")
