"""Between frames, float in [-1, 1], and pictures, uint8 with the channels last."""

import torch
from einops import rearrange
from torch import Tensor


def frames_to_uint8(frames: Tensor) -> Tensor:
    """Float frames in [-1, 1], `[..., 3, T, H, W]`, as uint8 pictures `[..., T, H, W, 3]`."""
    pictures = rearrange(frames, "... c t h w -> ... t h w c")
    return pictures.float().clamp(-1, 1).add_(1).mul_(127.5).round_().to(torch.uint8)


def uint8_to_frames(pictures: Tensor) -> Tensor:
    """uint8 pictures `[..., T, H, W, 3]` as float frames in [-1, 1], `[..., 3, T, H, W]`."""
    if pictures.dtype != torch.uint8:
        raise ValueError(f"pictures must be uint8, got {pictures.dtype}; scale to 0..255 first.")
    return rearrange(pictures, "... t h w c -> ... c t h w").float().div(127.5).sub(1)
