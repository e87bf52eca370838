"""Contact sheets of a training run: when they are drawn, of which clips, and of which weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader

from lingbot.callbacks import ContactSheet
from tests.callbacks.toy_drive import frames_of


class ToyTraining(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.sampled = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch[:, None]).mean()

    def validation_step(self, batch, batch_idx):
        return None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def sample_clip(self, batch):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.sampled.append(float(batch[0]))
        return torch.from_numpy(frames_of(0)), frames_of(1)


def _fit(folder, module, callback, epochs=1):
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[callback],
        default_root_dir=folder,
        num_sanity_val_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    loader = DataLoader(torch.arange(12.0), batch_size=2)
    trainer.fit(module, loader, loader)


def test_the_first_clip_of_the_first_batches_is_drawn_every_so_many_validations(tmp_path):
    module = ToyTraining()
    sheet = ContactSheet(tmp_path, every_n_validations=2, num_clips=3, num_columns=5)
    _fit(tmp_path, module, sheet, epochs=4)
    assert module.sampled == [0, 2, 4, 0, 2, 4]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "step_0000006.png",
        "step_0000018.png",
    ]
    width, height = Image.open(tmp_path / "step_0000006.png").size
    assert width > 5 * 160
    assert height > 6 * 96


def test_without_a_folder_of_its_own_it_draws_into_the_trainers(tmp_path):
    _fit(tmp_path, ToyTraining(), ContactSheet(num_clips=1))
    picture = np.asarray(Image.open(tmp_path / "contact_sheets" / "step_0000006.png"))
    assert picture.std() > 20


def test_a_module_that_cannot_sample_is_refused_before_training(tmp_path):
    module = ToyTraining()
    module.sample_clip = None
    with pytest.raises(TypeError, match="sample_clip"):
        _fit(tmp_path, module, ContactSheet())


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match="num_columns=0"):
        ContactSheet(num_columns=0)
