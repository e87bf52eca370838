"""How frames leave a session: decoded and brought to the host, ahead of everything else.

On CUDA that happens on a stream of its own, which waits for the clean chunk alone, so the context
update can run beside it; the stream comes first where both want the device. The host waits for the
copy, into pinned memory, and for nothing else. On the CPU there is nothing to overlap.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lingbot.codec.streaming import PictureStream
from lingbot.realtime.clock import StepClock


@dataclass(frozen=True)
class Delivery:
    """Frames on their way to the host."""

    frames: Tensor
    finite: Tensor  # whether the chunk's latents are
    arrived: torch.cuda.Event | None

    def wait(self) -> Tensor:
        """Frames uint8 [T, H, W, 3] on the CPU, once they are there."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.frames


class FrameOutlet:
    """Decodes the chunks of one video.

    Args:
        decoder: streams the video.
        device: where the clean chunks are.
    """

    def __init__(self, decoder: PictureStream, device: torch.device) -> None:
        self._decoder = decoder
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    def reset(self) -> None:
        """The next chunk begins a new video."""
        self._decoder.reset()

    def send(self, clean: Tensor, clock: StepClock) -> Delivery:
        """Clean latents [1, 16, f, h, w] on their way to frames, timed as `decode`.

        The caller keeps `clean` until the delivery has been waited for.
        """
        if self._stream is None:
            with clock.span("decode"):
                return Delivery(self._decoder.pictures(clean)[0], clean.isfinite().all(), None)
        self._stream.wait_stream(torch.cuda.current_stream(clean.device))
        with torch.cuda.stream(self._stream):
            with clock.span("decode"):
                pictures = self._decoder.pictures(clean)[0]
                frames = torch.empty_like(pictures, device="cpu", pin_memory=True)
                frames.copy_(pictures, non_blocking=True)
                finite = torch.empty((), dtype=torch.bool, pin_memory=True)
                finite.copy_(clean.isfinite().all(), non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return Delivery(frames, finite, arrived)
