"""Where training starts when there are no weights: a transformer that returns its noise.

At high noise levels the flow is nearly the noise itself, so most of the first steps of a new model
go into learning to copy it. Here the residual branches begin at zero (as in adaLN-Zero,
arXiv:2212.09748) and the head is the least-squares inverse of the patch embedding, so the copy
stands before the first step and training begins with the picture.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from lingbot.model.block import Block
from lingbot.model.transformer import CausalLingBotTransformer

SAMPLES = 4096


@torch.no_grad()
def return_the_noise(transformer: CausalLingBotTransformer) -> None:
    """Initialises in place so that a pass predicts its own noisy input as the flow."""
    for block in transformer.blocks:
        assert isinstance(block, Block)
        _silence(block)
    time_projection = transformer.time_projection[1]
    assert isinstance(time_projection, nn.Linear)
    time_projection.weight.mul_(0.1)
    nn.init.zeros_(time_projection.bias)
    nn.init.zeros_(transformer.head.modulation)
    _invert_patch_embedding(transformer)


def _silence(block: Block) -> None:
    """Residual branches that add nothing yet, with open gates so that all of them can learn."""
    feed_forward_out = block.ffn[2]
    assert isinstance(feed_forward_out, nn.Linear)
    for layer in (
        block.self_attn.o, block.cross_attn.o, feed_forward_out,
        block.cam_scale_layer, block.cam_shift_layer,
    ):  # fmt: skip
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    nn.init.zeros_(block.modulation)
    block.modulation[:, (2, 5)] = 1  # the gates of attention and feed-forward


def _invert_patch_embedding(transformer: CausalLingBotTransformer) -> None:
    """Head weights that recover a patch's noise from its embedding, through the norm between."""
    config = transformer.config
    embedding = transformer.patch_embedding
    assert embedding.bias is not None
    patch = config.patch_size[1] * config.patch_size[2]
    # on the CPU whatever the device: noise spans a few of the embedding's directions, and CUDA's
    # least squares takes full rank for granted
    weight, bias = (
        x.detach().double().cpu() for x in (embedding.weight.flatten(1), embedding.bias)
    )
    noise = torch.randn(SAMPLES, config.in_channels, patch, dtype=torch.float64, device="cpu")
    noise[:, config.out_channels :] = 0  # mask and image
    x = F.linear(noise.flatten(1), weight, bias)
    x = F.layer_norm(x, (config.dim,), eps=config.eps)
    target = noise[:, : config.out_channels].transpose(1, 2).flatten(1)  # channels fastest
    padded = F.pad(x, (0, 1), value=1.0)
    solution = torch.linalg.lstsq(padded, target, driver="gelsd").solution
    transformer.head.head.weight.copy_(solution[:-1].T)
    transformer.head.head.bias.copy_(solution[-1])
