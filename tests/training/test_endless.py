"""How long a training is and what watches it: told before anything is encoded or trained."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import pytest
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lingbot.codec.training import CodecModule
from lingbot.training.endless import check_length, check_watched, validates

ENDLESS = SimpleNamespace(endless=True)
OTHERS = SimpleNamespace()


def trainer(*callbacks: L.Callback, **options) -> L.Trainer:
    usual = {"max_steps": 8, "max_epochs": -1, "val_check_interval": 4}
    usual |= {"check_val_every_n_epoch": None, "callbacks": list(callbacks)}
    return L.Trainer(accelerator="cpu", logger=False, **{**usual, **options})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"max_epochs": 3}, r"trainer\.max_epochs=3: .*say by trainer\.max_steps"),
        ({"min_epochs": 2}, r"trainer\.min_epochs=2"),
        ({"limit_train_batches": 0.5}, r"limit_train_batches=0\.5: .*give a number of batches"),
        ({"check_val_every_n_epoch": 1, "val_check_interval": None},
         r"check_val_every_n_epoch=1: .*give trainer\.val_check_interval"),
    ],
)  # fmt: skip
def test_what_counts_epochs_is_refused_where_none_ends(options, told):
    with pytest.raises(ValueError, match=told):
        check_length(trainer(**options), ENDLESS)
    check_length(trainer(**options), OTHERS)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"max_epochs": None}, {"limit_train_batches": 4, "max_epochs": 2},
        {"overfit_batches": 1, "max_epochs": 2}, {"fast_dev_run": True},
        {"limit_val_batches": 0, "check_val_every_n_epoch": 1, "val_check_interval": None},
    ],
    ids=str,
)  # fmt: skip
def test_what_ends_is_taken(options):
    check_length(trainer(**options), ENDLESS)


def codec_module(kind: type = CodecModule) -> L.LightningModule:
    return kind.__new__(kind)  # names are all that is asked of it


@pytest.mark.parametrize("callback", [ModelCheckpoint, EarlyStopping])
def test_a_monitor_of_what_nobody_logs_is_refused_with_what_there_is(callback):
    made = trainer(callback(monitor="val/los"))
    with pytest.raises(ValueError, match=rf"{callback.__name__} monitors 'val/los'.*val/psnr"):
        check_watched(made, codec_module(), None)
    for known in ("val/psnr", "train/kl"):
        check_watched(trainer(callback(monitor=known)), codec_module(), None)
    check_watched(trainer(ModelCheckpoint(monitor="step")), codec_module(), None)


class Counts(L.Callback):
    """Somebody's callback: it may log anything."""


class OwnModule(CodecModule):
    """Somebody's module, likewise."""


def test_what_others_may_log_is_not_refused():
    check_watched(trainer(Counts(), EarlyStopping("val/fid")), codec_module(), "val/fid")
    check_watched(trainer(EarlyStopping("val/fid")), codec_module(OwnModule), "val/fid")


def test_a_sweep_for_a_metric_that_never_comes_is_refused():
    check_watched(trainer(), codec_module(), "val/psnr")
    with pytest.raises(ValueError, match=r"optimized_metric='val/loss': .*choose .*val/psnr"):
        check_watched(trainer(), codec_module(), "val/loss")
    for options in ({"limit_val_batches": 0}, {"val_check_interval": 9}):
        with pytest.raises(ValueError, match=r"never validates.*at most its 8 batches"):
            check_watched(trainer(**options), codec_module(), "val/psnr")


def test_validations_are_counted_in_batches():
    assert validates(trainer(val_check_interval=16, accumulate_grad_batches=2))
    assert not validates(trainer(val_check_interval=17, accumulate_grad_batches=2))
    assert validates(trainer(fast_dev_run=True))
    assert validates(trainer(max_steps=-1))
