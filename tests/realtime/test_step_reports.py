"""Reports of realtime steps: their figures, their reduction over ranks, their files and picture."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console

from lingbot.parallel.communication_log import Collective
from lingbot.realtime.events import CollectiveTotal, StepReport, total_collectives
from lingbot.realtime.step_csv import StepCsv
from lingbot.realtime.step_figure import draw_steps
from lingbot.realtime.step_summary import (
    figures,
    gather_reports,
    mean_and_max,
    mean_report,
    steps_across_ranks,
    summarize,
)
from lingbot.realtime.step_table import readable_bytes, step_table


def _report(step: int = 1, total: float = 400.0, sent: float | None = 20.0) -> StepReport:
    collectives = [CollectiveTotal("to_heads", "uniform", 4096, 60, sent)] if sent else []
    return StepReport(
        step=step,
        frames=12,
        pass_ms=[60.0, 50.0],
        context_update_ms=40.0,
        camera_ms=10.0,
        decode_ms=100.0,
        total_ms=total,
        key_to_frame_ms=0.9 * total,
        collectives=collectives,
        conditioner_hits=24,
        conditioner_misses=6,
        conditioner_bytes=1000,
    )


def test_single_calls_are_totalled_by_name_and_path():
    calls = [
        Collective("to_heads", "uniform", 100, 2.0),
        Collective("gather", "uniform", 7, 1.0),
        Collective("to_heads", "uniform", 100, 3.0),
        Collective("to_heads", "variable", 90, 4.0),
    ]
    assert total_collectives(calls) == [
        CollectiveTotal("to_heads", "uniform", 200, 2, 5.0),
        CollectiveTotal("gather", "uniform", 7, 1, 1.0),
        CollectiveTotal("to_heads", "variable", 90, 1, 4.0),
    ]


def test_derived_figures_follow_from_the_parts():
    report = _report()
    assert report.other_ms == 400 - 60 - 50 - 40 - 10 - 100
    assert report.frames_per_second == pytest.approx(30)
    assert report.communication_share == pytest.approx(0.05)
    beside = replace(report, overlap_ms=30.0, total_ms=280.0)  # of the update's 40, beside decode
    assert beside.other_ms == 280 + 30 - 60 - 50 - 40 - 10 - 100
    nothing = StepReport(0, 0, [], 0.0, 0.0, 0.0, 0.0)
    assert (nothing.frames_per_second, nothing.communication_share, nothing.other_ms) == (0, 0, 0)


def test_a_report_survives_json():
    report = _report()
    assert StepReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_ranks_are_reduced_to_mean_maximum_and_the_slowest_pace():
    ranks = (_report(total=400.0), _report(total=480.0, sent=60.0), _report(total=380.0, sent=None))
    reduced = mean_and_max(ranks)
    assert (reduced["total_ms_mean"], reduced["total_ms_max"]) == (420, 480)
    assert reduced["communication/to_heads/uniform/ms_mean"] == pytest.approx(80 / 3)
    assert reduced["communication/to_heads/uniform/ms_max"] == 60
    assert reduced["frames_per_second"] == pytest.approx(25)
    mean = mean_report(ranks)
    assert mean.total_ms == 420
    assert mean.key_to_frame_ms == pytest.approx(378)
    assert mean.communication_ms == pytest.approx(80 / 3)
    assert mean.collectives[0].calls == 40


def test_the_summary_leaves_warm_up_out_unless_there_is_nothing_else():
    reports = [_report(0, total=9000.0), _report(1), _report(2, total=500.0)]
    summary = summarize([reports], warmup=1)
    assert summary["total_ms_mean"] == 450
    assert summary["frames_per_second"] == pytest.approx(24 / 0.9)
    assert summary["steps"] == 3
    assert summarize([reports[:1]], warmup=1)["total_ms_mean"] == 9000
    assert summarize([[]]) == {}


def test_ranks_that_saw_different_steps_are_refused():
    with pytest.raises(ValueError, match="rank 0: 2, rank 1: 1"):
        steps_across_ranks([[_report(0), _report(1)], [_report(0)]])


def test_alone_a_gather_gives_ones_own_reports():
    reports = [_report(0), _report(1)]
    assert gather_reports(reports) == [reports]


def test_a_column_that_appears_late_widens_the_whole_file(tmp_path):
    path = tmp_path / "folder" / "steps.csv"
    steps = StepCsv(path)
    for row in ({"step": 0, "a": 1.5}, {"step": 1, "a": 2.5}, {"step": 2, "b": 7}):
        steps.append(row)
    steps.append({"step": 3, "a": 3.5})
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["a"] for row in rows] == ["1.5", "2.5", "", "3.5"]
    assert [row["b"] for row in rows] == ["", "", "7", ""]


def test_the_table_shows_the_slowest_rank_only_where_there_are_several():
    def rendered(by_rank: list[list[StepReport]]) -> str:
        console = Console(file=io.StringIO(), width=140)
        console.print(step_table(by_rank))
        return console.file.getvalue()

    several = rendered([[_report(0), _report(1)], [_report(0), _report(1, total=480.0)]])
    assert "slowest rank ms" in several
    assert "2 ranks" in several
    assert "25.0 frames a second" in several
    alone = rendered([[_report(0, sent=None), _report(1, sent=None)]])
    assert "slowest rank" not in alone
    assert "communication" not in alone
    with pytest.raises(ValueError, match="No realtime step"):
        step_table([[]])


def test_the_table_says_how_much_of_the_context_update_ran_beside_the_decode():
    console = Console(file=io.StringIO(), width=140)
    console.print(step_table([[replace(_report(), overlap_ms=30.0)]]))
    console.print(step_table([[_report()]]))
    assert console.file.getvalue().count("beside the decode") == 1
    assert console.file.getvalue().count("key to frame") == 2


def test_byte_counts_are_readable():
    shown = [readable_bytes(count) for count in (12, 1536, 5 * 2**20, 3 * 2**30)]
    assert shown == ["12 B", "1.5 KiB", "5.0 MiB", "3.00 GiB"]


def test_the_picture_stacks_each_step_up_to_its_total():
    by_rank = [
        [replace(_report(s, total=400.0 + s), overlap_ms=30.0) for s in range(4)],
        [_report(s) for s in range(4)],
    ]
    figure = draw_steps(by_rank)
    time, communication, share = figure.axes[0], figure.axes[1], figure.axes[2]
    tops: dict[float, float] = {}
    for bar in time.patches[: 4 * 6]:
        middle = round(bar.get_x() + bar.get_width() / 2)
        tops[middle] = tops.get(middle, 0.0) + bar.get_height()
    assert tops == pytest.approx(
        {s: mean_report(r).total_ms for s, r in enumerate(zip(*by_rank, strict=True))}
    )
    (key,) = (line for line in time.lines if line.get_label() == "key to frame")
    np.testing.assert_allclose(key.get_ydata(), [0.9 * (400 + s / 2) for s in range(4)])
    assert [bar.get_height() for bar in communication.patches] == [20.0] * 4
    np.testing.assert_allclose(share.lines[-1].get_ydata(), [0.05] * 4, atol=1e-3)


def test_a_first_step_that_dwarfs_the_others_is_cut_off_and_named():
    reports = [_report(0, total=90_000.0), *(_report(step) for step in range(1, 5))]
    axes = draw_steps([reports]).axes[0]
    assert axes.get_ylim()[1] < 1000
    assert [note.get_text() for note in axes.texts] == ["step 0: 90,000 ms"]


def test_without_communication_there_is_one_panel_and_without_steps_no_picture():
    assert len(draw_steps([[_report(sent=None)]]).axes) == 1
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_steps([[]])


def test_figures_are_flat_numbers():
    assert all(isinstance(value, (int, float)) for value in figures(_report()).values())
