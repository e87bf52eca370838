"""Linear layers in 8-bit floating point, for driving: half the bytes, twice the matmul rate.

Weights are scaled per output row once, activations per token on the fly (arXiv:2209.05433 for the
format, e4m3 for both). Quantising is plain arithmetic, so that a compiled forward fuses it into
whatever makes the activations.
"""

from __future__ import annotations

from copy import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lingbot.model.linear import linear

FP8 = torch.float8_e4m3fn
LARGEST = 448.0  # of e4m3
MULTIPLE = 16  # sides that the fp8 matmul takes


class Quantised(NamedTuple):
    """Rows that were quantised where they were made."""

    rows: Tensor  # [rows, columns] fp8
    scale: Tensor  # [rows, 1] float32


def quantise_rows(x: Tensor) -> Quantised:
    """x [rows, columns] -> fp8 of the same shape, and the scale of each row."""
    x = x.float()
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / LARGEST
    return Quantised((x / scale).to(FP8), scale)


class Fp8Linear(nn.Module):
    """Takes the place of an `nn.Linear` whose weights do not change any more.

    Args:
        linear: the layer; its weights are read, not kept.

    Raises:
        ValueError: for sides that the fp8 matmul does not take.
    """

    weight: Tensor  # [out, in] fp8
    scale: Tensor  # [1, out] float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            raise ValueError(
                f"a linear of {linear.in_features} x {linear.out_features} cannot run in fp8: both "
                f"must be multiples of {MULTIPLE}; choose linears=exact"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight, scale = quantise_rows(linear.weight.detach())
        self.register_buffer("weight", weight, persistent=False)
        self.register_buffer("scale", scale.T.contiguous(), persistent=False)
        self.bias = linear.bias
        self.dtype = linear.weight.dtype

    def part(self, rows: slice) -> Fp8Linear:
        """The layer for some of its outputs, with the same weights in memory."""
        part = copy(self)
        part._buffers = {"weight": self.weight[rows], "scale": self.scale[:, rows]}
        bias = None if self.bias is None else nn.Parameter(self.bias[rows], requires_grad=False)
        part._parameters = {"bias": bias}
        part.out_features = len(part.weight)
        return part

    def forward(self, x: Tensor | Quantised) -> Tensor:
        """x [..., in], or rows [rows, in] -> [..., out] in the layer's own precision."""
        shape = x.shape[:-1] if isinstance(x, Tensor) else x.rows.shape[:-1]
        rows, scale = quantise_rows(x.flatten(0, -2)) if isinstance(x, Tensor) else x
        if rows.is_cuda:
            y = torch._scaled_mm(
                rows, self.weight.T, scale_a=scale, scale_b=self.scale,
                bias=None if self.bias is None else self.bias.bfloat16(),
                out_dtype=torch.bfloat16, use_fast_accum=True,
            )  # fmt: skip
            return y.to(self.dtype).view(*shape, self.out_features)
        y = scaled_matmul(rows, self.weight, scale, self.scale)
        y = y.to(self.dtype).view(*shape, self.out_features)
        return y if self.bias is None else y + self.bias.to(self.dtype)


def scaled_matmul(rows: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The same product spelled out in float32: what the fp8 kernel is held against."""
    return linear(rows.float(), weight.float()) * scale * weight_scale
