from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mtpfix import scan, verify
from mtpfix.cli import app
from mtpfix.errors import MtpfixError, NothingToCheck, UsageError
from mtpfix.model import Verdict
from mtpfix.probe import ask
from mtpfix.probe.interpreter import inspect
from tests.checkpoints import Tensor, build, write_shard
from tests.probe.standin import LOADED, answer, make

PLAIN = {"NO_COLOR": "", "FORCE_COLOR": "", "MTPFIX_DEBUG": "", "COLUMNS": "80"}
FAILED: dict[str, Any] = {
    **LOADED,
    "verdict": "fails",
    "phase": "load",
    "error": {
        "class": "KeyError",
        "text": "'model.layers.2.eh_proj.input_scale'",
        "at": ["vllm/models/a.py:1", "STAGE/b.py:2"],
    },
    "tensor": "model.layers.2.eh_proj.input_scale",
    "modules": [{"prefix": "model.layers.2.eh_proj", "path": "x", "layer": "ReplicatedLinear", "format": "bf16"}],
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints") / "packed-glue"
    build(folder, "deepseek_v3", "packed-glue")
    return folder


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["verify", *map(str, arguments)], env=PLAIN)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def package(folder: Path, name: str, text: str) -> dict[str, str]:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


# ------------------------------------------------------------------------------------------------ what is told


def test_a_failure_is_told_with_its_tensor_and_frames_and_agrees(checkpoint: Path, tmp_path: Path) -> None:
    python = make(tmp_path, lines=[answer(draft=FAILED)])
    found = verify(checkpoint, engine_python=python)
    assert found.exit_code == 1
    assert found.target is not None
    assert found.target.verdict is Verdict.LOADS
    assert found.draft is not None
    assert (found.draft.verdict, found.draft.error) == (Verdict.FAILS, "KeyError")
    assert found.draft.tensor == "model.layers.2.eh_proj.input_scale"
    assert found.draft.frames == ("vllm/models/a.py:1", f"{checkpoint}/b.py:2")  # not where the engine was shown it
    assert (found.compared, found.exact) == ("0.32.0", True)
    assert not [one for one in found.differences if "eh_proj" in one]


@pytest.mark.parametrize(("phase", "differs"), [("load", False), ("construct", True)])
def test_where_no_tensor_was_seen_the_error_tells_which_it_was(
    checkpoint: Path, tmp_path: Path, phase: str, differs: bool
) -> None:
    gathered = {**FAILED, "tensor": None, "phase": phase}
    found = verify(checkpoint, engine_python=make(tmp_path, lines=[answer(draft=gathered)]))
    said = "MTP draft: it fails at None, predicted model.layers.2.eh_proj.input_scale"
    assert (said in found.differences) is differs


def test_the_screen_stays_within_80_columns_and_names_everything(checkpoint: Path, tmp_path: Path) -> None:
    code, out, err = run(checkpoint, "--engine-python", make(tmp_path, lines=[answer(draft=FAILED)]), "-v")
    assert (code, err) == (1, "")
    assert max(map(len, out.splitlines()[1:])) <= 80
    for text in (
        "main model  loads",
        "MTP draft   FAILS",
        "KeyError",
        "vllm/models/a.py:1",
        "a kernel: none is chosen",
    ):
        assert text in out


def test_the_json_holds_every_answer(checkpoint: Path, tmp_path: Path) -> None:
    code, out, _ = run(checkpoint, "--engine-python", make(tmp_path, lines=[answer(draft=FAILED)]), "--json")
    found = json.loads(out)
    assert code == found["exit_code"] == 1
    assert (found["engine"], found["version"], found["schema"]) == ("vllm", "0.32.0", 1)
    assert found["draft"]["error"] == "KeyError"
    assert found["draft"]["modules"][0]["prefix"] == "model.layers.2.eh_proj"
    assert found["prediction"]["exact"]
    assert found["replaced"] == ["a kernel: none is chosen"]


