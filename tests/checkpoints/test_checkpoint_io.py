"""A checkpoint is whole whenever it is there: after kill -9, and on a full disk."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from lingbot.checkpoints.checkpoint_io import AtomicCheckpointIO

WRITER = """
import sys, time, torch
from lingbot.checkpoints.checkpoint_io import AtomicCheckpointIO

class Slow:  # pickled in the middle of a checkpoint
    def __reduce__(self):
        print("writing", flush=True)
        time.sleep(60)
        return int, ()

state = {"weights": torch.zeros(1 << 20), "slow": Slow(), "more": torch.ones(1 << 20)}
AtomicCheckpointIO().save_checkpoint(state, sys.argv[1])
"""


def write(path: Path, value: int) -> None:
    AtomicCheckpointIO().save_checkpoint({"step": value, "weights": torch.zeros(1000)}, path)


def step_of(path: Path) -> int:
    return torch.load(path, weights_only=True)["step"]


@pytest.mark.processes
def test_a_writer_that_is_killed_leaves_the_checkpoint_before_whole(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(path, 1)
    elsewhere = "/dev/shm" if Path("/dev/shm").is_dir() else str(tmp_path)  # another file system
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)],
        env={**os.environ, "TMPDIR": elsewhere},
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert step_of(path) == 1


def _write_on_a_full_disk(path: str) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        write(Path(path), 2)
    except (OSError, RuntimeError):
        os._exit(7)


@pytest.mark.processes
def test_a_disk_that_is_full_leaves_the_checkpoint_before_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write(path, 1)
    code = "import sys; from tests.checkpoints.test_checkpoint_io import _write_on_a_full_disk as f"
    script = f"{code}; f(sys.argv[1])"
    repository = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script, str(path)], cwd=repository, timeout=120)
    assert done.returncode == 7
    assert step_of(path) == 1
    assert list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_takes_the_place_of_a_sharded_one(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    path.mkdir()
    (path / ".metadata").write_text("")
    write(path, 3)
    assert step_of(path) == 3
    assert list(tmp_path.iterdir()) == [path]


def test_storage_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a", storage_options={"a": 1})
