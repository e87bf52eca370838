"""Strips of a picture, decoded by several ranks: put together, they are the whole picture."""

import logging
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from lingbot.codec.split import (
    SplitDecoder,
    block_halos,
    convolution_work,
    make_decoder,
    plan_strips,
)
from lingbot.codec.streaming import StreamingDecoder
from lingbot.codec.video import VideoCodec, build_codec
from lingbot.model import LocalExchange
from lingbot.parallel.communication_log import CommunicationLog
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.splits import even_splits
from tests.codec.test_video import PATCHED, WAN
from tests.distributed import run_ranks

WAN_2_1 = {"base_dim": 96}  # everything else is the published architecture's default


@pytest.fixture(params=[WAN, PATCHED], ids=["wan", "patched"])
def codec(request) -> VideoCodec:
    return make_codec(request.param)


def make_codec(architecture: dict) -> VideoCodec:
    torch.manual_seed(0)
    codec = build_codec(**architecture).eval().requires_grad_(False)
    codec.set_statistics(torch.linspace(-1, 1, 16), torch.linspace(0.5, 2, 16))
    return codec


def latents_of(width: int, frames: int = 4) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 16, frames, 3, width, generator=generator)


def rank_of(size: int, rank: int) -> SimpleNamespace:
    return SimpleNamespace(size=size, rank=rank)


@pytest.mark.parametrize(("width", "ranks"), [(24, 2), (25, 3), (3, 3)])
def test_strips_side_by_side_are_a_decode_of_the_whole_picture_chunk_by_chunk(codec, width, ranks):
    chunks = latents_of(width).split([2, 1, 1], dim=2)
    whole, strips = codec.stream(), []
    expected = [whole.decode_unclamped(chunk) for chunk in chunks]
    for rank in range(ranks):
        decoder = SplitDecoder(codec, rank_of(ranks, rank), width)
        strips.append([decoder.decode_unclamped(chunk) for chunk in chunks])
    for number, frames in enumerate(expected):
        together = torch.cat([strip[number] for strip in strips], dim=-1)
        torch.testing.assert_close(together, frames, atol=1e-5, rtol=0)


@pytest.mark.parametrize("block", [0, 1, 2])
def test_a_halo_reaches_exactly_as_far_as_the_pixels_of_a_strip_depend_on(codec, block):
    decoder, strip = codec.vae.decoder, slice(0, 12 * 8)
    plan = plan_strips(decoder, 24, 2)
    beside, halo = 12 * plan.scales[block], plan.halos[block]

    def with_noise_in(column: int) -> torch.Tensor:
        noise = 100 * torch.randn(1, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0))

        def disturb(module, inputs):
            x = inputs[0].clone()
            x[..., column : column + 1] += noise
            return (x, *inputs[1:])

        hook = decoder.up_blocks[block].register_forward_pre_hook(disturb)
        frames = codec.stream().decode_unclamped(latents_of(24, frames=2))[..., strip]
        hook.remove()
        return frames

    undisturbed = codec.stream().decode_unclamped(latents_of(24, frames=2))[..., strip]
    assert torch.equal(with_noise_in(beside + halo), undisturbed)
    assert not torch.equal(with_noise_in(beside + halo - 1), undisturbed)


def test_a_reset_decoder_begins_a_new_video_and_another_width_is_refused(codec):
    decoder = SplitDecoder(codec, rank_of(2, 1), 24)
    first = decoder.decode(latents_of(24))
    decoder.reset()
    assert torch.equal(decoder.decode(latents_of(24)), first)
    with pytest.raises(ValueError, match="26 columns, but the strips were planned for 24"):
        SplitDecoder(codec, rank_of(2, 1), 24).decode(latents_of(26))


def test_the_published_decoder_at_480x832_does_little_twice():
    with torch.device("meta"):
        decoder = build_codec(**WAN_2_1).vae.decoder
    assert block_halos(decoder) == (13, 12, 10, 7)
    shares = {
        ranks: [plan_strips(decoder, 104, ranks).work(decoder, rank) for rank in range(ranks)]
        for ranks in (1, 2, 4)
    }
    assert shares[1] == [1.0]
    assert max(shares[2]) == pytest.approx(0.536, abs=1e-3)
    assert max(shares[4]) == pytest.approx(0.317, abs=1e-3)


