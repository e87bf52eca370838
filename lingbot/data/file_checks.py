"""Files that people name: checked before they are opened, or before work is done to fill them.

A pipe or a device is never opened: to read from one can take for ever.
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path


def check_input_file(path: str | Path, what: str, most_bytes: int) -> Path:
    """The path of a regular file that can be read and is not absurdly large.

    Args:
        path: what was given.
        what: the file should hold, for messages.
        most_bytes: it may have.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: for a folder, a pipe, a device, a file that may not be read or is too large.
    """
    if not str(path).strip():
        raise ValueError(f"the path of {what} is {str(path)!r}: give that of a file")
    path = Path(path)
    status = _status(path)
    if status is None:
        raise FileNotFoundError(f"there is no file {path}: it should hold {what}")
    if stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is a folder: give the path of a file with {what}")
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(
            f"{path} is a pipe, a socket or a device: save {what} as a file and give its path"
        )
    if status.st_size > most_bytes:
        raise ValueError(
            f"{path} has {status.st_size:,} bytes: {what} may have {most_bytes:,} at the most"
        )
    if not os.access(path, os.R_OK):
        raise ValueError(f"{path} may not be read: give yourself permission (chmod u+r)")
    return path


def check_output_file(path: str | Path, suffixes: Sequence[str] = ()) -> Path:
    """The path of a file that can be written; the file itself is left as it is.

    Missing folders count as writable where they can be made.

    Args:
        path: where the file will be.
        suffixes: of the formats that it may have; none allows any.

    Raises:
        ValueError: for a folder, a pipe, a device, a format that cannot be written, or a place
            where no file can be made.
    """
    if not str(path).strip():
        raise ValueError(f"the path to write to is {str(path)!r}: give that of a file")
    path = Path(path)
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} names no format: let it end in {', '.join(suffixes)}")
    status = _status(path)
    if status is not None and not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe, a socket or a device"
        raise ValueError(f"{path} is {kind}: give the path of a file to write")
    if status is not None and not os.access(path, os.W_OK):
        raise ValueError(f"{path} may not be written: give another path, or permission (chmod u+w)")
    _check_takes_files(path)
    return path


def check_output_folder(path: str | Path) -> Path:
    """The path of a folder that takes files, or that can be made.

    Raises:
        ValueError: for anything but a folder, and for a place where no file can be made.
    """
    if not str(path).strip():
        raise ValueError(f"the folder to write to is {str(path)!r}: give its path")
    path = Path(path)
    status = _status(path)
    if status is not None and not stat.S_ISDIR(status.st_mode):
        raise ValueError(f"{path} is no folder: give the path of one to write to")
    _check_takes_files(path / "file")
    return path


def _check_takes_files(path: Path) -> None:
    """Raises ValueError where the nearest folder above a path that exists takes no files."""
    folder = next(parent for parent in path.absolute().parents if _status(parent) is not None)
    try:
        with tempfile.TemporaryFile(dir=folder):  # some file systems refuse whatever they say
            pass
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written, {folder} takes no files ({error.strerror}): give a path "
            "in a folder that does"
        ) from error


def _status(path: Path) -> os.stat_result | None:
    """What the file system says of a path, None where there is nothing."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:  # no permission, a name too long, a null byte
        raise ValueError(f"{str(path)!r} cannot be looked at: {error}") from error
