"""Checks of what people type: the value, the constraint and what to give instead."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Sequence
from numbers import Integral, Real

LARGEST_SEED = 2**32 - 1  # what NumPy and torch can both take
LONGEST_PROMPT = 20_000  # characters; text encoders read far fewer, and say so


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


def check_seed(seed: object, name: str = "seed") -> int:
    """The seed as an int, where NumPy and torch can both take it; NumPy's integers count.

    Raises:
        ValueError: for what is no whole number from 0 to 2^32 - 1.
    """
    return check_count(name, seed, 0, LARGEST_SEED)


def check_prompt(prompt: object, name: str = "the prompt") -> str:
    """The prompt as the text encoder gets it: on one line, without space or marks around it.

    Args:
        prompt: what was given.
        name: where it comes from, for messages.

    Raises:
        ValueError: for what is no string, holds no words, is endless, or holds characters that
            nobody types: control characters, or bytes that were not UTF-8.
    """
    if not isinstance(prompt, str):
        raise ValueError(f"{name} is {prompt!r}: give a string, as in 'dusk, sand'")
    if len(prompt) > LONGEST_PROMPT:
        raise ValueError(
            f"{name} has {len(prompt):,} characters: give {LONGEST_PROMPT:,} at the most"
        )
    words = re.sub(r"\s*[\t\n\v\f\r]\s*", " ", prompt).strip().strip("\ufeff").strip()
    for character in words:
        kind = unicodedata.category(character)
        if kind == "Cs":
            raise ValueError(
                f"{name} holds bytes that are not UTF-8: {words!a}; write it in UTF-8, in a "
                "terminal of a UTF-8 locale such as C.UTF-8"
            )
        if kind == "Cc":
            raise ValueError(
                f"{name} holds the control character U+{ord(character):04X}: {words!a}; "
                "write it in plain text, in UTF-8"
            )
    if not words:
        raise ValueError(f"{name} is empty: say what the world is, as in 'dusk, sand'")
    return words
