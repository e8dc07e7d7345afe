"""What `learn` calls a change, on small sources in the style of the engines' own."""

from __future__ import annotations

from typing import Any

import pytest

from mtpfix.engines import load
from tests.conformance import learn
from tests.conformance.essence import essence

SOURCE = '''
class Model(nn.Module):
    """A model."""

    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    hf_to_vllm_mapper = WeightsMapper(orig_to_new_prefix={"mtp.": "model."})

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        quant_config = vllm_config.quant_config
        logger.info("made")
        self.fc = ColumnParallelLinear(self.size, bias=False, quant_config=quant_config, prefix=f"{prefix}.fc")
        if config.tied:
            self.head = ParallelLMHead(size, quant_config=None, prefix=maybe_prefix(prefix, "lm_head"))

    def forward(self, x):
        assert x is not None
        return self.fc(x)

    def load_weights(self, weights):
        for name, weight in weights:
            if name.endswith(".bias"):
                continue
            self.params[name].copy_(weight)


def is_layer_excluded(prefix, excluded):
    if not excluded:
        raise ValueError("nothing excluded")
    return any(fnmatch(prefix, one) for one in excluded)
'''


def changed(old: str, new: str) -> tuple[list[str], list[str]]:
    assert old in SOURCE
    before, after = essence(SOURCE), essence(SOURCE.replace(old, new))
    return sorted(before - after), sorted(after - before)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""A model."""', '"""Another sentence."""'),
        ('        logger.info("made")\n', ""),
        ("vllm_config: VllmConfig, prefix: str", "vllm_config: Any, prefix: Any"),
        ("        return self.fc(x)", "        y = self.fc(x)  # a comment\n        return y"),
        ("assert x is not None", "assert x is not None, 'no input'"),
        ("def is_layer_excluded(prefix, excluded):\n", "def is_layer_excluded(\n    prefix,\n    excluded,\n):\n"),
    ],
)
def test_what_does_not_matter_is_no_change(old: str, new: str) -> None:
    assert changed(old, new) == ([], [])


@pytest.mark.parametrize(
    ("old", "new", "where", "says"),
    [
        ("bias=False, quant_config=quant_config", "bias=False, quant_config=None", "Model", "quant_config=None"),
        ('prefix=f"{prefix}.fc"', 'prefix=f"{prefix}.mtp.fc"', "Model", "{prefix}.mtp.fc"),
        ("if config.tied:", "if config.tied and config.mtp:", "Model", "config.mtp"),
        ("= vllm_config.quant_config", "= None if config.mtp else given", "Model", "None if config.mtp"),
        ('["q_proj", "k_proj", "v_proj"]', '["q_proj", "k_proj"]', "Model", "packed_modules_mapping['qkv_proj']"),
        ('"mtp.": "model."', '"mtp.": "model.mtp."', "Model", "model.mtp."),
        ('endswith(".bias")', 'endswith(".scale")', "Model.load_weights", "endswith('.scale')"),
        ("fnmatch(prefix, one)", "re.match(one, prefix)", "is_layer_excluded", "re.match"),
        ('"nothing excluded"', '"no list"', "is_layer_excluded", "no list"),
        ("self.fc = ColumnParallelLinear", "self.fc = ReplicatedLinear", "Model", "ReplicatedLinear"),
    ],
)  # fmt: skip
def test_what_matters_is_a_change_and_says_where(old: str, new: str, where: str, says: str) -> None:
    _, added = changed(old, new)
    assert any(one.startswith(where) and says in one for one in added), added


def test_a_file_that_is_not_there_says_nothing() -> None:
    assert not essence(None)


def test_neighbours_leave_the_release_itself_out() -> None:
    engine = load("vllm")
    newest, before = engine.releases[-1], engine.releases[-2]
    assert learn.neighbours(engine, newest) == (before, None)
    assert learn.neighbours(engine, "999.0") == (newest, None)
    assert learn.neighbours(engine, "0.22.1") == ("0.22.0", "0.23.0")


def test_changes_are_told_by_file_and_an_identical_release_by_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = "model_executor/models/qwen3_next_mtp.py"
    *_, before, newest = load("vllm").releases
    texts: dict[str, Any] = {
        before: SOURCE,
        newest: SOURCE,
        "0.99.0": SOURCE.replace("{prefix}.fc", "{prefix}.mtp.fc"),
        "0.99.1": SOURCE,
    }

    def read(_engine: str, version: str, wanted: str) -> Any:
        return texts[version] if wanted == path else ""

    monkeypatch.setattr(learn, "read_source", read)
    monkeypatch.setattr(learn, "list_sources", lambda *_: [path])
    assert learn.main(["0.99.0", "--no-loads"]) == 1
    told = capsys.readouterr().out
    assert f"vLLM 0.99.0 against {newest}" in told
    assert path in told
    assert "- Model.__init__: self.fc made by" in told
    assert "read the changes above first" in told
    assert learn.main(["0.99.1", "--no-loads"]) == 0
    told = capsys.readouterr().out
    assert "nothing that matters changed" in told
    assert 'vllm.toml: add "0.99.1" to `releases`' in told
    assert learn.main([newest, "--no-loads"]) == 0
    assert f"vllm.toml has {newest}" in capsys.readouterr().out


def test_differences_are_told_in_part_and_the_rest_is_counted() -> None:
    few = [f"mimo/published draft: layer {number} is built bf16" for number in range(learn.EACH)]
    assert list(learn.shortened(few)) == few
    many = [f"mimo/case-{case} draft: layer {number} is built" for case in range(100) for number in range(10)]
    told = list(learn.shortened(many))
    assert told[: learn.EACH] == many[: learn.EACH]
    assert told[learn.EACH] == f"mimo/case-0 draft: and {10 - learn.EACH} more"
    assert len(told) == learn.MOST + 1
    assert "1000 differences in 100 models" in told[-1]
