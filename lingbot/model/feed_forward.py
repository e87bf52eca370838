"""The feed-forward layer of a block."""

from __future__ import annotations

from torch import Tensor, nn

from lingbot.model import ops
from lingbot.model.linear import Linear


class FeedForward(nn.Sequential):
    """Linear, GELU in its tanh form, Linear; under the public checkpoints' names 0 and 2."""

    def __init__(self, dim: int, ffn_dim: int) -> None:
        super().__init__(Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), Linear(ffn_dim, dim))
        self.ops = ops.REFERENCE

    def forward(self, x: Tensor) -> Tensor:
        """[..., dim] -> [..., dim]."""
        return self.ops.feed_forward(self, x)
