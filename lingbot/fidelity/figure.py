"""Drifts as one picture over the chunks: PSNR of frames above, errors of keys and values below."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import MaxNLocator

from lingbot.fidelity.errors import FRAMES, LATENTS, SettingDrift
from lingbot.realtime.step_figure import INK, style

PICTURE = "drift.png"
MANY_TIMES = 200
_SETTINGS = ("#b3312c", "#2f5d9b", "#3f8f88", "#8a6fb0", "#e3a23b", "#111418")
_DASHES = {"keys": "-", "values": (0, (3, 2)), "latents": (0, (1, 1))}


def draw_drifts(drifts: Sequence[SettingDrift], title: str) -> Figure:
    """A colour a setting, a shade a layer (the last one darkest), values dashed."""
    layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09)
    figure = Figure(figsize=(11, 9.4), dpi=130, layout=layout)
    figure.set_facecolor("white")
    frames, free, forced = figure.subplots(3, 1, sharex=True)
    for drift, colour in zip(drifts, _colours(len(drifts)), strict=True):
        x = [chunk.chunk for chunk in drift.chunks]
        y = [value if math.isfinite(value) else math.nan for value in drift.series(FRAMES)]
        frames.plot(x, y, color=colour, marker=".", label=drift.label)
        _draw_errors(free, drift, "free", colour, len(drifts) > 1)
        _draw_errors(forced, drift, "forced", colour, len(drifts) > 1)
    style(frames, "PSNR of frames, dB")
    style(free, "free: relative error")
    style(forced, "forced: relative error")
    same = [drift.label for drift in drifts if math.inf in drift.series(FRAMES)]
    if same:
        frames.set_title(f"no point where frames are the same: {', '.join(same)}", fontsize=9)
    for axes in (frames, free, forced):
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False, fontsize=8,
                    labelcolor=INK)  # fmt: skip
    for axes in (free, forced):
        _choose_scale(axes)
    forced.set_xlabel("chunk", color=INK)
    forced.xaxis.set_major_locator(MaxNLocator(integer=True))
    lines = textwrap.fill(title, int(9 * figure.get_figwidth()), subsequent_indent="  ")
    figure.suptitle(lines, x=0.012, ha="left", color=INK, fontsize=12)
    return figure


def _draw_errors(axes: Axes, drift: SettingDrift, history: str, colour: str, named: bool) -> None:
    """Lines of one setting: keys and values of every layer, clean latents where they are free."""
    x = [chunk.chunk for chunk in drift.chunks]
    which = f"{drift.label}: " if named else ""
    layers = [error.layer for error in drift.chunks[0].free]
    for rows in ("keys", "values"):
        for n, layer in enumerate(layers, 1):
            y = drift.series(f"{history}/{rows}/layer_{layer}")
            shade = 0.25 + 0.75 * n / len(layers)
            axes.plot(x, y, color=colour, alpha=shade, lw=1.4, ls=_DASHES[rows],
                      label=f"{which}{rows}, layer {layer}")  # fmt: skip
    if history == "free":
        y = drift.series(LATENTS)
        ink = colour if named else INK
        axes.plot(x, y, color=ink, lw=1.2, ls=_DASHES["latents"], label=f"{which}clean latents")


def _choose_scale(axes: Axes) -> None:
    """From zero on; logarithmic where settings are so far apart that one would lie on the floor."""
    heights = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.get_lines()])
    if 0 < MANY_TIMES * heights.min() < heights.max():
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)


def _colours(count: int) -> list[str]:
    return [_SETTINGS[n % len(_SETTINGS)] for n in range(count)]
