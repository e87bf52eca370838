"""NumPy files of numbers, read with limits and without pickle.

Type and shape are checked in the header, before any memory is taken for what it promises.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from lingbot.data.file_checks import check_input_file

MOST_BYTES = 2**30
NUMBERS = "fiu"  # kinds of dtypes: floats, integers with and without sign
TRUTHS = "fiub"


def read_array(
    path: Path, what: str, check_shape: Callable[[tuple[int, ...]], None], kinds: str = NUMBERS
) -> NDArray[np.float64]:
    """A .npy file of real numbers as float64.

    Args:
        path: of the file.
        what: it should hold, for messages.
        check_shape: raises ValueError for a shape that is not wanted; it has to bound the size.
        kinds: of dtypes that are taken.

    Raises:
        FileNotFoundError: no such file.
        ValueError: for what is no such file; the message names it.
    """
    check_input_file(path, what, MOST_BYTES)
    try:
        with path.open("rb") as file:
            shape, transposed, dtype = _header(file, path, what)
            if dtype.kind not in kinds:
                raise ValueError(f"{path} holds {dtype}: real numbers are needed, namely {what}.")
            check_shape(shape)
            count = int(np.prod(shape, dtype=np.int64))
            values = np.fromfile(file, dtype, count)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error}).") from error
    if len(values) < count:
        raise ValueError(
            f"{path} is cut off: its header promises {count:,} numbers and {len(values):,} are "
            "there; copy or save it again."
        )
    return values.astype(np.float64).reshape(shape, order="F" if transposed else "C")


def _header(file: BinaryIO, path: Path, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether columns come first, and dtype, as the file's header says."""
    start = file.read(2)
    if start == b"PK":
        raise ValueError(
            f"{path} is an archive of arrays (.npz): save the one with {what} by numpy.save."
        )
    file.seek(0)
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, transposed, dtype = read(file)
    except Exception as error:  # the header is a Python literal, wrong in any way
        raise ValueError(
            f"{path} cannot be read as a .npy file of numbers: it should hold {what}; write it "
            "with numpy.save."
        ) from error
    if dtype.hasobject:
        raise ValueError(
            f"{path} cannot be read as a .npy file of numbers: it holds Python objects, and should "
            f"hold {what}."
        )
    return shape, transposed, dtype
