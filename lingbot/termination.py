"""Signals that end a run at its next step, on all ranks at once, with its files complete.

Lightning's own handler speaks to the other ranks from inside the signal, where they may be in the
middle of an exchange, and prediction never looks at what it notes.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import lightning as L

from lingbot.camera.controls import Controls
from lingbot.data.control_stream import ControlStream

log = logging.getLogger(__name__)


class NotedSignals:
    """Takes note of signals, instead of being ended by them wherever the process is.

    Ctrl-C once more ends it there after all.

    Args:
        numbers: the signals, of which others than the main thread get none.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.numbers, self.told = numbers, 0
        self._before: dict[signal.Signals, Any] = {}

    def listen(self) -> None:
        """Take note from here on."""
        self.told = 0
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in self.numbers}

    def put_back(self) -> None:
        """Leave signals to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.told == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.told = number


class Termination(L.Callback):
    """Takes note of SIGTERM while a Trainer predicts; Lightning puts back what was there before."""

    def __init__(self) -> None:
        self._noted = NotedSignals(signal.SIGTERM)
        self._earlier = False

    @property
    def told(self) -> bool:
        """Whether the process has been told to end."""
        return self._earlier or self._noted.told > 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._earlier = trainer.received_sigterm
        self._noted.listen()


class UntilTerminated:
    """A drive that ends early once its process has been told to end.

    Where ranks share it, the first one reads for all: they end at the same step.
    """

    def __init__(self, drive: ControlStream, termination: Termination) -> None:
        self.drive, self.termination = drive, termination

    def __len__(self) -> int:
        return len(self.drive)

    def __iter__(self) -> Iterator[Controls]:
        for step, controls in enumerate(self.drive):
            if self.termination.told:
                log.info("Terminated after %d of %d realtime steps", step, len(self))
                return
            yield controls
