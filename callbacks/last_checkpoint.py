"""Keeps the newest state of a fit, to go on from."""

from __future__ import annotations

import logging
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lingbot.checkpoints.run_checkpoint import METADATA
from lingbot.data.file_checks import check_output_folder
from lingbot.termination import NotedSignals

log = logging.getLogger(__name__)


class LastCheckpoint(Checkpoint):
    """Saves a checkpoint after every validation, at the end, and where a signal ends a fit.

    A fit of one rank is ended by Ctrl-C or SIGTERM where it is; several ranks end together,
    whichever of them has been told, after a training step or a batch of validation. After an error
    the last one saved stays, since the state may be the broken one.

    Args:
        path: the checkpoint; an existing one stays until the new one is complete.

    Raises:
        ValueError: for a path where no checkpoint can be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir() and not (self.path / METADATA).is_file():
            raise ValueError(f"{path} is a folder: give the path of a checkpoint, as last.ckpt")
        check_output_folder(self.path.parent)
        self._noted = NotedSignals(signal.SIGINT, signal.SIGTERM)
        self._group: dist.ProcessGroup | None = None
        self._step = 0  # at which the ranks last agreed
        self._saved = -1  # step of the newest checkpoint

    @property
    def kept(self) -> str:
        """What there is to go on from, in words."""
        if self._saved < 0:
            return "no checkpoint was kept yet"
        return f"go on from step {self._saved} by ckpt_path={self.path.resolve()}"

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Several ranks listen; a group on their hosts lets them agree without any device."""
        self._saved = -1
        if trainer.world_size > 1:
            self._group, self._step = dist.new_group(backend="gloo"), trainer.global_step
            self._noted.listen()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Where a rank has been told to end, all of them save and end.

        Not between batches whose gradients accumulate.

        Raises:
            KeyboardInterrupt: on the first rank, after Ctrl-C.
            SIGTERMException: otherwise.
        """
        if trainer.global_step > self._step:
            self._step = trainer.global_step
            self._agree(trainer)

    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """The same: a validation may take longer than a process is given to end."""
        self._agree(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, after the callbacks that keep the best have taken the validation's measure."""
        if not trainer.sanity_checking:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last steps too, before averaged weights take the place of the trained ones."""
        if trainer.global_step > self._saved:
            self._save(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what one rank has learned; several have done so, or stopped wherever each was."""
        self._group = None
        told = isinstance(exception, (KeyboardInterrupt, SIGTERMException))
        if told and trainer.world_size == 1:
            self._interrupted(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._group = None  # Lightning has put signals back

    def _agree(self, trainer: Trainer) -> None:
        if self._group is None:
            return
        told = torch.tensor(self._noted.told)
        dist.all_reduce(told, dist.ReduceOp.MAX, self._group)
        if told:
            self._interrupted(trainer)
            if told == signal.SIGINT and trainer.is_global_zero:
                raise KeyboardInterrupt
            raise SIGTERMException

    def _interrupted(self, trainer: Trainer) -> None:
        """Save and say how to go on. A sharded checkpoint may take longer than a signal leaves."""
        if self._save(trainer) and trainer.is_global_zero:
            log.info(
                "Interrupted at step %d; go on from there by ckpt_path=%s",
                trainer.global_step,
                self.path.resolve(),
            )

    def _save(self, trainer: Trainer) -> bool:
        """Save, where there is something to save; all ranks call this."""
        if (
            trainer.state.fn != TrainerFn.FITTING
            or trainer.global_step == 0
            or getattr(trainer, "fast_dev_run", False)
        ):
            return False
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved = trainer.global_step
        return True
