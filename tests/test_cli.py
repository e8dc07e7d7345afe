from __future__ import annotations

import errno
import json
import os
import pty
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from typer.testing import CliRunner

import mtpfix
from mtpfix import api
from mtpfix.cli import app
from mtpfix.errors import FindingsError, MtpfixError
from mtpfix.report.schema import json_schema
from mtpfix.rules.registry import registered
from tests.checkpoints import Tensor, build, write_shard
from tests.report.hostile import HOSTILE

OLD, NEW = "vllm==0.19.1", "vllm==0.32.0"
FAMILY = "qwen3_5_moe"
PLAIN = {"NO_COLOR": "", "FORCE_COLOR": "", "MTPFIX_DEBUG": "", "COLUMNS": "100", "TERM": "xterm"}


class Done(NamedTuple):
    """What a command did."""

    code: int
    out: str
    err: str


def run(*arguments: str | Path, env: dict[str, str] | None = None) -> Done:
    """Run a command inside this process."""
    result = CliRunner().invoke(app, [str(each) for each in arguments], env={**PLAIN, **(env or {})})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


def start(*arguments: str | Path, code: str = "", **options: Any) -> subprocess.Popen[bytes]:
    """Start the command as a process of its own; `code` runs before it."""
    program = f"import sys; sys.argv[0] = 'mtpfix'\n{code}\nfrom mtpfix.cli import main; main()"
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    options.setdefault("env", {**os.environ, **PLAIN})
    return subprocess.Popen([sys.executable, "-c", program, *map(str, arguments)], **options)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make checkpoints: one that fails in old releases only, one without a branch, and broken ones."""
    root = tmp_path_factory.mktemp("checkpoints")
    build(root / "listed", FAMILY, "published")
    build(root / "cut", FAMILY, "nothing-excluded")
    shard = min((root / "cut").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    (root / "empty").mkdir()
    (root / "foreign").mkdir()
    (root / "foreign" / "config.json").write_text('{"architectures": ["SomethingElse"]}')
    write_shard(root / "foreign" / "model.safetensors", [Tensor("some.weight", "BF16", (4, 4))])
    return root


# -------------------------------------------------------------------------------------------- exit codes


def test_0_where_everything_was_read_and_loads(folders: Path) -> None:
    done = run("scan", folders / "listed", "-e", NEW)
    assert done.code == 0
    assert "vllm 0.32.0: main model and MTP draft load." in done.out
    assert done.err == ""


def test_1_where_something_fails(folders: Path) -> None:
    done = run("scan", folders / "listed", "-e", OLD)
    assert done.code == 1
    assert "vllm 0.19.1: main model loads, MTP draft fails to load." in " ".join(done.out.split())
    assert "AssertionError" in done.out


@pytest.mark.parametrize("options", [[], ["--fail-on", "never"], ["--ignore", "MTP"]])
def test_2_where_a_shard_could_not_be_read_whatever_is_asked(folders: Path, options: list[str]) -> None:
    done = run("scan", folders / "cut", *options)
    assert done.code == 2
    assert "INCOMPLETE" in done.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["listed", "-e", "nosuchengine"], "nosuchengine"),
        (["listed", "-e", "vllm==99"], "vllm==99"),
        (["listed", "-e", "vllm>>1"], "vllm>>1"),
        (["listed", "--select", "MTP999"], "MTP999"),
        (["listed", "--select", ""], "no rule"),
        (["absent"], "absent"),
        (["listed", "--format", "yaml"], "yaml"),
        (["listed", "--fail-on", "everything"], "everything"),
        (["listed", "--no-such-option"], "no-such-option"),
        (["listed", "-o", "absent/report"], "absent/report"),
        ([], "nothing to scan"),
    ],
)
def test_2_where_the_request_makes_no_sense(folders: Path, arguments: list[str], says: str) -> None:
    refs = [folders / each if each in ("listed", "absent") else each for each in arguments]
    done = run("scan", *refs)
    assert done.code == 2
    assert done.out == ""
    assert says in " ".join(done.err.split())
    assert "Traceback" not in done.err


def test_3_where_there_is_nothing_to_check(folders: Path) -> None:
    assert run("scan", folders / "empty").code == 3
    foreign = run("scan", folders / "foreign")
    assert foreign.code == 3
    assert "SomethingElse" in foreign.out


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["listed", "listed"], 1),
        (["empty", "listed"], 1),
        (["listed", "cut", "empty"], 2),
        (["foreign", "empty"], 3),
        (["absent", "listed"], 2),
    ],
)
def test_of_several_the_worst_counts(folders: Path, names: list[str], code: int) -> None:
    done = run("scan", *(folders / name for name in names), "-e", OLD)
    assert done.code == code
    assert f"{len(names)} checkpoints: " in done.out


@pytest.mark.parametrize(("level", "code"), [("error", 1), ("warning", 1), ("note", 1), ("never", 0)])
def test_fail_on_decides_what_counts(folders: Path, level: str, code: int) -> None:
    assert run("scan", folders / "listed", "-e", OLD, "--fail-on", level).code == code


def test_rules_can_be_chosen_by_code_beginning_and_name(folders: Path) -> None:
    found = json.loads(run("scan", folders / "listed", "-e", OLD, "--json").out)["findings"]
    rule, name = found[0]["rule"], found[0]["name"]
    for chosen in (rule, rule[:4], name):
        done = run("scan", folders / "listed", "-e", OLD, "--json", "--select", chosen)
        assert [each["rule"] for each in json.loads(done.out)["findings"]] == [rule]
        done = run("scan", folders / "listed", "-e", OLD, "--json", "--ignore", chosen)
        assert rule not in [each["rule"] for each in json.loads(done.out)["findings"]]
        assert done.code == 0


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_130_where_it_was_interrupted(ending: signal.Signals) -> None:
    wait = "import mtpfix.api, time\nmtpfix.api.scan = lambda *a, **k: (print('ready', flush=True), time.sleep(60))\n"
    process = start("scan", "folder", code=wait)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(ending)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == b""
    assert err == b"mtpfix: interrupted\n"


# ------------------------------------------------------------------------------------------ never a traceback


def fail(*_: object, **__: object) -> None:
    """Stand in for a defect."""
    raise ZeroDivisionError("an\x1b[31m unexpected thing")


def test_a_defect_is_a_sentence(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "scan", fail)
    done = run("scan", folders / "listed")
    assert (done.code, done.out) == (2, "")
    assert "ZeroDivisionError: an\\x1b[31m unexpected thing" in done.err
    assert "MTPFIX_DEBUG=1" in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    ("arguments", "env"),
    [(["--debug", "scan", "x"], {}), (["scan", "x", "--debug"], {}), (["scan", "x"], {"MTPFIX_DEBUG": "1"})],
)
def test_a_defect_shows_its_traceback_when_asked(
    arguments: list[str], env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "scan", fail)
    done = run(*arguments, env=env)
    assert done.code == 2
    assert "Traceback" in done.err


def test_a_defect_in_one_checkpoint_spares_the_others(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = api.scan
    monkeypatch.setattr(api, "scan", lambda ref, **options: fail() if "cut" in ref else scan(ref, **options))
    done = run("scan", folders / "cut", folders / "listed", "--json", "-e", NEW)
    first, second = json.loads(done.out)
    assert done.code == first["exit_code"] == 2
    assert "ZeroDivisionError" in first["error"]
    assert second["exit_code"] == 0


# ------------------------------------------------------------------------------------------------- output


def test_json_is_an_object_for_one_and_an_array_for_several(folders: Path) -> None:
    check = jsonschema.Draft202012Validator(json_schema(closed=True)).validate
    for option in (["--json"], ["--format", "json"]):
        done = run("scan", folders / "listed", *option)
        content = json.loads(done.out)
        check(content)
        assert content["exit_code"] == done.code == 1
        assert content["checkpoint"]["ref"] == str(folders / "listed")
    done = run("scan", folders / "listed", folders / "absent", folders / "empty", "--json")
    content = json.loads(done.out)
    check(content)
    assert [each["exit_code"] for each in content] == [1, 2, 3]
    assert "no folder" in content[1]["error"]


def test_json_of_a_folder_that_cannot_be_scanned_is_json_too(folders: Path) -> None:
    done = run("scan", folders / "absent", "--json")
    assert done.code == json.loads(done.out)["exit_code"] == 2
    assert "no folder" in done.err


def test_the_verdict_by_the_contract(folders: Path) -> None:
    content = json.loads(run("scan", folders / "listed", "--json", "-e", OLD, "-e", NEW).out)
    old, new = content["engines"]
    assert (old["version"], old["target"], old["draft"], old["error"]) == ("0.19.1", "loads", "fails", "AssertionError")
    assert (new["version"], new["target"], new["draft"], new["error"]) == ("0.32.0", "loads", "loads", None)
    crashing = {
        each["module"]: (each["stored"], each["built"]) for each in old["modules"] if each["outcome"] == "crash"
    }
    assert crashing == {"mtp.fc": ("bf16", "nvfp4")}


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_file_holds_what_the_screen_would(folders: Path, tmp_path: Path, form: str) -> None:
    screen = run("scan", folders / "listed", folders / "cut", "-e", OLD, "--format", form)
    filed = run("scan", folders / "listed", folders / "cut", "-e", OLD, "--format", form, "-o", tmp_path / "report")
    assert (tmp_path / "report").read_text() == screen.out
    assert (filed.code, filed.out) == (screen.code, "")
    assert run("scan", folders / "listed", folders / "cut", "-e", OLD, "--format", form, "-o", "-").out == screen.out


def test_quiet_says_the_verdict_alone(folders: Path) -> None:
    done = run("scan", folders / "listed", "-q")
    assert done.out.count("\n") == 1
    assert done.out.startswith(f"{folders / 'listed'}: MTP branch: present")


def test_verbose_leaves_nothing_out(folders: Path) -> None:
    usual, verbose = run("scan", folders / "listed"), run("scan", folders / "listed", "-v")
    assert len(verbose.out) >= len(usual.out)


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_the_report_keeps_to_the_width(folders: Path, columns: int) -> None:
    done = run("scan", folders / "cut", env={"COLUMNS": str(columns)})
    # the command that repairs stays one line, to be copied
    lines = [line for line in done.out.replace(str(folders), "").split("\n") if not line.startswith("Repair: ")]
    assert max(map(len, lines)) <= columns


@pytest.mark.parametrize(
    ("options", "env", "colored"),
    [
        ([], {}, False),
        ([], {"FORCE_COLOR": "1"}, True),
        ([], {"FORCE_COLOR": "0"}, False),
        ([], {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        ([], {"FORCE_COLOR": "1", "AI_AGENT": "claude"}, False),
        (["--color", "always"], {"NO_COLOR": "1"}, True),
        (["--color", "never"], {"FORCE_COLOR": "1"}, False),
    ],
)
def test_colour_follows_option_then_environment(
    folders: Path, options: list[str], env: dict[str, str], colored: bool
) -> None:
    done = run("scan", folders / "listed", "-e", NEW, *options, env=env)
    assert ("\x1b[" in done.out) is colored
    assert "\x1b" not in run("scan", folders / "listed", "-e", NEW, "--json", *options, env=env).out


def test_a_file_has_no_colour_unless_it_is_asked_for(folders: Path, tmp_path: Path) -> None:
    run("scan", folders / "listed", "-e", NEW, "-o", tmp_path / "report", env={"FORCE_COLOR": "1"})
    assert "\x1b" not in (tmp_path / "report").read_text()
    run("scan", folders / "listed", "-e", NEW, "-o", tmp_path / "report", "--color", "always")
    assert "\x1b[" in (tmp_path / "report").read_text()


def read_terminal(controller: int) -> Iterator[bytes]:
    """Yield what a process writes to a terminal until it leaves."""
    while True:
        try:
            data = os.read(controller, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return
        if not data:
            return
        yield data


@pytest.mark.parametrize(("env", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_terminal_gets_colour_and_a_pipe_gets_none(folders: Path, env: dict[str, str], colored: bool) -> None:
    controller, terminal = pty.openpty()
    process = start("scan", folders / "listed", "-e", OLD, stdout=terminal, env={**os.environ, **PLAIN, **env})
    os.close(terminal)
    screen = b"".join(read_terminal(controller))
    _, err = process.communicate(timeout=60)
    os.close(controller)
    assert (process.returncode, err) == (1, b"")
    assert (b"\x1b[" in screen) is colored


@pytest.mark.parametrize(("options", "moves"), [([], True), (["--no-progress"], False), (["-q"], False)])
def test_progress_is_shown_on_a_terminal_and_leaves_the_report_alone(
    folders: Path, options: list[str], moves: bool
) -> None:
    slow = (
        "import mtpfix.api, time\n"
        "scan = mtpfix.api.scan\n"
        "def slowly(ref, **options):\n"
        "    time.sleep(0.4)\n"
        "    return scan(ref, **options)\n"
        "mtpfix.api.scan = slowly\n"
    )
    controller, terminal = pty.openpty()
    process = start("scan", folders / "listed", "-e", NEW, *options, code=slow, stderr=terminal)
    os.close(terminal)
    screen = b"".join(read_terminal(controller))
    out, _ = process.communicate(timeout=60)
    os.close(controller)
    assert (b"reading headers" in screen) is moves
    assert moves or screen == b""
    assert out.decode() == run("scan", folders / "listed", "-e", NEW, *options).out


@pytest.mark.parametrize(("arguments", "code"), [(["schema"], 0), (["scan", "listed", "--json"], 1), (["explain"], 0)])
def test_a_reader_who_leaves_is_no_error(folders: Path, arguments: list[str], code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = start(*(folders / each if each == "listed" else each for each in arguments), stdout=writing)
    os.close(writing)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (code, b"")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_in_a_checkpoint_stay_text(tmp_path: Path, form: str, name: str) -> None:
    config = {"architectures": ["Qwen3NextForCausalLM"], "num_hidden_layers": 1, "quantization_config": {}}
    config |= {"quantization_config": {"quant_method": "modelopt", "quant_algo": name, "ignore": [name]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    names = [f"mtp.{name}.weight", f"model.layers.0.{name}", name]
    write_shard(tmp_path / "model-00001-of-00002.safetensors", [Tensor(each, "BF16", (2, 2)) for each in names])
    index = {"metadata": {}, "weight_map": {f"{name}.weight": "model-00001-of-00002.safetensors", "x": f"../{name}"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    done = run("scan", tmp_path, "-e", NEW, "--format", form, "--color", "never")
    assert done.code in (1, 2, 3)
    assert all(character.isprintable() or character == "\n" for character in done.out + done.err)
    assert "defect" not in done.err
    if form == "json":
        jsonschema.Draft202012Validator(json_schema(closed=True)).validate(json.loads(done.out))


def test_a_hostile_argument_is_said_safely() -> None:
    done = run("scan", "no\x1b[31m\u202esuch")
    assert done.code == 2
    assert "no\\x1b[31m\\u202esuch" in done.err


def test_a_screen_that_knows_ascii_only_gets_ascii(folders: Path) -> None:
    env = {**os.environ, **PLAIN, "PYTHONIOENCODING": "ascii:strict"}
    process = start("scan", folders / "listed", "né模型", env=env)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert (out + err).isascii()
    assert b"Traceback" not in err


# --------------------------------------------------------------------------------------------- the lists


@pytest.mark.parametrize("name", ["engines", "families", "explain"])
def test_lists_are_there_for_people_machines_and_documents(name: str) -> None:
    text, markdown = run(name), run(name, "--format", "markdown")
    assert (text.code, markdown.code) == (0, 0)
    assert max(map(len, text.out.split("\n"))) <= 100
    content = json.loads(run(name, "--format", "json").out)
    assert content == json.loads(run(name, "--json").out)
    assert content["schema"] == 1
    rows = content["rules" if name == "explain" else name]
    assert len(rows) == markdown.out.count("\n") - 2


def test_the_engines_and_their_confidence() -> None:
    content = json.loads(run("engines", "--json").out)
    vllm = next(each for each in content["engines"] if each["engine"] == "vllm")
    versions = [each["version"] for each in vllm["releases"]]
    assert versions[0] == "0.11.2"
    assert "0.32.0" in versions
    assert {each["confidence"] for each in vllm["releases"]} <= {"verified", "derived"}


def test_the_families_say_which_releases_load_them() -> None:
    content = json.loads(run("families", "--json").out)
    family = next(each for each in content["families"] if each["family"] == "qwen3_5")
    assert "Qwen3_5MoeForConditionalGeneration" in family["architectures"]
    drafts = next(each for each in family["loads"] if (each["engine"], each["role"]) == ("vllm", "draft"))
    assert "0.32.0" in drafts["versions"]
    assert "0.11.2" not in drafts["versions"]


def test_every_rule_explains_itself_by_code_and_by_name() -> None:
    rules = json.loads(run("explain", "--json").out)["rules"]
    assert len(rules) > 20
    for rule in rules:
        by_code, by_name = run("explain", rule["rule"].lower()), run("explain", rule["name"])
        assert by_code == by_name
        assert by_code.out.startswith(f"{rule['rule']} {rule['name']} ({rule['severity']})\n")
        assert rule["documentation"] in by_code.out
    done = run("explain", "MTP999")
    assert (done.code, done.out) == (2, "")
    assert "MTP999" in done.err


def test_every_finding_names_a_rule_that_is_explained(folders: Path) -> None:
    for finding in json.loads(run("scan", folders / "cut", "--json").out)["findings"]:
        assert run("explain", finding["rule"]).code == 0


def test_the_schema_is_printed_as_json() -> None:
    assert json.loads(run("schema").out) == json.loads(run("schema", "--json").out) == json_schema()


def test_version_and_help() -> None:
    assert run("--version").out == f"mtpfix {mtpfix.__version__}\n"
    text = run("--help").out
    assert re.findall(r"^  (\w+) ", text.partition("Commands:")[2], re.MULTILINE) == [
        "scan",
        "check",
        "patch",
        "verify",
        "push",
        "diff",
        "engines",
        "families",
        "explain",
        "schema",
        "doctor",
    ]
    assert run("-h").out == text
    for option in ("--engine", "--fail-on", "--select", "--ignore", "--color", "--quiet", "--no-progress", "--json"):
        assert option in run("scan", "--help").out


# ---------------------------------------------------------------------------------------- from a program


def test_a_program_gets_a_report_that_can_raise(folders: Path) -> None:
    report = mtpfix.scan(folders / "listed", engines=[OLD])
    assert report.exit_code() == 1
    with pytest.raises(FindingsError, match=r"MTP201 .* at mtp\.fc") as caught:
        report.raise_if_failed()
    assert caught.value.exit_code == 1
    mtpfix.scan(folders / "listed", engines=[NEW]).raise_if_failed()


def test_a_program_is_told_that_a_scan_is_incomplete(folders: Path) -> None:
    with pytest.raises(MtpfixError, match="incomplete") as caught:
        mtpfix.scan(folders / "cut").raise_if_failed("note")
    assert caught.value.exit_code == 2


def test_a_program_is_told_of_progress(folders: Path) -> None:
    seen: list[tuple[int, int]] = []
    note: Callable[[int, int], None] = lambda done, total: seen.append((done, total))  # noqa: E731
    mtpfix.scan(folders / "listed", engines=[NEW], progress=note)
    assert seen == [(1, 2), (2, 2)]


# ------------------------------------------------------------------------------------- shells, and the hf command


def completed(*words: str) -> set[str]:
    """Return what a shell would offer for the last word."""
    environment = {
        **os.environ,
        "_MTPFIX_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["mtpfix", *words]),
        "COMP_CWORD": str(len(words)),
    }
    offered, _ = start(env=environment).communicate(timeout=30)
    return set(offered.decode().split())


def test_shells_complete_commands_engines_and_rules() -> None:
    assert completed("ex") == {"explain"}
    assert {"vllm", "vllm==0.32.0"} <= completed("scan", "folder", "-e", "vll")
    assert completed("explain", "MTP60") == {code for code in registered() if code.startswith("MTP60")}


def test_hf_runs_it_as_an_extension(tmp_path: Path, folders: Path) -> None:
    hf = Path(sys.executable).with_name("hf")
    extension = tmp_path / ".local" / "share" / "hf" / "extensions" / "hf-mtpfix"
    program = extension / "hf-mtpfix"
    extension.mkdir(parents=True)
    code = "import sys; sys.argv[0] = 'hf-mtpfix'; from mtpfix.cli import main; main()"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{code}" "$@"\n')
    program.chmod(0o755)
    manifest = {
        "owner": "mtpfix",
        "repo": "hf-mtpfix",
        "repo_id": "mtpfix/hf-mtpfix",
        "short_name": "mtpfix",
        "executable_path": str(program),
        "type": "python",
        "installed_at": "2026-01-01T00:00:00",
    }
    (extension / "manifest.json").write_text(json.dumps(manifest))
    environment = {**os.environ, **PLAIN, "HOME": str(tmp_path), "HF_HUB_DISABLE_UPDATE_CHECK": "1"}
    command: list[str | Path] = [hf, "mtpfix", "check", folders / "listed", "-e", OLD, "-e", NEW, "--quiet"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1, done.stderr
    assert "vllm 0.19.1: main model loads, MTP draft fails to load" in done.stdout


def test_the_scripts_are_installed() -> None:
    scripts = {one.name: one.value for one in entry_points(group="console_scripts") if "mtpfix" in one.name}
    assert scripts == {"mtpfix": "mtpfix.cli:main", "hf-mtpfix": "mtpfix.cli:main"}
