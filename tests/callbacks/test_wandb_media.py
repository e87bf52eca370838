"""W&B: what reaches it where it is the logger (test_step_log: never imported where it is not)."""

from __future__ import annotations

from unittest.mock import MagicMock

import pytest
from lightning.pytorch.loggers import WandbLogger

from lingbot.callbacks import RealtimeStepLog, StepPlot, VideoWriter
from tests.callbacks.toy_drive import ToyDrive, drive

pytest.importorskip("wandb")


def test_a_drive_sends_metrics_on_their_own_axis_the_plot_and_the_finished_video(tmp_path):
    run = MagicMock()
    run.dir = str(tmp_path)
    logger = WandbLogger(experiment=run, save_dir=str(tmp_path))
    logger._experiment = run
    callbacks = [
        VideoWriter(tmp_path / "drive.mp4"),
        RealtimeStepLog(tmp_path, table=False),
        StepPlot(tmp_path / "steps.png"),
    ]
    sent_video, sent_image = MagicMock(), MagicMock()
    logger.log_video, logger.log_image = sent_video, sent_image
    drive(tmp_path, ToyDrive(), 2, callbacks, logger=logger)
    axes = {call.args[0]: call.kwargs["step_metric"] for call in run.define_metric.call_args_list}
    assert axes["realtime_rank0/total_ms"] == "realtime_rank0/step"
    assert axes["realtime/communication/gather/variable/ms_max"] == "realtime/step"
    sent_video.assert_called_once_with("drive", [str(tmp_path / "drive.mp4")], format=["mp4"])
    sent_image.assert_called_once_with("realtime_run/step_times", [str(tmp_path / "steps.png")])
    logged = {name for call in run.log.call_args_list for name in call.args[0]}
    assert {"realtime_rank0/pass_1_ms", "realtime/total_ms_mean", "realtime_run/steps"} <= logged
