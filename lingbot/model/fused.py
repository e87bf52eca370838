"""The parts of a block by Triton kernels: the same as `lingbot.model.block` says, in fewer passes.

What lies between two matmuls is one kernel: norms with all that follows them, gates with the
camera, q and k normed, rotated and written straight into the buffer the exchange sends from. Where
the next linear runs in fp8, its input is quantised by the kernel that makes it. For driving: there
is no backward.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lingbot.model.block import Block
from lingbot.model.camera_conditioner import CameraConditioner, ScaleShift
from lingbot.model.exchange import Exchange, Memory, SendBuffer
from lingbot.model.fp8 import FP8, LARGEST, Fp8Linear, Quantised
from lingbot.model.fp8_attention import VALUE_SCALE, decode_values

PARTS = ("before_attention", "before_store", "after_attention", "feed_forward", "scale_shift")

ACTIVATIONS = ("none", "gelu", "silu")  # as the kernel numbers them


def fuse_parts(block: Block) -> None:
    """Run the block's parts, q, k and v packed, by Triton kernels from here on.

    Raises:
        ImportError: without Triton, which comes with PyTorch for CUDA.
    """
    rows = RowKernels(block)
    block.fused = True
    for name in PARTS:
        object.__setattr__(block, name, getattr(rows, name))


class RowKernels:
    """The parts of one block; x [B, C, L, dim] float32 as there.

    Args:
        block: whose weights they use.
    """

    def __init__(self, block: Block) -> None:
        from lingbot.model import triton_rows

        self._block, self._kernels = block, triton_rows

    def before_attention(
        self,
        x: Tensor,
        six: Tensor,
        rope: tuple[Tensor, Tensor],
        exchange: Exchange,
        home: Memory | None = None,
    ) -> tuple[Tensor, ...]:
        attention = self._block.self_attn
        assert attention.packed is not None
        made = attention.packed(self._norm_modulate(x, six, attention.packed))
        buffer = self._send_buffer(x, 3, exchange, home)
        self._norm_rotate_pack(made.unflatten(-1, (3, -1)), buffer, rope)
        return buffer.packed

    def before_store(
        self,
        x: Tensor,
        six: Tensor,
        rope: tuple[Tensor, Tensor],
        exchange: Exchange,
        home: Memory | None = None,
    ) -> tuple[Tensor, ...]:
        attention = self._block.self_attn
        assert attention.packed_kv is not None
        made = attention.packed_kv(self._norm_modulate(x, six, attention.packed_kv))
        buffer = self._send_buffer(x, 2, exchange, home)
        self._norm_rotate_pack(made.unflatten(-1, (2, -1)), buffer, rope)
        return buffer.packed

    def after_attention(
        self, x: Tensor, y: Tensor, six: Tensor, cam_scale: Tensor, cam_shift: Tensor
    ) -> tuple[Tensor, Tensor]:
        block, cross = self._block, self._block.cross_attn
        if cam_scale.shape != x.shape:
            raise ValueError(
                f"camera scale of {tuple(cam_scale.shape)} for tokens of {tuple(x.shape)}: fused "
                "parts take one for each token, as in driving"
            )
        y = self._project(block.self_attn.o, y.flatten(-2).flatten(0, -2))
        moved = torch.empty_like(x)
        out, scales, largest = self._output(x, cross.q)
        self._launch(
            "gate_camera_norm", x, y, six, block.modulation, cam_scale, cam_shift,
            block.norm3.weight, block.norm3.bias, moved, out, scales,
            x.shape[2], x.shape[3], block.eps, largest,
        )  # fmt: skip
        q = cross.q(self._input(out, scales, largest))
        normed = torch.empty_like(q)
        self._launch("rms_norm", q, cross.norm_q.weight, normed, x.shape[3], cross.norm_q.eps)
        return moved, cross.heads(normed).view(len(x), -1, cross.num_heads, self._width)

    def feed_forward(self, x: Tensor, y: Tensor, six: Tensor) -> Tensor:
        block = self._block
        first, _, second = block.ffn
        y = self._linear(block.cross_attn.o, y.flatten(-2).flatten(0, -2))
        moved = torch.empty_like(x)
        out, scales, largest = self._output(x, first)
        self._launch(
            "add_norm_modulate", x, y, six, block.modulation, moved, out, scales,
            x.shape[2], x.shape[3], block.eps, largest,
        )  # fmt: skip
        y = second(self._expand(first, second, self._input(out, scales, largest)))
        result = torch.empty_like(x)
        self._launch("gate_add", moved, y, six, block.modulation, result, x.shape[2], x.shape[3])
        return result

    def scale_shift(self, rays: Tensor) -> ScaleShift:
        block = self._block
        if not isinstance(block.cam_scale_layer, Fp8Linear):
            return CameraConditioner.scale_shift(block, rays)
        rows = rays.flatten(0, -2)
        h = block.cam_injector_layer1(self._quantise(rows))
        h = block.cam_injector_layer2(self._quantise(h, "silu"))
        h = self._quantise(h, beside=rows)
        scale, shift = (layer(h) for layer in (block.cam_scale_layer, block.cam_shift_layer))
        return scale.view(rays.shape), shift.view(rays.shape)

    # ---- pieces -------------------------------------------------------------------------------

    @property
    def _width(self) -> int:
        attention = self._block.self_attn
        return attention.q.in_features // attention.num_heads

    def _norm_modulate(self, x: Tensor, six: Tensor, consumer: nn.Module) -> Tensor | Quantised:
        out, scales, largest = self._output(x, consumer)
        self._launch(
            "norm_modulate", x, six, self._block.modulation, out, scales,
            x.shape[2], x.shape[3], self._block.eps, largest,
        )  # fmt: skip
        return self._input(out, scales, largest)

    def _norm_rotate_pack(
        self, made: Tensor, buffer: SendBuffer, rope: tuple[Tensor, Tensor]
    ) -> None:
        """made [rows, n, dim], q, k, v or k, v, to where `buffer` takes them."""
        attention = self._block.self_attn
        cos, sin = rope
        rows, count, dim = made.shape
        q, k, v = buffer.views if count == 3 else (buffer.views[0], *buffer.views)
        q_peers, kv_peers = buffer.peers or (cos, cos)  # without them any pointer
        ranks = len(q_peers) if buffer.peers else 0
        self._launch(
            "norm_rotate_pack", made, attention.norm_q.weight, attention.norm_k.weight, cos, sin,
            q, k, v, q_peers, kv_peers,
            made.stride(0), made.stride(1), *q.stride()[:3], *k.stride()[:3],
            cos.shape[0] * cos.shape[1], k.shape[2], 3 - count, dim, attention.norm_q.eps,
            VALUE_SCALE, LARGEST if self._block.fp8_attention else 0.0, k.shape[3], ranks,
            grid=(rows, count), columns=dim,
        )  # fmt: skip

    def _expand(
        self, first: nn.Module, second: nn.Module, x: Tensor | Quantised
    ) -> Tensor | Quantised:
        """The first linear of the feed-forward layer and its GELU, as the second takes them."""
        if isinstance(second, Fp8Linear):
            return self._quantise(first(x), "gelu")
        if isinstance(first, nn.Linear) and isinstance(x, Tensor) and x.is_cuda:
            # the matmul's own epilogue, which is the tanh form
            return torch._addmm_activation(first.bias, x, first.weight.T, use_gelu=True)
        return F.gelu(first(x), approximate="tanh")

    def _project(self, layer: nn.Module, y: Tensor) -> Tensor:
        """The output projection of self-attention; y [rows, dim] may be encoded in fp8."""
        if y.dtype != FP8:
            return self._linear(layer, y)
        if not isinstance(layer, Fp8Linear):
            return layer(decode_values(y, self._block.dtype))
        return layer(Quantised(y, _scales_of_values(len(y), y.device)))

    def _linear(self, layer: nn.Module, x: Tensor) -> Tensor:
        """x [rows, dim] through a linear of either kind."""
        return layer(self._quantise(x) if isinstance(layer, Fp8Linear) else x)

    def _quantise(
        self, x: Tensor, activation: str = "none", beside: Tensor | None = None
    ) -> Quantised:
        """Rows of x, or of what an activation makes of them, or x + `beside`, in fp8."""
        x = x.contiguous()
        other = x if beside is None else beside.contiguous()
        made = Quantised(torch.empty_like(x, dtype=FP8), _scales(x))
        kind = ACTIVATIONS.index(activation)
        self._launch(
            "quantise", x, other, *made, x.shape[-1], kind, beside is not None, LARGEST
        )  # fmt: skip
        return made

    def _output(self, x: Tensor, consumer: nn.Module) -> tuple[Tensor, Tensor, float]:
        """Empty rows for a linear's input, their scales, and the largest number they may hold."""
        rows = x.flatten(0, -2)
        if isinstance(consumer, Fp8Linear):
            return torch.empty_like(rows, dtype=FP8), _scales(rows), LARGEST
        return torch.empty_like(rows, dtype=self._block.dtype), rows, 0.0  # no scales: any pointer

    def _input(self, out: Tensor, scales: Tensor, largest: float) -> Tensor | Quantised:
        return Quantised(out, scales) if largest else out

    def _send_buffer(
        self, x: Tensor, count: int, exchange: Exchange, home: Memory | None
    ) -> SendBuffer:
        heads, dtype = self._block.self_attn.num_heads, self._block.dtype
        like = x.new_empty(0, dtype=FP8 if self._block.fp8_attention else dtype)
        return exchange.send_buffer(like, count, (*x.shape[:3], heads, self._width), home)

    def _launch(
        self, name: str, x: Tensor, *arguments: Any, grid: tuple[int, ...] = (), columns: int = 0
    ) -> None:
        """One program a row of x, or what `grid` says; W is the power of two above the columns."""
        columns = columns or x.shape[-1]
        power = 1 << (columns - 1).bit_length()
        kernel = getattr(self._kernels, name)
        kernel[grid or (x.numel() // columns,)](
            x, *arguments, power, num_warps=min(16, max(1, power // 1024))
        )


@cache
def _scales_of_values(rows: int, device: torch.device) -> Tensor:
    """The scale that all encoded values have, once a row; made once."""
    return torch.full((rows, 1), 1 / VALUE_SCALE, device=device)


def _scales(rows: Tensor) -> Tensor:
    return torch.empty(len(rows), 1, device=rows.device, dtype=torch.float32)
