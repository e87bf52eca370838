"""How the loss of a rank is told: once, in one line, by one rank, however many notice it.

When a rank is lost the others fail too, in whatever exchange they are. What those raise says
nothing but that somebody is gone: it is followed to the rank that was first.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from textwrap import shorten

import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lingbot.errors import UserError

LONGEST = 500  # letters of an error's own message
ENDING = (signal.SIGINT, signal.SIGTERM)  # which commands answer with an exit code of their own
OF_COLLECTIVES = ("gloo/transport", "Connection closed by peer", "NCCL")


class OtherRankFailed(RuntimeError):
    """This rank cannot go on because another one has failed."""


@dataclass(frozen=True)
class Failure:
    """How a rank was lost.

    Attributes:
        rank: which one.
        pid: its process.
        what: what has become of it, as in "died of signal 9".
        where: how far it was, as in "at realtime step 12"; empty where nobody knows.
        code: exit code that a command ends with for it.
        log: the file that has its traceback.
        present: whether it was there to say so itself.
        killed: whether a signal has ended it.
    """

    rank: int
    pid: int
    what: str
    where: str = ""
    code: int = 1
    log: str | None = None
    present: bool = False
    killed: bool = False

    @classmethod
    def of_exit(cls, rank: int, pid: int, code: int) -> Failure:
        """Of a process that has ended with this code; negative ones are signals."""
        if code < 0:
            ended = 128 - code if -code in ENDING else 1
            return cls(rank, pid, f"died of signal {-code}", code=ended, killed=True)
        known = (2, *(128 + number for number in ENDING))
        return cls(rank, pid, f"ended with exit code {code}", code=code if code in known else 1)

    @classmethod
    def of_error(cls, rank: int, error: BaseException, where: str) -> Failure:
        """Of this process, for what it has raised; the traceback goes to its log file."""
        if is_interrupt(error):
            what, code = "was interrupted", 128 + signal.SIGINT
        else:
            message = shorten(str(error), LONGEST) if str(error) else ""
            name = type(error).__name__
            what = f"raised {name}: {message}" if message else f"raised {name}"
            code = 2 if isinstance(error, UserError) else 1
        # what the first rank raises is shown where it is raised
        shown = rank == 0 or is_interrupt(error)
        log = None if shown else log_quietly("Failed", error)
        return cls(rank, os.getpid(), what, where, code, log, present=True)

    def to_text(self) -> str:
        """To be sent to another rank."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str | bytes) -> Failure:
        """What `to_text` has made."""
        return cls(**json.loads(text))

    @property
    def teller(self) -> int:
        """The rank that tells the user of it: the first one that is left."""
        return 0 if self.rank > 0 or self.present else 1

    def sentence(self, where: str, kept: str, others: bool = True) -> str:
        """The line that tells of it.

        Args:
            where: how far the teller was; the lost rank knew better, if it has said so.
            kept: what is left of the work.
            others: whether there are other ranks.
        """
        parts = [f"rank {self.rank} (pid {self.pid}) {self.what} {self.where or where}"]
        parts += [*(["the others were ended"] if others else []), kept]
        if self.log is not None:
            parts.append(f"its traceback is in {self.log}")
        return "; ".join(parts)


class RankFailure(RuntimeError):
    """A rank was lost, and this one has ended for it.

    Args:
        line: tells of it.
        failure: how it was lost.
        teller: whether this rank is the one that tells the user.
    """

    def __init__(self, line: str, failure: Failure, teller: bool) -> None:
        super().__init__(line)
        self.failure, self.teller = failure, teller


def is_follow_up(error: BaseException) -> bool:
    """Whether an error says no more than that another rank does not answer."""
    return any(
        isinstance(one, (dist.DistError, OtherRankFailed))
        or (isinstance(one, RuntimeError) and any(word in str(one) for word in OF_COLLECTIVES))
        for one in _chain(error)
    )


def is_interrupt(error: BaseException) -> bool:
    """Whether this is Ctrl-C, or what Lightning makes of it."""
    return isinstance(error, KeyboardInterrupt) or (
        isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt)
    )


def is_orderly(error: BaseException) -> bool:
    """Whether an exception ends a run that was told to end."""
    return isinstance(error, SIGTERMException) or is_interrupt(error)


def log_quietly(message: str, error: BaseException | None = None) -> str | None:
    """Writes to the log files of this process, with an error's traceback; not to its terminal.

    Returns:
        The first of those files.
    """
    handlers = (h for h in logging.getLogger().handlers if isinstance(h, logging.FileHandler))
    files = [handler for handler in handlers if handler.baseFilename != os.devnull]
    trace = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, message, (), trace)
    for file in files:
        file.handle(record)
    return files[0].baseFilename if files else None


def tell(line: str) -> None:
    """Writes a line to standard error, from any thread."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        one = one.__cause__
