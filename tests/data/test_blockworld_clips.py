"""Clips follow their seed; their latents are encoded once, a stopped build goes on."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lingbot.camera.actions import action_poses
from lingbot.data import blockworld_latents
from lingbot.data.blockworld_clips import GAP, BlockWorldClips, collate_clips, draw_drive
from lingbot.data.blockworld_latents import (
    BlockWorldLatents,
    build_latents,
    describe,
    encode_parts,
    merge,
    part_names,
)
from lingbot.data.blockworld_module import BlockWorldDataModule

SIZE: dict[str, Any] = {"num_frames": 9, "height": 16, "width": 24}


class PoolingCodec(nn.Module):
    """Stands in for a codec: every fourth frame, averaged over 8x8 pixels, 16 channels."""

    def __init__(self, gain: float = 1.0, calls: int | None = None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))
        self.clips, self.left = 0, calls

    def encode(self, frames: Tensor) -> Tensor:
        if self.left is not None and self.clips >= self.left:
            raise KeyboardInterrupt
        self.clips += frames.shape[0]
        pooled = nn.functional.avg_pool3d(frames[:, :, ::4], (1, 8, 8))
        return self.gain * pooled.repeat(1, 6, 1, 1, 1)[:, :16]


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[k], b[k]) if isinstance(a[k], Tensor) else a[k] == b[k] for k in a
    )


def test_a_clip_holds_frames_and_the_drive_that_made_them() -> None:
    clip = BlockWorldClips("train", 3, **SIZE)[1]
    assert clip["frames"].shape == (9, 16, 24, 3)
    assert clip["frames"].dtype == torch.uint8
    assert clip["poses"].shape == (9, 4, 4)
    assert clip["poses"].dtype == torch.float64
    assert len(clip["actions"]) == 8
    assert torch.equal(clip["poses"], action_poses(clip["actions"]))
    assert torch.equal(clip["poses"][0], torch.eye(4, dtype=torch.float64))


def test_the_same_index_is_the_same_clip_with_and_without_workers() -> None:
    clips = BlockWorldClips("train", 4, **SIZE)
    here = [clips[i] for i in range(4)]
    loader = DataLoader(
        clips, 2, num_workers=2, collate_fn=collate_clips, multiprocessing_context="forkserver"
    )
    pairs = [collate_clips(here[:2]), collate_clips(here[2:])]
    assert all(same(a, b) for a, b in zip(pairs, loader, strict=True))
    assert not torch.equal(here[0]["frames"], here[1]["frames"])


def test_no_seed_is_in_two_splits() -> None:
    seeds = [BlockWorldClips(split, 3, **SIZE)[2]["seed"] for split in ("train", "val", "test")]
    assert seeds == [2, 1_000_000_002, 2_000_000_002]
    with pytest.raises(ValueError, match="1000000001"):
        BlockWorldClips("train", 10**9 + 1)
    with pytest.raises(ValueError, match=r"'dev'.*train, val, test"):
        BlockWorldClips("dev", 3)  # type: ignore[arg-type]


def test_drives_never_come_close_to_a_solid() -> None:
    drives = [draw_drive(seed, 93) for seed in range(12)]
    assert all(drive.scene.clearance(drive.poses) > GAP for drive in drives)
    assert sum("w" in keys for drive in drives for keys in drive.actions) > 12 * 92 * 0.3


def test_other_variants_are_other_drives_from_the_same_first_frame() -> None:
    clips = BlockWorldClips("test", 2, **SIZE)
    drives = [clips.drive(1, variant) for variant in range(4)]
    frames = [clips.render(drive) for drive in drives]
    assert len({drive.actions for drive in drives}) == 4
    assert all(torch.equal(f[0], frames[0][0]) for f in frames)
    assert same(clips[1], clips[1] | {"frames": frames[0], "poses": drives[0].poses})


def test_latents_are_those_of_the_clips(tmp_path: Path) -> None:
    clips, codec = BlockWorldClips("train", 5, **SIZE), PoolingCodec()
    latents = build_latents(tmp_path / "a.safetensors", clips, codec)
    assert len(latents) == 5
    for i in (0, 4):
        clip, item = clips[i], latents[i]
        frames = clip["frames"].permute(3, 0, 1, 2)[None].float() / 127.5 - 1
        expected = codec.encode(frames)[0]
        assert item["latents"].shape == (16, 3, 2, 3)
        assert torch.allclose(item["latents"], expected, atol=2e-3)
        assert torch.equal(item["image_latent"], item["latents"][:, :1])
        assert torch.equal(item["image"], clip["frames"][0])
        assert torch.equal(item["poses"], clip["poses"])
        assert [item[k] for k in ("actions", "prompt", "seed")] == [
            clip[k] for k in ("actions", "prompt", "seed")
        ]


def test_a_shorter_clip_is_the_start_of_a_longer_one(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    build_latents(path, BlockWorldClips("train", 2, **SIZE), PoolingCodec())
    item, whole = BlockWorldLatents(path, latent_frames=2)[1], BlockWorldLatents(path)[1]
    assert torch.equal(item["latents"], whole["latents"][:, :2])
    assert item["poses"].shape[0] == 5
    assert item["actions"] == whole["actions"][:4]
    with pytest.raises(ValueError, match=r"latent_frames=4.*have 3"):
        BlockWorldLatents(path, latent_frames=4)


def test_an_interrupted_build_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockworld_latents, "PART", 4)
    clips, path = BlockWorldClips("train", 11, **SIZE), tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        build_latents(path, clips, PoolingCodec(calls=6))
    assert not path.exists()
    codec = PoolingCodec()
    resumed = build_latents(path, clips, codec)
    assert codec.clips == 7
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    whole = build_latents(tmp_path / "b.safetensors", clips, PoolingCodec())
    assert all(same(resumed[i], whole[i]) for i in range(11))


def test_processes_that_share_a_build_make_the_file_that_one_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockworld_latents, "PART", 2)
    clips, path = BlockWorldClips("train", 7, **SIZE), tmp_path / "a.safetensors"
    codecs = [PoolingCodec(), PoolingCodec()]
    for rank, codec in enumerate(codecs):
        encode_parts(path, clips, codec, batch_size=2, num_workers=0, rank=rank, ranks=2)
    assert [codec.clips for codec in codecs] == [4, 3]  # four parts, the last one of one clip
    merge(path, part_names(path, clips), describe(clips, codecs[0]))
    shared = BlockWorldLatents(path)
    alone = build_latents(tmp_path / "b.safetensors", clips, PoolingCodec())
    assert all(same(shared[i], alone[i]) for i in range(7))


@pytest.mark.parametrize("gain", [1e4, math.nan])
def test_latents_that_nothing_could_be_trained_on_are_refused(tmp_path: Path, gain: float) -> None:
    clips = BlockWorldClips("train", 1, **SIZE)
    with pytest.raises(FloatingPointError, match=r"of clip 0, normalised ones stay below 100"):
        build_latents(tmp_path / "a.safetensors", clips, PoolingCodec(gain=gain))
    assert not (tmp_path / "a.safetensors").exists()


def test_a_finished_file_is_used_as_it_is(tmp_path: Path) -> None:
    clips, path = BlockWorldClips("train", 2, **SIZE), tmp_path / "a.safetensors"
    build_latents(path, clips, PoolingCodec())
    codec = PoolingCodec(calls=0)
    assert len(build_latents(path, clips, codec)) == 2


def test_latents_of_other_clips_or_another_codec_are_refused(tmp_path: Path) -> None:
    clips, path = BlockWorldClips("train", 2, **SIZE), tmp_path / "a.safetensors"
    build_latents(path, clips, PoolingCodec())
    with pytest.raises(ValueError, match=r"a\.safetensors.*codec is.*Remove it"):
        build_latents(path, clips, PoolingCodec(gain=2.0))
    with pytest.raises(ValueError, match="count is '2' there and '3' here"):
        build_latents(path, BlockWorldClips("train", 3, **SIZE), PoolingCodec())


def test_parts_of_another_codec_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockworld_latents, "PART", 2)
    clips, path = BlockWorldClips("train", 4, **SIZE), tmp_path / "a.safetensors"
    with pytest.raises(KeyboardInterrupt):
        build_latents(path, clips, PoolingCodec(calls=2))
    with pytest.raises(ValueError, match="codec is"):
        build_latents(path, clips, PoolingCodec(gain=2.0))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.safetensors.*build_latents"):
        BlockWorldLatents(tmp_path / "none.safetensors")


def test_the_data_module_gives_batches_of_latents(tmp_path: Path) -> None:
    sizes = {"num_frames": 9, "height": 16, "width": 24, "train_clips": 5, "val_clips": 2}
    data = BlockWorldDataModule(
        "latents", PoolingCodec(), tmp_path / "cache", batch_size=2, latent_frames=2, **sizes
    )
    data.setup("fit")
    batches = list(islice(data.train_dataloader(), 2))
    assert [b["latents"].shape for b in batches] == [(2, 16, 2, 2, 3)] * 2
    assert batches[0]["poses"].shape == (2, 5, 4, 4)
    assert len(batches[0]["prompt"]) == len(batches[0]["actions"]) == 2
    assert len(batches[0]["actions"][0]) == 4
    assert next(iter(data.val_dataloader()))["image"].shape == (2, 16, 24, 3)


def test_the_data_module_gives_batches_of_frames() -> None:
    data = BlockWorldDataModule(
        "frames", num_frames=5, train_clips=3, val_clips=1, batch_size=3, height=16, width=24
    )
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["frames"].shape == (3, 5, 16, 24, 3)
    assert batch["frames"].dtype == torch.uint8


def test_the_data_module_refuses_what_cannot_work(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs a codec"):
        BlockWorldDataModule("latents", cache_dir=tmp_path)
    with pytest.raises(ValueError, match=r"num_frames=92.*4 k \+ 1.*93"):
        BlockWorldDataModule("frames", num_frames=92)
    for name, value in (
        ("num_frames", 1), ("train_clips", 0), ("val_clips", 10**9), ("batch_size", 0),
        ("batch_size", 1201), ("val_batch_size", -1), ("encode_batch_size", 0),
        ("num_workers", -1), ("height", 0), ("width", 10**6),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=f"data.{name}={value}"):
            BlockWorldDataModule("frames", **{name: value})
    with pytest.raises(ValueError, match=r"data\.latent_frames=25"):
        BlockWorldDataModule("latents", PoolingCodec(), tmp_path, latent_frames=25)
    with pytest.raises(ValueError, match=r"'video'.*'latents' or 'frames'"):
        BlockWorldDataModule("video")  # type: ignore[arg-type]


def test_batches_keep_keys_and_prompts_apart() -> None:
    clips = BlockWorldClips("train", 2, **SIZE)
    batch = collate_clips([clips[0], clips[1]])
    assert batch["frames"].shape == (2, 9, 16, 24, 3)
    assert batch["actions"] == [clips[0]["actions"], clips[1]["actions"]]
    assert batch["seed"] == [0, 1]
