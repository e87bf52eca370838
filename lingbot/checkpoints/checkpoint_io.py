"""Checkpoints of a training run that are whole whenever they are there.

Lightning writes a checkpoint to the temporary folder and, where that is another file system, copies
it over the one before: whoever is killed meanwhile, or finds the disk full, has neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from lingbot.checkpoints.atomic import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes, renames; a Trainer's plugin."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes a checkpoint; the one before stays until the new one is whole.

        Raises:
            TypeError: for storage options, of which local files have none.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are local files: storage_options must be None")
        with atomic_file(path) as partial:
            torch.save(checkpoint, partial)
