"""Starts the ranks of a measurement on this machine, and leaves none behind.

Every count of ranks gets processes of its own, one rank too: no count inherits memory, kernels or
threads from another, and the calling process never touches a GPU. Ranks meet over a file, so no
port has to be free. They end with this process, however it ends.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path

import torch
import torch.distributed as dist

from lingbot.benchmark.measure import Measurement
from lingbot.benchmark.plan import Plan
from lingbot.benchmark.records import RankRecord
from lingbot.benchmark.settings import Setting
from lingbot.parallel.failure import (
    Failure,
    RankFailure,
    is_follow_up,
    is_interrupt,
    log_quietly,
)
from lingbot.termination import end_with_parent

CAUSE_S = 3.0  # until a rank that misses another one is taken at its word

Lost = tuple[Failure, str]  # and its traceback

_processes = multiprocessing.get_context("spawn")  # CUDA does not survive a fork


def measure_on(
    ranks: int, settings: Sequence[Setting], plan: Plan, tell: Callable[[str], None]
) -> list[RankRecord]:
    """What `ranks` ranks measured, in their order.

    Args:
        tell: is told in words how far the first rank is.

    Raises:
        RankFailure: a rank died or raised (whose traceback is the cause and goes to the log file).
        RuntimeError: all were silent for `plan.timeout_s`.
    """
    with tempfile.TemporaryDirectory() as folder:
        workers, connections = [], []
        try:
            for rank in range(ranks):
                receiver, sender = _processes.Pipe(duplex=False)
                arguments = (sender, rank, ranks, settings, plan, Path(folder) / "meeting")
                name = f"rank {rank} of {ranks}"
                worker = _processes.Process(target=_rank, args=arguments, name=name)
                worker.start()
                sender.close()
                workers.append(worker)
                connections.append(receiver)
            records = _listen(connections, workers, plan.timeout_s, tell)
            for worker in workers:
                worker.join(timeout=30)
            return records
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def _listen(
    connections: list[Connection],
    workers: list[SpawnProcess],
    timeout_s: float,
    tell: Callable[[str], None],
) -> list[RankRecord]:
    speaking = dict(enumerate(connections))
    records: dict[int, RankRecord] = {}
    heard, last, ranks = time.monotonic(), "nothing yet", len(connections)
    follower: Lost | None = None  # a rank that only misses another one
    while speaking:
        patience = timeout_s if follower is None else CAUSE_S
        ready = wait(list(speaking.values()), max(0.0, heard + patience - time.monotonic()))
        if not ready:
            break
        heard = time.monotonic()
        for rank in [rank for rank, connection in speaking.items() if connection in ready]:
            try:
                kind, content = pickle.loads(speaking[rank].recv_bytes())
            except EOFError:
                kind, content = "failed", (_ended(rank, workers[rank]), "")
            if kind == "failed":
                raise _failure(content, ranks, last)
            if kind == "told":
                if rank == 0:
                    last = content
                    tell(content)
                continue
            del speaking[rank]
            if kind == "measured":
                records[rank] = content
            else:
                follower = content
    if follower is not None:
        raise _failure(follower, ranks, last)
    if speaking:
        raise RuntimeError(
            f"ranks {list(speaking)} of {ranks} have said nothing for {timeout_s:g} s: they hang, "
            "or need a longer timeout_s"
        )
    return [records[rank] for rank in range(ranks)]


def _ended(rank: int, worker: SpawnProcess) -> Failure:
    """Of a process that says nothing any more."""
    worker.join(timeout=5)
    assert worker.pid is not None
    code = worker.exitcode
    gone = Failure(rank, worker.pid, "closed its connection")
    return gone if code is None else Failure.of_exit(rank, worker.pid, code)


def _failure(lost: Lost, ranks: int, last: str) -> RankFailure:
    failure, trace = lost
    cause = RuntimeError(f"rank {failure.rank} of {ranks} failed:\n{trace}") if trace else None
    if cause is not None:
        failure = replace(failure, log=log_quietly(str(cause)))
    where = f"with ranks={ranks} (last heard: {last})"
    line = failure.sentence(where, "nothing was written", others=ranks > 1)
    error = RankFailure(line, failure, teller=True)
    error.__cause__ = cause
    return error


def _rank(
    sender: Connection,
    rank: int,
    ranks: int,
    settings: Sequence[Setting],
    plan: Plan,
    meeting: Path,
) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    end_with_parent(parent.pid, grace_s=0)  # killed parents cannot clean up
    try:
        torch.set_num_threads(max(1, plan.threads // ranks))
        device = torch.device(plan.device, rank) if plan.device == "cuda" else torch.device("cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        group = _join(rank, ranks, device, meeting, plan.timeout_s) if ranks > 1 else None
        measurement = Measurement(
            settings, plan, device, group, lambda text: _send(sender, "told", text)
        )
        _send(sender, "measured", measurement.run(_name(device)))
        if group is not None:
            dist.destroy_process_group()
    except BaseException as error:
        kind = "followed" if is_follow_up(error) else "failed"
        trace = "" if is_interrupt(error) else traceback.format_exc()
        _send(sender, kind, (Failure.of_error(rank, error, ""), trace))
    finally:
        sender.close()


def _join(
    rank: int, ranks: int, device: torch.device, meeting: Path, timeout_s: float
) -> dist.ProcessGroup:
    # NCCL knows no other switch; multicast buffers are not to be had on every host
    os.environ["NCCL_NVLS_ENABLE"] = "0"
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=ranks,
        timeout=timedelta(seconds=timeout_s),
        device_id=device if device.type == "cuda" else None,
    )
    assert dist.group.WORLD is not None
    return dist.group.WORLD


def _send(sender: Connection, kind: str, content: object) -> None:
    sender.send_bytes(pickle.dumps((kind, content)))


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
