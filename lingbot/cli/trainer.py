"""The Lightning Trainer of a command."""

from __future__ import annotations

import os
from typing import Any

import lightning as L
from hydra.utils import instantiate
from lightning.fabric.plugins import ClusterEnvironment
from lightning.pytorch.plugins.environments import LightningEnvironment
from omegaconf import DictConfig

from lingbot.building import build
from lingbot.cli.folders import srun_task


def make_trainer(cfg: DictConfig, **parts: Any) -> L.Trainer:
    """The Trainer of `cfg.trainer`, with parts that are objects already.

    In the shell of a Slurm allocation it starts its ranks itself, as on any other machine:
    Lightning would take the shell for one of the tasks that srun starts, and wait for the others.

    Raises:
        ValueError: for options that it cannot be made with.
    """
    if in_allocation_shell():
        own = cfg.trainer.get("plugins")
        plugins = [] if own is None else list(instantiate(own, _convert_="all"))
        if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins):
            plugins.append(LightningEnvironment())
        parts["plugins"] = plugins
    return build(cfg.trainer, "trainer", L.Trainer, **parts)


def in_allocation_shell() -> bool:
    """Whether Slurm has lent machines to this shell, and nobody has started ranks on them."""
    started = srun_task() or "TORCHELASTIC_RUN_ID" in os.environ
    return "SLURM_NTASKS" in os.environ and not started
