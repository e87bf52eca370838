"""What callbacks about realtime steps share: collecting reports, and gathering them at the end.

A step's report is finished after its frames have left, when the context update is done. During a
drive a rank takes its own finished reports, usually the step before's: neither a rank nor a device
is waited for on a callback's account. The ranks exchange their lists once, after the last step.
"""

from __future__ import annotations

from typing import Any

from lightning import Callback, LightningModule, Trainer

from lingbot.realtime.events import StepReport
from lingbot.realtime.step_summary import gather_reports

ByRank = list[list[StepReport]]


def driven_session(pl_module: LightningModule) -> Any:
    """The session of a driving module, which accounts for its realtime steps.

    Raises:
        TypeError: for a module without one.
    """
    session: Any = getattr(pl_module, "session", None)
    if not callable(getattr(session, "finished_reports", None)):
        raise TypeError(
            f"{type(pl_module).__name__}.session is {session!r}, which has no finished_reports; "
            "callbacks about realtime steps need a module that drives a session in predict_step."
        )
    return session


class StepReports(Callback):
    """Keeps each step's report on its rank; when the drive ends, rank 0 is handed everybody's.

    After an exception only rank 0's own reports are handed over, since other ranks may be gone.
    """

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self._driving = False

    def step_done(self, trainer: Trainer, report: StepReport) -> None:
        """Called on rank 0 for every realtime step, in order, once its report is finished."""

    def drive_done(self, trainer: Trainer, by_rank: ByRank, note: str) -> None:
        """Called on rank 0 at the end, if there was a step; `note` says what the reports lack."""

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with no reports."""
        self.reports = []
        self._driving = True

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep this rank's reports that are finished by now."""
        session = driven_session(pl_module)
        self._keep(trainer, session.finished_reports(since=len(self.reports)))

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange the ranks' reports (all ranks come here) and finish on rank 0."""
        self._driving = False
        session = driven_session(pl_module)
        self._keep(trainer, session.all_reports(since=len(self.reports)))
        by_rank = gather_reports(self.reports)
        if trainer.is_global_zero and self.reports:
            self.drive_done(trainer, by_rank, note="")

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Finish with what rank 0 has, if the exception ended a drive."""
        session: Any = getattr(pl_module, "session", None)
        if self._driving and hasattr(session, "finished_reports"):
            self._keep(trainer, session.finished_reports(since=len(self.reports)))
        if self._driving and trainer.is_global_zero and self.reports:
            only = "" if trainer.world_size == 1 else f", rank 0 of {trainer.world_size} only"
            self.drive_done(trainer, [self.reports], note=f"interrupted{only}")
        self._driving = False

    def _keep(self, trainer: Trainer, reports: list[StepReport]) -> None:
        for report in reports:
            self.reports.append(report)
            if trainer.is_global_zero:
                self.step_done(trainer, report)
