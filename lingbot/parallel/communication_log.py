"""What every collective of a step cost: name, path, bytes sent, elapsed time.

On CUDA a pair of events brackets the collective on the current stream and is read only when a
taken collective is resolved, so nothing waits inside a step; on the CPU the wall clock does.
Elapsed time includes waiting for slower ranks: compare ranks (max and mean) before calling it the
network's.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

logger = logging.getLogger(__name__)

_NOTHING = nullcontext()


@dataclass(frozen=True)
class Collective:
    """One collective as this rank saw it; `bytes` is what the rank sent to others."""

    name: str
    path: str
    bytes: int
    elapsed_ms: float


@dataclass
class PendingCollective:
    """A recorded collective whose time may still be running on the device."""

    name: str
    path: str
    bytes: int
    elapsed_ms: float = 0.0
    events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def resolve(self) -> Collective:
        """The collective with its time; waits for the device where that has not done it yet."""
        if self.events is not None:
            start, end = self.events
            end.synchronize()
            self.elapsed_ms = start.elapsed_time(end)
        return Collective(self.name, self.path, self.bytes, self.elapsed_ms)


class CommunicationLog:
    """Collectives since the last `clear`, `take` or `collect`.

    Records nothing, at no cost, until somebody asks: the first `clear` (or `take`) starts it and
    `stop` ends it. So a realtime step is `clear(); ...; take()`, and training, where nobody asks,
    pays nothing.

    Args:
        limit: collectives kept at most; beyond it the oldest go, and `collect` says how many.
    """

    def __init__(self, limit: int = 20_000) -> None:
        if limit < 1:
            raise ValueError(f"limit={limit}: a communication log keeps at least one collective")
        self.recording = False
        self._pending: deque[PendingCollective] = deque(maxlen=limit)
        self._dropped = 0

    def record(
        self, name: str, path: str, bytes: int, device: torch.device
    ) -> AbstractContextManager[None]:
        """Bracket one collective that sends `bytes` to other ranks, as a context manager."""
        if not self.recording:
            return _NOTHING
        return self._bracketed(self.begin(name, path, bytes, device))

    def begin(
        self, name: str, path: str, bytes: int, device: torch.device
    ) -> PendingCollective | None:
        """Begin an exchange that some of the code between here and `end` carries out."""
        if not self.recording:
            return None
        pending = PendingCollective(name, path, bytes)
        if device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            pending.events = (start, end)
        else:
            pending.elapsed_ms = -1000 * time.perf_counter()
        return pending

    def end(self, pending: PendingCollective | None) -> None:
        """End what `begin` gave."""
        if pending is None:
            return
        if pending.events is not None:
            pending.events[1].record()
        else:
            pending.elapsed_ms += 1000 * time.perf_counter()
        self._dropped += len(self._pending) == self._pending.maxlen
        self._pending.append(pending)

    @contextmanager
    def _bracketed(self, pending: PendingCollective | None) -> Iterator[None]:
        yield
        self.end(pending)

    def take(self) -> list[PendingCollective]:
        """Take what was recorded without waiting for the device; recording goes on."""
        taken = list(self._pending)
        if self._dropped:
            logger.warning(
                "The communication log dropped %d collectives beyond its limit of %d: collect() or "
                "clear() more often, or stop() it.",
                self._dropped,
                self._pending.maxlen,
            )
        self.clear()
        return taken

    def collect(self) -> list[Collective]:
        """Take what was recorded, waiting for the device to finish it; recording goes on."""
        return [pending.resolve() for pending in self.take()]

    def clear(self) -> None:
        """Forget what was recorded and record from here on."""
        self._pending.clear()
        self._dropped = 0
        self.recording = True

    def stop(self) -> None:
        """Forget what was recorded and record no more until the next `clear`."""
        self.clear()
        self.recording = False
