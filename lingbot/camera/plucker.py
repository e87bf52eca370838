"""Rays of a camera: per pixel an origin and a unit direction, folded to the latent grid.

Origins and directions are in the axes of the camera one latent frame earlier, which is what the
transformer is conditioned on. Nothing here is a matrix product, so neither autocast nor TF32 can
lower the precision: neighbouring pixels differ by less than bf16 resolves.
"""

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from torch import Tensor

Intrinsics = tuple[float, float, float, float]
LARGEST = 1e6  # of intrinsics: beyond it all rays of an image are one in float32
GIVEN_FOR = (480, 832)  # height and width that intrinsics are written down for


def check_intrinsics(intrinsics: Sequence[float]) -> Intrinsics:
    """Return fx, fy, cx, cy as floats, or raise ValueError where they are no camera's."""
    numbers = [float(number) for number in intrinsics]
    finite = all(math.isfinite(number) and abs(number) <= LARGEST for number in numbers)
    if len(numbers) != 4 or not finite or min(numbers[:2]) < 1:
        raise ValueError(
            f"intrinsics {numbers}: give fx, fy, cx, cy in pixels of an 832x480 image, all up to "
            f"{LARGEST:,.0f}, fx and fy positive and at least 1."
        )
    fx, fy, cx, cy = numbers
    return fx, fy, cx, cy


def scale_intrinsics(
    intrinsics: Tensor, height: int, width: int, source: tuple[int, int] = GIVEN_FOR
) -> Tensor:
    """Rescale fx, fy, cx, cy [..., 4] from an image of `source` (height, width) to another size."""
    down, across = height / source[0], width / source[1]
    return intrinsics * intrinsics.new_tensor([across, down, across, down])


def pixel_directions(intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Unit directions through the pixel centres in the camera's own axes, [3, H, W]."""
    fx, fy, cx, cy = intrinsics.float().unbind(-1)
    x = (torch.arange(width, device=intrinsics.device) + 0.5 - cx) / fx
    y = (torch.arange(height, device=intrinsics.device) + 0.5 - cy) / fy
    x, y = torch.broadcast_tensors(x[None, :], y[:, None])
    length = (x * x + y * y + 1).sqrt()
    return torch.stack([x / length, y / length, 1 / length])


def plucker_rays(relative: Tensor, intrinsics: Tensor, height: int, width: int) -> Tensor:
    """Rays of F cameras: origin (x, y, z), then unit direction (x, y, z).

    Args:
        relative: frame-to-frame poses with scaled translations, [F, 4, 4].
        intrinsics: fx, fy, cx, cy in pixels of this height and width, [4].

    Returns:
        [6, F, H, W] float32 on the device of `relative`.
    """
    relative = relative.float()
    here = intrinsics.to(relative.device, non_blocking=True)
    x, y, z = pixel_directions(here, height, width)  # each [H, W]
    along = rearrange(relative, "f i j -> j i f 1 1")[:, :3]
    directions = along[0] * x + along[1] * y + along[2] * z  # [3, F, H, W]
    return torch.cat([along[3].expand_as(directions), directions])


def fold_rays(rays: Tensor, fold: int = 8) -> Tensor:
    """Fold blocks of pixels into channels, the given channels slowest, then rows, then columns.

    [C, F, H, W] to [C * fold * fold, F, H / fold, W / fold].
    """
    return rearrange(rays, "c f (h a) (w b) -> (c a b) f h w", a=fold, b=fold)
