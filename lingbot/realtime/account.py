"""The accounts of a session's steps: reports in the making, and those that are finished.

A step's frames leave before its context update is done, so its report is complete only later. On
CUDA an account holds events, which are read when the device has passed them: whoever takes finished
reports never waits for the device.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence

import torch

from lingbot.model.camera_conditioner import ConditionerCounts
from lingbot.parallel.communication_log import PendingCollective
from lingbot.realtime.clock import StepClock
from lingbot.realtime.events import StepReport, total_collectives

KEPT = 256  # steps, so that a session may go on for ever


class StepAccount:
    """One realtime step while it is being made.

    Made when the controls come in.

    Args:
        step: index of the step in its session.
        device: where the work runs.
    """

    def __init__(self, step: int, device: torch.device) -> None:
        self._asked = time.perf_counter()
        self.step = step
        self.clock = StepClock(device)
        self._frames, self._key_to_frame_ms = 0, 0.0
        self._counts = ConditionerCounts()
        self._calls: list[PendingCollective] = []
        self._closed = False
        self._report: StepReport | None = None

    def add(self, counts: ConditionerCounts, calls: Sequence[PendingCollective]) -> None:
        """What the conditioner cache and the exchange did since the last call."""
        self._counts.hits += counts.hits
        self._counts.misses += counts.misses
        self._counts.bytes = max(self._counts.bytes, counts.bytes)
        self._calls.extend(calls)

    def handed_out(self, frames: int) -> None:
        """The step's frames are in the caller's hands."""
        self._frames = frames
        self._key_to_frame_ms = 1000 * (time.perf_counter() - self._asked)

    def close(self) -> None:
        """Nothing more is to be done for the step."""
        self._closed = True

    @property
    def finished(self) -> bool:
        """Whether `report` would neither wait nor lack anything."""
        return self._report is not None or (self._closed and self.clock.passed)

    def report(self) -> StepReport:
        """The account of the step; waits for the device where it is still at work."""
        if self._report is None:
            self._report = self._resolve()
            self._calls.clear()  # events go back
        return self._report

    def _resolve(self) -> StepReport:
        times = self.clock.read()
        return StepReport(
            step=self.step,
            frames=self._frames,
            pass_ms=times.of("pass"),
            context_update_ms=sum(times.of("context_update")),
            camera_ms=sum(times.of("camera")),
            decode_ms=sum(times.of("decode")),
            total_ms=times.total,
            key_to_frame_ms=self._key_to_frame_ms,
            overlap_ms=times.overlap("decode", "context_update"),
            collectives=total_collectives(call.resolve() for call in self._calls),
            conditioner_hits=self._counts.hits,
            conditioner_misses=self._counts.misses,
            conditioner_bytes=self._counts.bytes,
        )


class StepAccounts:
    """The accounts of a session's latest steps, in order.

    Args:
        kept: steps remembered at most; beyond it the oldest are forgotten.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._accounts: deque[StepAccount] = deque(maxlen=kept)

    @property
    def last(self) -> StepAccount | None:
        return self._accounts[-1] if self._accounts else None

    def append(self, account: StepAccount) -> None:
        """The account of the step just made."""
        self._accounts.append(account)

    def clear(self) -> None:
        """Forget all steps."""
        self._accounts.clear()

    def finished(self, since: int = 0) -> list[StepReport]:
        """Reports of the steps from `since` on, up to the first one that would have to wait."""
        reports = []
        for account in self._accounts:
            if not account.finished:
                break
            report = account.report()
            if account.step >= since:
                reports.append(report)
        return reports

    def all(self, since: int = 0) -> list[StepReport]:
        """Reports of all steps from `since` on, waiting for the device."""
        return [account.report() for account in self._accounts if account.step >= since]
