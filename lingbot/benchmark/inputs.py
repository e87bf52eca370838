"""What a measured world is made of: random picture, keys and prompt; nothing is ever zero.

Zeros would flatter: power-limited GPUs run faster on them, and caches of zeros hide what attention
costs. A seed gives the same inputs on every rank and for every setting.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lingbot.camera.controls import Controls, frames_in_chunk
from lingbot.codec.streaming import StreamingDecoder
from lingbot.codec.video import VideoCodec
from lingbot.model.checks import check_count
from lingbot.model.transformer import MOST

HELD = ("w", "a", "s", "d", "j", "l", "i", "k", "wj", "wl", "")


def random_picture(height: int, width: int, seed: int) -> Tensor:
    """A first frame of noise: uint8 [height, width, 3]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)


def random_controls(frames_per_chunk: int, seed: int) -> Iterator[Controls]:
    """The controls of one realtime step after another, without end."""
    draw = random.Random(seed)
    step = 0
    while True:
        frames = frames_in_chunk(step, frames_per_chunk)
        yield Controls(actions=tuple(draw.choice(HELD) for _ in range(frames)))
        step += 1


class RandomTextEncoder(nn.Module):
    """Encodes every prompt as the same normal random numbers, of the full length.

    Args:
        text_dim: width of the encoding.
        text_len: its tokens.
    """

    def __init__(self, text_dim: int, text_len: int) -> None:
        super().__init__()
        check_count("text.text_dim", text_dim, high=MOST)
        check_count("text.text_len", text_len, high=MOST)
        generator = torch.Generator("cpu").manual_seed(0)
        shape = (1, text_len, text_dim)
        self.encoding = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32)

    def forward(self, prompts: list[str]) -> Tensor:
        """Prompts to `[batch, text_len, text_dim]`, float32."""
        return self.encoding.expand(len(prompts), -1, -1)


class WithoutDecoder(VideoCodec):
    """A codec that encodes but shows nothing, to measure a step without its decode.

    Args:
        codec: encodes the first frame; its weights are shared.
    """

    def __init__(self, codec: VideoCodec) -> None:
        nn.Module.__init__(self)
        self.vae, self.memory_format = codec.vae, codec.memory_format
        self.ops = codec.ops
        self._statistics_on = codec._statistics_on

    def stream(self) -> StreamingDecoder:
        return _Blind(self)


class _Blind(StreamingDecoder):
    """As many frames as the latents would give, of one black pixel each."""

    def strip_pictures(self, latents: Tensor) -> Tensor:
        self._check(latents)
        frames = latents.shape[2]
        first = self.position == 0
        self.position += frames
        stride = self.codec.temporal_stride
        length = stride * (frames - first) + first
        return torch.zeros(len(latents), length, 1, 1, 3, dtype=torch.uint8, device=latents.device)
