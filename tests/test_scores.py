"""Scores of a driven world, against generators whose scores are known."""

from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio

from lingbot.codec import frames_to_uint8, uint8_to_frames
from lingbot.data.blockworld_clips import BlockWorldClips
from lingbot.scores import (
    chunk_frames,
    psnr,
    score_chunk,
    score_scenes,
    squared_error,
    summarize,
    through,
    video_length,
)
from tests.model.worlds import small_codec

FRAMES_PER_CHUNK = 2
CHUNKS = (1, 3)


@pytest.fixture(scope="module")
def clips() -> BlockWorldClips:
    return BlockWorldClips("test", 2, video_length(3, FRAMES_PER_CHUNK), height=32, width=48)


def summaries_of(clips, generate, reconstruct=lambda truth: truth):
    scenes = list(score_scenes(clips, generate, reconstruct, FRAMES_PER_CHUNK, CHUNKS))
    assert len(scenes) == len(clips)
    return summarize([scene.score for scene in scenes])


def test_a_perfect_generator_has_no_error_and_follows_the_camera_always(clips):
    for summary in summaries_of(clips, lambda drive, image: clips.render(drive)):
        assert summary.generated == math.inf
        assert summary.compared == len(clips)
        assert summary.control_accuracy == 1.0


def test_repeating_the_first_frame_scores_exactly_the_floor(clips):
    def repeat(drive, image):
        return image.expand(clips.num_frames, -1, -1, -1)

    for summary in summaries_of(clips, repeat):
        assert summary.generated == summary.floor < math.inf
        assert summary.over_floor == 0.0


def test_driving_elsewhere_is_never_taken_for_the_commanded_drive(clips):
    def elsewhere(drive, image):
        return clips.render(clips.drive(drive.seed % 10, variant=2))

    last = summaries_of(clips, elsewhere)[-1]
    assert last.control_accuracy == 0.0
    assert last.generated < last.ceiling


def test_the_codec_s_own_reconstruction_scores_exactly_the_ceiling(clips):
    reconstruct = through(small_codec(), FRAMES_PER_CHUNK)
    made = summaries_of(clips, lambda drive, image: reconstruct(clips.render(drive)), reconstruct)
    assert [s.generated for s in made] == [s.ceiling for s in made]


def test_the_ceiling_is_decoded_as_a_session_decodes(clips):
    codec, truth = small_codec(), clips[0]["frames"]
    with torch.no_grad():
        whole = codec.decode(codec.encode(uint8_to_frames(truth[None])))
    assert torch.equal(through(codec, FRAMES_PER_CHUNK)(truth), frames_to_uint8(whole)[0])


@pytest.mark.parametrize(("frames_per_chunk", "lengths"), [(3, [8, 12, 12]), (4, [12, 16, 16])])
def test_chunks_share_out_all_video_frames_but_the_given_one(frames_per_chunk, lengths):
    parts = [chunk_frames(chunk, frames_per_chunk) for chunk in (1, 2, 3)]
    assert [part.stop - part.start for part in parts] == lengths
    assert parts[0].start == 1
    assert [part.start for part in parts[1:]] == [part.stop for part in parts[:-1]]
    assert video_length(3, frames_per_chunk) == parts[-1].stop


def test_drives_that_show_the_same_frames_are_not_compared():
    truth = torch.randint(256, (5, 8, 8, 3), dtype=torch.uint8)
    other = truth.flip(0)
    score = score_chunk(1, truth, truth, truth, [truth, other], FRAMES_PER_CHUNK)
    assert len(score.others) == 1
    assert score.followed
    alone = score_chunk(1, truth, truth, truth, [truth], FRAMES_PER_CHUNK)
    assert not alone.comparable
    assert not alone.followed


def test_psnr_over_scenes_is_that_of_torchmetrics(clips):
    reconstruct = through(small_codec(), FRAMES_PER_CHUNK)
    metric = PeakSignalNoiseRatio(data_range=255.0)
    for index in range(len(clips)):
        truth = clips[index]["frames"]
        part = chunk_frames(1, FRAMES_PER_CHUNK)
        metric.update(reconstruct(truth)[part].double(), truth[part].double())
    made = summaries_of(clips, lambda drive, image: clips.render(drive), reconstruct)
    assert made[0].ceiling == pytest.approx(metric.compute().item(), abs=1e-4)


def test_the_errors_of_bytes_do_not_wrap_around():
    black, white = (torch.full((1, 2, 2, 3), value, dtype=torch.uint8) for value in (0, 255))
    assert squared_error(black, white) == squared_error(white, black) == 255.0**2
    assert psnr(255.0**2) == 0.0
    assert psnr(1.0) == pytest.approx(48.1308, abs=1e-4)


def test_frames_of_another_shape_or_type_are_refused():
    frames = torch.zeros(2, 4, 4, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\[1, 4, 4, 3\].*uint8 frames of one shape"):
        squared_error(frames, frames[:1])
    with pytest.raises(ValueError, match=r"torch\.float32"):
        squared_error(frames, frames.float())
