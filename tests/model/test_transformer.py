import math

import pytest
import torch

from lingbot.model import (
    CausalLingBotTransformer,
    ConditionerCache,
    KVCacheConfig,
    LocalExchange,
    TeacherForcing,
    TransformerConfig,
)
from lingbot.model.kv_cache import visible_frames
from lingbot.model.rope import axis_widths
from lingbot.model.sdpa import attend
from tests.model.worlds import SMALL, cached, chunk_inputs, small_transformer

TEXT = torch.linspace(-1, 1, 5 * 16).view(1, 5, 16)


def drive_clean(model, latents, condition, controls, first_frame=0, timestep=702.0):
    """Drives clean chunks; returns the flow each chunk's latents get at `timestep`."""
    flows = []
    with torch.no_grad():
        for start in range(0, latents.shape[2], 3):
            span = slice(start, start + 3)
            model.begin_chunk(controls[:, :, span], condition[:, :, span], first_frame + start)
            flows.append(model.predict(latents[:, :, span], timestep))
            model.update_context(latents[:, :, span])
    return torch.cat(flows, dim=2)


class StepByStep(ConditionerCache):
    """No cache at all, for a forward over a whole clip."""

    def __init__(self) -> None:
        super().__init__("off")


def clip_flow(transformer, history, noisy, condition, controls, cache, timestep=702.0):
    """One teacher-forced forward over a clip: the flow of its noisy chunks."""
    exchange = LocalExchange(transformer.config.num_heads)
    chunks = noisy.shape[2] // 3
    times = torch.tensor([[0.0] * chunks + [timestep] * chunks], dtype=torch.float64)
    flow = transformer(
        torch.cat([torch.cat([history, noisy], 2), torch.cat([condition] * 2, 2)], 1),
        transformer.embed_time(times),
        transformer.embed_controls(controls, exchange, 3),
        transformer.embed_text(TEXT),
        tuple(range(0, 3 * chunks, 3)) * 2,
        kv=TeacherForcing(cache, chunks, 3),
        conditioner=StepByStep(),
        exchange=exchange,
    )
    return flow[:, :, noisy.shape[2] :]


@pytest.mark.parametrize("cache", [KVCacheConfig(), KVCacheConfig(9, 3), KVCacheConfig(7, 2)])
def test_driving_with_caches_equals_one_teacher_forced_forward_without(cache):
    transformer = small_transformer()
    latents, condition, controls = chunk_inputs(SMALL, chunks=6)
    driven = drive_clean(cached(transformer, cache), latents, condition, controls)
    at_once = clip_flow(transformer, latents, latents, condition, controls, cache)
    assert torch.allclose(driven, at_once, atol=2e-5)


def test_teacher_forcing_equals_one_masked_attention():
    torch.manual_seed(0)
    cache, chunks, frames, tokens = KVCacheConfig(9, 3), 5, 3, 2
    q, k, v = (torch.randn(2, 2 * chunks, frames * tokens, 3, 8) for _ in range(3))
    frame = torch.arange(chunks * frames).repeat_interleave(tokens)
    clean = frame.shape[0]
    mask = torch.zeros(2 * clean, 2 * clean, dtype=torch.bool)
    for chunk in range(chunks):
        seen = torch.isin(frame, torch.tensor(visible_frames(chunk * frames, frames, cache)))
        own = frame // frames == chunk
        rows = torch.nonzero(own).flatten()
        mask[rows[:, None], torch.nonzero(seen).flatten()] = True
        mask[clean + rows[:, None], torch.nonzero(seen & ~own).flatten()] = True
        mask[clean + rows[:, None], clean + torch.nonzero(own).flatten()] = True
    heads_first = [x.flatten(1, 2).transpose(1, 2) for x in (q, k, v)]
    masked = torch.nn.functional.scaled_dot_product_attention(*heads_first, attn_mask=mask)
    ours = TeacherForcing(cache, chunks, frames).attend(0, q, k, v)
    assert torch.allclose(ours.flatten(1, 2), masked.transpose(1, 2), atol=1e-6)


def test_a_noisy_chunk_does_not_see_its_own_clean_frames_or_the_future():
    transformer = small_transformer()
    latents, condition, controls = chunk_inputs(SMALL, chunks=3)
    noisy = chunk_inputs(SMALL, chunks=3, seed=7)[0]
    changed = latents.clone()
    changed[:, :, 3:] += 1  # clean frames of chunks 1 and 2
    flows = [
        clip_flow(transformer, clean, noisy, condition, controls, KVCacheConfig())
        for clean in (latents, changed)
    ]
    assert torch.equal(flows[0][:, :, :6], flows[1][:, :, :6])
    assert not torch.allclose(flows[0][:, :, 6:], flows[1][:, :, 6:], atol=1e-3)


