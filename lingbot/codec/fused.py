"""The Wan decoder with fewer trips through memory: the same layers, what lies between them fused.

As published, a convolution's input is normalised, scaled, activated, joined with the two frames
before it and padded in ten passes over memory, which at full resolution take longer than the
convolution. Here `lingbot.codec.rows` makes it in one, and the convolution pads in height and
width itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import WanResidualBlock, WanUpsample
from torch import Tensor

from lingbot.codec.rows import add_with_bias, join_normed
from lingbot.codec.video import VideoCodec

BEFORE = 2  # frames that a causal convolution sees before the present one


def fuse_decoder(codec: VideoCodec) -> None:
    """Make the codec's decoder run fused from here on; weights and their names stay.

    Its causal state then begins with two frames of zeros, which is what the published padding does.
    Worth it for weights whose channels come last; others are laid out anew in every convolution.
    """
    for layer in codec.vae.decoder.modules():
        if isinstance(layer, WanResidualBlock):
            layer.forward = partial(residual, layer)
        elif isinstance(layer, WanUpsample) and tuple(layer.scale_factor) == (2.0, 2.0):
            layer.forward = doubled


def residual(
    block: WanResidualBlock, x: Tensor, feat_cache: list[Any], feat_idx: list[int]
) -> Tensor:
    """Forward of a residual block over x [B, C, T, H, W]; called, and its state kept, as before."""
    shortcut = as_rows(block.conv_shortcut(x))
    frames, height, width = x.shape[2:]
    behind = BEFORE * height * width
    bias = torch.zeros_like(block.norm1.gamma)
    for norm, convolution in ((block.norm1, block.conv1), (block.norm2, block.conv2)):
        rows, before = as_rows(x), feat_cache[feat_idx[0]]
        if before is None:
            before = rows.new_zeros(len(rows), behind, rows.shape[2])
        joined = join_normed(rows, bias.flatten(), norm.gamma.flatten(), before)
        feat_cache[feat_idx[0]] = joined[:, -behind:].clone()
        feat_idx[0] += 1
        joined = as_video(joined, BEFORE + frames, height, width)
        # a bias added here would be one more pass over memory: it goes into what comes next
        x, bias = F.conv3d(joined, convolution.weight, padding=(0, 1, 1)), convolution.bias
    return as_video(add_with_bias(as_rows(x), bias, shortcut), frames, height, width)


def doubled(x: Tensor) -> Tensor:
    """Every pixel of x [N, C, H, W] four times: nearest neighbours, without a trip to float32."""
    y = x.movedim(1, -1)
    n, height, width, channels = y.shape
    y = y[:, :, None, :, None].expand(n, height, 2, width, 2, channels)
    return y.reshape(n, 2 * height, 2 * width, channels).movedim(-1, 1)


def as_rows(x: Tensor) -> Tensor:
    """x [B, C, T, H, W] as [B, T * H * W, C]: a view where channels come last in memory."""
    return x.movedim(1, -1).contiguous().flatten(1, 3)


def as_video(rows: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Rows [B, T * H * W, C] as a view [B, C, T, H, W]."""
    return rows.unflatten(1, (frames, height, width)).movedim(-1, 1)
