"""Files and folders that appear whole or not at all.

What is written goes beside its target (the same file system, so that the last step is a rename),
is flushed to the disk, and takes the target's name only then. Whatever ends the process before
that, a full disk included, leaves what was there before.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it takes the place of `path` when the block ends.

    The yielded name keeps the suffix, by which libraries choose a format; a folder may be made of
    it, too. After an exception it is removed and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        flush(partial)
        folders = partial.is_dir() or (path.is_dir() and not path.is_symlink())
        if folders:  # as checkpoints in shards are
            replace_folder(partial, path)
        else:
            os.replace(partial, path)
    finally:
        _remove(partial)
    flush(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder beside `path`, which takes its place when the block ends.

    A folder that is there already is replaced, and kept until the new one stands. After an
    exception the new one is removed and `path` is as it was.
    """
    path = Path(path).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as workshop:
        made = Path(workshop) / "made"
        made.mkdir()
        yield made
        replace_folder(made, path)


def replace_folder(made: Path, path: Path) -> None:
    """Gives a finished folder the name `path`, on the same file system; removes what had it."""
    for entry in [*made.rglob("*"), made]:
        flush(entry)
    if not os.path.lexists(path):
        made.rename(path)
    elif _exchange(made, path):
        _remove(made)
    else:  # for an instant there is none: file systems without an exchange know no better way
        replaced = made.with_name(f"{made.name}.replaced")
        path.rename(replaced)
        made.rename(path)
        _remove(replaced)
    flush(path.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two names in one step of the file system; False where that cannot be done."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename is not None and rename(here, bytes(one), here, bytes(other), exchange) == 0


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