def test_the_context_update_stops_early_in_the_last_block_and_leaves_the_same_cache():
    transformer = small_transformer()
    latents, condition, controls = chunk_inputs(SMALL, chunks=1)
    early, full = cached(transformer, KVCacheConfig()), cached(transformer, KVCacheConfig())
    calls: list[str] = []
    last = transformer.blocks[-1]
    names = {"q": last.self_attn.q, "cross": last.cross_attn.q, "ffn": last.ffn[0],
             "head": transformer.head.head, "k": last.self_attn.k}  # fmt: skip
    for name, layer in names.items():
        layer.register_forward_hook(lambda *_, name=name: calls.append(name))
    with torch.no_grad():
        for model in (early, full):
            model.begin_chunk(controls, condition, 0)
        early.update_context(latents)
        assert calls == ["k"]
        full.predict(latents, 0.0)
    assert set(calls) == set(names)
    for layer in range(SMALL.num_layers):
        for ours, theirs in zip(
            early.kv_cache.visible(layer), full.kv_cache.visible(layer), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_a_world_goes_on_past_the_1024th_latent_frame():
    """With the window full only relative time matters, so flows far out equal flows near."""
    transformer = small_transformer()
    latents, condition, controls = chunk_inputs(SMALL, chunks=4)
    near, far = (
        drive_clean(
            cached(transformer, KVCacheConfig(6, 0)), latents, condition, controls, first_frame
        )
        for first_frame in (0, 1026)
    )
    assert torch.allclose(near, far, atol=1e-4)


def test_another_prompt_position_or_timestep_changes_the_flow():
    transformer = small_transformer()
    latents, condition, controls = chunk_inputs(SMALL, chunks=1)
    flows = [drive_clean(cached(transformer, KVCacheConfig()), latents, condition, controls)]
    other = cached(transformer, KVCacheConfig())
    other.set_text(-TEXT)
    flows.append(drive_clean(other, latents, condition, controls))
    flows.append(drive_clean(cached(transformer, KVCacheConfig()), latents, condition, -controls))
    flows.append(
        drive_clean(
            cached(transformer, KVCacheConfig()), latents, condition, controls, timestep=999.0
        )
    )
    for other_flow in flows[1:]:
        assert (flows[0] - other_flow).abs().max() > 1e-3


def test_act_control_takes_448_channels_and_cam_384():
    for control, channels in (("cam", 384), ("act", 448)):
        config = TransformerConfig(48, 64, 4, 1, 16, 8, 32, control=control)
        transformer = small_transformer(config)
        exchange = LocalExchange(4)
        rays = transformer.embed_controls(torch.randn(1, channels, 3, 4, 6), exchange)
        assert rays.shape == (1, 1, 18, 48)
        with pytest.raises(ValueError, match=f"takes {channels}"):
            transformer.embed_controls(torch.randn(1, 100, 3, 4, 6), exchange)


def test_head_widths_are_shared_out_over_time_height_and_width():
    assert axis_widths(128) == (44, 42, 42)
    assert axis_widths(24) == (8, 8, 8)


def test_bfloat16_weights_stay_near_float32():
    transformer = small_transformer()
    latents, condition, controls = chunk_inputs(SMALL, chunks=3)
    exact = drive_clean(cached(transformer, KVCacheConfig()), latents, condition, controls)
    rough = drive_clean(
        cached(transformer.bfloat16(), KVCacheConfig()), latents, condition, controls
    )
    assert rough.dtype == torch.float32
    assert (rough - exact).norm() / exact.norm() < 2e-2


def test_attention_equals_its_definition():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 5, 3, 8, dtype=torch.float64) for _ in range(3))
    scores = torch.einsum("bshd,bthd->bhst", q, k) / 8**0.5
    expected = torch.einsum("bhst,bthd->bshd", scores.softmax(-1), v)
    assert torch.allclose(attend(q, k, v), expected)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 50}, "dim=50"),
        ({"num_layers": 0}, "num_layers=0"),
        ({"control": "joystick"}, "joystick"),
        ({"patch_size": (2, 2, 2)}, "time patch"),
        ({"patch_size": (1, 0, 2)}, "patch_size=0"),
        ({"patch_size": ()}, "time patch"),
        ({"freq_dim": -2}, "freq_dim=-2"),
        ({"freq_dim": 255}, "freq_dim=255"),
        ({"out_channels": 0}, "out_channels=0"),
        ({"out_channels": 99}, "in_channels=36: with model.out_channels=99 give 202"),
        ({"in_channels": 1}, "in_channels=1"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"eps": math.inf}, "eps=inf"),
        ({"eps": 0.0}, "eps=0.0"),
        ({"text_len": 1.5}, "text_len=1.5"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(changes, says):
    sizes = {"dim": 48, "ffn_dim": 64, "num_heads": 4, "num_layers": 2} | changes
    with pytest.raises(ValueError, match=says):
        TransformerConfig(**sizes)


def test_latents_that_do_not_divide_into_patches_are_refused_with_the_multiple_that_works():
    with pytest.raises(ValueError, match="multiples of 16"):
        SMALL.grid(3, 5, 6)


def test_the_14b_preset_has_the_published_number_of_parameters():
    with torch.device("meta"):
        transformer = CausalLingBotTransformer(TransformerConfig(5120, 13824, 40, 40))
    assert sum(p.numel() for p in transformer.parameters()) == pytest.approx(18.5e9, rel=0.01)
