"""What lies between two convolutions of a decoder, on rows of channels; and the same in Triton.

The first two functions say what is computed, and compute it where there is no GPU. The kernels do
the same in one trip through memory: a row's channels are read once, normalised and activated in
float32, and written where the convolution wants them. Letters: B batch, C channels, N and M rows.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ELEMENTS = 2048  # of a Triton program: rows times channels, rounded up to a power of two


def join_normed(x: Tensor, bias: Tensor, gamma: Tensor, before: Tensor) -> Tensor:
    """What a convolution takes: before [B, M, C], then SiLU(RMSNorm(x + bias)) of x [B, N, C]."""
    if x.is_cuda:
        out = x.new_empty(len(x), before.shape[1] + x.shape[1], x.shape[2])
        out[:, : before.shape[1]] = before
        for one, into in zip(x, out[:, before.shape[1] :], strict=True):
            _launch("norm", one, into, bias, gamma)
        return out
    x = x + bias
    normed = F.normalize(x.float(), dim=-1).to(x.dtype) * x.shape[-1] ** 0.5 * gamma
    return torch.cat([before, F.silu(normed)], dim=1)


def add_with_bias(x: Tensor, bias: Tensor, y: Tensor) -> Tensor:
    """x + bias + y of [B, N, C]."""
    if x.is_cuda:
        out = torch.empty_like(x)
        for one, other, into in zip(x, y, out, strict=True):
            _launch("add", one, into, bias, other)
        return out
    return x + bias + y


def _launch(name: str, x: Tensor, out: Tensor, bias: Tensor, other: Tensor) -> None:
    """Run a kernel over the rows of x and out [N, C], contiguous each."""
    rows, channels = x.shape
    width = 1 << (channels - 1).bit_length()
    height = max(1, ELEMENTS // width)
    grid = (-(-rows // height),)
    kernels()[name][grid](x, out, bias, other, rows, channels**0.5, channels, width, height)


@cache
def kernels() -> dict[str, Any]:
    """The Triton kernels by name; Triton comes with PyTorch for CUDA alone."""
    from lingbot.codec import triton_rows

    return {"norm": triton_rows.norm, "add": triton_rows.add}
