"""Runs a command's real `main` on an input, in a process of its own, and says how it answered.

Importing torch takes seconds and a refusal milliseconds, so a server imports everything once and is
forked for each input: its processes share nothing else, and may hang or die without harm.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TRACEBACK = "Traceback (most recent call last)"
MAINS = {
    **{f"lingbot-{name}": f"lingbot.{name}" for name in (
        "generate", "train", "evaluate", "bench", "drift", "parity",
    )},
    "lingbot.world": "lingbot.world",
}  # fmt: skip
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload([*MAINS.values(), "tests.bad_inputs.answers"])


@dataclass(frozen=True)
class Answer:
    """How a command ended.

    Args:
        kind: refused, accepted, traceback, hang, or "exit N".
        said: the last of what it printed.
    """

    kind: str
    said: str


def answer(command: str, options: list[str], limit_s: float = 60.0) -> Answer:
    """Runs a command in an empty folder and waits for its end, at most so many seconds."""
    folder = Path(tempfile.mkdtemp(prefix="bad-input-"))
    try:
        process = _server.Process(target=_run, args=(command, options, str(folder)))
        process.start()
        process.join(limit_s)
        hangs = process.is_alive()
        with suppress(ProcessLookupError):
            os.killpg(process.pid or 0, signal.SIGKILL)  # and whatever it has started
        process.join()
        said = (folder / "said").read_text(errors="replace")
        return Answer("hang" if hangs else _kind(process.exitcode, said), said[-2000:])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _kind(code: int | None, said: str) -> str:
    if TRACEBACK in said:
        return "traceback"
    return {0: "accepted", 2: "refused"}.get(code or 0, f"exit {code}")


def _run(command: str, options: list[str], folder: str) -> None:
    """The process: everything printed goes into a file, and its exit code is the command's."""
    os.setsid()
    os.chdir(folder)
    said = os.open("said", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    sys.argv = [command, *options]
    code: object = 1
    try:
        code = importlib.import_module(MAINS[command]).main() or 0
    except SystemExit as end:
        code = end.code if end.code is not None else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)
