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
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lingbot.checkpoints.checkpoint_io import AtomicCheckpointIO, write_whole_checkpoints

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

# a plugin of a user's own, in the hands of a Trainer: half of a checkpoint, then nothing for long
OWN_WRITER = """
import sys, time, torch
from pathlib import Path
from lightning import Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.plugins.io import AsyncCheckpointIO
from lingbot.checkpoints.checkpoint_io import write_whole_checkpoints

class Own(TorchCheckpointIO):
    def save_checkpoint(self, checkpoint, path, storage_options=None):
        torch.save(checkpoint, path)
        if checkpoint["step"] == 2:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            print("writing", flush=True)
            time.sleep(60)

plugin = Own() if sys.argv[2] == "own" else AsyncCheckpointIO(Own())
trainer = Trainer(accelerator="cpu", logger=False, plugins=[plugin])
write_whole_checkpoints(trainer)
for step in (1, 2):
    trainer.strategy.save_checkpoint({"step": step, "weights": torch.zeros(1 << 16)}, sys.argv[1])
time.sleep(60)
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


@pytest.mark.processes
@pytest.mark.parametrize("plugin", ["own", "own, in the background"])
def test_kill_9_under_a_plugin_of_ones_own_leaves_the_checkpoint_before_whole(
    tmp_path: Path, plugin: str
) -> None:
    path = tmp_path / "last.ckpt"
    with subprocess.Popen(
        [sys.executable, "-c", OWN_WRITER, str(path), plugin],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == b"writing\n"
        process.send_signal(signal.SIGKILL)
    assert step_of(path) == 1


class Folders(CheckpointIO):
    """A plugin whose checkpoints are folders."""

    def save_checkpoint(self, checkpoint, path, storage_options=None) -> None:
        Path(path).mkdir()
        for name, value in checkpoint.items():
            Path(path, name).write_text(f"{value} {storage_options}")

    def load_checkpoint(self, path, *_, **__) -> dict:
        return {file.name: file.read_text() for file in Path(path).iterdir()}

    def remove_checkpoint(self, path) -> None:
        raise NotImplementedError


def test_a_plugin_of_ones_own_writes_and_reads_what_it_did_before(tmp_path: Path) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, plugins=[Folders()])
    write_whole_checkpoints(trainer)
    write_whole_checkpoints(trainer)  # twice is once
    strategy, path = trainer.strategy, tmp_path / "last.ckpt"
    strategy.save_checkpoint({"step": 1, "old": 0}, path, storage_options="kept")
    strategy.save_checkpoint({"step": 2}, path, storage_options="kept")
    assert strategy.load_checkpoint(path) == {"step": "2 kept"}
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("plugin", [None, TorchCheckpointIO, AsyncCheckpointIO])
def test_lightnings_own_plugins_write_beside_the_target_without_a_copy(
    tmp_path: Path, monkeypatch, plugin
) -> None:
    monkeypatch.setattr(
        "lightning.fabric.plugins.io.torch_io._atomic_save", lambda *_: pytest.fail("a copy")
    )
    trainer = Trainer(accelerator="cpu", logger=False, plugins=[plugin()] if plugin else None)
    write_whole_checkpoints(trainer)
    trainer.strategy.save_checkpoint({"step": 5}, tmp_path / "last.ckpt")
    trainer.strategy.teardown()  # which waits for what is written in the background
    assert step_of(tmp_path / "last.ckpt") == 5


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
