"""The arithmetic of a block by Triton kernels: what `lingbot.model.ops` says, in fewer passes.

What lies between two matmuls is one kernel: norms with all that follows them, gates with the
camera, q and k normed, rotated and written straight into the buffer the exchange sends from. Where
the next linear runs in fp8, its input is quantised by the kernel that makes it, and travels as a
`Quantised` in the tensor's place. For driving: there is no backward. q, k and v are packed, see
`lingbot.kernels.linears`.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingbot.kernels.fp8 import FP8, FP8_MAX, Fp8Linear, Quantised
from lingbot.kernels.fp8_kv import VALUE_SCALE
from lingbot.kernels.linears import packed
from lingbot.model import ops
from lingbot.model.attention import CrossAttention, Projections, SelfAttention
from lingbot.model.block import Block
from lingbot.model.exchange import Exchange, SendBuffer
from lingbot.model.feed_forward import FeedForward
from lingbot.model.kv_format import KVFormat
from lingbot.model.kv_store import LayerKV
from lingbot.model.ops import Ops, Rope

CAMERA = ("cam_injector_layer1", "cam_injector_layer2", "cam_scale_layer", "cam_shift_layer")
ACTIVATIONS = ("none", "gelu", "silu")  # as the kernel numbers them


def norm_modulate(block: Block, x: Tensor, modulation: Tensor) -> Tensor:
    out, scales, largest = _output(x, packed(block.self_attn), block.dtype)
    _launch(
        "norm_modulate", x, modulation, block.modulation, out, scales,
        x.shape[2], x.shape[3], block.eps, largest,
    )  # fmt: skip
    return _input(out, scales, largest)


def qkv(
    attention: SelfAttention, x: Tensor, rope: Rope, kv: LayerKV, exchange: Exchange
) -> tuple[Tensor, ...]:
    made = packed(attention)(_rows(x))
    return _norm_rotate_pack(attention, made.unflatten(-1, (3, -1)), _shape(x), rope, kv, exchange)


def kv(
    attention: SelfAttention, x: Tensor, rope: Rope, kv: LayerKV, exchange: Exchange
) -> tuple[Tensor, ...]:
    made = packed(attention)(_rows(x), skip=_shape(x)[-1])
    return _norm_rotate_pack(attention, made.unflatten(-1, (2, -1)), _shape(x), rope, kv, exchange)


def project_out(attention: Projections, y: Tensor, format: KVFormat) -> Tensor:
    shape, y = y.shape[:-2], y.flatten(-2).flatten(0, -2)
    layer = attention.o
    if y.dtype != FP8:
        made = _linear(layer, y)
    elif isinstance(layer, Fp8Linear):
        made = layer(Quantised(y, _scales_of_values(len(y), y.device)))
    else:
        made = layer(format.decode(y, attention.norm_q.weight.dtype))
    return made.unflatten(0, shape)


def scale_shift(block: Block, rays: Tensor) -> tuple[Tensor, Tensor]:
    layers = [getattr(block, name) for name in CAMERA]
    if not all(isinstance(layer, Fp8Linear) for layer in layers):
        return ops.scale_shift(block, rays)
    rows = rays.flatten(0, -2)
    h = layers[0](_quantise(rows))
    h = layers[1](_quantise(h, "silu"))
    h = _quantise(h, beside=rows)
    scale, shift = (layer(h) for layer in layers[2:])
    return scale.view(rays.shape), shift.view(rays.shape)


def attention_residual(
    block: Block, x: Tensor, y: Tensor, modulation: Tensor, cam_scale: Tensor, cam_shift: Tensor
) -> tuple[Tensor, Tensor]:
    if cam_scale.shape != x.shape:
        raise ValueError(
            f"camera scale of {tuple(cam_scale.shape)} for tokens of {tuple(x.shape)}: "
            "kernels.ops=triton takes one for each token, as in driving"
        )
    moved = torch.empty_like(x)
    out, scales, largest = _output(x, block.cross_attn.q, block.dtype)
    _launch(
        "gate_camera_norm", x, y, modulation, block.modulation, cam_scale, cam_shift,
        block.norm3.weight, block.norm3.bias, moved, out, scales,
        x.shape[2], x.shape[3], block.eps, largest,
    )  # fmt: skip
    return moved, _input(out, scales, largest)


def text_queries(attention: CrossAttention, x: Tensor) -> Tensor:
    q = attention.q(_rows(x))
    normed = torch.empty_like(q)
    norm = attention.norm_q
    _launch("rms_norm", q, norm.weight, normed, q.shape[-1], norm.eps)
    return attention.heads(normed.view(_shape(x))).flatten(1, 2)


def text_residual(block: Block, x: Tensor, y: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    moved = torch.empty_like(x)
    out, scales, largest = _output(x, block.ffn[0], block.dtype)
    _launch(
        "add_norm_modulate", x, y, modulation, block.modulation, moved, out, scales,
        x.shape[2], x.shape[3], block.eps, largest,
    )  # fmt: skip
    return moved, _input(out, scales, largest)


def feed_forward(layer: FeedForward, x: Tensor) -> Tensor:
    first, _, second = layer
    return second(_expand(first, second, _rows(x))).view(_shape(x))


def feed_forward_residual(block: Block, x: Tensor, y: Tensor, modulation: Tensor) -> Tensor:
    result = torch.empty_like(x)
    _launch(
        "gate_add", x, y, modulation, block.modulation, result, x.shape[2], x.shape[3]
    )  # fmt: skip
    return result


TRITON = Ops(
    "triton", norm_modulate, qkv, kv, project_out, scale_shift, attention_residual,
    text_queries, text_residual, feed_forward, feed_forward_residual,
)  # fmt: skip


# ---- pieces -----------------------------------------------------------------------------------


def _norm_rotate_pack(
    attention: SelfAttention,
    made: Tensor,
    shape: torch.Size,
    rope: Rope,
    kv: LayerKV,
    exchange: Exchange,
) -> tuple[Tensor, ...]:
    """made [rows, n, dim], q, k, v or k, v, to where the exchange or the K/V store takes them."""
    rows, count, dim = made.shape
    weights = attention.norm_q.weight.dtype
    like = made.new_empty(0, dtype=kv.format.dtype(weights))
    heads = attention.num_heads
    buffer: SendBuffer = exchange.send_buffer(
        like, count, (*shape[:3], heads, dim // heads), kv.slots()
    )
    cos, sin = rope
    q, k, v = buffer.views if count == 3 else (buffer.views[0], *buffer.views)
    q_peers, kv_peers = buffer.peers or (cos, cos)  # without them any pointer
    ranks = len(q_peers) if buffer.peers else 0
    _launch(
        "norm_rotate_pack", made, attention.norm_q.weight, attention.norm_k.weight, cos, sin,
        q, k, v, q_peers, kv_peers,
        made.stride(0), made.stride(1), *q.stride()[:3], *k.stride()[:3],
        cos.shape[0] * cos.shape[1], k.shape[2], 3 - count, dim, attention.norm_q.eps,
        VALUE_SCALE, FP8_MAX if like.dtype == FP8 else 0.0, k.shape[3], ranks,
        grid=(rows, count), columns=dim,
    )  # fmt: skip
    return buffer.packed


def _expand(first: nn.Module, second: nn.Module, x: Tensor | Quantised) -> Tensor | Quantised:
    """The first linear of the feed-forward layer and its GELU, as the second takes them."""
    if isinstance(second, Fp8Linear):
        return _quantise(first(x), "gelu")
    if isinstance(first, nn.Linear) and isinstance(x, Tensor) and x.is_cuda:
        # the matmul's own epilogue, which is the tanh form
        return torch._addmm_activation(first.bias, x, first.weight.T, use_gelu=True)
    return F.gelu(first(x), approximate="tanh")


def _linear(layer: nn.Module, x: Tensor) -> Tensor:
    """x [rows, dim] through a linear of either kind."""
    return layer(_quantise(x) if isinstance(layer, Fp8Linear) else x)


def _quantise(x: Tensor, activation: str = "none", beside: Tensor | None = None) -> Quantised:
    """Rows of x, or of what an activation makes of them, or x + `beside`, in fp8."""
    x = x.contiguous()
    other = x if beside is None else beside.contiguous()
    made = Quantised(torch.empty_like(x, dtype=FP8), _scales(x))
    kind = ACTIVATIONS.index(activation)
    _launch("quantise", x, other, *made, x.shape[-1], kind, beside is not None, FP8_MAX)
    return made


def _output(x: Tensor, consumer: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor, float]:
    """An empty input of a linear, its rows' scales, and the largest number it may hold."""
    if isinstance(consumer, Fp8Linear):
        return torch.empty_like(x, dtype=FP8), _scales(x.flatten(0, -2)), FP8_MAX
    return torch.empty_like(x, dtype=dtype), x, 0.0  # no scales: any pointer


