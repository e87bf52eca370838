"""A batch of training clips, as the transformer and a session take it.

A batch is a dictionary, see `lingbot.data.blockworld_clips`; poses and keys are those of the drive
that a clip shows. Letters: B clips, F latent frames.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from lingbot.camera.controls import CameraControl, Controls, frames_in_chunk


def clip_rays(batch: dict[str, Any], camera: CameraControl) -> Tensor:
    """Folded rays [B, channels, F, H, W] of every clip's drive, where its latents are."""
    latents = batch["latents"]
    return camera.clips(
        batch["poses"].cpu(), latents.shape[2], batch.get("actions"), device=latents.device
    )


def first_drive(batch: dict[str, Any], camera: CameraControl) -> Iterator[Controls]:
    """Controls, chunk by chunk, of the drive of the batch's first clip."""
    poses = batch["poses"][0].cpu()
    begin = 0
    for chunk in range(batch["latents"].shape[2] // camera.frames_per_chunk):
        end = begin + frames_in_chunk(chunk, camera.frames_per_chunk) + (chunk == 0)
        if camera.kind == "act":
            yield Controls(actions=tuple(batch["actions"][0][max(begin - 1, 0) : end - 1]))
        else:
            yield Controls(poses=poses[begin:end])
        begin = end
