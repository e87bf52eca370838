"""How runs end early: by signals at their next step, all ranks at once, with their files complete.

Lightning's own handler speaks to the other ranks from inside the signal, where they may be in the
middle of an exchange, and prediction never looks at what it notes.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import lightning as L

from lingbot.camera.controls import Controls
from lingbot.data.control_stream import ControlStream

log = logging.getLogger(__name__)


class NotedSignals:
    """Takes note of signals, instead of being ended by them wherever the process is.

    Made to be used inside a Trainer's work: Lightning puts all handlers back when that ends. Ctrl-C
    once more ends it there after all.

    Args:
        numbers: the signals. They reach the main thread alone; in another nothing is ever noted.

    Attributes:
        told: number of the last signal, 0 for none.
    """

    def __init__(self, *numbers: signal.Signals) -> None:
        self.numbers, self.told = numbers, 0

    def listen(self) -> None:
        """Take note from here on."""
        self.told = 0
        if threading.current_thread() is threading.main_thread():
            for number in self.numbers:
                signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.told == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.told = number


def end_with_parent(parent: int, grace_s: float = 20.0) -> None:
    """Let this process, a rank that another process has started, end soon after that one does.

    It would wait for it in a meeting or a collective, for as long as those may take.

    Args:
        parent: that process, which may have ended by now. One that is there and has not started
            this one is not followed.
        grace_s: for what this process is about to finish.
    """
    if os.getppid() != parent and process_exists(parent):
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(grace_s)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def process_exists(process: int) -> bool:
    """Whether there is such a process; one that has ended and that nobody waits for is none."""
    try:
        os.kill(process, 0)
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):  # somebody else's; not on Linux
        return True
    return state != "Z"


class Termination(L.Callback):
    """Takes note of SIGTERM while a Trainer predicts; Lightning puts back what was there before.

    Where several ranks drive, also of Ctrl-C: whichever is told, they end at the same step.
    """

    def __init__(self) -> None:
        self._noted = NotedSignals(signal.SIGTERM)
        self._by_others = 0

    @property
    def told(self) -> int:
        """The signal by which this process, or another rank, has been told to end; 0 for none."""
        return self._noted.told or self._by_others

    def tell(self, number: int) -> None:
        """Another rank has been told to end, by this signal."""
        self._by_others = number

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.world_size > 1:
            self._noted = NotedSignals(signal.SIGTERM, signal.SIGINT)
        if trainer.received_sigterm:
            self.tell(signal.SIGTERM)
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
