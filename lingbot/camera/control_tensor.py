"""Poses and held keys of latent frames, folded into what the transformer is controlled by."""

from collections.abc import Sequence
from typing import Literal

import torch
from einops import repeat
from torch import Tensor

from lingbot.camera.actions import MOVE_KEYS
from lingbot.camera.plucker import Intrinsics, fold_rays, plucker_rays, scale_intrinsics

FOLD = 8  # pixels a latent pixel, each way
Kind = Literal["cam", "act"]

NEEDS_KEYS = (
    "act control is made of held keys and poses do not tell them: drive with actions, give the "
    "keys held at each pose (pose_keys; action.npy of a recorded folder), or use a model with cam "
    "control."
)


def control_tensor(
    kind: Kind,
    relative: Tensor,
    keys: Sequence[str] | None,
    intrinsics: Intrinsics,
    height: int,
    width: int,
) -> Tensor:
    """The control of F latent frames, [1, channels, F, height / 8, width / 8] float32.

    Args:
        kind: "cam" folds rays, origin and direction; "act" directions and the keys w, a, s, d.
        relative: frame-to-frame poses with scaled translations, [F, 4, 4] float32.
        keys: held at each frame; for act control.
        intrinsics: fx, fy, cx, cy for 832x480.
        height: of the video in pixels, a multiple of 8.
        width: likewise.

    Raises:
        ValueError: act control without keys.
    """
    given = torch.tensor(intrinsics, dtype=torch.float64)
    scaled = scale_intrinsics(given, height, width)
    rays = plucker_rays(relative, scaled, height, width)  # [6, F, H, W]
    if kind == "act":
        if keys is None:
            raise ValueError(NEEDS_KEYS)
        held = [[float(key in frame) for frame in keys] for key in MOVE_KEYS]
        here = torch.tensor(held).to(rays, non_blocking=True)
        images = repeat(here, "k f -> k f h w", h=height, w=width)
        rays = torch.cat([rays[3:], images])
    return fold_rays(rays, FOLD)[None].contiguous()
