"""TrainingSpeed, and the experiment that it is for, at a size for tests."""

from __future__ import annotations

import logging
import math

import pytest

from lingbot.launch import UserError
from lingbot.train import train
from tests.commands import composed

SMALL = [
    "experiment=bench_training_14b", "model.dim=48", "model.ffn_dim=64", "model.num_heads=4",
    "model.num_layers=2", "model.text_dim=16", "model.text_len=8", "codec=blockworld_untrained",
    "codec.base_dim=8", "camera.height=32", "camera.width=48", "trainer.accelerator=cpu",
    "trainer.devices=1", "strategy=auto", "kernels=reference", "trainer.max_steps=5",
    "data.latent_frames=6", "callbacks.training_speed.warmup_steps=3",
]  # fmt: skip


def test_a_training_step_at_any_size_is_timed(tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="lingbot"):
        metrics = train(composed("train", SMALL, tmp_path))
    assert math.isfinite(metrics["train/loss"])
    assert metrics["speed/step_s"] > 0
    (told,) = [r.message for r in caplog.records if "A training step took" in r.message]
    assert "2 steps after 3 of warm-up" in told
    rate = float(told.split(" TFLOP/s")[0].split()[-1])
    seconds = float(told.split(" s (")[0].split()[-1])
    last = metrics["speed/tflops"] * metrics["speed/step_s"]  # of a step, as of every other
    assert rate * seconds == pytest.approx(last, rel=0.05)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.latent_frames=0", "data.latent_frames=0"),
        ("data.latent_frames=7", "whole number of chunks"),
        ("data.height=36", "must be alike"),
        ("data.height=0", "data.height=0"),
        ("module.activation_checkpointing=half", "activation_checkpointing='half'"),
        ("callbacks.training_speed.warmup_steps=-1", "warmup_steps=-1"),
    ],
)
def test_values_that_cannot_be_are_refused(override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(composed("train", [*SMALL, override], tmp_path))


def test_a_run_that_ends_in_the_warm_up_says_so(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="lingbot"):
        train(composed("train", [*SMALL, "trainer.max_steps=2"], tmp_path))
    assert "No training step was timed: 2 steps" in caplog.text
