"""Draws a drive's step times into a PNG when the drive ends, however it ends."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning import Trainer

from lingbot.callbacks.step_reports import ByRank, StepReports
from lingbot.callbacks.wandb_media import send_image
from lingbot.checkpoints.atomic import atomic_file
from lingbot.data.file_checks import check_output_file
from lingbot.data.video_file import FASTEST
from lingbot.model.checks import check_count
from lingbot.realtime.step_figure import draw_steps

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")

log = logging.getLogger(__name__)


class StepPlot(StepReports):
    """Stacked bars, one a step, as the mean over ranks; communication's share; its collectives.

    Args:
        path: the picture to write.
        fps: pace of playback, drawn as the time a step may take to keep up with it.

    Raises:
        ValueError: a pace out of range, a path where no picture can be written.
    """

    def __init__(self, path: str | Path, fps: int = 16) -> None:
        super().__init__()
        check_count("callbacks.step_plot.fps", fps, high=FASTEST)
        self.path = check_output_file(path, PICTURES)
        self.fps = fps

    def drive_done(self, trainer: Trainer, by_rank: ByRank, note: str) -> None:
        """Draw, save, and show in W&B where it is used."""
        with atomic_file(self.path) as partial:
            draw_steps(by_rank, self.fps, note).savefig(partial)
        log.info("A plot of the step times is in %s", self.path.resolve())
        send_image(trainer, "realtime_run/step_times", self.path)
