"""What a streaming decode leaves open of its arithmetic, and how it is done as published.

`lingbot.kernels.vae` has another way, for a decoder whose layers it has replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lingbot.codec.causal_state import CausalState


@dataclass(frozen=True)
class DecoderOps:
    """One way to decode.

    Args:
        name: as the options call it.
        head: (decoder, features, causal state) -> channels of pixels; the end of the decoder.
        frames_at_once: latent frames decoded together at most.
    """

    name: str
    head: Callable[[nn.Module, Tensor, CausalState], Tensor]
    frames_at_once: int


def head(decoder: nn.Module, x: Tensor, state: CausalState) -> Tensor:
    """The end of the decoder, as published: features to the channels of pixels."""
    features = decoder.nonlinearity(decoder.norm_out(x))  # type: ignore[operator]
    return state.convolve(decoder.conv_out, features)  # type: ignore[arg-type]


REFERENCE = DecoderOps("reference", head, 1)
