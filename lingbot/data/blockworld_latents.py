"""The latents of BlockWorld clips, encoded once by a codec and kept in one file for training.

The file is safetensors. Its metadata says which clips it holds and which codec encoded them; a file
that holds anything else is refused. It is built in parts, each written whole or not at all, so an
interrupted build goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from einops import rearrange
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lingbot.checkpoints.atomic import atomic_file
from lingbot.data.blockworld_clips import BlockWorldClips, collate_clips

log = logging.getLogger(__name__)

VERSION = "1"  # raise it when frames of the same seed change
PART = 32  # clips in one part of an unfinished cache
LARGEST = 100.0  # deviations that a normalised latent stays within


class Encoder(Protocol):
    """A video codec, as far as the cache knows it."""

    def encode(self, frames: Tensor) -> Tensor:
        """Frames [B, 3, T, H, W] in [-1, 1] to latents [B, channels, F, h, w]."""
        ...


class BlockWorldLatents(Dataset[dict[str, Any]]):
    """Encoded clips out of a cache file.

    Args:
        path: file written by `build_latents`.
        latent_frames: use only the first of each clip's latent frames; None for all. The codec is
            causal, so they are the latents of a shorter clip.
        expected: what the file must hold, as `describe` returns it; None takes what it holds.

    An item is a dict: "latents" float32 [channels, F, h, w], "image_latent" [channels, 1, h, w],
    "image" uint8 [H, W, 3] (the first frame), "poses" float64 [T, 4, 4] with T = 4 (F - 1) + 1,
    "actions" (keys of T - 1 frames), "prompt", "seed".

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file holds something else, or shorter clips than `latent_frames`.
    """

    def __init__(
        self,
        path: str | Path,
        latent_frames: int | None = None,
        expected: dict[str, str] | None = None,
    ) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"no BlockWorld latents in {path}: make them by build_latents.")
        with safe_open(self.path, framework="pt") as file:
            metadata = file.metadata()
        if expected is not None:
            check_same(self.path, json.loads(metadata["key"]), expected)
        self.tensors = load_file(self.path)
        self.prompts: list[str] = json.loads(metadata["prompts"])
        self.actions: list[list[str]] = json.loads(metadata["actions"])
        kept = self.tensors["latents"].shape[2]
        self.latent_frames = kept if latent_frames is None else latent_frames
        if not 1 <= self.latent_frames <= kept:
            raise ValueError(
                f"latent_frames={latent_frames}, and the clips in {path} have {kept}: give 1 to "
                f"{kept}, or build a cache of longer clips."
            )

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> dict[str, Any]:
        latents = self.tensors["latents"][index, :, : self.latent_frames].float()
        length = 4 * (self.latent_frames - 1) + 1
        return {
            "latents": latents,
            "image_latent": latents[:, :1],
            "image": self.tensors["image"][index],
            "poses": self.tensors["poses"][index, :length],
            "actions": tuple(self.actions[index][: length - 1]),
            "prompt": self.prompts[index],
            "seed": int(self.tensors["seed"][index]),
        }


def build_latents(
    path: str | Path,
    clips: BlockWorldClips,
    codec: Encoder,
    batch_size: int = 2,
    num_workers: int = 0,
) -> BlockWorldLatents:
    """Encode clips into a cache file, unless it is there already; return the dataset.

    Args:
        path: the file, written when it is complete; parts stay in `path` + ".parts" until then.
        clips: the clips to encode; their length must suit the codec (4 k + 1).
        codec: anything with `encode`; a module encodes where its parameters are.
        batch_size: clips encoded together.
        num_workers: processes that render while the codec encodes; 0 renders in turn.

    Raises:
        ValueError: the file, or a part of it, holds other clips or another codec's latents.
        FloatingPointError: the codec makes latents that nothing could be trained on.
    """
    path, key = Path(path), describe(clips, codec)
    if not path.is_file():
        encode_parts(path, clips, codec, batch_size, num_workers)
        merge(path, part_names(path, clips), key)
    return BlockWorldLatents(path, expected=key)


def part_names(path: Path, clips: BlockWorldClips) -> list[Path]:
    """Files of an unfinished cache, in the order of the clips."""
    parts = path.with_name(path.name + ".parts")
    return [parts / f"{i:05d}.safetensors" for i in range(-(-len(clips) // PART))]


def encode_parts(
    path: Path,
    clips: BlockWorldClips,
    codec: Encoder,
    batch_size: int,
    num_workers: int,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Encode those parts of a cache that are not there yet and fall to this rank, see `merge`."""
    key, names = describe(clips, codec), part_names(path, clips)
    names[0].parent.mkdir(parents=True, exist_ok=True)
    done = {name for name in names if name.is_file()}
    for name in done:
        with safe_open(name, framework="pt") as file:
            check_same(name, json.loads(file.metadata()["key"]), key)
    mine = [i for i, name in enumerate(names) if i % ranks == rank and name not in done]
    todo = [j for i in mine for j in range(i * PART, min((i + 1) * PART, len(clips)))]
    started = time.monotonic()
    items = encode_clips(clips, todo, codec, batch_size, num_workers)
    for n, i in enumerate(mine, start=1):
        write(names[i], list(islice(items, min(PART, len(clips) - i * PART))), key)
        log.info(
            "%s: part %d of %d encoded, %.2f clips/s",
            path.name, n, len(mine), min(n * PART, len(todo)) / (time.monotonic() - started),
        )  # fmt: skip


