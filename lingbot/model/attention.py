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

from lingbot.model.exchange import Exchange
from lingbot.model.rope import rotate


class AttentionMemory(Protocol):
    """Where a chunk's keys and values go and what its queries see."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, C, S, h, D] -> attended values [B, C, S, h, D]."""
        ...

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keeps k, v [B, C, S, h, D] without attending."""
        ...


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Plain attention, heads in the third place: q [B, S, h, D], k and v [B, T, h, D]."""
    q, k, v = (x.to(q.dtype).transpose(1, 2) for x in (q, k, v))
    if q.device.type == "cpu" and q.dtype == torch.bfloat16:
        y = attend_by_matmul(q, k, v)
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
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.o = nn.Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "... (h d) -> ... h d", h=self.num_heads)


class SelfAttention(Projections):
    """Attention of a chunk over itself and the history its memory shows."""

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        layer: int,
        memory: AttentionMemory,
        exchange: Exchange,
    ) -> Tensor:
        """x [B, C, L, dim] -> [B, C, L, dim]; keys enter the memory after their rotation."""
        q = rotate(self.heads(self.norm_q(self.q(x))), *rope)
        k = rotate(self.heads(self.norm_k(self.k(x))), *rope)
        v = self.heads(self.v(x))
        q_all, k_all, v_all = exchange.to_heads(q, k, v)  # [B, C, S, h, D]
        assert q_all is not None
        y = exchange.to_tokens(memory.attend(layer, q_all, k_all, v_all))
        return self.o(y.flatten(-2))

    def store_only(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        layer: int,
        memory: AttentionMemory,
        exchange: Exchange,
    ) -> None:
        """Leaves the chunk's keys and values in the memory; no query is made or exchanged."""
        k = rotate(self.heads(self.norm_k(self.k(x))), *rope)
        _, k_all, v_all = exchange.to_heads(None, k, self.heads(self.v(x)))
        memory.store(layer, k_all, v_all)


class CrossAttention(Projections):
    """Attention of every token over the prompt."""

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the embedded prompt: [B, T, dim] -> two of [B, T, H, D]."""
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))

    def forward(self, x: Tensor, text_kv: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, C, L, dim] -> [B, C, L, dim]."""
        q = self.heads(self.norm_q(self.q(x)))
        y = attend(q.flatten(1, 2), *text_kv)
        return self.o(y.flatten(-2)).view_as(x)
