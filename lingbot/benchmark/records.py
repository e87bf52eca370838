"""What ranks hand back: steps as they were measured, sessions of steps, a rank's whole account.

Plain data, so that it travels between processes and into JSON. Milliseconds unless a name says
otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lingbot.realtime.events import StepReport
from lingbot.realtime.step_summary import Figures, figures

NOT_OF_A_SETTING = ("step", "frames", "frames_per_second", "total_ms", "other_ms")


@dataclass
class StepRecord:
    """One measured realtime step.

    Args:
        report: the session's own account of it.
        key_to_frame_ms: controls in to frames out, by the wall clock.
        cadence_ms: from its start to the start of the next step, by the wall clock; on a GPU the
            rest of the context update before it lies in it, and that of its own does not.
    """

    report: StepReport
    key_to_frame_ms: float
    cadence_ms: float

    @property
    def transformer_ms(self) -> float:
        """Passes, context update and camera; communication lies inside."""
        report = self.report
        return sum(report.pass_ms) + report.context_update_ms + report.camera_ms

    @property
    def host_ms(self) -> float:
        """What the wall clock saw and no part of the step accounts for; never negative."""
        alone = self.report.decode_ms - self.report.overlap_ms
        return max(0.0, self.cadence_ms - self.transformer_ms - alone)

    def figures(self) -> Figures:
        """Everything by name: `step_ms`, `pass_1_ms`, `communication/qkv/uniform/ms`, ..."""
        return {
            "step_ms": self.cadence_ms,
            "key_to_frame_ms": self.key_to_frame_ms,
            "transformer_ms": self.transformer_ms,
            "passes_ms": sum(self.report.pass_ms),
            "host_ms": self.host_ms,
            **{k: v for k, v in figures(self.report).items() if k not in NOT_OF_A_SETTING},
        }


@dataclass
class SessionRecord:
    """One session of one setting on one rank.

    Args:
        setting: index of the setting.
        session: which of the setting's sessions.
        first_frame_ms: `reset` and the first step.
        warmup_steps: steps taken and left out, the first one included.
        peak_bytes: device memory at its fullest; on the CPU the process's, so far.
        steps: the measured ones.
    """

    setting: int
    session: int
    first_frame_ms: float
    warmup_steps: int
    peak_bytes: int
    steps: list[StepRecord] = field(default_factory=list)


@dataclass
class Floor:
    """What a step's parts take at best on this device, measured in the same run.

    Args:
        parts_ms: `linears`, `self_attention`, ... of one realtime step, measured in short bursts.
        calls_us: one call of every shape that they are made of.
        sustained_ms: all of the step's calls, in its order and without a pause.
    """

    parts_ms: dict[str, float]
    calls_us: dict[str, float]
    sustained_ms: float

    @property
    def total_ms(self) -> float:
        return sum(self.parts_ms.values())


@dataclass
class SettingFacts:
    """What a rank knows of a setting besides its times."""

    floor: Floor
    dtype: str
    chunk_tokens: int
    visible_tokens: int
    window_full_at_step: int
    flops: dict[str, float]


@dataclass
class RankRecord:
    """Everything that one rank measured."""

    rank: int
    device: str
    threads: int
    settings: list[SettingFacts]
    sessions: list[SessionRecord]
