"""Numbers that people type."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest

from lingbot.model.checks import check_choice, check_count, check_number, check_switch


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
