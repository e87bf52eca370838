"""Results as one picture: a bar a setting and number of ranks, stacked from camera to host."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from lingbot.benchmark.report import heading
from lingbot.benchmark.results import Result
from lingbot.realtime.step_figure import INK, legend, parts, stack, style

PICTURE = "bench.png"


def draw_results(among: Sequence[Result], title: str) -> Figure:
    """Average steps by part, with the floor of each as a line across its bar."""
    layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09)
    figure = Figure(figsize=(max(8.5, 1.7 * len(among) + 2), 5.4), dpi=130, layout=layout)
    figure.set_facecolor("white")
    axes = figure.subplots()
    x = np.arange(len(among))
    reports = [result.mean_report() for result in among]
    stack(axes, x, [(_name(label), colour, ms) for label, colour, ms in parts(reports)], None, "")
    floors = [result.floor_ms for result in among]
    axes.hlines(floors, x - 0.45, x + 0.45, color=INK, lw=1.4, ls=(0, (4, 2)), label="floor")
    for place, result, report in zip(x, among, reports, strict=True):
        text = f"{report.total_ms:,.1f} ms\n{result.frames_per_second:.1f} fps"
        axes.annotate(text, (place, report.total_ms), xytext=(0, 4), textcoords="offset points",
                      ha="center", fontsize=9, color=INK)  # fmt: skip
    style(axes, "ms a realtime step")
    axes.set_xticks(x, [heading(result) for result in among])
    axes.set_xlim(-1.2, len(among) + 0.2)
    axes.set_ylim(0, 1.2 * max(*floors, *(report.total_ms for report in reports)))
    legend(axes)
    lines = textwrap.fill(title, int(9 * figure.get_figwidth()), subsequent_indent="  ")
    figure.suptitle(lines, x=0.012, ha="left", color=INK, fontsize=12)
    return figure


def _name(part: str) -> str:
    return "host and other" if part == "other" else part
