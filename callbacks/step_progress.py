"""A progress bar of realtime steps: how far the drive is, and what its steps cost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lightning import Callback, LightningModule, Trainer
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from lingbot.callbacks.step_reports import driven_session
from lingbot.realtime.events import StepReport


def describe(report: StepReport, rank: int, world_size: int) -> str:
    """A step in a line: pace, times, communication, conditioner cache, and whose they are."""
    parts = [f"{report.frames_per_second:.1f} fps", f"{report.total_ms:,.0f} ms"]
    parts.append(f"key to frame {report.key_to_frame_ms:,.0f} ms")
    if report.collectives:
        share = f"{report.communication_share:.0%}"
        parts.append(f"communication {report.communication_ms:.1f} ms, {share}")
    parts.append(f"cache {report.conditioner_hits} hits, {report.conditioner_misses} misses")
    whose = f"rank {rank}: " if world_size > 1 else ""
    return whose + " · ".join(parts)


class StepProgress(Callback):
    """Shown by rank 0 with its own figures; meant for `Trainer(enable_progress_bar=False)`.

    Args:
        console: where to draw; None makes one on standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self._live: Live | None = None
        self._bar = Progress()
        self._last = Text()

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar; a stream without an end shows a count."""
        if not trainer.is_global_zero:
            return
        count = sum(trainer.num_predict_batches)
        self._bar = Progress(
            TextColumn("[bold]driving"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )
        self._bar.add_task("driving", total=None if math.isinf(count) else int(count))
        self._last = Text(no_wrap=True, overflow="ellipsis")
        self._live = Live(Group(self._bar, self._last), console=self.console)
        self._live.start()

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Move on by a step; the figures are those of the last finished one."""
        if self._live is not None:
            session = driven_session(pl_module)
            self._show(trainer, session.finished_reports(since=batch_idx - 1))
            self._bar.advance(self._bar.task_ids[0])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the bar as it stands, with the figures of the last finished step."""
        if self._live is not None:
            self._show(trainer, driven_session(pl_module).finished_reports())
        self._close()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Give the terminal back."""
        self._close()

    def _show(self, trainer: Trainer, reports: Sequence[StepReport]) -> None:
        if reports:
            rank, world_size = trainer.global_rank, trainer.world_size
            self._last.plain = describe(reports[-1], rank, world_size)

    def _close(self) -> None:
        if self._live is not None:
            console = self._live.console
            self._live.stop()
            self._live = None
            if not console.is_terminal and not console.is_jupyter:
                console.line()  # elsewhere Rich ends its last line itself
