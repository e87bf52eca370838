"""What ranks tell each other outside of collectives, in which a lost rank takes part no more.

In the store that they met over: it answers while the threads of all ranks wait for each other.
"""

from __future__ import annotations

import itertools
import os
import socket
from pathlib import Path

import torch.distributed as dist

from lingbot.parallel.failure import Failure
from lingbot.termination import process_exists

_boards = itertools.count()  # alike on all ranks, which make theirs in the same order


class RankBoard:
    """Which rank was lost first, which have left, and whether one has been told to end.

    Args:
        store: that all ranks share; a connection of its own is made to it.
        rank: this one.
        ranks: how many there are.
    """

    def __init__(self, store: dist.Store, rank: int, ranks: int) -> None:
        prefix = f"lingbot/ranks/{next(_boards)}"
        self._store = dist.PrefixStore(prefix, store.clone())  # type: ignore[attr-defined]  # missing in the stubs
        self._rank = rank
        self._others = [other for other in range(ranks) if other != rank]
        self._pids: dict[int, tuple[int, str]] = {}
        self._store.set(f"process/{rank}", f"{os.getpid()} {_host()}")

    def post(self, failure: Failure) -> Failure:
        """Post how a rank was lost; returns the one that was posted first."""
        return Failure.from_text(self._store.compare_set("failure", "", failure.to_text()))

    def failure(self) -> Failure | None:
        """The first that was posted."""
        text = self._read("failure")
        return None if text is None else Failure.from_text(text)

    def tell(self, number: int) -> None:
        """Post that this rank has been told to end, by this signal."""
        self._store.set("told", str(number))

    def told(self) -> int:
        """The signal that has told a rank to end, 0 for none."""
        return int(self._read("told") or 0)

    def leave(self) -> None:
        """Post that this rank has nothing left to do with the others."""
        self._store.set(f"left/{self._rank}", "")

    def left(self, rank: int) -> bool:
        """Whether a rank has left."""
        return bool(self._store.check([f"left/{rank}"]))

    def all_left(self) -> bool:
        """Whether all the others have left."""
        return all(self.left(other) for other in self._others)

    def pid(self, rank: int) -> int | None:
        """A rank's process; None before it has come."""
        if rank not in self._pids and (text := self._read(f"process/{rank}")) is not None:
            pid, host = text.split(maxsplit=1)
            self._pids[rank] = int(pid), host
        return self._pids[rank][0] if rank in self._pids else None

    def gone(self) -> list[int]:
        """Ranks of this host whose processes have ended, and that had not left."""
        here = _host()
        return [
            rank
            for rank in self._others
            if (pid := self.pid(rank)) is not None
            and self._pids[rank][1] == here
            and not process_exists(pid)
            and not self.left(rank)
        ]

    def _read(self, key: str) -> str | None:
        return self._store.get(key).decode() if self._store.check([key]) else None


def _host() -> str:
    """Where process ids mean the same: the host, and the container where there is one."""
    namespace = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {os.readlink(namespace) if namespace.is_symlink() else ''}"
