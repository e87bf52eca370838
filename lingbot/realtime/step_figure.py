"""A drive's steps as one picture: where each step's time went, and what communication cost.

Upper panel: a bar a step, its parts stacked in the order in which they come, with a mark where the
frames were in the caller's hands and communication's share of the step as a line (its time lies
inside the parts). What of the context update ran beside the decode adds nothing. Lower panel, where
ranks communicated: its time by collective and path. Built on `Figure` alone: the same in a
notebook, without a display, in a test.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from lingbot.realtime.events import StepReport
from lingbot.realtime.step_summary import mean_report, steps_across_ranks

INK = "#333a45"
FAINT = "#d9dde3"
_CAMERA, _CONTEXT, _DECODE, _OTHER = "#e3a23b", "#3f8f88", "#8a6fb0", "#b9bfc9"
_PASS_DARK, _PASS_LIGHT = np.array([0.16, 0.34, 0.58]), np.array([0.66, 0.79, 0.92])
_SHARE, _KEY = "#b3312c", "#111418"
_CROWD = 80  # more bars than this are drawn without gaps
_COLLECTIVES = ("#5b7fa6", "#d98c5f", "#7fa65b", "#a65b86", "#8c8c5b", "#5ba6a0")


def draw_steps(by_rank: Sequence[Sequence[StepReport]], fps: int = 16, note: str = "") -> Figure:
    """Draw reports [rank][step] as the mean over ranks, with a mark where the slowest rank ended.

    Args:
        by_rank: reports of a drive; `[reports]` for one rank.
        fps: the pace of playback, drawn as the time a step may take to keep up with it.
        note: added to the title, for what the reports cannot say about themselves.

    Raises:
        ValueError: no reports, or ranks that report different steps.
    """
    steps = steps_across_ranks(by_rank)
    if not steps:
        raise ValueError("No realtime step was reported, there is nothing to draw.")
    means = [mean_report(ranks) for ranks in steps]
    slowest = np.array([max(report.total_ms for report in ranks) for ranks in steps])
    longest = np.array([max(report.communication_ms for report in ranks) for ranks in steps])
    several = len(by_rank) > 1
    communicated = any(report.collectives for report in means)
    layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09)
    figure = Figure(figsize=(11, 7.2 if communicated else 5), dpi=130, layout=layout)
    figure.set_facecolor("white")
    rows = figure.subplots(
        2 if communicated else 1,
        1,
        sharex=True,
        squeeze=False,
        height_ratios=(2.4, 1) if communicated else (1,),
    )[:, 0]
    _draw_time(rows[0], means, slowest if several else None, fps)
    if communicated:
        _draw_share(rows[0], means)
        _draw_collectives(rows[1], means, longest if several else None)
    rows[-1].set_xlabel("realtime step", color=INK)
    ticks = MaxNLocator(integer=True, nbins=16, min_n_ticks=1, steps=[1, 2, 5, 10])
    rows[-1].xaxis.set_major_locator(ticks)
    margin = max(0.6, 3 - len(steps) / 2)
    rows[-1].set_xlim(means[0].step - margin, means[-1].step + margin)
    title = " · ".join(filter(None, (_title(means, slowest, len(by_rank)), note)))
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=13)
    return figure


def _draw_time(
    axes: Axes, means: Sequence[StepReport], slowest: np.ndarray | None, fps: int
) -> None:
    x = np.array([report.step for report in means])
    stack(axes, x, parts(means), slowest, "slowest rank")
    _draw_key_to_frame(axes, means)
    style(axes, "ms a step")
    totals = np.array([report.total_ms for report in means])
    top = _leave_out_warmup(axes, x, totals if slowest is None else slowest)
    budget = np.array([1000.0 * report.frames / fps for report in means])
    if budget[-1] < 1.25 * top:
        edges = np.append(x - 0.5, x[-1] + 0.5)
        dashes: dict[str, Any] = {"lw": 1.1, "ls": (0, (4, 3)), "label": f"{fps} fps"}
        axes.stairs(budget, edges, baseline=None, color=INK, **dashes)
        axes.set_ylim(0, max(top, 1.08 * budget[-1]))
    legend(axes)


def parts(means: Sequence[StepReport]) -> list[tuple[str, str, list[float]]]:
    """(label, colour, ms a step) of every part, bottom to top."""
    passes = max(len(report.pass_ms) for report in means)
    parts = [("camera", _CAMERA, [report.camera_ms for report in means])]
    for n in range(passes):
        blend = n / max(1, passes - 1)
        colour = to_hex((1 - blend) * _PASS_DARK + blend * _PASS_LIGHT)
        times = [r.pass_ms[n] if n < len(r.pass_ms) else 0.0 for r in means]
        parts.append((f"pass {n + 1}", colour, times))
    parts.append(("decode", _DECODE, [report.decode_ms for report in means]))
    alone = [report.context_update_ms - report.overlap_ms for report in means]
    parts.append(("context update", _CONTEXT, alone))
    parts.append(("other", _OTHER, [report.other_ms for report in means]))
    return parts


def _draw_key_to_frame(axes: Axes, means: Sequence[StepReport]) -> None:
    if any(report.key_to_frame_ms for report in means):
        x, y = zip(*((report.step, report.key_to_frame_ms) for report in means), strict=True)
        mark: dict[str, Any] = {"marker": "_", "ms": 11, "mew": 1.8} if len(x) <= _CROWD else {}
        axes.plot(x, y, color=_KEY, lw=0.8, ls=":", label="key to frame", **mark)


def _draw_share(axes: Axes, means: Sequence[StepReport]) -> None:
    share = axes.twinx()
    x, y = zip(*((report.step, report.communication_share) for report in means), strict=True)
    dots: dict[str, Any] = (
        {"marker": "o", "ms": 4.5, "mec": "white", "mew": 0.8} if len(means) <= _CROWD else {}
    )
    share.plot(x, y, color="white", lw=3.6, alpha=0.85)
    share.plot(x, y, color=_SHARE, lw=1.6, **dots)
    share.set_ylim(0, max(0.1, 1.5 * max(y)))
    share.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    share.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    share.set_ylabel("communication, share of the step", color=_SHARE)
    share.tick_params(colors=_SHARE, length=0)
    share.spines[:].set_visible(False)


def _draw_collectives(axes: Axes, means: Sequence[StepReport], longest: np.ndarray | None) -> None:
    keys = dict.fromkeys((entry.name, entry.path) for r in means for entry in r.collectives)
    parts = []
    for n, key in enumerate(keys):
        times = [
            sum(e.elapsed_ms for e in report.collectives if (e.name, e.path) == key)
            for report in means
        ]
        parts.append((", ".join(key), _COLLECTIVES[n % len(_COLLECTIVES)], times))
    x = np.array([report.step for report in means])
    stack(axes, x, parts, longest, "most on a rank")
    style(axes, "communication, ms")
    totals = np.array([report.communication_ms for report in means])
    _leave_out_warmup(axes, x, totals if longest is None else longest)
    legend(axes)


def stack(
    axes: Axes,
    x: np.ndarray,
    parts: Sequence[tuple[str, str, list[float]]],
    marks: np.ndarray | None,
    mark_label: str,
) -> None:
    bottom = np.zeros(len(x))
    crowded = len(x) > _CROWD
    bars: dict[str, Any] = {"width": 1.0 if crowded else 0.74, "linewidth": 0 if crowded else 0.5}
    for label, colour, heights in parts:
        axes.bar(x, heights, bottom=bottom, color=colour, ec="white", label=label, **bars)
        bottom = bottom + np.array(heights)
    if marks is not None:
        mark: dict[str, Any] = (
            {"lw": 0.8} if crowded else {"ls": "", "marker": "_", "ms": 9, "mew": 1.4}
        )
        axes.plot(x, marks, color=INK, label=mark_label, **mark)


def _leave_out_warmup(axes: Axes, x: np.ndarray, heights: np.ndarray) -> float:
    """Let the later steps set the scale where the first one (compiling) dwarfs them, and say so."""
    later = heights[1:].max() if len(heights) > 1 else heights[0]
    dwarfed = heights[0] > 2 * later > 0
    top = float(1.22 * later if dwarfed else 1.1 * heights.max()) or 1.0
    axes.set_ylim(0, top)
    if dwarfed:
        axes.annotate(
            f"step {x[0]}: {heights[0]:,.0f} ms",
            (x[0], top),
            xytext=(7, -5),
            textcoords="offset points",
            va="top",
            fontsize=9,
            color=INK,
            bbox={"boxstyle": "round,pad=0.25", "fc": "white", "ec": FAINT},
        )
    return top


def style(axes: Axes, label: str) -> None:
    axes.set_ylabel(label, color=INK)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
    axes.grid(axis="y", color=FAINT, lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)


def legend(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(
        handles,
        labels,
        loc="lower left",
        bbox_to_anchor=(-0.005, 1.0),
        ncols=len(labels),
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.1,
        handleheight=0.9,
        columnspacing=1.3,
        handletextpad=0.5,
        borderaxespad=0.2,
    )


def _title(means: Sequence[StepReport], slowest: np.ndarray, ranks: int) -> str:
    later = slice(1 if len(means) > 1 else 0, None)
    elapsed = float(slowest[later].sum())
    frames = sum(report.frames for report in means[later])
    pace = 1000 * frames / elapsed if elapsed > 0 else 0.0
    who = f"{ranks} ranks (bars: their mean)" if ranks > 1 else "one rank"
    first = " · without the first step" if len(means) > 1 else ""
    length = float(slowest[later].mean())
    return f"{length:,.0f} ms a realtime step, {pace:.1f} frames a second · {who}{first}"