def test_work_is_counted_like_the_weights_that_are_multiplied():
    """At the resolutions at which a one-frame decode of one latent pixel calls them."""
    codec = make_codec(PATCHED)
    counted = []
    for layer in codec.vae.decoder.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Conv3d):
            layer.register_forward_hook(
                lambda layer, _, out: counted.append(
                    layer.weight.numel() * out.numel() // out.shape[1]
                )
            )
    stream = codec.stream()
    stream.decode(torch.zeros(1, 16, 2, 1, 1))
    counted.clear()
    stream.decode(torch.zeros(1, 16, 1, 1, 1))
    attention = sum(
        layer.weight.numel()
        for layer in codec.vae.decoder.mid_block.modules()
        if isinstance(layer, torch.nn.Conv2d)
    )
    assert sum(convolution_work(codec.vae.decoder)) == sum(counted)
    assert attention > 0  # its 1x1 convolutions are among them


def test_the_way_to_decode_is_chosen_by_name_and_logged(codec, caplog):
    caplog.set_level(logging.INFO)
    assert isinstance(make_decoder(codec, rank_of(2, 0), 24, "split"), SplitDecoder)
    assert "split into strips" in caplog.text
    assert type(make_decoder(codec, rank_of(2, 0), 24, "whole")) is StreamingDecoder
    assert "(decode=whole)" in caplog.text
    assert isinstance(make_decoder(codec, rank_of(2, 0), 2, "split"), SplitDecoder)
    assert type(make_decoder(codec, LocalExchange(4), 24, "split")) is StreamingDecoder
    with pytest.raises(ValueError, match="3 ranks cannot share 2 columns"):
        make_decoder(codec, rank_of(3, 0), 2, "split")
    with pytest.raises(ValueError, match=r"decode='half'.*auto.*split.*whole"):
        make_decoder(codec, LocalExchange(4), 24, "half")


def test_by_default_strips_are_decoded_off_the_cpu_alone_where_they_save_work(codec, caplog):
    """A CPU's kernels may round a strip otherwise than the whole picture; AMX's do in bfloat16."""
    caplog.set_level(logging.INFO)
    assert type(make_decoder(codec, rank_of(2, 0), 24)) is StreamingDecoder
    assert type(make_decoder(codec.bfloat16(), rank_of(2, 0), 24)) is StreamingDecoder
    assert "whole pictures on every rank (decode=auto)" in caplog.text
    elsewhere = codec.to("meta")  # nothing is computed
    assert isinstance(make_decoder(elsewhere, rank_of(2, 0), 24), SplitDecoder)
    assert type(make_decoder(elsewhere, rank_of(2, 0), 2)) is StreamingDecoder
    assert "since strips with halos need" in caplog.text


def pictures_on_a_rank(rank: int, ranks: int, uniform: bool | None) -> tuple:
    log = CommunicationLog()
    splits = even_splits(12, ranks)
    exchange = SequenceExchange(dist.group.WORLD, splits, 12, log, uniform=uniform)
    decoder = SplitDecoder(make_codec(PATCHED), exchange, 10)
    log.clear()
    pictures = torch.cat([decoder.pictures(x) for x in latents_of(10).split(2, dim=2)], dim=1)
    return pictures, [(c.name, c.path, c.bytes) for c in log.collect()]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("ranks", "uniform", "path"),
    [(2, None, "uniform"), (2, False, "variable"), (3, None, "variable")],
)
def test_gathered_pictures_are_whole_on_every_rank_and_their_exchange_is_logged(
    ranks, uniform, path
):
    expected = make_codec(PATCHED).stream().pictures(latents_of(10)).int()
    widths = even_splits(10, ranks).sizes
    for rank, (pictures, logged) in enumerate(run_ranks(pictures_on_a_rank, ranks, ranks, uniform)):
        assert pictures.dtype == torch.uint8
        assert (pictures.int() - expected).abs().max() <= 1  # rounding to 8 bits
        column = 24 * 8 * 3 * (ranks - 1)  # bytes of a latent column of a frame, to all others
        assert logged == [("frames", path, n * column * widths[rank]) for n in (5, 8)]
