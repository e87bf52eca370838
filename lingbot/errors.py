"""The one error that means: what was asked for cannot be worked with."""

from __future__ import annotations


class UserError(ValueError):
    """Bad input, told in one line: the value, the constraint, the remedy.

    Commands print it and end with exit code 2; in Python it is an ordinary `ValueError`.
    """
