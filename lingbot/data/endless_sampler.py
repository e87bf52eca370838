"""The order of training samples as a function of the seed and the step, and of nothing else.

A training is one endless epoch of shuffled passes over the data. Where it stands is not remembered
by a sampler but read off the number of steps taken, so a run that stops and goes on, in another
process and in the middle of a pass, sees what a run that never stopped does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler


class EndlessSampler(DistributedSampler[Any]):
    """Indices of this rank's batches, one after the other, without end.

    Every pass over the data is shuffled by its own seed and dealt out batch by batch: batch b of a
    pass goes to data rank b modulo the ranks. What does not fill a batch on every rank is left out
    of that pass. (It is a `DistributedSampler` so that a Trainer leaves it alone.)

    Args:
        dataset: sized.
        batch_size: of the loader.
        seed: of the order.
        num_replicas, rank: data ranks, and which one this is.
        position: batches that this rank has trained on; asked for when an iteration begins.

    Raises:
        ValueError: for data that do not fill one batch on every rank.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_size: int,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
        position: Callable[[], int] = lambda: 0,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, seed=seed, drop_last=True)
        self.count = len(dataset)  # type: ignore[arg-type]
        self.batch_size, self.position = batch_size, position
        self.batches = self.count // (batch_size * num_replicas)  # of a pass, on each rank
        if self.batches == 0:
            raise ValueError(
                f"{self.count} training clips do not fill a batch of {batch_size} on "
                f"{num_replicas} data ranks: lower data.batch_size or raise data.train_clips"
            )

    def __iter__(self) -> Iterator[int]:
        batch = self.position()
        while True:
            number, place = divmod(batch, self.batches)
            order = self._order(number)
            for first in range(place, self.batches):
                start = (first * self.num_replicas + self.rank) * self.batch_size
                yield from order[start : start + self.batch_size]
            batch = (number + 1) * self.batches

    def __len__(self) -> int:
        raise TypeError("the samples of a training have no end: it is trainer.max_steps that ends")

    def _order(self, number: int) -> list[int]:
        """The shuffled indices of a pass."""
        generator = torch.Generator().manual_seed((self.seed << 32) + number)
        return torch.randperm(self.count, generator=generator).tolist()
