"""Rotary positions over (time, height, width), as Wan has them: interleaved complex pairs.

With head width d the time axis owns d - 4*(d//6) channels, height and width 2*(d//6) each
(RoFormer, arXiv:2104.09864, per axis). Angles are computed in float64 for the frames asked for, so
no table limits how far a world may be driven.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lingbot.model.exchange import Exchange

THETA = 10_000.0


@dataclass(frozen=True)
class Grid:
    """The token grid of one chunk: `frames` latent frames of `height` x `width` patches."""

    frames: int
    height: int
    width: int

    @property
    def tokens_per_frame(self) -> int:
        return self.height * self.width

    @property
    def tokens(self) -> int:
        return self.frames * self.tokens_per_frame


def axis_widths(head_dim: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, height and width."""
    space = 2 * (head_dim // 6)
    return head_dim - 2 * space, space, space


def rope_angles(grid: Grid, first_frame: int, head_dim: int, device: torch.device) -> Tensor:
    """Angles of one chunk's tokens, frames slowest: [tokens, head_dim / 2] float64."""
    sizes = (grid.frames, grid.height, grid.width)
    starts = (first_frame, 0, 0)
    parts = []
    for axis, (width, size, start) in enumerate(
        zip(axis_widths(head_dim), sizes, starts, strict=True)
    ):
        pairs = torch.arange(0, width, 2, dtype=torch.float64, device=device)
        places = torch.arange(start, start + size, dtype=torch.float64, device=device)
        angles = torch.outer(places, THETA ** (-pairs / width))  # [size, width / 2]
        shape = [1, 1, 1, angles.shape[1]]
        shape[axis] = size
        parts.append(angles.view(shape).expand(*sizes, -1))
    return torch.cat(parts, dim=-1).flatten(0, 2)


class RopeTables:
    """cos and sin for the chunks of a forward, kept while grid, frames and shard are the same."""

    def __init__(self, head_dim: int) -> None:
        self.head_dim = head_dim
        self._key: tuple[object, ...] | None = None
        self._table: tuple[Tensor, Tensor] | None = None

    def __call__(
        self, grid: Grid, first_frames: tuple[int, ...], exchange: Exchange, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """(cos, sin) for chunks starting at `first_frames`: [C, L, 1, head_dim / 2] float32."""
        key = (grid, first_frames, exchange.rank, exchange.size, device)
        if self._table is None or key != self._key:
            angles = torch.stack(
                [rope_angles(grid, first, self.head_dim, device) for first in first_frames]
            )
            angles = exchange.shard(angles, dim=1).unsqueeze(2)
            self._key, self._table = key, (angles.cos().float(), angles.sin().float())
        return self._table


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns interleaved pairs of x [B, C, L, H, D] by the table [C, L, 1, D / 2], in float32."""
    even, odd = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).to(x.dtype)
