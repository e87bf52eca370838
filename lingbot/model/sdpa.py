"""Scaled dot-product attention by the fastest kernel that a device has for it.

Letters: B batch, S queries, T keys, h heads, D head width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# At this model's sizes cuDNN's kernel reaches 601 TFLOP/s on an H200, PyTorch's flash kernel 320.
FASTEST = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]  # fmt: skip


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention, heads in the third place: q [B, S, h, D], k and v [B, T, h, D]."""
    q, k, v = (x.to(q.dtype).transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        y = attend_by_matmul(q, k, v)
    elif q.device.type == "cuda" and q.dtype != torch.float32:
        with sdpa_kernel(FASTEST, set_priority=True):
            y = F.scaled_dot_product_attention(q, k, v)
    else:
        y = F.scaled_dot_product_attention(q, k, v)
    return y.transpose(1, 2)


def attend_by_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The same, spelled out; heads in the second place: q [B, h, S, D], k and v [B, h, T, D].

    On CPUs bfloat16 matmuls run this two to three times as fast, forward and backward, as
    PyTorch's own kernel does at this model's sizes.
    """
    scores = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-1, -2))
    return torch.matmul(scores.softmax(-1), v)
