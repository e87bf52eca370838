import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lingbot.model import KVCache, KVCacheConfig
from lingbot.model.kv_cache import visible_frames
from lingbot.model.rope import Grid


def make_cache(config: KVCacheConfig, frames: int, tokens: int = 2) -> KVCache:
    return KVCache(
        config, Grid(frames, 1, tokens), layers=1, batch=1, heads=1, head_dim=2,
        dtype=torch.float32, device=torch.device("cpu"),
    )  # fmt: skip


def chunk_values(first_frame: int, frames: int, passed: int, tokens: int = 2) -> torch.Tensor:
    """Keys that tell their frame, token and pass: [1, 1, S, 1, 2]."""
    rows = [
        [1000.0 * (first_frame + f) + t, float(passed)]
        for f in range(frames)
        for t in range(tokens)
    ]
    return torch.tensor(rows).view(1, 1, frames * tokens, 1, 2)


@st.composite
def schedules(draw):
    frames = draw(st.integers(1, 5))
    sink = draw(st.integers(0, 9))
    ring = draw(st.integers(frames, 14))
    return (
        frames,
        KVCacheConfig(sink + ring, sink),
        draw(st.integers(1, 40)),
        draw(st.integers(1, 3)),
    )


@settings(max_examples=150, deadline=None)
@given(schedules())
def test_the_ring_shows_what_a_growing_list_cut_to_sink_and_window_shows(schedule):
    frames, config, chunks, passes = schedule
    cache = make_cache(config, frames)
    history: dict[int, torch.Tensor] = {}  # the slow twin: every frame ever, cut when looked at
    for chunk in range(chunks):
        first = chunk * frames
        cache.begin_chunk(first)
        for passed in range(passes):
            rows = chunk_values(first, frames, passed)
            cache.store(0, rows, -rows)
            for f in range(frames):
                history[first + f] = rows[0, 0, 2 * f : 2 * f + 2]
        seen = visible_frames(first, frames, config)
        keys, values = cache.in_time_order(0)
        assert torch.equal(keys[0], torch.cat([history[f] for f in seen]))
        assert torch.equal(values, -keys)
        own, own_values = cache.of_chunk(0)
        assert torch.equal(own, rows[:, 0])
        assert torch.equal(own_values, -own)


def test_visible_frames_are_the_sink_and_the_latest_of_the_window_with_the_chunk_counted():
    assert visible_frames(0, 3, KVCacheConfig(9, 3)) == [0, 1, 2]
    assert visible_frames(15, 3, KVCacheConfig(9, 3)) == [0, 1, 2, 12, 13, 14, 15, 16, 17]
    assert visible_frames(16, 4, KVCacheConfig(18, 6)) == [*range(6), *range(8, 20)]
    assert visible_frames(6, 3, KVCacheConfig()) == list(range(9))


def test_eviction_never_touches_the_sink():
    cache = make_cache(KVCacheConfig(9, 3), frames=3)
    cache.begin_chunk(0)
    sink = chunk_values(0, 3, 0)
    cache.store(0, sink, sink)
    for chunk in range(1, 50):
        cache.begin_chunk(3 * chunk)
        cache.store(0, chunk_values(3 * chunk, 3, 0), chunk_values(3 * chunk, 3, 0))
    assert torch.equal(cache.visible(0)[0][:, :6], sink[:, 0])


def test_memory_is_made_once_and_seen_without_copies():
    cache = make_cache(KVCacheConfig(9, 3), frames=3)
    made = cache.bytes
    addresses = set()
    for chunk in range(10):
        cache.begin_chunk(3 * chunk)
        cache.store(0, chunk_values(3 * chunk, 3, 0), chunk_values(3 * chunk, 3, 0))
        addresses.add(cache.visible(0)[0].data_ptr())
    assert len(addresses) == 1
    assert cache.bytes == made == 2 * 9 * 2 * 2 * 4


def test_a_full_cache_refuses_the_frame_that_does_not_fit():
    cache = make_cache(KVCacheConfig(max_frames=6), frames=3)
    cache.begin_chunk(0)
    cache.begin_chunk(3)
    with pytest.raises(RuntimeError, match="max_frames"):
        cache.begin_chunk(6)


def test_chunks_out_of_order_are_refused():
    cache = make_cache(KVCacheConfig(9, 3), frames=3)
    with pytest.raises(ValueError, match="sink"):
        cache.begin_chunk(3)
    cache.begin_chunk(0)
    with pytest.raises(ValueError, match="in order"):
        cache.begin_chunk(0)


@pytest.mark.parametrize(
    ("window", "sink", "says"),
    [
        (0, 0, "window=0"),
        (6, 6, "sink=6"),
        (6, -1, "sink=-1"),
        (-7, 0, "window=-7"),
        (6.5, 0, "window=6.5"),
        (-1, 9, "sink=9: nothing is ever dropped"),
    ],
)
def test_contradicting_windows_and_sinks_are_refused(window, sink, says):
    with pytest.raises(ValueError, match=says):
        KVCacheConfig(window, sink)
    with pytest.raises(ValueError, match="max_frames=0"):
        KVCacheConfig(max_frames=0)


def test_a_chunk_larger_than_the_ring_is_refused_with_the_window_that_works():
    with pytest.raises(ValueError, match="at least 12"):
        make_cache(KVCacheConfig(11, 9), frames=3)


def test_a_memory_without_a_chunk_has_no_rows_to_give():
    cache = make_cache(KVCacheConfig(), 3)
    with pytest.raises(RuntimeError, match="begin_chunk"):
        cache.of_chunk(0)
