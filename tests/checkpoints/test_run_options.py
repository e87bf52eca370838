"""A training goes on by its checkpoint alone, with the options that it began with."""

from __future__ import annotations

import csv
import shutil
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from lingbot import train
from lingbot.launch import compose_command
from tests.commands import TINY_TRAINING

BEGUN = [
    *TINY_TRAINING, "objective.history_noise=0.25", "optimizer=muon", "optimizer.lr=0.004",
    "data.train_clips=3", "trainer.log_every_n_steps=1", "callbacks.contact_sheet=null",
    "frames_per_chunk=2", "data.num_frames=13", "seed=7",
]  # fmt: skip


def run(monkeypatch, *typed: str) -> int:
    """Exit code of lingbot-train."""
    monkeypatch.setattr(sys, "argv", ["lingbot-train", *typed])
    try:
        train.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> Path:
    """A run of two steps: RUN/checkpoints/last.ckpt."""
    folder = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        place = [f"paths.output_dir={folder}/run", f"paths.data_dir={folder}/data"]
        assert run(patch, *BEGUN, *place) == 0
    return folder / "run"


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def options(ckpt: Path, *typed: str):
    return compose_command("train", [f"ckpt_path='{ckpt}'", *typed])


def test_a_checkpoint_alone_goes_on_with_the_options_of_its_run(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    encoded = {file.stat().st_mtime_ns for file in (begun.parent / "data").iterdir()}
    onward = [f"ckpt_path={last(begun)}", "trainer.max_steps=4", "paths.output_dir=on"]
    assert run(monkeypatch, *onward) == 0
    made = torch.load(last(Path("on")), weights_only=True)
    assert made["global_step"] == 4
    cfg = OmegaConf.load("on/.hydra/config.yaml")
    assert (cfg.objective.history_noise, cfg.optimizer.lr, cfg.seed) == (0.25, 0.004, 7)
    assert (cfg.optimizer._target_, cfg.frames_per_chunk) == ("lingbot.muon.Muon", 2)
    assert cfg.trainer.max_steps == 4
    assert cfg.model.dim == 48
    assert {file.stat().st_mtime_ns for file in (begun.parent / "data").iterdir()} == encoded
    with open("on/metrics/metrics.csv") as file:
        assert [int(row["step"]) for row in csv.DictReader(file) if row["train/loss"]] == [2, 3]
    assert Path("on/world/world.json").is_file()
    assert not (begun / "metrics" / "metrics.csv.1").exists()  # the run before stays as it was

    # and once more, from the one that went on
    again = [f"ckpt_path={last(Path('on'))}", "trainer.max_steps=5", "paths.output_dir=again"]
    assert run(monkeypatch, *again) == 0
    assert torch.load(last(Path("again")), weights_only=True)["global_step"] == 5


def test_what_is_typed_wins_where_the_weights_allow_it(begun):
    cfg = options(
        last(begun), "optimizer=adamw", "optimizer.lr=0.1", "data.batch_size=3", "logger=none",
        "~callbacks.learning_rate", "+trainer.accumulate_grad_batches=2", "codec.dtype=bfloat16",
        "frames_per_chunk=4", "paths.root_dir=elsewhere", "debug=overfit",
    )  # fmt: skip
    assert (cfg.optimizer._target_, cfg.optimizer.lr) == ("torch.optim.AdamW", 0.1)
    assert "momentum" not in cfg.optimizer
    assert (cfg.data.batch_size, cfg.data.train_clips, cfg.frames_per_chunk) == (3, 3, 4)
    assert "learning_rate" not in cfg.callbacks
    assert cfg.callbacks.contact_sheet is None
    assert (cfg.logger, cfg.trainer.accumulate_grad_batches) == ({}, 2)
    assert (cfg.trainer.overfit_batches, cfg.trainer.max_steps) == (1, 200)
    assert cfg.paths.data_dir == "elsewhere/data"
    assert cfg.codec.dtype == "bfloat16"
    assert cfg.objective.history_noise == 0.25


@pytest.mark.parametrize(
    ("typed", "told"),
    [
        ("model.dim=96", r"model\.dim=96: the training in .*run goes on with model\.dim=48"),
        ("model=world_v2_1_3b", "model=world_v2_1_3b: the training in .* goes on with another"),
        ("text=random", "text=random: .*goes on with another"),
        ("codec.base_dim=16", r"codec\.base_dim=16: .*codec\.base_dim=8"),
        ("codec=blockworld", "codec=blockworld: .*goes on with another"),
        ("module=codec_training", r"module=codec_training: .*lingbot\.module\.LingBotModule"),
        ("weights=blockworld", "weights=blockworld: .*goes on with weights=None"),
    ],
)
def test_what_the_weights_are_not_is_refused_by_the_option(begun, typed, told):
    with pytest.raises(ValueError, match=told):
        options(last(begun), typed)
    options(last(begun), *BEGUN)  # what is repeated is no contradiction


def test_a_finished_training_is_told_to_be_one(begun, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, f"ckpt_path={last(begun)}") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "lingbot-train:" in line]
    assert "is from step 2, and trainer.max_steps=2: nothing would be trained; raise it" in line
    assert "python -m lingbot.world" in line


@pytest.fixture
def copied(begun, tmp_path) -> Path:
    return shutil.copytree(begun, tmp_path / "copied")


def test_somebody_elses_code_is_not_run_unless_vouched_for(copied, tmp_path):
    file = copied / ".hydra" / "config.yaml"
    cfg = OmegaConf.load(file)
    cfg.callbacks.mine = {"_target_": "pathlib.Path.touch", "_args_": [str(tmp_path / "ran")]}
    OmegaConf.save(cfg, file)
    with pytest.raises(ValueError, match=r"callbacks\.mine names .*trust_run_code=true"):
        options(last(copied))
    cfg = options(last(copied), "trust_run_code=true")
    assert cfg.callbacks.mine._target_ == "pathlib.Path.touch"
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_lies_in_no_run_takes_what_is_typed_and_says_so(copied, tmp_path, caplog):
    alone = shutil.copy(last(copied), tmp_path / "alone.ckpt")
    cfg = options(alone, "model.dim=48")
    assert "alone.ckpt is not in the folder of a run" in caplog.text
    assert (cfg.model.dim, cfg.seed) == (48, 0)
    assert cfg.optimizer._target_ == "torch.optim.AdamW"


def test_a_drive_is_no_training_to_go_on_with(copied):
    file = copied / ".hydra" / "config.yaml"
    OmegaConf.save(OmegaConf.merge(OmegaConf.load(file), {"command": "generate"}), file)
    with pytest.raises(ValueError, match="is no training's"):
        options(last(copied))
