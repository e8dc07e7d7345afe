"""Record what engine releases do with shapes that ranks cannot split: `python -m tests.conformance.splits 0.32.0 …`.

Each case is a tiny checkpoint with a few numbers of its own. The release's configuration and constructors run with a
tensor-parallel group said to be of so many ranks, seen from the first (see `oracle.py --tp`); what is kept is the error
of configuring or constructing, if any: `golden/vllm-RELEASE/splits.json`. Loading is not judged here.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtpfix.model import ROLES
from mtpfix.probe.compare import unwrap
from tests.checkpoints import build
from tests.conformance.record import GOLDEN, Answer, ask
from tests.families import FAMILIES


@dataclass(frozen=True)
class Case:
    """A family's tiny checkpoint with some `numbers` of its own, over `ranks`; `fp8`: declared as FP8 in blocks."""

    family: str
    ranks: int
    numbers: Mapping[str, Any] = field(default_factory=dict)
    fp8: bool = False
    variant: str = "config-only"


MANY_HEADS = {"num_attention_heads": 8, "num_key_value_heads": 8}
SIX_HEADS = {"num_attention_heads": 6, "num_key_value_heads": 3, "hidden_size": 192}
STREAMS = SIX_HEADS | {
    "ple_embed_dim": 192, "linear_num_value_heads": 6, "linear_num_key_heads": 3, "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 96, "vocab_size": 192,
    "vision_config": {**FAMILIES["qwen4_exp"].config("tiny")["vision_config"], "hidden_size": 96, "num_heads": 3,
                      "intermediate_size": 192, "out_hidden_size": 192},
}  # fmt: skip
ONE_KEY_HEAD = {"num_attention_heads": 6, "vocab_size": 192, "moe_intermediate_size": 96, "o_groups": 3}

CASES = {
    "fits": Case("mimo", 4),
    "heads": Case("mimo", 3),
    "heads fewer than ranks": Case("mimo", 8),
    "groups that divide": Case("mimo", 3, SIX_HEADS | {"vocab_size": 192, "intermediate_size": 192}),
    "groups that do not": Case("mimo", 2, SIX_HEADS),
    "groups of a class without an assertion": Case("mimo_v2", 2, {"num_attention_heads": 6, "num_key_value_heads": 3}),
    "windowed groups": Case(
        "mimo_v2", 3, SIX_HEADS | {"swa_num_attention_heads": 6, "swa_num_key_value_heads": 4, "vocab_size": 192}
        | {"intermediate_size": 192, "moe_intermediate_size": 96}
    ),
    "padded vocabulary": Case("mimo", 4, {"vocab_size": 250}),
    "vocabulary": Case("mimo", 3, SIX_HEADS | {"intermediate_size": 192}),
    "width of a feed-forward block": Case("mimo", 3, SIX_HEADS | {"vocab_size": 192}),
    "nvfp4: share of 40": Case("mimo", 4, {"intermediate_size": 160}),
    "nvfp4: share of 48": Case("mimo", 4, {"intermediate_size": 192}),
    "width of shared experts": Case("ernie4_5_moe", 3, SIX_HEADS | {"vocab_size": 192, "intermediate_size": 192}),
    "experts fewer than ranks": Case("ernie4_5_moe", 8, MANY_HEADS),
    "width of experts": Case(
        "mimo_v2", 3, SIX_HEADS | {"swa_num_attention_heads": 6, "swa_num_key_value_heads": 3, "vocab_size": 192}
        | {"intermediate_size": 192}
    ),
    "mamba groups": Case("nemotron_h", 4, {"mamba_num_heads": 8, "n_groups": 2}),
    "mamba groups that divide": Case("nemotron_h", 2, {"mamba_num_heads": 8, "n_groups": 2}),
    "mamba heads": Case("nemotron_h", 4, {"mamba_num_heads": 6, "n_groups": 2}),
    "linear attention": Case("qwen3_next", 4, {"linear_num_value_heads": 2, "linear_num_key_heads": 2}),
    "blocks: row": Case(
        "mimo", 4, {"intermediate_size": 512, "hidden_size": 512, "head_dim": 128} | MANY_HEADS, fp8=True
    ),
    "blocks: column": Case("mimo", 2, {"intermediate_size": 320}, fp8=True),
    "blocks: replicated heads": Case(
        "mimo", 4, {"head_dim": 64, "hidden_size": 256, "intermediate_size": 512}, fp8=True
    ),
    "blocks: fit": Case("mimo", 2, {"head_dim": 128, "hidden_size": 512, "intermediate_size": 512}, fp8=True),
    "blocks: experts of 32": Case(
        "ernie4_5_moe", 4, {"head_dim": 128, "hidden_size": 512, "intermediate_size": 512, "moe_intermediate_size": 64},
        fp8=True,
    ),
    "blocks: experts": Case(
        "ernie4_5_moe", 2, {"head_dim": 128, "hidden_size": 512, "intermediate_size": 512}
        | {"moe_intermediate_size": 128}, fp8=True,
    ),
    "latent attention": Case("deepseek_v3", 2),
    "latent attention, heads": Case("deepseek_v3", 8),
    "sparse attention, heads": Case("qwen4_exp", 2, {"num_attention_heads": 6, "num_key_value_heads": 3}),
    "a table of n-grams": Case("qwen4_exp", 3, STREAMS),
    "heads of a vision tower": Case("qwen4_exp", 4),
    "one key head": Case("deepseek_v4", 4),
    "one key head, ranks of three": Case("deepseek_v4", 3, ONE_KEY_HEAD),
    "one key head, groups": Case("deepseek_v4", 3, ONE_KEY_HEAD | {"o_groups": 2}),
    "one key head, shared experts": Case("deepseek_v4", 3, ONE_KEY_HEAD | {"moe_intermediate_size": 64}),
    "glm": Case("glm4_moe", 4),
    "step": Case("step3p5", 2),
}  # fmt: skip


