"""Self-attention over a K/V store, cross-attention over the prompt; both with norms on q and k.

Letters: B batch, C chunks, L local tokens of a chunk, S all tokens of a chunk, H heads, h local
heads, D head width.
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn

from lingbot.model import ops
from lingbot.model.exchange import Exchange
from lingbot.model.kv_format import PLAIN
from lingbot.model.kv_store import LayerKV
from lingbot.model.linear import Linear
from lingbot.model.norms import RMSNorm
from lingbot.model.sdpa import attend


class Projections(nn.Module):
    """The q, k, v, o linears and q, k norms that self- and cross-attention share."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.ops = ops.REFERENCE
        self.q = Linear(dim, dim)
        self.k = Linear(dim, dim)
        self.v = Linear(dim, dim)
        self.o = Linear(dim, dim)
        self.norm_q = RMSNorm(dim, eps)
        self.norm_k = RMSNorm(dim, eps)

    def heads(self, x: Tensor) -> Tensor:
        return rearrange(x, "... (h d) -> ... h d", h=self.num_heads)


class SelfAttention(Projections):
    """Attention of a chunk over itself and the history that its K/V store shows."""

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], kv: LayerKV, exchange: Exchange
    ) -> Tensor:
        """x [B, C, L, dim] -> [B, C, L, dim]; tokens become heads and back in the exchange."""
        q, k, v = exchange.to_heads(self.ops.qkv(self, x, rope, kv, exchange))
        y = exchange.to_tokens(kv.attend(q, k, v))
        return self.ops.project_out(self, y, kv.format)

    def update_kv(
        self, x: Tensor, rope: tuple[Tensor, Tensor], kv: LayerKV, exchange: Exchange
    ) -> None:
        """Keeps the keys and values of x; without the queries, nobody attends."""
        kv.store(*exchange.to_heads(self.ops.kv(self, x, rope, kv, exchange)))


class CrossAttention(Projections):
    """Attention of every token over the prompt."""

    def forward(self, x: Tensor, text_kv: tuple[Tensor, Tensor]) -> Tensor:
        """x [B, C, L, dim], text_kv from `text_kv` -> [B, C * L, dim]."""
        q = self.ops.text_queries(self, x)
        return self.ops.project_out(self, attend(q, *text_kv), PLAIN)

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the embedded prompt: [B, T, dim] -> two of [B, T, H, D]."""
        return self.heads(self.norm_k(self.k(text))), self.heads(self.v(text))
