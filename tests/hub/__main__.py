"""Serve folders as repositories until interrupted: `python -m tests.hub org/name=FOLDER …`, then set HF_ENDPOINT."""

from __future__ import annotations

import argparse
import sys
import threading
from pathlib import Path

from tests.hub import Hub


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.hub", description=__doc__)
    parser.add_argument("repositories", nargs="+", metavar="ORG/NAME=FOLDER", help="what is served, under which name")
    parser.add_argument("--hosts", nargs=2, default=("127.0.0.1", "localhost"), metavar=("HUB", "CDN"))
    parser.add_argument("--ports", nargs=2, type=int, default=(0, 0), metavar=("HUB", "CDN"), help="0: any free port")
    parser.add_argument("--latency", type=float, default=0.0, metavar="SECONDS", help="waited before each answer")
    parser.add_argument("--page", type=int, default=1000, metavar="ROWS", help="rows of one page of a tree")
    parser.add_argument("--token", action="append", default=[], metavar="TOKEN", help="may read and write everything")
    parser.add_argument("--private", action="store_true", help="everything is private")
    parser.add_argument("--gated", action="store_true", help="everything is gated")
    parser.add_argument(
        "--redirect-regular", action="store_true", help="answer small files with a redirect on the same host"
    )
    options = parser.parse_args()
    hub = Hub(
        latency=options.latency,
        page=options.page,
        redirect_regular=options.redirect_regular,
        hosts=tuple(options.hosts),
        ports=tuple(options.ports),
        tokens=dict.fromkeys(options.token, "user"),
    )
    for given in options.repositories:
        name, _, folder = given.partition("=")
        if name.count("/") != 1 or not Path(folder).is_dir():
            parser.error(f"{given!r} is not ORG/NAME=FOLDER")
        repository = hub.add(name, Path(folder), private=options.private, gated="auto" if options.gated else False)
        repository.readers.add("user")
        repository.writers.add("user")
    with hub:
        sys.stdout.write(f"HF_ENDPOINT={hub.endpoint}\nCDN={hub.cdn}\n")
        sys.stdout.flush()
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            sys.stdout.write("stopped\n")


if __name__ == "__main__":
    main()
