from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoints import build

HEAVY = {
    *("torch", "numpy", "safetensors", "huggingface_hub", "transformers"),
    *("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3", "aiohttp", "ssl"),
}

LOADED = """
import runpy, sys
sys.argv = ["mtpfix", *{arguments!r}]
try:
    runpy.run_module("mtpfix", run_name="__main__")
except SystemExit as leaving:
    print(leaving.code or 0, *sorted(sys.modules), file=sys.stderr)
"""


def loaded(*arguments: str) -> tuple[int, set[str]]:
    """Run a command in a fresh interpreter: its exit code, and the modules loaded by then."""
    command = [sys.executable, "-c", LOADED.format(arguments=arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    code, *modules = done.stderr.split()
    return int(code), set(modules)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["scan", "--help"], ["schema"], ["engines"], ["explain"]]
)
def test_no_tensor_library_and_no_network_client_is_loaded(arguments: list[str]) -> None:
    code, modules = loaded(*arguments)
    assert code == 0
    assert "mtpfix.cli" in modules
    assert not HEAVY & modules


def test_a_folder_is_scanned_without_a_network_client(tmp_path: Path) -> None:
    build(tmp_path / "model", "qwen3_5", "excluded-glob")
    code, modules = loaded("scan", str(tmp_path / "model"), "-e", "vllm==0.32.0", "-o", str(tmp_path / "report"))
    assert code == 0
    assert "mtpfix.checkpoint.local" in modules
    assert not HEAVY & modules


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["scan", "--help"]])
def test_help_loads_no_knowledge(arguments: list[str]) -> None:
    _, modules = loaded(*arguments)
    inner = {name for name in modules if name.startswith("mtpfix")}
    assert {name for name in inner if not name.startswith("mtpfix.cli.")} == {"mtpfix", "mtpfix.cli", "mtpfix.errors"}


def test_importing_the_package_imports_nothing_else() -> None:
    code = "import sys; before = set(sys.modules); import mtpfix; print(*sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert [name for name in done.stdout.split() if name.partition(".")[0] not in sys.stdlib_module_names] == ["mtpfix"]


def test_every_public_name_is_there() -> None:
    import mtpfix

    for name in mtpfix.__all__:
        assert getattr(mtpfix, name) is not None
    assert set(mtpfix.__all__) == set(dir(mtpfix))
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        mtpfix.absent  # noqa: B018
