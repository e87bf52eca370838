"""What a decode remembers of a video between two chunks, in the form that diffusers gave it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

FIRST = "Rep"  # diffusers' mark in the place of a state: one frame came, and is none yet


class CausalState(NamedTuple):
    """The causal features of all convolutions and the place of the next one, as diffusers has them.

    A feature is the last two frames of the convolution's input, None before the first, or a mark.
    """

    features: list[Any]
    place: list[int]

    @property
    def last(self) -> Any:
        """The next convolution's feature."""
        return self.features[self.place[0]]

    def keep(self, last: Tensor) -> None:
        """`last` is the feature from here on, in the same memory if it can be."""
        kept = self.last
        fits = isinstance(kept, Tensor) and kept.shape == last.shape
        if fits and (torch.is_inference_mode_enabled() or not kept.is_inference()):
            kept.copy_(last)
            self.place[0] += 1
        else:
            self.mark(last.clone())  # a view would keep all of what it is a part of

    def mark(self, feature: Any) -> None:
        """`feature` takes the place, and the next convolution is the one after it."""
        self.features[self.place[0]] = feature
        self.place[0] += 1

    def convolve(self, convolution: nn.Module, x: Tensor) -> Tensor:
        """Convolve after the two frames that came before x, and remember the last two."""
        before, last = self.last, x[:, :, -2:]
        if before is not None and last.shape[2] < 2:
            last = torch.cat([before[:, :, -1:], last], dim=2)
        self.mark(last.clone())
        return convolution(x, before)
