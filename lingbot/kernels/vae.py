"""The Wan decoder with fewer trips through memory: the same layers, what lies between them fused.

As published, a convolution's input is normalised, scaled, activated, joined with the two frames
before it and padded in ten passes over memory, which at full resolution take longer than the
convolution. Here `lingbot.kernels.vae_rows` makes it in one, and the convolution pads in height and
width itself. On Hopper it makes it wider, too, where cuDNN has a faster kernel for more channels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_wan import (
    WanCausalConv3d,
    WanResample,
    WanResidualBlock,
    WanRMS_norm,
)
from torch import Tensor, nn

from lingbot.codec.causal_state import FIRST, CausalState
from lingbot.codec.decoder_ops import DecoderOps
from lingbot.codec.video import VideoCodec
from lingbot.kernels.vae_rows import add_with_bias, join_normed, spread

BEFORE = 2  # frames that a causal convolution sees before the present one
AT_ONCE = 4  # latent frames decoded together at most: memory grows with them
MULTIPLE = 64  # channels: cuDNN's kernels for Hopper take no others, and older ones are slower


def fuse_decoder(codec: VideoCodec, multiple: int | None = None) -> None:
    """Makes the codec's decoder run fused from here on; weights and their names stay.

    Its causal state then begins with two frames of zeros, which is what the published padding does,
    and a chunk's latent frames are decoded together. Call it again when weights have changed.
    Worth it for weights whose channels come last; others are laid out anew in every convolution.

    Args:
        multiple: of the channels that convolutions are computed with, see `FusedResidual`.
    """
    decoder = codec.vae.decoder
    for name, layer in list(decoder.named_modules()):
        if isinstance(layer, WanResidualBlock):
            decoder.set_submodule(name, FusedResidual(layer, multiple))
        elif isinstance(layer, WanResample):
            decoder.set_submodule(name, FusedUpsample(layer))
        elif isinstance(layer, FusedResidual):
            layer.weights_changed()
    codec.ops = FUSED


class FusedResidual(nn.Module):
    """Takes the place of a residual block, with its layers under their names.

    Args:
        block: whose place it takes.
        multiple: of the channels that convolutions are computed with, where that adds half of them
            at most. None: 64 from Hopper on, for 64 and more outputs.
    """

    norm1: WanRMS_norm
    norm2: WanRMS_norm
    conv1: WanCausalConv3d
    conv2: WanCausalConv3d
    conv_shortcut: nn.Module

    def __init__(self, block: WanResidualBlock, multiple: int | None = None) -> None:
        super().__init__()
        _take_layers(self, block)
        self._multiple = multiple
        self._padded: list[Tensor | None] = [None, None]  # weights of conv1 and conv2
        self.weights_changed()

    def forward(self, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
        """x [B, C, T, H, W] -> [B, C', T, H, W]; the causal state is kept as before."""
        state = CausalState(feat_cache, feat_idx)
        x = x.contiguous(memory_format=torch.channels_last_3d)  # a strip is a view of more
        shortcut = as_rows(self.conv_shortcut(x))
        y = convolve_normed(x, None, self.norm1, self.weight(0), state)
        # a bias added here would be one more pass over memory: it goes into what comes next
        y = convolve_normed(y, self.conv1.bias, self.norm2, self.weight(1), state)
        rows = add_with_bias(as_rows(y), self.conv2.bias, shortcut)
        return as_video(rows, *x.shape[2:])

    def weight(self, index: int) -> Tensor:
        """Weights of conv1 or conv2, with zeros for channels that the input does not have."""
        convolution = (self.conv1, self.conv2)[index]
        if not added_channels(convolution, self._multiple):
            return convolution.weight
        padded = self._padded[index]
        if padded is None or not _alike(padded, convolution.weight):
            self.weights_changed()  # the codec has moved since
            padded = self._padded[index]
        assert padded is not None
        return padded

    @torch.inference_mode(False)
    @torch.no_grad()
    def weights_changed(self) -> None:
        """Takes the convolutions' weights anew; where they lie, recordings go on to read them."""
        for index, convolution in enumerate((self.conv1, self.conv2)):
            added, before = added_channels(convolution, self._multiple), self._padded[index]
            if not added:
                self._padded[index] = None
                continue
            weight = convolution.weight
            padded = F.pad(weight.movedim(1, -1), (0, added)).movedim(-1, 1)
            if before is not None and _alike(before, weight):
                before.copy_(padded)
            else:
                self._padded[index] = padded


class FusedUpsample(nn.Module):
    """Takes the place of an upsampling layer, with its layers under their names.

    Every pixel four times, convolved. Some make two frames of each before that, but of a video's
    first.
    """

    resample: nn.Sequential
    time_conv: WanCausalConv3d

    def __init__(self, layer: WanResample) -> None:
        super().__init__()
        _take_layers(self, layer)
        self.in_time = layer.mode == "upsample3d"

    def forward(self, x: Tensor, feat_cache: list[Any], feat_idx: list[int]) -> Tensor:
        """x [B, C, T, H, W] -> [B, C', T or 2 T, 2 H, 2 W]; the causal state is kept as before."""
        batch, frames, height, width = len(x), *x.shape[2:]
        times = 1
        if self.in_time:
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
                x, times = F.conv3d(joined, self.time_conv.weight, self.time_conv.bias), 2
        _, convolution = self.resample
        y = convolution(spread(x, times))  # [B * frames, C, 2 H, 2 W]
        return y.unflatten(0, (batch, -1)).transpose(1, 2)


def head(decoder: nn.Module, x: Tensor, state: CausalState) -> Tensor:
    """Norm, activation and the convolution to pixels."""
    convolution: Any = decoder.conv_out
    y = convolve_normed(x, None, decoder.norm_out, convolution.weight, state)
    return y + convolution.bias.view(-1, 1, 1, 1)


FUSED = DecoderOps("fused", head, AT_ONCE)


def convolve_normed(
    x: Tensor, bias: Tensor | None, norm: WanRMS_norm, weight: Tensor, state: CausalState
) -> Tensor:
    """Norm, activation and a causal convolution over all frames that it sees, without its bias.

    Args:
        x: [B, C, T, H, W].
        bias: [C], of the convolution that made x.
        norm: of the convolution's input.
        weight: of a convolution 3 frames, height and width wide.

    Returns:
        [B, C', T, H, W].
    """
    frames, height, width = x.shape[2:]
    before = state.last
    if before is None:
        before = x.new_zeros(len(x), BEFORE * height * width, weight.shape[1])
    joined = join_normed(as_rows(x), bias, norm.gamma.flatten(), before)
    state.keep(joined[:, -before.shape[1] :])
    joined = as_video(joined, BEFORE + frames, height, width)
    return F.conv3d(joined, weight, padding=(0, 1, 1))


def added_channels(convolution: WanCausalConv3d, multiple: int | None) -> int:
    """Channels that a convolution is computed with, beyond those of its input."""
    weight, channels = convolution.weight, convolution.in_channels
    if multiple is None:
        multiple = MULTIPLE if len(weight) >= MULTIPLE and _is_hopper(weight.device) else 1
    added = -channels % multiple
    return added if 2 * added <= channels else 0


def _take_layers(module: nn.Module, layer: nn.Module) -> None:
    """The layers below another, under the same names and in the same order."""
    for name, child in layer.named_children():
        module.add_module(name, child)


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
