"""Optimizers and schedules, tried on one small weight before the real ones are built.

They are other people's classes: torch's AdamW takes an infinite learning rate without a word. What
such a class makes of its options is looked at here, whatever it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lingbot.model.checks import check_number

SIDE = 8  # of the weight: a matrix for those that treat matrices apart
BELOW_ONE = ("momentum", "betas", "alpha", "dampening")  # decays of running means
NOT_NEGATIVE = ("lr", "weight_decay", "eps", "lr_decay", "adam_ratio")

MakeOptimizer = Callable[[Iterable[nn.Parameter]], Optimizer]
MakeScheduler = Callable[[Optimizer], Any]


def check_optimizer(make: MakeOptimizer, make_scheduler: MakeScheduler | None = None) -> float:
    """Refuses options that an optimizer or a schedule cannot work with.

    Args:
        make: parameters -> optimizer.
        make_scheduler: optimizer -> learning-rate schedule.

    Returns:
        Bytes that the optimizer keeps for every byte of a weight matrix.

    Raises:
        ValueError: what one of them objects to, or rates and decays that are no such numbers.
    """
    weight = nn.Parameter(torch.zeros(SIDE, SIDE))
    try:
        optimizer = make([weight])
    except Exception as error:  # another's class objects as it likes
        raise ValueError(f"optimizer: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"optimizer={optimizer!r}: give one of torch.optim, or lingbot.muon.Muon")
    for group in optimizer.param_groups:
        _check_group(group)
    if make_scheduler is not None:
        try:
            scheduler = make_scheduler(optimizer)
        except Exception as error:
            raise ValueError(f"scheduler: {error}") from error
        if not isinstance(scheduler, LRScheduler):
            raise ValueError(f"scheduler={scheduler!r}: give one of torch.optim.lr_scheduler")
    return _kept(optimizer, weight)


def _check_group(group: Mapping[str, Any]) -> None:
    """Rates that are not negative and finite, decays below one."""
    for name in NOT_NEGATIVE:
        if name in group:
            value = group[name]
            number = float(value) if isinstance(value, torch.Tensor) else value
            check_number(f"optimizer.{name}", number, low=0)
    if group.get("lr") == 0:
        raise ValueError("optimizer.lr=0: nothing would be learned; give a number above 0")
    for name in BELOW_ONE:
        values = group.get(name, ())
        for value in values if isinstance(values, (tuple, list)) else (values,):
            if value is not None and check_number(f"optimizer.{name}", value, low=0) >= 1:
                raise ValueError(f"optimizer.{name}={values}: give numbers below 1, as in 0.9")


def _kept(optimizer: Optimizer, weight: nn.Parameter) -> float:
    """State of the weight after a step, as a share of the weight; what cannot be known is none."""
    weight.grad = torch.zeros_like(weight)
    try:
        optimizer.step()
    except TypeError:  # one that asks for a closure
        return 0.0
    kept = [value for value in optimizer.state[weight].values() if isinstance(value, torch.Tensor)]
    like = [value for value in kept if value.numel() == weight.numel()]
    return sum(value.nbytes for value in like) / weight.nbytes
