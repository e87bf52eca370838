"""The published offline path: a whole recorded trajectory to rays, normalised by its own length.

It spreads the latent frames evenly over all given poses, even where their number is cut to whole
chunks, and divides by the longest step of the whole trajectory. Both look into the future, so a
live session does otherwise (controls.py); this path is for comparing with published results.
"""

from typing import NamedTuple

from torch import Tensor

from lingbot.camera.plucker import fold_rays, plucker_rays, scale_intrinsics
from lingbot.camera.poses import (
    even_positions,
    interpolate_poses,
    relative_poses,
    scale_translations,
)


class OfflineCamera(NamedTuple):
    """What the offline path makes of a trajectory, under the names of the golden files."""

    latent_poses: Tensor  # [F, 4, 4] float64, camera-to-world
    relative_poses: Tensor  # [F, 4, 4] float64, frame to frame, longest translation 1
    plucker_packed: Tensor  # [6 * 64, F, H / 8, W / 8] float32


def offline_latent_frames(num_poses: int, frames_per_chunk: int) -> int:
    """Number of latent frames of a trajectory: one in four video frames, cut to whole chunks.

    Raises:
        ValueError: the trajectory is shorter than one chunk.
    """
    latent_frames = (num_poses - 1) // 4 + 1
    whole = latent_frames - latent_frames % frames_per_chunk
    if whole < 1:
        raise ValueError(
            f"{num_poses} poses make {latent_frames} latent frames, less than a chunk of "
            f"{frames_per_chunk}: give at least {4 * (frames_per_chunk - 1) + 1} poses."
        )
    return whole


def offline_poses(poses: Tensor, num_latent_frames: int) -> tuple[Tensor, Tensor]:
    """Latent poses and relative poses, longest translation 1: [N, 4, 4] to twice [F, 4, 4].

    Raises:
        ValueError: more latent frames than one in four of the given poses.
    """
    most = (len(poses) - 1) // 4 + 1
    if not 1 <= num_latent_frames <= most:
        raise ValueError(
            f"{num_latent_frames} latent frames from {len(poses)} poses: ask for 1 .. {most}, or "
            f"give at least {4 * (num_latent_frames - 1) + 1} poses."
        )
    latent = interpolate_poses(poses, even_positions(len(poses), num_latent_frames))
    return latent, scale_translations(relative_poses(latent), None)


def offline_camera(
    poses: Tensor,
    intrinsics: Tensor,
    height: int,
    width: int,
    num_latent_frames: int,
) -> OfflineCamera:
    """Latent poses, relative poses and folded rays of a whole trajectory.

    Args:
        poses: camera-to-world of the video frames, [N, 4, 4].
        intrinsics: fx, fy, cx, cy for 832x480, [4], [1, 4] or [N, 4]; only the first row counts.
        height: of the video in pixels, a multiple of 8.
        width: likewise.
        num_latent_frames: F, see `offline_latent_frames`.
    """
    latent, relative = offline_poses(poses, num_latent_frames)
    scaled = scale_intrinsics(intrinsics.reshape(-1, 4)[0].double(), height, width)
    rays = plucker_rays(relative, scaled, height, width)
    return OfflineCamera(latent, relative, fold_rays(rays))
