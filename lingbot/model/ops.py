"""The arithmetic of a block, in pieces that lie between exchange, attention and caches.

Every piece is a function of (module, tensors) that keeps no state. Those here are the reference;
`lingbot.kernels` has others, which take their place all at once as another `Ops`.

Letters: B batch, C chunks, L local tokens of a chunk, T text tokens, H heads, D head width.
`modulation` [B, C, 6, dim] is the time's: shift, scale and gate of attention, then of the
feed-forward layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from lingbot.model.exchange import Exchange
from lingbot.model.kv_format import KVFormat
from lingbot.model.kv_store import LayerKV
from lingbot.model.norms import modulated_norm
from lingbot.model.rope import rotate

if TYPE_CHECKING:
    from lingbot.model.attention import CrossAttention, Projections, SelfAttention
    from lingbot.model.block import Block
    from lingbot.model.feed_forward import FeedForward

Rope = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Ops:
    """One way to carry out the arithmetic; each field does what the function of its name does."""

    name: str
    norm_modulate: Callable[[Block, Tensor, Tensor], Tensor]
    qkv: Callable[[SelfAttention, Tensor, Rope, LayerKV, Exchange], tuple[Tensor, ...]]
    kv: Callable[[SelfAttention, Tensor, Rope, LayerKV, Exchange], tuple[Tensor, ...]]
    project_out: Callable[[Projections, Tensor, KVFormat], Tensor]
    scale_shift: Callable[[Block, Tensor], tuple[Tensor, Tensor]]
    attention_residual: Callable[
        [Block, Tensor, Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]
    ]
    text_queries: Callable[[CrossAttention, Tensor], Tensor]
    text_residual: Callable[[Block, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    feed_forward: Callable[[FeedForward, Tensor], Tensor]
    feed_forward_residual: Callable[[Block, Tensor, Tensor, Tensor], Tensor]


def norm_modulate(block: Block, x: Tensor, modulation: Tensor) -> Tensor:
    """x [B, C, L, dim] float32 -> normed and modulated, as self-attention takes it."""
    shift, scale, *_ = block.modulated_by(modulation)
    return modulated_norm(x, scale, shift, block.eps).to(block.dtype)


def qkv(
    attention: SelfAttention, x: Tensor, rope: Rope, kv: LayerKV, exchange: Exchange
) -> tuple[Tensor, ...]:
    """x [B, C, L, dim] -> queries, keys and values as the exchange packs them."""
    q, k, v = attention.q(x), attention.k(x), attention.v(x)
    return pack_qkv(attention, q, k, v, rope, kv, exchange)


def pack_qkv(
    attention: SelfAttention,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rope: Rope,
    kv: LayerKV,
    exchange: Exchange,
) -> tuple[Tensor, ...]:
    """q, k, v [B, C, L, dim] out of their linears: q and k normed and rotated, all encoded."""
    q = rotate(attention.heads(attention.norm_q(q)), *rope)
    k = rotate(attention.heads(attention.norm_k(k)), *rope)
    return exchange.pack(*kv.format.encode(q, k, attention.heads(v)))


def kv(
    attention: SelfAttention, x: Tensor, rope: Rope, kv: LayerKV, exchange: Exchange
) -> tuple[Tensor, ...]:
    """The same without queries, which the end of a context update does not need."""
    return pack_kv(attention, attention.k(x), attention.v(x), rope, kv, exchange)


def pack_kv(
    attention: SelfAttention, k: Tensor, v: Tensor, rope: Rope, kv: LayerKV, exchange: Exchange
) -> tuple[Tensor, ...]:
    """k, v [B, C, L, dim] out of their linears: k normed and rotated, both encoded."""
    k = rotate(attention.heads(attention.norm_k(k)), *rope)
    return exchange.pack(*kv.format.encode_kv(k, attention.heads(v)))


def project_out(attention: Projections, y: Tensor, format: KVFormat) -> Tensor:
    """Attended values [..., H, D], encoded in `format` -> [..., dim]."""
    return attention.o(format.decode(y, attention.norm_q.weight.dtype).flatten(-2))


def scale_shift(block: Block, rays: Tensor) -> tuple[Tensor, Tensor]:
    """Embedded rays [B, C, L, dim] -> the camera's scale and shift of the same shape."""
    h = rays + block.cam_injector_layer2(F.silu(block.cam_injector_layer1(rays)))
    return block.cam_scale_layer(h), block.cam_shift_layer(h)


def attention_residual(
    block: Block, x: Tensor, y: Tensor, modulation: Tensor, cam_scale: Tensor, cam_shift: Tensor
) -> tuple[Tensor, Tensor]:
    """Self-attention's y [B, C, L, dim] and the camera into x; x as cross-attention takes it."""
    gate = block.modulated_by(modulation)[2]
    x = move_with_camera(x + gate * y.float(), cam_scale, cam_shift)
    return x, block.norm3(x).to(block.dtype)


def move_with_camera(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """(1 + scale) * x + shift in float32, the rays of C' chunks repeating over the C of x."""
    chunks = scale.shape[1]
    y = x.unflatten(1, (-1, chunks))
    y = y * (1 + scale.float().unsqueeze(1)) + shift.float().unsqueeze(1)
    return y.flatten(1, 2)


def text_queries(attention: CrossAttention, x: Tensor) -> Tensor:
    """x [B, C, L, dim] -> queries of the prompt [B, C * L, H, D]."""
    return attention.heads(attention.norm_q(attention.q(x))).flatten(1, 2)


def text_residual(block: Block, x: Tensor, y: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-attention's y [B, C * L, dim] into x; and x as the feed-forward layer takes it."""
    *_, shift, scale, _ = block.modulated_by(modulation)
    x = x + y.view_as(x).float()
    return x, modulated_norm(x, scale, shift, block.eps).to(block.dtype)


def feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    """[..., dim] -> [..., dim]: two linears, GELU between them."""
    first, activation, second = layer
    return second(activation(first(x)))


def feed_forward_residual(block: Block, x: Tensor, y: Tensor, modulation: Tensor) -> Tensor:
    """The feed-forward layer's y [B, C, L, dim] into x."""
    *_, gate = block.modulated_by(modulation)
    return x + gate * y.float()


REFERENCE = Ops(
    "reference", norm_modulate, qkv, kv, project_out, scale_shift, attention_residual,
    text_queries, text_residual, feed_forward, feed_forward_residual,
)  # fmt: skip