@torch.inference_mode()
def encode_clips(
    clips: BlockWorldClips, indices: list[int], codec: Encoder, batch_size: int, num_workers: int
) -> Iterator[dict[str, Any]]:
    """Render and encode clips in the order of their indices."""
    # a generator of its own: not all processes encode, and weights are drawn from the common one
    loader = DataLoader(
        clips, batch_size, sampler=indices, num_workers=num_workers, collate_fn=collate_clips,
        generator=torch.Generator(),
    )  # fmt: skip
    device = torch.device("cpu")
    if isinstance(codec, nn.Module):
        device = next((p.device for p in codec.parameters()), device)
    for batch in loader:
        frames = rearrange(batch["frames"], "b t h w c -> b c t h w").to(device)
        latents = codec.encode(frames.float() / 127.5 - 1).float().cpu()
        check_latents(latents, batch["seed"])
        latents = latents.to(torch.float16)
        for i, prompt in enumerate(batch["prompt"]):
            yield {
                "latents": latents[i],
                "image": batch["frames"][i, 0].cpu(),
                "poses": batch["poses"][i],
                "seed": torch.tensor(batch["seed"][i]),
                "prompt": prompt,
                "actions": list(batch["actions"][i]),
            }


def check_latents(latents: Tensor, seeds: list[int]) -> None:
    """Raise FloatingPointError for latents [B, channels, F, h, w] far from normalised ones."""
    largest = latents.abs().flatten(1).amax(dim=1)
    wrong = ~(largest <= LARGEST)  # NaN too
    if wrong.any():
        seed, value = seeds[int(wrong.nonzero()[0])], float(largest[wrong][0])
        raise FloatingPointError(
            f"the codec makes latents up to {value:.3g} of clip {seed}, normalised ones stay below "
            f"{LARGEST:g}: try codec.dtype=float32, or codec.memory_format=contiguous"
        )


def describe(clips: BlockWorldClips, codec: Encoder) -> dict[str, str]:
    """What a cache of these clips and this codec holds, as the file's metadata has it."""
    facts = {
        name: str(getattr(clips, name))
        for name in ("split", "count", "num_frames", "height", "width", "intrinsics")
    }
    return facts | {"renderer": VERSION, "codec": fingerprint(codec)}


def fingerprint(codec: Encoder) -> str:
    """A short name that changes with a module's weights or latent statistics; else its class."""
    if not isinstance(codec, nn.Module):
        return type(codec).__name__
    digest = hashlib.sha256()
    for name, value in sorted(codec.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    config = getattr(getattr(codec, "vae", None), "config", {})
    for name in ("latents_mean", "latents_std"):
        digest.update(str(config.get(name)).encode())
    return digest.hexdigest()[:12]


def check_same(path: Path, found: dict[str, str], expected: dict[str, str]) -> None:
    """Raise ValueError, naming every difference, where a file holds something else."""
    differences = [
        f"{name} is {found.get(name)!r} there and {value!r} here"
        for name, value in expected.items()
        if found.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{path} holds other latents: {'; '.join(differences)}. Remove it or give another."
        )


def write(path: Path, items: list[dict[str, Any]], key: dict[str, str]) -> None:
    """Write one part: it appears whole under its name, or not at all."""
    tensors = {
        name: torch.stack([item[name] for item in items])
        for name in ("latents", "image", "poses", "seed")
    }
    lists = {name: [item[name] for item in items] for name in ("prompt", "actions")}
    save(path, tensors, lists["prompt"], lists["actions"], key)


def merge(path: Path, names: list[Path], key: dict[str, str]) -> None:
    """Join the parts to one file and remove them."""
    pieces = [load_file(name) for name in names]
    tensors = {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}
    prompts, actions = [], []
    for name in names:
        with safe_open(name, framework="pt") as file:
            prompts += json.loads(file.metadata()["prompts"])
            actions += json.loads(file.metadata()["actions"])
    save(path, tensors, prompts, actions, key)
    for name in names:
        name.unlink()
    names[0].parent.rmdir()


def save(
    path: Path, tensors: dict[str, Tensor], prompts: list[str], actions: list, key: dict[str, str]
) -> None:
    """Write a file of clips, whole or not at all."""
    metadata = {
        "key": json.dumps(key),
        "prompts": json.dumps(prompts),
        "actions": json.dumps(actions),
    }
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata=metadata)
