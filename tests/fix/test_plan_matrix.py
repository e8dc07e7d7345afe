"""Every broken variant of every family, in one release each: the plan makes it load, or says no.

`python -m tests.conformance.repaired` holds plans for any release against that release itself. Here the result is
judged as a scan would judge its files; nothing is written. What each variant needs beyond the default is said here: a
base model where the branch is missing, a scale of inputs where the checkpoint has none.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from mtpfix.checkpoint import open_checkpoint, read_scalars
from mtpfix.engines import load
from mtpfix.engines.subject import Subject
from mtpfix.families import match
from mtpfix.fix.operations import CopyModule, Dequantize, DropTensors, Quantize
from mtpfix.fix.plan import Plan, make_plan, requests_for
from mtpfix.fix.repairs.repair import Branch, Wishes
from mtpfix.fix.trial import Trial
from mtpfix.model import Checkpoint, Dialect, Severity, Verdict
from mtpfix.rules import run
from mtpfix.rules.context import Context
from tests.checkpoints import build
from tests.conformance.record import cases, golden
from tests.families import FAMILIES

RELEASES = load("vllm").verified
SGLANG = f"sglang=={load('sglang').verified[-1]}"
UNHEALABLE = {
    "published": {"step3p5"},
    "layer-arrays": {"step3p5"},
    "short-arrays": {"step3p5"},
    "compressed-tensors": {"nemotron_h_omni", "nemotron_h_super_omni", "step5", "step5_vl"},
    "missing": {"step5_vl"},
}
"""Variants with families in which some releases have no loadable form: what they read is cut off by their own code.

From vLLM 0.30 on Omni's draft has lost the block, and reads ModelOpt's file alone. Step-5's experts have to lie in one
tensor, and a branch in a file of its own parts its decoder's tensors, between which those of the tower then lie.
"""

BEYOND = {"step3p5", "step3p7"}
"""Families whose draft SGLang builds as layer 45, whatever the configuration counts: these have three layers."""

REFUSING = {name: SpecifierSet(">=0.21,<0.32") for name in ("longcat_flash", "longcat_flash_both")}
"""Families with the releases whose main model raises at tensors of the branch, whatever they hold."""

UNREAD = {"glm_ocr": SpecifierSet(">=0.26,<0.30")}
"""Families with the releases whose draft leaves out its own tensors, whatever they hold."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@cache
def opened(root: Path, family: str, variant: str) -> Checkpoint:
    folder = root / family / variant
    if not folder.exists():
        build(folder, family, variant, sparse=True)
    return open_checkpoint(folder)


def wishes_for(root: Path, family: str, variant: str, mtp: Branch = "auto") -> Wishes:
    """Return what a person would give along for a variant: all that it lacks."""
    lacking = variant == "missing" or (family, variant) == ("step3p7", "published")
    source = "layer-arrays" if (family, variant) == ("step3p7", "published") else "excluded-glob"
    base = str(opened(root, family, source).root) if lacking else None
    return Wishes(mtp, graft=base, input_scale=1.0, unsafe=True)


@cache
def planned(root: Path, family: str, variant: str, release: str, mtp: Branch = "auto") -> tuple[Plan, Context]:
    checkpoint = opened(root, family, variant)
    requests = requests_for([release if "==" in release else f"vllm=={release}"])
    context = Context(Subject(checkpoint), requests, partial(read_scalars, checkpoint))
    return make_plan(context, wishes_for(root, family, variant, mtp)), context


def graver(context: Context) -> list[str]:
    """Return the rules of a checkpoint's errors and warnings."""
    return [finding.rule for finding in run(context) if finding.severity is not Severity.NOTE]


def check(root: Path, family: str, variant: str, release: str) -> str:
    """Return what became of one cell: `absent` (not predicted), `open`, or `loads`, after proving it."""
    plan, context = planned(root, family, variant, release)
    if plan.unpredicted:
        return "absent"
    if not plan.complete:
        broken = any(one.kind == "class-broken" for one in plan.open)  # whatever is stored
        refused = release in REFUSING.get(family, ()) and {one.role for one in plan.open} == {"target"}
        unread = release in UNREAD.get(family, ()) and {one.kind for one in plan.open} == {"weight-missing"}
        beyond = release == SGLANG and family in BEYOND and "array-short" in {one.kind for one in plan.open}
        assert broken or refused or unread or beyond or family in UNHEALABLE.get(variant, set()), plan.open[:3]
        return "open"
    after = Trial(context, plan.operations).context
    (one,) = after.releases
    assert one.model("target").verdict is (Verdict.ABSENT if FAMILIES[family].alone else Verdict.LOADS)
    assert one.model("draft").verdict is Verdict.LOADS
    assert graver(after) == []
    assert all(step.operations for step in plan.steps)
    return "loads"


