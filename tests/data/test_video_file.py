"""MP4 files: what is written comes back, whatever ends the writer."""

from __future__ import annotations

import signal
import subprocess
import sys

import av
import numpy as np
import pytest

from lingbot.data.video_file import Mp4File, read_frames

WRITE_AND_DIE = """
import os, signal, sys
import numpy as np
from lingbot.data.video_file import Mp4File

video = Mp4File(sys.argv[1])
for chunk in range(5):
    video.append(np.full((12, 96, 160, 3), 40 * chunk, np.uint8))
os.kill(os.getpid(), signal.SIGKILL)
"""


def _moving(length: int, height: int = 96, width: int = 160) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    pictures = [np.stack([x + 3 * t, y + t, (x + y) // 2], -1) % 230 for t in range(length)]
    return np.stack(pictures).astype(np.uint8)


def test_frames_come_back_within_30_db_at_the_pace_they_were_given(tmp_path):
    frames = _moving(21)
    with Mp4File(tmp_path / "new" / "folder" / "a.mp4", fps=16) as video:
        video.append(frames[:9])
        video.append(frames[9:])
    back = read_frames(video.path)
    assert back.shape == frames.shape
    error = np.mean((back.astype(float) - frames) ** 2)
    assert 10 * np.log10(255**2 / error) > 30
    with av.open(str(video.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == 16
        assert float(stream.duration * stream.time_base) == pytest.approx(21 / 16)


def test_a_writer_that_is_killed_leaves_all_but_its_last_frame(tmp_path):
    path = tmp_path / "killed.mp4"
    writer = subprocess.run([sys.executable, "-c", WRITE_AND_DIE, str(path)], check=False)
    assert writer.returncode == -signal.SIGKILL
    frames = read_frames(path)
    assert len(frames) >= 59
    np.testing.assert_allclose(frames[::12].mean((1, 2, 3)), [0, 40, 80, 120, 160], atol=4)


def test_an_exception_inside_the_context_still_closes_the_file(tmp_path):
    def write_and_fail(video: Mp4File) -> None:
        with video:
            video.append(_moving(5))
            raise KeyError("stop")

    video = Mp4File(tmp_path / "a.mp4")
    with pytest.raises(KeyError, match="stop"):
        write_and_fail(video)
    assert len(read_frames(video.path)) == 5
    with pytest.raises(ValueError, match="closed"):
        video.append(_moving(1))


def test_no_frames_make_no_file_and_closing_twice_is_harmless(tmp_path):
    video = Mp4File(tmp_path / "a.mp4")
    video.close()
    video.close()
    assert not video.path.exists()


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 95, 160, 3), np.uint8), "95x160 have an odd side.*96x160"),
        (np.zeros((2, 96, 160, 3), np.float32), "uint8 array .* not float32"),
        (np.zeros((96, 160, 3), np.uint8), r"shape \[T, H, W, 3\], not \[96, 160, 3\]"),
        (np.zeros((2, 3, 96, 160), np.uint8), r"not \[2, 3, 96, 160\]"),
    ],
)
def test_frames_a_video_cannot_hold_are_refused(tmp_path, frames, message):
    with Mp4File(tmp_path / "a.mp4") as video, pytest.raises(ValueError, match=message):
        video.append(frames)


def test_a_change_of_size_is_refused_and_what_was_written_stays(tmp_path):
    with Mp4File(tmp_path / "a.mp4") as video:
        video.append(_moving(4))
        with pytest.raises(ValueError, match="holds 96x160 frames and was given 48x80"):
            video.append(_moving(4, 48, 80))
    assert len(read_frames(video.path)) == 4
