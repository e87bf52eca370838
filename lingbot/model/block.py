"""One block of the causal transformer: self-attention, camera, prompt, feed-forward.

The residual stream stays in float32; matmuls run in the weights' own precision.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from lingbot.model import ops
from lingbot.model.attention import CrossAttention, SelfAttention
from lingbot.model.camera_conditioner import CameraLayers, ConditionerCache
from lingbot.model.exchange import Exchange
from lingbot.model.feed_forward import FeedForward
from lingbot.model.kv_store import KVStore, LayerKV
from lingbot.model.norms import Float32LayerNorm


class Block(CameraLayers):
    """Block `layer` of the transformer, under the public checkpoints' parameter names."""

    def __init__(self, layer: int, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.layer, self.eps = layer, eps
        self.ops = ops.REFERENCE
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = Float32LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, num_heads, eps)
        self.ffn = FeedForward(dim, ffn_dim)
        self.make_camera_layers(dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm3.weight.dtype  # linears may be in fp8

    def forward(
        self,
        x: Tensor,
        modulation: Tensor,
        rays: Tensor,
        text_kv: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        *,
        kv: KVStore,
        conditioner: ConditionerCache,
        exchange: Exchange,
        updating: bool = False,
    ) -> Tensor:
        """x [B, C, L, dim] float32, modulation [B, C, 6, dim], rays [B, C', L, dim] -> x.

        C is a multiple of C': clean and noisy chunks of a training clip share their rays.
        """
        do = self.ops
        y = do.norm_modulate(self, x, modulation)
        y = self.self_attn(y, rope, LayerKV(kv, self.layer), exchange)
        camera = conditioner(self.layer, rays, partial(do.scale_shift, self), updating=updating)
        x, y = do.attention_residual(self, x, y, modulation, *camera)
        y = self.cross_attn(y, text_kv)
        x, y = do.text_residual(self, x, y, modulation)
        y = self.ffn(y)
        return do.feed_forward_residual(self, x, y, modulation)

    def update_kv(
        self,
        x: Tensor,
        modulation: Tensor,
        rope: tuple[Tensor, Tensor],
        *,
        kv: KVStore,
        exchange: Exchange,
    ) -> None:
        """Ends a context update here: the keys and values of x are kept, nothing else is made."""
        y = self.ops.norm_modulate(self, x, modulation)
        self.self_attn.update_kv(y, rope, LayerKV(kv, self.layer), exchange)

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the embedded prompt [B, T, dim] for this block: [B, T, H, D] each."""
        return self.cross_attn.text_kv(text)

    def modulated_by(self, modulation: Tensor) -> tuple[Tensor, ...]:
        """Six vectors of [B, C, 1, dim]: shift, scale, gate of attention, then of the ffn."""
        return (self.modulation.float() + modulation.float()).unsqueeze(3).unbind(2)
