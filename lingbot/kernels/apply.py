"""The only place where arithmetic is swapped, for the transformer and the VAE alike.

The forward in `lingbot.model` and the decoder in `lingbot.codec` are the reference. `apply` changes
how their parts run: it gives the blocks their `ops`, replaces linears, sets the K/V format, and
fuses the VAE's decoder. Each choice is tested against the reference.
"""

from __future__ import annotations

import logging

from torch import nn

from lingbot.codec.streaming import PictureStream, StreamingDecoder
from lingbot.codec.video import VideoCodec
from lingbot.kernels.config import KernelConfig
from lingbot.kernels.cuda_graph import GraphedDecoder
from lingbot.kernels.fp8 import Fp8Linear
from lingbot.kernels.fp8_kv import Fp8KV
from lingbot.kernels.linears import is_packed, pack, replace_linears
from lingbot.kernels.registry import REGISTRY
from lingbot.kernels.vae import fuse_decoder
from lingbot.model.attention import Projections
from lingbot.model.block import Block
from lingbot.model.feed_forward import FeedForward
from lingbot.model.kv_format import PLAIN
from lingbot.model.ops import Ops
from lingbot.model.transformer import CausalLingBotTransformer

log = logging.getLogger(__name__)

KV_FORMATS = {"bf16": PLAIN, "fp8": Fp8KV()}
WITH_OPS = (Block, Projections, FeedForward)


def apply(model: CausalLingBotTransformer | VideoCodec, config: KernelConfig) -> None:
    """Makes a model run by these kernels, where it is; doing it again changes nothing.

    Weights keep their names in state dicts. Call it again for a VAE whose weights have changed.

    Raises:
        RuntimeError: where weights have been given up that other kernels would need.
    """
    if isinstance(model, VideoCodec):
        _apply_to_vae(model, config)
    else:
        _apply_to_transformer(model, config)


def stream_frames(decoder: StreamingDecoder, config: KernelConfig) -> PictureStream:
    """A decoder, or on CUDA one that replays the steady chunks from a recorded graph."""
    graphed = config.cuda_graph and decoder.codec.device.type == "cuda"
    return GraphedDecoder(decoder) if graphed else decoder


def _apply_to_transformer(transformer: CausalLingBotTransformer, config: KernelConfig) -> None:
    blocks = [block for block in transformer.blocks if isinstance(block, Block)]
    _check_possible(blocks[0], config)
    name = config.ops
    if transformer.device.type != "cuda":
        name = REGISTRY[name].elsewhere or name
    ops = REGISTRY[name].ops(config.pack_qkv)
    changed = blocks[0].ops is not ops
    for block in blocks:
        if config.pack_qkv and not is_packed(block.self_attn):
            pack(block.self_attn)
        if config.linears == "fp8":
            replace_linears(block, Fp8Linear)
    set_ops(transformer, ops)
    transformer.kv_format = KV_FORMATS[config.kv]
    if changed:
        log.info(
            "Kernels: ops %s, q, k, v %s, linears %s, keys and values %s.",
            name, "packed" if config.pack_qkv else "apart", config.linears, config.kv,
        )  # fmt: skip


def set_ops(transformer: nn.Module, ops: Ops) -> None:
    """Gives every part of the blocks its ops."""
    for module in transformer.modules():
        if isinstance(module, WITH_OPS):
            module.ops = ops


def _check_possible(block: Block, config: KernelConfig) -> None:
    """Refuses to go back to weights that are no longer there."""
    in_fp8 = any(isinstance(layer, Fp8Linear) for layer in block.modules())
    if in_fp8 and config.linears != "fp8":
        raise RuntimeError(
            f"the transformer's linears are in fp8 and cannot change to linears={config.linears}: "
            "build another"
        )
    if is_packed(block.self_attn) and not config.pack_qkv:
        raise RuntimeError(
            "the transformer's q, k and v are packed and cannot change to pack_qkv=false: build "
            "another"
        )
    if in_fp8 and config.pack_qkv and not is_packed(block.self_attn):
        raise RuntimeError(
            "the transformer's linears are in fp8 and cannot be packed any more: build another"
        )


def _apply_to_vae(codec: VideoCodec, config: KernelConfig) -> None:
    fused = codec.ops.name == "fused"
    if config.vae == "fused":
        fuse_decoder(codec)
        if not fused:
            log.info("Kernels: the VAE's decoder is fused.")
    elif fused:
        raise RuntimeError(
            f"the VAE's decoder is fused and cannot change to vae={config.vae}: build another"
        )