def test_a_difference_is_called_a_defect_of_mtpfix_and_changes_no_exit_code(checkpoint: Path, tmp_path: Path) -> None:
    python = make(tmp_path, lines=[answer()])  # the real engine refuses this checkpoint's draft
    code, out, _ = run(checkpoint, "--engine-python", python)
    assert code == 0
    assert "differs from what mtpfix predicts for vllm 0.32.0" in out
    assert "MTP draft: it loads, predicted fails" in " ".join(out.split())
    assert "defect of mtpfix" in out


def test_a_silent_model_names_its_parameters(checkpoint: Path, tmp_path: Path) -> None:
    silent = {
        **LOADED,
        "verdict": "silent",
        "unwritten": ["a.weight"],
        "misread": {"b.weight": "uint8 read as bfloat16"},
    }
    code, out, _ = run(checkpoint, "--engine-python", make(tmp_path, lines=[answer(draft=silent)]))
    assert code == 1
    assert "SILENT" in out
    assert "a.weight" in out
    assert "uint8 read as bfloat16" in out


def test_only_one_model_can_be_asked_for(checkpoint: Path, tmp_path: Path) -> None:
    python = make(tmp_path, lines=[answer(draft=None)])
    code, out, _ = run(checkpoint, "--engine-python", python, "--target-only")
    assert code == 0
    assert "MTP draft" not in out
    assert "--roles=target" in json.loads((tmp_path / "seen.json").read_text())["arguments"]
    code, _, err = run(checkpoint, "--engine-python", python, "--target-only", "--draft-only")
    assert code == 2
    assert "exclude each other" in err


def test_a_release_outside_the_known_range_is_compared_with_the_nearest(checkpoint: Path, tmp_path: Path) -> None:
    for version, nearest in (
        ("0.99.0", "0.33.0"),
        ("0.1.0", "0.11.2"),
        ("0.19.5.dev3+g1234", "0.19.1"),
        ("odd", "0.33.0"),
    ):
        found = verify(checkpoint, engine_python=make(tmp_path, lines=[answer(vllm=version, draft=FAILED)]))
        assert (found.version, found.compared, found.exact) == (version, nearest, False)
    _, out, _ = run(checkpoint, "--engine-python", make(tmp_path, lines=[answer(vllm="0.99.0", draft=FAILED)]))
    assert "the known release nearest to 0.99.0" in " ".join(out.split())


def test_an_engine_without_a_class_is_nothing_to_check(checkpoint: Path, tmp_path: Path) -> None:
    lines = [{**answer(), "target": None, "draft": None, "unsupported": ["DeepseekV3ForCausalLM"]}]
    code, out, _ = run(checkpoint, "--engine-python", make(tmp_path, lines=lines))
    assert code == 3
    assert "vLLM 0.32.0 has no class for DeepseekV3ForCausalLM" in out


def test_a_family_that_nobody_knows_is_asked_all_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["SomethingElse"]}')
    write_shard(folder / "model.safetensors", [Tensor("some.weight", "BF16", (4, 4))])
    code, out, _ = run(folder, "--engine-python", make(tmp_path, lines=[answer()]))
    assert code == 0
    assert "main model  loads" in out
    assert "prediction  none: no family file knows the architecture SomethingElse" in out


def test_an_error_of_a_stand_in_says_nothing_of_the_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    error = {"class": "AttributeError", "text": "'OddStandIn' object has no attribute 'width'", "at": []}
    target = {**LOADED, "verdict": "fails", "phase": "construct", "error": error}
    python = make(tmp_path, lines=[answer(target=target, draft=None, stand_ins=["OddStandIn"])])
    found = verify(checkpoint, engine_python=python)
    assert found.target is not None
    assert found.target.verdict is Verdict.UNKNOWN
    assert "which is not run" in found.target.reason
    assert found.exit_code == 3


# ------------------------------------------------------------------------------------------ what an engine is shown


