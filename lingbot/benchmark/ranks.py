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
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch
import torch.distributed as dist

from lingbot.benchmark.measure import Measurement
from lingbot.benchmark.plan import Plan
from lingbot.benchmark.records import RankRecord
from lingbot.benchmark.settings import Setting
from lingbot.termination import end_with_parent

_processes = multiprocessing.get_context("spawn")  # CUDA does not survive a fork


def measure_on(
    ranks: int, settings: Sequence[Setting], plan: Plan, tell: Callable[[str], None]
) -> list[RankRecord]:
    """What `ranks` ranks measured, in their order.

    Args:
        tell: is told in words how far the first rank is.

    Raises:
        RuntimeError: a rank failed (with its traceback), died, or all were silent for
            `plan.timeout_s`. The others are killed.
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
            records = _listen(connections, plan.timeout_s, tell)
            for worker in workers:
                worker.join(timeout=30)
            return records
        finally:
            for worker in workers:
                worker.kill()
                worker.join()


def _listen(
    connections: list[Connection], timeout_s: float, tell: Callable[[str], None]
) -> list[RankRecord]:
    records: dict[int, RankRecord] = {}
    ranks = len(connections)
    heard = time.monotonic()
    while len(records) < ranks:
        waiting = [c for rank, c in enumerate(connections) if rank not in records]
        ready = wait(waiting, max(0.0, heard + timeout_s - time.monotonic()))
        if not ready:
            missing = [rank for rank in range(ranks) if rank not in records]
            raise RuntimeError(
                f"ranks {missing} of {ranks} have said nothing for {timeout_s:g} s: they hang, or "
                "need a longer timeout_s"
            )
        heard = time.monotonic()
        for connection in ready:
            assert isinstance(connection, Connection)
            rank = connections.index(connection)
            try:
                kind, content = pickle.loads(connection.recv_bytes())
            except EOFError:
                kind, content = "failed", "the process died without a traceback (out of memory?)"
            if kind == "failed":
                raise RuntimeError(f"rank {rank} of {ranks} failed:\n{content}")
            if kind == "measured":
                records[rank] = content
            elif rank == 0:
                tell(content)
    return [records[rank] for rank in range(ranks)]


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
    except BaseException:
        _send(sender, "failed", traceback.format_exc())
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
