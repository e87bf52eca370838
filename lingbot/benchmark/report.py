"""Results as a table, as a table of differences, and as bench.json with every step in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from lingbot.benchmark.results import (
    COMPARED,
    PERCENTILES,
    Result,
    alone,
    comparisons,
    difference,
)
from lingbot.benchmark.statistics import Interval
from lingbot.json_file import write_json
from lingbot.realtime.step_table import readable_bytes

JSON = "bench.json"
Cell = Callable[[Result], str]


def results_table(among: Sequence[Result]) -> Table:
    """A column a setting and number of ranks: parts of a step in ms, pace, memory, floor."""
    table = Table(title=_title(among), title_justify="left")
    table.add_column("a realtime step, ms", no_wrap=True)
    for result in among:
        table.add_column(heading(result), justify="right")
    names = list(dict.fromkeys(name for result in among for name in result.names()))

    def add(label: str, cell: Cell, style: str = "") -> None:
        table.add_row(label, *(cell(result) for result in among), style=style)

    for name in names:
        if name.startswith("pass_"):
            add(name.removesuffix("_ms").replace("_", " "), _mean(name))
    for label, name in (("context update", "context_update_ms"), ("camera", "camera_ms")):
        add(label, _mean(name))
    add("transformer (all above)", _mean("transformer_ms"), style="bold")
    add("decode", _mean("decode_ms"))
    add("host and other", _mean("host_ms"))
    add("step", _mean("step_ms"), style="bold")
    if any(result.ranks > 1 for result in among):
        add("step, slowest rank", lambda r: f"{r.step_ms:.1f}")
        add("of it communication", _mean("communication_ms"))
        for name in names:
            if name.startswith("communication/") and name.endswith("/ms"):
                _, collective, path, _ = name.split("/")
                add(f"  {collective}, {path}", _mean(name))
    table.add_section()
    _add_pace(add, among)
    table.caption = _caption(among)
    table.caption_justify = "left"
    return table


def _add_pace(add: Callable[[str, Cell], None], among: Sequence[Result]) -> None:
    """Rows below the parts: what a player feels, what the machine gives."""
    for label, name in (("cadence", "cadence_ms"), ("key to frame", "key_to_frame_ms")):
        add(f"{label} p50 / p90 / p99", lambda r, name=name: _percentiles(r, name))  # type: ignore[misc]
    add("time to first frame", lambda r: f"{r.first_frame_ms:,.0f}")
    add("frames a second", lambda r: f"{r.frames_per_second:.1f}")
    if any(alone(result, among) for result in among) and any(r.ranks > 1 for r in among):
        add("speed-up, step / transformer", lambda r: _speed_up(r, alone(r, among)))
    add("peak memory", lambda r: readable_bytes(r.peak_bytes))
    add("conditioner hits / misses", _conditioner)
    add("TFLOP a step", lambda r: f"{r.flops / 1e12:.3g}")
    if any(result.mfu is not None for result in among):
        add("MFU, of the peak without fp8", lambda r: "" if r.mfu is None else f"{r.mfu:.1%}")
    add("floor, measured here in bursts", lambda r: f"{r.floor_ms:.1f}")
    add("fraction of the roofline", lambda r: f"{r.floor_ms / r.transformer_ms:.1%}")
    if all(result.records[0].device != "CPU" for result in among):  # whose power limits nothing
        add("floor, for as long as a step", lambda r: f"{r.sustained_floor_ms:.1f}")
        add("fraction of that", lambda r: f"{r.sustained_floor_ms / r.transformer_ms:.1%}")


def differences_table(among: Sequence[Result]) -> Table | None:
    """What every setting takes more than the first; None where nothing was compared."""
    pairs = comparisons(among)
    if not pairs:
        return None
    title = f"against {pairs[0][0].label}, with 95% confidence intervals over paired sessions"
    table = Table(title=title, title_justify="left")
    table.add_column("setting", no_wrap=True)
    for figure in COMPARED:
        name = figure.removesuffix("_ms").replace("_", " ")
        table.add_column(f"{name}, ms", justify="right")
        table.add_column("%", justify="right")
    for first, other in pairs:
        cells = []
        for figure in COMPARED:
            found = difference(first, other, figure)
            cells += [_signed(found.ms, 1, 2), _signed(found.fraction, 100, 1)]
        table.add_row(name_of(other), *cells)
    return table


def write_results(path: Path, circumstances: dict[str, Any], among: Sequence[Result]) -> None:
    """Everything, whole or not at all; numbers that are not finite become null."""
    report = {
        **circumstances,
        "settings": [_plain(result, alone(result, among)) for result in among],
        "comparisons": [
            {
                "ranks": other.ranks,
                "setting": other.label,
                "against": first.label,
                **{figure: asdict(difference(first, other, figure)) for figure in COMPARED},
            }
            for first, other in comparisons(among)
        ],
    }
    write_json(path, report)


def heading(result: Result) -> str:
    """The setting and its ranks on lines of their own, as columns and bars are named."""
    return "\n".join([result.label.replace("=", "=\n", 1), _count(result)])


def name_of(result: Result) -> str:
    """The setting and its ranks in one line."""
    return f"{result.label}, {_count(result)}"


def _plain(result: Result, on_one: Result | None) -> dict[str, Any]:
    return {
        "setting": result.label,
        "ranks": result.ranks,
        "devices": [record.device for record in result.records],
        "threads_per_rank": result.records[0].threads,
        "facts": [asdict(record.settings[result.index]) for record in result.records],
        "summary": result.summary(on_one),
        "steps": result.rows(),
        "sessions": [
            {
                "session": session[0].session,
                "left_out_steps": session[0].warmup_steps,
                "first_frame_ms": [rank.first_frame_ms for rank in session],
                "peak_memory_bytes": [rank.peak_bytes for rank in session],
            }
            for session in result.sessions
        ],
    }


def _count(result: Result) -> str:
    return "1 rank" if result.ranks == 1 else f"{result.ranks} ranks"


def _mean(name: str) -> Cell:
    def cell(result: Result) -> str:
        if name not in result.names():
            return ""
        figure = result.summary_of(name)
        return f"{figure.mean:.1f}" + (f" ±{figure.half:.1f}" if math.isfinite(figure.half) else "")

    return cell


def _percentiles(result: Result, name: str) -> str:
    values = result.percentiles(name)
    return " / ".join(f"{values[f'p{percent}']:.1f}" for percent in PERCENTILES)


def _speed_up(result: Result, on_one: Result | None) -> str:
    if on_one is None:
        return ""
    step = on_one.step_ms / result.step_ms
    return f"{step:.2f} / {on_one.transformer_ms / result.transformer_ms:.2f}"


def _conditioner(result: Result) -> str:
    hits, misses = (result.summary_of(f"conditioner_{name}").mean for name in ("hits", "misses"))
    return f"{hits:.0f} / {misses:.0f}"


def _signed(found: Interval, scale: float, digits: int) -> str:
    half = f" ±{scale * found.half:.{digits}f}" if math.isfinite(found.half) else ""
    return f"{scale * found.mean:+.{digits}f}{half}"


def _title(among: Sequence[Result]) -> str:
    first = among[0]
    facts = first.facts
    device = first.records[0].device
    tokens = f"{facts.chunk_tokens:,} tokens a chunk, {facts.visible_tokens:,} visible"
    return f"{device} · {facts.dtype} · {tokens}"


def _caption(among: Sequence[Result]) -> str:
    first = among[0]
    measured = sum(len(session) for session in first.steps())
    left_out = sum(session[0].warmup_steps for session in first.sessions)
    return (
        f"a column: {measured} steps of {len(first.sessions)} sessions, {left_out} more left out "
        "as warm-up; ± 95% confidence over sessions; means over ranks; communication lies inside "
        "the passes; the floor is matmuls, attention and exchange alone"
    )
