"""The Trainer of a command where Slurm has lent the machine."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch.plugins.environments import LightningEnvironment, LSFEnvironment

from lingbot.cli.trainer import in_allocation_shell, make_trainer
from lingbot.generate import generate
from lingbot.train import train
from lingbot.trainer_options import MEETING, check_trainer
from tests.commands import TINY_DRIVE, TINY_TRAINING, composed

# what salloc leaves in a shell; an allocation of eight tasks on two machines
ALLOCATION = {
    "SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_JOB_NAME": "work", "SLURM_PROCID": "0",
}  # fmt: skip
TASK = {"SLURM_STEP_ID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}


@pytest.fixture
def allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TASK, *MEETING):
        monkeypatch.delenv(name, raising=False)
    for name, value in ALLOCATION.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("allocation")
def test_a_drive_and_a_training_run_in_the_shell_of_an_allocation(tmp_path: Path) -> None:
    assert generate(composed("generate", [*TINY_DRIVE, "actions=w-9"], tmp_path))["steps"] == 2
    assert math.isfinite(train(composed("train", TINY_TRAINING, tmp_path))["val/loss"])


@pytest.mark.usefixtures("allocation")
def test_a_shell_is_told_from_a_task_and_from_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_allocation_shell()
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert not in_allocation_shell()
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    assert not in_allocation_shell()
    monkeypatch.delenv("SLURM_NTASKS")
    assert not in_allocation_shell()


def environment_of(tmp_path: Path, *options: str) -> type:
    trainer = make_trainer(composed("train", [*TINY_TRAINING, *options], tmp_path), logger=False)
    return type(trainer._accelerator_connector.cluster_environment)


@pytest.mark.usefixtures("allocation")
def test_ones_own_plugins_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    io = "{_target_: lingbot.checkpoints.checkpoint_io.AtomicCheckpointIO}"
    assert environment_of(tmp_path, f"trainer.plugins=[{io}]") is LightningEnvironment
    own = "{_target_: lightning.pytorch.plugins.environments.LSFEnvironment}"
    monkeypatch.setattr(LSFEnvironment, "__init__", lambda self: None)
    assert environment_of(tmp_path, f"trainer.plugins=[{own}]") is LSFEnvironment


@pytest.mark.usefixtures("allocation")
def test_tasks_of_srun_are_what_lightning_takes_them_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    assert environment_of(tmp_path) is SLURMEnvironment


@pytest.mark.usefixtures("allocation")
def test_other_machines_of_an_allocation_are_not_waited_for_in_its_shell() -> None:
    with pytest.raises(ValueError, match=r"trainer\.num_nodes=2: nobody has started.*srun"):
        check_trainer({"accelerator": "cpu", "num_nodes": 2})
