"""Times the named parts of a realtime step without ever waiting for the device inside it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

Mark = float | torch.cuda.Event
Interval = tuple[float, float]  # begin and end in milliseconds since the step began


@dataclass
class StepTimes:
    """A step's spans by name, as intervals, and how long the step took in all."""

    total: float
    spans: dict[str, list[Interval]] = field(default_factory=dict)

    def of(self, name: str) -> list[float]:
        """Milliseconds of every span of that name, in order."""
        return [end - begin for begin, end in self.spans.get(name, [])]

    def overlap(self, one: str, other: str) -> float:
        """Milliseconds during which both ran."""
        pairs = [(a, b) for a in self.spans.get(one, []) for b in self.spans.get(other, [])]
        return sum(max(0.0, min(a[1], b[1]) - max(a[0], b[0])) for a, b in pairs)


class StepClock:
    """On CUDA by events, resolved in `read`; on the CPU by the wall clock.

    Args:
        device: where the work runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._running: list[tuple[Mark, Mark]] = []
        self._spans: list[tuple[str, Mark, Mark]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """What is inside belongs to the step; between two of these the clock stands still."""
        began = self._mark()
        yield
        self._running.append((began, self._mark()))

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Times the work inside, on the current stream, under `name`; names may come up again."""
        began = self._mark()
        yield
        self._spans.append((name, began, self._mark()))

    @property
    def passed(self) -> bool:
        """Whether the device has done all that was marked; never waits."""
        return all(end.query() for end in self._ends() if isinstance(end, torch.cuda.Event))

    def read(self) -> StepTimes:
        """All times; waits for the device where it is not done yet.

        On CUDA the total ends when the last of the streams is done.
        """
        for end in self._ends():
            if isinstance(end, torch.cuda.Event):
                end.synchronize()
        origin = self._running[0][0]
        spans: dict[str, list[Interval]] = {}
        for name, begin, end in self._spans:
            spans.setdefault(name, []).append((_elapsed(origin, begin), _elapsed(origin, end)))
        if self._cuda:
            return StepTimes(max(_elapsed(origin, end) for end in self._ends()), spans)
        return StepTimes(sum(_elapsed(begin, end) for begin, end in self._running), spans)

    def _ends(self) -> list[Mark]:
        return [end for _, end in self._running] + [end for _, _, end in self._spans]

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
