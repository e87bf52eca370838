"""Linear layers in 8-bit floating point, for driving: half the bytes, twice the matmul rate.

Weights are scaled per output row once, activations per token on the fly (arXiv:2209.05433 for the
format, e4m3 for both). Quantising is plain arithmetic, so that a compiled forward fuses it into
whatever makes the activations.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lingbot.model.linear import linear

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0  # the largest number of e4m3
MULTIPLE = 16  # sides that the fp8 matmul takes


class Quantised(NamedTuple):
    """Rows that were quantised where they were made."""

    rows: Tensor  # [..., columns] fp8
    scale: Tensor  # [rows, 1] float32


def quantise_rows(x: Tensor) -> Quantised:
    """x [rows, columns] -> fp8 of the same shape, and the scale of each row."""
    x = x.float()
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / FP8_MAX
    return Quantised((x / scale).to(FP8), scale)


class Fp8Linear(nn.Module):
    """Takes the place of an `nn.Linear` whose weights do not change any more.

    State dicts have its weights under the names and in the precision that they had before.

    Args:
        linear: the layer; its weights are read, not kept.

    Raises:
        ValueError: for sides that the fp8 matmul does not take.
    """

    rows: Tensor  # [out, in] fp8
    scale: Tensor  # [1, out] float32

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
            raise ValueError(
                f"a linear of {linear.in_features} x {linear.out_features} cannot run in fp8: both "
                f"must be multiples of {MULTIPLE}; choose kernels.linears=bf16"
            )
        self.in_features, self.out_features = linear.in_features, linear.out_features
        rows, scale = quantise_rows(linear.weight.detach())
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("scale", scale.T.contiguous(), persistent=False)
        self.bias = linear.bias
        self.dtype = linear.weight.dtype

    @property
    def weight(self) -> Tensor:
        """The weights [out, in] that the rows stand for, in the layer's own precision."""
        return (self.rows.float() * self.scale.T).to(self.dtype)

    def forward(self, x: Tensor | Quantised, skip: int = 0) -> Tensor:
        """x [..., in], or rows of it, -> [..., out - skip] in the layer's own precision.

        Args:
            skip: the first of the outputs that are not wanted.
        """
        shape = x.shape[:-1] if isinstance(x, Tensor) else x.rows.shape[:-1]
        rows, scale = quantise_rows(x.flatten(0, -2)) if isinstance(x, Tensor) else x
        rows = rows.flatten(0, -2)
        weight, weight_scale = self.rows[skip:], self.scale[:, skip:]
        bias = None if self.bias is None else self.bias[skip:]
        if rows.is_cuda:
            y = torch._scaled_mm(
                rows, weight.T, scale_a=scale, scale_b=weight_scale,
                bias=None if bias is None else bias.bfloat16(),
                out_dtype=torch.bfloat16, use_fast_accum=True,
            )  # fmt: skip
            return y.to(self.dtype).view(*shape, len(weight))
        y = scaled_matmul(rows, weight, scale, weight_scale)
        y = y.to(self.dtype).view(*shape, len(weight))
        return y if bias is None else y + bias.to(self.dtype)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        rest = dict(state_dict)
        weight = rest.pop(f"{prefix}weight", None)
        if weight is None:
            missing: list[str] = args[2]
            missing.append(f"{prefix}weight")
        else:
            rows, scale = quantise_rows(weight.to(self.rows.device))
            self.rows.copy_(rows)
            self.scale.copy_(scale.T)
        super()._load_from_state_dict(rest, prefix, *args, **kwargs)


def scaled_matmul(rows: Tensor, weight: Tensor, scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The same product spelled out in float32: what the fp8 kernel is held against."""
    return linear(rows.float(), weight.float()) * scale * weight_scale
