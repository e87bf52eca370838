"""Keys and values written where a cache keeps them: send buffers, and the slots of a chunk."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from lingbot.model import KVCache, KVCacheConfig, LocalExchange
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.splits import even_splits
from tests.model.worlds import SMALL

WINDOW = KVCacheConfig(window=6, sink=2)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("count", [3, 2])
def test_a_send_buffer_filled_through_its_view_is_what_pack_gives(ranks, count):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 6, 8, 4)  # B, C, L, H, D
    tensors = [torch.randn(shape, generator=generator) for _ in range(count)]
    exchange = LocalExchange(8)
    if ranks > 1:
        group = SimpleNamespace(size=lambda: ranks, rank=lambda: 0)
        exchange = SequenceExchange(group, even_splits(6 * ranks, ranks), 8)
    packed, views, _ = exchange.send_buffer(tensors[0], count, shape)
    for view, x in zip(views, tensors, strict=True):
        assert view.shape == (2 * 3 * 6, ranks, 8 // ranks, 4)
        view.copy_(x.view(view.shape))
    expected = exchange.pack(*tensors)
    assert all(torch.equal(*pair) for pair in zip(packed, expected, strict=True))


def test_keys_and_values_written_to_their_slots_need_not_be_stored():
    grid = SMALL.grid(3, 4, 6)
    cache = KVCache(
        WINDOW, grid, layers=1, batch=1, heads=4, head_dim=12, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    cache.begin_chunk(0)
    shape = (1, 1, grid.tokens, 4, 12)
    packed, views, _ = LocalExchange(4).send_buffer(torch.empty(0), 3, shape, cache.slots(0))
    for view in views:
        view.normal_()
    q, k, v = packed
    before = [x.clone() for x in cache.visible(0)]
    cache.store(0, k, v)
    assert all(torch.equal(*pair) for pair in zip(cache.visible(0), before, strict=True))
    assert torch.equal(cache.visible(0)[1], v[:, 0])
    assert q.shape == shape
    cache.begin_chunk(3)
    cache.begin_chunk(6)
    cache.begin_chunk(9)  # a ring of 4 frames: its chunk of 3 lies in two places
    assert cache.slots(0) is None
