"""The first layer of the transformer: patches to tokens."""

from __future__ import annotations

from torch import Tensor, nn

from lingbot.model.linear import linear


class PatchEmbedding(nn.Conv3d):
    """A convolution that never overlaps, over patches that are cut out already.

    Its weights have the shape [dim, channels, *patch] of the public checkpoints; a rank with some
    of the patches has no picture to convolve.
    """

    def __init__(self, channels: int, dim: int, patch: tuple[int, int, int]) -> None:
        super().__init__(channels, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """Patches [..., channels * patch], channels slowest -> tokens [..., dim]."""
        return linear(x, self.weight.flatten(1), self.bias)
