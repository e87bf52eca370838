"""How far one setting is from the reference: errors of every chunk, and their summaries.

`free` compares two worlds that live in their own histories, as users see them. `forced` compares
the keys and values that both make from the reference's chunks.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lingbot.benchmark.settings import Setting
from lingbot.benchmark.worlds import Worlds, release_memory
from lingbot.fidelity.recording import (
    ChunkRecord,
    KeysValues,
    LongDrive,
    drive_freely,
    follow,
)
from lingbot.module import LingBotModule
from lingbot.scores import psnr, squared_error

LAST = 10  # chunks at the end of a drive, summarised apart
TELL_EVERY = 10
FRAMES = "free/psnr_db"
LATENTS = "free/latents"
Tell = Callable[[str], None]


@dataclass(frozen=True)
class LayerError:
    """Relative errors ||a - b|| / ||b|| of the keys and values that a chunk left at a layer."""

    layer: int
    keys: float
    values: float


@dataclass(frozen=True)
class ChunkDrift:
    """One chunk against the reference's.

    Args:
        chunk: counted from 1.
        squared_error: mean over the frames' bytes, on the scale of 0 to 255.
        latents: relative error of the clean latents.
        free: keys and values, each setting in its own history.
        forced: keys and values, both made from the reference's chunks.
    """

    chunk: int
    squared_error: float
    latents: float
    free: tuple[LayerError, ...]
    forced: tuple[LayerError, ...]

    @property
    def psnr_db(self) -> float:
        """Of the frames; infinite where they are the same."""
        return psnr(self.squared_error)

    def figures(self) -> dict[str, float]:
        """Every number by its name; frames as PSNR, the others as relative errors."""
        return {
            FRAMES: self.psnr_db,
            LATENTS: self.latents,
            **{
                f"{history}/{rows}/layer_{error.layer}": getattr(error, rows)
                for history, errors in (("free", self.free), ("forced", self.forced))
                for rows in ("keys", "values")
                for error in errors
            },
        }


@dataclass(frozen=True)
class Summary:
    """A figure over a drive and over its last chunks; PSNR is that of the mean squared error."""

    mean: float
    worst: float
    last_mean: float
    last_worst: float


@dataclass(frozen=True)
class SettingDrift:
    """A setting's whole drive against the reference's."""

    label: str
    chunks: tuple[ChunkDrift, ...]

    def series(self, name: str) -> list[float]:
        """One figure, chunk by chunk."""
        return [chunk.figures()[name] for chunk in self.chunks]

    def summaries(self) -> dict[str, Summary]:
        """Every figure by its name."""
        names = list(self.chunks[0].figures())
        errors = {name: self.series(name) for name in names}
        errors[FRAMES] = [chunk.squared_error for chunk in self.chunks]
        found = {}
        for name, values in errors.items():
            last = values[-LAST:]
            four = statistics.fmean(values), max(values), statistics.fmean(last), max(last)
            found[name] = Summary(*(map(psnr, four) if name == FRAMES else four))
        return found


def relative_error(value: Tensor, reference: Tensor) -> float:
    """||value - reference|| / ||reference||, in float64; infinite where only the latter is zero.

    Raises:
        ValueError: for tensors of different shapes.
    """
    if value.shape != reference.shape:
        raise ValueError(f"{list(value.shape)} cannot be compared with {list(reference.shape)}")
    true = reference.double()
    error, norm = (value.double() - true).norm().item(), true.norm().item()
    return error / norm if norm else math.copysign(math.inf, error) if error else 0.0


def layer_errors(rows: KeysValues, reference: KeysValues) -> tuple[LayerError, ...]:
    """Errors at every recorded layer."""
    return tuple(
        LayerError(
            layer,
            keys=relative_error(rows[layer][0], keys),
            values=relative_error(rows[layer][1], values),
        )
        for layer, (keys, values) in reference.items()
    )


def measure(
    settings: Sequence[Setting],
    drive: LongDrive,
    layers: Sequence[int],
    device: torch.device,
    seed: int,
    tell: Tell,
) -> list[SettingDrift]:
    """Drive the first setting, then every other one against it; one is alive at a time.

    Args:
        settings: the reference and what is compared with it, of known dtype.
        drive: the same for all.
        layers: whose keys and values are compared.
        device: where they run.
        seed: of random weights.
        tell: is told in words how far it is.
    """
    worlds = Worlds(device, seed)
    first, *others = settings
    reference = record(worlds.module(first), drive, layers, _progress(tell, first.label, drive))
    release_memory(device)  # the session's, also where the weights stay
    drifts = []
    for setting in others:
        progress = _progress(tell, setting.label, drive)
        chunks = compare(worlds.module(setting), drive, reference, layers, progress)
        release_memory(device)
        drifts.append(SettingDrift(setting.label, chunks))
    return drifts


def record(
    module: LingBotModule, drive: LongDrive, layers: Sequence[int], progress: Callable[[int], None]
) -> list[ChunkRecord]:
    """The reference's drive, kept whole on the CPU."""
    recorded = []
    with module.new_session(drive.image, drive.prompt, drive.seed) as session:
        for chunk in drive_freely(session, drive, layers):
            recorded.append(chunk)
            progress(len(recorded))
    return recorded


def compare(
    module: LingBotModule,
    drive: LongDrive,
    reference: Sequence[ChunkRecord],
    layers: Sequence[int],
    progress: Callable[[int], None],
) -> tuple[ChunkDrift, ...]:
    """Another setting's drive against the recorded one, free and forced, in one session."""
    given = [chunk.inputs for chunk in reference]
    with module.new_session(drive.image, drive.prompt, drive.seed) as session:
        forced = [
            layer_errors(rows, true.history)
            for rows, true in zip(follow(session, drive, given, layers), reference, strict=True)
        ]
        drifts: list[ChunkDrift] = []
        for chunk, true in zip(drive_freely(session, drive, layers), reference, strict=True):
            drift = ChunkDrift(
                chunk=len(drifts) + 1,
                squared_error=squared_error(chunk.frames, true.frames),
                latents=relative_error(chunk.inputs.clean, true.inputs.clean),
                free=layer_errors(chunk.history, true.history),
                forced=forced[len(drifts)],
            )
            drifts.append(drift)
            progress(len(drifts))
    return tuple(drifts)


def _progress(tell: Tell, label: str, drive: LongDrive) -> Callable[[int], None]:
    def progress(done: int) -> None:
        if done % TELL_EVERY == 0 or done == len(drive.controls):
            tell(f"{label}: chunk {done} of {len(drive.controls)}")

    return progress
