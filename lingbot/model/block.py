"""One block of the causal transformer: self-attention, camera, prompt, feed-forward.

The residual stream stays in float32; matmuls run in the weights' own precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingbot.model.attention import AttentionMemory, CrossAttention, SelfAttention, attend
from lingbot.model.camera_conditioner import CameraConditioner, ConditionerCache
from lingbot.model.exchange import Exchange, Memory
from lingbot.model.fp8_attention import decode_values, encode, encode_keys_values
from lingbot.model.linear import Linear


def modulated_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """LayerNorm without weights in float32, then (1 + scale) * x + shift."""
    return F.layer_norm(x, (x.shape[-1],), eps=eps) * (1 + scale) + shift


class Block(CameraConditioner):
    """Block `layer` of the transformer, under the public checkpoints' parameter names."""

    def __init__(self, layer: int, dim: int, ffn_dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.layer, self.eps = layer, eps
        self.fp8_attention = False  # see `lingbot.model.fp8_attention`
        self.fused = False  # see `lingbot.model.fused`
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)
        self.self_attn = SelfAttention(dim, num_heads, eps)
        self.norm3 = nn.LayerNorm(dim, eps=eps)
        self.cross_attn = CrossAttention(dim, num_heads, eps)
        self.ffn = nn.Sequential(
            Linear(dim, ffn_dim), nn.GELU(approximate="tanh"), Linear(ffn_dim, dim)
        )
        self.make_camera_layers(dim)

    @property
    def dtype(self) -> torch.dtype:
        return self.norm3.weight.dtype  # linears may be in fp8

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

        C is a multiple of C': clean and noisy chunks of a training clip share their rays. The
        arithmetic lies in three parts, cut where memory, exchange and caches come in.
        """
        home = memory.home(self.layer) if self.fused else None
        q, k, v = exchange.to_heads(self.before_attention(x, six, rope, exchange, home))
        y = exchange.to_tokens(memory.attend(self.layer, q, k, v))
        cam = conditioner(self.layer, rays, self.scale_shift, updating=updating)
        x, q = self.after_attention(x, y, six, *cam)
        return self.feed_forward(x, attend(q, *text_kv), six)

    def before_attention(
        self,
        x: Tensor,
        six: Tensor,
        rope: tuple[Tensor, Tensor],
        exchange: Exchange,
        home: Memory | None = None,
    ) -> tuple[Tensor, ...]:
        """x [B, C, L, dim] -> queries, keys and values as the exchange packs them.

        Other ways to do this may leave keys and values in the memory's `home` at once.
        """
        shift, scale, *_ = self._modulation(six)
        y = modulated_norm(x, scale, shift, self.eps).to(self.dtype)
        q, k, v = self.self_attn.queries_keys_values(y, rope)
        if self.fp8_attention:
            q, (k, v) = encode(q), encode_keys_values(k, v)
        return exchange.pack(q, k, v)

    def after_attention(
        self, x: Tensor, y: Tensor, six: Tensor, cam_scale: Tensor, cam_shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attended values y [B, C, L, H, D] and the camera into x; and queries of the prompt."""
        gate = self._modulation(six)[2]
        if self.fp8_attention:
            y = decode_values(y, self.dtype)
        x = x + gate * self.self_attn.o(y.flatten(-2)).float()
        x = move_with_camera(x, cam_scale, cam_shift)
        weight, bias = self.norm3.weight.float(), self.norm3.bias.float()
        y = F.layer_norm(x, (x.shape[-1],), weight, bias, self.eps)
        return x, self.cross_attn.queries(y.to(self.dtype))

    def feed_forward(self, x: Tensor, y: Tensor, six: Tensor) -> Tensor:
        """What the prompt says, y [B, C * L, H, D], into x; then the feed-forward layer."""
        *_, shift, scale, gate = self._modulation(six)
        x = x + self.cross_attn.o(y.flatten(-2)).view_as(x).float()
        y = modulated_norm(x, scale, shift, self.eps).to(self.dtype)
        return x + gate * self.ffn(y).float()

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
        home = memory.home(self.layer) if self.fused else None
        packed = self.before_store(x, six, rope, exchange, home)
        memory.store(self.layer, *exchange.to_heads(packed))

    def before_store(
        self,
        x: Tensor,
        six: Tensor,
        rope: tuple[Tensor, Tensor],
        exchange: Exchange,
        home: Memory | None = None,
    ) -> tuple[Tensor, ...]:
        """Like `before_attention`, without queries."""
        shift, scale, *_ = self._modulation(six)
        y = modulated_norm(x, scale, shift, self.eps).to(self.dtype)
        k, v = self.self_attn.keys_values(y, rope)
        if self.fp8_attention:
            k, v = encode_keys_values(k, v)
        return exchange.pack(k, v)

    def _modulation(self, six: Tensor) -> tuple[Tensor, ...]:
        """Six vectors of [B, C, 1, dim]: shift, scale, gate of attention, then of the ffn."""
        return (self.modulation.float() + six.float()).unsqueeze(3).unbind(2)


def move_with_camera(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) * x + shift in float32, the rays of C' chunks repeating over the C of x."""
    chunks = scale.shape[1]
    y = x.unflatten(1, (-1, chunks))
    y = y * (1 + scale.float().unsqueeze(1)) + shift.float().unsqueeze(1)
    return y.flatten(1, 2)
