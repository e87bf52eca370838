"""The video of a drive: what is written, when it can be played, and who writes it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from lingbot.callbacks import VideoWriter
from lingbot.data.video_file import read_frames
from tests.callbacks.toy_drive import FRAMES, ToyDrive, drive, frames_of


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    error = np.mean((a.astype(float) - b.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def test_a_drive_is_written_frame_by_frame_with_its_first_frame_beside_it(tmp_path):
    drive(tmp_path, ToyDrive(), 3, [VideoWriter(tmp_path / "out" / "drive.mp4")])
    truth = np.concatenate([frames_of(step) for step in range(3)])
    written = read_frames(tmp_path / "out" / "drive.mp4")
    assert written.shape == truth.shape
    assert _psnr(written, truth) > 30
    first = np.asarray(Image.open(tmp_path / "out" / "first_frame.png"))
    np.testing.assert_array_equal(first, truth[0])


def test_a_second_drive_starts_a_new_video(tmp_path):
    writer = VideoWriter(tmp_path / "drive.mp4", first_frame=False)
    drive(tmp_path, ToyDrive(), 3, [writer])
    drive(tmp_path, ToyDrive(), 1, [writer])
    assert len(read_frames(tmp_path / "drive.mp4")) == FRAMES
    assert not (tmp_path / "first_frame.png").exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_drive_leaves_the_frames_so_far(tmp_path, error):
    writer = VideoWriter(tmp_path / "drive.mp4")
    with pytest.raises((RuntimeError, SystemExit)):
        drive(tmp_path, ToyDrive(fail_at=2, error=error), 4, [writer])
    assert len(read_frames(tmp_path / "drive.mp4")) == 2 * FRAMES


def test_an_encoder_that_fails_ends_the_drive_with_its_own_error(tmp_path):
    module = ToyDrive()
    module.predict_step = lambda batch, batch_idx: np.zeros((4, 95, 160, 3), np.uint8)
    with pytest.raises(ValueError, match=r"95x160 have an odd side.*96x160"):
        drive(tmp_path, module, 3, [VideoWriter(tmp_path / "drive.mp4")])


def test_a_drive_of_no_steps_leaves_no_video(tmp_path):
    drive(tmp_path, ToyDrive(), 0, [VideoWriter(tmp_path / "drive.mp4")])
    assert not (tmp_path / "drive.mp4").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("fps", value) for value in (0, -1, 241, 10**9, 16.5, "16", None, True, float("nan"))),
        *(("quality", value) for value in (-1, 52, 18.5, "18", None, float("inf"))),
    ],
)
def test_wrong_values_are_refused_before_the_drive(tmp_path, option, value):
    with pytest.raises(ValueError, match=f"{option}={value!r}: give a whole number from"):
        VideoWriter(tmp_path / "drive.mp4", **{option: value})


def test_a_path_where_no_video_can_be_written_is_refused_before_the_drive(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file" / "drive.mp4", "/dev/full", "/proc/drive.mp4", ""):
        with pytest.raises(ValueError, match=r"give (a|another|the|that)"):
            VideoWriter(path)
    VideoWriter(tmp_path / "new" / "drive.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    (tmp_path / "first_frame.png").mkdir()
    with pytest.raises(ValueError, match=r"first_frame\.png is a folder"):
        VideoWriter(tmp_path / "drive.mp4")
    VideoWriter(tmp_path / "drive.mp4", first_frame=False)
