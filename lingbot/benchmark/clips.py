"""Training clips of noise: what a training step costs at any size, without a dataset."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from lingbot.benchmark.inputs import HELD
from lingbot.camera.actions import action_poses
from lingbot.camera.controls import LARGEST_SIDE, LONGEST_CHUNK
from lingbot.data.blockworld_clips import LONGEST_DRIVE, collate_clips
from lingbot.data.blockworld_module import MOST_CLIPS
from lingbot.data.endless_sampler import EndlessSampler
from lingbot.model.checks import check_count
from lingbot.training.resume import data_ranks

CHANNELS, STRIDE = 16, 8  # of every codec's latents


class RandomClips(Dataset[dict[str, Any]]):
    """Clips as `lingbot.data.blockworld_latents` describes them, of normal random numbers.

    Args:
        length: clips there are.
        latent_frames: of a clip.
        height, width: pixels, multiples of 8.
    """

    def __init__(self, length: int, latent_frames: int, height: int, width: int) -> None:
        self.length = length
        self.shape = CHANNELS, latent_frames, height // STRIDE, width // STRIDE

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        generator, draw = torch.Generator().manual_seed(index), random.Random(index)
        latents = torch.randn(self.shape, generator=generator)
        actions = tuple(draw.choice(HELD) for _ in range(4 * (self.shape[1] - 1)))
        return {
            "latents": latents,
            "image_latent": latents[:, :1],
            "poses": action_poses(actions),
            "actions": actions,
            "prompt": "noon, grass",
            "seed": index,
        }


class RandomClipsDataModule(L.LightningDataModule):
    """Batches of them, to train on; there is nothing to validate.

    Args:
        latent_frames: of a clip.
        height, width: pixels, multiples of 8.
        frames_per_chunk: latent frames of a chunk.
        batch_size: clips a batch.
        length: clips there are.

    Raises:
        ValueError: sizes below one, sides that are no multiples of 8, or a broken number of chunks.
    """

    endless = True  # see `lingbot.data.endless_sampler`

    def __init__(
        self,
        latent_frames: int,
        height: int,
        width: int,
        frames_per_chunk: int = 3,
        batch_size: int = 1,
        length: int = 100_000,
    ) -> None:
        super().__init__()
        for name, value, high in (
            ("latent_frames", latent_frames, LONGEST_DRIVE), ("height", height, LARGEST_SIDE),
            ("width", width, LARGEST_SIDE), ("frames_per_chunk", frames_per_chunk, LONGEST_CHUNK),
            ("batch_size", batch_size, length), ("length", length, MOST_CLIPS),
        ):  # fmt: skip
            check_count(f"data.{name}", value, high=high)
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"clips of {height}x{width}: both must be multiples of {STRIDE}")
        if latent_frames % frames_per_chunk:
            raise ValueError(
                f"data.latent_frames={latent_frames} must be a whole number of chunks of "
                f"frames_per_chunk={frames_per_chunk}"
            )
        self.dataset = RandomClips(length, latent_frames, height, width)
        self.batch_size = batch_size
        self.latent_shape = batch_size, latent_frames

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        sampler = EndlessSampler(self.dataset, self.batch_size, 0, *data_ranks(self.trainer))
        return DataLoader(
            self.dataset, self.batch_size, sampler=sampler, drop_last=True, collate_fn=collate_clips
        )
