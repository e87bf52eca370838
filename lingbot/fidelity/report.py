"""Drifts as a table and as drift.json with every chunk in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from lingbot.fidelity.errors import FRAMES, LAST, LATENTS, LayerError, SettingDrift
from lingbot.json_file import write_json

JSON = "drift.json"


def drift_table(drifts: Sequence[SettingDrift], title: str) -> Table:
    """A row a figure, a section a setting."""
    table = Table(title=escape(title), title_justify="left", caption_justify="left")
    last = min(LAST, len(drifts[0].chunks))
    table.add_column("", no_wrap=True)
    for heading in ("mean", "worst", f"last {last}, mean", f"last {last}, worst"):
        table.add_column(heading, justify="right")
    for drift in drifts:
        table.add_row(escape(drift.label), style="bold")
        for name, figure in drift.summaries().items():
            digits = ".2f" if name == FRAMES else ".3g"
            four = (figure.mean, figure.worst, figure.last_mean, figure.last_worst)
            table.add_row(f"  {words(name)}", *(format(value, digits) for value in four))
        table.add_section()
    table.caption = (
        "errors are relative, ||a - b|| / ||b||; free: each setting in its own history; forced: "
        "context updates of the reference's chunks; the mean PSNR is that of the mean error"
    )
    return table


def words(name: str) -> str:
    """A figure's name for people: free/keys/layer_3 -> free: keys, layer 3."""
    special = {FRAMES: "free: PSNR of frames, dB", LATENTS: "free: clean latents"}
    if name in special:
        return special[name]
    history, rows, layer = name.split("/")
    return f"{history}: {rows}, {layer.replace('_', ' ')}"


def write_drift(path: Path, circumstances: dict[str, Any], drifts: Sequence[SettingDrift]) -> None:
    """Everything, whole or not at all; an infinite PSNR becomes null, its squared error is 0."""
    write_json(path, {**circumstances, "settings": [_plain(drift) for drift in drifts]})


def _plain(drift: SettingDrift) -> dict[str, Any]:
    return {
        "setting": drift.label,
        "summary": {
            name: {
                "mean": figure.mean,
                "worst": figure.worst,
                f"last_{LAST}_mean": figure.last_mean,
                f"last_{LAST}_worst": figure.last_worst,
            }
            for name, figure in drift.summaries().items()
        },
        "chunks": [
            {
                "chunk": chunk.chunk,
                "free": {
                    "psnr_db": chunk.psnr_db,
                    "squared_error": chunk.squared_error,
                    "latents": chunk.latents,
                    **_by_layer(chunk.free),
                },
                "forced": _by_layer(chunk.forced),
            }
            for chunk in drift.chunks
        ],
    }


def _by_layer(errors: Sequence[LayerError]) -> dict[str, dict[str, float]]:
    return {
        rows: {f"layer_{error.layer}": getattr(error, rows) for error in errors}
        for rows in ("keys", "values")
    }
