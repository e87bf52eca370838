"""Checks of what people type: the value, the constraint and what to give instead."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    above: float = -math.inf,
) -> float:
    """The number as a float, where it is finite and within bounds.

    Args:
        name: of the option, as it is typed.
        value: what was given.
        low, high: inclusive bounds.
        above: exclusive lower bound.

    Raises:
        ValueError: for what is no finite number, or lies outside the bounds.
    """
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not low <= value <= high or value <= above:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r}: give a number{_bounds(low, high, above)}")
    return float(value)  # type: ignore[arg-type]


def check_count(name: str, value: object, low: int = 1, high: float = math.inf) -> int:
    """The whole number as an int, where it is within inclusive bounds; NumPy's integers count.

    Raises:
        ValueError: for what is no whole number, or lies outside the bounds.
    """
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:  # type: ignore[operator]
        raise ValueError(f"{name}={value!r}: give a whole number{_bounds(low, high, -math.inf)}")
    return int(value)  # type: ignore[call-overload]


def check_switch(name: str, value: object) -> bool:
    """The value, where it is true or false.

    Raises:
        ValueError: for anything else, a word or a number.
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r}: give true or false")
    return value


def check_choice(name: str, value: object, known: Sequence[str]) -> str:
    """The word, where it is one of those known.

    Raises:
        ValueError: for anything else.
    """
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(known)}")
    return value


def _bounds(low: float, high: float, above: float) -> str:
    bounds = []
    if math.isfinite(above):
        bounds.append(f"above {_plain(above)}")
    if math.isfinite(low) and low > above:
        bounds.append(f"from {_plain(low)}" if math.isfinite(high) else f"{_plain(low)} or more")
    if math.isfinite(high):
        bounds.append(f"to {_plain(high)}" if math.isfinite(low) else f"up to {_plain(high)}")
    return " " + " ".join(bounds) if bounds else ""


def _plain(bound: float) -> str:
    """As people write it: 10,000,000 and 0.1."""
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"
