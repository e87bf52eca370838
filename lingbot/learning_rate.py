"""Learning rates over a run: warm-up along a line, then a cosine (SGDR, arXiv:1608.03983)."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from lingbot.model.checks import check_number

LONGEST_WARMUP = 500  # steps, of those that are derived


def warmup_cosine(
    optimizer: Optimizer,
    warmup_steps: int | None,
    total_steps: int,
    floor: float = 0.0,
    warmup_fraction: float = 0.05,
) -> LambdaLR:
    """Up to the optimizer's learning rate in `warmup_steps`, down to `floor` times it at the end.

    Args:
        optimizer: whose rate it is.
        warmup_steps: None takes `warmup_fraction` of the run's steps, 500 at most.
        total_steps: of the run, counted as the optimizer does.
        floor: share of the learning rate that is left at the end.
        warmup_fraction: share of the run; not looked at where the steps are given.

    Raises:
        ValueError: a run without a length, a warm-up that does not end within it, a share outside
            [0, 1].
    """
    if total_steps < 1:
        raise ValueError(
            f"scheduler.total_steps={total_steps}: a cosine needs the length of the run; give "
            "trainer.max_steps, or scheduler=constant"
        )
    check_number("scheduler.warmup_fraction", warmup_fraction, low=0, high=1)
    if warmup_steps is None:
        warmup_steps = min(LONGEST_WARMUP, round(warmup_fraction * total_steps))
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"scheduler.warmup_steps={warmup_steps} must lie between 0 and the run's "
            f"{total_steps} steps: lower it, raise trainer.max_steps, or leave it out"
        )
    if not 0 <= floor <= 1:
        raise ValueError(f"scheduler.floor={floor} must lie in [0, 1]")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
