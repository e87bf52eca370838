"""Streaming decode: a video's latents to frames, chunk by chunk, with the codec's causal state.

A `StreamingDecoder` owns that state, so any number of streams can run over one set of weights. It
shows the codec one latent frame at a time, so how the latents are cut into chunks cannot change a
single bit of the frames; unless the codec is one for which more at once are faster.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

import torch
from einops import rearrange
from torch import Tensor, nn

from lingbot.codec.causal_state import CausalState
from lingbot.codec.pictures import frames_to_uint8

if TYPE_CHECKING:
    from lingbot.codec.video import VideoCodec


class PictureStream(Protocol):
    """One video's latents to pictures, chunk by chunk."""

    def pictures(self, latents: Tensor) -> Tensor:
        """Next latents `[B, 16, f, h, w]` to uint8 pictures `[B, T, 8h, 8w, 3]`."""
        ...

    def reset(self) -> None:
        """Forget the video."""
        ...


class StreamingDecoder:
    """Decodes one video chunk by chunk, keeping the codec's causal state between calls."""

    def __init__(self, codec: VideoCodec) -> None:
        self.codec = codec
        self._convolutions = sum(isinstance(m, nn.Conv3d) for m in codec.vae.decoder.modules())
        self.reset()

    def reset(self) -> None:
        """Forget the video: the next latent frame is a first one again."""
        self.position = 0  # latent frames decoded so far
        self.state: list[Any] = [None] * self._convolutions  # last frames, by convolution
        self._shape: tuple[int, ...] | None = None

    def pictures(self, latents: Tensor) -> Tensor:
        """Next latents `[B, 16, f, h, w]` to uint8 pictures `[B, T, 8h, 8w, 3]`.

        The same as `frames_to_uint8(decode(latents))`, but no chunk is ever held in float.
        """
        return self.gather(self.strip_pictures(latents))

    def strip_pictures(self, latents: Tensor) -> Tensor:
        """The part of `pictures` that this process decodes, here all of it: no communication."""
        return torch.cat([frames_to_uint8(frames) for frames in self._decoded(latents)], dim=1)

    def gather(self, strip: Tensor) -> Tensor:
        """Pictures from the strips of all processes."""
        return strip

    def state_shapes(self) -> list[tuple[int, ...] | None]:
        """Shape of each convolution's causal state; None where it is no tensor yet."""
        return [tuple(x.shape) if isinstance(x, Tensor) else None for x in self.state]

    def decode(self, latents: Tensor) -> Tensor:
        """Next latents `[B, 16, f, h, w]` to frames `[B, 3, T, 8h, 8w]`, float32 in [-1, 1].

        T is 4f, or 4(f-1)+1 at the start of a video.

        Raises:
            ValueError: latents of another shape than the codec's or than the stream began with.
        """
        return self.decode_unclamped(latents).clamp(-1, 1)

    def decode_unclamped(self, latents: Tensor) -> Tensor:
        """Like `decode`, but frames may leave [-1, 1]: keeps the gradient there (training)."""
        return torch.cat(list(self._decoded(latents)), dim=2).float()

    def _decoded(self, latents: Tensor) -> Iterator[Tensor]:
        """Video frames `[B, 3, T, 8h, 8w]` of one or a few latent frames after the other."""
        self._check(latents)
        codec = self.codec
        x = codec.vae.post_quant_conv(codec._laid_out(codec.denormalise(latents)))
        patch = codec.vae.config.patch_size or 1
        started = int(self.position == 0)  # a video's first frame comes alone
        for frames in (
            x[:, :, :started],
            *x[:, :, started:].split(codec.ops.frames_at_once, dim=2),
        ):
            if frames.shape[2]:
                out = self._decode_frames(frames, first=self.position == 0)
                self.position += frames.shape[2]
                yield rearrange(out, "b (c q p) t h w -> b c t (h p) (w q)", p=patch, q=patch)

    def _decode_frames(self, x: Tensor, first: bool) -> Tensor:
        """Latent frames `[B, 16, t, h, w]` through the decoder, updating the causal state."""
        decoder, state = self.codec.vae.decoder, CausalState(self.state, [0])
        x = decoder.mid_block(state.convolve(decoder.conv_in, x), *state)
        for place, block in enumerate(decoder.up_blocks):
            x = block(self._needed(x, place), *state, first_chunk=first)
        return self._needed(self.codec.ops.head(decoder, x, state), len(decoder.up_blocks))

    def _needed(self, x: Tensor, place: int) -> Tensor:
        """What up block `place` takes of its input, here all; after the last one, what is shown."""
        return x

    def _check(self, latents: Tensor) -> None:
        channels = self.codec.latent_channels
        if latents.dim() != 5 or latents.shape[1] != channels:
            raise ValueError(
                f"latents must be [batch, {channels}, F, h, w], got {tuple(latents.shape)}."
            )
        batch, _, _, height, width = latents.shape
        if self._shape not in (None, (batch, height, width)):
            raise ValueError(
                f"latents of batch, height, width {(batch, height, width)} do not continue a "
                f"stream of {self._shape}; call reset() or take a new stream() for another video."
            )
        self._shape = (batch, height, width)
