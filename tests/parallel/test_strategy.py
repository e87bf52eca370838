"""The strategies at the Trainer: one process = data x sequence, launching, sharing batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from lingbot.model.exchange import LocalExchange
from lingbot.parallel.strategy import SequenceParallelStrategy, ShardedSequenceParallelStrategy
from tests.distributed import run_ranks
from tests.parallel.toy import HEADS, Clips, ShardedToy, Toy, train

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
SILENT = {**QUIET, "enable_progress_bar": False, "enable_model_summary": False}


def _trained(rank: int, sharded: bool, data: int, sequence: int, tokens: int) -> dict[str, Any]:
    toy = (ShardedToy if sharded else Toy)(tokens)
    cls = ShardedSequenceParallelStrategy if sharded else SequenceParallelStrategy
    trainer = train(
        toy,
        batch_size=4 // data,
        devices=data * sequence,
        poison=float(rank % sequence),  # only the batch of a group's first rank is right
        strategy=cls(data_size=data, sequence_size=sequence),
    )
    path = trainer.strategy.exchange(tokens, HEADS).path
    return {
        "losses": toy.losses,
        "names": toy.names,
        "weights": toy.whole_weights(),
        "path": path,
    }


@pytest.mark.processes
@pytest.mark.parametrize(
    ("sharded", "data", "sequence", "tokens", "path"),
    [
        (False, 1, 2, 6, "uniform"),
        (False, 1, 3, 7, "variable"),
        (False, 2, 2, 7, "variable"),
        (False, 2, 1, 7, "local"),
        (True, 2, 2, 6, "uniform"),
        (True, 1, 2, 7, "variable"),
    ],
)
def test_one_process_equals_data_by_sequence_in_loss_and_weights(
    sharded: bool, data: int, sequence: int, tokens: int, path: str
):
    alone = Toy(tokens)
    train(alone, batch_size=4)
    ranks = run_ranks(_trained, data * sequence, sharded, data, sequence, tokens)
    groups = [ranks[i : i + sequence] for i in range(0, len(ranks), sequence)]
    for group in groups:
        assert all(rank["names"] == group[0]["names"] for rank in group)
        assert all(rank["losses"] == group[0]["losses"] for rank in group)
    if data == 2:
        seen = [set(" ".join(group[0]["names"]).split()) - {"clip"} for group in groups]
        assert seen[0].isdisjoint(seen[1])
    losses = torch.tensor([group[0]["losses"] for group in groups]).mean(0)
    torch.testing.assert_close(losses, torch.tensor(alone.losses))
    for rank in ranks:
        assert rank["path"] == path
        for name, weight in alone.whole_weights().items():
            torch.testing.assert_close(rank["weights"][name], weight, msg=name)


@dataclass
class Step:
    """What a live source yields: plain values, a small tensor, a large one, nothing."""

    number: int
    small: Tensor
    large: Tensor
    prompt: str | None = None
    more: dict[str, Any] = field(default_factory=dict)


def _step(number: int) -> Step:
    large = torch.full((300, 300), number, dtype=torch.bfloat16)
    return Step(number, large[0, :3], large, more={"views": (large[:0], torch.arange(number))})


class Live:
    """A drive that says 1000 and ends after three, and counts who reads it."""

    reads = 0

    def __len__(self) -> int:
        return 1000

    def __iter__(self) -> Iterator[Step]:
        for number in range(3):
            self.reads += 1
            yield _step(number)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Tensor]:
        for number in range(4):
            if number == 3:
                raise OSError("the stream broke")
            yield torch.tensor(number)


class Follows(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def predict_step(self, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch)


def _driven(rank: int) -> dict[str, Any]:
    trainer = pl.Trainer(devices=2, strategy=SequenceParallelStrategy(), **SILENT)
    live, module = Live(), Follows()
    trainer.predict(module, live, return_predictions=False)
    streamed = Follows()
    loader = DataLoader(Stream(), batch_size=None)
    with pytest.raises(OSError if rank == 0 else RuntimeError) as error:
        trainer.predict(streamed, loader, return_predictions=False)
    return {
        "reads": live.reads,
        "seen": module.seen,
        "streamed": [int(number) for number in streamed.seen],
        "error": str(error.value),
        "random": torch.get_rng_state(),
    }


@pytest.mark.processes
def test_only_the_first_rank_reads_a_live_source_and_all_ranks_see_end_and_failure():
    first, second = run_ranks(_driven, 2)
    assert (first["reads"], second["reads"]) == (3, 0)
    for rank in (first, second):
        assert [step.number for step in rank["seen"]] == [0, 1, 2]
        # without a length Lightning reads one item ahead of the step
        assert rank["streamed"] == [0, 1]
        for number, step in enumerate(rank["seen"]):
            expected = _step(number)
            assert torch.equal(step.small, expected.small)
            assert torch.equal(step.large, expected.large)
            assert step.more["views"][0].shape == (0, 300)
            assert torch.equal(step.more["views"][1], torch.arange(number))
    assert first["error"] == "the stream broke"
    assert "first rank of this sequence group could not read" in second["error"]
    assert torch.equal(first["random"], second["random"])


def _unsharded(rank: int) -> None:
    with pytest.raises(TypeError, match=r"10 trained parameters are not sharded \(embed.weight"):
        train(Toy(6), batch_size=4, devices=2, strategy=ShardedSequenceParallelStrategy())


@pytest.mark.processes
def test_training_unsharded_weights_under_the_sharded_strategy_is_refused():
    run_ranks(_unsharded, 2)


@contextmanager
def _fake_world(rank: int, world: int, **kwargs: Any) -> Iterator[SequenceParallelStrategy]:
    """The strategy as rank `rank` of a Trainer with `world` devices, in this one process."""
    strategy = SequenceParallelStrategy(process_group_backend="fake", **kwargs)
    strategy.parallel_devices = [torch.device("cpu")] * world
    strategy.cluster_environment = SimpleNamespace(
        global_rank=lambda: rank, world_size=lambda: world, local_rank=lambda: rank
    )
    strategy._configure_launcher()
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        strategy._make_mesh()
        yield strategy
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(("data", "sequence"), [(1, 8), (2, 4), (4, 2), (8, 1)])
def test_eight_ranks_share_samples_within_groups_and_split_them_between(
    data: int, sequence: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    clips = Clips(tokens=2)
    seen: dict[int, list[int]] = {}
    for rank in range(8):
        with _fake_world(rank, 8, sequence_size=sequence) as strategy:
            assert (strategy.data_size, strategy.sequence_size) == (data, sequence)
            assert strategy.data_rank == rank // sequence
            assert strategy.device_mesh.get_local_rank("data") == strategy.data_rank
            assert strategy.device_mesh.get_local_rank("sequence") == strategy.sequence_rank
            kwargs = strategy.distributed_sampler_kwargs
            samples = list(DistributedSampler(clips, shuffle=True, **kwargs))
            assert seen.setdefault(strategy.data_rank, samples) == samples
            loader = strategy.process_dataloader(DataLoader(clips))
            assert loader.worker_init_fn.keywords == {"rank": strategy.data_rank}
    assert sorted(index for samples in seen.values() for index in samples) == list(
        range(len(clips))
    )


def test_a_world_that_does_not_fit_the_mesh_is_refused_before_processes_start():
    with pytest.raises(ValueError, match=r"world of 4 ranks.*4 x 1, 2 x 2, 1 x 4"):
        pl.Trainer(devices=4, strategy=SequenceParallelStrategy(sequence_size=3), **SILENT)
    with pytest.raises(ValueError, match=r"data_size=2 x sequence_size=4.*2 x 2"):
        pl.Trainer(
            devices=4,
            strategy=ShardedSequenceParallelStrategy(sequence_size=4, data_size=2),
            **SILENT,
        )


def test_heads_and_tokens_that_do_not_fit_are_refused_without_processes():
    strategy = SequenceParallelStrategy(uniform_fast_path=True)
    with pytest.raises(RuntimeError, match="once a Trainer has taken the strategy"):
        strategy.check(tokens=180, heads=12)
    pl.Trainer(devices=4, strategy=strategy, **SILENT)
    strategy.check(tokens=180, heads=12)
    with pytest.raises(ValueError, match=r"10 attention heads.* 1, 2, 5, 10"):
        strategy.check(tokens=180, heads=10)
    with pytest.raises(ValueError, match="at most 3 ranks"):
        strategy.check(tokens=3, heads=12)
    with pytest.raises(ValueError, match="equal splits"):
        strategy.check(tokens=181, heads=12)


@pytest.mark.parametrize(
    "bad", [{"sequence_size": 0}, {"data_size": "2"}, {"timeout_s": 0}, {"uniform_fast_path": "no"}]
)
def test_bad_arguments_are_refused_by_name(bad: dict[str, Any]):
    with pytest.raises(ValueError, match=f"{next(iter(bad))}|timeout"):
        pl.Trainer(devices=1, strategy=SequenceParallelStrategy(**bad), **SILENT)


def test_one_device_under_the_registered_name_needs_no_exchange():
    assert "sequence_parallel" in StrategyRegistry.available_strategies()
    trainer = pl.Trainer(devices=1, strategy="sequence_parallel", **SILENT)
    assert isinstance(trainer.strategy.exchange(180, HEADS), LocalExchange)


SCRIPT = """
import json, sys
from pathlib import Path
from lingbot.parallel.strategy import SequenceParallelStrategy
from tests.parallel.toy import Toy, train

