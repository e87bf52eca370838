"""lingbot-train: what it returns and leaves, and that a world it made can be driven."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from lightning import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf
from safetensors.torch import load_file

from lingbot.generate import generate
from lingbot.launch import UserError
from lingbot.learning_rate import warmup_cosine
from lingbot.train import train
from lingbot.world import load_checkpoint
from tests.commands import TINY_DRIVE, TINY_TRAINING, composed
from tests.distributed import run_ranks


def test_a_trained_world_is_measured_saved_resumed_and_driven(tmp_path):
    world = ["experiment=blockworld_world", *TINY_TRAINING]
    cfg = composed("train", world, tmp_path)
    metrics = train(cfg)
    assert {"train/loss", "val/loss"} <= set(metrics)
    assert all(math.isfinite(value) for value in metrics.values())
    (folder,) = (tmp_path / "train").iterdir()
    assert list((folder / "contact_sheets").glob("*.png"))

    resumed = [f"ckpt_path='{folder}/checkpoints/last.ckpt'", "trainer.max_steps=3"]
    onward = ["trainer.val_check_interval=1", "logger=none", "callbacks=none"]
    cfg = composed("train", [*world, *resumed, *onward], tmp_path / "resumed")
    assert math.isfinite(train(cfg)["train/loss"])

    made = [f"weights='{folder}/world'", "codec=world", "codec.dtype=float32", "num_steps=1"]
    tiny = [o for o in TINY_DRIVE if not o.startswith(("codec", "weights"))]
    assert generate(composed("generate", [*tiny, *made], tmp_path))["frames"] == 9


class Stop(Callback):
    """Ends a fit as a signal would, after its second step."""

    def __init__(self, error: str) -> None:
        self.error = {
            "Ctrl-C": KeyboardInterrupt,
            "SIGTERM": SIGTERMException,
            "bug": RuntimeError,
        }[error]

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == 2:
            raise self.error


@pytest.mark.parametrize("error", ["Ctrl-C", "SIGTERM", "bug"])
def test_an_interrupted_training_goes_on_where_it_was(tmp_path, error):
    longer = ["trainer.max_steps=3", "trainer.val_check_interval=3", "callbacks.contact_sheet=null"]
    stop = [f"+callbacks.stop={{_target_: tests.test_train.Stop, error: {error}}}"]
    cfg = composed("train", [*TINY_TRAINING, *longer, *stop], tmp_path)
    with pytest.raises((SystemExit, RuntimeError)):
        train(cfg)
    (folder,) = (tmp_path / "train").iterdir()
    last = folder / "checkpoints" / "last.ckpt"
    assert last.is_file() is (error != "bug")
    if last.is_file():
        assert torch.load(last, weights_only=False)["global_step"] == 2
        onward = [f"ckpt_path='{last}'", "export_dir=null"]
        assert math.isfinite(
            train(composed("train", [*TINY_TRAINING, *longer, *onward], tmp_path / "on"))[
                "train/loss"
            ]
        )


class Signal(Callback):
    """Sends a process a signal after a step, or in its next validation."""

    def __init__(self, number: int, step: int, validating: bool) -> None:
        self.number, self.step, self.validating = number, step, validating

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step and not self.validating:
            os.kill(os.getpid(), self.number)

    def on_validation_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step and self.validating:
            os.kill(os.getpid(), self.number)


def _train(rank: int, folder: str, overrides: list[str]) -> tuple[str, float, bool]:
    """How a fit on two ranks ends, with which loss, and whether signals are as they were."""
    ranks = ["trainer.devices=2", "trainer.max_steps=6", f"paths.output_dir='{folder}'"]
    quiet = ["callbacks.contact_sheet=null", "export_dir=null"]
    cfg = composed("train", [*TINY_TRAINING, *ranks, *quiet, *overrides])
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    how, loss = "done", math.nan
    try:
        loss = train(cfg)["train/loss"]
    except SystemExit as end:
        how = type(end.__context__ or end).__name__
    after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return how, loss, after == before


@pytest.mark.processes
@pytest.mark.parametrize(
    ("strategy", "number", "validating", "ends"),
    [
        ("sequence_parallel", signal.SIGTERM, False, ["SIGTERMException", "SIGTERMException"]),
        ("sharded_sequence_parallel", signal.SIGINT, True, ["KeyboardInterrupt"]),
    ],
    ids=["after a step", "in validation"],
)
def test_ranks_end_together_whichever_is_told_and_go_on_as_if_nothing_had_been(
    tmp_path, strategy, number, validating, ends
):
    data, folder = f"paths.data_dir='{tmp_path}/data'", tmp_path / "run"
    common = [data, f"strategy={strategy}", "trainer.val_check_interval=2"]
    whole = run_ranks(_train, 2, str(tmp_path / "whole"), common, timeout=120)
    told = f"number: {int(number)}, step: {4 if validating else 3}, validating: {validating}"
    told = f"+callbacks.told={{_target_: tests.test_train.Signal, {told}}}"
    ended = run_ranks(_interrupted, 2, str(folder), common, told, timeout=120)
    assert [how for how, *_ in ended][: len(ends)] == ends
    last = folder / "checkpoints" / "last.ckpt"
    assert last.is_dir() is strategy.startswith("sharded")
    assert not list(last.parent.glob("unfinished*"))
    onward = [*common, f"ckpt_path='{last}'"]
    resumed = run_ranks(_train, 2, str(tmp_path / "on"), onward, timeout=120)
    assert resumed == whole == [("done", whole[0][1], True)] * 2


def _interrupted(rank: int, folder: str, overrides: list[str], told: str) -> tuple:
    """The second rank alone is told."""
    return _train(rank, folder, [*overrides, told] if rank else overrides)


def _train_sharded(rank: int, folder: str, overrides: list[str]) -> float:
    sharded = ["trainer.devices=2", "strategy=sharded_sequence_parallel"]
    place = f"paths.output_dir='{folder}'"
    cfg = composed("train", [*TINY_TRAINING, *sharded, place, *overrides])
    loss = train(cfg)["train/loss"]
    if rank == 0:
        (Path(folder) / ".hydra").mkdir()
        OmegaConf.save(cfg, Path(folder) / ".hydra" / "config.yaml")
    return loss


@pytest.mark.processes
def test_sharded_weights_are_exported_whole_and_resumed(tmp_path):
    data, folder = f"paths.data_dir='{tmp_path}/data'", tmp_path / "run"
    loss, _ = run_ranks(_train_sharded, 2, str(folder), [data], timeout=120)
    last = folder / "checkpoints" / "last.ckpt"
    kept = load_checkpoint(last)
    for part in ("transformer", "text_encoder"):
        exported = load_file(folder / "world" / f"{part}.safetensors")
        state = getattr(kept, part).state_dict()
        assert exported.keys() == state.keys()
        for name, value in exported.items():
            assert torch.equal(value, state[name].half()), name

    # now the clips are there, on which no rank's weights may depend; and validation comes last
    quiet = [data, "callbacks=none", "logger=none", "+trainer.enable_checkpointing=false"]
    for again in run_ranks(_train_sharded, 2, str(tmp_path / "again"), quiet, timeout=120):
        assert again == loss
    same = load_file(tmp_path / "again" / "world" / "text_encoder.safetensors")
    assert all(torch.equal(same[name], value) for name, value in exported.items())

    onward = [f"ckpt_path='{last}'", "trainer.max_steps=3", "callbacks=none", "logger=none", data]
    run_ranks(_train_sharded, 2, str(tmp_path / "on"), onward, timeout=120)
    moved = load_file(tmp_path / "on" / "world" / "transformer.safetensors")
    head = "head.head.weight"
    assert not torch.equal(moved[head], kept.transformer.state_dict()[head].half())


TINY_CODEC_TRAINING = [
    "experiment=blockworld_codec", *TINY_TRAINING, "data.num_frames=5", "module.crops=null",
]  # fmt: skip


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_trained_codec_is_saved(tmp_path, precision):
    own = [f"trainer.precision={precision}"]
    metrics = train(composed("train", [*TINY_CODEC_TRAINING, *own], tmp_path))
    assert math.isfinite(metrics["val/psnr"])
    assert list(tmp_path.glob("train/*/codec/config.json"))


def test_trained_weights_are_kept_when_what_comes_after_the_last_step_fails(tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no room for statistics")

    monkeypatch.setattr("lingbot.codec.training.latent_statistics", fail)
    with pytest.raises(RuntimeError, match="no room for statistics"):
        train(composed("train", [*TINY_CODEC_TRAINING, "trainer.max_steps=3"], tmp_path))
    (last,) = tmp_path.glob("train/*/checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["global_step"] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=-1"], "seed=-1"),
        (["data.num_frames=20"], "num_frames=20"),
        (["objective.history_noise=2"], "history_noise"),
        (["trainer.devices=3", "strategy=sequence_parallel"], "1, 2, 4"),
        (["module=codec_training", "strategy=sequence_parallel"], "no tokens to split"),
        (["module=codec_training", "callbacks=train_speed"], "callbacks=train_speed out"),
        (["callbacks=train_speed", "+trainer.accumulate_grad_batches=2"], "steps of one batch"),
        (["trainer.precision=bf16-true"], "choose bf16-mixed"),
        (["ckpt_path=nowhere/last.ckpt"], "no checkpoint at nowhere"),
        (["ckpt_path=conf"], "checkpoints folder of a run"),
        (["export_dir=conf"], "something else than a world"),
        (["+model.widht=3"], "widht"),
        (["data.num_frames=-3"], "data.num_frames=-3"),
        (["data.batch_size=0"], "data.batch_size=0"),
        (["data.batch_size=1.5"], "data.batch_size=1.5"),
        (["data.batch_size=9"], "data.batch_size=9: .* to 2"),
        (["data.val_batch_size=0"], "data.val_batch_size=0"),
        (["data.encode_batch_size=0"], "data.encode_batch_size=0"),
        (["data.latent_frames=100"], "data.latent_frames=100: .* to 6"),
        (["data.num_workers=-1"], "data.num_workers=-1"),
        (["data.num_workers=100000"], "data.num_workers=100000"),
        (["data.height=20"], "data.height=20 and camera.height=32"),
        (["data.height=64"], "data.height=64 and camera.height=32 must be alike"),
        (["data.train_clips=10000000", "camera.height=96"], "GiB of memory .* fewer or shorter"),
        (["+data.device=abc"], "device='abc'"),
        (["+data.device=cuda:99"], "device='cuda:99'"),
        (["trainer.devices=3"], "data.train_clips=2: 3 data ranks"),
        (["trainer.max_steps=0"], "trainer.max_steps=0: nothing would be done"),
        (["optimizer.lr=inf"], "optimizer.lr=inf"),
        (["optimizer.lr=nan"], "optimizer.*nan"),
        (["optimizer.lr=abc"], "optimizer: "),
        (["optimizer.betas=[2,2]"], "beta"),
        (["optimizer.weight_decay=-1"], "weight_decay"),
        (["+optimizer.foo=1"], "optimizer: .*'foo'"),
        (["optimizer._target_=torch.nothing"], "module.optimizer._target_: .*torch.nothing"),
        (["scheduler.total_steps=-1"], "scheduler"),
        (["scheduler.floor=2"], "scheduler.floor=2"),
        (["optimizer=muon", "optimizer.momentum=1"], "optimizer.momentum=1"),
        (["optimizer=muon", "optimizer.adam_ratio=nan"], "optimizer.adam_ratio=nan"),
        (["objective.few_step_indices=[]"], "objective.few_step_indices=[]"),
        (["objective.schedule=null"], "objective.schedule=None"),
        (["module.objective=null"], "module.objective=null"),
        (["module.optimizer=null"], "module.optimizer=null"),
        (["module=codec_training", "module.kl_weight=nan"], "module.kl_weight=nan"),
        (["module=codec_training", "module.crops=[[1,5]]"], "module.crops"),
        (["model.num_layers=1000000"], "GiB of memory would be needed"),
        (["codec.base_dim=4096", "codec.dim_mult=[1,1,1]"], "GiB of memory would be needed"),
        (["callbacks.last_checkpoint.path=null"], "callbacks.last_checkpoint: "),
        (["trainer.max_epochs=3"], "trainer.max_epochs=3: .*trainer.max_steps"),
        (["trainer.max_steps=-1"], "scheduler.total_steps=-1: .*trainer.max_steps"),
        (["+trainer.limit_train_batches=0.5"], "trainer.limit_train_batches=0.5"),
        (["trainer.val_check_interval=0.5"], "val_check_interval"),
        (["callbacks.checkpoint.monitor=val/los"], "monitors 'val/los'.*val/loss"),
        (["paths.data_dir=/proc/x"], "paths.data_dir: .*/proc takes no files"),
        (["export_dir=/proc/x"], "export_dir: .*/proc takes no files"),
        (
            ["callbacks.checkpoint.dirpath=/proc/x"],
            "callbacks.checkpoint.dirpath: .*takes no files",
        ),
        (["callbacks.last_checkpoint.path=/proc/last.ckpt"], "/proc takes no files"),
        (
            ["callbacks.last_checkpoint.path=conf"],
            "conf is a folder: give the path of a checkpoint",
        ),
        (
            ["module=codec_training", "callbacks=none", "module.export_to=/proc/x"],
            "module.export_to",
        ),
        (
            ["module=codec_training", "callbacks=none", "module.export_to=conf"],
            "something else than",
        ),
        (["module.initialise=abc"], "module.initialise='abc'"),
        (["strategy=ddp", "+strategy.foo=1"], "strategy.foo: DistributedDataParallel takes no"),
        (["objective.nonsense=1"], "objective.nonsense: there is no such option"),
    ],
)
def test_bad_values_are_refused_before_training(overrides, message, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning.Trainer.fit", pytest.fail)
    given = {override.split("=")[0] for override in overrides}
    kept = [override for override in TINY_TRAINING if override.split("=")[0] not in given]
    cfg = composed("train", [*kept, *overrides], tmp_path)
    with pytest.raises(UserError, match=message.replace("[", r"\[")):
        train(cfg)


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


@pytest.mark.parametrize(
    ("total", "options", "told"),
    [
        (20, {"warmup_steps": 30}, "scheduler.warmup_steps=30 must lie .* or leave it out"),
        (20, {"warmup_steps": -1}, "scheduler.warmup_steps=-1"),
        (20, {"warmup_steps": 1, "floor": 1.5}, "scheduler.floor=1.5"),
        (20, {"warmup_steps": None, "warmup_fraction": 1.5}, "scheduler.warmup_fraction=1.5"),
        (-1, {"warmup_steps": None}, "scheduler.total_steps=-1: .* or scheduler=constant"),
    ],
)
def test_schedules_that_cannot_be_are_refused(total, options, told):
    with pytest.raises(ValueError, match=told):
        warmup_cosine(optimizer(), total_steps=total, **options)


@pytest.mark.parametrize(
    ("total", "warmup"),
    [(1, 0), (10, 0), (20, 1), (200, 10), (1000, 50), (10_000, 500), (10**6, 500)],
)
def test_a_warm_up_that_is_not_given_follows_the_length_of_the_run(total, warmup):
    derived = warmup_cosine(optimizer(), None, total)
    given = warmup_cosine(optimizer(), warmup, total)
    for step in (0, warmup // 2, warmup, warmup + 1, total):
        assert derived.lr_lambdas[0](step) == given.lr_lambdas[0](step)


@pytest.mark.parametrize(
    ("name", "warmup"),
    [("blockworld_codec", 40), ("blockworld_world", 100), ("blockworld_world_cpu", 20)],
)
def test_warm_ups_of_the_experiments(name, warmup):
    def factors(scheduler) -> list[float]:
        rate = instantiate(scheduler)(optimizer()).lr_lambdas[0]
        return [rate(step) for step in range(warmup + 2)]

    cfg = composed("train", [f"experiment={name}", "codec=blockworld_untrained"])
    given = composed("train", [f"experiment={name}", "codec=blockworld_untrained",
                               f"scheduler.warmup_steps={warmup}"])  # fmt: skip
    assert factors(cfg.scheduler) == factors(given.scheduler)


def test_a_training_without_a_logger_needs_no_other_word(tmp_path):
    for callbacks in ("train", "train_codec"):
        cfg = composed("train", [*TINY_CODEC_TRAINING, "logger=none", f"callbacks={callbacks}",
                                 "callbacks.checkpoint.monitor=val/psnr",
                                 "callbacks.contact_sheet=null"], tmp_path)  # fmt: skip
        assert math.isfinite(train(cfg)["val/psnr"])
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.processes
@pytest.mark.skipif(find_spec("hydra_plugins") is None, reason="needs the extra [sweeps]")
def test_a_sweep_without_its_metric_ends_before_training_in_one_line(tmp_path):
    typed = ["-m", *TINY_TRAINING, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2",
             "optimizer.lr=interval(0.001,0.01)", "trainer.val_check_interval=5",
             f"paths.root_dir={tmp_path}"]  # fmt: skip
    command = [sys.executable, "-m", "lingbot.train", *typed]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2
    assert "optimized_metric='val/loss': this training never validates" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("*.safetensors"))  # no clip was encoded
