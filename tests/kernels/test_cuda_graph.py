"""Decoding by a recording: the frames of the decoder it records, whatever the order of things."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lingbot.codec.split import SplitDecoder
from lingbot.codec.video import VideoCodec
from lingbot.kernels.cuda_graph import GraphedDecoder
from tests.codec.test_split import latents_of, make_codec, rank_of
from tests.codec.test_video import PATCHED, WAN


class Recorder:
    """Records like a CUDA graph: a replay works on the memory there was when it was recorded."""

    def __init__(self) -> None:
        self.recordings, self.replays = 0, 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.recordings += 1
        work_on = work.__self__  # type: ignore[attr-defined]
        inputs, state = work_on._latents, work_on._state
        addresses = [x.data_ptr() for x in (inputs, *state) if x is not None]

        def replay() -> None:
            self.replays += 1
            assert work_on._latents is inputs
            assert work_on.decoder.state is state
            assert [x.data_ptr() for x in (inputs, *state) if x is not None] == addresses
            work()

        return replay


@pytest.fixture(params=[WAN, PATCHED], ids=["wan", "patched"])
def codec(request) -> VideoCodec:
    return make_codec(request.param)


def pictures(decoder, latents: torch.Tensor, cuts: list[int]) -> list[torch.Tensor]:
    return [decoder.pictures(x) for x in latents.split(cuts, dim=2)]


@pytest.mark.parametrize(
    ("cuts", "replays"),
    [([3, 3, 3, 3], 2), ([1, 1, 1, 1, 1], 2), ([3, 3, 2, 3, 3, 3], 2), ([2, 3, 3], 1)],
)
def test_recorded_chunks_are_those_of_the_decoder_to_the_bit(codec, cuts, replays):
    latents, record = latents_of(4, sum(cuts)), Recorder()
    expected = pictures(codec.stream(), latents, cuts)
    decoder = GraphedDecoder(codec.stream(), record)
    made = pictures(decoder, latents, cuts)
    assert all(torch.equal(*pair) for pair in zip(made, expected, strict=True))
    assert (record.recordings, record.replays) == (1, replays)
    assert decoder.decoder.position == sum(cuts)


def test_one_recording_serves_every_video_of_a_session(codec):
    latents, record = latents_of(4, 24), Recorder()
    decoder = GraphedDecoder(codec.stream(), record)
    for video in latents.chunk(2, dim=2):
        expected = pictures(codec.stream(), video, [3, 3, 3, 3])
        made = pictures(decoder, video, [3, 3, 3, 3])
        assert all(torch.equal(*pair) for pair in zip(made, expected, strict=True))
        decoder.reset()
    assert (record.recordings, record.replays) == (1, 4)


def test_strips_are_recorded_without_their_exchange(codec):
    latents, record = latents_of(24, 9), Recorder()
    gathered = []
    decoder = SplitDecoder(codec, rank_of(2, 1), 24)
    decoder.gather = gathered.append
    pictures(GraphedDecoder(decoder, record), latents, [3, 3, 3])
    plain = SplitDecoder(codec, rank_of(2, 1), 24)
    expected = [plain.strip_pictures(x) for x in latents.split(3, dim=2)]
    assert all(torch.equal(*pair) for pair in zip(gathered, expected, strict=True))
    assert record.replays == 1


def test_latents_that_do_not_continue_the_video_are_refused_also_by_a_recording(codec):
    decoder = GraphedDecoder(codec.stream(), Recorder())
    pictures(decoder, latents_of(4, 9), [3, 3, 3])
    with pytest.raises(ValueError, match="do not continue a stream"):
        decoder.pictures(latents_of(6, 3))