toy = Toy(7)
trainer = train(toy, batch_size=4, devices=2, strategy=SequenceParallelStrategy())
Path(sys.argv[1], f"{trainer.global_rank}.json").write_text(json.dumps(toy.losses))
"""


@pytest.mark.processes
def test_a_plain_trainer_launches_its_own_processes(tmp_path: Path, repository: Path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    alone = Toy(7)
    train(alone, batch_size=4)
    for rank in range(2):
        losses = json.loads((tmp_path / f"{rank}.json").read_text())
        assert losses == pytest.approx(alone.losses)


def _forked(rank: int) -> dict[str, Tensor]:
    toy = Toy(6)
    toy.configure_model()  # so that the weights come back to this process
    train(toy, batch_size=4, devices=2, strategy=SequenceParallelStrategy(start_method="fork"))
    return toy.whole_weights()


@pytest.mark.processes
def test_processes_can_be_forked_as_from_a_notebook():
    alone = Toy(6)
    train(alone, batch_size=4)
    [weights] = run_ranks(_forked, 1, group=False)
    for name, weight in alone.whole_weights().items():
        torch.testing.assert_close(weights[name], weight, msg=name)


def _under_torchrun(rank: int, port: int) -> list[float]:
    """The environment that torchrun makes, without starting its interpreters."""
    os.environ.update(
        TORCHELASTIC_RUN_ID="run", LOCAL_RANK=str(rank), RANK=str(rank), GROUP_RANK="0",
        WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
    )  # fmt: skip
    toy = Toy(7)
    trainer = train(toy, batch_size=4, devices=2, strategy=SequenceParallelStrategy())
    assert isinstance(trainer.strategy.cluster_environment, TorchElasticEnvironment)
    return toy.losses


@pytest.mark.processes
def test_processes_of_torchrun_are_joined():
    alone = Toy(7)
    train(alone, batch_size=4)
    for losses in run_ranks(_under_torchrun, 2, find_free_network_port(), group=False):
        assert losses == pytest.approx(alone.losses)
