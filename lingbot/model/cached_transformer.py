"""The transformer with all it remembers in a session, one chunk at a time.

Everything a chunk needs besides its noise is given once: the prompt until it changes, the rays and
the condition when the chunk begins. `predict` is one denoise pass, `update_context` the pass that
leaves the clean chunk in the K/V cache.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lingbot.model.camera_conditioner import ConditionerCache
from lingbot.model.exchange import Exchange
from lingbot.model.kv_cache import KVCache, KVCacheConfig
from lingbot.model.rope import Grid
from lingbot.model.time_embedding import TimeEmbeddingCache
from lingbot.model.transformer import CausalLingBotTransformer, TextKV


class CachedTransformer:
    """Holds the caches of one session; used under `torch.no_grad`.

    Args:
        transformer: its weights are not changed.
        cache: window and sink of the K/V cache.
        grid: token grid of one chunk.
        exchange: the identity, or the sequence group's.
        conditioner_policy: see `ConditionerCache`.
        batch: worlds driven at once.
    """

    def __init__(
        self,
        transformer: CausalLingBotTransformer,
        cache: KVCacheConfig,
        grid: Grid,
        exchange: Exchange,
        conditioner_policy: str = "step",
        batch: int = 1,
    ) -> None:
        self.transformer, self.grid, self.exchange = transformer, grid, exchange
        config = transformer.config
        self.kv_cache = KVCache(
            cache, grid, layers=config.num_layers, batch=batch, heads=exchange.local_heads,
            head_dim=config.head_dim, dtype=transformer.dtype, device=transformer.device,
            format=transformer.kv_format, zeros=exchange.zeros,
        )  # fmt: skip
        self.conditioner = ConditionerCache(conditioner_policy)
        self._time = TimeEmbeddingCache(transformer.embed_time)
        self._text: TextKV | None = None
        self._rays: Tensor | None = None
        self._condition: Tensor | None = None
        self.first_frame = 0

    def reset(self) -> None:
        """Forgets history and prompt; the K/V cache's memory and the time embeddings stay."""
        self.kv_cache.reset()
        self.conditioner.drop()
        self._text = self._rays = self._condition = None
        self.first_frame = 0

    def set_text(self, text: Tensor) -> None:
        """Takes an encoded prompt [B, tokens, text_dim]; it holds until the next one."""
        self._text = self.transformer.embed_text(text)

    def begin_chunk(self, controls: Tensor, condition: Tensor, first_frame: int) -> None:
        """Starts the chunk at latent frame `first_frame`.

        Args:
            controls: folded rays [B, channels, f, H, W].
            condition: mask and image latents [B, 20, f, H, W].
        """
        self._rays = self.transformer.embed_controls(controls, self.exchange)
        self._condition = condition
        self.first_frame = first_frame
        self.kv_cache.begin_chunk(first_frame)

    def predict(self, noisy: Tensor, timestep: float) -> Tensor:
        """One denoise pass: noisy chunk [B, 16, f, H, W] -> flow of the same shape, float32."""
        return self.transformer(*self._inputs(noisy, timestep), **self._parts())

    def update_context(self, clean: Tensor) -> None:
        """The pass at timestep 0 whose keys and values later chunks will see."""
        self.transformer.update_context(*self._inputs(clean, 0.0), **self._parts())

    def _inputs(self, latents: Tensor, timestep: float) -> tuple:
        if self._text is None:
            raise RuntimeError("no prompt yet: call set_text before the first chunk")
        if self._rays is None or self._condition is None:
            raise RuntimeError("no chunk has begun: call begin_chunk before a pass")
        time = self._time(timestep, self.transformer.dtype, latents.device)
        latents = torch.cat([latents, self._condition], dim=1)
        return latents, time, self._rays, self._text, (self.first_frame,)

    def _parts(self) -> dict:
        return {
            "kv": self.kv_cache,
            "conditioner": self.conditioner,
            "exchange": self.exchange,
        }
