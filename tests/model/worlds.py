"""Tiny transformers, inputs and sessions that the tests of the model share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lingbot.camera.controls import CameraControl
from lingbot.codec.video import VideoCodec, build_codec
from lingbot.model import (
    CachedTransformer,
    CausalLingBotTransformer,
    Exchange,
    KVCacheConfig,
    LocalExchange,
    TransformerConfig,
)

SMALL = TransformerConfig(
    dim=48, ffn_dim=64, num_heads=4, num_layers=3, text_dim=16, text_len=8, freq_dim=32
)
HEIGHT, WIDTH = 32, 48  # pixels; latents 4x6, 6 tokens a frame


def small_transformer(config: TransformerConfig = SMALL, seed: int = 0) -> CausalLingBotTransformer:
    """Random weights with some life in them: modulations and biases are not near zero."""
    torch.manual_seed(seed)
    transformer = CausalLingBotTransformer(config).requires_grad_(False)
    for parameter in transformer.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.2 * torch.randn_like(parameter))
    return transformer


def cached(
    transformer: CausalLingBotTransformer,
    cache: KVCacheConfig,
    frames: int = 3,
    policy: str = "step",
    exchange: Exchange | None = None,
) -> CachedTransformer:
    grid = transformer.config.grid(frames, HEIGHT // 8, WIDTH // 8)
    exchange = exchange or LocalExchange(transformer.config.num_heads)
    model = CachedTransformer(transformer, cache, grid, exchange, policy)
    model.set_text(torch.linspace(-1, 1, 5 * 16).view(1, 5, 16).to(transformer.device))
    return model


def chunk_inputs(
    config: TransformerConfig, chunks: int, frames: int = 3, seed: int = 1
) -> tuple[Tensor, Tensor, Tensor]:
    """Latents [1, 16, F, h, w], condition [1, 20, F, h, w] and controls [1, channels, F, h, w]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (chunks * frames, HEIGHT // 8, WIDTH // 8)

    def draw(channels: int) -> Tensor:
        return torch.randn(1, channels, *shape, generator=generator)

    return draw(16), draw(20), draw(config.control_channels)


def small_codec() -> VideoCodec:
    torch.manual_seed(3)
    return build_codec(
        base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, attn_scales=[],
        temperal_downsample=[False, True, True],
    ).requires_grad_(False).eval()  # fmt: skip


def small_camera() -> CameraControl:
    return CameraControl("cam", HEIGHT, WIDTH, frames_per_chunk=3)


class PromptLengths(nn.Module):
    """A text encoder without weights: other prompts, other embeddings."""

    def forward(self, prompts: list[str]) -> Tensor:
        codes = [[float(byte) / 128 for byte in prompt.encode()[:8]] for prompt in prompts]
        return torch.stack([torch.tensor(c).view(-1, 1).expand(-1, 16) for c in codes])
