"""The Wan decoder with fewer trips through memory: the same layers, what lies between them fused.

As published, a convolution's input is normalised, scaled, activated, joined with the two frames
before it and padded in ten passes over memory, which at full resolution take longer than the
convolution. Here `lingbot.codec.rows` makes it in one, and the convolution pads in height and
width itself. On Hopper it makes it wider, too, where cuDNN has a faster kernel for more channels.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import Tensor

from lingbot.codec.rows import add_with_bias, join_normed, spread
from lingbot.codec.streaming import FIRST, CausalState
from lingbot.codec.video import VideoCodec

BEFORE = 2  # frames that a causal convolution sees before the present one
AT_ONCE = 4  # latent frames decoded together at most: memory grows with them
MULTIPLE = 64  # channels: cuDNN's kernels for Hopper take no others, and older ones are slower


def fuse_decoder(codec: VideoCodec) -> None:
    """Make the codec's decoder run fused from here on; weights and their names stay.

    Its causal state then begins with two frames of zeros, which is what the published padding does,
    and a chunk's latent frames are decoded together. Call it again when weights have changed.
    Worth it for weights whose channels come last; others are laid out anew in every convolution.
    """
    decoder = codec.vae.decoder
    if not isinstance(codec.head, FusedHead):
        codec.head = FusedHead(decoder.norm_out, decoder.conv_out)
        codec.frames_at_once = AT_ONCE
        for layer in decoder.modules():
            if isinstance(layer, WanResidualBlock):
                layer.forward = FusedResidual(layer)
            elif isinstance(layer, WanResample):
                layer.forward = partial(upsample, layer)
    for layer in decoder.modules():
        if isinstance(layer, WanResidualBlock):
            layer.forward.weights_changed()


class NormedConvolution:
    """Norm, activation and a causal convolution over all frames that it sees, without its bias.

    Args:
        norm: of the convolution's input.
        convolution: 3 frames, height and width wide.
        multiple: of the channels that it is computed with, where that adds half of them at most.
            None: 64 from Hopper on, for 64 and more outputs.
    """

    def __init__(
        self, norm: WanRMS_norm, convolution: WanCausalConv3d, multiple: int | None = None
    ) -> None:
        self.norm, self.convolution, self._multiple = norm, convolution, multiple
        self._padded: Tensor | None = None

    def __call__(self, x: Tensor, bias: Tensor | None, state: CausalState) -> Tensor:
        """x [B, C, T, H, W] + bias [C], the bias of what made it, -> [B, C', T, H, W]."""
        frames, height, width = x.shape[2:]
        weight = self._weight()
        before = state.last
        if before is None:
            before = x.new_zeros(len(x), BEFORE * height * width, weight.shape[1])
        joined = join_normed(as_rows(x), bias, self.norm.gamma.flatten(), before)
        state.keep(joined[:, -before.shape[1] :])
        joined = as_video(joined, BEFORE + frames, height, width)
        return F.conv3d(joined, weight, padding=(0, 1, 1))

    @torch.inference_mode(False)
    @torch.no_grad()
    def weights_changed(self) -> None:
        """Take the convolution's weights anew; where they lie, recordings go on to read them."""
        weight, added = self.convolution.weight, self._added_channels()
        if not added:
            self._padded = None
            return
        padded = F.pad(weight.movedim(1, -1), (0, added)).movedim(-1, 1)
        if self._padded is not None and _alike(self._padded, weight):
            self._padded.copy_(padded)
        else:
            self._padded = padded

    def _weight(self) -> Tensor:
        """The weights, with zeros for channels that the input does not have."""
        weight = self.convolution.weight
        if not self._added_channels():
            return weight
        if self._padded is None or not _alike(self._padded, weight):
            self.weights_changed()  # the codec has moved since
        assert self._padded is not None
        return self._padded

    def _added_channels(self) -> int:
        weight, channels = self.convolution.weight, self.convolution.in_channels
        multiple = self._multiple
        if multiple is None:
            multiple = MULTIPLE if len(weight) >= MULTIPLE and _is_hopper(weight.device) else 1
        added = -channels % multiple
        return added if 2 * added <= channels else 0


class FusedResidual:
    """Forward of a residual block over x [B, C, T, H, W]; called, and its state kept, as before."""

    def __init__(self, block: WanResidualBlock, multiple: int | None = None) -> None:
        self.block = block
        pairs = (block.norm1, block.conv1), (block.norm2, block.conv2)
        self.first, self.second = (NormedConvolution(*pair, multiple) for pair in pairs)

    def __call__(self, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
        state = CausalState(feat_cache, feat_idx)
        x = x.contiguous(memory_format=torch.channels_last_3d)  # a strip is a view of more
        shortcut = as_rows(self.block.conv_shortcut(x))
        # a bias added here would be one more pass over memory: it goes into what comes next
        y = self.second(self.first(x, None, state), self.block.conv1.bias, state)
        rows = add_with_bias(as_rows(y), self.block.conv2.bias, shortcut)
        return as_video(rows, *x.shape[2:])

    def weights_changed(self) -> None:
        self.first.weights_changed()
        self.second.weights_changed()


class FusedHead:
    """Norm, activation and the convolution to pixels."""

    def __init__(self, norm: WanRMS_norm, convolution: WanCausalConv3d) -> None:
        self._convolve = NormedConvolution(norm, convolution)

    def __call__(self, x: Tensor, state: CausalState) -> Tensor:
        bias = self._convolve.convolution.bias
        assert bias is not None
        return self._convolve(x, None, state) + bias.view(-1, 1, 1, 1)


def upsample(layer: WanResample, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
    """Forward of an upsampling layer over x [B, C, T, H, W]: every pixel four times, convolved.

    Some make two frames of each before that, but of a video's first.
    """
    batch, frames, height, width = len(x), *x.shape[2:]
    times = 1
    if layer.mode == "upsample3d":
        state = CausalState(feat_cache, feat_idx)
        if state.last is None:
            state.mark(FIRST)
        else:
            rows, before = as_rows(x), state.last
            if not isinstance(before, Tensor):
                before = rows.new_zeros(batch, BEFORE * height * width, rows.shape[2])
            joined = torch.cat([before, rows], dim=1)
            state.keep(joined[:, -before.shape[1] :])
            joined = as_video(joined, BEFORE + frames, height, width)
            x, times = F.conv3d(joined, layer.time_conv.weight, layer.time_conv.bias), 2
    _, convolution = layer.resample
    y = convolution(spread(x, times))  # [B * frames, C, 2 H, 2 W]
    return y.unflatten(0, (batch, -1)).transpose(1, 2)


def as_rows(x: Tensor) -> Tensor:
    """x [B, C, T, H, W] as [B, T * H * W, C]: a view where channels come last in memory."""
    return x.movedim(1, -1).contiguous().flatten(1, 3)


def as_video(rows: Tensor, frames: int, height: int, width: int) -> Tensor:
    """Rows [B, T * H * W, C] as a view [B, C, T, H, W]."""
    return rows.unflatten(1, (frames, height, width)).movedim(-1, 1)


def _alike(one: Tensor, other: Tensor) -> bool:
    return (one.dtype, one.device) == (other.dtype, other.device)


@cache
def _is_hopper(device: torch.device) -> bool:
    """Or later."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)
