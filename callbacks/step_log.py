"""Logs what every realtime step cost, to CSV files, the trainer's loggers and a table at the end.

While driving: rank 0's own figures, named as such, in `steps.csv` and under `realtime_rank0/`.
After the last step: every rank's figures in `steps_ranks.csv`, their mean and maximum in
`steps_reduced.csv` and under `realtime/`, the run's averages under `realtime_run/` and the table.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from lightning import LightningModule, Trainer
from rich.console import Console

from lingbot.callbacks.step_reports import ByRank, StepReports
from lingbot.callbacks.wandb_media import set_axis
from lingbot.data.control_stream import MOST_STEPS
from lingbot.data.file_checks import check_output_folder
from lingbot.model.checks import check_count, check_switch
from lingbot.realtime.events import StepReport
from lingbot.realtime.step_csv import StepCsv, write_rows
from lingbot.realtime.step_summary import (
    Figures,
    figures,
    mean_and_max,
    steps_across_ranks,
    summarize,
)
from lingbot.realtime.step_table import step_table

log = logging.getLogger(__name__)


class RealtimeStepLog(StepReports):
    """Everything of a `StepReport`, by step, rank, collective and path, and the run's averages.

    Args:
        dirpath: folder of the CSV files.
        warmup_steps: first steps (they compile, allocate) left out of the averages and the table;
            the files and loggers have them.
        table: show the table at the end.
        console: where to; None makes one on standard output.

    Raises:
        ValueError: values out of range, a path where no files can be written.
    """

    def __init__(
        self,
        dirpath: str | Path,
        warmup_steps: int = 1,
        table: bool = True,
        console: Console | None = None,
    ) -> None:
        super().__init__()
        check_count("callbacks.step_log.warmup_steps", warmup_steps, 0, MOST_STEPS)
        check_switch("callbacks.step_log.table", table)
        self.dirpath = check_output_folder(dirpath)
        self.warmup_steps = warmup_steps
        self.table = table
        self.console = console
        self.summary: Figures = {}
        self._csv = StepCsv(self.dirpath / "steps.csv")
        self._axes: set[str] = set()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin new files."""
        super().on_predict_start(trainer, pl_module)
        self.summary = {}
        self._csv = StepCsv(self.dirpath / "steps.csv")

    def step_done(self, trainer: Trainer, report: StepReport) -> None:
        """One row, one log entry: rank 0's own figures."""
        row = figures(report)
        self._csv.append(row)
        self._log(trainer, "realtime_rank0", row)

    def drive_done(self, trainer: Trainer, by_rank: ByRank, note: str) -> None:
        """All ranks' rows, their mean and maximum, the run's averages, and the table."""
        reduced = [mean_and_max(ranks) for ranks in steps_across_ranks(by_rank)]
        rows = [
            {"rank": rank, **figures(report)}
            for rank, reports in enumerate(by_rank)
            for report in reports
        ]
        write_rows(self.dirpath / "steps_ranks.csv", rows)
        write_rows(self.dirpath / "steps_reduced.csv", reduced)
        for row in reduced:
            self._log(trainer, "realtime", row)
        self.summary = summarize(by_rank, self.warmup_steps)
        run = {f"realtime_run/{name}": value for name, value in self.summary.items()}
        for logger in trainer.loggers:
            logger.log_metrics(run, step=self.reports[-1].step)
        log.info("Step times are in %s", self.dirpath.resolve())
        if self.table:
            console = self.console or Console()
            width = None if console.is_terminal else max(console.width, 110)
            console.print(step_table(by_rank, self.warmup_steps, note), width=width)

    def _log(self, trainer: Trainer, prefix: str, row: Mapping[str, float]) -> None:
        metrics = {f"{prefix}/{name}": value for name, value in row.items()}
        new = [name for name in metrics if name not in self._axes]
        set_axis(trainer, [name for name in new if name != f"{prefix}/step"], f"{prefix}/step")
        self._axes.update(new)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=int(row["step"]))
