"""What was measured, over ranks, sessions and steps: figures of a setting, differences of two.

A step's figure is the mean over its ranks, and beside it the largest of them; pace and cadence are
the slowest rank's, for which the others wait. Intervals are over sessions.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lingbot.benchmark.flops import peak_flops
from lingbot.benchmark.records import RankRecord, SettingFacts, StepRecord
from lingbot.benchmark.statistics import Interval, interval, paired, percentile
from lingbot.realtime.events import StepReport
from lingbot.realtime.step_summary import Figures, mean_report

COMPARED = ("context_update_ms", "transformer_ms", "step_ms")
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Difference:
    """What a setting takes more than the first one, of one figure."""

    figure: str
    ms: Interval
    fraction: Interval


class Result:
    """One setting on one number of ranks.

    Args:
        label: the setting's.
        index: the setting's among those compared.
        records: of all ranks.
    """

    def __init__(self, label: str, index: int, records: Sequence[RankRecord]) -> None:
        self.label, self.index, self.records = label, index, records
        self.sessions = [
            tuple(rank.sessions[k] for rank in records)
            for k, session in enumerate(records[0].sessions)
            if session.setting == index
        ]

    @property
    def ranks(self) -> int:
        return len(self.records)

    @property
    def facts(self) -> SettingFacts:
        """The first rank's."""
        return self.records[0].settings[self.index]

    def steps(self) -> list[list[tuple[StepRecord, ...]]]:
        """Measured steps [session][step][rank]."""
        return [
            list(zip(*(rank.steps for rank in session), strict=True)) for session in self.sessions
        ]

    def rows(self) -> list[dict[str, Any]]:
        """Every measured step with every rank's figures."""
        return [
            {
                "session": self.sessions[number][0].session,
                "step": step[0].report.step,
                "frames": step[0].report.frames,
                "ranks": [record.figures() for record in step],
            }
            for number, session in enumerate(self.steps())
            for step in session
        ]

    def by_session(self, figure: str, of: Any = statistics.fmean) -> list[float]:
        """A figure's mean over the steps of each session; `of` reduces ranks, `max` or the mean."""
        return [
            statistics.fmean(
                of([record.figures().get(figure, 0.0) for record in step]) for step in session
            )
            for session in self.steps()
        ]

    def names(self) -> list[str]:
        """Names of all figures, in order of first appearance."""
        every = (r.figures() for session in self.steps() for step in session for r in step)
        return list(dict.fromkeys(name for figures in every for name in figures))

    def slowest(self, name: str) -> list[float]:
        """An attribute of every measured step, of the rank where it is largest."""
        steps = [step for session in self.steps() for step in session]
        return [max(getattr(record, name) for record in step) for step in steps]

    @property
    def step_ms(self) -> float:
        """The pace: the slowest rank's cadence, on average."""
        return statistics.fmean(self.slowest("cadence_ms"))

    @property
    def transformer_ms(self) -> float:
        return statistics.fmean(self.by_session("transformer_ms"))

    @property
    def floor_ms(self) -> float:
        return statistics.fmean(r.settings[self.index].floor.total_ms for r in self.records)

    @property
    def sustained_floor_ms(self) -> float:
        return statistics.fmean(r.settings[self.index].floor.sustained_ms for r in self.records)

    @property
    def frames_per_second(self) -> float:
        frames = [step[0].report.frames for session in self.steps() for step in session]
        return 1000 * sum(frames) / sum(self.slowest("cadence_ms"))

    @property
    def flops(self) -> float:
        """Of one realtime step, over all ranks, the conditioner as often as it was computed."""
        misses = statistics.fmean(self.by_session("conditioner_misses"))
        counted = self.facts.flops
        return counted["without_conditioner"] + misses * counted["conditioner_of_a_block"]

    @property
    def mfu(self) -> float | None:
        """Share of the devices' peak in `dtype` while the transformer runs, fp8 or not.

        None where no peak is known.
        """
        peak = peak_flops(self.records[0].device, self.facts.dtype)
        if peak is None:
            return None
        return self.flops / (self.ranks * peak * self.transformer_ms / 1000)

    @property
    def first_frame_ms(self) -> float:
        """The median session's, of its slowest rank."""
        return percentile(
            [max(rank.first_frame_ms for rank in session) for session in self.sessions], 50
        )

    @property
    def peak_bytes(self) -> int:
        """The fullest rank's."""
        return max(rank.peak_bytes for session in self.sessions for rank in session)

    def mean_report(self) -> StepReport:
        """The average step, the wall clock's length being its total: `other_ms` is the host's."""
        flat = [record for session in self.steps() for step in session for record in step]
        mean = mean_report([record.report for record in flat])
        return replace(mean, total_ms=statistics.fmean(record.cadence_ms for record in flat))

    def summary(self, alone: Result | None) -> dict[str, Any]:
        """Everything as plain numbers; `alone` is the same setting on one rank, where measured."""
        seconds = self.transformer_ms / 1000
        return {
            "figures": {name: self._summed(name) for name in self.names()},
            "cadence_ms": self.percentiles("cadence_ms"),
            "key_to_frame_ms": self.percentiles("key_to_frame_ms"),
            "time_to_first_frame_ms": self.first_frame_ms,
            "frames_per_second": self.frames_per_second,
            "peak_memory_bytes": self.peak_bytes,
            "flops_per_step": self.flops,
            "transformer_flops_per_second_and_rank": self.flops / seconds / self.ranks,
            "mfu": self.mfu,
            "floor_ms": self.floor_ms,
            "fraction_of_roofline": self.floor_ms / self.transformer_ms,
            "sustained_floor_ms": self.sustained_floor_ms,
            "fraction_of_sustained_floor": self.sustained_floor_ms / self.transformer_ms,
            "speed_up_of_step": alone.step_ms / self.step_ms if alone else None,
            "speed_up_of_transformer": alone.transformer_ms / self.transformer_ms
            if alone
            else None,
            "sessions": len(self.sessions),
            "measured_steps": sum(len(session) for session in self.steps()),
            "left_out_steps": sum(session[0].warmup_steps for session in self.sessions),
        }

    def summary_of(self, name: str) -> Interval:
        """A figure's mean over ranks, steps and sessions, and how sure it is."""
        return interval(self.by_session(name))

    def _summed(self, name: str) -> dict[str, float]:
        slowest = statistics.fmean(self.by_session(name, max))
        return {**asdict(self.summary_of(name)), "slowest_rank": slowest}

    def percentiles(self, name: str) -> Figures:
        """Of every measured step's slowest rank."""
        values = self.slowest(name)
        return {f"p{percent}": percentile(values, percent) for percent in PERCENTILES}


def difference(first: Result, other: Result, figure: str) -> Difference:
    """Paired session by session, each with the one of the same round; means over ranks."""
    return Difference(figure, *paired(first.by_session(figure), other.by_session(figure)))


def results(labels: Sequence[str], measured: Sequence[Sequence[RankRecord]]) -> list[Result]:
    """All settings on all numbers of ranks, in the order they were measured."""
    return [
        Result(label, index, records) for records in measured for index, label in enumerate(labels)
    ]


def alone(result: Result, among: Sequence[Result]) -> Result | None:
    """The same setting on one rank."""
    return next((r for r in among if r.ranks == 1 and r.index == result.index), None)


def comparisons(among: Sequence[Result]) -> list[tuple[Result, Result]]:
    """(first, other) settings of the same ranks."""
    return [
        (first, other)
        for first in among
        if first.index == 0
        for other in among
        if other.index > 0 and other.ranks == first.ranks
    ]
