"""What `LingBotModule` asks of a training objective."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from lingbot.model import CausalLingBotTransformer, Exchange, KVCacheConfig


class Objective(Protocol):
    """Losses of one batch of clips.

    Your own is any callable with these arguments, as `lingbot.diffusion.FlowMatching` is. Random
    numbers are drawn from `generator` and from nothing else, so that a training that goes on
    repeats one that never stopped, and ranks of a sequence group agree.
    """

    def __call__(
        self,
        transformer: CausalLingBotTransformer,
        clean: Tensor,
        condition: Tensor,
        controls: Tensor,
        text: Tensor,
        *,
        cache: KVCacheConfig,
        exchange: Exchange,
        generator: torch.Generator,
        step: int | None = None,
    ) -> Mapping[str, Tensor]:
        """Named scalars: `loss` is minimised, all are logged under `train/` and `val/`.

        Args:
            clean: latents [B, 16, F, H, W], F a whole number of chunks.
            condition: mask and image latents [B, 20, F, H, W].
            controls: folded rays [B, channels, F, H, W].
            text: encoded prompts [B, tokens, text_dim].
            cache: window and sink the clip is trained for.
            exchange: the identity or the sequence group's; its chunk is one of these chunks.
            generator: CPU generator, alike on all ranks of a sequence group.
            step: of the training; None in a validation.
        """
