"""Which exchange ranks take: what is asked for, refused early, and what a machine allows."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from lingbot.parallel.communication_log import CommunicationLog
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.mailbox import can_push
from lingbot.parallel.pushed_exchange import PushedExchange
from lingbot.parallel.splits import Splits, check_heads, choose_path

NOT_REACHED = (
    "push=true: the ranks of a sequence group must be GPUs of one host that reach each other's "
    "memory, with Triton installed; leave it null to push only where they are"
)


def left_to_lightning(**options: Any) -> str:
    """No strategy of ours: what the Trainer calls "auto".

    Raises:
        ValueError: for an option that only a sequence-parallel strategy takes.
    """
    for name, value in options.items():
        if value is not None:
            raise ValueError(
                f"strategy.{name}={value} is an option of strategy=sequence_parallel: choose that "
                "too, or leave the option away"
            )
    return "auto"


def check_choices(uniform: bool | None, push: bool | None) -> None:
    """Raises ValueError for choices that `choose_exchange` does not know, or that contradict."""
    for name, choice in (("uniform_fast_path", uniform), ("push", push)):
        if choice not in (None, True, False):
            raise ValueError(f"{name}={choice!r}: give true, false or null")
    if push and uniform is False:
        raise ValueError(
            "push=true with uniform_fast_path=false: only equal splits are pushed; leave one of "
            "them null"
        )


def check_exchange(
    splits: Splits, num_heads: int, uniform: bool | None, push: bool | None, on_gpus: bool
) -> None:
    """What can be refused of an exchange before there are processes.

    Raises:
        ValueError: heads, splits or ranks that are no GPUs do not go with what is asked for.
    """
    check_heads(num_heads, splits.ranks)
    choose_path(splits, True if push else uniform)
    if push and not on_gpus:
        raise ValueError(NOT_REACHED)


def choose_exchange(
    group: dist.ProcessGroup,
    splits: Splits,
    num_heads: int,
    device: torch.device,
    *,
    log: CommunicationLog,
    uniform: bool | None,
    push: bool | None,
    pictures: dist.ProcessGroup | None,
    timeout_s: float,
) -> SequenceExchange:
    """The fastest exchange that splits and machine allow, or the one that is asked for.

    Raises:
        ValueError: what is asked for cannot be had.
    """
    if push is not False and choose_path(splits, True if push else uniform) == "uniform":
        if can_push(group, device):
            return PushedExchange(group, splits, num_heads, device, log, pictures, timeout_s)
        if push:
            raise ValueError(NOT_REACHED)
    return SequenceExchange(group, splits, num_heads, log, uniform, pictures)
