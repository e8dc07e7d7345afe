from __future__ import annotations

import pytest

from mtpfix.engines import load
from mtpfix.engines.decide import Decider, prepare_lists
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
