"""What befalls one rank in the middle of its work, at a step that is known."""

from __future__ import annotations

import os

from lightning import Callback


class Fault(Callback):
    """At the beginning of a step of one rank.

    Args:
        rank: whose.
        step: realtime step, or training step less one.
        number: signal that the rank is sent, 0 for an error that it raises.
    """

    def __init__(self, rank: int, step: int, number: int = 0) -> None:
        self.rank, self.step, self.number = rank, step, number

    def on_predict_batch_start(self, trainer, pl_module, batch, batch_idx, *_) -> None:
        self._befall(trainer, batch_idx)

    def on_train_batch_start(self, trainer, *_) -> None:
        self._befall(trainer, trainer.global_step)

    def _befall(self, trainer, step: int) -> None:
        if (trainer.global_rank, step) == (self.rank, self.step):
            if self.number == 0:
                raise RuntimeError("a fault\nof two lines")
            os.kill(os.getpid(), self.number)


def fault(rank: int, step: int, number: int = 0) -> str:
    """The override that adds it to a command's callbacks."""
    options = f"rank: {rank}, step: {step}, number: {int(number)}"
    return f"+callbacks.fault={{_target_: tests.support.faults.Fault, {options}}}"
