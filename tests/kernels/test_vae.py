"""The fused decoder gives the frames of the published one, whole, in strips and as a recording."""

from __future__ import annotations

import pytest
import torch

from lingbot.codec.split import SplitDecoder, plan_strips
from lingbot.codec.video import VideoCodec
from lingbot.kernels import KernelConfig, apply
from lingbot.kernels.cuda_graph import GraphedDecoder
from lingbot.kernels.vae import FusedResidual, added_channels, fuse_decoder
from lingbot.kernels.vae_rows import add_with_bias, join_normed, spread
from tests.codec.test_split import latents_of, make_codec, rank_of
from tests.codec.test_video import PATCHED, WAN
from tests.kernels.test_cuda_graph import Recorder

FUSED = KernelConfig(vae="fused")


@pytest.fixture(params=[WAN, PATCHED], ids=["wan", "patched"])
def codecs(request) -> tuple[VideoCodec, VideoCodec]:
    """As published, and fused."""
    published, fused = make_codec(request.param), make_codec(request.param)
    apply(fused, FUSED)
    return published, fused


@pytest.mark.parametrize("cuts", [[3, 3, 3], [1, 1, 2], [2, 3]], ids=str)
def test_fused_frames_are_the_published_ones_chunk_by_chunk(codecs, cuts):
    latents = latents_of(6, sum(cuts)).expand(2, -1, -1, -1, -1)
    published, fused = (codec.stream() for codec in codecs)
    for chunk in latents.split(cuts, dim=2):
        torch.testing.assert_close(
            fused.decode_unclamped(chunk), published.decode_unclamped(chunk), atol=1e-5, rtol=0
        )


def test_in_bfloat16_fused_frames_err_no_more_than_the_published_ones(codecs):
    latents = latents_of(6, 4)
    exact = codecs[0].decode(latents)
    errors = [(codec.bfloat16().decode(latents) - exact).norm() for codec in codecs]
    assert 0 < errors[1] < 1.2 * errors[0]


def test_fused_strips_are_a_decode_of_the_whole_picture(codecs):
    latents = latents_of(24, 4)
    decoders = [SplitDecoder(codecs[1], rank_of(2, rank), 24) for rank in range(2)]
    strips = [[d.decode_unclamped(x) for x in latents.split(2, dim=2)] for d in decoders]
    together = torch.cat([torch.cat(strip, dim=2) for strip in strips], dim=-1)
    expected = codecs[0].stream().decode_unclamped(latents)
    torch.testing.assert_close(together, expected, atol=1e-5, rtol=0)


def test_a_fused_decoder_can_be_recorded_after_its_first_chunk(codecs):
    record = Recorder()
    graphed, plain = GraphedDecoder(codecs[1].stream(), record), codecs[1].stream()
    for chunk in latents_of(4, 12).split(3, dim=2):
        assert torch.equal(graphed.pictures(chunk), plain.pictures(chunk))
    assert (record.recordings, record.replays) == (1, 2)


def test_fusing_twice_changes_nothing_and_weights_keep_their_names(codecs):
    published, fused = codecs
    latents = latents_of(4, 2)
    once = fused.decode(latents)
    apply(fused, FUSED)
    assert torch.equal(fused.decode(latents), once)
    before, after = published.state_dict(), fused.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert plan_strips(fused.vae.decoder, 24, 2) == plan_strips(published.vae.decoder, 24, 2)


def test_convolutions_computed_with_more_channels_give_the_same_frames(codecs):
    published = codecs[0]
    fused = make_codec(WAN if published.vae.config.patch_size is None else PATCHED)
    fuse_decoder(fused, multiple=6)  # 8 -> 12, 16 -> 18, 32 -> 36
    latents = latents_of(4, 6)
    torch.testing.assert_close(fused.decode(latents), published.decode(latents), atol=1e-5, rtol=0)
    blocks = [m for m in fused.vae.decoder.modules() if isinstance(m, FusedResidual)]
    widths = {block.weight(index).shape[1] for block in blocks for index in (0, 1)}
    assert widths <= {12, 18, 36}
    assert fused.state_dict().keys() == published.state_dict().keys()
    for codec in (published, fused):
        for weight in codec.vae.decoder.parameters():
            weight.mul_(1.1)
    apply(fused, FUSED)  # takes the new weights
    torch.testing.assert_close(fused.decode(latents), published.decode(latents), atol=1e-5, rtol=0)


def test_a_few_channels_are_not_padded_to_many(codecs):
    blocks = [m for m in codecs[1].vae.decoder.modules() if isinstance(m, FusedResidual)]
    assert added_channels(blocks[0].conv1, multiple=64) == 0
    assert blocks[0].weight(0) is blocks[0].conv1.weight


def test_latent_frames_of_a_chunk_are_decoded_together_after_the_first_one(codecs):
    seen = []
    for codec in codecs:
        codec.vae.decoder.conv_in.register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0].shape[2])
        )
        stream = codec.stream()
        for chunk in latents_of(4, 12).split([3, 3, 6], dim=2):
            stream.decode(chunk)
    assert seen == 12 * [1] + [1, 2, 3, 4, 2]


def test_weights_whose_channels_do_not_come_last_give_the_same_frames():
    latents = latents_of(4, 3)
    codec = VideoCodec(make_codec(WAN).vae, memory_format="contiguous")
    codec.vae.to(memory_format=torch.contiguous_format)
    expected = codec.decode(latents)
    apply(codec, FUSED)
    torch.testing.assert_close(codec.decode(latents), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("times", [1, 2])
def test_spread_pixels_are_those_of_the_nearest_neighbour(times):
    x = torch.randn(2, times * 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))
    frames = x.unflatten(1, (times, 3)).permute(0, 3, 1, 2, 4, 5).reshape(-1, 3, 5, 6)
    expected = torch.nn.functional.interpolate(frames, scale_factor=2.0, mode="nearest-exact")
    assert torch.equal(spread(x, times), expected)
    assert torch.equal(spread(x.to(memory_format=torch.channels_last_3d), times), expected)


def test_rows_are_joined_and_added_as_their_formulas_say():
    generator = torch.Generator().manual_seed(0)
    x, before, y = (torch.randn(2, n, 6, generator=generator) for n in (5, 3, 5))
    bias, gamma = torch.randn(2, 6, generator=generator)
    moved = x + bias
    root_mean_square = moved.square().mean(-1, keepdim=True).sqrt()
    activated = torch.nn.functional.silu(moved / root_mean_square * gamma)
    joined = join_normed(x, bias, gamma, before)
    torch.testing.assert_close(joined, torch.cat([before, activated], dim=1))
    wide = join_normed(x, None, gamma, torch.nn.functional.pad(before, (0, 2)))
    assert wide[:, 3:, 6:].abs().max() == 0
    torch.testing.assert_close(
        wide[..., :6], join_normed(x, torch.zeros(6), gamma, before), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(add_with_bias(x, bias, y), x + y + bias)
