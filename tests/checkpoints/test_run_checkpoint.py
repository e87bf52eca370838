"""Checkpoints of runs: read without running what they contain, and named where they do not fit."""

from __future__ import annotations

import os
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as distributed_checkpoint
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lingbot import train as training
from lingbot import world as worlds
from lingbot.checkpoints.run_checkpoint import check_checkpoint, read_file, read_shapes, read_state
from lingbot.codec.video import load_codec
from lingbot.errors import UserError
from lingbot.train import train
from lingbot.world import load_checkpoint, load_world
from tests.commands import TINY_TRAINING, composed

RAN: list[str] = []


def remember(word: str) -> None:
    RAN.append(word)


class Malice:
    """What a pickle can be made to call."""

    def __reduce__(self):
        return remember, ("malice",)


def saved_run(folder: Path, overrides=TINY_TRAINING, **more) -> Path:
    """A run's folder with the checkpoint of an untrained module; the checkpoint."""
    cfg = composed("train", overrides, folder)
    module = instantiate(cfg.module, _convert_="all")
    module.configure_model()
    checkpoint = {"state_dict": module.state_dict(), "global_step": 3, **more}
    module.on_save_checkpoint(checkpoint)
    path = folder / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    torch.save(checkpoint, path)
    (folder / ".hydra").mkdir()
    OmegaConf.save(cfg, folder / ".hydra" / "config.yaml")
    OmegaConf.save(OmegaConf.create(["model.dim=48"]), folder / ".hydra" / "overrides.yaml")
    return path


def export(arguments, monkeypatch) -> int:
    """Exit code of `python -m lingbot.world`."""
    monkeypatch.setattr(sys, "argv", ["lingbot.world", *map(str, arguments)])
    try:
        worlds.main()
    except SystemExit as end:
        return end.code
    return 0


def test_a_checkpoint_becomes_a_world_that_says_what_it_was_trained_from(tmp_path, monkeypatch):
    checkpoint = saved_run(tmp_path / "run", [*TINY_TRAINING, "frames_per_chunk=2"])
    assert export([checkpoint, tmp_path / "world"], monkeypatch) == 0
    loaded = load_world(tmp_path / "world")
    assert loaded.camera.frames_per_chunk == 2
    trained = worlds.read_world_file(tmp_path / "world").trained
    assert trained["command"] == "lingbot-train model.dim=48"
    assert trained["step"] == 3
    assert trained["versions"]["torch"] == torch.__version__


def test_a_codecs_checkpoint_becomes_a_codec(tmp_path, monkeypatch):
    sizes = [option for option in TINY_TRAINING if option.startswith(("camera", "codec"))]
    small = [
        "experiment=blockworld_codec", *sizes,
        "data.num_frames=5", "data.train_clips=2", "data.val_clips=1", "data.batch_size=1",
        "data.num_workers=0", "module.statistics_batches=2",
    ]  # fmt: skip
    checkpoint = saved_run(tmp_path / "run", small)
    assert export([checkpoint, tmp_path / "codec"], monkeypatch) == 0
    codec = load_codec(tmp_path / "codec")
    held = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, value in codec.vae.state_dict().items():
        assert torch.equal(value, held[f"codec.vae.{name}"].half().float())
    assert codec.vae.config.latents_std != [1.0] * 16  # measured
    assert export([checkpoint, tmp_path / "codec"], monkeypatch) == 0  # in its place
    assert export([checkpoint, tmp_path / "run"], monkeypatch) == 2
    with pytest.raises(ValueError, match="is of a CodecModule: it holds no world"):
        load_checkpoint(checkpoint)


def test_a_runs_configuration_runs_nothing_that_is_not_vouched_for(tmp_path, monkeypatch, capsys):
    checkpoint = saved_run(tmp_path / "run")
    file = tmp_path / "run" / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(file)
    called = {"_target_": "tests.checkpoints.test_run_checkpoint.remember", "_args_": ["called"]}
    OmegaConf.update(cfg, "module.seed", called, force_add=True)
    OmegaConf.save(cfg, file)
    assert export([checkpoint, tmp_path / "world"], monkeypatch) == 2
    told = capsys.readouterr().err
    assert "config.yaml: module.seed names 'tests.checkpoints" in told
    assert "--trust-run-code" in told
    assert not RAN
    export([checkpoint, tmp_path / "world", "--trust-run-code"], monkeypatch)
    assert RAN.pop() == "called"


