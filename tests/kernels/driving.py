"""Drives and losses of small transformers, for holding kernels to the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lingbot.diffusion import FlowMatching, FlowSchedule
from lingbot.kernels import KernelConfig, apply
from lingbot.model import (
    CausalLingBotTransformer,
    KVCacheConfig,
    LocalExchange,
    TransformerConfig,
)
from lingbot.model.exchange import Exchange
from tests.model.worlds import SMALL, cached, chunk_inputs, small_transformer

WINDOW = KVCacheConfig(window=6, sink=2)


def drive(
    transformer: CausalLingBotTransformer, chunks: int = 3, exchange: Exchange | None = None
) -> Tensor:
    """Flows of two passes a chunk, with context updates between; on the CPU."""
    device = transformer.device
    model = cached(transformer, WINDOW, exchange=exchange)
    latents, condition, controls = (x.to(device) for x in chunk_inputs(transformer.config, chunks))
    flows = []
    with torch.no_grad():
        for frame in range(0, 3 * chunks, 3):
            part = slice(frame, frame + 3)
            model.begin_chunk(controls[:, :, part], condition[:, :, part], frame)
            flows += [model.predict(latents[:, :, part], t) for t in (999.0, 700.0)]
            model.update_context(latents[:, :, part])
    return torch.cat(flows).cpu()


def losses(transformer: CausalLingBotTransformer) -> Tensor:
    """The loss of a clip of two chunks, its history resampled."""
    device = transformer.device
    latents, condition, controls = (
        x.to(device) for x in chunk_inputs(transformer.config, chunks=2)
    )
    text = torch.linspace(-1, 1, 5 * 16, device=device).view(1, 5, 16)
    objective = FlowMatching(FlowSchedule(5.0), history_noise=0.2, resampled_history=1.0)
    return objective(
        transformer, latents, condition, controls, text,
        cache=WINDOW, exchange=LocalExchange(transformer.config.num_heads),
        generator=torch.Generator().manual_seed(0), step=0,
    )["loss"]  # fmt: skip


def gradients(transformer: CausalLingBotTransformer) -> dict[str, Tensor]:
    """By the published names, whether q, k and v are packed or not."""
    found = {}
    for name, weight in transformer.named_parameters():
        assert weight.grad is not None, name
        if ".qkv." in name:
            for part, grad in zip("qkv", weight.grad.chunk(3), strict=True):
                found[name.replace(".qkv.", f".{part}.")] = grad
        else:
            found[name] = weight.grad
    return found


def chosen(**options: Any) -> KernelConfig:
    """A choice of kernels; a skip where this machine lacks what it needs."""
    if options.get("kv") == "fp8" and torch.cuda.is_available():
        pytest.importorskip("cudnn")
    return KernelConfig(**options)


def applied(
    config: KernelConfig,
    sizes: TransformerConfig = SMALL,
    trained: bool = False,
    device: str = "cpu",
) -> CausalLingBotTransformer:
    """A small transformer that runs by these kernels."""
    transformer = small_transformer(sizes).requires_grad_(trained).to(device)
    apply(transformer, config)
    return transformer
