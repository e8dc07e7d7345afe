"""Every rule has a checkpoint on which it fires and a near miss on which it is silent; nothing fires without cause."""

from __future__ import annotations

import json
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from mtpfix import Report, scan
from mtpfix.engines import load
from mtpfix.model import Finding, Ignore, Severity, Verdict
from mtpfix.rules import all_rules, find
from tests.checkpoints import VARIANTS, Tensor, build, flat, plan, tensors_of, write, write_shard
from tests.families import EVERY_TIME, FAMILIES, LIKE_ANOTHER

NEWEST = f"vllm=={load('vllm').releases[-1]}"
CONFIG = "config.json"
HF_QUANT = "hf_quant_config.json"
INDEX = "model.safetensors.index.json"
FIRST = "model-00001-of-00002.safetensors"
LAST = "model-00002-of-00002.safetensors"
PROJECTIONS = "model.language_model.layers.0.mlp"
Change = Callable[[Path], object]


# ------------------------------------------------------------------------------------------- changes to a folder


def keep(_: Path) -> None:
    """Leave a checkpoint as it was built."""


def edit(folder: Path, change: Callable[[dict[str, Any]], object], file: str = CONFIG) -> None:
    content = json.loads((folder / file).read_text())
    change(content)
    (folder / file).write_text(json.dumps(content))


def in_config(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda folder: edit(folder, change)


def in_index(change: Callable[[dict[str, Any]], object]) -> Change:
    return lambda folder: edit(folder, change, INDEX)


def in_block(**values: object) -> Change:
    return in_config(lambda config: config["quantization_config"].update(values))


def headers(path: Path) -> tuple[dict[str, Any], bytes]:
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def change_header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header, body = headers(path)
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def shard_of(folder: Path, name: str) -> Path:
    index = json.loads((folder / INDEX).read_text())
    return folder / str(index["weight_map"][name])


def fill(folder: Path, name: str, value: float) -> None:
    """Write a float32 tensor of one element."""
    path = shard_of(folder, name)
    header, body = headers(path)
    begin = header[name]["data_offsets"][0]
    changed = bytearray(path.read_bytes())
    place = len(changed) - len(body) + begin
    changed[place : place + 4] = struct.pack("<f", value)
    path.write_bytes(changed)


def rename(folder: Path, old: str, new: str) -> None:
    """Rename a tensor in its shard and in the index, its size and place unchanged."""
    change_header(shard_of(folder, old), lambda header: header.update({new: header.pop(old)}))
    edit(folder, lambda index: index["weight_map"].update({new: index["weight_map"].pop(old)}), INDEX)


def drop(folder: Path, name: str) -> None:
    """Take a tensor out of its shard, data and all, and out of the index."""
    path = shard_of(folder, name)
    header, body = headers(path)
    begin, end = header.pop(name)["data_offsets"]
    for tensor, entry in header.items():
        if tensor != "__metadata__":
            entry["data_offsets"] = [at - (end - begin) * (at >= end) for at in entry["data_offsets"]]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body[:begin] + body[end:])

    def forget(index: dict[str, Any]) -> None:
        del index["weight_map"][name]
        index["metadata"]["total_size"] -= end - begin

    edit(folder, forget, INDEX)


def add_shard(folder: Path, file: str, names: list[str], *, indexed: list[str]) -> None:
    """Write one more shard of BF16 tensors, of which the index names some."""
    size = write_shard(folder / file, [Tensor(name, "BF16", (4, 8)) for name in names])

    def place(index: dict[str, Any]) -> None:
        index["weight_map"].update(dict.fromkeys(indexed, file))
        index["metadata"]["total_size"] += size

    edit(folder, place, INDEX)


def without_mtp_keys(folder: Path) -> None:
    edit(folder, lambda config: config.pop("num_nextn_predict_layers"))


def disagree(folder: Path) -> None:
    edit(folder, lambda content: content["quantization"]["exclude_modules"].append("model.layers.1.mlp*"), HF_QUANT)


def reorder(folder: Path) -> None:
    edit(folder, lambda content: content["quantization"]["exclude_modules"].reverse(), HF_QUANT)


def nest(excludes: list[str] | None) -> Change:
    """Put a copy of the block into text_config, its list replaced or (None) equal."""

    def change(config: dict[str, Any]) -> None:
        block = dict(config["quantization_config"])
        config["text_config"]["quantization_config"] = block if excludes is None else block | {"ignore": excludes}

    return in_config(change)


def exclude(*entries: str) -> Change:
    """Add entries to both lists."""

    def change(folder: Path) -> None:
        edit(folder, lambda config: config["quantization_config"]["ignore"].extend(entries))
        edit(folder, lambda content: content["quantization"]["exclude_modules"].extend(entries), HF_QUANT)

    return change


def differ(folder: Path) -> None:
    fill(folder, f"{PROJECTIONS}.up_proj.weight_scale_2", 0.04)


def differ_outside_a_fused_layer(folder: Path) -> None:
    fill(folder, f"{PROJECTIONS}.down_proj.weight_scale_2", 0.04)


def reshape_scale(folder: Path) -> None:
    name = f"{PROJECTIONS}.down_proj.weight_scale"

    def flatten(header: dict[str, Any]) -> None:
        rows, columns = header[name]["shape"]
        header[name]["shape"] = [rows * columns]

    change_header(shard_of(folder, name), flatten)