def test_an_engine_is_shown_no_code_and_writes_nothing_into_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    build(folder, "nemotron_h", "published")
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    before = sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir())
    code = "open(stage + '/written.json', 'w').write('by the engine')"
    python = make(tmp_path, lines=[answer()], code=code)
    found = verify(folder, engine_python=python)
    seen = json.loads((tmp_path / "seen.json").read_text())
    assert not [name for name in seen["files"] if name.endswith((".py", ".bin"))]
    assert "model.safetensors.index.json" in seen["files"]
    assert "auto_map" not in seen["config"]
    assert seen["config"]["architectures"] == ["NemotronHForCausalLM"]
    assert any(one.startswith("--foreign=") for one in seen["arguments"])
    assert seen["cwd"] == []
    assert "configuration_nemotron_h.py" in found.notes[0]
    assert sorted((path.name, path.stat().st_mtime_ns) for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("config", "layers"),
    [
        ({"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": 2}, 2),
        ({"architectures": ["Qwen3_5ForConditionalGeneration"], "text_config": {"mtp_num_hidden_layers": 3}}, 3),
        ({"architectures": ["MiniMaxM3SparseForConditionalGeneration"], "text_config": {"num_mtp_modules": 4}}, 4),
        ({"architectures": ["DeepseekV3ForCausalLM"], "num_mtp_modules": 5}, 1),  # not a key of this family
        ({"architectures": ["NobodyKnowsForCausalLM"], "num_mtp_modules": 6}, 6),
        ({"architectures": ["DeepseekV3ForCausalLM"], "num_nextn_predict_layers": "many"}, 1),
        ({"architectures": [["DeepseekV3ForCausalLM"]], "num_nextn_predict_layers": 0}, 1),
    ],
)
def test_an_engine_is_told_how_many_layers_the_family_counts(
    config: dict[str, Any], layers: int, tmp_path: Path
) -> None:
    folder = tmp_path / "some"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    python = make(tmp_path, lines=[answer()])
    list(ask(python, "vllm_load", [folder]))
    arguments = json.loads((tmp_path / "seen.json").read_text())["arguments"]
    assert [one.rpartition("=")[2] for one in arguments if one.startswith("--layers=")] == [str(layers)]


def test_a_draft_that_is_a_checkpoint_of_its_own_gets_a_small_main_model_beside_it(tmp_path: Path) -> None:
    built = build(tmp_path / "drafter", "gemma4_assistant", "branch-nvfp4").config
    copied = tmp_path / "main.json"
    code = "main = next(one for one in arguments if one.startswith('--main=')).rpartition('=')[2]; "
    code += f"open({str(copied)!r}, 'w').write(open(main + '/config.json').read())"
    python = make(tmp_path, lines=[answer(target=None)], code=code)
    found = verify(tmp_path / "drafter", engine_python=python)
    assert found.target is None
    assert found.prediction is not None
    assert found.prediction.target.verdict is Verdict.ABSENT
    assert found.prediction.draft.verdict is Verdict.LOADS
    assert found.exit_code == 0
    assert found.differences == ()
    assert "a small main model, without weights, stood beside it" in found.notes[0]
    main = json.loads(copied.read_text())
    assert main["architectures"] == ["Gemma4ForCausalLM"]
    assert main["hidden_size"] == built["backbone_hidden_size"]
    assert main["vocab_size"] == built["text_config"]["vocab_size"]
    assert main["num_kv_shared_layers"] == 0
    assert "quantization_config" not in main


@pytest.mark.parametrize(("version", "told"), [("0.29.0", True), ("0.30.0", False)])
def test_an_engine_is_started_with_what_it_needs_for_a_model(version: str, told: bool, tmp_path: Path) -> None:
    build(tmp_path / "v4", "deepseek_v4", "excluded-glob", sparse=True)
    detected = {"python": "3.11.7", "engines": {"vllm": {"version": version, "place": "somewhere"}}}
    found = verify(tmp_path / "v4", engine_python=make(tmp_path, lines=[answer(vllm=version)], detect=detected))
    assert ("the engine was started with kv_cache_dtype=fp8, which it needs for this model" in found.notes) is told
    arguments = json.loads((tmp_path / "seen.json").read_text())["arguments"]
    (given,) = (one for one in arguments if one.startswith("--options="))
    assert json.loads(given[given.index("={") + 1 :]) == {"vllm": {"versions": "<0.30", "kv_cache_dtype": "fp8"}}


