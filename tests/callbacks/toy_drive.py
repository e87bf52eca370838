"""A module that drives a toy world: moving pictures, and reports whose figures are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from lingbot.realtime.events import CollectiveTotal, StepReport

FRAMES = 12


def step_report(step: int, rank: int = 0, collectives: bool = True) -> StepReport:
    """Rank r takes r * 40 ms longer in its first pass and 10 ms longer in each collective."""
    sent = [
        CollectiveTotal("to_heads", "uniform", bytes=3000, calls=10, elapsed_ms=20.0 + 10 * rank),
        CollectiveTotal("gather", "variable", bytes=50, calls=4, elapsed_ms=5.0 + 10 * rank),
    ]
    return StepReport(
        step=step,
        frames=9 if step == 0 else FRAMES,
        pass_ms=[50.0 + 40 * rank, 50.0, 50.0, 50.0],
        context_update_ms=40.0,
        camera_ms=10.0,
        decode_ms=100.0,
        total_ms=(1000.0 if step == 0 else 360.0) + 40 * rank,
        key_to_frame_ms=320.0 + 40 * rank,
        collectives=sent if collectives else [],
        conditioner_hits=24,
        conditioner_misses=6,
        conditioner_bytes=2048,
    )


def frames_of(step: int, height: int = 96, width: int = 160, length: int = FRAMES) -> np.ndarray:
    """A smooth picture that moves, uint8 [length, height, width, 3]."""
    y, x = np.mgrid[:height, :width]
    times = range(step * length, (step + 1) * length)
    return np.stack(
        [np.stack([x + t, y + 2 * t, (x + y) // 2 + 0 * t], -1) % 200 for t in times]
    ).astype(np.uint8)


class ToySession:
    """The report of a step is finished when the callbacks have had its frames."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []
        self.finished = 0

    def finish_chunk(self) -> None:
        self.finished = len(self.reports)

    def finished_reports(self, since: int = 0) -> list[StepReport]:
        return self.reports[since : self.finished]

    def all_reports(self, since: int = 0) -> list[StepReport]:
        return self.reports[since:]


class ToyDrive(LightningModule):
    """Drives; fails at step `fail_at` with `error`, and reports no communication if told so."""

    def __init__(
        self,
        fail_at: int | None = None,
        error: type[BaseException] = RuntimeError,
        collectives: bool = True,
    ) -> None:
        super().__init__()
        self.fail_at = fail_at
        self.error = error
        self.collectives = collectives
        self.session: Any = ToySession()

    def predict_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if batch_idx == self.fail_at:
            raise self.error("stopped on the way")
        self.session.reports.append(step_report(batch_idx, self.global_rank, self.collectives))
        return torch.from_numpy(frames_of(batch_idx))

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.session is not None:
            self.session.finish_chunk()


def drive(folder: Path, module: ToyDrive, steps: int, callbacks: list, **options: Any) -> Trainer:
    """Run a toy drive under a trainer that logs nothing of its own."""
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "use_distributed_sampler": False,
            "default_root_dir": folder,
            "callbacks": callbacks,
            **options,
        }
    )
    controls = DataLoader(range(steps), batch_size=None)
    trainer.predict(module, controls, return_predictions=False)
    return trainer