def _input(out: Tensor, scales: Tensor, largest: float) -> Tensor:
    """What goes into the linear: a block hands it on unseen, whichever of the two it is."""
    return cast(Tensor, Quantised(out, scales)) if largest else out


def _rows(x: Tensor | Quantised) -> Tensor | Quantised:
    """[B, C, L, dim] as [rows, dim]."""
    if isinstance(x, Quantised):
        return Quantised(x.rows.flatten(0, -2), x.scale)
    return x.flatten(0, -2)


def _shape(x: Tensor | Quantised) -> torch.Size:
    return x.rows.shape if isinstance(x, Quantised) else x.shape


def _launch(
    name: str, x: Tensor, *arguments: Any, grid: tuple[int, ...] = (), columns: int = 0
) -> None:
    """One program a row of x, or what `grid` says; W is the power of two above the columns."""
    columns = columns or x.shape[-1]
    power = 1 << (columns - 1).bit_length()
    kernel = getattr(block_kernels(), name)
    kernel[grid or (x.numel() // columns,)](
        x, *arguments, power, num_warps=min(16, max(1, power // 1024))
    )


@cache
def block_kernels() -> ModuleType:
    """The kernels.

    Raises:
        ImportError: without Triton, which comes with PyTorch for CUDA.
    """
    from lingbot.kernels import triton_block

    return triton_block


@cache
def _scales_of_values(rows: int, device: torch.device) -> Tensor:
    """The scale that all encoded values have, once a row; made once."""
    return torch.full((rows, 1), 1 / VALUE_SCALE, device=device)


def _scales(rows: Tensor) -> Tensor:
    return torch.empty(len(rows), 1, device=rows.device, dtype=torch.float32)
