"""What a training step takes: seconds, FLOP/s of the model, share of the peak, memory."""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from lingbot.benchmark.flops import peak_flops
from lingbot.device import device_name
from lingbot.model.checks import check_count

log = logging.getLogger(__name__)


class TrainingSpeed(Callback):
    """Logs the time of every training step from its batch's arrival to its last weight's change.

    The device is waited for at both ends of a step, which is one batch. FLOPs are those of the
    model, forward and backward, whatever is made anew on the way; the ranks of a sequence group
    share them.

    Args:
        warmup_steps: first steps left out: compiling, growing memory.

    Raises:
        ValueError: a negative number of steps, a module that cannot tell what a batch costs, or
            steps of several batches.
    """

    logged = ("speed/step_s", "speed/tflops")

    def __init__(self, warmup_steps: int = 2) -> None:
        check_count("callbacks.training_speed.warmup_steps", warmup_steps, low=0)
        self.warmup_steps = warmup_steps
        self.seconds: list[float] = []
        self.flops = 0.0  # of a step, on each rank
        self._seen, self._began = 0, 0.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what could not be counted."""
        self.check(trainer, pl_module)

    @staticmethod
    def check(trainer: Trainer, pl_module: LightningModule) -> None:
        """Raises ValueError for what the callback cannot time."""
        if not hasattr(pl_module, "training_flops"):
            raise ValueError(
                f"{type(pl_module).__name__} has no training_flops: leave callbacks=train_speed out"
            )
        if trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"trainer.accumulate_grad_batches={trainer.accumulate_grad_batches}: "
                "callbacks=train_speed times steps of one batch"
            )

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock."""
        self._began = _now(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step, from the end of the warm-up on."""
        elapsed = _now(pl_module.device) - self._began
        self._seen += 1
        if self._seen <= self.warmup_steps:
            return
        ranks = getattr(trainer.strategy, "sequence_size", 1)
        self.flops = pl_module.training_flops(batch) / ranks  # type: ignore[operator]
        self.seconds.append(elapsed)
        pl_module.log("speed/step_s", elapsed)
        pl_module.log("speed/tflops", self.flops / elapsed / 1e12)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what a step took."""
        if not trainer.is_global_zero:
            return
        if not self.seconds:
            log.warning(
                "No training step was timed: %d steps, and the first %d are the warm-up.",
                self._seen, self.warmup_steps,
            )  # fmt: skip
            return
        device, median = pl_module.device, statistics.median(self.seconds)
        rate = self.flops / median
        peak = peak_flops(device_name(device), "bfloat16") if "bf16" in trainer.precision else None
        share = f" ({rate / peak:.1%} of its bfloat16 peak)" if peak else ""
        memory = ""
        if device.type == "cuda":
            memory = f", with {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB at the most"
        log.info(
            "A training step took %.3f s (%.3f to %.3f, %d steps after %d of warm-up): "
            "%.4g TFLOP/s a rank%s on %s%s.",
            median, min(self.seconds), max(self.seconds), len(self.seconds), self.warmup_steps,
            rate / 1e12, share, device_name(device), memory,
        )  # fmt: skip


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
