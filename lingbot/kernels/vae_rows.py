"""What lies between two convolutions of a decoder, on rows of channels; and the same in Triton.

The first three functions say what is computed, and compute it where there is no GPU. The kernels do
the same in one trip through memory: a row's channels are read once, normalised and activated in
float32, and written where the convolution wants them. Letters: B batch, T frames, H height,
W width, C channels, N and M rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ELEMENTS = 2048  # of a Triton program: rows times channels, rounded up to a power of two


def join_normed(x: Tensor, bias: Tensor | None, gamma: Tensor, before: Tensor) -> Tensor:
    """What a convolution takes: before [B, M, C'], then SiLU(RMSNorm(x + bias)) of x [B, N, C].

    Where C' is more than C, the channels that x does not have are zeros.
    """
    if x.is_cuda:
        out = x.new_empty(len(x), before.shape[1] + x.shape[1], before.shape[2])
        out[:, : before.shape[1]] = before
        for one, into in zip(x, out[:, before.shape[1] :], strict=True):
            _launch("norm", one, into, bias, gamma, into.shape[1])
        return out
    if bias is not None:
        x = x + bias
    normed = F.normalize(x.float(), dim=-1).to(x.dtype) * x.shape[-1] ** 0.5 * gamma
    return torch.cat([before, F.pad(F.silu(normed), (0, before.shape[2] - x.shape[2]))], dim=1)


def add_with_bias(x: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """x + bias + y of [B, N, C]."""
    if x.is_cuda:
        out = torch.empty_like(x)
        for one, other, into in zip(x, y, out, strict=True):
            _launch("add", one, into, bias, other, x.shape[2])
        return out
    return x + bias + y


def spread(x: Tensor, times: int) -> Tensor:
    """Every pixel four times, and every frame `times` times: nearest neighbours.

    x [B, times * C, T, H, W], the channels of a frame's first copy first, -> [B * T * times, C,
    2 H, 2 W], channels last in memory.
    """
    rows = x.movedim(1, -1).unflatten(-1, (times, -1))  # [B, T, H, W, times, C]
    batch, frames, height, width, _, channels = rows.shape
    if x.is_cuda:
        rows = rows.contiguous()
        out = rows.new_empty(batch * frames * times, 2 * height, 2 * width, channels)
        rows = rows.view(-1, channels)
        power = 1 << (channels - 1).bit_length()
        grid = (-(-len(rows) // max(1, ELEMENTS // power)),)
        kernels()["spread"][grid](
            rows, out, len(rows), height, width, times, channels, power,
            max(1, ELEMENTS // power),
        )  # fmt: skip
        return out.movedim(-1, 1)
    rows = rows.movedim(4, 2)[:, :, :, :, None, :, None]
    rows = rows.expand(-1, -1, -1, -1, 2, -1, 2, -1)
    return rows.reshape(-1, 2 * height, 2 * width, channels).movedim(-1, 1)


def _launch(
    name: str, x: Tensor, out: Tensor, bias: Tensor | None, other: Tensor, columns: int
) -> None:
    """Run a kernel over the rows of x [N, C] and out [N, columns], contiguous each."""
    rows, channels = x.shape
    width = 1 << (columns - 1).bit_length()
    height = max(1, ELEMENTS // width)
    grid = (-(-rows // height),)
    kernels()[name][grid](
        x, out, bias, other, rows, channels**0.5, channels, columns, width, height
    )  # fmt: skip


@cache
def kernels() -> dict[str, Any]:
    """The Triton kernels by name; Triton comes with PyTorch for CUDA alone."""
    from lingbot.kernels import triton_vae

    return {"norm": triton_vae.norm, "add": triton_vae.add, "spread": triton_vae.spread}
