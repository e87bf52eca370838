"""The numbers that keys and values are exchanged and kept in, and how queries attend to them.

`KVFormat` leaves them in the precision they are made in. A subclass that rounds them further owns
everything that depends on it: encoding, decoding, attention and the dtype in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lingbot.model.sdpa import attend


class KVFormat:
    """Keys and values as they are made."""

    name = "bf16"  # the weights' own precision, as the options call it

    def dtype(self, weights: torch.dtype) -> torch.dtype:
        """What keys and values are kept in, where the weights are in `weights`."""
        return weights

    def encode(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as `attend` takes them."""
        return q, k, v

    def encode_kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values as they are kept."""
        return k, v

    def decode_kv(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Kept keys and values as plain numbers."""
        return k, v

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, S, h, D], k and v [B, T, h, D], encoded -> attended values, encoded like v."""
        return attend(q, k, v)

    def decode(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        """What `attend` returned as numbers of the weights' `dtype`."""
        return y

    def fill_random(self, kept: Tensor, generator: torch.Generator) -> None:
        """Fills memory for keys and values with normal random numbers."""
        kept.normal_(generator=generator)


PLAIN = KVFormat()
