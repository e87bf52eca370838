import math
import random

import pytest

from lingbot.benchmark.statistics import (
    interval,
    paired,
    percentile,
    turns,
)


def test_settings_take_turns_and_every_other_round_goes_backwards():
    order = "".join("ABC"[setting] for _, setting in turns(3, 4))
    assert order == "ABCCBAABCCBA"
    assert "".join("AB"[setting] for _, setting in turns(2, 2)) == "ABBA"
    assert [session for session, _ in turns(2, 2)] == [0, 0, 1, 1]


def test_95_of_100_intervals_hold_the_true_mean():
    draw = random.Random(0)
    hits = 0
    for _ in range(2000):
        found = interval([draw.gauss(100, 7) for _ in range(4)])
        hits += found.low <= 100 <= found.high
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_pairing_takes_a_drift_out_that_hides_the_difference():
    draw = random.Random(1)
    drift = [100, 130, 90, 160, 120, 80]
    base = [level + draw.gauss(0, 0.2) for level in drift]
    other = [level * 1.05 + draw.gauss(0, 0.2) for level in drift]
    ms, fraction = paired(base, other)
    assert ms.low > 0
    assert fraction.mean == pytest.approx(0.05, abs=0.005)
    assert fraction.low <= 0.05 <= fraction.high
    assert interval(base).high > interval(other).low  # unpaired, they overlap


def test_one_value_says_nothing_of_its_certainty():
    assert interval([3.0]).mean == 3
    assert math.isinf(interval([3.0]).half)
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_percentiles_lie_between_the_nearest_ranks():
    values = [4.0, 1.0, 3.0, 2.0]
    assert percentile(values, 50) == 2.5
    assert percentile(values, 99) == pytest.approx(3.97)
    assert percentile([7.0], 90) == 7
