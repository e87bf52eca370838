"""Only W&B runs that we began are ended."""

from __future__ import annotations

import pytest
from lightning.pytorch.loggers import WandbLogger

from lingbot.launch import build_loggers, finish_loggers
from tests.commands import composed


def test_a_run_of_the_users_own_is_neither_logged_to_nor_ended(tmp_path, monkeypatch) -> None:
    wandb = pytest.importorskip("wandb")
    monkeypatch.chdir(tmp_path)
    mine = wandb.init(mode="offline", project="mine", dir=tmp_path)
    try:
        cfg = composed("generate", ["logger=wandb", "logger.wandb.name=ours"], tmp_path)
        (tmp_path / "generate").mkdir(exist_ok=True)
        (logger,) = loggers = build_loggers(cfg)
        assert isinstance(logger, WandbLogger)
        assert logger.experiment.id != mine.id
        assert logger.experiment.name == "ours"
        logger.log_metrics({"a": 1.0}, step=0)
        finish_loggers(loggers)
        assert wandb.run is mine
        mine.log({"still": "open"})
        assert "a" not in dict(mine.summary)
    finally:
        mine.finish()
