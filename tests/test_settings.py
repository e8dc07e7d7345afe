from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from mtpfix.errors import UsageError
from mtpfix.model import Ignore
from mtpfix.settings import Settings, find_settings, read_settings

WHOLE = """
engines = ["vllm>=0.20"]
fail-on = "warning"
ignore = ["MTP603"]

[[ignores]]
rule = "MTP201"
module = "mtp.*"
reason = "served by our fork"
until = 2027-01-31
"""


def write(folder: Path, text: str, name: str = "mtpfix.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_says_engines_level_and_ignores(tmp_path: Path) -> None:
    settings = read_settings(write(tmp_path, WHOLE))
    assert settings == Settings(
        source=tmp_path / "mtpfix.toml",
        engines=("vllm>=0.20",),
        fail_on="warning",
        ignore=("MTP603",),
        ignores=(Ignore("MTP201", "served by our fork", "mtp.*", date(2027, 1, 31)),),
    )


def test_a_project_file_says_it_in_its_own_table(tmp_path: Path) -> None:
    text = '[project]\nname = "x"\n[tool.mtpfix]\nselect = ["MTP2"]\n'
    assert read_settings(write(tmp_path, text, "pyproject.toml")).select == ("MTP2",)
    assert read_settings(write(tmp_path, '[project]\nname = "x"\n', "pyproject.toml")) == Settings()


def test_the_models_folder_comes_before_the_nearest_above(tmp_path: Path) -> None:
    model, project = tmp_path / "model", tmp_path / "project" / "deep"
    model.mkdir()
    project.mkdir(parents=True)
    assert find_settings(model, start=project) == Settings()
    write(project.parent, '[tool.mtpfix]\nfail-on = "note"\n', "pyproject.toml")
    assert find_settings(model, start=project).fail_on == "note"
    write(model, 'fail-on = "never"\n')
    assert find_settings(model, start=project).fail_on == "never"
    assert find_settings(None, start=project).fail_on == "note"


def test_the_search_ends_at_the_repository(tmp_path: Path) -> None:
    write(tmp_path, 'fail-on = "note"\n')
    inside = tmp_path / "repository" / "deep"
    inside.mkdir(parents=True)
    (tmp_path / "repository" / ".git").mkdir()
    assert find_settings(None, start=inside) == Settings()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("engines = 1", "engines is not an array of texts"),
        ("engine = []", '"engine" is not known'),
        ('fail-on = "bad"', "fail-on is not one of"),
        ("ignores = 3", "ignores is not an array"),
        ('[[ignores]]\nrule = "MTP201"', "reason is not a text"),
        ('[[ignores]]\nreason = "x"', "rule is not a text"),
        ('[[ignores]]\nrule = "MTP201"\nreason = "x"\nuntil = "soon"', "until is not a day"),
        ('[[ignores]]\nrule = "MTP201"\nreason = "x"\nuntil = 2027-01-31T00:00:00', "until is not a day"),
        ('[[ignores]]\nrule = "MTP201"\nreason = "x"\nwhy = "y"', '"why" is not known'),
        ("= broken", "it is not TOML"),
        ("tool = 'x'\n[tool.mtpfix]\n", "it is not TOML"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UsageError) as caught:
        read_settings(path)
    assert says in caught.value.message
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_settings(tmp_path / "gone.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="not TOML"):
        read_settings(tmp_path / "bytes.toml")
