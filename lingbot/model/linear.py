"""Linears whose rows do not depend on how many rows there are.

CPU libraries choose a kernel by the number of rows, and the choice changes last bits: a rank with
half of a chunk's tokens would make other pixels than a rank with all of them. Row counts that are
multiples of the kernels' tiles, and not few, get the same arithmetic (measured with MKL's kernels
for AVX-512, AVX2 and SSE4.2 and oneDNN's in bfloat16; `tests/model/test_linear.py` repeats it).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

TILE = 12
FEWEST_ROWS = 60


class Linear(nn.Linear):
    """`nn.Linear` that gives a row the same result among any others, when driving on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., in] -> [..., out], rows padded on CPUs outside of training."""
    if x.device.type != "cpu" or torch.is_grad_enabled():
        return F.linear(x, weight, bias)
    rows = x.shape[:-1].numel()
    missing = max(FEWEST_ROWS, -(-rows // TILE) * TILE) - rows
    if missing == 0:
        return F.linear(x, weight, bias)
    padded = F.pad(x.reshape(rows, x.shape[-1]), (0, 0, 0, missing))
    return F.linear(padded, weight, bias)[:rows].unflatten(0, x.shape[:-1])
