from __future__ import annotations

import pytest

from mtpfix.checkpoint.quant import read_declarations
from mtpfix.engines import load
from mtpfix.engines.decide import Decider, prepare_lists
from mtpfix.engines.resolve import resolve
from mtpfix.engines.resolved import Resolved
from mtpfix.model import Format


@pytest.mark.parametrize(("version", "built"), [("0.5.14", Format.BF16), ("0.5.15", Format.NVFP4)])
def test_sglang_looks_a_head_up_in_the_allow_list_before_it_asks_what_a_head_is_built_as(
    version: str, built: Format
) -> None:
    engine = load("sglang")

    def decide(algorithm: str | None) -> tuple[Format, tuple[str, str] | None]:
        resolved = Resolved("modelopt_mixed", None, algo="MIXED_PRECISION", layers={"lm_head": algorithm})
        decision = Decider(prepare_lists(resolved, engine, version), engine, version, {}).decide(
            "lm_head", "head", plain=False
        )
        return decision.format, decision.error

    assert decide("NVFP4") == (built, None)
    assert decide(None) == (Format.BF16, ("KeyError", "'quant_algo'"))


NESTED = {
    "producer": {"name": "modelopt"},
    "quantization": {"quant_algo": "NVFP4", "group_size": 16, "exclude_modules": ["lm_head", "mtp*"]},
}


@pytest.mark.parametrize(
    ("version", "file", "excludes", "refused"),
    [
        ("0.5.19", "config.json", (), "Unknown quantization method: . Must be one of"),
        ("0.5.20", "config.json", (), ""),  # read as a flat block from there on: its list is not looked for
        ("0.5.23", "config.json", (), ""),
        ("0.5.23", "hf_quant_config.json", ("lm_head", "mtp*"), ""),
    ],
)
def test_sglang_loses_the_list_of_a_nested_block_in_the_configuration(
    version: str, file: str, excludes: tuple[str, ...], refused: str
) -> None:
    inline = {"quantization_config": NESTED} if file == "config.json" else {}
    declarations = read_declarations(
        {"architectures": ["Qwen3NextForCausalLM"], **inline}, NESTED if not inline else None
    )
    resolved = resolve(declarations, load("sglang"), version, "Qwen3NextForCausalLM")
    assert (resolved.error or ("", ""))[1].startswith(refused)
    assert (resolved.error is None) is (not refused)
    if not refused:
        assert (resolved.method, resolved.excludes) == ("modelopt_fp4", excludes)


def test_sglang_reads_w4afp8_with_its_own_class() -> None:
    other = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "MIXED_PRECISION", "group_size": 16}}
    declarations = read_declarations({"architectures": ["DeepseekV3ForCausalLM"]}, other)
    resolved = resolve(declarations, load("sglang"), "0.5.14", "DeepseekV3ForCausalLM")
    assert (resolved.method, resolved.error, resolved.simulated) == ("w4afp8", None, False)
