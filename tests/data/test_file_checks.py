"""Paths that people name, to read from and to write to."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lingbot.data.file_checks import (
    check_input_file,
    check_output_file,
    check_output_folder,
)


def test_a_file_to_write_may_be_new_be_there_and_lie_in_new_folders(tmp_path: Path) -> None:
    (tmp_path / "old.mp4").write_text("old")
    for path in (tmp_path / "old.mp4", tmp_path / "new.mp4", tmp_path / "a" / "b" / "new.mp4"):
        assert check_output_file(path) == path
    assert (tmp_path / "old.mp4").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["old.mp4"]


def test_a_relative_path_is_checked_where_the_process_is(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert check_output_file("new.mp4") == Path("new.mp4")


@pytest.mark.timeout(20)
def test_where_no_file_can_be_written_is_refused_before_it_is_tried(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    for path, complaint in (
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "a pipe"),
        ("/dev/null", "a device"),
        (tmp_path / "file" / "x.mp4", r"x\.mp4 cannot be written, .*file takes no files"),
        ("/proc/x.mp4", r"x\.mp4 cannot be written, /proc takes no files"),
        ("", "give that of a file"),
        ("a\0b", "null byte"),
        (tmp_path / ("x" * 300), "too long"),
    ):
        with pytest.raises(ValueError, match=complaint):
            check_output_file(path)


def test_a_file_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "kept.mp4").touch()
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # the superuser may write all
    with pytest.raises(ValueError, match=r"kept\.mp4 may not be written.*chmod"):
        check_output_file(tmp_path / "kept.mp4")


def test_a_file_to_read_is_there_and_not_too_large(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("four")
    assert check_input_file(tmp_path / "a.txt", "words", 4) == tmp_path / "a.txt"
    with pytest.raises(ValueError, match=r"a\.txt has 4 bytes: words may have 3"):
        check_input_file(tmp_path / "a.txt", "words", 3)
    with pytest.raises(FileNotFoundError, match=r"b\.txt: it should hold words"):
        check_input_file(tmp_path / "b.txt", "words", 3)


def test_a_format_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    assert check_output_file(tmp_path / "steps.PNG", [".png"]) == tmp_path / "steps.PNG"
    for name in ("steps", "steps.mp4"):
        with pytest.raises(
            ValueError, match=rf"{name} names no format: let it end in \.png, \.pdf"
        ):
            check_output_file(tmp_path / name, [".png", ".pdf"])


def test_a_folder_to_write_to_takes_files_or_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for fine in (tmp_path, tmp_path / "a" / "b"):
        assert check_output_folder(fine) == fine
    assert not (tmp_path / "a").exists()
    for path, complaint in (
        ("/dev/null", "is no folder"),
        (tmp_path / "file", "is no folder"),
        (tmp_path / "file" / "x", "file takes no files"),
        ("/proc/x", "/proc takes no files"),
        (" ", "give its path"),
    ):
        with pytest.raises(ValueError, match=complaint):
            check_output_folder(path)
