"""Files and folders that appear whole or not at all."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from lingbot.checkpoints.atomic import atomic_file, atomic_folder


def fail_to_write(target: AbstractContextManager[Path], name: Path) -> None:
    with target as made:
        (made / name).write_text("half")
        raise OSError("the disk is full")


def test_a_file_appears_when_its_block_ends(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "new" / "a.json") as partial:
        partial.write_text("1")
        assert partial.suffix == ".json"
        assert not (tmp_path / "new" / "a.json").exists()
    assert (tmp_path / "new" / "a.json").read_text() == "1"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.json"]


def test_a_file_that_is_not_finished_leaves_the_one_before(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    target.write_text("before")
    with pytest.raises(OSError, match="full"):
        fail_to_write(atomic_file(target), Path())
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_replaces_the_one_before_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "world"
    for content in ("before", "after"):
        with atomic_folder(target) as made:
            (made / "a").write_text(content)
        assert (target / "a").read_text() == content
    with pytest.raises(OSError, match="full"):
        fail_to_write(atomic_folder(target), Path("a"))
    assert (target / "a").read_text() == "after"
    assert list(tmp_path.iterdir()) == [target]
