"""A drive's steps as one readable table: where a step's time went, and what was communicated."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lingbot.realtime.events import StepReport
from lingbot.realtime.step_summary import (
    Figures,
    mean_and_max,
    steady_steps,
    steps_across_ranks,
    summarize,
)


def step_table(by_rank: Sequence[Sequence[StepReport]], warmup: int = 1, note: str = "") -> Table:
    """Lay out reports [rank][step]: mean over ranks and steps, slowest rank, worst step, share.

    The communication rows are part of the passes, decode and context update above them, not in
    addition to them. Where the context update ran beside the decode, the parts sum to more than the
    total, by the row that says how much. `note` goes into the title, for what the reports cannot
    say about themselves.
    """
    means = summarize(by_rank, warmup)
    if not means:
        raise ValueError("No realtime step was reported, there is nothing to lay out in a table.")
    reduced = [mean_and_max(ranks) for ranks in steps_across_ranks(by_rank)]
    steady = reduced[steady_steps(len(reduced), warmup)]
    worst = {name: max(step.get(name, 0.0) for step in steady) for name in means}
    several = len(by_rank) > 1
    title = " · ".join(filter(None, (_title(by_rank, means, len(steady)), note)))
    table = Table(title=title, title_justify="left")
    table.add_column("realtime step")
    table.add_column("mean ms", justify="right")
    if several:
        table.add_column("slowest rank ms", justify="right")
    table.add_column("worst step ms", justify="right")
    table.add_column("share", justify="right")
    table.add_column("calls", justify="right")
    table.add_column("sent", justify="right")

    def add(label: str, name: str, calls: str = "", sent: str = "", style: str = "") -> None:
        share = means[f"{name}_mean"] / (means["total_ms_mean"] or 1.0)
        cells = [f"{means[f'{name}_mean']:.1f}"]
        cells += [f"{means[f'{name}_max']:.1f}"] if several else []
        cells += [f"{worst[f'{name}_max']:.1f}", f"{share:.1%}", calls, sent]
        table.add_row(label, *cells, style=style)

    passes = [n for n in means if n.startswith("pass_") and n.endswith("_ms_mean")]
    add("camera", "camera_ms")
    for number in range(1, len(passes) + 1):
        add(f"pass {number}", f"pass_{number}_ms")
    add("decode", "decode_ms")
    add("context update", "context_update_ms")
    if means["overlap_ms_mean"] > 0:
        add("  beside the decode", "overlap_ms")
    add("other", "other_ms")
    table.add_section()
    add("total", "total_ms", style="bold")
    add("key to frame", "key_to_frame_ms")
    table.add_section()
    collectives = [n for n in means if n.startswith("communication/") and n.endswith("/ms_mean")]
    if collectives:
        add("of it communication", "communication_ms", *_traffic(means, "communication_"))
    for name in collectives:
        prefix = name.removesuffix("ms_mean")
        _, collective, path, _ = prefix.split("/")
        add(f"  {collective}, {path}", f"{prefix}ms", *_traffic(means, prefix))
    table.caption = _conditioner_line(means)
    table.caption_justify = "left"
    return table


def readable_bytes(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _traffic(means: Figures, prefix: str) -> tuple[str, str]:
    return f"{means[f'{prefix}calls_mean']:.0f}", readable_bytes(means[f"{prefix}bytes_mean"])


def _title(by_rank: Sequence[Sequence[StepReport]], means: Figures, steady: int) -> str:
    steps = len(by_rank[0])
    ranks = f"{len(by_rank)} ranks" if len(by_rank) > 1 else "1 rank"
    left_out = f", first {steps - steady} left out" if steps > steady else ""
    plural = "s" if steps != 1 else ""
    pace = f"{means['frames_per_second']:.1f} frames a second"
    return f"{pace} · {steps} realtime step{plural}{left_out} · {ranks}"


def _conditioner_line(means: Figures) -> str:
    hits, misses = means["conditioner_hits_mean"], means["conditioner_misses_mean"]
    held = readable_bytes(means["conditioner_bytes_mean"])
    return f"conditioner cache, a step: {hits:.0f} hits, {misses:.0f} misses, {held}"
