from __future__ import annotations

import re

import pytest

from mtpfix.engines.mapping import Entries, NameMapper, from_toml, split_wildcards


def test_kinds_are_applied_in_order_and_every_rule_in_turn() -> None:
    mapper = NameMapper(
        regex=((r"^visual\.", "model.visual."),),
        substr=((".attn.", ".self_attn."),),
        prefix=(("model.", "language_model.model."), ("language_model.", "lm.")),
        suffix=((".weight", ".w"),),
    )
    assert mapper.map("visual.blocks.0.attn.qkv.weight") == "lm.model.visual.blocks.0.self_attn.qkv.w"


def test_a_rule_replaces_once_but_a_pattern_everywhere() -> None:
    assert NameMapper(substr=(("a.", "b."),)).map("a.a.a") == "b.a.a"
    assert NameMapper(prefix=(("a", "aa"),)).map("aba") == "aaba"
    assert NameMapper(suffix=((".w", ".v"),)).map("x.w.w") == "x.w.v"
    assert NameMapper(regex=((r"\d", "N"),)).map("layers.10.experts.2") == "layers.NN.experts.N"


def test_a_prefix_rule_may_move_a_name_into_the_reach_of_the_next() -> None:
    mapper = NameMapper(prefix=(("model.language_model.", "language_model.model."), ("model.", "x.")))
    assert mapper.map("model.language_model.layers.0") == "language_model.model.layers.0"
    assert mapper.map("model.layers.0") == "x.layers.0"


@pytest.mark.parametrize("kind", ["regex", "substr", "prefix", "suffix"])
def test_a_rule_without_a_new_name_drops_until_drops_are_left_out(kind: str) -> None:
    mapper = from_toml({kind: [["mtp"]], "substr": [["x", "y"]]} if kind != "substr" else {kind: [["mtp"], ["x", "y"]]})
    name = "x.mtp" if kind == "suffix" else "mtp.x"
    assert mapper.map(name) is None
    assert mapper.without_drops().map(name) == name.replace("x", "y")


def test_a_table_of_a_family_file_becomes_a_mapper() -> None:
    mapper = from_toml(
        {"prefix": [["model.", "language_model.model."]], "regex": [[r"\.(\d+)$", r"[\1]"]], "note": "x"}
    )
    assert mapper == NameMapper(regex=((r"\.(\d+)$", r"[\1]"),), prefix=(("model.", "language_model.model."),))
    assert mapper.map("model.layers.7") == "language_model.model.layers[7]"
    with pytest.raises(re.error):
        from_toml({"regex": [["(", ""]]})


@pytest.mark.parametrize(
    ("entry", "pieces"),
    [
        ("mtp*", ("mtp", "mtp.*")),
        ("model.layers.61*", ("model.layers.61", "model.layers.61.*")),
        ("model.layers.61.*", ("model.layers.61.*",)),
        ("*", ("*",)),
        ("**", ("*", "*.*")),
        ("*mtp", ("*mtp",)),
        ("", ("",)),
    ],
)
def test_a_trailing_star_is_split_in_two(entry: str, pieces: tuple[str, ...]) -> None:
    assert split_wildcards([entry]) == pieces


def test_a_rewritten_list_remembers_how_the_file_spells_its_entries() -> None:
    mapper = NameMapper(prefix=(("model.", "language_model.model."), ("mtp.", None)))
    entries = Entries.read(["model.layers.61*", "mtp.fc", "lm_head"]).rewritten(mapper, "split")
    assert entries.names == ("language_model.model.layers.61", "language_model.model.layers.61.*", "lm_head")
    assert entries.written == ("model.layers.61*", "model.layers.61*", "lm_head")
    again = entries.rewritten(NameMapper(prefix=(("language_model.", ""),)), "split")
    assert again.names == ("model.layers.61", "model.layers.61.*", "lm_head")
    assert again.written == entries.written


def test_paths_leave_class_names_and_patterns_alone() -> None:
    mapper = NameMapper(prefix=(("", "model."),))
    entries = Entries.read(["Linear", "re:.*mtp.*", "layers.0.mlp"])
    assert entries.rewritten(mapper, "paths").names == ("Linear", "re:.*mtp.*", "model.layers.0.mlp")
    assert entries.rewritten(mapper, "all").names == ("model.Linear", "model.re:.*mtp.*", "model.layers.0.mlp")


def test_where_two_names_become_one_the_first_place_has_the_last_value() -> None:
    values = {"a.x": 1, "c": 2, "b.x": 3}
    entries = Entries.read(values).rewritten(NameMapper(prefix=(("b.", "a."),)), "all")
    assert list(entries.table(values).items()) == [("a.x", 3), ("c", 2)]