def declare_modelopt(folder: Path) -> None:
    block = flat("NVFP4", ["lm_head", "mtp*", "*visual*", "*linear_attn*", "*self_attn*"])
    edit(folder, lambda config: config.update(quantization_config=block))


def pack_linear_attention(folder: Path) -> None:
    """Store the two wide input projections of linear attention as NVFP4, and list them no more."""
    packed = ("linear_attn.in_proj_qkv", "linear_attn.in_proj_z")
    excludes = ["lm_head", "mtp*", "model.visual*", "*self_attn*"]
    excludes += [f"*linear_attn.{name}" for name in ("conv1d", "in_proj_a", "in_proj_b", "out_proj", "in_proj_ba")]
    planned = plan("qwen3_5", "excluded-glob", excludes=excludes)
    groups = tuple(
        tuple(tensors_of(module, "NVFP4", VARIANTS["excluded-glob"])) if module.name.endswith(packed) else group
        for module, group in zip(planned.modules, planned.groups, strict=True)
    )
    shutil.rmtree(folder)
    write(folder, replace(planned, groups=groups))


def truncate(folder: Path) -> None:
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:100])


def swap_places(index: dict[str, Any]) -> None:
    index["weight_map"]["mtp.fc.weight"] = FIRST


def replace_by_pointer(text: str) -> Change:
    return lambda folder: (folder / LAST).write_text(text)


def misspell(name: str) -> Change:
    return lambda folder: rename(folder, "mtp.norm.weight", name)


# --------------------------------------------------------------------------------------------------- the pairs


@dataclass(frozen=True)
class Case:
    """A tiny checkpoint, a change to it, and the releases it is judged for."""

    family: str
    variant: str
    change: Change = keep
    engine: str = NEWEST
    ignores: tuple[Ignore, ...] = ()
    ranks: int = 1


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
GOOD = Case("qwen3_5", "excluded-glob")


def good(change: Change, engine: str = NEWEST) -> Case:
    return Case(GOOD.family, GOOD.variant, change, engine)


def delete(file: str) -> Change:
    return lambda folder: (folder / file).unlink()


