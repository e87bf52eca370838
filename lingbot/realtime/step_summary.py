"""Realtime steps as numbers: one rank's figures, several ranks' mean and maximum, a run's averages.

Ranks of a sequence group work on the same step together, so the slowest one sets the pace: frames a
second come from the largest total. A collective's time includes waiting for the slowest rank; where
mean and maximum are far apart, ranks wait for each other rather than for the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from lingbot.realtime.events import CollectiveTotal, StepReport

Figures = dict[str, float]

_RATES = ("step", "frames", "frames_per_second")  # the same on all ranks, or derived from them


def figures(report: StepReport) -> Figures:
    """Flatten a report: `total_ms`, `pass_1_ms`, ..., `communication/qkv/uniform/ms`, ..."""
    flat: Figures = {
        "step": report.step,
        "frames": report.frames,
        "frames_per_second": report.frames_per_second,
        "total_ms": report.total_ms,
        "key_to_frame_ms": report.key_to_frame_ms,
        "camera_ms": report.camera_ms,
    }
    flat |= {f"pass_{n}_ms": elapsed for n, elapsed in enumerate(report.pass_ms, start=1)}
    flat |= {
        "context_update_ms": report.context_update_ms,
        "decode_ms": report.decode_ms,
        "overlap_ms": report.overlap_ms,
        "other_ms": report.other_ms,
        "communication_ms": report.communication_ms,
        "communication_share": report.communication_share,
        "communication_bytes": report.communication_bytes,
        "communication_calls": report.communication_calls,
        "conditioner_hits": report.conditioner_hits,
        "conditioner_misses": report.conditioner_misses,
        "conditioner_bytes": report.conditioner_bytes,
    }
    for entry in report.collectives:
        prefix = f"communication/{entry.name}/{entry.path}"
        flat[f"{prefix}/ms"] = entry.elapsed_ms
        flat[f"{prefix}/bytes"] = entry.bytes
        flat[f"{prefix}/calls"] = entry.calls
    return flat


def gather_reports(reports: Sequence[StepReport]) -> list[list[StepReport]]:
    """Every rank's reports, by rank, on every rank; alone, just one's own.

    A collective over the world, on the CPU: all ranks call it, after a drive, never inside a step.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return [list(reports)]
    own_group = dist.get_backend() != "gloo"
    group = dist.new_group(backend="gloo") if own_group else dist.group.WORLD
    gathered: list[list[dict]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(gathered, [report.to_dict() for report in reports], group=group)
    if own_group:
        dist.destroy_process_group(group)
    return [[StepReport.from_dict(values) for values in rank] for rank in gathered]


def steps_across_ranks(by_rank: Sequence[Sequence[StepReport]]) -> list[tuple[StepReport, ...]]:
    """Regroup reports [rank][step] as [step][rank]; ValueError where ranks saw different steps."""
    steps = [[report.step for report in reports] for reports in by_rank]
    if any(seen != steps[0] for seen in steps):
        counts = ", ".join(f"rank {rank}: {len(seen)}" for rank, seen in enumerate(steps))
        raise ValueError(
            f"Ranks report different steps ({counts}); reduce only reports of one drive, gathered "
            "after its last step."
        )
    return list(zip(*by_rank, strict=True))


def mean_and_max(ranks: Sequence[StepReport]) -> Figures:
    """One step over its ranks: `NAME_mean` and `NAME_max` of every figure, the slowest pace."""
    flat = [figures(report) for report in ranks]
    names = dict.fromkeys(name for rank in flat for name in rank if name not in _RATES)
    slowest = max(ranks, key=lambda report: report.total_ms)
    reduced: Figures = {
        "step": slowest.step,
        "frames": slowest.frames,
        "frames_per_second": slowest.frames_per_second,
    }
    for name in names:
        values = [rank.get(name, 0.0) for rank in flat]  # not called on a rank: no time, no bytes
        reduced[f"{name}_mean"] = sum(values) / len(values)
        reduced[f"{name}_max"] = max(values)
    return reduced


def mean_report(ranks: Sequence[StepReport]) -> StepReport:
    """One step as the average rank saw it (counts and bytes rounded)."""
    count = len(ranks)
    entries: dict[tuple[str, str], list[CollectiveTotal]] = {}
    for report in ranks:
        for entry in report.collectives:
            entries.setdefault((entry.name, entry.path), []).append(entry)
    return StepReport(
        step=ranks[0].step,
        frames=ranks[0].frames,
        pass_ms=[sum(each) / count for each in zip(*(r.pass_ms for r in ranks), strict=True)],
        context_update_ms=sum(r.context_update_ms for r in ranks) / count,
        camera_ms=sum(r.camera_ms for r in ranks) / count,
        decode_ms=sum(r.decode_ms for r in ranks) / count,
        total_ms=sum(r.total_ms for r in ranks) / count,
        key_to_frame_ms=sum(r.key_to_frame_ms for r in ranks) / count,
        overlap_ms=sum(r.overlap_ms for r in ranks) / count,
        collectives=[
            CollectiveTotal(
                name=name,
                path=path,
                bytes=round(sum(entry.bytes for entry in group) / count),
                calls=round(sum(entry.calls for entry in group) / count),
                elapsed_ms=sum(entry.elapsed_ms for entry in group) / count,
            )
            for (name, path), group in entries.items()
        ],
        conditioner_hits=round(sum(r.conditioner_hits for r in ranks) / count),
        conditioner_misses=round(sum(r.conditioner_misses for r in ranks) / count),
        conditioner_bytes=round(sum(r.conditioner_bytes for r in ranks) / count),
    )


def steady_steps(count: int, warmup: int) -> slice:
    """The steps a summary speaks of: without the first `warmup`, unless there are no others."""
    return slice(warmup if count > warmup else 0, count)


def summarize(by_rank: Sequence[Sequence[StepReport]], warmup: int = 1) -> Figures:
    """Average the reduced steps of a drive, without its first `warmup` (they compile and allocate).

    Frames a second are all frames over all time of the slowest ranks.
    """
    reduced = [mean_and_max(ranks) for ranks in steps_across_ranks(by_rank)]
    steady = reduced[steady_steps(len(reduced), warmup)]
    if not steady:
        return {}
    names = dict.fromkeys(name for step in steady for name in step if name not in _RATES)
    means: Figures = {
        name: sum(step.get(name, 0.0) for step in steady) / len(steady) for name in names
    }
    elapsed = sum(step["total_ms_max"] for step in steady)
    pace = 1000.0 * sum(step["frames"] for step in steady) / elapsed if elapsed > 0 else 0.0
    counts = {"steps": len(reduced), "ranks": len(by_rank)}
    return {**counts, "frames_per_second": pace, **means}
