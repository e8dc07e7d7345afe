"""What a run leaves when the machine stops it: strace kills it, or fails it, at every call that changes the disk.

The command runs as its users run it, without a hook of ours in it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mtpfix import patch
from mtpfix.fix.changes import Link
from mtpfix.fix.stage import stage_path
from mtpfix.fix.writer import IN_PLACE, finish_in_place
from tests import checkpoints
from tests.fix import repairs
from tests.patching import NEWEST

STRACE = shutil.which("strace")
CHANGING = (
    *("fsync", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "mkdir", "mkdirat"),
    *("unlink", "unlinkat", "rmdir", "fallocate", "ftruncate", "copy_file_range", "write", "pwrite64", "flock"),
)
ERROR = re.compile(r"mtpfix: .+\n  .+\n")


def works() -> bool:
    """Whether strace can trace here: a container may forbid it."""
    if STRACE is None:
        return False
    return subprocess.run([STRACE, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not works(), reason="strace is not installed, or may not trace (apt-get install strace)"),
]


@dataclass(frozen=True)
class Point:
    """The `number`th call of one kind, and what happens at it: a kill, or an error."""

    call: str
    number: int
    error: str = ""

    @property
    def injected(self) -> str:
        """The option of strace."""
        what = f"error={self.error}" if self.error else "signal=SIGKILL"
        return f"inject={self.call}:{what}:when={self.number}"

    def __str__(self) -> str:
        return f"{self.error or 'SIGKILL'} at {self.call} {self.number}"


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a folder and below, by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def state(folder: Path) -> dict[str, Any]:
    """What must not change in a source."""
    marks = {str(path): (path.lstat(), path.read_bytes()) for path in folder.rglob("*") if path.is_file()}
    return {
        name: (mark.st_ino, mark.st_mode, mark.st_size, mark.st_mtime_ns, data) for name, (mark, data) in marks.items()
    }


DRIVER = "tests.fix.repairs"


def traced(options: list[str], module: str, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a module's command under strace."""
    assert STRACE is not None
    return subprocess.run(
        [STRACE, "-f", "-qq", *options, sys.executable, "-m", module, *command],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def calls(log: Path, *command: str) -> Counter[str]:
    """Count the calls that change the disk in a run that nothing disturbs."""
    wanted = ",".join(f"?{call}" for call in CHANGING)
    done = traced(["-o", str(log), "-e", f"trace={wanted}"], *command)
    assert done.returncode == 0, done.stderr
    found = Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
    assert found["fsync"] > 5
    assert found["rename"] > 2
    return found


def disturbed(point: Point, log: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run the repair with one call killed or failed, and check that it ends as it should."""
    fast = ["--seccomp-bpf"] if point.error else []  # with it strace 6.1 injects no signal
    done = traced([*fast, "-o", str(log), "-e", f"trace={point.call}", "-e", point.injected], *command)
    assert "Traceback" not in done.stderr, f"{point}: {done.stderr}"
    if point.error:
        assert "INJECTED" in log.read_text(), f"{point} was not met"
        assert done.returncode in (0, 2), f"{point}: {done.returncode} {done.stderr}"
        assert done.returncode == 0 or ERROR.fullmatch(done.stderr), f"{point}: {done.stderr}"
    else:
        assert done.returncode == -9 or "killed by SIGKILL" in log.read_text(), f"{point} was not met: {done.stderr}"
    return done


def everywhere(points: list[Point], check: Callable[[int, Point], None]) -> None:
    """Check every point, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(check, range(len(points)), points))


def kills(found: Counter[str]) -> list[Point]:
    return [Point(call, number + 1) for call, count in sorted(found.items()) for number in range(count)]


def errors(found: Counter[str]) -> Iterator[Point]:
    """Every call with an error that it can really give, those of one kind in turn."""
    given = {
        "fsync": ("EIO", "ENOSPC"),
        "fallocate": ("ENOSPC", "EIO", "EOPNOTSUPP"),
        "write": ("ENOSPC", "EIO"),
        "rename": ("EIO", "EROFS", "EXDEV"),
        "link": ("EXDEV", "EIO"),
        "linkat": ("EXDEV", "EIO", "EROFS"),
        "symlink": ("EROFS",),
        "mkdir": ("EROFS", "ENOSPC"),
        "unlink": ("EIO",),
        "copy_file_range": ("EXDEV", "EIO", "ENOSPC"),
    }
    for call, names in given.items():
        step = 3 if call == "write" else 1  # most of them write the pieces of one file
        yield from (Point(call, number + 1, names[number % len(names)]) for number in range(0, found[call], step))


@pytest.mark.parametrize("options", [("--link", "auto"), ("--link", "copy"), ("--link", "symlink"), ("--overlay",)])
def test_a_killed_run_leaves_no_result_or_a_whole_one_and_is_resumed(tmp_path: Path, options: tuple[str, ...]) -> None:
    source = repairs.made(tmp_path / "source")
    link = Link(options[1]) if options[0] == "--link" else Link.AUTO
    found = calls(tmp_path / "log", DRIVER, str(source), str(tmp_path / "straight"), *options)
    expected, before = contents(tmp_path / "straight"), state(source)
    own = {"copy": ("copy_file_range", "fallocate"), "symlink": ("symlink",)}
    chosen = own.get(link.value) or (("rename", "fsync") if options == ("--overlay",) else tuple(found))

    def check(number: int, point: Point) -> None:
        out = tmp_path / f"out-{number}"
        disturbed(point, tmp_path / f"log-{number}", DRIVER, str(source), str(out), *options)
        assert not out.exists() or contents(out) == expected, point
        repairs.run(repairs.all_changes(source), out, link, overlay=options == ("--overlay",))
        assert contents(out) == expected, point
        assert not stage_path(out).exists(), point
        shutil.rmtree(out)

    points = [point for point in kills(found) if point.call in chosen]
    assert len(points) >= 3
    everywhere(points, check)
    assert state(source) == before


@pytest.mark.parametrize("link", ["auto", "copy"])
def test_a_failing_call_leaves_no_result_or_a_whole_one_and_a_sentence(tmp_path: Path, link: str) -> None:
    source = repairs.made(tmp_path / "source")
    found = calls(tmp_path / "log", DRIVER, str(source), str(tmp_path / "straight"), "--link", link)
    expected, before = contents(tmp_path / "straight"), state(source)
    failed = Counter[bool]()

    def check(number: int, point: Point) -> None:
        out = tmp_path / f"out-{number}"
        done = disturbed(point, tmp_path / f"log-{number}", DRIVER, str(source), str(out), "--link", link)
        failed[done.returncode == 2] += 1
        assert out.exists() or done.returncode == 2, point
        assert not out.exists() or contents(out) == expected, point
        repairs.run(repairs.all_changes(source), out, Link(link))
        assert contents(out) == expected, point
        assert not stage_path(out).exists(), point
        shutil.rmtree(out)

    everywhere([point for point in errors(found) if link == "auto" or point.call == "copy_file_range"], check)
    assert failed[True]
    assert state(source) == before


def test_a_source_that_cannot_be_read_or_a_part_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    source, out = repairs.made(tmp_path / "source"), tmp_path / "out"
    part, shard = stage_path(out) / "part", source / "model-00001-of-00002.safetensors"
    faults = [(part, "openat", error) for error in ("EROFS", "ENOSPC", "EACCES", "EMFILE")]
    faults += [(shard, "preadv,preadv2", "EIO"), (shard, "pread64", "EIO")]
    for path, call, error in faults:
        done = traced(
            ["-o", str(tmp_path / "log"), "-P", str(path), "-e", f"trace={call}", "-e", f"inject={call}:error={error}"],
            DRIVER,
            str(source),
            str(out),
        )
        assert "INJECTED" in (tmp_path / "log").read_text(), (call, error)
        assert done.returncode == 2, done.stderr
        assert ERROR.fullmatch(done.stderr), done.stderr
        assert not out.exists()
    repairs.run(repairs.all_changes(source), out, Link.AUTO)


@pytest.mark.parametrize(
    ("variant", "chosen"),
    [("nothing-excluded", ("fsync", "rename", "link", "linkat")), ("packed-glue", ("rename",))],
    ids=["lists", "tensors"],
)
def test_the_command_people_give_is_killed_and_given_again(
    tmp_path: Path, variant: str, chosen: tuple[str, ...]
) -> None:
    source, straight = tmp_path / "source", tmp_path / "straight"
    checkpoints.build(source, "deepseek_v3", variant)
    command = ("mtpfix", "patch", str(source), "--for", NEWEST, "--out")
    found = calls(tmp_path / "log", *command, str(straight))
    expected, before = contents(straight), state(source)

    def check(number: int, point: Point) -> None:
        out = tmp_path / f"out-{number}"
        disturbed(point, tmp_path / f"log-{number}", *command, str(out))
        assert not out.exists() or contents(out) == expected, point
        patch(source, out, engines=[NEWEST])
        assert contents(out) == expected, point
        assert not stage_path(out).exists(), point
        shutil.rmtree(out)

    points = [point for point in kills(found) if point.call in chosen]
    assert len(points) >= 4
    everywhere(points, check)
    assert state(source) == before


def in_place(source: Path) -> None:
    """What the command does when it is given again."""
    if not finish_in_place(source) and repairs.ADDED not in (source / "config.json").read_text():
        repairs.run(repairs.metadata_changes(source), source, Link.AUTO, in_place=True)


@pytest.mark.parametrize("with_errors", [False, True], ids=["SIGKILL", "errors"])
def test_a_repair_in_place_that_is_stopped_is_finished(tmp_path: Path, with_errors: bool) -> None:
    pristine = repairs.made(tmp_path / "pristine")
    straight = tmp_path / "straight"
    shutil.copytree(pristine, straight)
    found = calls(tmp_path / "log", DRIVER, str(straight), "-", "--in-place")
    old, expected = contents(pristine), contents(straight)
    names = ("config.json", "hf_quant_config.json")

    def check(number: int, point: Point) -> None:
        source = tmp_path / f"source-{number}"
        shutil.copytree(pristine, source)
        disturbed(point, tmp_path / f"log-{number}", DRIVER, str(source), "-", "--in-place")
        for name in names:  # each file is the old or the new one, never part of one
            data = (source / name).read_bytes()
            assert data in (old[name], expected[name]), point
            if data != old[name]:
                saved = [path.read_bytes() for path in source.glob(f".mtpfix-backup-*/{name}")]
                assert saved == [old[name]], point
        in_place(source)
        assert contents(source) == expected, point
        assert not (source / IN_PLACE).exists(), point
        shutil.rmtree(source)

    everywhere(list(errors(found)) if with_errors else kills(found), check)
