"""Scores as a table, as metrics.json and as contact sheets of generated over true frames."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image
from rich.table import Table

import lingbot
from lingbot.data.contact_sheet import draw_contact_sheet, spread_frames
from lingbot.json_file import write_json
from lingbot.scores import DrivenScene, SceneScore, Summary

METRICS = "metrics.json"
README_SHEET = "contact_sheet.png"


def scores_table(summaries: Sequence[Summary], title: str) -> Table:
    """Lay out summaries, a column a chunk."""
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for summary in summaries:
        table.add_column(f"chunk {summary.chunk}", justify="right")
    for label, name in (
        ("PSNR generated, dB", "generated"),
        ("codec's ceiling", "ceiling"),
        ("first frame repeated", "floor"),
        ("gained over that", "over_floor"),
    ):
        table.add_row(label, *(f"{getattr(summary, name):.2f}" for summary in summaries))
    table.add_row(
        "camera followed",
        *(f"{s.control_accuracy:.1%} ({s.followed}/{s.compared})" for s in summaries),
    )
    return table


def write_metrics(
    path: Path,
    circumstances: dict[str, Any],
    summaries: Sequence[Summary],
    scores: Sequence[SceneScore],
) -> None:
    """Write everything as JSON, whole or not at all; numbers that are not finite become null."""
    metrics = {
        **circumstances,
        "chunks": [_plain(summary) for summary in summaries],
        "squared_errors": [asdict(score) for score in scores],
    }
    write_json(path, metrics)


def draw_scenes(scenes: Sequence[DrivenScene], columns: int, fps: int) -> Image.Image:
    """Generated over true frames of each scene, time from left to right."""
    chosen = spread_frames(min(len(scene.truth) for scene in scenes), columns)
    rows = []
    for scene in scenes:
        words = scene.score.prompt.split(", ")
        lines = [", ".join(words[i : i + 2]) for i in range(0, len(words), 2)]
        rows.append(("\n".join([*lines, "", "generated"]), scene.generated[chosen].numpy()))
        rows.append(("truth", scene.truth[chosen].numpy()))
    headings = [f"{frame / fps:.2f} s" for frame in chosen]
    return draw_contact_sheet(rows, headings, group=2)


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "lingbot": lingbot.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
    }


def _plain(summary: Summary) -> dict[str, Any]:
    decibels = ("generated", "ceiling", "floor", "over_floor")
    return {
        "chunk": summary.chunk,
        "psnr_db": {name: getattr(summary, name) for name in decibels},
        "control_accuracy": summary.control_accuracy,
        "scenes_followed": summary.followed,
        "scenes_compared": summary.compared,
    }
