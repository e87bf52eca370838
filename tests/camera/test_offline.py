"""The published offline path against the golden trajectories."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lingbot.camera.actions import action_poses, parse_actions
from lingbot.camera.controls import CameraControl
from lingbot.camera.offline import offline_camera, offline_latent_frames, offline_poses

DRIVE = action_poses(parse_actions("w-24,jw-12,dl-12"))  # 49 poses, 13 latent frames


@pytest.mark.parametrize("example", ["00", "03"])
def test_published_trajectories_give_the_golden_rays(golden_dir: Path, example: str) -> None:
    golden = load_file(golden_dir / "camera_schedule.safetensors")
    poses, intrinsics = golden[f"{example}.poses"], golden[f"{example}.intrinsics"]
    frames = offline_latent_frames(len(poses), frames_per_chunk=3)
    found = offline_camera(poses, intrinsics, 32, 48, frames)
    for name, tensor in found._asdict().items():
        expected = golden[f"{example}.{name}"]
        torch.testing.assert_close(tensor.float(), expected, rtol=0, atol=2e-5, msg=name)


@pytest.mark.parametrize("example", ["00", "03"])
def test_the_camera_control_reaches_the_golden_rays_by_name(golden_dir: Path, example: str) -> None:
    golden = load_file(golden_dir / "camera_schedule.safetensors")
    poses, intrinsics = golden[f"{example}.poses"], golden[f"{example}.intrinsics"][0].tolist()
    camera = CameraControl("cam", 32, 48, 3, intrinsics, translation_scale="offline")
    expected = golden[f"{example}.plucker_packed"]
    found = camera.clip(poses, expected.shape[1])[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-5)


def test_latent_frames_are_cut_to_whole_chunks_but_span_all_poses() -> None:
    assert offline_latent_frames(len(DRIVE), 3) == 12
    latent, relative = offline_poses(DRIVE, 12)
    torch.testing.assert_close(latent[0], DRIVE[0])
    torch.testing.assert_close(latent[-1], DRIVE[-1])
    gaps = latent[1:6, :3, 3].diff(dim=0).norm(dim=1)  # straight on: every gap 48 / 11 frames
    torch.testing.assert_close(gaps, torch.full((4,), 0.05 * 48 / 11).double(), rtol=1e-4, atol=0)
    assert relative[:, :3, 3].norm(dim=1).max().item() == pytest.approx(1)


def test_a_trajectory_shorter_than_a_chunk_is_refused() -> None:
    with pytest.raises(ValueError, match="give at least 9 poses"):
        offline_latent_frames(8, 3)


def test_more_latent_frames_than_the_poses_hold_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ask for 1 \.\. 13, or give at least 53 poses"):
        offline_poses(DRIVE, 14)
