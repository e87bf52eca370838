"""Numbers, seeds and prompts that people type."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lingbot.model.checks import (
    LONGEST_PROMPT,
    check_choice,
    check_count,
    check_number,
    check_prompt,
    check_seed,
    check_switch,
)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, "1", None, True, -1.0, 0.0, 2.5])
def test_a_number_outside_its_bounds_is_refused_with_name_value_and_bounds(value: object) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"eps={value!r}: give a number above 0 up to 2")
    ):
        check_number("eps", value, above=0, high=2)


@pytest.mark.parametrize("value", [1, 0.5, np.float32(0.5), 2])
def test_a_number_within_its_bounds_is_a_float(value: object) -> None:
    assert type(check_number("eps", value, above=0, high=2)) is float


@pytest.mark.parametrize("value", [1.0, 1.5, "3", None, True, 0, 10**9])
def test_a_count_is_whole_and_within_its_bounds(value: object) -> None:
    with pytest.raises(ValueError, match=r"steps=.*: give a whole number from 1 to 1,000"):
        check_count("steps", value, high=1000)


def test_integers_of_numpy_are_counts() -> None:
    assert type(check_count("seed", np.int64(7))) is int


def test_large_bounds_are_told_as_people_write_them() -> None:
    with pytest.raises(ValueError, match="from 1 to 10,000,000"):
        check_count("layers", 10**8, high=10_000_000)


@pytest.mark.parametrize("value", ["maybe", "true", 1, 0, None])
def test_a_switch_is_true_or_false_and_no_word(value: object) -> None:
    with pytest.raises(ValueError, match=f"table={value!r}: give true or false"):
        check_switch("table", value)


@pytest.mark.parametrize("value", ["blocks", 5, None])
def test_a_word_that_is_not_known_is_refused_with_those_that_are(value: object) -> None:
    with pytest.raises(ValueError, match="choose one of norm, value"):
        check_choice("algorithm", value, ("norm", "value"))


@pytest.mark.parametrize("seed", [0, 7, 2**32 - 1, np.int64(7), np.uint32(2**32 - 1)])
def test_a_seed_is_what_numpy_and_torch_both_take(seed: object) -> None:
    checked = check_seed(seed)
    assert (type(checked), checked) == (int, seed)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.0, "3", None, True, np.float32(2), np.int64(-1)])
def test_other_seeds_are_refused_by_the_name_of_their_option(seed: object) -> None:
    with pytest.raises(ValueError, match=r"^scene_seed=.*a whole number from 0 to 4,294,967,295"):
        check_seed(seed, "scene_seed")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (" dusk, sand \n", "dusk, sand"),
        ("\ufeffdusk", "dusk"),
        ("dusk,\r\nsand\tand  snow", "dusk, sand and  snow"),
        ("café 夕暮れ 🌅", "café 夕暮れ 🌅"),
        ("the 'word' \"dusk\" = ${x}", "the 'word' \"dusk\" = ${x}"),
        ("a\u200db", "a\u200db"),  # joins emoji and letters
    ],
)
def test_a_prompt_is_kept_but_for_marks_and_line_ends(given: str, kept: str) -> None:
    assert check_prompt(given) == kept


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("", "is empty"),
        (" \n\ufeff ", "is empty"),
        (None, "is None: give a string"),
        (7, "is 7: give a string"),
        (b"dusk", "give a string"),
        ("dusk\0", r"control character U\+0000"),
        ("\x1b[31mdusk", r"control character U\+001B"),
        ("dusk\x85sand", r"control character U\+0085"),
        (
            b"caf\xe9".decode(errors="surrogateescape"),
            r"not UTF-8: 'caf\\udce9'; write it in UTF-8",
        ),
        ("x" * (LONGEST_PROMPT + 1), "has 20,001 characters"),
    ],
)
def test_what_is_no_prompt_is_refused_in_one_line_that_can_be_printed(
    given: object, complaint: str
) -> None:
    with pytest.raises(ValueError, match=rf"^prompt= .*{complaint}") as refusal:
        check_prompt(given, "prompt=")
    assert str(refusal.value).isprintable()
    assert str(refusal.value).encode()
