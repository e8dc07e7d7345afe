"""A program in the place of an engine's interpreter: it writes the answers that a test gives it."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROGRAM = """#!{python}
import json, os, sys, time
module, arguments = sys.argv[2], sys.argv[3:]
given = json.loads({given!r})
if module == "detect":
    open(arguments[0], "w").write(json.dumps(given["detect"]))
    sys.exit(0)
out = arguments[arguments.index("--out") + 1]
stage = next(one for one in arguments if one.startswith("/") and one != out)
with open({seen!r}, "w") as file:
    json.dump({{"module": module, "arguments": arguments, "cwd": os.listdir("."), "files": sorted(os.listdir(stage)),
               "config": json.load(open(stage + "/config.json"))}}, file)
print("garbage" * 1000, flush=True)
os.write(1, b"\\xff\\x00 not JSON\\n")
exec(given["code"])
with open(out, "w") as file:
    for line in given["lines"]:
        text = line if isinstance(line, str) else json.dumps(line)
        file.write(text.replace("STAGE", stage) + "\\n")
sys.exit(given["leaves_with"])
"""

DETECTED = {"python": "3.11.7", "engines": {"vllm": {"version": "0.32.0", "place": "somewhere"}}}
LOADED: dict[str, Any] = {
    "verdict": "loads",
    "phase": "done",
    "error": None,
    "tensor": None,
    "class": "Some",
    "modules": [],
    "unwritten": [],
    "partial": [],
    "misread": {},
    "untaken": [],
}


def answer(**changes: Any) -> dict[str, Any]:
    """Return a line of an answer in which both models load, but for what is changed."""
    return {
        "checkpoint": "STAGE",
        "vllm": "0.32.0",
        "torch": "2.13.0",
        "transformers": "5.19.0",
        "runner": "v2",
        "patches": ["a kernel: none is chosen"],
        "seconds": 1.5,
        "target": LOADED,
        "draft": LOADED,
        **changes,
    }


def make(
    folder: Path,
    *,
    lines: Sequence[Mapping[str, Any] | str] = (),
    detect: Mapping[str, Any] = DETECTED,
    code: str = "",
    leaves_with: int = 0,
) -> Path:
    """Write the program and return its path; what it was called with lies beside it in `seen.json`."""
    given = json.dumps({"detect": detect, "lines": list(lines), "code": code, "leaves_with": leaves_with})
    path = folder / "python"
    path.write_text(PROGRAM.format(python=sys.executable, given=given, seen=str(folder / "seen.json")))
    path.chmod(0o755)
    return path
