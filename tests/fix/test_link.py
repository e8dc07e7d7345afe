from __future__ import annotations

import errno
import os
import subprocess
from pathlib import Path

import pytest

from mtpfix.errors import MtpfixError
from mtpfix.fix.changes import Link
from mtpfix.fix.link import place


def placed(source: Path, target: Path, link: Link, unable: set[Link] | None = None) -> tuple[Link, int]:
    told: list[int] = []
    way = place(source, target, target.with_name("part"), link, set() if unable is None else unable, told.append)
    assert not target.with_name("part").exists()
    return way, sum(told)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(os.urandom(100_000))
    return path


def other_file_system(path: Path) -> Path | None:
    """A folder on another file system than `path`, if this machine has one."""
    shared = Path("/dev/shm")  # noqa: S108
    return shared if shared.is_dir() and shared.stat().st_dev != path.stat().st_dev else None


def test_a_copy_is_another_file_with_the_same_bytes_and_an_ordinary_mode(source: Path) -> None:
    source.chmod(0o400)
    target = source.with_name("target")
    before = os.umask(0o027)
    try:
        assert placed(source, target, Link.COPY) == (Link.COPY, 100_000)
    finally:
        os.umask(before)
    assert target.read_bytes() == source.read_bytes()
    assert target.stat().st_ino != source.stat().st_ino
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_hard_link_is_the_same_file(source: Path) -> None:
    target = source.with_name("target")
    assert placed(source, target, Link.HARDLINK) == (Link.HARDLINK, 100_000)
    assert target.samefile(source)


def test_a_symbolic_link_is_absolute(source: Path) -> None:
    target = source.with_name("target")
    assert placed(source, target, Link.SYMLINK) == (Link.SYMLINK, 100_000)
    assert target.readlink() == source


def test_auto_takes_a_reflink_or_a_hard_link_on_one_file_system(source: Path) -> None:
    unable: set[Link] = set()
    way, _ = placed(source, source.with_name("target"), Link.AUTO, unable)
    assert way is (Link.HARDLINK if Link.REFLINK in unable else Link.REFLINK)
    assert source.with_name("target").read_bytes() == source.read_bytes()


def test_a_reflink_works_or_is_refused_with_a_sentence(source: Path) -> None:
    target = source.with_name("target")
    unable: set[Link] = set()
    placed(source, source.with_name("probe"), Link.AUTO, unable)
    if Link.REFLINK not in unable:
        assert placed(source, target, Link.REFLINK) == (Link.REFLINK, 100_000)
        assert target.read_bytes() == source.read_bytes()
        return
    with pytest.raises(MtpfixError, match="reflinks do not work here"):
        placed(source, target, Link.REFLINK)
    assert sorted(path.name for path in source.parent.iterdir()) == ["probe", "source"]


def test_between_file_systems_auto_copies_and_a_hard_link_is_refused(source: Path) -> None:
    folder = other_file_system(source)
    if folder is None:
        pytest.skip("there is one file system only")
    target = folder / f"mtpfix-test-{os.getpid()}"
    try:
        unable: set[Link] = set()
        assert placed(source, target, Link.AUTO, unable)[0] is Link.COPY
        assert unable == {Link.REFLINK, Link.HARDLINK}
        assert target.read_bytes() == source.read_bytes()
        target.unlink()
        with pytest.raises(MtpfixError, match="cannot be hard-linked") as caught:
            placed(source, target, Link.HARDLINK)
        assert "--link copy" in caught.value.hint
    finally:
        target.unlink(missing_ok=True)


def test_holes_stay_holes(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    with source.open("wb") as file:
        file.write(b"begin")
        file.seek(1 << 30)
        file.write(b"middle")
        file.truncate(3 << 30)
    if source.stat().st_blocks * 512 > 1 << 20:
        pytest.skip("this file system has no holes")
    placed(source, target, Link.COPY)
    assert target.stat().st_size == 3 << 30
    assert target.stat().st_blocks * 512 < 1 << 20
    with target.open("rb") as file:
        assert file.read(5) == b"begin"
        file.seek(1 << 30)
        assert file.read(6) == b"middle"


def test_a_link_is_not_followed_where_a_file_is_meant(source: Path) -> None:
    link = source.with_name("link")
    link.symlink_to(source)
    with pytest.raises(OSError) as caught:
        placed(link, source.with_name("target"), Link.COPY)
    assert caught.value.errno == errno.ELOOP


def test_an_existing_target_is_never_written_over(source: Path) -> None:
    target = source.with_name("target")
    target.write_text("precious")
    for link in (Link.HARDLINK, Link.SYMLINK):
        with pytest.raises(FileExistsError):
            placed(source, target, link)
    assert target.read_text() == "precious"


@pytest.mark.slow
def test_reflinks_on_a_file_system_that_has_them(tmp_path: Path) -> None:
    """Needs the right to mount."""
    image, mounted = tmp_path / "image", tmp_path / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    for tool in (["mkfs.xfs", "-q", "-m", "reflink=1", image], ["mkfs.btrfs", "-q", image]):
        try:
            subprocess.run(list(map(str, tool)), check=True, capture_output=True)
            subprocess.run(["mount", "-o", "loop", str(image), str(mounted)], check=True, capture_output=True)
            break
        except (OSError, subprocess.CalledProcessError):
            continue
    else:
        pytest.skip("no file system with reflinks can be mounted here")
    try:
        source = mounted / "source"
        source.write_bytes(os.urandom(1 << 20))
        assert placed(source, mounted / "target", Link.AUTO) == (Link.REFLINK, 1 << 20)
        assert (mounted / "target").read_bytes() == source.read_bytes()
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
