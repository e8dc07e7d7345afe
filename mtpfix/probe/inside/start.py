"""Start a probe: `python start.py MODULE --out FILE [OPTIONS] [CHECKPOINT ...]`, in the engine's interpreter.

`MODULE` is `detect`, or a module beside this one that loads checkpoints with one engine. The result goes to FILE, one
JSON object a line, so that whatever the engine prints disturbs nothing.
"""

from __future__ import annotations

import sys

HERE = __file__.rpartition("/")[0] or "."
sys.path[:] = [place for place in sys.path if place != HERE]  # modules beside this one must not hide others

import importlib.util  # noqa: E402 - the path had to be put right first
import json  # noqa: E402
import os  # noqa: E402

NAME = "mtpfix_probe"


def main() -> None:
    """Load the neighbours as a package of their own and run the module that is asked for."""
    specification = importlib.util.spec_from_file_location(
        NAME, os.path.join(HERE, "__init__.py"), submodule_search_locations=[HERE]
    )
    if specification is None or specification.loader is None:
        sys.exit("the probe's own files are not there")
    package = importlib.util.module_from_spec(specification)
    sys.modules[NAME] = package
    specification.loader.exec_module(package)
    name, arguments = sys.argv[1], sys.argv[2:]
    if name == "detect":
        found = importlib.import_module(f"{NAME}.detect").detect(json.loads(arguments[1]))
        with open(arguments[0], "w", encoding="utf-8") as file:
            json.dump(found, file)
        return
    importlib.import_module(f"{NAME}.run").run(name, arguments)


if __name__ == "__main__":
    main()
