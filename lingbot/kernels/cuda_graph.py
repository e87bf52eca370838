"""The steady decode as one CUDA graph.

A chunk's decode is hundreds of small kernels, and while the host enqueues them, the context update,
which comes after them, does not start. Once the causal state has its final shape, every chunk
repeats the same kernels on the same memory, so they are recorded once and replayed by a single
launch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from lingbot.codec.streaming import StreamingDecoder

log = logging.getLogger(__name__)

Replay = Callable[[], None]
Record = Callable[[Callable[[], None]], Replay]


def cuda_graph(work: Callable[[], None]) -> Replay:
    """Record `work` on the current stream, which must not be the default one, without doing it.

    Tensors that it makes stay where they are and are made anew by every replay.
    """
    graph = torch.cuda.CUDAGraph()
    # NCCL's watchdog asks for events in a thread of its own, which must not spoil the recording
    with torch.cuda.graph(
        graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
    ):
        work()
    return graph.replay


class GraphedDecoder:
    """Streams one video as `decoder` does, to the bit; the steady chunks by replaying a recording.

    Args:
        decoder: used by nobody else.
        record: makes a recording; tests have one for devices without CUDA.
    """

    def __init__(self, decoder: StreamingDecoder, record: Record = cuda_graph) -> None:
        self.decoder = decoder
        self._record = record
        self._replay: Replay | None = None
        self._following = False  # whether the causal state lies where the recording looks for it

    def reset(self) -> None:
        """Forget the video; the recording serves the next one, too."""
        self.decoder.reset()
        self._following = False

    def pictures(self, latents: Tensor) -> Tensor:
        """Next latents `[B, 16, f, h, w]` to uint8 pictures `[B, T, 8h, 8w, 3]`."""
        return self.decoder.gather(self._strip(latents))

    def _strip(self, latents: Tensor) -> Tensor:
        if self._following and latents.shape == self._latents.shape:
            self._latents.copy_(latents)
            assert self._replay is not None
            self._replay()
            self.decoder.position += latents.shape[2]
            return self._pictures.clone()
        self.decoder.state = list(self.decoder.state)  # the recording's own list stays as it is
        before = self.decoder.state_shapes()
        strip = self.decoder.strip_pictures(latents)
        settled = self.decoder.state_shapes() == before
        if settled and self._replay is None:
            self._start(latents)
        elif settled and latents.shape == self._latents.shape:
            self._keep_state()
        self._following = settled and self.decoder.state is self._state
        return strip

    def _start(self, latents: Tensor) -> None:
        """Record the chunk after this one."""
        self._latents, self._state = latents.clone(), self.decoder.state
        self._replay = self._record(self._advance)
        log.info("Decoding chunks of %d latent frames by a recorded graph.", latents.shape[2])

    def _advance(self) -> None:
        """What is recorded: the latents to pictures, the state changed in place."""
        decoder, position = self.decoder, self.decoder.position
        decoder.state = list(self._state)
        self._pictures = decoder.strip_pictures(self._latents)
        self._keep_state()
        decoder.position = position

    def _keep_state(self) -> None:
        """Bring the decoder's state to where the recording looks for it."""
        for kept, now in zip(self._state, self.decoder.state, strict=True):
            if isinstance(kept, Tensor) and kept is not now:
                kept.copy_(now)
        self.decoder.state = self._state
