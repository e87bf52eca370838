"""Runs a function on several ranks: one process each, a gloo group between them, nothing left over.

    results = run_ranks(function, 4, argument)    # [function(0, argument), ...]

`function` is defined at the top level of a module (processes import it by name) and is called as
`function(rank, *args)` with the process group set up; arguments and results are pickled.
`LOCAL_RANK` is set, so a Lightning Trainer made inside joins these processes and launches no more;
with `group=False` neither group nor variables are set up.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# a server that has imported the slow libraries once and forks a rank in a few milliseconds
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["lingbot.generate", "lingbot.train"])


def run_ranks(
    function: Callable[..., Any],
    ranks: int,
    *args: Any,
    timeout: float = 120.0,
    group: bool = True,
) -> list[Any]:
    """What `function(rank, *args)` returned on each of `ranks` ranks, in their order.

    Raises:
        RuntimeError: a rank failed (with its traceback) or was not done in `timeout` seconds (with
            where every rank was then). The other ranks are killed.
    """
    with tempfile.TemporaryDirectory() as folder:
        workers, connections = [], []
        try:
            for rank in range(ranks):
                receiver, sender = processes.Pipe(duplex=False)
                arguments = (sender, folder, timeout, group, function, rank, ranks, args)
                worker = processes.Process(target=_rank, args=arguments, name=f"rank {rank}")
                worker.start()
                sender.close()
                workers.append(worker)
                connections.append(receiver)
            results = _results(connections, function.__name__, Path(folder), timeout)
            for worker in workers:
                worker.join(timeout=5)
            return results
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def _results(connections: list[Connection], name: str, folder: Path, timeout: float) -> list[Any]:
    results: dict[int, Any] = {}
    deadline = time.monotonic() + timeout
    while len(results) < len(connections):
        waiting = [c for rank, c in enumerate(connections) if rank not in results]
        ready = wait(waiting, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            missing = [rank for rank in range(len(connections)) if rank not in results]
            where = "\n".join(_stack(folder / f"stack{rank}") for rank in missing)
            raise RuntimeError(f"{name}: ranks {missing} not done after {timeout} s\n{where}")
        for connection in ready:
            rank = connections.index(connection)
            try:
                failure, results[rank] = pickle.loads(connection.recv_bytes())
            except EOFError:
                failure = "the process died without a traceback"
            if failure:
                raise RuntimeError(f"{name} failed on rank {rank}:\n{failure}")
    return [results[rank] for rank in range(len(connections))]


def _stack(path: Path) -> str:
    """Where a hanging rank is; it writes that when its own time is up, a little after ours."""
    for _ in range(100):
        if path.exists() and path.stat().st_size:
            break
        time.sleep(0.1)
    return f"{path.name}: {path.read_text() if path.exists() else 'never started'}"


def _rank(
    sender: Connection,
    folder: str,
    timeout: float,
    group: bool,
    function: Callable[..., Any],
    rank: int,
    ranks: int,
    args: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    with open(Path(folder, f"stack{rank}"), "w") as stack:
        faulthandler.dump_traceback_later(timeout, file=stack)
        try:
            if group:
                os.environ.update(LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(ranks))
                dist.init_process_group(
                    "gloo",
                    init_method=f"file://{folder}/rendezvous",
                    rank=rank,
                    world_size=ranks,
                    timeout=timedelta(seconds=timeout + 5),
                )
            answer = pickle.dumps((None, function(rank, *args)))
            if group:
                dist.barrier()
                dist.destroy_process_group()
        except BaseException:
            answer = pickle.dumps((traceback.format_exc(), None))
        finally:
            faulthandler.cancel_dump_traceback_later()
    sender.send_bytes(answer)
    sender.close()
