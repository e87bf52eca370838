"""How a command ends: with which exit code, and in which words where it is not a traceback."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from typing import Any, NoReturn

from lightning.pytorch.utilities.exceptions import SIGTERMException

from lingbot.parallel.failure import RankFailure, is_interrupt, tell

OWN_ERRORS = "LINGBOT_OWN_ERRORS"  # HYDRA_FULL_ERROR is our doing, not the user's


def shows_all() -> bool:
    """Whether the user wants tracebacks; Hydra is made to leave errors to us."""
    asked = os.environ.get("HYDRA_FULL_ERROR") == "1" and OWN_ERRORS not in os.environ
    if not asked:
        os.environ["HYDRA_FULL_ERROR"] = os.environ[OWN_ERRORS] = "1"
    return asked


def exit_code(end: SystemExit, began: bool, rank: int) -> Any:
    """As shells expect of a process that a signal ends: 130 for Ctrl-C, 143 for SIGTERM.

    Args:
        end: what has been raised.
        began: whether the configuration could be composed.
        rank: of this process.
    """
    if isinstance(end, SIGTERMException):
        # launchers take another rank's code for a failure
        return 128 + signal.SIGTERM if rank == 0 else 0
    if is_interrupt(end):
        return 128 + signal.SIGINT
    # Hydra has said what it could not compose; that is bad input too
    return 2 if end.code == 1 and not began else end.code


def interrupted(name: str, rank: int) -> NoReturn:
    """Ends a command that Ctrl-C has interrupted."""
    if rank == 0:
        tell(f"lingbot-{name}: interrupted")
    raise SystemExit(128 + signal.SIGINT)


def end_for_rank(name: str, lost: RankFailure, rank: int) -> NoReturn:
    """Ends a command of which a rank was lost; one rank says so.

    The others end at once: the first one waits for them.
    """
    if lost.teller:
        tell(f"lingbot-{name}: {lost}")
    if rank > 0:
        for worker in multiprocessing.active_children():
            worker.kill()
        sys.stdout.flush()
        os._exit(lost.failure.code)
    raise SystemExit(lost.failure.code)
