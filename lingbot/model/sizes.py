"""What a transformer, its caches and its passes take in memory: arithmetic from their sizes.

Counted without a weight, in the same few milliseconds at any size. All of it is a lower bound: what
is left out, as workspaces or fragmentation, only adds to it.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from lingbot.model.kv_cache import KVCacheConfig
from lingbot.model.rope import Grid
from lingbot.model.transformer import CausalLingBotTransformer, TransformerConfig

FLOAT32 = 4  # bytes; of the residual stream, and of rays


def count_parameters(module: nn.Module) -> int:
    """Numbers in a module's parameters and buffers."""
    held = [*module.parameters(), *module.buffers()]
    return sum(value.numel() for value in held)


def transformer_parameters(config: TransformerConfig) -> int:
    """Parameters of the transformer: one block is made on the meta device and counted."""
    with torch.device("meta"):
        one = CausalLingBotTransformer(replace(config, num_layers=1))
    block = count_parameters(one.blocks[0])
    return count_parameters(one) + (config.num_layers - 1) * block


def history_bytes(config: TransformerConfig, cache: KVCacheConfig, grid: Grid, item: int) -> int:
    """Keys and values of all layers, for as many frames as the cache holds.

    Args:
        item: bytes of a number in the cache.
    """
    tokens = cache.capacity * grid.tokens_per_frame
    return 2 * config.num_layers * tokens * config.dim * item


def text_bytes(config: TransformerConfig, item: int) -> int:
    """A prompt's keys and values in all layers; it is padded to the full text length."""
    return 2 * config.num_layers * config.text_len * config.dim * item


def conditioner_bytes(config: TransformerConfig, grid: Grid, item: int) -> int:
    """Scale and shift of the camera in all layers, kept for a chunk."""
    return 2 * config.num_layers * grid.tokens * config.dim * item


def pass_bytes(config: TransformerConfig, tokens: int) -> int:
    """The widest moment of a block: the residual stream, and the feed-forward in a byte or more."""
    return tokens * (FLOAT32 * config.dim + config.ffn_dim)


def kept_bytes(config: TransformerConfig, tokens: int) -> int:
    """What a backward pass finds at the least: every block's input, in half precision."""
    return 2 * config.num_layers * tokens * config.dim
