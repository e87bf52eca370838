"""A training that goes on counts as if it had never stopped.

Lightning keeps a dozen counters of batches, epochs and validations, and where a checkpoint is saved
decides which of them are one ahead. A training over `EndlessSampler` needs one number, the steps
taken: all others follow from it.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning import Trainer

from lingbot.data.endless_sampler import EndlessSampler

ENDLESS = "one_endless_epoch"


def trained_batches(trainer: Trainer | None) -> int:
    """Batches that this rank has taken steps on; those of an unfinished accumulation do not count.

    Their gradients are lost with the process, and so they come again.
    """
    return 0 if trainer is None else trainer.global_step * trainer.accumulate_grad_batches


def data_ranks(trainer: Trainer | None) -> tuple[int, int]:
    """How many ranks see samples of their own, and which of them this process belongs to."""
    strategy = None if trainer is None else trainer.strategy
    shares = getattr(strategy, "distributed_sampler_kwargs", {"num_replicas": 1, "rank": 0})
    return shares["num_replicas"], shares["rank"]


def step_generator(seed: int, data_rank: int, step: int, batch_idx: int) -> torch.Generator:
    """The random numbers of one batch of one training step, the same in every process."""
    key = hash((seed, data_rank, step, batch_idx))  # of integers: no process has a hash of its own
    return torch.Generator().manual_seed(key & 0x7FFF_FFFF_FFFF_FFFF)


def note_endless(trainer: Trainer | None, checkpoint: dict[str, Any]) -> None:
    """Notes in a checkpoint whether its training has one endless epoch.

    A module that no Trainer trains notes nothing.
    """
    if trainer is None:
        return
    sampler = getattr(trainer.train_dataloader, "sampler", None)
    bounded = getattr(trainer, "overfit_batches", 0) > 0 or trainer.limit_train_batches != 1.0
    checkpoint[ENDLESS] = isinstance(sampler, EndlessSampler) and not bounded


def align_progress(trainer: Trainer | None, checkpoint: dict[str, Any]) -> None:
    """Makes a checkpoint's counters those between two steps of the one endless epoch.

    Those of a training whose epochs end stay as they are.
    """
    loops = checkpoint.get("loops", {}).get("fit_loop")
    if trainer is None or loops is None or not checkpoint.get(ENDLESS, False):
        return
    step = checkpoint["global_step"]
    batches = step * trainer.accumulate_grad_batches
    done = dict.fromkeys(("ready", "started", "processed", "completed"), batches)
    none = dict.fromkeys(done, 0)
    epoch = {**none, "ready": 1, "started": 1}
    loops["epoch_loop.batch_progress"] = {
        "total": done, "current": dict(done), "is_last_batch": False,
    }  # fmt: skip
    loops["epoch_loop.val_loop.batch_progress"] = {
        "total": none, "current": dict(none), "is_last_batch": False,
    }  # fmt: skip
    loops["epoch_progress"] = {"total": epoch, "current": dict(epoch)}
    # Lightning ends a step once more where it skips the validation that it has had
    skipped = int(_validates_after(trainer, batches))
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - skipped


def _validates_after(trainer: Trainer, batches: int) -> bool:
    every = trainer.val_check_interval
    return (
        trainer.limit_val_batches != 0
        and trainer.check_val_every_n_epoch is None
        and isinstance(every, int)
        and batches % every == 0
    )
