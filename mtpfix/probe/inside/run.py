"""Ask an engine about checkpoints, each in a child of its own, so that nothing one model changes reaches the next."""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from typing import Any

from .patches import PATCHES
from .surroundings import end_with_parent, refuse_network, set_environment


def run(name: str, arguments: list[str]) -> None:
    """Answer for each checkpoint, one JSON object a line; `name` is the module beside this one that knows the engine.

    That module has `ENVIRONMENT` (what the engine reads from it), `prepare()` (imports the engine and replaces
    what needs a GPU; returns its version and the versions of what it stands on) and `load(checkpoint, options)`.
    """
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--out", required=True)
    parser.add_argument("--roles", default="target,draft")
    parser.add_argument("--runner", default="", help="the engine's own unless it is named")
    parser.add_argument("--limit", type=int, default=300, help="seconds for one checkpoint; 0: none")
    parser.add_argument("--hollow", type=int, default=1 << 16, help="bytes from which a tensor takes no memory; 0: all")
    parser.add_argument("--ranks", type=int, default=1, help="tensor-parallel size, seen from the first rank")
    parser.add_argument("--source", default="", help="a folder that holds the engine's package, unpacked")
    parser.add_argument(
        "--foreign", action="append", default=[], help="a checkpoint whose configuration class is its own"
    )
    parser.add_argument(
        "--main",
        action="append",
        default=[],
        help="a checkpoint that is a draft alone, =, and the folder of a main model without weights",
    )
    parser.add_argument(
        "--layers",
        action="append",
        default=[],
        help="a checkpoint, =, and how many MTP layers its configuration counts",
    )
    parser.add_argument(
        "--options",
        action="append",
        default=[],
        help="a checkpoint, =, and in JSON, by engine, what that has to be started with",
    )
    options = parser.parse_args(arguments)
    end_with_parent()
    options.layers = {place: int(count) for place, _, count in (one.rpartition("=") for one in options.layers)}
    given = (one.partition("={") for one in options.options)
    options.options = {place: json.loads("{" + text) for place, _, text in given}
    options.main = {place: main for place, _, main in (one.partition("=") for one in options.main)}
    if options.source:
        sys.path.insert(0, options.source)
    os.dup2(2, 1)  # whatever the engine prints goes to stderr
    with open(options.out, "a", encoding="utf-8") as out:
        engine: Any = importlib.import_module(f"{__package__}.{name}")
        set_environment(engine.ENVIRONMENT)
        try:
            refuse_network()
            versions = engine.prepare()
        except BaseException as error:  # noqa: BLE001 - a broken installation raises anything, SystemExit too
            traceback.print_exc()
            out.write(json.dumps({"broken_engine": f"{type(error).__name__}: {error}"}) + "\n")
            return
        gc.collect()
        gc.freeze()  # a collection for one checkpoint then leaves the engine's own objects alone
        for checkpoint in options.checkpoints:
            start = time.monotonic()
            out.write(json.dumps({"checkpoint": checkpoint, "started": True, **versions}) + "\n")
            out.flush()
            alone = len(options.checkpoints) == 1
            found = (answer if alone else in_child)(engine, checkpoint, options)
            head = {"checkpoint": checkpoint, **versions, "patches": PATCHES}
            seconds = round(time.monotonic() - start, 1)
            out.write(json.dumps({**head, **found, "seconds": seconds}) + "\n")
            out.flush()
    if alone:
        os._exit(0)  # an engine's threads and exit handlers have nothing left to do


def answer(engine: Any, checkpoint: str, options: Any) -> dict[str, Any]:
    """Load one checkpoint and return the engine's answer, or what broke the probe."""
    try:
        return {**engine.load(checkpoint, options), "patches": PATCHES}
    except BaseException:  # noqa: BLE001 - a probe that breaks says how
        return {"broken": traceback.format_exc()}


def in_child(engine: Any, checkpoint: str, options: Any) -> dict[str, Any]:
    """Load one checkpoint in a forked child and return its answer."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "answer.json")
        child = os.fork()
        if child == 0:
            end_with_parent()
            if options.limit:
                signal.alarm(options.limit)
            with open(path, "w", encoding="utf-8") as file:
                json.dump(answer(engine, checkpoint, options), file)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        try:
            with open(path, encoding="utf-8") as file:
                return dict(json.load(file))
        except (OSError, ValueError):
            return {"broken": f"the child ended with status {status}"}
