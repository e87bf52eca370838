"""The log of step times: files, loggers and table, alone, on several ranks, and interrupted."""

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger
from rich.console import Console

from lingbot.callbacks import RealtimeStepLog, StepPlot, StepProgress, VideoWriter
from lingbot.callbacks.step_progress import describe
from tests.callbacks.toy_drive import ToyDrive, drive, step_report
from tests.distributed import run_ranks


def _rows(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]


def _quiet() -> Console:
    return Console(file=io.StringIO(), width=140)


def test_every_step_is_in_the_csv_while_the_drive_goes_on(tmp_path):
    counts = []

    class Watcher(RealtimeStepLog):
        def step_done(self, trainer, report):
            super().step_done(trainer, report)
            counts.append(len(_rows(self.dirpath / "steps.csv")))

    drive(tmp_path, ToyDrive(), 4, [Watcher(tmp_path, console=_quiet())])
    assert counts == [1, 2, 3, 4]
    row = _rows(tmp_path / "steps.csv")[2]
    assert row["total_ms"] == 360
    assert row["key_to_frame_ms"] == 320
    assert row["pass_4_ms"] == 50
    assert row["other_ms"] == 10
    assert row["communication_ms"] == 25
    assert row["communication_share"] == pytest.approx(25 / 360, abs=1e-5)
    assert row["communication/to_heads/uniform/ms"] == 20
    assert row["communication/gather/variable/bytes"] == 50
    assert row["communication/gather/variable/calls"] == 4
    assert row["conditioner_misses"] == 6


def test_loggers_get_each_step_and_the_averages_without_the_first(tmp_path):
    step_log = RealtimeStepLog(tmp_path, console=_quiet())
    logger = CSVLogger(tmp_path, name=None, version="")
    drive(tmp_path, ToyDrive(), 3, [step_log], logger=logger)
    rows = _rows(tmp_path / "metrics.csv")
    own = [row for row in rows if "realtime_rank0/total_ms" in row]
    assert [row["step"] for row in own] == [0, 1, 2]
    reduced = [row for row in rows if "realtime/total_ms_max" in row]
    assert [row["realtime/total_ms_max"] for row in reduced] == [1000, 360, 360]
    assert rows[-1]["realtime_run/total_ms_mean"] == 360
    assert step_log.summary["frames_per_second"] == pytest.approx(12 / 0.36)


def test_the_table_names_every_part_path_and_the_cache(tmp_path):
    console = _quiet()
    drive(tmp_path, ToyDrive(), 3, [RealtimeStepLog(tmp_path, console=console)])
    text = console.file.getvalue()
    for words in ("33.3 frames a second", "first 1 left out", "pass 4", "context update", "decode"):
        assert words in text
    assert "key to frame" in text
    for words in ("to_heads, uniform", "gather, variable", "2.9 KiB", "24 hits, 6 misses, 2.0 KiB"):
        assert words in text


def test_an_interrupted_drive_still_has_its_files_and_says_so(tmp_path):
    console = _quiet()
    callbacks = [RealtimeStepLog(tmp_path, console=console), StepPlot(tmp_path / "steps.png")]
    with pytest.raises(RuntimeError, match="stopped on the way"):
        drive(tmp_path, ToyDrive(fail_at=2), 5, callbacks)
    assert len(_rows(tmp_path / "steps.csv")) == len(_rows(tmp_path / "steps_reduced.csv")) == 2
    assert "interrupted" in console.file.getvalue()
    assert (tmp_path / "steps.png").exists()


def test_a_module_without_reports_is_refused_with_what_is_missing(tmp_path):
    module = ToyDrive()
    module.session = None
    module.predict_step = lambda batch, batch_idx: None
    with pytest.raises(TypeError, match=r"session is None, which has no finished_reports"):
        drive(tmp_path, module, 1, [RealtimeStepLog(tmp_path)])


def test_the_progress_line_says_pace_communication_and_cache(tmp_path):
    console = _quiet()
    drive(tmp_path, ToyDrive(), 3, [StepProgress(console)])
    line = console.file.getvalue()
    assert "3/3" in line
    assert "33.3 fps · 360 ms · key to frame 320 ms · communication 25.0 ms, 7% · cache" in line
    assert "24 hits, 6 misses" in line
    assert line.endswith("misses\n")  # what comes next begins a line of its own
    assert describe(step_report(1, rank=3), 3, 4).startswith("rank 3: 25.0 fps")
    assert "communication" not in describe(step_report(1, collectives=False), 0, 1)


def _drive_on_a_rank(rank: int, folder: str) -> list[str]:
    own = Path(folder, f"rank{rank}")  # whatever a rank writes shows up in its own folder
    callbacks = [
        VideoWriter(own / "drive.mp4"),
        StepProgress(_quiet()),
        RealtimeStepLog(own, console=_quiet()),
        StepPlot(own / "steps.png"),
    ]
    drive(Path(folder), ToyDrive(), 3, callbacks, devices=2, strategy="ddp")
    assert "wandb" not in sys.modules, "imported though no logger asked for it"
    return sorted(path.name for path in own.glob("*"))


@pytest.mark.processes
def test_two_ranks_report_their_mean_and_maximum_and_only_rank_0_writes(tmp_path):
    files = run_ranks(_drive_on_a_rank, 2, str(tmp_path))
    names = ["drive.mp4", "first_frame.png", "steps.csv", "steps.png"]
    assert files == [[*names, "steps_ranks.csv", "steps_reduced.csv"], []]
    ranks = _rows(tmp_path / "rank0" / "steps_ranks.csv")
    assert [(row["rank"], row["step"]) for row in ranks] == [
        (r, s) for r in (0, 1) for s in (0, 1, 2)
    ]
    assert [row["total_ms"] for row in ranks] == [1000, 360, 360, 1040, 400, 400]
    reduced = _rows(tmp_path / "rank0" / "steps_reduced.csv")[1]
    assert (reduced["total_ms_mean"], reduced["total_ms_max"]) == (380, 400)
    assert (reduced["communication_ms_mean"], reduced["communication_ms_max"]) == (35, 45)
    assert reduced["communication/to_heads/uniform/ms_max"] == 30
    assert reduced["frames_per_second"] == pytest.approx(30)
    assert _rows(tmp_path / "rank0" / "steps.csv")[1]["total_ms"] == 360
