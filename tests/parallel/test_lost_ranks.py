"""A rank that is lost ends the others soon, with one line that says which, and with whole files."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import av
import pytest
import torch

from lingbot.data.video_file import read_frames
from tests.commands import TINY_DRIVE, TINY_TRAINING
from tests.support.faults import HANGS, Ended, end_of, end_of_launched, fault

SOON_S = 10.0  # on machines that do other work beside; a few seconds elsewhere
DRIVE = [
    *TINY_DRIVE, "trainer.devices=2", "strategy=sequence_parallel", "kv_cache=sliding",
    "num_steps=50000", "callbacks.step_plot=null",
]  # fmt: skip
TRAINING = [
    *TINY_TRAINING, "trainer.devices=2", "trainer.max_steps=4", "export_dir=null",
    "callbacks.contact_sheet=null",
]  # fmt: skip


def whole_steps(video: Path) -> int:
    """Realtime steps of a video that has been finished."""
    frames = len(read_frames(video))
    with av.open(str(video)) as container:
        assert container.streams.video[0].frames == frames, "it has no index"
    assert frames % 12 == 9
    return 1 + frames // 12


def check_told_once(ended: Ended, line: str) -> None:
    assert re.findall(r"rank \d \(pid .*", ended.output) == [line], ended.output
    assert ended.seconds < SOON_S


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "what"),
    [
        ({"rank1": 0}, "raised RuntimeError: a fault of two lines"),
        ({"rank1": signal.SIGKILL}, "died"),
        ({"rank1": signal.SIGKILL, "rank0": HANGS}, "died"),
    ],
    ids=["raises", "killed", "killed and waited for"],
)
def test_a_drive_that_loses_a_rank_is_whole_up_to_the_step_before(ranks, what, tmp_path):
    ended = end_of("generate", [*DRIVE, fault(tmp_path, 2, **ranks)], tmp_path)
    line = f"rank 1 (pid {ended.lost}) {what} at realtime step 2; the others were ended; "
    line += "files up to step 1 are whole"
    if not ranks["rank1"]:
        line += f"; its traceback is in {tmp_path}/run/rank_1.log"
        assert "in _befall" in (tmp_path / "run" / "rank_1.log").read_text()
    check_told_once(ended, line)
    assert ended.codes == [1, -ranks["rank1"] or 1]
    assert "Traceback" not in ended.output
    assert whole_steps(tmp_path / "run" / "drive.mp4") == 2


@pytest.mark.processes
def test_what_the_first_rank_raises_is_shown_and_the_other_says_nothing(tmp_path):
    ended = end_of("generate", [*DRIVE, fault(tmp_path, 2, rank0=0)], tmp_path)
    line = "raised RuntimeError: a fault of two lines at realtime step 2; the others were ended; "
    check_told_once(ended, f"rank 0 (pid {ended.lost}) {line}files up to step 1 are whole")
    assert ended.codes == [1, 1]
    assert ended.output.count("Traceback") == 1
    assert whole_steps(tmp_path / "run" / "drive.mp4") == 2


@pytest.mark.processes
def test_a_first_rank_that_is_killed_is_told_by_the_other(tmp_path):
    ended = end_of("generate", [*DRIVE, fault(tmp_path, 3, rank0=signal.SIGKILL)], tmp_path)
    line = "died at realtime step 3; the others were ended; files up to step 0 are whole"
    check_told_once(ended, f"rank 0 (pid {ended.lost}) {line}")
    assert ended.codes == [-signal.SIGKILL, 1]
    assert "Traceback" not in ended.output
    assert len(read_frames(tmp_path / "run" / "drive.mp4")) >= 9


@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_of_a_drive_end_together_whichever_is_told_to(rank, number, tmp_path):
    ended = end_of("generate", [*DRIVE, fault(tmp_path, 2, **{f"rank{rank}": number})], tmp_path)
    assert ended.codes == [128 + number, 0], ended.output
    assert ended.seconds < SOON_S
    assert "Traceback" not in ended.output
    steps = whole_steps(tmp_path / "run" / "drive.mp4")
    assert steps >= 3
    log = (tmp_path / "run" / "generate.log").read_text()
    assert f"Terminated after {steps} of 50000 realtime steps" in log
    assert ("interrupted" in ended.output) is (number == signal.SIGINT)


@pytest.mark.processes
def test_a_training_that_loses_a_rank_says_where_to_go_on(tmp_path):
    ended = end_of("train", [*TRAINING, fault(tmp_path, 3, rank1=signal.SIGKILL)], tmp_path)
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    line = f"rank 1 (pid {ended.lost}) died at training step 4; the others were ended; "
    check_told_once(ended, f"{line}go on from step 2 by ckpt_path={last}")
    assert ended.codes == [1, -signal.SIGKILL]
    assert "Traceback" not in ended.output
    assert torch.load(last, weights_only=True)["global_step"] == 2


@pytest.mark.processes
def test_a_drive_that_lightning_has_started_knows_how_its_rank_has_died(tmp_path):
    killed = fault(tmp_path, 2, rank1=signal.SIGKILL)
    ended = end_of_launched("generate", [*DRIVE, killed], tmp_path)
    line = f"rank 1 (pid {ended.lost}) died of signal 9 at realtime step 2; the others were ended; "
    check_told_once(ended, line + "files up to step 1 are whole")
    assert ended.codes == [1]
    assert "Traceback" not in ended.output
    assert whole_steps(tmp_path / "run" / "drive.mp4") == 2


@pytest.mark.processes
def test_a_training_that_lightning_has_started_shows_no_traceback_of_other_ranks(tmp_path):
    ended = end_of_launched("train", [*TRAINING, fault(tmp_path, 2, rank1=0)], tmp_path)
    run = tmp_path / "run"
    line = f"rank 1 (pid {ended.lost}) raised RuntimeError: a fault of two lines at training step 3"
    line += f"; the others were ended; go on from step 2 by ckpt_path={run}/checkpoints/last.ckpt"
    line += f"; its traceback is in {run}/train_ddp_process_1.log"
    check_told_once(ended, line)
    assert ended.codes == [1]
    assert "Traceback" not in ended.output
    assert "in _befall" in (run / "train_ddp_process_1.log").read_text()
