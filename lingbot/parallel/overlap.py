"""The exchange of one chunk beside arithmetic: what a block sends travels while it computes on.

On CUDA collectives run on a stream of their own; whoever needs what they bring waits for it there,
not on the host. Elsewhere they run where they are started, so that times stay honest: same result,
nothing hidden. For driving: there is no backward.

L local tokens of a chunk, S all its tokens, h local heads, n some of them, D head width, r rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor

from lingbot.parallel.collectives import Sizes, Wire
from lingbot.parallel.communication_log import PendingCollective
from lingbot.parallel.splits import Splits

QUERIES_A_PROGRAM = 128  # that an attention kernel gives one multiprocessor


class Arrival:
    """Rows on their way to this rank; what is sent for them is kept until they are there.

    Args:
        rows: where they arrive.
        sent: what this rank sends.
        done: on CUDA, recorded behind the collective.
        record: of the communication log.
    """

    def __init__(
        self,
        rows: Tensor,
        sent: Tensor,
        done: torch.cuda.Event | None,
        record: PendingCollective | None,
    ) -> None:
        self._rows, self._sent, self._done, self._record = rows, sent, done, record

    def wait(self) -> Tensor:
        """The rows; the current stream goes on when they are there."""
        if self._done is not None:
            stream = torch.cuda.current_stream(self._rows.device)
            if self._record is not None:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record(stream)
                stream.wait_event(self._done)
                end.record(stream)
                self._record.wait = (start, end)
            else:
                stream.wait_event(self._done)
        return self._rows


class OverlappedExchange:
    """Exchanges of one chunk of one world that run beside arithmetic.

    Args:
        wire: the sequence group.
        splits: tokens of the chunk per rank.
    """

    def __init__(self, wire: Wire, splits: Splits) -> None:
        self._wire, self._splits = wire, splits
        self._local = (splits.sizes[wire.rank],) * wire.size
        self._stream: torch.cuda.Stream | None = None

    def to_heads(self, packed: Tensor, name: str, home: Tensor | None = None) -> Arrival:
        """One tensor as `SequenceExchange.pack` gives it -> all tokens [1, 1, S, h, D], on the way.

        Where a `home` [1, S, h, D] of the same dtype is given they arrive there.
        """
        heads, width = packed.shape[-3], packed.shape[-1]
        shape = (1, 1, self._splits.total, heads, width)
        if home is None or home.dtype != packed.dtype:
            home = packed.new_empty(shape)
        out = home.view(shape)
        return self._start(packed, out, self._local, self._splits.sizes, name)

    def to_tokens(self, turns: list[slice], attend: Callable[[slice], Tensor]) -> Tensor:
        """Attends to the local heads in turns; every turn's output travels while the next is made.

        Args:
            turns: slices of the local heads, in order.
            attend: gives the output [1, 1, S, n, D] of such a slice.

        Returns:
            All heads of the local tokens, [1, 1, L, H, D].
        """
        local, arrivals = self._local[0], []
        for heads in turns:
            y = attend(heads).contiguous()
            out = y.new_empty(self._wire.size, local, *y.shape[3:])
            arrivals.append(self._start(y, out, self._splits.sizes, self._local, "out"))
        parts = [rearrange(arrival.wait(), "r L n D -> L r n D") for arrival in arrivals]
        return torch.cat(parts, dim=2).view(1, 1, local, -1, parts[0].shape[-1])

    def turns(self, heads: int, device: torch.device) -> list[slice]:
        """All but the last few of the local heads, then those: as many as run at one time.

        An attention kernel works in waves of one program a multiprocessor. The last turn is at most
        one wave, so the work is cut where a kernel would have begun a wave anyway, and what is left
        to send after it is little.
        """
        programs = -(-self._splits.total // QUERIES_A_PROGRAM)
        at_once = 1
        if device.type == "cuda":
            at_once = torch.cuda.get_device_properties(device).multi_processor_count // programs
        last = max(1, at_once)
        if last >= heads:
            return [slice(0, heads)]
        return [slice(0, heads - last), slice(heads - last, heads)]

    def _start(self, x: Tensor, out: Tensor, send: Sizes, receive: Sizes, name: str) -> Arrival:
        """An all-to-all of x and out, rows of either being tokens in rank order."""
        tokens = sum(send or ())
        sizes = (None, None) if self._wire.path == "uniform" else (send, receive)
        rows = x.view(tokens, -1), out.view(sum(receive or ()), -1)
        if not x.is_cuda:
            record = self._wire.all_to_all_into(*rows, *sizes, name)
            return Arrival(out, x, None, record)
        if self._stream is None:
            self._stream = torch.cuda.Stream(x.device)
        self._stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(self._stream):
            record = self._wire.all_to_all_into(*rows, *sizes, name)
        return Arrival(out, x, self._stream.record_event(), record)
