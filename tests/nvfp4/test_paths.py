from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtpfix.nvfp4 import cpu, paths
from mtpfix.nvfp4.paths import Route, Survey
from mtpfix.report.paths import as_text

WITHOUT_TORCH = """
import sys
from importlib import metadata, util

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Absent())
find, version = util.find_spec, metadata.version
util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)

def version_of(name):
    if name == "torch":
        raise metadata.PackageNotFoundError(name)
    return version(name)

metadata.version = version_of
"""


def run(*arguments: str, before: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    code = f"{before}\nimport runpy, sys\nsys.argv = ['mtpfix', *{list(arguments)!r}]\n"
    code += "runpy.run_module('mtpfix', run_name='__main__')"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
        cwd=Path(__file__).parents[2],
    )


def test_doctor_names_what_runs_and_why() -> None:
    done = run("doctor", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == 1
    assert {route["place"] for route in told["routes"]} == {"cpu", "cuda"}
    assert all(route["why"] and route["title"] for route in told["routes"])
    (chosen,) = (route for route in told["routes"] if route["place"] == "cpu" and route["chosen"])
    if cpu.available():
        assert chosen["name"] == "library"
        assert cpu.variants()[0] in chosen["title"]
    else:
        assert chosen["name"] == "eager"
    text = as_text(paths.survey())
    assert chosen["title"] in text
    assert chosen["why"] in text


def test_doctor_works_without_torch_and_says_how_to_get_it() -> None:
    done = run("doctor", before=WITHOUT_TORCH)
    assert done.returncode == 0, done.stderr
    assert "pip install 'mtpfix[quantize]'" in done.stdout
    told = json.loads(run("doctor", "--json", before=WITHOUT_TORCH).stdout)
    assert told["torch"] is None
    assert not any(route["runs"] for route in told["routes"] if route["name"] != "library")


def test_without_torch_quantizing_says_how_to_get_it() -> None:
    code = "from mtpfix.errors import MtpfixError\ntry:\n    from mtpfix.nvfp4 import quantize\n"
    code += "except MtpfixError as error:\n    print(error.message, '|', error.hint)\n"
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH + code], capture_output=True, text=True, check=True)
    assert done.stdout.count("pip install 'mtpfix[quantize]'") == 1


@pytest.mark.skipif(not cpu.available(), reason=f"the CPU library is not built: {cpu.missing}")
def test_the_environment_may_ask_for_another_variant() -> None:
    told = json.loads(run("doctor", "--json", before=WITHOUT_TORCH, MTPFIX_NVFP4_VARIANT="portable").stdout)
    (chosen,) = (route for route in told["routes"] if route["place"] == "cpu" and route["chosen"])
    assert "portable" in chosen["title"]


def test_where_nothing_runs_the_text_says_so() -> None:
    routes = (Route("cpu", "library", "CPU library", runs=False, why="it is not built"),)
    survey = Survey(None, routes)
    assert survey.chosen("cpu") is None
    text = as_text(survey)
    assert "tensors in main memory: cannot be converted" in text
    assert "not used: CPU library: it is not built" in text


def test_the_first_route_that_runs_is_chosen() -> None:
    broken = Route("cuda", "cuda", "CUDA kernels", runs=False, why="too old")
    eager = Route("cuda", "eager", "plain PyTorch", runs=True, why="always there")
    other = Route("cpu", "eager", "plain PyTorch", runs=True, why="always there")
    assert Survey("2", (broken, eager, other)).chosen("cuda") is eager


def test_a_survey_of_this_machine_finds_something_for_main_memory() -> None:
    chosen = paths.survey().chosen("cpu")
    assert chosen is not None
    assert (chosen.name == "library") == cpu.available()
