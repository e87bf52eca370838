"""Standard output that does not end a run: a terminal without Unicode, a pipe that is closed."""

from __future__ import annotations

import io
import os
import sys
from typing import Any, TextIO


def make_tolerant() -> None:
    """Lets standard output and error take any letter, and go on when nobody reads them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    sys.stdout, sys.stderr = _Unread(sys.stdout), _Unread(sys.stderr)


class _Unread:
    """A stream that drops what is written once the other end is closed."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None else open(os.devnull, "w")  # noqa: SIM115

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            return len(text)
        except (BrokenPipeError, ValueError):  # ValueError: closed
            self._close()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (BrokenPipeError, ValueError):
            self._close()

    def _close(self) -> None:
        """From here on into nowhere, also for what is still in buffers when the process ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, self._stream.fileno())
        except (OSError, ValueError):
            self._stream = open(os.devnull, "w")  # noqa: SIM115
        finally:
            os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
