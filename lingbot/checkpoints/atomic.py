"""Files and folders that appear whole or not at all.

What is written goes beside its target (the same file system, so that the last step is a rename),
is flushed to the disk, and takes the target's name only then. Whatever ends the process before
that, a full disk included, leaves what was there before.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yields a path beside `path` to write to; it takes the place of `path` when the block ends.

    The yielded name keeps the suffix, by which libraries choose a format. After an exception it is
    removed and `path` is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
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
        made, replaced = Path(workshop) / "made", Path(workshop) / "replaced"
        made.mkdir()
        yield made
        for entry in [*made.rglob("*"), made]:
            flush(entry)
        if path.exists():
            path.rename(replaced)
        try:
            made.rename(path)
        except OSError:
            if replaced.exists():
                replaced.rename(path)
            raise
        flush(path.parent)
        shutil.rmtree(replaced, ignore_errors=True)


def flush(path: Path) -> None:
    """Waits until a file's contents, or a folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
