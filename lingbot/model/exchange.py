"""The exchange of one rank: every method is the identity.

The transformer speaks to this small object where tokens must become heads and back; with several
ranks `lingbot.parallel.exchange.SequenceExchange` takes its place. Letters: B batch, C chunks,
L local tokens of a chunk, S all tokens of a chunk, H heads, h local heads, D head width.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class PeerTensor(NamedTuple):
    """Memory for keys and values, or a view of it.

    `peers`, int64 [ranks], is how far from it every rank's own lies, in units of 16 elements, for
    ranks that write each other's memory. `mapping` is to be kept as long as that may happen.
    """

    tensor: Tensor
    peers: Tensor | None = None
    mapping: object = None


class SendBuffer(NamedTuple):
    """Where a kernel writes the tensors that are to be exchanged.

    `packed` is what `to_heads` then takes. `views` [B * C * L, ranks, h, D], one a tensor, are
    written through: rank r's heads at its place in the second dimension or, where `peers` of q and
    of k, v are given, in the memory of rank r, see `PeerTensor`.
    """

    packed: tuple[Tensor, ...]
    views: tuple[Tensor, ...]
    peers: tuple[Tensor, Tensor] | None = None


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
        self, like: Tensor, count: int, shape: tuple[int, ...], slots: PeerTensor | None = None
    ) -> SendBuffer:
        """What `pack` would give for `count` tensors of shape [B, C, L, H, D], still empty.

        Where a kernel can write there, keys and values may lie in the chunk's `slots` of the K/V
        store, [2, B, S, h, D].
        """
        ...

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PeerTensor:
        """Memory for keys and values, which ranks that write each other's memory can write."""
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


def plain_zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PeerTensor:
    """Memory that only its own rank writes."""
    return PeerTensor(torch.zeros(shape, dtype=dtype, device=device))


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
        self, like: Tensor, count: int, shape: tuple[int, ...], slots: PeerTensor | None = None
    ) -> SendBuffer:
        if slots is not None and shape[:2] == (1, 1) and slots.tensor.dtype == like.dtype:
            queries = [like.new_empty(shape) for _ in range(count - 2)]
            tensors = (*queries, *(half.unsqueeze(1) for half in slots.tensor))
        else:
            tensors = like.new_empty(count, *shape).unbind(0)
        return SendBuffer(tensors, tuple(x.flatten(0, 2).unsqueeze(1) for x in tensors))

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PeerTensor:
        return plain_zeros(shape, dtype, device)

    def to_heads(self, packed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return packed

    def to_tokens(self, y: Tensor) -> Tensor:
        return y

    def gather(self, x: Tensor) -> Tensor:
        return x

    def gather_strips(self, strip: Tensor, widths: tuple[int, ...]) -> Tensor:
        return strip
