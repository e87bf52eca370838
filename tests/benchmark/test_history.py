import pytest
import torch

from lingbot.benchmark.inputs import WithoutDecoder, random_controls, random_picture
from lingbot.benchmark.plan import steady_step
from lingbot.diffusion import FewStepSampler, FlowSchedule
from lingbot.kernels.vae import fuse_decoder
from lingbot.model import KVCacheConfig, LocalExchange
from lingbot.model.cached_transformer import CachedTransformer
from lingbot.realtime.session import RealtimeSession
from tests.model.worlds import (
    HEIGHT,
    SMALL,
    WIDTH,
    PromptLengths,
    small_camera,
    small_codec,
    small_transformer,
)

PICTURE = random_picture(HEIGHT, WIDTH, 0)


def session(cache: KVCacheConfig, codec=None) -> RealtimeSession:
    grid = SMALL.grid(3, HEIGHT // 8, WIDTH // 8)
    model = CachedTransformer(small_transformer(), cache, grid, LocalExchange(SMALL.num_heads))
    made = RealtimeSession(
        model, codec or small_codec(), PromptLengths(), small_camera(),
        FewStepSampler(FlowSchedule(5.0)),
    )  # fmt: skip
    made.reset(PICTURE, "dusk")
    return made


@pytest.mark.parametrize("cache", [KVCacheConfig(18, 9), KVCacheConfig(18, 3), KVCacheConfig(7, 2)])
def test_a_pretended_history_is_full_random_and_placed_as_a_driven_one(cache):
    step = steady_step(cache, 3)
    pretended, driven = session(cache), session(cache)
    controls = random_controls(3, 0)
    first = next(controls)
    pretended.step(first)
    pretended.pretend_history(step)
    memory = pretended.model.kv_cache
    assert memory.frames_visible == cache.capacity
    for layer in range(SMALL.num_layers):
        for rows in memory.visible(layer):
            assert rows.ne(0).float().mean() > 0.999
            assert rows.std() == pytest.approx(1, abs=0.05)
    driven.step(first)
    for _ in range(step - 1):
        driven.step(next(controls))
    assert driven.step_index == pretended.step_index
    assert driven.model.kv_cache._frame_of_slot == memory._frame_of_slot
    for each in (driven, pretended):
        each.step(next(controls))
    assert driven.model.kv_cache._frame_of_slot == memory._frame_of_slot
    assert memory.frames_visible == cache.capacity


def test_the_history_is_pretended_forwards_after_the_first_step_only():
    made = session(KVCacheConfig(6, 2))
    with pytest.raises(ValueError, match="take the first step"):
        made.pretend_history(4)
    made.step(next(random_controls(3, 0)))
    with pytest.raises(ValueError, match="no chunk starts at frame 4"):
        made.model.kv_cache.fill_random(4, torch.Generator())


def test_a_codec_without_decoder_gives_as_many_frames_and_encodes_as_before():
    codec = small_codec()
    made = session(KVCacheConfig(6, 2), WithoutDecoder(codec))
    controls = random_controls(3, 0)
    assert [len(made.step(next(controls))) for _ in range(2)] == [9, 12]
    encoded = session(KVCacheConfig(6, 2), codec)._first_condition
    assert torch.equal(made._first_condition, encoded)


def test_a_codec_without_decoder_and_the_one_it_shares_weights_with_can_both_be_fused():
    plain, codec = small_codec(), small_codec()
    latents = torch.randn(1, 16, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    for one in (WithoutDecoder(codec), codec):
        fuse_decoder(one)
    torch.testing.assert_close(codec.decode(latents), plain.decode(latents), atol=1e-5, rtol=0)


def test_controls_are_random_and_the_same_for_the_same_seed():
    drives = [[next(stream) for _ in range(2)] for stream in map(random_controls, (3, 3), (1, 1))]
    assert drives[0] == drives[1]
    assert len(set(drives[0][1].actions)) > 2
