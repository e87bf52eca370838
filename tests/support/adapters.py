"""Adapters of linears, as LoRA makes them."""

from __future__ import annotations

from torch import Tensor, nn


class LowRank(nn.Module):
    """A linear layer with a low-rank update beside it, which says what both come to."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))

    def merged_weights(self) -> dict[str, Tensor]:
        return {
            "weight": self.base.weight + self.up.weight @ self.down.weight,
            "bias": self.base.bias,
        }
