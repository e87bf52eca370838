"""The Lightning data module of BlockWorld: encoded clips for the transformer, or bare frames.

Latents are encoded once, on first use, and kept on disk; frames are rendered when they are asked
for and never stored.
"""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from lingbot.camera.controls import LARGEST_SIDE
from lingbot.data.blockworld_clips import LONGEST_DRIVE, BlockWorldClips, Split, collate_clips
from lingbot.data.blockworld_latents import (
    BlockWorldLatents,
    Encoder,
    describe,
    encode_parts,
    merge,
    part_names,
)
from lingbot.data.endless_sampler import EndlessSampler
from lingbot.device import choose_device
from lingbot.model.checks import check_count
from lingbot.training.resume import data_ranks, trained_batches

log = logging.getLogger(__name__)

Content = Literal["latents", "frames"]
CHANNELS = 16  # of a latent, kept in float16
STRIDE = 8  # pixels a latent pixel, each way
MOST_CLIPS = 10_000_000  # whose order is drawn anew every epoch
MOST_WORKERS = 1024


class BlockWorldDataModule(L.LightningDataModule):
    """Training and validation clips of BlockWorld.

    Args:
        content: items of `BlockWorldLatents` ("latents") or of `BlockWorldClips` ("frames").
        codec: what encodes the clips; needed for "latents" alone.
        cache_dir: folder of the encoded clips; each file is named after what it holds.
        num_frames: video frames a clip, 4 k + 1 (93 are 24 latent frames, 8 chunks of 3).
        train_clips, val_clips: how many there are of each.
        latent_frames: train on the first of each clip's latent frames only; None for all.
        batch_size, val_batch_size: clips a batch.
        encode_batch_size: clips that the codec encodes together.
        num_workers: processes that load, or render, the clips. A dozen of them render several times
            as fast as one GPU, which waits for the many small steps of a scene.
        height, width: pixels, multiples of 8.
        device: where clips are encoded for the cache and, without workers, rendered; "auto" is a
            GPU where there is one. Bare frames are always rendered on the CPU.
        seed: of the order in which training clips come.

    Raises:
        ValueError: an unknown content, "latents" without codec or folder, a length the codec
            cannot encode, sizes or numbers of clips that cannot be.
    """

    endless = True  # see `lingbot.data.endless_sampler`

    def __init__(
        self,
        content: Content = "latents",
        codec: Encoder | None = None,
        cache_dir: str | Path | None = None,
        num_frames: int = 93,
        train_clips: int = 1200,
        val_clips: int = 64,
        latent_frames: int | None = None,
        batch_size: int = 8,
        val_batch_size: int = 8,
        encode_batch_size: int = 2,
        num_workers: int = 0,
        height: int = 96,
        width: int = 160,
        device: str = "auto",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if content not in ("latents", "frames"):
            raise ValueError(f"content={content!r}: use 'latents' or 'frames'.")
        for name, value, low, high in (
            ("num_frames", num_frames, 5, LONGEST_DRIVE),
            ("train_clips", train_clips, 1, MOST_CLIPS),
            ("val_clips", val_clips, 1, MOST_CLIPS),
            ("batch_size", batch_size, 1, train_clips),
            ("val_batch_size", val_batch_size, 1, MOST_CLIPS),
            ("encode_batch_size", encode_batch_size, 1, MOST_CLIPS),
            ("num_workers", num_workers, 0, MOST_WORKERS),
            ("height", height, STRIDE, LARGEST_SIDE),
            ("width", width, STRIDE, LARGEST_SIDE),
        ):
            check_count(f"data.{name}", value, low, high)
        if height % STRIDE or width % STRIDE:
            raise ValueError(
                f"data.height={height}, data.width={width}: both must be multiples of {STRIDE}"
            )
        if content == "latents" and (codec is None or cache_dir is None):
            raise ValueError("content='latents' needs a codec and a cache_dir to keep them in.")
        if num_frames % 4 != 1:
            raise ValueError(
                f"num_frames={num_frames}: a codec takes 4 k + 1 frames, such as "
                f"{num_frames // 4 * 4 + 1}."
            )
        encoded = 1 + (num_frames - 1) // 4
        if latent_frames is not None and content == "latents":
            check_count("data.latent_frames", latent_frames, 1, encoded)
        self.content, self.codec, self.latent_frames = content, codec, latent_frames
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.batch_sizes = {"train": batch_size, "val": val_batch_size}
        self.device = device if device == "auto" else str(choose_device(device))
        self.seed = seed
        self.encode_batch_size, self.num_workers = encode_batch_size, num_workers
        self.latent_shape = batch_size, latent_frames or encoded  # clips, latent frames each
        self.clips = {
            "train": BlockWorldClips("train", train_clips, num_frames, height, width),
            "val": BlockWorldClips("val", val_clips, num_frames, height, width),
        }
        self.datasets: dict[str, Dataset[dict[str, Any]]] = {}

    @property
    def bytes_to_encode(self) -> int:
        """Main memory of clips that are put together; a file that is there is mapped instead."""
        if self.content == "frames" or self.cache_dir is None:
            return 0
        one = self.clips["train"]
        latent = 1 + (one.num_frames - 1) // 4
        pixels = one.height * one.width
        clip = 2 * CHANNELS * latent * pixels // STRIDE**2 + 3 * pixels + 128 * one.num_frames
        missing = (
            clips
            for split, clips in self.clips.items()
            if not any(self.cache_dir.glob(f"blockworld_{split}_*.safetensors"))
        )
        return clip * sum(len(clips) for clips in missing)

    def setup(self, stage: str | None = None) -> None:
        """Encode what is not in the cache yet, the processes of a node together; open the clips."""
        for split, clips in self.clips.items():
            if self.content == "frames":
                self.datasets[split] = clips
            else:
                self._encode(split, clips)
                path = self.cache_path(split)
                self.datasets[split] = BlockWorldLatents(path, self.latent_frames)
        if isinstance(self.codec, nn.Module):
            self.codec.to("cpu")

    def _encode(self, split: str, clips: BlockWorldClips) -> None:
        """Parts of the cache on every process, put together by the node's first."""
        assert self.codec is not None
        path, trainer = self.cache_path(split), self.trainer
        rank, ranks = (trainer.local_rank, trainer.num_devices) if trainer else (0, 1)
        wait = trainer.strategy.barrier if trainer else lambda: None
        missing = not path.is_file()
        wait()  # nobody looks for the file after somebody has made it
        if not missing:
            return
        device = self._encoding_device()
        if rank == 0:
            log.info("encoding %d clips of %s on %s", len(clips), path.name, device)
        rendered = clips if self.num_workers else clips.on(device)
        codec = self.codec.to(device) if isinstance(self.codec, nn.Module) else self.codec
        encode_parts(
            path, rendered, codec, self.encode_batch_size, self.num_workers, rank, ranks
        )  # fmt: skip
        wait()
        if rank == 0:
            merge(path, part_names(path, clips), describe(clips, codec))
        wait()

    def _encoding_device(self) -> torch.device:
        """The one asked for; with "auto" this process's own GPU, where there is one."""
        if self.device != "auto":
            return torch.device(self.device)
        if not torch.cuda.is_available():
            return torch.device("cpu")
        return self.trainer.strategy.root_device if self.trainer else torch.device("cuda")

    def cache_path(self, split: Split | str) -> Path:
        """The file of a split's latents: its name changes with whatever changes the latents."""
        assert self.cache_dir is not None
        assert self.codec is not None
        key = describe(self.clips[split], self.codec)
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
        return self.cache_dir / f"blockworld_{split}_{digest}.safetensors"

    def _sampler(self) -> EndlessSampler:
        """The order of training clips, from where the training stands."""
        return EndlessSampler(
            self.datasets["train"],
            self.batch_sizes["train"],
            self.seed,
            *data_ranks(self.trainer),
            position=lambda: trained_batches(self.trainer),
        )

    def train_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader("train")

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        return self._loader("val")

    def _loader(self, split: str) -> DataLoader[dict[str, Any]]:
        return DataLoader(
            self.datasets[split],
            batch_size=self.batch_sizes[split],
            sampler=self._sampler() if split == "train" else None,
            drop_last=split == "train",
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate_clips,
        )
