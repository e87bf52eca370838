"""A checkpoint of sharded weights is a folder: it is there whole, or the one before it is."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from lingbot.checkpoints.run_checkpoint import read_state, read_step
from lingbot.parallel import strategy as strategies
from lingbot.parallel.strategy import ShardedSequenceParallelStrategy
from tests.distributed import run_ranks
from tests.parallel.toy import ShardedToy, train


def _trained(sharded: ShardedSequenceParallelStrategy) -> tuple[ShardedToy, Any]:
    toy = ShardedToy(6)
    return toy, train(toy, batch_size=4, devices=2, strategy=sharded)


def _save_twice(rank: int, path: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The weights after the second save, and which steps were at `path` while it was written."""
    toy, trainer = _trained(ShardedSequenceParallelStrategy(sequence_size=2))
    seen: list[str] = []
    trainer.save_checkpoint(path, weights_only=False)
    replace = strategies.replace_folder

    def look(made: Path, target: Path) -> None:
        seen.append(f"{target.name}: {read_step(target)}, made: {read_step(made)}")
        replace(made, target)

    strategies.replace_folder = look  # type: ignore[assignment]  # of this rank's process alone
    taken = trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    taken.completed = 9
    for parameter in toy.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    trainer.save_checkpoint(path, weights_only=False)
    return toy.whole_weights(), seen


@pytest.mark.processes
def test_a_folder_takes_the_place_of_the_one_before_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    (weights, seen), (_, elsewhere) = run_ranks(_save_twice, 2, str(path))
    assert seen == ["last.ckpt: 2, made: 9"]
    assert not elsewhere  # one rank swaps
    assert read_step(path) == 9
    state = read_state(path)
    assert state.keys() == weights.keys()
    assert all(torch.equal(state[name], weights[name]) for name in weights)
    assert list(tmp_path.iterdir()) == [path]


def _die_in_the_second(rank: int, path: str) -> None:
    """Both ranks are killed when their shards are written and the folder is not in place."""
    _, trainer = _trained(ShardedSequenceParallelStrategy(sequence_size=2))
    trainer.save_checkpoint(path, weights_only=False)
    written = ModelParallelStrategy.save_checkpoint

    def die(*args: Any, **kwargs: Any) -> None:
        written(*args, **kwargs)
        os.kill(os.getpid(), signal.SIGKILL)

    ModelParallelStrategy.save_checkpoint = die  # type: ignore[method-assign]
    trainer.save_checkpoint(path, weights_only=False)


@pytest.mark.processes
def test_ranks_that_are_killed_while_they_write_leave_the_folder_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    with pytest.raises(RuntimeError, match="died without a traceback"):
        run_ranks(_die_in_the_second, 2, str(path))
    assert read_step(path) == 2
    assert all(value.isfinite().all() for value in read_state(path).values())
    (_, again), _ = run_ranks(_save_twice, 2, str(path))  # over what the killed ones left
    assert again == ["last.ckpt: 2, made: 9"]
    assert list(tmp_path.iterdir()) == [path]
