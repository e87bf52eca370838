"""last.ckpt is the newest state of a fit, whatever the best was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lingbot.callbacks import LastCheckpoint
from lingbot.checkpoints.checkpoint_io import write_whole_checkpoints


class Worsens(LightningModule):
    """A model that never gets better than in its first validation."""

    def __init__(self, fails_after: int = 99) -> None:
        super().__init__()
        self.layer, self.validations, self.fails_after = nn.Linear(1, 1), 0, fails_after

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.global_step == self.fails_after:
            raise ZeroDivisionError("a bug")
        return self.layer(batch).mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validations += 1
        self.log("val/loss", float(self.validations))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Worsens, folder: Path, steps: int, resume: Path | None = None) -> Trainer:
    last, best = LastCheckpoint(folder / "last.ckpt"), ModelCheckpoint(
        folder, "best_{step}", monitor="val/loss", mode="min", save_top_k=1
    )  # fmt: skip
    trainer = Trainer(
        max_steps=steps, val_check_interval=2, check_val_every_n_epoch=None, accelerator="cpu",
        callbacks=[best, last], logger=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    write_whole_checkpoints(trainer)
    loader = DataLoader(torch.ones(20, 1), batch_size=2)
    trainer.fit(module, loader, DataLoader(torch.ones(1, 1)), ckpt_path=resume, weights_only=True)
    return trainer


def saved(folder: Path) -> dict:
    return torch.load(folder / "last.ckpt", weights_only=True)


def test_last_is_the_newest_state_and_knows_the_best_one(tmp_path: Path) -> None:
    fit(Worsens(), tmp_path, steps=7)
    assert saved(tmp_path)["global_step"] == 7
    assert (tmp_path / "best_step=2.ckpt").is_file()
    resumed = fit(Worsens(), tmp_path, steps=9, resume=tmp_path / "last.ckpt")
    assert saved(tmp_path)["global_step"] == 9
    assert resumed.checkpoint_callback is not None
    assert resumed.checkpoint_callback.best_model_score == 1.0  # type: ignore[attr-defined]


def test_after_an_error_last_is_that_of_the_latest_validation(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fit(Worsens(fails_after=5), tmp_path, steps=9)
    assert saved(tmp_path)["global_step"] == 4


def test_a_checkpoint_with_code_in_it_is_not_resumed_from(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"state_dict": {}, "payload": Payload()}, tmp_path / "bad.ckpt")
    with pytest.raises(Exception, match=r"weights_only|Weights only|Unsupported"):
        fit(Worsens(), tmp_path, steps=2, resume=tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()
