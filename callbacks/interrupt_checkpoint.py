"""Keeps what a fit on one rank has learned where it is interrupted."""

from __future__ import annotations

import logging
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)


class InterruptCheckpoint(Callback):
    """Saves a checkpoint to go on from when Ctrl-C or SIGTERM ends a fit of a single rank.

    Not after errors, whose state may be the broken one; and not on several ranks, which stop
    wherever each of them is: those that save would wait for the others.

    Args:
        path: the checkpoint; an existing file is replaced, at once or not at all.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save, where there is something to save."""
        told = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        learned = trainer.state.fn == TrainerFn.FITTING and trainer.global_step > 0
        if told and learned and trainer.world_size == 1:
            trainer.save_checkpoint(self.path)
            log.info(
                "Interrupted at step %d; go on from there by ckpt_path=%s",
                trainer.global_step,
                self.path.resolve(),
            )