@pytest.mark.parametrize("variant", ["nothing-excluded", "listed-packed", "branch-fp8", "missing", "no-input-scale"])
@pytest.mark.parametrize("family", ["qwen3_5_moe", "deepseek_v3"])
def test_a_plan_makes_the_newest_release_load(family: str, variant: str, root: Path) -> None:
    assert check(root, family, variant, RELEASES[-1]) == "loads"


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("qwen3_next", "branch-fp8"),  # built NVFP4 whatever is listed, and stored FP8
        ("exaone_moe", "mixed"),  # the draft is asked for by the names of the main model's first layer
        ("glm4_moe", "compressed-tensors"),  # the class reads `weight` of a layer that has `weight_packed`
        ("mimo", "config-only"),  # MIXED_PRECISION counts in config.json alone only beside a key for the cache
    ],
)
def test_a_plan_makes_sglang_load(family: str, variant: str, root: Path) -> None:
    assert check(root, family, variant, SGLANG) == "loads"


def test_an_allow_list_names_what_harms_no_other_module_of_that_name(root: Path) -> None:
    plan, _ = planned(root, "exaone_moe", "mixed", SGLANG)
    titles = [step.title for step in plan.steps]
    assert titles[0] == "add model.layers.1.mlp.shared_experts.{gate,up}_proj (2) to quantized_layers"
    restored = {one.module for one in plan.operations if isinstance(one, Dequantize)}
    assert {name.rpartition(".mlp.")[0] or name.rpartition(".self_attn.")[0] for name in restored} == {"model.layers.0"}


def test_a_weight_only_layer_that_is_one_tensor_on_disk_is_unpacked_for_sglang(root: Path) -> None:
    plan, _ = planned(root, "glm_ocr", "weights-only", SGLANG)  # its one scale would fill the first of two places
    restored = {one.module for one in plan.operations if isinstance(one, Dequantize)}
    assert restored == {f"model.language_model.layers.{layer}.mlp.gate_up_proj" for layer in (0, 1)}
    kept, _ = planned(root, "glm_ocr", "excluded-glob", SGLANG)
    assert not any(isinstance(one, Dequantize) for one in kept.operations)


@pytest.mark.slow
def test_experts_that_lie_one_by_one_are_none_to_a_loader_that_reads_them_together(root: Path) -> None:
    plan, _ = planned(root, "step3p5", "compressed-tensors", SGLANG)
    assert not any(isinstance(one, DropTensors) for one in plan.operations)
    missing = {one.module for one in plan.open if one.kind == "weight-missing"}
    assert missing == {f"model.layers.{n}.moe.{part}_proj" for n in (1, 2) for part in ("gate", "up", "down")}
    stacked, _ = planned(root, "step3p5", "mixed", SGLANG)
    assert {one.kind for one in stacked.open} == {"array-short"}


