"""SIGTERM ends a drive at its next step, on all ranks at once, with its files complete.

Lightning's own handler is made for training: prediction never looks at what it notes, and it speaks
to the other ranks from inside the signal, where they may be in the middle of an exchange.
"""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import lightning as L

from lingbot.camera.controls import Controls
from lingbot.data.control_stream import ControlStream

log = logging.getLogger(__name__)


class Termination(L.Callback):
    """Takes note of SIGTERM while a Trainer predicts; Lightning puts back what was there before."""

    def __init__(self) -> None:
        self.told = False

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.told = trainer.received_sigterm
        if threading.current_thread() is threading.main_thread():  # others get no signals
            signal.signal(signal.SIGTERM, self._take_note)

    def _take_note(self, number: int, frame: FrameType | None) -> None:
        self.told = True


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
