"""Times the named parts of a realtime step without ever waiting for the device inside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

Mark = float | torch.cuda.Event


class StepClock:
    """On CUDA by events, resolved in `read`; on the CPU by the wall clock.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self.start()

    def start(self) -> None:
        """Begins a step; the spans of the last one are forgotten."""
        self._spans: list[tuple[str, Mark, Mark]] = []
        self._began = self._mark()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times the work inside under `name`; a name may come up several times."""
        began = self._mark()
        yield
        self._spans.append((name, began, self._mark()))

    def read(self) -> dict[str, list[float]]:
        """Milliseconds of every span by name, and of the step so far as `total`."""
        ended = self._mark()
        if isinstance(ended, torch.cuda.Event):
            ended.synchronize()
        times: dict[str, list[float]] = {"total": [_elapsed(self._began, ended)]}
        for name, begin, end in self._spans:
            times.setdefault(name, []).append(_elapsed(begin, end))
        return times

    def _mark(self) -> Mark:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _elapsed(begin: Mark, end: Mark) -> float:
    if isinstance(begin, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return begin.elapsed_time(end)
    assert not isinstance(end, torch.cuda.Event)
    return 1000 * (end - begin)
