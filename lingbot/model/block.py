"""One block of the causal transformer: self-attention, camera, prompt, feed-forward.

The residual stream stays in float32; matmuls run in the weights' own precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingbot.model.attention import AttentionMemory, CrossAttention, SelfAttention
from lingbot.model.camera_conditioner import CameraConditioner, ConditionerCache
from lingbot.model.exchange import Exchange


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights in float32, then (1 + scale) * x + shift."""
    return F.layer_norm(x, (x.shape[-1],), eps=eps) * (1 + scale) + shift


class Block(CameraConditioner):
    """Block `layer` of the transformer, under the public checkpoints' parameter names."""

    def __init__(self, layer: int, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.layer, self.eps = layer, eps
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, num_heads, eps)
        self.ffn = nn.Sequential(
            nn.Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), nn.Linear(ffn_dim, dim)
        )
        self.make_camera_layers(dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.ffn[0].weight.dtype  # type: ignore[return-value]

    def forward(
        self,
        x: Tensor,
        six: Tensor,
        rays: Tensor,
        text_kv: tuple[Tensor, Tensor],
        rope: tuple[Tensor, Tensor],
        *,
        memory: AttentionMemory,
        conditioner: ConditionerCache,
        exchange: Exchange,
        updating: bool = False,
    ) -> Tensor:
        """x [B, C, L, dim] float32, six [B, C, 6, dim], rays [B, C', L, dim] -> x.

        C is a multiple of C': clean and noisy chunks of a training clip share their rays.
        """
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = self._modulation(six)
        y = modulated_norm(x, scale, shift, self.eps).to(self.dtype)
        x = x + gate * self.self_attn(y, rope, self.layer, memory, exchange).float()

        cam_scale, cam_shift = conditioner(self.layer, rays, self.scale_shift, updating=updating)
        x = move_with_camera(x, cam_scale, cam_shift)

        y = F.layer_norm(
            x, (x.shape[-1],), self.norm3.weight.float(), self.norm3.bias.float(), self.eps
        )
        x = x + self.cross_attn(y.to(self.dtype), text_kv).float()

        y = modulated_norm(x, ffn_scale, ffn_shift, self.eps).to(self.dtype)
        return x + ffn_gate * self.ffn(y).float()

    def text_kv(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of the embedded prompt [B, T, dim] for this block: [B, T, H, D] each."""
        return self.cross_attn.text_kv(text)

    def store_only(
        self,
        x: Tensor,
        six: Tensor,
        rope: tuple[Tensor, Tensor],
        *,
        memory: AttentionMemory,
        exchange: Exchange,
    ) -> None:
        """Ends a context update here: the keys and values of x are kept, nothing else is made."""
        shift, scale, *_ = self._modulation(six)
        y = modulated_norm(x, scale, shift, self.eps).to(self.dtype)
        self.self_attn.store_only(y, rope, self.layer, memory, exchange)

    def _modulation(self, six: Tensor) -> tuple[Tensor, ...]:
        """Six vectors of [B, C, 1, dim]: shift, scale, gate of attention, then of the ffn."""
        return (self.modulation.float() + six.float()).unsqueeze(3).unbind(2)


def move_with_camera(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) * x + shift in float32, the rays of C' chunks repeating over the C of x."""
    chunks = scale.shape[1]
    y = x.unflatten(1, (-1, chunks))
    y = y * (1 + scale.float().unsqueeze(1)) + shift.float().unsqueeze(1)
    return y.flatten(1, 2)
