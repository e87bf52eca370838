"""The exchange of GPUs that write each other's memory: no collective carries queries, keys, values.

Where a Triton kernel makes q, k and v, it writes them straight into the memory of the rank that
attends with them, keys and values into its history; a barrier is all that is left of the exchange.
Letters as in `lingbot.parallel.exchange`.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from lingbot.model.exchange import PeerTensor, SendBuffer
from lingbot.parallel.communication_log import CommunicationLog, PendingCollective
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.mailbox import Mailbox, SharedMemory
from lingbot.parallel.splits import Splits

PATH = "pushed"


@dataclass(frozen=True)
class Sending:
    """What a send buffer's views are being written to: these tensors will have arrived."""

    arriving: tuple[Tensor, ...]
    mailbox: Mailbox
    pending: PendingCollective | None


class PushedExchange(SequenceExchange):
    """A `SequenceExchange` of one chunk at a time by mailboxes; others, and gradients, by NCCL.

    What `to_heads` and `to_tokens` return lasts until their next exchange of its kind. The log's
    times of q, k, v include the kernel that makes and sends them.

    Args:
        group: the sequence group, see `lingbot.parallel.mailbox.can_push`.
        splits: tokens of a chunk per rank, all equal.
        num_heads: attention heads of the model; a multiple of the group's size.
        device: this rank's.
        log: where each exchange reports its bytes and time, as path "pushed".
        pictures: a group of the same ranks for gathering pictures.
        timeout_s: the longest that a rank waits for another.
        memory, mailbox: make what is written into.

    Raises:
        ValueError: splits, heads and group do not fit, or unequal splits.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        splits: Splits,
        num_heads: int,
        device: torch.device,
        log: CommunicationLog | None = None,
        pictures: dist.ProcessGroup | None = None,
        timeout_s: float = 1800.0,
        memory: type[SharedMemory] = SharedMemory,
        mailbox: type[Mailbox] = Mailbox,
    ) -> None:
        super().__init__(group, splits, num_heads, log, True, pictures)
        self._group, self._device, self._timeout_s = group, device, timeout_s
        self._memory_type, self._mailbox_type = memory, mailbox
        self._mailboxes: dict[tuple[str, int], Mailbox] = {}
        self._shared: WeakSet[SharedMemory] = WeakSet()
        self._sending: Sending | None = None

    @property
    def uncounted_bytes(self) -> int:
        """Memory of this rank that others write and PyTorch's statistics leave out."""
        return sum(shared.uncounted for shared in self._shared)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PeerTensor:
        """Memory for this rank's keys and values that all can write; the ranks make it together."""
        size = torch.Size(shape).numel() * dtype.itemsize
        shared = self._memory_type(self._group, device, size, self._timeout_s)
        self._shared.add(shared)
        return PeerTensor(shared.buffer.view(dtype).view(shape), shared.peers(dtype), shared)

    def send_buffer(
        self, like: Tensor, count: int, shape: tuple[int, ...], slots: PeerTensor | None = None
    ) -> SendBuffer:
        """Views of the ranks' memory: what is written through them needs no more sending.

        They are this rank's own, and `peers` says how far from them those of the ranks lie.
        """
        batch, chunks, local, _, width = shape
        if batch * chunks > 1 or torch.is_grad_enabled():
            return super().send_buffer(like, count, shape, slots)
        self._check_local(local)
        mailbox, inbox = self._inbox(count, width, like.dtype)
        arriving = inbox.unbind(-2)
        peers = kv_peers = mailbox.peers(like.dtype)
        if slots is not None and slots.peers is not None and slots.tensor.dtype == like.dtype:
            arriving = *arriving[: count - 2], *(half.unsqueeze(1) for half in slots.tensor)
            kv_peers = slots.peers
        self._sending = Sending(arriving, mailbox, self._begin(count, local, width, like))
        mine = (self.shard(x, dim=2)[0, 0].unsqueeze(1) for x in arriving)
        views = tuple(x.expand(-1, self.size, -1, -1) for x in mine)
        return SendBuffer(arriving, views, (peers, kv_peers))

    def to_heads(self, packed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """As in `SequenceExchange`; what a send buffer's views have been written to is there."""
        sending, self._sending = self._sending, None
        if sending is None or packed is not sending.arriving:
            (send,) = packed
            if torch.is_grad_enabled() or send.shape[1] * send.shape[2] > 1:
                return super().to_heads(packed)
            sending = self._push(send)
        sending.mailbox.wait()
        self.log.end(sending.pending)
        return sending.arriving

    def to_tokens(self, y: Tensor) -> Tensor:
        """As in `SequenceExchange`."""
        batch, chunks, _, heads, width = y.shape
        if batch * chunks > 1 or torch.is_grad_enabled():
            return super().to_tokens(y)
        local, columns = self.splits.sizes[self.rank], heads * width
        mailbox, inbox = self._turned("out", (local, self.size * columns), y.dtype)
        pending = self._begin(1, local, width, y)
        mailbox.push(y.reshape(self.size, local, columns), inbox, self.rank * columns)
        mailbox.wait()
        self.log.end(pending)
        return inbox.view(1, 1, local, self.num_heads, width)

    def _push(self, send: Tensor) -> Sending:
        """What `pack` made, [r,1,1,L,h,n,D], on its way."""
        local, _, count, width = send.shape[3:]
        self._check_local(local)
        mailbox, inbox = self._inbox(count, width, send.dtype)
        pending = self._begin(count, local, width, send)
        rows, start = inbox.view(self.splits.total, -1), self.splits.start(self.rank)
        mailbox.push(send.reshape(self.size, local, -1), rows, start * rows.shape[1])
        return Sending(inbox.unbind(-2), mailbox, pending)

    def _inbox(self, count: int, width: int, dtype: torch.dtype) -> tuple[Mailbox, Tensor]:
        """Where `count` tensors of this rank's heads of all tokens arrive, [1,1,S,h,n,D]."""
        shape = (1, 1, self.splits.total, self.local_heads, count, width)
        return self._turned(_name(count), shape, dtype)

    def _turned(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype
    ) -> tuple[Mailbox, Tensor]:
        key = name, torch.Size(shape).numel() * dtype.itemsize
        if key not in self._mailboxes:
            make = self._mailbox_type
            self._mailboxes[key] = make(self._group, self._device, key[1], self._timeout_s)
            self._shared.add(self._mailboxes[key])
        self._mailboxes[key].turn()
        return self._mailboxes[key], self._mailboxes[key].inbox(shape, dtype)

    def _begin(self, count: int, local: int, width: int, x: Tensor) -> PendingCollective | None:
        others = self.num_heads - self.local_heads
        sent = count * local * others * width * x.element_size()
        return self.log.begin(_name(count), PATH, sent, self._device)


def _name(count: int) -> str:
    return {1: "out", 2: "kv", 3: "qkv"}[count]
