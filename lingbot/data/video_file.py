"""MP4 files that grow as a world is driven and stay playable whatever happens to the process.

Every frame is written out as its own fragment, so that a run that is interrupted (even killed
outright) leaves a file that plays up to its last frame but one. Closing the file adds the usual
index, after which it is an ordinary MP4 that seeks everywhere. H.264, 4:2:0, no frame reordering:
an appended frame is encoded at once.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any, cast

import av
import numpy as np
from av.container import OutputContainer
from av.video.stream import VideoStream
from numpy.typing import NDArray

from lingbot.data.file_checks import check_output_file
from lingbot.model.checks import check_count

FASTEST = 240  # frames a second
WORST = 51  # rate factor of x264


class Mp4File:
    """An H.264 file to append frames to; a context manager.

    Args:
        path: where to write; missing folders are made, an existing file is replaced.
        fps: frames a second of playback, 1 to 240.
        quality: x264's constant rate factor, 0 (lossless) to 51 (worst).

    Raises:
        ValueError: a path that cannot be written, values out of range, a frame size that 4:2:0
            video cannot hold, frames of changing sizes, frames that are not uint8 [T, H, W, 3], or
            frames after `close`.
    """

    def __init__(self, path: str | Path, fps: int = 16, quality: int = 18) -> None:
        self.fps = check_count("fps", fps, 1, FASTEST)
        self.quality = check_count("quality", quality, 0, WORST)
        self.path = check_output_file(path)
        self.num_frames = 0
        self._container: OutputContainer | None = None
        self._stream: VideoStream | None = None
        self._closed = False

    def append(self, frames: NDArray[np.uint8]) -> None:
        """Encode frames [T, H, W, 3] and hand them to the operating system before returning."""
        if self._closed:
            raise ValueError(f"{self.path} is closed; open a new Mp4File to write more frames.")
        _check_frames(frames)
        height, width = frames.shape[1:3]
        if self._stream is None:
            self._open(height, width)
        assert self._stream is not None
        assert self._container is not None
        if (self._stream.height, self._stream.width) != (height, width):
            raise ValueError(
                f"{self.path} holds {self._stream.height}x{self._stream.width} frames and was "
                f"given {height}x{width}; a video has one size, start another file for it."
            )
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = self.num_frames
            self._container.mux(self._stream.encode(frame))
            self.num_frames += 1

    def close(self) -> None:
        """Finish the file; closing twice is harmless, and no frames means no file."""
        self._closed = True
        container, stream = self._container, self._stream
        self._container = self._stream = None
        if container is not None and stream is not None:
            container.mux(stream.encode(None))
            container.close()

    def _open(self, height: int, width: int) -> None:
        if height % 2 or width % 2:
            raise ValueError(
                f"{self.path}: frames of {height}x{width} have an odd side, which 4:2:0 video "
                f"cannot hold; crop or pad them to {height + height % 2}x{width + width % 2}."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A fragment a frame, each flushed to the file; `hybrid` rewrites the index when closed.
        muxing = {"movflags": "hybrid_fragmented+frag_every_frame", "flush_packets": "1"}
        self._container = av.open(str(self.path), mode="w", format="mp4", options=muxing)
        encoding = {"crf": str(self.quality), "preset": "veryfast", "tune": "zerolatency"}
        stream = cast(
            VideoStream, self._container.add_stream("libx264", rate=self.fps, options=encoding)
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        self._stream = stream

    def __enter__(self) -> Mp4File:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_frames(path: str | Path) -> NDArray[np.uint8]:
    """Frames of a video file, uint8 [T, H, W, 3]; one cut off in writing gives what is there."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    if not frames:
        raise ValueError(f"{path} holds no video frames.")
    return np.stack(frames)


def _check_frames(frames: Any) -> None:
    if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8:
        kind = getattr(frames, "dtype", type(frames).__name__)
        raise ValueError(f"Frames must be a uint8 array [T, H, W, 3], not {kind}; scale to 0..255.")
    if frames.ndim != 4 or frames.shape[-1] != 3:
        raise ValueError(f"Frames must have the shape [T, H, W, 3], not {list(frames.shape)}.")
