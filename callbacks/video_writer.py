"""Writes the driven world to an MP4 file while it is being driven.

Encoding runs in a thread of its own, at most one step behind, and so overlaps the next step. The
file plays whatever ends the run, see `lingbot.data.video_file`.
"""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from PIL import Image

from lingbot.callbacks.wandb_media import send_video
from lingbot.checkpoints.atomic import atomic_file
from lingbot.data.file_checks import check_output_file
from lingbot.data.video_file import Mp4File
from lingbot.model.checks import check_switch

log = logging.getLogger(__name__)

__all__ = ["Mp4File", "VideoWriter"]


class VideoWriter(Callback):
    """Appends what `predict_step` returns, uint8 [T, H, W, 3], on global rank 0.

    Rank 0 leads the first sequence group; the other ranks of its group have the same frames.

    Args:
        path: the MP4 file; an existing one is replaced.
        fps: frames a second of playback, 1 to 240.
        quality: x264's constant rate factor, 0 (lossless) to 51 (worst).
        first_frame: also write the drive's first frame, as `first_frame.png` beside the video.

    Raises:
        ValueError: values out of range, a path where no file can be written.
    """

    def __init__(
        self, path: str | Path, fps: int = 16, quality: int = 18, first_frame: bool = True
    ) -> None:
        check_switch("callbacks.video_writer.first_frame", first_frame)
        Mp4File(path, fps, quality)  # refuses wrong values now rather than at the first frame
        self.path = Path(path)
        self.fps = fps
        self.quality = quality
        self.first_frame = first_frame
        if first_frame:
            check_output_file(self._picture)
        self._file: Mp4File | None = None
        self._encoder: ThreadPoolExecutor | None = None
        self._encoding: Future[None] | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make ready to write; the file itself appears with the first frames."""
        if trainer.is_global_zero:
            self._file = Mp4File(self.path, self.fps, self.quality)
            self._encoder = ThreadPoolExecutor(1, thread_name_prefix="video-writer")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Hand the step's frames to the encoder, once it is done with those of the step before."""
        if self._file is None or self._encoder is None:
            return
        frames = np.array(torch.as_tensor(outputs).cpu())  # a copy: the session may go on
        self._wait()
        if self._file.num_frames == 0 and self.first_frame:
            self._write_first_frame(frames)
        self._encoding = self._encoder.submit(self._file.append, frames)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the file."""
        if self._file is None:
            return
        num_frames = self._close()
        if num_frames:
            seconds = num_frames / self.fps
            log.info("Wrote %d frames (%.1f s) to %s", num_frames, seconds, self.path.resolve())
            send_video(trainer, "drive", self.path)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Finish the file with the frames there are."""
        if self._file is not None:
            log.info("Interrupted; %s ends after %d frames", self.path.resolve(), self._close())

    def _write_first_frame(self, frames: NDArray[np.uint8]) -> None:
        with atomic_file(self._picture) as partial:
            Image.fromarray(frames[0]).save(partial)

    @property
    def _picture(self) -> Path:
        return self.path.with_name("first_frame.png")

    def _wait(self) -> None:
        encoding, self._encoding = self._encoding, None
        if encoding is not None:
            encoding.result()

    def _close(self) -> int:
        """Wait for the encoder, finish the file, and count its frames."""
        file, encoder, self._file, self._encoder = self._file, self._encoder, None, None
        assert file is not None
        assert encoder is not None
        try:
            self._wait()
        finally:
            encoder.shutdown()
            file.close()
        return file.num_frames
