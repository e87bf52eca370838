"""Every debug setting runs, by each command that it is for."""

from __future__ import annotations

import csv
import importlib
import sys
from pathlib import Path

import pytest

from tests.commands import TINY_DRIVE, TINY_TRAINING
from tests.conftest import REPOSITORY

OWN = ("scheduler.", "trainer.max_steps", "trainer.val_check_interval")
TRAINING = [option for option in TINY_TRAINING if not option.startswith(OWN)]
DRIVE = [*TINY_DRIVE, "actions=w-9"]
SHORT = ["trainer.max_steps=2", "trainer.val_check_interval=2"]
RUNS = {
    "anomaly": {"train": [*TRAINING, *SHORT], "generate": DRIVE},
    "fdr": {"train": TRAINING, "generate": DRIVE},
    "overfit": {"train": TRAINING},
}
SETTINGS = sorted(file.stem for file in (REPOSITORY / "conf" / "debug").glob("*.yaml"))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("command", ["train", "generate"])
def test_a_debug_setting_runs(setting, command, tmp_path, monkeypatch):
    assert setting in RUNS, f"say in RUNS how debug={setting} runs in a few seconds"
    if command not in RUNS[setting]:
        pytest.skip(f"debug={setting} is not for lingbot-{command}")
    monkeypatch.chdir(tmp_path)
    typed = [*RUNS[setting][command], f"debug={setting}", "paths.output_dir=run"]
    monkeypatch.setattr(sys, "argv", [f"lingbot-{command}", *typed])
    importlib.import_module(f"lingbot.{command}").main()
    if setting == "overfit":
        losses = [float(row["train/loss"]) for row in rows() if row["train/loss"]]
        assert len(losses) == 200
        assert sum(losses[-50:]) < 0.8 * sum(losses[:50])


def rows() -> list[dict[str, str]]:
    with Path("run", "metrics", "metrics.csv").open() as file:
        return list(csv.DictReader(file))
