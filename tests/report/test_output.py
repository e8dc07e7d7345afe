from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from mtpfix.errors import UsageError
from mtpfix.report.output import write_file


def test_a_file_appears_whole_with_ordinary_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "report.json", "text\n")
    finally:
        os.umask(before)
    assert (tmp_path / "report.json").read_text() == "text\n"
    assert stat.S_IMODE((tmp_path / "report.json").stat().st_mode) == 0o640
    assert [each.name for each in tmp_path.iterdir()] == ["report.json"]


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "report").symlink_to("precious")
    os.link(tmp_path / "precious", tmp_path / "second")
    write_file(tmp_path / "report", "text")
    write_file(tmp_path / "second", "text")
    assert (tmp_path / "precious").read_text() == "precious"
    assert (tmp_path / "report").read_text() == (tmp_path / "second").read_text() == "text"


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "report").write_text("old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("mtpfix.report.output.os.fsync", fail)
    with pytest.raises(UsageError, match="No space left"):
        write_file(tmp_path / "report", "new")
    assert (tmp_path / "report").read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["report"]


def test_a_device_is_written_to_and_stays_a_device() -> None:
    write_file(Path(os.devnull), "text")
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


def test_a_pipe_receives_the_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_file(tmp_path / "pipe", "text")
    assert os.read(reader, 100) == b"text"
    os.close(reader)


@pytest.mark.parametrize("name", ["absent/report", ".", "file/report"])
def test_a_place_that_cannot_be_written_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        write_file(tmp_path / name, "text")
