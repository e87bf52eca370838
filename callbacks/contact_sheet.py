"""Generated beside true frames, as a picture after every so many validations.

The module says what it generates: `sample_clip(batch) -> (generated, truth)`, both uint8
[T, H, W, 3] of the batch's first clip. All ranks call it, since it may run sequence-parallel.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray

from lingbot.callbacks.wandb_media import send_image
from lingbot.checkpoints.atomic import atomic_file
from lingbot.data.contact_sheet import draw_contact_sheet, spread_frames
from lingbot.data.file_checks import check_output_folder
from lingbot.model.checks import check_count

log = logging.getLogger(__name__)

Clip = tuple[NDArray[np.uint8], NDArray[np.uint8]]


class ContactSheet(Callback):
    """Samples the first clip of the first validation batches, with the weights being validated.

    Args:
        dirpath: folder of the pictures; None takes `contact_sheets` in the trainer's root folder.
        every_n_validations: draw after every so many validations, the first included.
        num_clips: rows of generated over true, one from each of the first batches.
        num_columns: frames of a row, spread evenly from first to last.
        fps: frames a second, for the headings.
    """

    def __init__(
        self,
        dirpath: str | Path | None = None,
        every_n_validations: int = 1,
        num_clips: int = 4,
        num_columns: int = 8,
        fps: int = 16,
    ) -> None:
        for name, value in (
            ("every_n_validations", every_n_validations),
            ("num_clips", num_clips),
            ("num_columns", num_columns),
            ("fps", fps),
        ):
            check_count(f"callbacks.contact_sheet.{name}", value)
        self.dirpath = check_output_folder(dirpath) if dirpath is not None else None
        self.every_n_validations = every_n_validations
        self.num_clips = num_clips
        self.num_columns = num_columns
        self.fps = fps
        self._validations = 0
        self._clips: list[Clip] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot say what it generates."""
        if stage in ("fit", "validate") and not callable(getattr(pl_module, "sample_clip", None)):
            raise TypeError(
                f"{type(pl_module).__name__} has no sample_clip(batch) -> (generated, truth), "
                "uint8 [T, H, W, 3]; give it one or leave the contact_sheet callback out."
            )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Sample here rather than at the end, where averaged weights may be swapped out again."""
        due = self._validations % self.every_n_validations == 0 and not trainer.sanity_checking
        if due and dataloader_idx == 0 and batch_idx < self.num_clips:
            with trainer.precision_plugin.val_step_context():
                generated, truth = pl_module.sample_clip(batch)  # type: ignore[operator]
            self._clips.append((_as_array(generated), _as_array(truth)))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and save on rank 0, and show in W&B where it is used."""
        if trainer.sanity_checking:
            return
        clips, self._clips = self._clips, []
        self._validations += 1
        if clips and trainer.is_global_zero:
            dirpath = self.dirpath or Path(trainer.default_root_dir) / "contact_sheets"
            dirpath.mkdir(parents=True, exist_ok=True)
            path = dirpath / f"step_{trainer.global_step:07d}.png"
            self._draw(clips, f"Validation at training step {trainer.global_step:,}", path)
            log.info("A contact sheet is in %s", path.resolve())
            send_image(trainer, "val/contact_sheet", path)

    def _draw(self, clips: list[Clip], title: str, path: Path) -> None:
        length = max(min(len(generated), len(truth)) for generated, truth in clips)
        columns = spread_frames(length, self.num_columns)
        rows = []
        for number, (generated, truth) in enumerate(clips, start=1):
            shown = [t for t in columns if t < min(len(generated), len(truth))]
            rows += [(f"clip {number}\ngenerated", generated[shown]), ("truth", truth[shown])]
        headings = [f"{t / self.fps:.2f} s" for t in columns]
        with atomic_file(path) as partial:
            draw_contact_sheet(rows, headings, title, group=2).save(partial)


def _as_array(frames: Any) -> NDArray[np.uint8]:
    return np.asarray(torch.as_tensor(frames).cpu())
