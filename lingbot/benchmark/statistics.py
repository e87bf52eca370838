"""Whose turn it is, and how sure a mean is.

Machines drift (clocks, heat, neighbours), so settings take turns A B C C B A ..., and a session is
the unit of the statistics: steps of one session share its luck, sessions do not. Differences are
paired, session by session, which takes out what drifts slower than a round of turns.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; not finite where one value says nothing of it."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


def turns(settings: int, sessions: int) -> Iterator[tuple[int, int]]:
    """(session, setting) in the order they are run: every other round goes backwards."""
    for session in range(sessions):
        forth = range(settings)
        for setting in reversed(forth) if session % 2 else forth:
            yield session, setting


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    """The mean of independent values and Student's interval around it.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("a mean needs at least one value")
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, -math.inf, math.inf)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = error * float(stats.t.ppf((1 + confidence) / 2, len(values) - 1))
    return Interval(mean, mean - half, mean + half)


def paired(base: Sequence[float], other: Sequence[float]) -> tuple[Interval, Interval]:
    """How much more `other` takes than `base`, pair by pair: in their unit, and as a fraction."""
    differences = [b - a for a, b in zip(base, other, strict=True)]
    fractions = [b / a - 1 for a, b in zip(base, other, strict=True)]
    return interval(differences), interval(fractions)


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear between the nearest ranks."""
    return float(np.percentile(values, percent))
