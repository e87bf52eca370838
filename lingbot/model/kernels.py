"""How a world's arithmetic is carried out; what it computes stays the same.

The forward in `transformer.py` and `block.py` is the reference. A `Kernels` changes how its parts
run: compiled into fused kernels, q, k and v out of one matmul, linears in fp8. It is applied to a
transformer that is on its device already, and each choice is tested against the reference.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import nn

from lingbot.model.block import Block
from lingbot.model.compiler import check_compiler
from lingbot.model.fp8 import Fp8Linear
from lingbot.model.fp8_attention import check_frontend
from lingbot.model.fused import fuse_parts
from lingbot.model.linear import Linear
from lingbot.model.transformer import CausalLingBotTransformer

log = logging.getLogger(__name__)

Parts = Literal["eager", "compiled", "fused"]
Precision = Literal["exact", "fp8"]
COMPILED = ("before_attention", "before_store", "after_attention", "feed_forward", "scale_shift")
IN_FP8 = ("self_attn", "cross_attn", "ffn")
CAMERA = ("cam_injector_layer1", "cam_injector_layer2", "cam_scale_layer", "cam_shift_layer")


@dataclass(frozen=True)
class Kernels:
    """The choice of kernels.

    Args:
        name: what the log calls it.
        parts: the parts of a block `eager`, one kernel an operation; `compiled` by
            `torch.compile`, once for all blocks; or `fused` by hand in Triton, driving only, where
            the weights are on a GPU, and compiled elsewhere.
        pack_qkv: q, k and v of self-attention out of one matmul; driving only.
        linears: the blocks' linears `exact`, in the weights' own precision, or `fp8`; driving only.
        attention: self-attention `exact` or in `fp8`, with all keys and values kept in it, see
            `lingbot.model.fp8_attention`; driving only.
        fuse_decode: the decoder with its arithmetic fused, see `lingbot.codec.fused`.
        graph_decode: on CUDA, sessions decode by a recorded graph, see `lingbot.codec.graphed`.

    Raises:
        ValueError: for an unknown choice, or one that this machine lacks something for.
    """

    name: str = "reference"
    parts: str = "eager"
    pack_qkv: bool = False
    linears: str = "exact"
    attention: str = "exact"
    fuse_decode: bool = False
    graph_decode: bool = False

    def __post_init__(self) -> None:
        if self.parts == "fused" and not self.pack_qkv:
            raise ValueError("kernels.parts='fused' writes q, k and v at once: set pack_qkv=true")
        if self.attention == "fp8":
            check_frontend()
        for option, value, known in (
            ("parts", self.parts, get_args(Parts)),
            ("linears", self.linears, get_args(Precision)),
            ("attention", self.attention, get_args(Precision)),
        ):
            if value not in known:
                raise ValueError(f"kernels.{option}={value!r}: choose one of {known}")
        if self.parts != "eager":
            check_compiler(f"kernels={self.name}")

    @property
    def of_the_transformer(self) -> tuple[str, bool, str, str]:
        """What a prepared transformer cannot change any more."""
        return self.parts, self.pack_qkv, self.linears, self.attention

    def check_training(self) -> None:
        """Raises ValueError for kernels that weights cannot be trained through."""
        exact = self.linears == self.attention == "exact"
        if self.pack_qkv or self.parts == "fused" or not exact:
            raise ValueError(
                f"kernels={self.name} (parts={self.parts}, pack_qkv={self.pack_qkv}, "
                f"linears={self.linears}, attention={self.attention}) is for driving: train with "
                "kernels=reference or kernels=compiled"
            )

    def prepare(self, transformer: CausalLingBotTransformer) -> None:
        """Makes a transformer, where it is, run by these kernels; once is enough.

        Raises:
            RuntimeError: when it has been prepared for other kernels: build it anew.
        """
        before = transformer.kernels
        if isinstance(before, Kernels):
            if before.of_the_transformer == self.of_the_transformer:
                return
            raise RuntimeError(
                f"the transformer runs by kernels={before.name} and cannot change to "
                f"{self.name}: build another"
            )
        parts = self.parts
        if parts == "fused" and transformer.device.type != "cuda":
            parts = "compiled"
        transformer.fp8_attention = self.attention == "fp8"
        for block in transformer.blocks:
            assert isinstance(block, Block)
            block.fp8_attention = transformer.fp8_attention
            if self.pack_qkv:
                pack_qkv(block)
            if self.linears == "fp8":
                linears_to_fp8(block)
            if parts == "fused":
                fuse_parts(block)
            elif parts == "compiled":
                compile_parts(block)
        transformer.kernels = self
        log.info(
            "Kernels %s: parts %s, q, k, v %s, linears %s, attention %s; decoder %s, %s.",
            self.name, parts, "packed" if self.pack_qkv else "apart", self.linears, self.attention,
            "fused" if self.fuse_decode else "as published",
            "replayed as a graph on CUDA" if self.graph_decode else "one kernel after another",
        )  # fmt: skip


@torch.no_grad()
def pack_qkv(block: Block) -> None:
    """One matmul for q, k and v; the three layers become views of its weights."""
    attention = block.self_attn
    apart = (attention.q, attention.k, attention.v)
    dim = attention.q.in_features
    packed = Linear(dim, 3 * dim, device="meta", dtype=attention.q.weight.dtype)
    packed.weight = nn.Parameter(torch.cat([layer.weight for layer in apart]), requires_grad=False)
    packed.bias = nn.Parameter(torch.cat([layer.bias for layer in apart]), requires_grad=False)
    for layer, weight, bias in zip(
        apart, packed.weight.chunk(3), packed.bias.chunk(3), strict=True
    ):
        layer.weight.data, layer.bias.data = weight, bias
    pair = Linear(dim, 2 * dim, device="meta", dtype=packed.weight.dtype)
    pair.weight = nn.Parameter(packed.weight[dim:], requires_grad=False)
    pair.bias = nn.Parameter(packed.bias[dim:], requires_grad=False)
    object.__setattr__(attention, "packed", packed)  # not a submodule: its weights have names
    object.__setattr__(attention, "packed_kv", pair)


def linears_to_fp8(block: Block) -> None:
    """Every linear of the block in fp8.

    A packed q, k, v is quantised whole, and its parts share the weights.
    """
    attention = block.self_attn
    if attention.packed is not None:
        assert isinstance(attention.packed, nn.Linear)
        packed, dim = Fp8Linear(attention.packed), attention.packed.in_features
        object.__setattr__(attention, "packed", packed)
        object.__setattr__(attention, "packed_kv", packed.part(slice(dim, None)))
        for index, child in enumerate("qkv"):
            setattr(attention, child, packed.part(slice(index * dim, (index + 1) * dim)))
    for name in IN_FP8:
        part = getattr(block, name)
        for child, layer in list(part.named_children()):
            if isinstance(layer, nn.Linear):
                setattr(part, child, Fp8Linear(layer))
    for name in CAMERA:
        setattr(block, name, Fp8Linear(getattr(block, name)))


def compile_parts(block: Block, compiler: Callable[..., Any] = torch.compile) -> None:
    """Compile the block's parts; all blocks share the code, so it is compiled once."""
    for name in COMPILED:
        object.__setattr__(block, name, compiler(getattr(block, name), dynamic=False))
