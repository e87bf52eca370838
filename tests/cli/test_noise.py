"""What commands print is theirs: no advertisement, no warning that nobody can do anything about."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import TINY_DRIVE, TINY_TRAINING

ADVERTISED = re.compile(
    r"litlogger|LitLogger|litmodels|Lightning AI|lightning\.ai|💡|pypi\.org|Consider |consider "
    r"|`weights_only` was not set|(GPU|TPU|HPU) available|states from the checkpoint"
)
WARNED = re.compile(r"site-packages|Warning|deprecated|Error executing")


def lines(folder: Path, module: str, *options: str) -> list[str]:
    """What a command that ends well prints."""
    done = subprocess.run(
        [sys.executable, "-m", f"lingbot.{module}", *options],
        cwd=folder, capture_output=True, text=True, timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [line for line in f"{done.stdout}\n{done.stderr}".splitlines() if line.strip()]


def noisy(printed: list[str]) -> list[str]:
    return [line for line in printed if ADVERTISED.search(line) or WARNED.search(line)]


@pytest.mark.processes
@pytest.mark.timeout(400)
def test_trainings_say_nothing_that_nobody_can_do_anything_about(tmp_path):
    own = ["trainer.precision=bf16-mixed", "data.num_workers=1", "paths.output_dir=run"]
    printed = lines(tmp_path, "train", *TINY_TRAINING, *own)
    assert not noisy(printed)
    assert any("val/loss" in line for line in printed)
    assert any("encoding 2 clips" in line for line in printed)  # what is ours stays
    onward = ["ckpt_path=run/checkpoints/last.ckpt", "trainer.max_steps=3", "debug=overfit"]
    printed = lines(tmp_path, "train", *onward, "paths.output_dir=on")
    assert not noisy(printed)
    assert any("going on with the options of" in line for line in printed)


@pytest.mark.processes
def test_drives_say_nothing_that_nobody_can_do_anything_about(tmp_path):
    printed = lines(tmp_path, "generate", *TINY_DRIVE, "actions=w-9", "paths.output_dir=run")
    assert not noisy(printed)
    assert any("the scene chose" in line for line in printed)


@pytest.mark.processes
def test_a_refusal_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "lingbot.generate", *TINY_DRIVE, "seed=-1"],
        cwd=tmp_path, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 2
    assert not done.stdout
    (line,) = done.stderr.splitlines()
    assert line.startswith("lingbot-generate: seed=-1: ")