def make(folder: Path, case: Case) -> Path:
    """Write the checkpoint of a case."""
    build(folder, case.family, case.variant, numbers=case.numbers)
    if case.fp8:
        path = folder / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        block = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
        path.write_text(json.dumps({**config, "quantization_config": block}), encoding="utf-8")
    return folder


def digest(found: Answer | None) -> Answer | None:
    """Return the error of configuring or constructing one model; None where it was constructed, or never tried."""
    if found is None or found["error"] is None or found["phase"] not in ("configure", "construct"):
        return None
    error, text = unwrap(found["error"]["class"], found["error"]["text"])
    return {"error": error, "text": text}


def record(release: str, cases: Mapping[str, Case], folder: Path) -> None:
    """Ask one release about some cases and write its golden file, in which the others stay."""
    path = GOLDEN / f"vllm-{release}" / "splits.json"
    answers: dict[str, Answer] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for ranks in sorted({case.ranks for case in cases.values()}):
        mine = {name: case for name, case in cases.items() if case.ranks == ranks}
        for name, found in zip(
            mine, ask(f"vllm-{release}", [folder / name for name in mine], ranks=ranks), strict=True
        ):
            if "broken" in found:
                raise SystemExit(f"{name}: {found['broken']}")
            if "unsupported" not in found:
                answers[name] = {role: digest(found[role]) for role in ROLES}
                answers[name]["tried"] = [role for role in ROLES if found[role] is not None]
    content = {name: answers[name] for name in CASES if name in answers}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"vllm {release}: {len(content)} cases\n")


def main() -> None:
    """Record the releases on the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.splits", description=main.__doc__)
    parser.add_argument("releases", nargs="+")
    parser.add_argument("--only", action="append", choices=CASES, help="record these cases alone and keep the others")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        cases = {name: case for name, case in CASES.items() if name in (options.only or CASES)}
        for name, case in cases.items():
            make(Path(place) / name, case)
        for release in options.releases:
            record(release, cases, Path(place))


if __name__ == "__main__":
    main()
