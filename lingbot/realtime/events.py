"""What one realtime step reports about itself: where its time went, and what it sent.

A `StepReport` is one rank's own account of one step. It is plain data with a plain-dict form, so
that ranks can exchange their accounts after a drive (never inside a step) and callbacks can plot,
log and reduce them. Times are milliseconds on the reporting rank; bytes are what that rank sent.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


class TimedCollective(Protocol):
    """One call of one collective, as `lingbot.parallel.communication_log` records it."""

    @property
    def name(self) -> str: ...
    @property
    def path(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def elapsed_ms(self) -> float: ...


@dataclass(frozen=True)
class CollectiveTotal:
    """All calls of one collective on one path within a step."""

    name: str  # "qkv", "kv", "out", "gather", "frames"
    path: str  # "uniform" | "variable" | "pushed"
    bytes: int
    calls: int
    elapsed_ms: float


def total_collectives(calls: Iterable[TimedCollective]) -> list[CollectiveTotal]:
    """Sum single calls by (name, path), in order of first appearance."""
    sums: dict[tuple[str, str], tuple[int, int, float]] = {}
    for call in calls:
        sent, count, elapsed = sums.get((call.name, call.path), (0, 0, 0.0))
        sums[call.name, call.path] = (sent + call.bytes, count + 1, elapsed + call.elapsed_ms)
    return [
        CollectiveTotal(name, path, sent, count, elapsed)
        for (name, path), (sent, count, elapsed) in sums.items()
    ]


@dataclass
class StepReport:
    """One rank's account of one realtime step.

    Args:
        step: index of the realtime step since the session began.
        frames: video frames the step gave.
        pass_ms: time of each denoise pass, in order.
        context_update_ms: time of the context update.
        camera_ms: controls to embedded rays. The blocks' scale and shift are made by the first
            pass that needs them and count there.
        decode_ms: latents to frames on the host.
        total_ms: all work of the step, the context update included although the frames leave before
            it: the pace that a drive can keep. What the parts leave over is `other_ms`.
        key_to_frame_ms: on the host's clock, from the call with the controls to the frames in the
            caller's hands. Does not include the context update; does include what was left of an
            earlier step when the controls came in.
        overlap_ms: how much of the decode ran beside the context update (on CUDA); the parts sum
            to that much more than the total.
        collectives: communication of the step, see `total_collectives`; that of the context update
            is its chunk's. Its time lies *inside* the passes, the context update and the decode, it
            does not come on top of them.
        conditioner_hits: blocks' scale/shift taken from the conditioner cache in this step.
        conditioner_misses: those computed in this step.
        conditioner_bytes: memory the conditioner cache held at its fullest in this step.
    """

    step: int
    frames: int
    pass_ms: list[float]
    context_update_ms: float
    camera_ms: float
    decode_ms: float
    total_ms: float
    key_to_frame_ms: float = 0.0
    overlap_ms: float = 0.0
    collectives: list[CollectiveTotal] = field(default_factory=list)
    conditioner_hits: int = 0
    conditioner_misses: int = 0
    conditioner_bytes: int = 0

    @property
    def communication_ms(self) -> float:
        """Time in collectives, of all names and paths."""
        return sum((entry.elapsed_ms for entry in self.collectives), 0.0)

    @property
    def communication_bytes(self) -> int:
        """Bytes this rank sent."""
        return sum(entry.bytes for entry in self.collectives)

    @property
    def communication_calls(self) -> int:
        """Collectives this rank took part in."""
        return sum(entry.calls for entry in self.collectives)

    @property
    def communication_share(self) -> float:
        """Communication as a fraction of the step, 0 for a step that took no time."""
        return self.communication_ms / self.total_ms if self.total_ms > 0 else 0.0

    @property
    def other_ms(self) -> float:
        """What the step spent outside passes, context update, camera and decode; never negative."""
        named = sum(self.pass_ms) + self.context_update_ms + self.camera_ms + self.decode_ms
        return max(0.0, self.total_ms + self.overlap_ms - named)

    @property
    def frames_per_second(self) -> float:
        """Video frames a second at this step's pace, 0 for a step that took no time."""
        return 1000.0 * self.frames / self.total_ms if self.total_ms > 0 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The report as plain lists, dicts, strings and numbers (fit for JSON, object gathers)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StepReport:
        """Rebuild a report from `to_dict`; unknown or missing keys raise TypeError."""
        collectives = [CollectiveTotal(**entry) for entry in values.get("collectives", [])]
        return cls(**{**values, "collectives": collectives})
