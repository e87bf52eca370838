"""What a block knows of the place where keys and values go.

Letters: B batch, C chunks, S tokens of a chunk, h local heads, D head width.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from lingbot.model.exchange import PeerTensor
from lingbot.model.kv_format import KVFormat


class KVStore(Protocol):
    """Where a chunk's keys and values go and what its queries see, in all layers.

    Attributes:
        format: of queries, keys and values.
    """

    format: KVFormat

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k, v [B, C, S, h, D] -> attended values [B, C, S, h, D]."""
        ...

    def store(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Keeps k, v [B, C, S, h, D] without attending."""
        ...

    def slots(self, layer: int) -> PeerTensor | None:
        """Where `store` would put the k and v of a chunk, [2, B, S, h, D]; None for no one place.

        What has been written there need not be stored.
        """
        ...


class LayerKV:
    """One layer of a store."""

    def __init__(self, store: KVStore, layer: int) -> None:
        self._store, self._layer = store, layer
        self.format = store.format

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self._store.attend(self._layer, q, k, v)

    def store(self, k: Tensor, v: Tensor) -> None:
        self._store.store(self._layer, k, v)

    def slots(self) -> PeerTensor | None:
        return self._store.slots(self._layer)
