"""A drive, chunk by chunk as a session takes it, is the one that its clip is trained on."""

import pytest
import torch

from lingbot.camera.controls import CameraControl
from lingbot.data.clip_batch import clip_rays, first_drive
from lingbot.model.image_condition import image_condition


def batch_of(frames: int) -> dict:
    poses = torch.eye(4, dtype=torch.float64).repeat(2, 4 * (frames - 1) + 1, 1, 1)
    poses[0, :, 2, 3] = torch.arange(poses.shape[1]) * 0.05
    keys = [("w", "a", "", "wd")[i % 4] for i in range(poses.shape[1] - 1)]
    return {"latents": torch.zeros(2, 16, frames, 2, 3), "poses": poses, "actions": [keys, keys]}


@pytest.mark.parametrize("kind", ["cam", "act"])
@pytest.mark.parametrize(("frames", "frames_per_chunk"), [(6, 3), (4, 1), (3, 3)])
def test_chunks_of_a_drive_are_those_of_its_clip(kind, frames, frames_per_chunk):
    batch, camera = batch_of(frames), CameraControl(kind, 16, 24, frames_per_chunk)
    rays = clip_rays(batch, camera)
    assert rays.shape == (2, camera.channels, frames, 2, 3)
    chunks = [camera.chunk(controls) for controls in first_drive(batch, camera)]
    if kind == "act":  # keys move a session's camera as they do, whatever the poses say
        assert torch.equal(torch.cat(chunks, dim=2)[:, 192:], rays[:1, 192:])
    else:
        torch.testing.assert_close(torch.cat(chunks, dim=2), rays[:1])


def test_an_image_is_marked_and_shown_where_it_belongs():
    latent = torch.randn(2, 16, 1, 2, 3)
    condition = image_condition(latent, 3)
    assert condition.shape == (2, 20, 3, 2, 3)
    assert torch.equal(condition[:, 4:, :1], latent)
    assert (condition[:, :4, 0] == 1).all()
    assert condition[:, :, 1:].abs().max() == 0