@pytest.mark.parametrize(
    "text", ["{", "a: !!python/object/apply:os.system ['true']", "- 1", "", "command: train"]
)
def test_a_configuration_that_cannot_be_read_is_named(text, tmp_path, monkeypatch, capsys):
    checkpoint = saved_run(tmp_path / "run")
    (tmp_path / "run" / ".hydra" / "config.yaml").write_text(text)
    assert export([checkpoint, tmp_path / "world"], monkeypatch) == 2
    assert "config.yaml" in capsys.readouterr().err


def malicious(path: Path) -> None:
    torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Malice()}, path)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5000]), "cut off"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_text("text"), "cannot be read"),
        (lambda path: torch.save([1], path), "holds no state_dict"),
        (lambda path: torch.save({"state_dict": 5}, path), "holds no state_dict"),
        (malicious, "cannot be read"),
        (lambda path: (path.unlink(), os.mkfifo(path)), "a pipe or a device"),
    ],
)
def test_a_checkpoint_that_cannot_be_read_is_named(breaks, told, tmp_path, monkeypatch, capsys):
    checkpoint = saved_run(tmp_path / "run")
    breaks(checkpoint)
    assert export([checkpoint, tmp_path / "world"], monkeypatch) == 2
    error = capsys.readouterr().err
    assert "last.ckpt" in error
    assert told in error
    assert not RAN


def test_a_checkpoint_of_other_sizes_is_not_gone_on_from(tmp_path):
    checkpoint = saved_run(tmp_path / "run")
    other = [*TINY_TRAINING, "model.ffn_dim=96", f"ckpt_path='{checkpoint}'", "export_dir=null"]
    with pytest.raises(
        UserError, match=r"last\.ckpt does not hold what this command's .*ffn.*\[64, 48\] there and"
    ):
        train(composed("train", other, tmp_path / "on"))
    codec = ["module=codec_training", "data=blockworld_frames", "data.num_workers=0"]
    other = [*TINY_TRAINING, *codec, f"ckpt_path='{checkpoint}'"]
    with pytest.raises(UserError, match=r"last\.ckpt does not hold what"):
        train(composed("train", other, tmp_path / "on"))


class Odd(training.LingBotModule):
    """A module whose transformer has more than a world's."""

    def configure_model(self) -> None:
        super().configure_model()
        self.transformer.more = torch.nn.Linear(2, 2)


def test_a_transformer_that_cannot_be_exported_is_refused_before_it_is_trained(tmp_path):
    odd = ["module._target_=tests.checkpoints.test_run_checkpoint.Odd", "callbacks=none"]
    with pytest.raises(UserError, match=r"2 tensors that a world does not have \(more\.bias"):
        train(composed("train", [*TINY_TRAINING, *odd], tmp_path))


@pytest.fixture
def shards(tmp_path):
    """A checkpoint as ranks with sharded weights leave it, with a small value that is no tensor."""
    state = {"state_dict": {"transformer.a": torch.arange(4.0)}, "optimizer": {"lr": 0.1}}
    distributed_checkpoint.save(state, checkpoint_id=tmp_path / "last.ckpt", no_dist=True)
    torch.save({"global_step": 5}, tmp_path / "last.ckpt" / "meta.pt")
    return tmp_path / "last.ckpt"


def test_shards_are_read_without_torch_running_their_index(shards):
    check_checkpoint(shards)
    assert torch.equal(read_state(shards)["transformer.a"], torch.arange(4.0))
    with pytest.raises(ValueError, match="strategy=sharded_sequence_parallel"):
        check_checkpoint(shards, folders=False)


@pytest.mark.parametrize("place", ["index", "value", "rest"])
def test_shards_that_would_run_code_are_refused_unless_vouched_for(place, shards):
    if place == "index":
        (shards / ".metadata").write_bytes(pickle.dumps(Malice()))
    elif place == "rest":
        torch.save({"x": Malice()}, shards / "meta.pt")
    else:
        shutil.rmtree(shards)
        state = {"state_dict": {"transformer.a": torch.arange(4.0)}, "x": Malice()}
        distributed_checkpoint.save(state, checkpoint_id=shards, no_dist=True)
    with pytest.raises(ValueError, match=r"trust_run_code=true|meta\.pt cannot be read"):
        check_checkpoint(shards)
    assert not RAN
    check_checkpoint(shards, trusted=True)


def test_shapes_of_shards_come_from_their_index(shards):
    assert {name: tuple(t.shape) for name, t in read_shapes(shards).items()} == {
        "transformer.a": (4,)
    }


def test_a_checkpoint_file_is_mapped_not_copied(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"a": torch.ones(3)}}, path)
    assert torch.equal(read_file(path)["state_dict"]["a"], torch.ones(3))
