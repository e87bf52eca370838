"""How good a driven world is: PSNR against the true frames, and whether it follows the camera.

A scene is driven from its true first frame by its true actions. Beside the generated frames stand
the codec's ceiling (the true frames, encoded and decoded) and the floor (the first one, repeated).
The camera is followed where the generated chunk is nearer to the truth of the commanded drive than
to those of other drives from the same start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lingbot.camera.controls import frames_in_chunk
from lingbot.codec.video import VideoCodec, frames_to_uint8, uint8_to_frames
from lingbot.data.blockworld_clips import BlockWorldClips, Drive
from lingbot.data.control_stream import ControlStream
from lingbot.module import LingBotModule

PEAK = 255.0

Generate = Callable[[Drive, Tensor], Tensor]  # a drive and its first frame -> frames [T, H, W, 3]
Reconstruct = Callable[[Tensor], Tensor]  # frames [T, H, W, 3] through the codec and back


@dataclass(frozen=True)
class ChunkScore:
    """Mean squared errors of one chunk of one scene, on the scale of 0 to 255.

    Args:
        chunk: counted from 1.
        generated: of the generated frames against the truth.
        ceiling: of the codec's reconstruction against the truth.
        floor: of the first frame, repeated, against the truth.
        others: of the generated frames against the truths of other drives; drives that show the
            same frames as the commanded one are left out.
    """

    chunk: int
    generated: float
    ceiling: float
    floor: float
    others: tuple[float, ...]

    @property
    def comparable(self) -> bool:
        """Whether any other drive shows something else."""
        return bool(self.others)

    @property
    def followed(self) -> bool:
        """Whether the generated frames are nearest to the commanded drive."""
        return self.comparable and self.generated < min(self.others)


@dataclass(frozen=True)
class SceneScore:
    """Scores of one scene."""

    seed: int
    prompt: str
    chunks: tuple[ChunkScore, ...]


class DrivenScene(NamedTuple):
    """Scores of one scene, and the frames they came from, uint8 [T, H, W, 3]."""

    score: SceneScore
    generated: Tensor
    truth: Tensor


@dataclass(frozen=True)
class Summary:
    """One chunk over all scenes. PSNR is that of the error averaged over scenes, in dB."""

    chunk: int
    generated: float
    ceiling: float
    floor: float
    followed: int
    compared: int

    @property
    def over_floor(self) -> float:
        """dB gained over repeating the first frame."""
        return self.generated - self.floor

    @property
    def control_accuracy(self) -> float:
        """Share of the scenes in which the camera was followed; NaN where none can tell."""
        return self.followed / self.compared if self.compared else math.nan


def squared_error(frames: Tensor, truth: Tensor) -> float:
    """Mean squared error of uint8 frames, on the scale of 0 to 255.

    Raises:
        ValueError: for frames of different shapes, or that are not uint8.
    """
    if frames.shape != truth.shape or frames.dtype != torch.uint8 or truth.dtype != torch.uint8:
        raise ValueError(
            f"frames {list(frames.shape)} {frames.dtype} cannot be compared with "
            f"{list(truth.shape)} {truth.dtype}: give uint8 frames of one shape"
        )
    return (frames.double() - truth.double()).square().mean().item()


def psnr(error: float) -> float:
    """Peak signal-to-noise ratio in dB of a mean squared error; infinite where there is none."""
    return math.inf if error == 0 else 10 * math.log10(PEAK**2 / error)


def video_length(chunks: int, frames_per_chunk: int) -> int:
    """Video frames of a drive of that many chunks, the given first frame included."""
    if chunks == 0:
        return 1
    later = frames_in_chunk(1, frames_per_chunk)
    return 1 + frames_in_chunk(0, frames_per_chunk) + (chunks - 1) * later


def chunk_frames(chunk: int, frames_per_chunk: int) -> slice:
    """Video frames that a chunk (counted from 1) adds; the first frame is given, not made."""
    return slice(video_length(chunk - 1, frames_per_chunk), video_length(chunk, frames_per_chunk))


def score_chunk(
    chunk: int, generated: Tensor, ceiling: Tensor, truth: Tensor, others: Sequence[Tensor],
    frames_per_chunk: int,
) -> ChunkScore:  # fmt: skip
    """Score a chunk of whole videos, uint8 [T, H, W, 3] each."""
    part = chunk_frames(chunk, frames_per_chunk)
    made, true = generated[part], truth[part]
    telling = [other[part] for other in others if not torch.equal(other[part], true)]
    return ChunkScore(
        chunk,
        generated=squared_error(made, true),
        ceiling=squared_error(ceiling[part], true),
        floor=squared_error(truth[:1].expand_as(true), true),
        others=tuple(squared_error(made, other) for other in telling),
    )


def score_scenes(
    clips: BlockWorldClips,
    generate: Generate,
    reconstruct: Reconstruct,
    frames_per_chunk: int,
    chunks: Sequence[int],
    other_drives: int = 3,
) -> Iterator[DrivenScene]:
    """Drive one scene after another and score it.

    Args:
        clips: the scenes; every one is driven.
        generate: makes the frames of a drive from its first frame.
        reconstruct: takes true frames through the codec and back.
        frames_per_chunk: latent frames in a chunk.
        chunks: which to score, counted from 1.
        other_drives: from the same start, to compare the commanded one with.
    """
    for index in range(len(clips)):
        drive = clips.drive(index)
        truth = clips.render(drive).cpu()
        generated, ceiling = generate(drive, truth[0]), reconstruct(truth)
        variants = [clips.drive(index, variant) for variant in range(1, other_drives + 1)]
        others = [clips.render(variant).cpu() for variant in variants]
        scores = tuple(
            score_chunk(chunk, generated, ceiling, truth, others, frames_per_chunk)
            for chunk in chunks
        )
        yield DrivenScene(SceneScore(drive.seed, drive.prompt, scores), generated, truth)


def summarize(scenes: Sequence[SceneScore]) -> list[Summary]:
    """Every scored chunk over all scenes."""
    summaries = []
    for scores in zip(*(scene.chunks for scene in scenes), strict=True):
        generated, ceiling, floor = (
            psnr(math.fsum(getattr(score, name) for score in scores) / len(scores))
            for name in ("generated", "ceiling", "floor")
        )
        followed = sum(score.followed for score in scores)
        compared = sum(score.comparable for score in scores)
        summaries.append(Summary(scores[0].chunk, generated, ceiling, floor, followed, compared))
    return summaries


def driven_by(module: LingBotModule, seed: int = 0) -> Generate:
    """Generates by driving the module's world, a session a drive; noise is `seed`'s in each."""

    def generate(drive: Drive, image: Tensor) -> Tensor:
        stream = ControlStream.from_actions(drive.actions, module.camera.frames_per_chunk)
        with module.new_session(image, drive.prompt, seed) as session:
            return torch.cat([session.step(controls) for controls in stream])

    return generate


def through(codec: VideoCodec, frames_per_chunk: int) -> Reconstruct:
    """Encodes true frames and decodes them as a session does, chunk by chunk."""

    @torch.no_grad()
    def reconstruct(truth: Tensor) -> Tensor:
        latents = codec.encode(uint8_to_frames(truth[None].to(codec.device)))
        decoder = codec.stream()
        frames = [decoder.decode(chunk) for chunk in latents.split(frames_per_chunk, dim=2)]
        return frames_to_uint8(torch.cat(frames, dim=2))[0].cpu()

    return reconstruct
