"""Self-attention over a memory, cross-attention over the prompt; both with norms on whole q and k.

Letters: B batch, C chunks, L local tokens of a chunk, S all tokens of a chunk, T keys, H heads,
h local heads, D head width.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lingbot.model.exchange import Memory
from lingbot.model.linear import Linear
from lingbot.model.rope import rotate

# At this model's sizes cuDNN's kernel reaches 601 TFLOP/s on an H200, PyTorch's flash kernel 320.
FASTEST = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]  # fmt: skip


class AttentionMemory(Protocol):
    """Where a chunk's keys and values go and what its queries see."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, C, S, h, D] -> attended values [B, C, S, h, D]."""
        ...

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keeps k, v [B, C, S, h, D] without attending."""
        ...

    def home(self, layer: int) -> Memory | None:
        """Where `store` would put the k and v of a chunk, [2, B, S, h, D]; None for no one place.

        What has been written there need not be stored.
        """
        ...


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


class RMSNorm(nn.Module):
    """Root-mean-square norm over the whole width, computed in float32 (arXiv:1910.07467)."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        normed = F.rms_norm(x.float(), (x.shape[-1],), eps=self.eps)
        return (normed * self.weight.float()).to(x.dtype)


class Projections(nn.Module):
    """The q, k, v, o linears and q, k norms that self- and cross-attention share."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)
        # q, k, v and k, v in one matmul, see `lingbot.model.kernels`
        self.packed: nn.Module | None = None
        self.packed_kv: nn.Module | None = None

    def heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "... (h d) -> ... h d", h=self.num_heads)


class SelfAttention(Projections):
    """Attention of a chunk over itself and the history its memory shows.

    The block calls its pieces: arithmetic before the exchange, and after it.
    """

    def queries_keys_values(
        self, x: Tensor, rope: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, C, L, dim] -> q, k, v [B, C, L, H, D]; q and k normed and rotated."""
        if self.packed is not None:
            q, k, v = self.packed(x).chunk(3, dim=-1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        q = rotate(self.heads(self.norm_q(q)), *rope)
        k = rotate(self.heads(self.norm_k(k)), *rope)
        return q, k, self.heads(v)

    def keys_values(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The same without q, which the end of a context update does not need."""
        if self.packed_kv is not None:
            k, v = self.packed_kv(x).chunk(2, dim=-1)
        else:
            k, v = self.k(x), self.v(x)
        return rotate(self.heads(self.norm_k(k)), *rope), self.heads(v)


class CrossAttention(Projections):
    """Attention of every token over the prompt; the block attends between these pieces."""

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the embedded prompt: [B, T, dim] -> two of [B, T, H, D]."""
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))

    def queries(self, x: Tensor) -> Tensor:
        """x [B, C, L, dim] -> [B, C * L, H, D]."""
        return self.heads(self.norm_q(self.q(x))).flatten(1, 2)
