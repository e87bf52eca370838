"""The collectives of a sequence group, on rows, differentiable and logged.

Rows are the first dimension; rank r's rows come in r's place. `sizes=None` means that all ranks
exchange equally many rows (the uniform path: fixed-size collectives); a tuple gives rows per rank
(the variable path). Backward of an all-to-all is the all-to-all with sizes swapped; of an
all-gather, a reduce-scatter that *sums*.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lingbot.parallel.communication_log import CommunicationLog

Sizes = tuple[int, ...] | None

# torch 2.13 renames both; 2.11 has only the old names
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Wire:
    """A process group and the log its collectives report to, under the name of their path."""

    group: dist.ProcessGroup
    path: str
    log: CommunicationLog

    @property
    def size(self) -> int:
        """Ranks of the group."""
        return self.group.size()

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return self.group.rank()

    def all_to_all(self, x: Tensor, send: Sizes, receive: Sizes, name: str) -> Tensor:
        """Rows [sum(send), ...] to their ranks; returns this rank's [sum(receive), ...]."""
        rows = x.shape[0] if receive is None else sum(receive)
        out = x.new_empty(rows, *x.shape[1:])
        sent, received = (as_bytes(t) for t in (x, out))
        kept = x.shape[0] // self.size if send is None else send[self.rank]
        with self.log.record(name, self.path, _bytes(x, x.shape[0] - kept), x.device):
            dist.all_to_all_single(
                received, sent, _listed(receive), _listed(send), group=self.group
            )
        return out

    def all_gather(self, x: Tensor, sizes: Sizes, name: str) -> Tensor:
        """Every rank's [rows, ...] as [all rows, ...]; rows per rank are `sizes`, or equal."""
        if sizes is not None:
            # gloo has no uneven all-gather; an all-to-all sends the same bytes and needs no padding
            copies = x.repeat(self.size, *[1] * (x.dim() - 1))
            return self.all_to_all(copies, (x.shape[0],) * self.size, sizes, name)
        out = x.new_empty(self.size * x.shape[0], *x.shape[1:])
        with self.log.record(name, self.path, _bytes(x, (self.size - 1) * x.shape[0]), x.device):
            _all_gather(out, x, group=self.group)
        return out

    def reduce_scatter(self, x: Tensor, sizes: Sizes, name: str) -> Tensor:
        """Sum over ranks of [all rows, ...], of which this rank keeps its own [rows, ...]."""
        rows = x.shape[0] // self.size if sizes is None else sizes[self.rank]
        if sizes is not None:
            parts = self.all_to_all(x, sizes, (rows,) * self.size, name)
            return parts.view(self.size, rows, *x.shape[1:]).sum(0)
        out = x.new_empty(rows, *x.shape[1:])
        with self.log.record(name, self.path, _bytes(x, x.shape[0] - rows), x.device):
            _reduce_scatter(out, x, group=self.group)
        return out


class _AllToAll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Wire, send: Sizes, receive: Sizes, name: str) -> Tensor:
        ctx.arguments = wire, receive, send, f"{name}.backward"
        return wire.all_to_all(x, send, receive, name)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None, None]:
        wire, *arguments = ctx.arguments
        return wire.all_to_all(gradient.contiguous(), *arguments), None, None, None, None


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, wire: Wire, sizes: Sizes, name: str) -> Tensor:
        ctx.arguments = wire, sizes, f"{name}.backward"
        return wire.all_gather(x, sizes, name)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        wire, *arguments = ctx.arguments
        return wire.reduce_scatter(gradient.contiguous(), *arguments), None, None, None


def all_to_all(x: Tensor, wire: Wire, send: Sizes, receive: Sizes, name: str) -> Tensor:
    """Differentiable all-to-all of rows: [sum(send), ...] -> [sum(receive), ...]."""
    return _AllToAll.apply(x.contiguous(), wire, send, receive, name)


def all_gather(x: Tensor, wire: Wire, sizes: Sizes, name: str) -> Tensor:
    """Differentiable all-gather of rows; its gradient is the sum over ranks."""
    return _Gather.apply(x.contiguous(), wire, sizes, name)


def as_bytes(x: Tensor) -> Tensor:
    """Tensors in fp8, which not every backend knows, as bytes; others as they are."""
    return x.view(torch.uint8) if x.dtype == torch.float8_e4m3fn else x


def _bytes(x: Tensor, rows: int) -> int:
    return rows * (x.numel() // x.shape[0]) * x.element_size()


def _listed(sizes: Sizes) -> list[int] | None:
    return None if sizes is None else list(sizes)
