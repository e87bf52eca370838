"""Memory of the GPUs of one host that all of them write, so that rows need no collective to travel.

A mailbox is the same buffer on every rank, mapped by all others (PyTorch's symmetric memory, over
NVLink; no multicast). Whoever makes something for another rank writes it where that rank will read
it, and a barrier says that everybody has. Compared with NCCL's all-to-all nothing is copied through
its own buffers.
"""

from __future__ import annotations

import os
import socket
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

UNIT = 16  # elements: in these are distances between ranks' buffers counted, for aligned writes


class SharedMemory:
    """A buffer of as many bytes on every rank of a group, which all ranks can write.

    Args:
        group: the ranks, see `can_push`. All of them make theirs together.
        device: this rank's.
        bytes: size of a rank's buffer.
        timeout_s: the longest that a rank waits for another.

    Raises:
        RuntimeError: this process may not map the memory of others.
    """

    uncounted = 0  # of its bytes, those that PyTorch's memory statistics leave out

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, bytes: int, timeout_s: float
    ) -> None:
        self.ranks, self.rank = group.size(), group.rank()
        self._timeout_ms = int(1000 * timeout_s)
        self._peers: dict[int, Tensor] = {}
        self.buffer, self._distances = self._allocate(group, device, bytes)

    def _allocate(
        self, group: dist.ProcessGroup, device: torch.device, bytes: int
    ) -> tuple[Tensor, list[int]]:
        """This rank's uint8 buffer and how far from it those of the ranks lie, in bytes."""
        import torch.distributed._symmetric_memory as symmetric_memory

        # nothing is multicast, and hosts are known on which setting that up fails; no other switch
        os.environ.setdefault("TORCH_SYMM_MEM_DISABLE_MULTICAST", "1")
        before = torch.cuda.memory_allocated(device)
        buffer = symmetric_memory.empty(bytes, dtype=torch.uint8, device=device).zero_()
        if torch.cuda.memory_allocated(device) - before < bytes:
            self.uncounted = bytes
        torch.cuda.synchronize(device)  # before anybody else writes there
        try:
            self._handle = symmetric_memory.rendezvous(buffer, group)
        except RuntimeError as error:
            raise RuntimeError(
                "this process may not map the memory of other GPUs' processes, as it is to push to "
                "them: exchange by collectives instead, strategy.push=false"
            ) from error
        bases, own = self._handle.buffer_ptrs, buffer.data_ptr()
        offsets = [0] * self.ranks  # buffers may lie anywhere in what has been mapped
        dist.all_gather_object(offsets, own - bases[self.rank], group=group)
        return buffer, [base + offset - own for base, offset in zip(bases, offsets, strict=True)]

    def peers(self, dtype: torch.dtype) -> Tensor:
        """How far from this rank's buffer each rank's lies: int64 [ranks], in `UNIT` elements."""
        size = dtype.itemsize * UNIT
        if size not in self._peers:
            self._peers[size] = torch.tensor(
                [distance // size for distance in self._distances], device=self.buffer.device
            )
        return self._peers[size]

    def wait(self) -> None:
        """Until all ranks have written what they send; on the device, in stream order."""
        self._handle.barrier(timeout_ms=self._timeout_ms)


class Mailbox(SharedMemory):
    """Memory that others write, in two halves that take turns.

    What has been received lies in the half whose turn it is, and stays until this rank turns and
    waits again: the others write that half only after a barrier that it has entered since.

    Args:
        bytes: size of a half.
    """

    def __init__(
        self, group: dist.ProcessGroup, device: torch.device, bytes: int, timeout_s: float
    ) -> None:
        self._half = -(-bytes // 256) * 256
        super().__init__(group, device, 2 * self._half, timeout_s)
        self._turn = 0

    def turn(self) -> None:
        """The other half from here on; all ranks turn alike."""
        self._turn = 1 - self._turn

    def inbox(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """What this rank receives, in the half whose turn it is."""
        rows = torch.Size(shape).numel() * dtype.itemsize
        start = self._turn * self._half
        return self.buffer[start : start + rows].view(dtype).view(shape)

    def push(self, rows: Tensor, inbox: Tensor, start: int) -> None:
        """Rows [ranks, n, ...] to their ranks: row i of rank r to its `inbox` [n, ...] + `start`.

        Args:
            rows: contiguous.
            inbox: this rank's own, whose rows may lie further apart than they are wide.
            start: element of everybody's inbox that this rank writes from.
        """
        from lingbot.parallel.triton_push import push_rows

        rows = rows.flatten(0, 1).flatten(1)
        width = rows.shape[1]
        push_rows[(len(rows),)](
            rows, inbox, self.peers(rows.dtype), self.ranks, len(rows) // self.ranks, width,
            inbox.stride(0), start, UNIT, 1 << (width - 1).bit_length(), num_warps=8,
        )  # fmt: skip


def can_push(group: dist.ProcessGroup, device: torch.device) -> bool:
    """Whether the ranks of a group are GPUs of one host that reach each other's memory.

    All ranks ask together, and all get the same answer.
    """
    if device.type != "cuda" or group.size() == 1:
        return False
    places: list[tuple[str, int, bool]] = [("", 0, False)] * group.size()
    mine = (_host(), device.index or 0, find_spec("triton") is not None)
    dist.all_gather_object(places, mine, group=group)
    others = [place for place in places if place != mine]
    able = len(others) == group.size() - 1 and all(
        host == mine[0] and has_triton and torch.cuda.can_device_access_peer(mine[1], index)
        for host, index, has_triton in places
        if index != mine[1]
    )
    answers = [False] * group.size()
    dist.all_gather_object(answers, able, group=group)
    return all(answers)


def _host() -> str:
    """This machine: names alone are often the same in containers."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return f"{socket.gethostname()} {boot.read_text().strip() if boot.is_file() else ''}"
