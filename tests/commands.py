"""Configurations of the entry points, cut down to what a test can afford."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

# 2 x 3 patches a latent frame; random weights
TINY = [
    "model.dim=48", "model.ffn_dim=64", "model.num_heads=4", "model.num_layers=1",
    "camera.height=32", "camera.width=48", "codec=blockworld_untrained", "codec.base_dim=8",
    "trainer.accelerator=cpu",
]  # fmt: skip
TINY_DRIVE = [*TINY, "weights=null"]
TINY_TRAINING = [
    *TINY, "data.num_frames=21", "data.train_clips=2", "data.val_clips=1", "data.batch_size=1",
    "data.num_workers=0", "trainer.max_steps=2", "trainer.val_check_interval=2",
    "trainer.precision=32-true", "scheduler.warmup_steps=1", "kernels=reference",
]  # fmt: skip


def composed(command: str, overrides: Sequence[str] = (), folder: Path | None = None) -> DictConfig:
    """The configuration of lingbot-COMMAND with these overrides, writing into `folder`."""
    where = [] if folder is None else [f"paths.root_dir='{folder}'"]
    with initialize_config_module("lingbot.conf", version_base="1.3"):
        return compose(command, [*overrides, *where])