@pytest.mark.parametrize(
    ("family", "variant", "plain"),
    [
        ("qwen3_5", "excluded-glob", ["mtp.fc"]),  # the list that excludes the branch counts beside an allow-list
        ("qwen3_5", "branch-nvfp4", ["mtp.fc"]),  # packed already: only to be declared so
        ("qwen3_5", "mixed", ["mtp.fc"]),  # the allow-list is there already
        pytest.param("qwen3_5", "hf-quant-only", ["mtp.fc"], marks=pytest.mark.slow),  # config.json gets the same list
        ("deepseek_v3", "compressed-tensors", ["eh_proj", "kv_a_proj_with_mqa", "q_a_proj"]),
        ("deepseek_v3", "conflict", ["eh_proj"]),  # the two files say the same afterwards
        pytest.param("qwen3_next", "published", ["mtp.fc"], marks=pytest.mark.slow),  # the half needs no allow-list
    ],
)
def test_a_branch_is_packed_for_sglang_as_far_as_it_builds_it_so(
    family: str, variant: str, plain: list[str], root: Path
) -> None:
    plan, context = planned(root, family, variant, SGLANG, "nvfp4")
    assert plan.complete
    packed = {name for one in plan.operations if isinstance(one, Quantize) for name in one.modules}
    restored = {one.module for one in plan.operations if isinstance(one, Dequantize)}
    assert not packed & restored
    after = Trial(context, plan.operations).context
    assert graver(after) == []
    assert make_plan(after, wishes_for(root, family, variant, "nvfp4")).steps == ()
    subject = after.subject
    linear = {name: one for name, one in subject.stored.items() if "_proj" in name or name == "mtp.fc"}
    left = {name for name, one in linear.items() if subject.in_branch(name) and one.format.plain}
    assert {name.removeprefix("model.layers.2.").removeprefix("self_attn.") for name in left} == set(plain)
    assert any(note.startswith("Left in 16 bits, as sglang 0.5.23") and plain[0] in note for note in plan.notes)


def test_a_block_that_an_old_sglang_refuses_is_left_to_the_file_that_it_reads(root: Path) -> None:
    plan, context = planned(root, "glm4_moe", "excluded-glob", "sglang==0.5.9")
    assert [step.title for step in plan.steps] == [
        "delete quantization_config of config.json, and leave it to hf_quant_config.json"
    ]
    assert all(step.safe for step in plan.steps)
    everywhere = requests_for(["sglang==0.5.9", "sglang==0.5.23", "vllm==0.32.0"])
    after = Trial(Context(context.subject, everywhere, context.scalars), plan.operations)
    assert [one.model("draft").verdict for one in after.context.releases] == [Verdict.LOADS] * 3


@pytest.mark.parametrize("release", ["0.5.8", "0.5.9"])
def test_the_file_that_an_old_sglang_reads_is_written_where_there_is_none(release: str, root: Path) -> None:
    plan, context = planned(root, "glm4_moe", "config-only", f"sglang=={release}")
    assert [(step.title, step.safe) for step in plan.steps] == [
        ("delete quantization_config of config.json, and leave it to hf_quant_config.json", True)
    ]
    everywhere = requests_for([f"sglang=={release}", "sglang==0.5.23", "vllm==0.32.0"])
    after = Trial(Context(context.subject, everywhere, context.scalars), plan.operations).context
    assert [one.model("draft").verdict for one in after.releases] == [Verdict.LOADS] * 3
    before = context.checkpoint.declarations[0]
    (left,) = after.checkpoint.declarations
    assert (left.file, left.dialect, left.algo, left.excludes) == (
        "hf_quant_config.json", "nested", before.algo, before.excludes
    )  # fmt: skip


@pytest.mark.parametrize(
    ("family", "release"),
    [
        ("glm4_moe", "sglang==0.5.9"),  # refuses the block
        pytest.param("exaone_moe", "sglang==0.5.10", marks=pytest.mark.slow),  # takes it for one of W4AFP8
    ],
)
def test_one_algorithm_is_declared_for_all_where_mixed_precision_is_another_method(
    family: str, release: str, root: Path
) -> None:
    plan, context = planned(root, family, "mixed", release)
    assert plan.complete
    assert not plan.unpredicted
    assert not plan.steps[0].safe  # what is FP8 becomes 16-bit
    restored = {one.module for one in plan.operations if isinstance(one, Dequantize)}
    assert {f"model.layers.{layer}.self_attn.o_proj" for layer in (0, 1)} <= restored
    after = Trial(context, plan.operations).context
    assert {block.algo for block in after.checkpoint.declarations} == {"NVFP4"}
    assert not any(block.layers for block in after.checkpoint.declarations)
    assert [after.releases[0].model(role).verdict for role in ("target", "draft")] == [Verdict.LOADS] * 2


