"""Checkpoints of a training run that are whole whenever they are there.

Lightning writes a checkpoint to the temporary folder and, where that is another file system, copies
it over the one before: whoever is killed meanwhile, or finds the disk full, has neither. The same
holds for a user's own `trainer.plugins`, which here write beside the target as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch.plugins.io.wrapper import _WrappingCheckpointIO

from lingbot.checkpoints.atomic import atomic_file


def write_whole_checkpoints(trainer: Trainer) -> None:
    """Makes a Trainer's checkpoints appear whole or not at all, whoever writes them.

    A plugin that hands its work to another, as `AsyncCheckpointIO` does, keeps doing so; the one
    that writes in the end is wrapped.
    """
    trainer.strategy.checkpoint_io = _whole(trainer.strategy._checkpoint_io)


def _whole(plugin: CheckpointIO | None) -> CheckpointIO:
    if isinstance(plugin, AtomicCheckpointIO):
        return plugin
    if isinstance(plugin, _WrappingCheckpointIO):
        plugin._checkpoint_io = _whole(plugin.checkpoint_io)  # its setter keeps the first one
        return plugin
    return AtomicCheckpointIO(None if type(plugin) is TorchCheckpointIO else plugin)


class AtomicCheckpointIO(CheckpointIO):
    """Writes beside the target, flushes, renames; the checkpoint before stays until then.

    Args:
        writer: what writes and reads a checkpoint at a path; None writes by `torch.save`.
    """

    def __init__(self, writer: CheckpointIO | None = None) -> None:
        self.writer = _Plain() if writer is None else writer

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; one at an address, as `s3://...`, is left to the writer alone.

        Raises:
            TypeError: for storage options where the writer has none, as for local files.
        """
        if "://" in str(path):
            self.writer.save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_file(path) as partial:
            self.writer.save_checkpoint(checkpoint, partial, storage_options)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Reads a checkpoint, as the writer does."""
        return self.writer.load_checkpoint(path, *args, **kwargs)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Removes a checkpoint."""
        self.writer.remove_checkpoint(path)

    def teardown(self) -> None:
        """Ends the writer's work."""
        self.writer.teardown()


class _Plain(TorchCheckpointIO):
    """`torch.save` to a file, without a copy in memory or in another place."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        if storage_options is not None:
            raise TypeError("checkpoints are files: storage_options must be None")
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path)
        else:
            torch.save(checkpoint, path)