@pytest.mark.parametrize("release", ["0.21.0", "0.32.0"])
def test_why_a_method_is_not_predicted_is_said(release: str, tmp_path: Path) -> None:
    build(tmp_path / "v4", "deepseek_v4", "hf-quant-only", sparse=True)
    (tmp_path / "v4" / "hf_quant_config.json").unlink()
    config = json.loads((tmp_path / "v4" / "config.json").read_text())
    own = {"quant_method": "fp8", "activation_scheme": "dynamic", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    (tmp_path / "v4" / "config.json").write_text(json.dumps({**config, "quantization_config": own}))
    (row,) = scan(tmp_path / "v4", engines=[f"vllm=={release}"]).engines
    for model in (row.prediction.target, row.prediction.draft):
        assert model.verdict is Verdict.UNKNOWN
        assert "a kernel that is chosen by the GPU" in model.reason


def test_a_checkpoint_without_a_branch_is_asked_for_its_main_model_alone(tmp_path: Path) -> None:
    build(tmp_path / "none", "deepseek_v3", "no-mtp")
    found = verify(tmp_path / "none", engine_python=make(tmp_path, lines=[answer(draft=None)]))
    assert found.draft is None
    assert "no MTP layer is declared" in found.notes[0]
    assert "--roles=target" in json.loads((tmp_path / "seen.json").read_text())["arguments"]


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent", None, "there is no interpreter"),
        ("text", "just a text", "cannot be executed"),
        ("shell", "#!/bin/sh\necho no Python here; exit 3\n", "is not a Python of 3.10 or newer: no Python here"),
        ("format", "\x7fnothing that runs", "cannot be started"),
        ("silent", "#!/bin/sh\nexit 0\n", "is not a Python"),
    ],
)
def test_what_is_no_interpreter_is_refused(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
        path.chmod(0o755 if name != "text" else 0o644)
    with pytest.raises(UsageError, match=said):
        inspect(path)
    code, _, err = run(tmp_path, "--engine-python", path)
    assert code == 2
    assert "VENV/bin/python" in err


def test_a_folder_is_taken_for_an_environment_only_if_it_is_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no environment of Python"):
        inspect(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    assert inspect(tmp_path).version.startswith("3.")


def test_an_old_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is Python 3\.9\.2; the probe needs 3\.10"):
        inspect(make(tmp_path, detect={"python": "3.9.2", "engines": {}}))


def test_a_python_without_an_engine_says_what_was_looked_for(checkpoint: Path) -> None:
    with pytest.raises(UsageError, match=r"has no engine; looked for .*vllm"):
        verify(checkpoint, engine_python=sys.executable)


def test_an_engine_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in package(tmp_path / "site", "vllm", "raise SystemExit('imported')").items():
        monkeypatch.setenv(name, value)
    assert inspect(sys.executable).engines == {"vllm": None}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("raise ImportError('libcudart.so.12: cannot open shared object file')", "ImportError: libcudart.so.12"),
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        ("", "AttributeError"),
    ],
)
def test_a_broken_installation_is_told_in_a_sentence(
    text: str, said: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", package(tmp_path / "site", "vllm", f"print('{{}}')\n{text}")["PYTHONPATH"])
    code, _, err = run(checkpoint, "--engine-python", sys.executable)
    assert code == 2
    assert "cannot be imported" in err
    assert said in err
    assert "Traceback" not in err


def test_several_engines_ask_for_a_choice(checkpoint: Path, tmp_path: Path) -> None:
    engines = {"vllm": {"version": "0.32.0"}, "sglang": {"version": "0.5.23"}}
    python = make(tmp_path, detect={"python": "3.11.7", "engines": engines}, lines=[answer(draft=FAILED)])
    code, _, err = run(checkpoint, "--engine-python", python)
    assert code == 2
    assert "has sglang and vllm" in err
    assert "--engine" in err
    assert verify(checkpoint, engine_python=python, engine="vllm").engine == "vllm"
    with pytest.raises(UsageError, match="unknown engine"):
        verify(checkpoint, engine_python=python, engine="other")


def test_each_engine_is_asked_by_its_own_module(checkpoint: Path, tmp_path: Path) -> None:
    for engine, version, module in (("vllm", "0.32.0", "vllm_load"), ("sglang", "0.5.23", "sglang_load")):
        detect = {"python": "3.11.7", "engines": {engine: {"version": version}}}
        line = {**answer(), "vllm": None, engine: version, "runner": ""}
        found = verify(checkpoint, engine_python=make(tmp_path, detect=detect, lines=[line]))
        assert json.loads((tmp_path / "seen.json").read_text())["module"] == module
        assert (found.engine, found.version, found.exact) == (engine, version, True)


def test_a_probe_that_takes_too_long_is_stopped_with_all_it_started(checkpoint: Path, tmp_path: Path) -> None:
    note = f"open({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))"
    code = f"import subprocess; child = subprocess.Popen(['sleep', '60']); {note}; time.sleep(60)"
    begun = time.monotonic()
    with pytest.raises(MtpfixError, match="did not answer within 2 seconds"):
        verify(checkpoint, engine_python=make(tmp_path, code=code), timeout=2)
    assert time.monotonic() - begun < 20
    child = Path(f"/proc/{(tmp_path / 'pid').read_text()}/status")
    assert not child.exists() or "zombie" in child.read_text()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell the memory of a process")
def test_a_probe_that_takes_too_much_memory_is_stopped(checkpoint: Path, tmp_path: Path) -> None:
    python = make(tmp_path, code="kept = bytearray(b'1') * 300_000_000; time.sleep(30)")
    with pytest.raises(MtpfixError, match=r"more than 0\.1 GB of memory"):
        verify(checkpoint, engine_python=python, memory=100_000_000)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"leaves_with": 7}, "ended with code 7 without an answer; it last printed"),
        ({"code": "os.kill(os.getpid(), 9)"}, "was ended by signal 9"),
        ({"lines": ["{half a line", '["no object"]']}, "without an answer"),
        ({"lines": [{"started": True, "checkpoint": "STAGE"}]}, "without an answer"),
        ({"lines": [{"broken": "Traceback\\n  a.py\\nRuntimeError: odd"}]}, "RuntimeError: odd"),
        ({"lines": [{"broken_engine": "ImportError: x"}]}, "cannot be imported: ImportError: x"),
    ],
)
def test_a_probe_that_breaks_is_told_in_a_sentence(
    options: dict[str, Any], said: str, checkpoint: Path, tmp_path: Path
) -> None:
    code, out, err = run(checkpoint, "--engine-python", make(tmp_path, **options))
    assert (code, out) == (2, "")
    assert said in err


def test_an_answer_of_nonsense_is_survived(checkpoint: Path, tmp_path: Path) -> None:
    target = {"verdict": 7, "error": [], "modules": "none", "misread": 3, "unwritten": {}, "at": None}
    found = verify(checkpoint, engine_python=make(tmp_path, lines=[answer(target=target, draft=None)]))
    assert found.target is not None
    assert found.target.verdict is Verdict.UNKNOWN


def test_a_folder_without_a_configuration_is_nothing_to_check(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_shard(tmp_path / "empty" / "model.safetensors", [Tensor("some.weight", "BF16", (4, 4))])
    with pytest.raises(NothingToCheck, match=r"no config\.json"):
        verify(tmp_path / "empty", engine_python=make(tmp_path, lines=[answer()]))