def test_a_norm_that_a_release_looks_for_elsewhere_is_stored_there_too(root: Path) -> None:
    plan, context = planned(root, "hy_v3", "excluded-glob", "sglang==0.5.14")
    copied = [one for one in plan.operations if isinstance(one, CopyModule)]
    assert copied == [CopyModule("model.layers.2.final_layernorm", "model.shared_head.norm")]
    newer = requests_for(["sglang==0.5.14", "sglang==0.5.23"])
    after = Trial(Context(context.subject, newer, context.scalars), plan.operations)
    assert after.bad == frozenset()  # the newer one takes the norm by both names
    refused = Trial(Context(context.subject, requests_for(["vllm==0.32.0"]), context.scalars), plan.operations)
    assert ("vllm 0.32.0", "target", "model.shared_head.norm", "unknown-tensor") in refused.bad
    careful = make_plan(context, replace(wishes_for(root, "hy_v3", "excluded-glob"), unsafe=False))
    assert not any(isinstance(one, CopyModule) for one in careful.operations)
    assert any(note.startswith("Not taken, as vllm") and "copy " in note for note in careful.notes)


@pytest.mark.parametrize(
    ("family", "variant"),
    [
        ("hy_v3", "excluded-glob"),  # one asks for a head without a name, the other with names that begin with a dot
        # one asks for the branch by names of the main model, half of which is packed
        pytest.param("exaone_moe", "branch-fp8", marks=pytest.mark.slow),
        pytest.param("qwen3_next", "branch-fp8", marks=pytest.mark.slow),
        pytest.param("exaone_moe", "listed-packed", marks=pytest.mark.slow),
        # no set of entries mends what is wrong of either model: first those of the main model, then the draft's
        pytest.param("dots3_note", "listed-packed", marks=pytest.mark.slow),
    ],
)
def test_one_plan_serves_both_engines(family: str, variant: str, root: Path) -> None:
    checkpoint = opened(root, family, variant)
    context = Context(Subject(checkpoint), requests_for([SGLANG, "vllm==0.32.0"]), partial(read_scalars, checkpoint))
    plan = make_plan(context, wishes_for(root, family, variant))
    after = Trial(context, plan.operations)
    assert after.bad == frozenset()
    assert {one.model(role).verdict for one in after.context.releases for role in ("target", "draft")} == {
        Verdict.LOADS
    }
    assert graver(after.context) == []
    assert make_plan(after.context, wishes_for(root, family, variant)).steps == ()


def test_where_no_form_loads_the_plan_says_what_stays_open(root: Path) -> None:
    assert check(root, "step3p5", "layer-arrays", "0.32.0") == "open"
    plan, _ = planned(root, "step3p5", "layer-arrays", "0.32.0")
    assert [(one.module, one.error) for one in plan.open] == [("layer_types", "IndexError: list index out of range")]


def test_a_loader_that_counts_its_parameters_misses_the_scale_that_its_layer_never_reads(root: Path) -> None:
    checkpoint = opened(root, "step3p7", "weights-only")
    origin = Trial(Context(Subject(checkpoint), requests_for(["vllm==0.24.0"])))
    heads = [f"model.layers.{layer}.transformer.shared_head.output" for layer in (3, 4, 5)]
    bare, scaled = (origin.plus(Quantize((head,), Dialect.MODELOPT, value) for head in heads) for value in (None, 1.0))
    assert {bad[2:] for bad in origin.bad} == {(head, "plain-into-quantized") for head in heads}
    assert {bad[2:] for bad in bare.bad} == {(head, "scale-missing") for head in heads}
    assert scaled.bad == frozenset()


def release_of(family: str, number: int) -> str:
    """Return the newest release of vLLM, an older one that has the family, or SGLang's newest: in turn."""
    architecture = FAMILIES[family].config("tiny")["architectures"][0]
    known = match(architecture)
    older = [one for one in RELEASES[:-1] if known and known.models("vllm", "draft", architecture, one)]
    recorded = golden(SGLANG.replace("==", "-"), family)
    choices = [RELEASES[-1], *older[number // 3 % max(len(older), 1) :][:1], *([SGLANG] if recorded else [])]
    return choices[number % len(choices)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "release"), [(family, release_of(family, number)) for number, family in enumerate(FAMILIES)]
)
def test_every_variant_loads_after_its_plan(family: str, release: str, root: Path) -> None:
    wrong, told = [], {"loads": 0, "open": 0, "absent": 0}
    variants = [variant for name, variant in cases() if name == family]
    for variant in variants[list(FAMILIES).index(family) % 2 :: 2]:  # the others with the next family
        try:
            told[check(root, family, variant, release)] += 1
        except AssertionError as error:
            wrong.append(f"{variant}: {str(error)[:300]}")
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
    assert sum(told.values()) > 6
