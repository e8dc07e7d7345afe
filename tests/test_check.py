"""The gate: `mtpfix check`, its settings, and what it says of a checkout without weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import typer

from mtpfix.cli import app
from mtpfix.report.schema import json_schema
from tests.checkpoints import build
from tests.test_cli import NEW, OLD, Done, run

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a2146' * 8}\nsize 12345\n"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    build(root / "good", "qwen3_5", "excluded-glob")
    build(root / "broken", "qwen3_5", "nothing-excluded")
    build(root / "lost", "qwen3_5", "missing")
    return root


@pytest.fixture
def models(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals, tmp_path / "models"))


def settle(folder: Path, text: str) -> None:
    (folder / "mtpfix.toml").write_text(text, encoding="utf-8")


def check(*arguments: str | Path) -> Done:
    return run("check", *arguments)


def test_a_broken_checkpoint_is_stopped_and_a_good_one_passes(models: Path) -> None:
    assert check(models / "good", "-e", NEW).code == 0
    done = check(models / "broken", "-e", NEW)
    assert done.code == 1
    assert "MTP201" in done.out


def test_the_gate_takes_every_option_of_a_scan_that_is_not_of_the_hub(models: Path) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    of_scan, of_check = ({option.name for option in commands[name].params} for name in ("scan", "check"))
    assert of_scan - of_check == {"refs", "from_file", "scope", "revision", "token", "offline"}
    done = check(models / "good", "-e", NEW, "--tp", "3")
    assert done.code == 1
    assert "MTP604" in done.out


def test_files_of_a_checkpoint_stand_for_its_folder(models: Path, tmp_path: Path) -> None:
    files = sorted((models / "broken").iterdir())
    other = tmp_path / "notes.txt"
    other.write_text("x")
    done = check(*files, other, "-e", NEW)
    assert done.code == 1
    assert done.out.count("MTP branch: present") == 1
    nothing = check(other)
    assert (nothing.code, nothing.out) == (0, "Nothing to check: none of these files belongs to a checkpoint.\n")


def test_settings_of_the_models_folder_hold_for_check_alone(models: Path) -> None:
    folder = models / "broken"
    settle(folder, f'engines = ["{NEW}"]\n[[ignores]]\nrule = "MTP2"\nreason = "known"\n')
    done = check(folder)
    assert done.code == 0
    assert "1 finding ignored by settings" in done.out
    assert check(folder, "--isolated", "-e", NEW).code == 1
    assert run("scan", folder, "-e", NEW).code == 1
    assert run("scan", folder, "--config", folder / "mtpfix.toml").code == 0


def test_an_ignored_finding_is_counted_for_machines(models: Path) -> None:
    folder = models / "broken"
    settle(folder, f'engines = ["{NEW}"]\n[[ignores]]\nrule = "plain-built-quantized"\nreason = "known"\n')
    (document,) = [json.loads(check(folder, "--json").out)]
    assert document["summary"]["ignored"] == 1
    assert document["summary"]["errors"] == 0


def test_an_ignore_of_another_module_ignores_nothing(models: Path) -> None:
    folder = models / "broken"
    settle(folder, f'engines = ["{NEW}"]\n[[ignores]]\nrule = "MTP201"\nmodule = "model.*"\nreason = "known"\n')
    assert check(folder).code == 1


def test_an_expired_ignore_fails_even_where_nothing_is_left_to_ignore(models: Path) -> None:
    for name, rules in (("broken", {"MTP201", "MTP701"}), ("good", {"MTP701"})):
        settle(
            models / name,
            f'engines = ["{NEW}"]\n[[ignores]]\nrule = "MTP201"\nreason = "known"\nuntil = 2020-01-31\n',
        )
        done = check(models / name, "--json")
        assert done.code == 1
        assert {one["rule"] for one in json.loads(done.out)["findings"] if one["severity"] == "error"} == rules


def test_an_option_comes_before_a_setting(models: Path) -> None:
    folder = models / "good"
    settle(folder, f'engines = ["{NEW}"]\nfail-on = "note"\n')
    (row,) = json.loads(check(folder, "-e", OLD, "--json").out)["engines"]
    assert row["version"] == "0.19.1"
    settle(models / "broken", f'engines = ["{NEW}"]\nfail-on = "never"\n')
    assert check(models / "broken").code == 0
    assert check(models / "broken", "--fail-on", "error").code == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[ignores]]\nrule = "NOPE"\nreason = "x"', "no rule is called 'NOPE'"),
        ('engines = ["llama"]', "llama"),
        ("nonsense = 1", "is not known"),
    ],
)
def test_settings_that_make_no_sense_stop_the_gate(models: Path, text: str, says: str) -> None:
    settle(models / "good", text)
    done = check(models / "good")
    assert done.code == 2
    assert says in done.err


def test_config_and_isolated_contradict(models: Path) -> None:
    assert check(models / "good", "--isolated", "--config", models / "x.toml").code == 2


# ------------------------------------------------------------------------------------- without weights


def without_weights(folder: Path) -> Path:
    for shard in folder.glob("*.safetensors"):
        shard.write_text(POINTER)
    return folder


def test_a_checkout_with_pointers_only_is_judged_by_its_metadata(models: Path) -> None:
    done = check(without_weights(models / "good"))
    assert done.code == 0
    assert "only the configurations and the index were judged" in done.out
    lost = check(without_weights(models / "lost"))
    assert lost.code == 1
    assert "MTP101" in lost.out


def test_scan_does_not_take_pointers_for_weights(models: Path) -> None:
    assert run("scan", without_weights(models / "good"), "-e", NEW).code == 2


def test_one_pointer_among_weights_is_incomplete(models: Path) -> None:
    folder = models / "good"
    first = min(folder.glob("*.safetensors"))
    if len(list(folder.glob("*.safetensors"))) == 1:
        shutil.copy(first, folder / "other.safetensors")
    first.write_text(POINTER)
    assert check(folder, "-e", NEW).code == 2


def test_metadata_only_opens_no_shard(models: Path) -> None:
    folder = models / "good"
    for shard in folder.glob("*.safetensors"):
        shard.write_bytes(b"not a checkpoint")
    assert check(folder, "--metadata-only").code == 0
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["ignore"] = ["lm_head"]
    (folder / "config.json").write_text(json.dumps(config))
    done = check(folder, "--metadata-only", "--fail-on", "warning")
    assert done.code == 1
    assert "MTP401" in done.out


def test_metadata_only_tells_of_a_shard_that_is_gone(models: Path) -> None:
    folder = models / "good"
    min(folder.glob("*.safetensors")).unlink()
    done = check(folder, "--metadata-only")
    assert done.code == 1
    assert "MTP501" in done.out


def test_a_metadata_report_is_valid(models: Path) -> None:
    import jsonschema

    document = json.loads(check(models / "good", "--metadata-only", "--json").out)
    jsonschema.validate(document, json_schema())
    assert document["complete"] is True
    assert document["engines"] == []


# -------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("form", ["sarif", "github", "markdown", "html"])
def test_every_format_is_written_for_several_checkpoints(models: Path, tmp_path: Path, form: str) -> None:
    target = tmp_path / "report"
    done = check(models / "good", models / "broken", models / "gone", "-e", NEW, "--format", form, "-o", target)
    assert done.code == 2
    assert done.out == ""
    text = target.read_text(encoding="utf-8")
    assert "MTP201" in text
    assert "gone" in text