PAIRS: dict[str, tuple[Case, Case]] = {
    "MTP101": (Case("qwen3_5", "missing"), Case("qwen3_5", "no-mtp")),
    "MTP102": (Case("glm4_moe", "excluded-glob", without_mtp_keys), Case("glm4_moe", "no-mtp")),
    "MTP103": (Case("step3p7", "short-arrays"), Case("step3p7", "layer-arrays")),
    "MTP104": (
        good(lambda folder: drop(folder, "mtp.layers.0.mlp.down_proj.weight")),
        Case("qwen3_5", "missing"),
    ),
    "MTP201": (Case("qwen3_5", "nothing-excluded"), Case("qwen3_5", "excluded-engine")),
    "MTP202": (Case("glm4_moe", "excluded-exact"), Case("glm4_moe", "excluded-glob")),
    "MTP203": (Case("qwen3_5", "packed-glue"), Case("qwen3_5", "branch-nvfp4")),
    "MTP204": (Case("deepseek_v3", "published"), Case("deepseek_v3", "excluded-exact")),
    "MTP205": (
        Case("qwen3_5", "compressed-tensors", declare_modelopt),
        Case("qwen3_5", "compressed-tensors"),
    ),
    "MTP206": (good(misspell("mtp.nrom.weight")), GOOD),
    "MTP207": (Case("qwen3_5", "listed-packed"), Case("qwen3_5", "branch-nvfp4")),
    "MTP208": (
        good(in_config(lambda config: config["text_config"].update(intermediate_size=512))),
        good(in_config(lambda config: config["text_config"].update(max_position_embeddings=512))),
    ),
    "MTP301": (Case("qwen3_5", "no-input-scale"), Case("qwen3_5", "weights-only")),
    "MTP302": (good(reshape_scale), GOOD),
    "MTP303": (good(differ), good(differ_outside_a_fused_layer)),
    "MTP304": (good(pack_linear_attention, "vllm==0.19.1"), good(pack_linear_attention)),
    "MTP401": (good(disagree), good(reorder)),
    "MTP402": (good(nest(["lm_head"])), good(nest(None))),
    "MTP403": (good(in_block(quant_algo="NVFP5")), GOOD),
    "MTP404": (
        Case("qwen3_5", "weights-only", engine="vllm==0.19.1"),
        Case("qwen3_5", "weights-only"),
    ),
    "MTP405": (good(exclude("mtp.layer.0*")), good(exclude("mtp.layers.0*"))),
    "MTP501": (good(delete(LAST)), GOOD),
    "MTP502": (
        good(lambda folder: add_shard(folder, "mtp.safetensors", ["mtp.extra.weight"], indexed=[])),
        good(lambda folder: write_shard(folder / "README.txt", [])),
    ),
    "MTP503": (good(in_index(lambda index: index["weight_map"].update(ghost=LAST))), GOOD),
    "MTP504": (good(in_index(lambda index: index["weight_map"].pop("mtp.fc.weight"))), GOOD),
    "MTP505": (good(in_index(swap_places)), GOOD),
    "MTP506": (
        good(lambda folder: add_shard(folder, "model-extra.safetensors", ["mtp.fc.weight", "a"], indexed=["a"])),
        good(lambda folder: add_shard(folder, "model-extra.safetensors", ["b", "a"], indexed=["b", "a"])),
    ),
    "MTP507": (
        good(in_index(lambda index: index["metadata"].update(total_size=index["metadata"]["total_size"] + 1))),
        good(in_index(lambda index: index.pop("metadata"))),
    ),
    "MTP508": (good(in_index(lambda index: index["weight_map"].update(x="../x.safetensors"))), GOOD),
    "MTP509": (good(truncate), GOOD),
    "MTP510": (good(replace_by_pointer(POINTER)), good(replace_by_pointer("not a shard"))),
    "MTP511": (good(misspell("mtp.\u202enorm.weight")), good(misspell("mtp.n\u00f6rm.weight"))),
    "MTP601": (
        good(in_config(lambda config: config.update(architectures=["NobodyForCausalLM"]))),
        GOOD,
    ),
    "MTP602": (Case("step3p5", "compressed-tensors"), Case("step3p7", "layer-arrays")),
    "MTP603": (Case("qwen3_5", "excluded-glob", engine="vllm==0.11.2"), GOOD),
    "MTP604": (
        Case("mimo", "excluded-engine", ranks=8),
        Case("mimo", "excluded-engine", ranks=4),
    ),
    "MTP701": (
        Case("qwen3_5", "excluded-glob", ignores=(Ignore("MTP603", "old releases.", until=date(2020, 1, 1)),)),
        Case("qwen3_5", "excluded-glob", ignores=(Ignore("MTP603", "old releases.", until=date(9999, 1, 1)),)),
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Build each unchanged checkpoint once."""
    root = tmp_path_factory.mktemp("tiny")

    def made(family: str, variant: str) -> Path:
        folder = root / family / variant
        if not folder.exists():
            build(folder, family, variant, sparse=True)
        return folder

    return made


Fixtures = Callable[[str, str], Path]


def judge(case: Case, fixtures: Fixtures, folder: Path) -> Report:
    copy = folder / "model"
    shutil.copytree(fixtures(case.family, case.variant), copy)
    case.change(copy)
    return scan(copy, engines=[case.engine], ignores=case.ignores, tp=case.ranks)


def of(report: Report, code: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.rule == code]


def grave(report: Report) -> set[str]:
    return {finding.rule for finding in report.findings if finding.severity is not Severity.NOTE}


def test_every_rule_has_a_pair() -> None:
    assert {rule.code for rule in all_rules()} == set(PAIRS)


@pytest.mark.parametrize("code", PAIRS)
def test_a_rule_fires_on_its_fault_and_not_on_the_near_miss(code: str, fixtures: Fixtures, tmp_path: Path) -> None:
    fault, near_miss = PAIRS[code]
    found = of(judge(fault, fixtures, tmp_path / "fault"), code)
    assert found
    for finding in found:
        assert finding.name == find(code).name
        assert finding.message.endswith(".")
        assert finding.count >= 1
    assert not of(judge(near_miss, fixtures, tmp_path / "near"), code)


# ----------------------------------------------------------------------------------------------------- the matrix

MATRIX = """
                   qwen3_5     qwen3_5_moe qwen3_next  deepseek_v3 glm4_moe    step3p5     step3p7     nemotron_h
published          -           -           -           204         -           -           101+103     -
excluded-glob      -           -           -           -           -           602         602         -
excluded-exact     -           -           -           202         202         202+602     202+602     -
excluded-engine    -           -           -           -           202         602         602         -
nothing-excluded   201         201         201         201         201+202     201+602     201+602     201
branch-nvfp4       -           -           -           202         202         202+602     202+602     -
all-nvfp4          203         203         203         201+203     202+203     201+203+602 201+203+602 -
missing            101         101         101         101         101         101+602     101+602     101
config-only        -           -           -           -           -           602         602         -
hf-quant-only      -           -           -           -           -           602         602         -
mixed              -           -           -           -           -           602         602         -
compressed-tensors -           -           -           -           -           602         602         -
packed-glue        203         203         203         203         203         203+602     203+602     207
listed-packed      207         207         207         207         207         207+602     207+602     207
branch-fp8         207         207         207         207         207         207+602     207+602     207
o-proj-unlisted    201         201         201         201+202     201+202     201+202+602 201+202+602 201
packed-head        -           -           203         -           207         602         602         -
conflict           201+401     201+401     201+401     201+401     201+202+401 201+401+602 201+401+602 201+401
no-input-scale     301         301         301         301         301         301+602     301+602     301
weights-only       -           -           -           -           -           602         602         -
no-mtp             -           -           -           -           -           -           -           -
fused-experts      .           -           .           .           .           .           .           .
layer-arrays       .           .           .           .           .           -           -           .
short-arrays       .           .           .           .           .           103         103         .
"""
"""Errors and warnings, `MTP` left out, in the newest release; `-` is silence, `.` a variant that a family has not."""

RENAMED = """
                   mimo         mimo_v2      ernie4_5_moe
published          202          -            202
excluded-glob      202          -            202
excluded-exact     202          -            202
excluded-engine    -            -            -
nothing-excluded   201          201          201
branch-nvfp4       -            203          -
all-nvfp4          203          203          203
missing            101          .            101
config-only        202          -            202
hf-quant-only      202          -            202
mixed              -            -            -
compressed-tensors 201          -            201
packed-glue        202+203      203          202+203
listed-packed      -            203+207      -
branch-fp8         205          203+207      205
o-proj-unlisted    201+202      -            201+202
packed-head        202+203      203          202
conflict           201+401      201+401      201+401
no-input-scale     202+301      301          202+301
weights-only       202          -            202
fused-experts      .            .            .
layer-arrays       .            .            .
short-arrays       .            .            .
no-mtp             -            -            -
"""
"""The same for families whose branch vLLM asks its lists for by other names, or loads without a word."""


FURTHER = """
                   glm4_moe_lite  glm_moe_dsa  openpangu   longcat_flash  exaone_moe  hy_v3
published          104+201        104+201      -           202            202         202
excluded-glob      -              -            -           202            202         202
excluded-exact     104            104          -           202            202         202
excluded-engine    104            104          -           -              202         202
nothing-excluded   104+201        104+201      201         201            201+202     201+202
branch-nvfp4       104            104          -           202+206+301    202         202
all-nvfp4          104+203        104+203      201+203     206+301        202         202+203
missing            101            101          101         .              101+202     101+202
config-only        -              -            -           202            202         202
hf-quant-only      -              -            -           202            202         202
mixed              -              -            -           -              -           -
compressed-tensors -              -            -           201+202        -           -
packed-glue        203            203          203         202+206+301    202+207     202+203
listed-packed      207            207          207         202+206+301    202+207     202+207
branch-fp8         207            207          207         202+205        202+207     202+207
o-proj-unlisted    104+201        104+201      201         201+202        201+202     201+202
packed-head        -              -            -           104+202        203         301
conflict           104+201+401    104+201+401  201+401     201+401        201+202+401 201+202+401
no-input-scale     301            301          301         202+301        202+301     202+301
weights-only       -              -            -           202            202         202
fused-experts      .              .            .           .              .           .
layer-arrays       .              .            .           .              .           .
short-arrays       .              .            .           .              .           .
no-mtp             -              -            -           -              202         -
"""
"""The same for families with latent attention, and for two whose head vLLM asks its lists for with an empty name."""

OTHERWISE_WRITTEN = """
                    longcat_flash_both  exaone_moe_renamed
published           202                 202
excluded-glob       202                 202
excluded-exact      202                 202
excluded-engine     -                   202
nothing-excluded    201                 201+202
branch-nvfp4        202+206+301         202
all-nvfp4           206+301             202
missing             .                   101+202
config-only         202                 202
hf-quant-only       202                 202
mixed               -                   -
compressed-tensors  201+202             -
packed-glue         202+206+301         202+207
listed-packed       202+206+301         202+207
branch-fp8          202+205             202+207
o-proj-unlisted     201+202             201+202
packed-head         104+202             203
conflict            201+401             201+202+401
no-input-scale      202+301             202+301
weights-only        202                 202
fused-experts       .                   .
layer-arrays        .                   .
short-arrays        .                   .
no-mtp              -                   202
"""
"""The same for LongCat-Flash with both numbers of layers, and K-EXAONE by the name that transformers has for it."""


RECENT = """
                   bailing_v2_5     bailing_v3   minimax_m3
published          202+304          -            202
excluded-glob      202+304          -            202
excluded-exact     202+304          202          202
excluded-engine    202+304          202          -
nothing-excluded   201+202+304      201+202      201
branch-nvfp4       202+304          202          202+302
all-nvfp4          202+203+304      202          302
missing            101+202+304      101          101
config-only        202+304          -            202
hf-quant-only      202+304          -            202
mixed              -                -            -
compressed-tensors 202+304          202          201
packed-glue        202+203+304      207          202
listed-packed      202+207+304      207          202+302
branch-fp8         202+207+304      207          202+205
o-proj-unlisted    202+304          202          201+202
packed-head        202+207+304      207          202+207
conflict           201+202+304+401  201+202+401  201+401
no-input-scale     202+301+304      301          202+301
weights-only       202+304          -            202
fused-experts      .                .            .
layer-arrays       .                .            .
short-arrays       .                .            .
no-mtp             202+304          -            -
"""
"""The same for the most recent families."""

NEWER = """
                    glm_ocr      exaone4_5  mimo_v2_pro  mimo_v2_omni  hy_v4    glm5_next
published           202          -          -            202           202      201
excluded-glob       202          -          -            202           202      202
excluded-exact      202          -          -            202           -        202
excluded-engine     -            -          -            201+202       -        -
nothing-excluded    201+202      201        201          201           201      201
branch-nvfp4        202          -          203+302      203+302       -        203
all-nvfp4           201+202+203  -          203+302      203+302       203      203
missing             101+202      101        .            .             101      101
config-only         202          -          -            202           202      202
hf-quant-only       202          -          -            202           202      202
mixed               -            -          -            -             -        203
compressed-tensors  201          201        -            -             201      201
packed-glue         202+203      207        203          202+203       202+203  202+203
listed-packed       202          207        203+207      203+302       -        203
branch-fp8          202+205      207        203+207      203+205       205      203+205
o-proj-unlisted     201+202      201        -            202           201      202
packed-head         202+301      203        203          202+203       202+301  202
conflict            201+202+401  201+401    201+401      201+401       201+401  201+401
no-input-scale      202+301      301        301          202+301       202+301  202+301
weights-only        202          -          -            202           202      202
fused-experts       .            .          .            .             .        .
layer-arrays        .            .          .            .             .        .
short-arrays        .            .          .            .             .        .
no-mtp              -            -          -            -             -        -
"""
"""The same for families whose branch vLLM asks for by names that no list on disk has, and for two where it does not."""

NEWEST_FAMILIES = """
                    qwen4_exp  kimi_k3  inkling   inkling_text  exaone_moe_windows
published           201        202      -         -             202
excluded-glob       -          202      -         -             202
excluded-exact      -          202      -         -             202
excluded-engine     -          -        -         -             202
nothing-excluded    201        201      201       201           201+202
branch-nvfp4        203        202      -         -             202
all-nvfp4           203        201+203  -         -             202
missing             101        101      101       101           101+202
config-only         -          202      -         -             202
hf-quant-only       -          202      -         -             202
mixed               -          -        -         -             -
compressed-tensors  -          201      201       201           -
packed-glue         207        202+203  207       207           202+207
listed-packed       203+207    202      207       207           202+207
branch-fp8          203+207    202+205  207       207           202+207
o-proj-unlisted     201        201+202  -         -             201+202
packed-head         203        202      -         -             203
conflict            201+401    201+401  201+401   201+401       201+202+401
no-input-scale      301        202+301  301       301           202+301
weights-only        -          202      -         -             202
fused-experts       .          .        .         .             .
layer-arrays        .          .        .         .             .
short-arrays        .          .        .         .             .
no-mtp              -          -        -         -             202
listed-experts      .          .        207       207           .
plain-experts       .          .        201       201           .
"""
"""The same for the newest families."""


FROM_ELSEWHERE = """
                    dots3_note      deepseek_v4     bailing_v3_vl
published           104+202         202             202
excluded-glob       104+202         202             202
excluded-exact      104+202         202             202
excluded-engine     104+201+202     -               201+202
nothing-excluded    104+201         201             201+202
branch-nvfp4        104+202         202             202
all-nvfp4           104             -               202
missing             101             101             101+202
config-only         104+202         202             202
hf-quant-only       104+202         202             202
mixed               -               -               -
compressed-tensors  202             201             201+202
packed-glue         104+202         202             202
listed-packed       104+202         202             202
branch-fp8          104+202+205     202+205         202+205
o-proj-unlisted     104+201+202     202             202
packed-head         104+202         104+202+203     202+301
conflict            104+201+401     201+401         201+202+401
no-input-scale      104+202+301     202+301         202+301
weights-only        104+202         202             202
fused-experts       .               .               .
layer-arrays        .               .               .
short-arrays        .               .               .
no-mtp              -               -               -
"""
"""The same for families whose lists, as they are on disk, never reach the branch."""


IN_SGLANG = """
                    qwen3_moe
published           202
excluded-glob       202
excluded-exact      202
excluded-engine     202
nothing-excluded    201
branch-nvfp4        207
all-nvfp4           203+207
missing             101
config-only         202
hf-quant-only       202
mixed               201
compressed-tensors  201
packed-glue         202+203
listed-packed       207
branch-fp8          205+207
o-proj-unlisted     202
packed-head         202+301
conflict            201+401
no-input-scale      202+301
weights-only        202+301
fused-experts       .
layer-arrays        .
short-arrays        .
no-mtp              -
"""
"""The same for families whose branch SGLang alone loads, in its newest release."""


def cells(*matrices: str) -> dict[tuple[str, str], set[str]]:
    table: dict[tuple[str, str], set[str]] = {}
    for matrix in matrices:
        head, *rows = matrix.strip("\n").splitlines()
        for row in rows:
            variant, *codes = row.split()
            for family, cell in zip(head.split(), codes, strict=True):
                if cell != ".":
                    table[family, variant] = {f"MTP{code}" for code in cell.split("+") if code != "-"}
    return table


OLDER_IN_SGLANG = """
                    bailing_v2
published           -
excluded-glob       -
excluded-exact      -
excluded-engine     -
nothing-excluded    -
branch-nvfp4        203
all-nvfp4           203
missing             101
config-only         -
hf-quant-only       -
mixed               203
compressed-tensors  201
packed-glue         203
listed-packed       203
branch-fp8          203
o-proj-unlisted     -
packed-head         301
conflict            401
no-input-scale      301
weights-only        301
fused-experts       .
layer-arrays        .
short-arrays        .
no-mtp              -
"""
"""The same for Ling 2, whose MTP layer SGLang takes for 16-bit whatever is stored."""

ALONE = """
                    gemma4_assistant
published           -
excluded-glob       202
excluded-exact      -
excluded-engine     201
nothing-excluded    201
branch-nvfp4        -
all-nvfp4           -
missing             .
config-only         202
hf-quant-only       202
mixed               203
compressed-tensors  201
packed-glue         202+207
listed-packed       -
branch-fp8          205
o-proj-unlisted     201
packed-head         202
conflict            201+401
no-input-scale      202+301
weights-only        202
fused-experts       .
layer-arrays        .
short-arrays        .
no-mtp              .
"""
"""The same for a draft that is a checkpoint of its own: vLLM asks for names that begin with `draft_model`."""

BEHIND_A_WRAPPER = """
                    nemotron_h_omni nemotron_h_super_omni
published           -               -
excluded-glob       -               -
excluded-exact      -               -
excluded-engine     -               -
nothing-excluded    201             201
branch-nvfp4        -               -
all-nvfp4           -               -
missing             101             101
config-only         404             404
hf-quant-only       -               -
mixed               -               -
compressed-tensors  404             404
packed-glue         207             207
listed-packed       207             207
branch-fp8          207             207
o-proj-unlisted     201             201
packed-head         -               -
conflict            401             401
no-input-scale      301             301
weights-only        -               -
fused-experts       .               .
layer-arrays        .               .
short-arrays        .               .
no-mtp              206             206
"""
"""The same for Nemotron-H with images: its draft reads hf_quant_config.json alone, and without a branch the norm behind
the tower, which comes with it, is one too many."""

TEXT_AND_PUZZLE = """
                    qwen3_5_text  qwen3_5_moe_text  nemotron_h_puzzle
published           -             -                 -
excluded-glob       -             -                 -
excluded-exact      -             -                 -
excluded-engine     -             -                 -
nothing-excluded    201           201               201
branch-nvfp4        -             -                 -
all-nvfp4           203           203               -
missing             101           101               101
config-only         -             -                 -
hf-quant-only       -             -                 -
mixed               -             -                 -
compressed-tensors  -             -                 -
packed-glue         203           203               207
listed-packed       207           207               207
branch-fp8          207           207               207
o-proj-unlisted     201           201               201
packed-head         -             -                 -
conflict            201+401       201+401           201+401
no-input-scale      301           301               301
weights-only        -             -                 -
fused-experts       .             -                 .
layer-arrays        .             .                 .
short-arrays        .             .                 .
no-mtp              -             -                 -
"""
"""The same for Qwen3.5 without its tower, and for Nemotron-H whose layers have numbers of their own."""

NEWER_IN_SGLANG = """
                    bailing_v3_even gigachat35      gigachat35_sparse iquest_q1
published           202+301         202             202               -
excluded-glob       202+301         202             202               207
excluded-exact      202+301         202             202               202
excluded-engine     202+301         201+202         201+202           -
nothing-excluded    202+301         201             201               201
branch-nvfp4        202+203+301     202+207         202+207           202
all-nvfp4           202+203+301     203             203               201+203
missing             101+202+301     101             101               .
config-only         202+301         202             202               207
hf-quant-only       202+301         202             202               207
mixed               203             203             203               203
compressed-tensors  202             201+202         201+202           201
packed-glue         202+203+301     202+203         202+203           203+207
listed-packed       202+203+301     -               -                 207
branch-fp8          202+203+301     205             205               207
o-proj-unlisted     202+301         201+202         201+202           202
packed-head         202+301         202+301         202+301           206+207
conflict            202+301+401     201+401         201+401           201+401
no-input-scale      202+301         202+301         202+301           207
weights-only        202+301         202+301         202+301           207
fused-experts       .               .               .                 .
layer-arrays        .               .               .                 .
short-arrays        .               .               .                 .
no-mtp              202             -               -                 .
"""
"""The same for Ling 3, whose delta attention no list on disk reaches, GigaChat 3.5, and IQuest-Q1's drafter."""

WRAPPED_IN_SGLANG = """
                    bailing_v3_vl_even
published           202+602
excluded-glob       202+602
excluded-exact      202+602
excluded-engine     202+602
nothing-excluded    202+602
branch-nvfp4        202+602
all-nvfp4           202+602
missing             101+202+602
config-only         202+602
hf-quant-only       202+602
mixed               203+602
compressed-tensors  201+202+602
packed-glue         202+602
listed-packed       202+602
branch-fp8          202+602
o-proj-unlisted     202+602
packed-head         202+602
conflict            202+401+602
no-input-scale      202+301+602
weights-only        202+301+602
fused-experts       .
layer-arrays        .
short-arrays        .
no-mtp              202
"""
"""The same for Ling 3 with vision, whose draft SGLang cannot let share the embedding, whatever is stored."""

FROM_QWEN = """
                    intern_s2_preview intern_s2_mobius
published           -                 -
excluded-glob       -                 -
excluded-exact      -                 -
excluded-engine     -                 -
nothing-excluded    201               201
branch-nvfp4        -                 -
all-nvfp4           203               203
missing             101               101
config-only         -                 -
hf-quant-only       -                 -
mixed               -                 -
compressed-tensors  -                 -
packed-glue         203               203
listed-packed       207               207
branch-fp8          207               207
o-proj-unlisted     201               201
packed-head         -                 -
conflict            201+401           201+401
no-input-scale      301               301
weights-only        -                 -
fused-experts       -                 .
layer-arrays        .                 .
short-arrays        .                 .
no-mtp              -                 -
"""
"""The same for the two Intern-S2, which were made from Qwen3.5."""

WITH_AN_ACCOUNT = """
                    step5           step5_vl
published           201             201
excluded-glob       -               -
excluded-exact      202             202
excluded-engine     -               204
nothing-excluded    201             201
branch-nvfp4        202             201+202
all-nvfp4           201+203         201+203
missing             101             101
config-only         -               -
hf-quant-only       -               -
mixed               -               -
compressed-tensors  104+206         104+206
packed-glue         203             203
listed-packed       207             207
branch-fp8          207             207
o-proj-unlisted     201+202         201+202
packed-head         -               -
conflict            201+401         201+401
no-input-scale      301             301
weights-only        -               -
fused-experts       .               .
layer-arrays        .               .
short-arrays        103+206         103+206
no-mtp              -               -
"""
"""The same for Step-5, which keeps account of what it joins."""

BEYOND_LISTS = """
                    nemotron_parse
published           -
excluded-glob       202
excluded-exact      202
excluded-engine     202
nothing-excluded    202
branch-nvfp4        202+203+206
all-nvfp4           202+203+206
missing             .
config-only         202
hf-quant-only       202
mixed               203
compressed-tensors  202
packed-glue         202+203+206
listed-packed       202+203+206
branch-fp8          202+203+206
o-proj-unlisted     202
packed-head         202
conflict            202+401
no-input-scale      202+301
weights-only        202
fused-experts       .
layer-arrays        .
short-arrays        .
no-mtp              202
"""
"""The same for Nemotron Parse, whose class no list that names modules reaches in vLLM."""

CELLS = cells(
    MATRIX, RENAMED, FURTHER, OTHERWISE_WRITTEN, RECENT, NEWER, NEWEST_FAMILIES, FROM_ELSEWHERE, ALONE,
    BEHIND_A_WRAPPER, FROM_QWEN, WITH_AN_ACCOUNT, BEYOND_LISTS, TEXT_AND_PUZZLE,
)  # fmt: skip
SGLANG_CELLS = cells(IN_SGLANG, OLDER_IN_SGLANG, NEWER_IN_SGLANG, WRAPPED_IN_SGLANG)


def test_the_matrix_names_every_checkpoint_there_is() -> None:
    known = {(family, variant.name) for variant in VARIANTS.values() for family in variant.families}
    assert {*CELLS, *SGLANG_CELLS} == known
    assert {family for family, _ in (*CELLS, *SGLANG_CELLS)} == set(FAMILIES)


TELLING = ("published", "nothing-excluded", "branch-nvfp4", "all-nvfp4", "missing", "compressed-tensors", "conflict")
"""The variants that every family is judged with every time; most others are like one of them where lists are read."""


def is_slow(family: str, variant: str) -> bool:
    return family in LIKE_ANOTHER or (family not in EVERY_TIME and variant not in TELLING)


@pytest.mark.parametrize(
    ("family", "variant"),
    [pytest.param(*cell, marks=pytest.mark.slow if is_slow(*cell) else ()) for cell in SGLANG_CELLS],
)
def test_the_newest_sglang_has_exactly_these_faults(family: str, variant: str, fixtures: Fixtures) -> None:
    report = scan(fixtures(family, variant), engines=[f"sglang=={load('sglang').releases[-1]}"])
    assert grave(report) == SGLANG_CELLS[family, variant]


@pytest.mark.parametrize(
    ("family", "variant"),
    [pytest.param(*cell, marks=pytest.mark.slow if is_slow(*cell) else ()) for cell in CELLS],
)
def test_the_newest_release_has_exactly_these_faults(family: str, variant: str, fixtures: Fixtures) -> None:
    report = scan(fixtures(family, variant), engines=[NEWEST])
    assert grave(report) == CELLS[family, variant]
    (row,) = report.engines
    verdicts = {row.prediction.target.verdict, row.prediction.draft.verdict}
    healthy = verdicts <= {Verdict.LOADS, Verdict.ABSENT}
    assert healthy is (CELLS[family, variant] <= {"MTP401"})  # a warning: here whichever list is read will do
    assert report.exit_code() == (0 if healthy else 1)


# ------------------------------------------------------------------------------------------ silence, and the files


@pytest.mark.parametrize(
    "family",
    [
        pytest.param(family, marks=() if family in EVERY_TIME else pytest.mark.slow)
        for family in sorted({*VARIANTS["no-mtp"].families} - {*LIKE_ANOTHER})
    ],
)
def test_a_model_without_mtp_has_no_findings_in_any_release(family: str, fixtures: Fixtures) -> None:
    report = scan(fixtures(family, "no-mtp"))
    drafts = {row.prediction.draft.verdict for row in report.engines}
    assert drafts <= {Verdict.ABSENT, Verdict.UNKNOWN}
    assert Verdict.ABSENT in drafts
    assert not [finding for finding in report.findings if finding.role == "draft"]
    assert not of(report, "MTP101")
    assert not of(report, "MTP102")


def test_a_head_that_the_branch_shares_with_the_model_is_not_missing(fixtures: Fixtures) -> None:
    heads = {"model.layers.2.shared_head.head"}  # built packed where no list reaches it, and then looked for
    for family in FAMILIES:
        report = scan(fixtures(family, "excluded-glob"), engines=[NEWEST])
        missing = {finding.module for finding in of(report, "MTP104")}
        assert missing == (heads if CELLS.get((family, "excluded-glob"), set()) >= {"MTP104"} else set())


@pytest.mark.parametrize(("family", "variant"), [("deepseek_v3", "excluded-glob"), ("glm4_moe", "branch-nvfp4")])
@pytest.mark.parametrize("expert", [1, 3])  # of four: a hole, and the last
@pytest.mark.parametrize("parts", [("gate",), ("gate", "up", "down")])
def test_an_expert_that_is_not_there_is_told_by_its_number(
    family: str, variant: str, expert: int, parts: tuple[str, ...], fixtures: Fixtures, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(fixtures(family, variant), folder)
    whole = scan(folder, engines=[NEWEST])
    assert not of(whole, "MTP104")
    stored = [tensor for tensor in whole.checkpoint.tensors if tensor.name.startswith("model.layers.2.mlp.experts.")]
    for tensor in stored:
        if any(f".{part}_proj." in tensor.name for part in parts):
            drop(folder, tensor.name.replace("{}", str(expert)))
    report = scan(folder, engines=[NEWEST])
    told = of(report, "MTP104")
    assert [finding.module for finding in told] == [
        f"model.layers.2.mlp.experts.*.{'{down,gate,up}' if len(parts) == 3 else 'gate'}_proj"
    ]
    assert f"of its experts only {'{0,2,3}' if expert == 1 else '{0..2}'} are stored" in told[0].message
    if variant == "excluded-glob":
        (row,) = report.engines
        assert row.prediction.draft.verdict is Verdict.SILENT


@pytest.mark.parametrize(
    ("variant", "broken"),
    [
        ("excluded-glob", []),  # beside mtp*
        ("nothing-excluded", ["vllm 0.17.0 - 0.19.1"]),
    ],
)
def test_an_entry_for_the_layer_of_qwen3_5_does_no_harm_and_is_not_enough_alone(
    variant: str, broken: list[str], fixtures: Fixtures, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(fixtures("qwen3_5", variant), folder)
    exclude("mtp.layers.0*")(folder)
    report = scan(folder, engines=["vllm", f"sglang=={load('sglang').releases[-1]}"])
    assert [one.text for finding in of(report, "MTP201") for one in finding.engines] == broken
    assert grave(report) == ({"MTP201"} if broken else set())


def test_a_branch_in_a_file_that_the_index_does_not_name_is_absent(tmp_path: Path) -> None:
    build(tmp_path / "named", "qwen3_5", "excluded-glob", branch_file="mtp.safetensors")
    named = scan(tmp_path / "named", engines=[NEWEST])
    assert not named.findings
    shutil.copytree(tmp_path / "named", tmp_path / "unnamed")

    def forget(index: dict[str, Any]) -> None:
        index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != "mtp.safetensors"}

    edit(tmp_path / "unnamed", forget, INDEX)
    report = scan(tmp_path / "unnamed", engines=[NEWEST])
    assert {"MTP101", "MTP502"} <= grave(report)
    assert report.engines[0].prediction.draft.verdict is Verdict.SILENT
    assert "does not name" in of(report, "MTP101")[0].message
    assert of(report, "MTP502")[0].module == "mtp.safetensors"


def test_a_missing_shard_keeps_a_scan_from_ending_clean(fixtures: Fixtures, tmp_path: Path) -> None:
    report = judge(good(delete(LAST)), fixtures, tmp_path)
    assert of(report, "MTP501")[0].severity is Severity.ERROR
    assert report.exit_code() == 1


@pytest.mark.parametrize(("low", "high", "shown"), [(0.01, 0.04, "4:1"), (0.01, 0.011, "1.1:1")])
def test_scales_that_differ_are_told_by_their_ratio(
    low: float, high: float, shown: str, fixtures: Fixtures, tmp_path: Path
) -> None:
    def change(folder: Path) -> None:
        fill(folder, f"{PROJECTIONS}.gate_proj.weight_scale_2", low)
        fill(folder, f"{PROJECTIONS}.up_proj.weight_scale_2", high)

    (finding,) = of(judge(good(change), fixtures, tmp_path), "MTP303")
    assert shown in finding.message
    assert finding.count == 1
    assert finding.severity is Severity.WARNING


def test_arrays_that_cover_all_layers_are_not_called_short(fixtures: Fixtures) -> None:
    (finding,) = of(scan(fixtures("step3p5", "layer-arrays"), engines=["vllm==0.32.0"]), "MTP103")
    assert "cuts off" in finding.message
    assert not finding.fixes
    (finding,) = of(scan(fixtures("step3p7", "short-arrays"), engines=[NEWEST]), "MTP103")
    assert "layer_types: 3 entries, but 6" in finding.message
    assert finding.fixes


# ------------------------------------------------------------------------------------------------ what a note says


def unknown_architecture(fixtures: Fixtures, folder: Path, change: Change = keep) -> str:
    def without_family(copy: Path) -> None:
        edit(copy, lambda config: config.update(architectures=["NobodyForCausalLM"]))
        change(copy)

    (found,) = of(judge(good(without_family), fixtures, folder), "MTP601")
    return found.message


def test_an_unknown_architecture_is_told_with_what_is_stored_and_listed_and_who_can_be_asked(
    fixtures: Fixtures, tmp_path: Path
) -> None:
    said = unknown_architecture(fixtures, tmp_path)
    assert "The architecture NobodyForCausalLM is not known here" in said
    assert re.search(r"counted as one: \d+ bf16, \d+ nvfp4\.", said)
    assert "config.json and hf_quant_config.json leave unquantized: lm_head, " in said
    assert said.endswith("An installed engine can be asked: mtpfix verify FOLDER --engine-python PATH.")


def test_lists_that_differ_are_told_apart_and_hostile_entries_are_cut_and_escaped(
    fixtures: Fixtures, tmp_path: Path
) -> None:
    entries = ["x" * 100_000, "a\x1b[31m", *(f"model.layers.{number}" for number in range(6))]
    said = unknown_architecture(fixtures, tmp_path, in_block(ignore=entries))
    assert "config.json leaves unquantized: xxxx" in said
    assert "a\\x1b[31m" in said
    assert " and 2 more. hf_quant_config.json leaves unquantized: lm_head, " in said
    assert len(said) < 2000


def test_a_shape_that_the_configuration_does_not_make_is_told_with_both(fixtures: Fixtures, tmp_path: Path) -> None:
    report = judge(PAIRS["MTP208"][0], fixtures, tmp_path)
    told = {finding.module: finding.message for finding in of(report, "MTP208")}
    assert told["mtp.layers.0.mlp.down_proj"] == "Stored 128 x 256, config.json makes it 128 x 512; loading raises."
    assert not of(report, "MTP302")
