"""The one error that means: what was asked for cannot be worked with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input, told in one line: the value, the constraint, the remedy.

    Commands print it and end with exit code 2; in Python it is an ordinary `ValueError`.
    """


@contextmanager
def loading() -> Iterator[None]:
    """Turn what is wrong with files of weights into `UserError`, wherever they are loaded."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error
