"""Pictures, videos and x axes for a trainer's W&B loggers; nothing for the others."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from lightning import Trainer
from lightning.pytorch.loggers import WandbLogger


def wandb_loggers(trainer: Trainer) -> list[WandbLogger]:
    """The trainer's W&B loggers; wandb itself is not imported unless there are any."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def send_image(trainer: Trainer, key: str, path: Path) -> None:
    """Show a picture file in W&B."""
    for logger in wandb_loggers(trainer):
        logger.log_image(key, [str(path)])


def send_video(trainer: Trainer, key: str, path: Path) -> None:
    """Show a finished video file in W&B."""
    for logger in wandb_loggers(trainer):
        logger.log_video(key, [str(path)], format=[path.suffix.removeprefix(".")])


def set_axis(trainer: Trainer, names: Iterable[str], axis: str) -> None:
    """Plot metrics over another metric than the trainer's global step.

    Exact names, because Lightning has claimed `*` for the global step.
    """
    for logger in wandb_loggers(trainer):
        for name in names:
            logger.experiment.define_metric(name, step_metric=axis)
