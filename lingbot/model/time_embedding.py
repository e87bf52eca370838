"""Timestep embeddings: one per chunk, computed once per value and kept for the session."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class TimeEmbedding(NamedTuple):
    """`e` [B, C, dim] feeds the head, `modulation` [B, C, 6, dim] the blocks."""

    e: Tensor
    modulation: Tensor


def sinusoid(timesteps: Tensor, width: int) -> Tensor:
    """Timesteps [...] in [0, 1000] -> [..., width], cosines first; computed in float64."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float64, device=timesteps.device)
    angles = timesteps.double().unsqueeze(-1) * 10_000.0 ** (-steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


class TimeEmbeddingCache:
    """Remembers the embedding of every timestep value, as long as the weights stay.

    Args:
        embed: the transformer's `embed_time`.
    """

    def __init__(self, embed: Callable[[Tensor], TimeEmbedding]) -> None:
        self._embed = embed
        self._kept: dict[tuple[float, torch.dtype, torch.device], TimeEmbedding] = {}

    def __call__(self, timestep: float, dtype: torch.dtype, device: torch.device) -> TimeEmbedding:
        key = (timestep, dtype, device)
        if key not in self._kept:
            value = torch.tensor([[timestep]], dtype=torch.float64, device=device)
            self._kept[key] = self._embed(value)
        return self._kept[key]
