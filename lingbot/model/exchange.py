"""The exchange of one rank: every method is the identity.

The transformer speaks to this small object where tokens must become heads and back; with several
ranks `lingbot.parallel.exchange.SequenceExchange` takes its place. Letters: B batch, C chunks,
L local tokens of a chunk, S all tokens of a chunk, H heads, h local heads, D head width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Exchange(Protocol):
    """What the transformer asks of whoever holds the other ranks' tokens."""

    size: int
    rank: int
    path: str
    local_heads: int

    def shard(self, x: Tensor, dim: int) -> Tensor:
        """This rank's slice of a chunk's S tokens along `dim`."""
        ...

    def pack(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """q, k, v (or k, v) [B, C, L, H, D] -> what `to_heads` takes; no communication."""
        ...

    def send_buffer(
        self, like: Tensor, count: int, shape: tuple[int, ...], home: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What `pack` would give for `count` tensors of shape [B, C, L, H, D], still empty.

        And views [B * C * L, ranks, h, D] of them to write them through, one a tensor. Where
        nothing has to be sent, keys and values may lie in the memory's `home` [2, B, S, h, D].
        """
        ...

    def to_heads(self, packed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """What `pack` gave -> each of its tensors as [B, C, S, h, D]."""
        ...

    def to_tokens(self, y: Tensor) -> Tensor:
        """[B, C, S, h, D] -> [B, C, L, H, D]."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """[B, C, L, N] -> [B, C, S, N]."""
        ...

    def gather_strips(self, strip: Tensor, widths: tuple[int, ...]) -> Tensor:
        """Every rank's strip of pictures [B, T, height, width, N] side by side; no gradient."""
        ...


class LocalExchange:
    """One rank holds every token and every head, so nothing moves."""

    size = 1
    rank = 0
    path = "local"

    def __init__(self, num_heads: int) -> None:
        self.local_heads = num_heads

    def shard(self, x: Tensor, dim: int) -> Tensor:
        return x

    def pack(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tensors

    def send_buffer(
        self, like: Tensor, count: int, shape: tuple[int, ...], home: Tensor | None = None
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        if home is not None and shape[:2] == (1, 1) and home.dtype == like.dtype:
            queries = [like.new_empty(shape) for _ in range(count - 2)]
            tensors = (*queries, *(half.unsqueeze(1) for half in home))
        else:
            tensors = like.new_empty(count, *shape).unbind(0)
        return tensors, tuple(x.flatten(0, 2).unsqueeze(1) for x in tensors)

    def to_heads(self, packed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return packed

    def to_tokens(self, y: Tensor) -> Tensor:
        return y

    def gather(self, x: Tensor) -> Tensor:
        return x

    def gather_strips(self, strip: Tensor, widths: tuple[int, ...]) -> Tensor:
        return strip
