"""Learning rates over a run: warm-up along a line, then a cosine (SGDR, arXiv:1608.03983)."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def warmup_cosine(
    optimizer: Optimizer, warmup_steps: int, total_steps: int, floor: float = 0.0
) -> LambdaLR:
    """Up to the optimizer's learning rate in `warmup_steps`, down to `floor` times it at the end.

    Raises:
        ValueError: a warm-up that does not end within the run, or a floor outside [0, 1].
    """
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"scheduler.warmup_steps={warmup_steps} must lie between 0 and the run's "
            f"{total_steps} steps: lower it or raise trainer.max_steps"
        )
    if not 0 <= floor <= 1:
        raise ValueError(f"scheduler.floor={floor} must lie in [0, 1]")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
