"""Keeps what a fit has learned where it is interrupted."""

from __future__ import annotations

import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lingbot.termination import NotedSignals

log = logging.getLogger(__name__)


class InterruptCheckpoint(Callback):
    """Saves a checkpoint to go on from when Ctrl-C or SIGTERM ends a fit.

    A fit of one rank is ended where it is; several ranks end together, whichever of them has been
    told, after a training step or a batch of validation. Not after errors, whose state may be the
    broken one.

    Args:
        path: the checkpoint; an existing one stays until it is complete.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._noted = NotedSignals(signal.SIGINT, signal.SIGTERM)
        self._group: dist.ProcessGroup | None = None
        self._step = 0  # at which the ranks last agreed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Several ranks listen; a group on their hosts lets them agree without any device."""
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

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Save what one rank has learned; several have done so, or stopped wherever each was."""
        self._group = None
        if isinstance(exception, (KeyboardInterrupt, SIGTERMException)) and trainer.world_size == 1:
            self._save(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._group = None  # Lightning has put signals back

    def _agree(self, trainer: Trainer) -> None:
        if self._group is None:
            return
        told = torch.tensor(self._noted.told)
        dist.all_reduce(told, dist.ReduceOp.MAX, self._group)
        if told:
            self._save(trainer)
            if told == signal.SIGINT and trainer.is_global_zero:
                raise KeyboardInterrupt
            raise SIGTERMException

    def _save(self, trainer: Trainer) -> None:
        """Save, where there is something to save; what is there already stays until that is done.

        Of sharded weights a checkpoint is a folder, which takes longer than a signal may leave.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step == 0:
            return
        unfinished = self.path.with_name(f"unfinished_{self.path.name}")
        if trainer.is_global_zero:
            _remove(unfinished)
        trainer.strategy.barrier()
        trainer.save_checkpoint(unfinished)  # all ranks, and each waits for the others
        if trainer.is_global_zero:
            if unfinished.is_dir() or self.path.is_dir():
                _remove(self.path)  # neither can take the other's place
            unfinished.replace(self.path)
            log.info(
                "Interrupted at step %d; go on from there by ckpt_path=%s",
                trainer.global_step,
                self.path.resolve(),
            )


def _remove(path: Path) -> None:
    """A checkpoint, or a link to one, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
