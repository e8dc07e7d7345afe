from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mtpfix.errors import EXIT_FINDINGS, EXIT_INTERRUPTED, EXIT_NOTHING, EXIT_OK, EXIT_UNABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_tables_say_what_the_tool_knows() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs" / "refresh.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_every_exit_code_is_documented() -> None:
    codes = re.findall(r"^\| (\d+) \| ", README, re.MULTILINE)
    assert [int(code) for code in codes] == [EXIT_OK, EXIT_FINDINGS, EXIT_UNABLE, EXIT_NOTHING, EXIT_INTERRUPTED]


@pytest.mark.parametrize("name", ["examples", "tests"])
def test_each_of_the_two_commands_is_one_line(name: str) -> None:
    block = re.search(rf"<!-- {name} -->\n```sh\n(.*?)```", README, re.DOTALL)
    assert block is not None
    assert block[1].count("\n") == 1
    assert block[1].startswith("python3 -m venv .venv && ")


def test_every_file_the_readme_points_to_is_there() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).is_file(), target
