"""The exchange of a sequence group: tokens sharded <-> heads sharded (Ulysses, arXiv:2309.14509).

Outside attention a rank holds some tokens with all heads; inside, all tokens with some heads, so
the head-sharded K/V history never travels. For one chunk the receive buffer *is* the sequence in
token order, and the attention output already is the send buffer of the way back.

B batch, C chunks, L local tokens of a chunk, S all its tokens, H heads, h local heads, D head
width, N channels, r rank.
"""

import torch
import torch.distributed as dist
from einops import rearrange
from torch import Tensor

from lingbot.model.exchange import PeerTensor, SendBuffer, plain_zeros
from lingbot.parallel.collectives import Sizes, Wire, all_gather, all_to_all
from lingbot.parallel.communication_log import CommunicationLog
from lingbot.parallel.splits import Splits, check_heads, choose_path


class SequenceExchange:
    """Exchanges the tokens of chunks, shared out by `splits`, within a sequence group.

    Gradients: every rank computes the same loss on the gathered output, `gather`'s backward sums
    the gradients of the ranks, and averaging parameter gradients over ranks (as DDP does) then
    gives exactly the gradient of one rank, for parameters used before `shard`, between it and
    `gather`, and after. A sum over local tokens, without `gather`, comes out divided by the ranks.

    Args:
        group: the sequence group.
        splits: tokens of a chunk per rank.
        num_heads: attention heads of the model; a multiple of the group's size.
        log: where each collective reports its path, bytes and time.
        uniform: True insists on the uniform fast path, False forces the variable path, None takes
            the uniform one when `splits` allow it.
        pictures: a group of the same ranks for gathering pictures. NCCL runs the collectives of a
            group in turn: with a group of its own, a decode beside the context update waits for
            nothing of that. None gathers them in `group`.

    Raises:
        ValueError: splits, heads and group do not fit, or `uniform=True` with unequal splits.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        splits: Splits,
        num_heads: int,
        log: CommunicationLog | None = None,
        uniform: bool | None = None,
        pictures: dist.ProcessGroup | None = None,
    ) -> None:
        self.size = group.size()
        self.rank = group.rank()
        if splits.ranks != self.size:
            raise ValueError(
                f"splits for {splits.ranks} ranks in a sequence group of {self.size}: make them "
                f"with even_splits({splits.total}, {self.size})"
            )
        check_heads(num_heads, self.size)
        self.splits = splits
        self.num_heads = num_heads
        self.local_heads = num_heads // self.size
        self.path = choose_path(splits, uniform)
        self.log = log if log is not None else CommunicationLog()
        self._wire = Wire(group, self.path, self.log)
        self._pictures = pictures or group
        self._uniform = uniform

    def shard(self, x: Tensor, dim: int) -> Tensor:
        """This rank's tokens of a chunk: a view of [.., S, ..] along `dim`."""
        if x.shape[dim] != self.splits.total:
            raise ValueError(
                f"dimension {dim} of {tuple(x.shape)} has {x.shape[dim]} tokens, a chunk of this "
                f"exchange {self.splits.total}: ask the strategy for an exchange of that many"
            )
        return x.narrow(dim, self.splits.start(self.rank), self.splits.sizes[self.rank])

    def pack(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """q, k, v of local tokens [B,C,L,H,D] as the send buffer [r,B,C,L,h,n,D] of `to_heads`.

        Pure arithmetic, so that a compiled forward writes the buffer where it makes q, k and v.
        Without q (the last block of a context update needs none) only keys and values travel.
        """
        dealt = [rearrange(x, "B C L (r h) D -> r B C L h D", r=self.size) for x in tensors]
        return (torch.stack(dealt, dim=-2),)

    def send_buffer(
        self, like: Tensor, count: int, shape: tuple[int, ...], slots: PeerTensor | None = None
    ) -> SendBuffer:
        """An empty buffer as `pack` makes it of `count` tensors [B,C,L,H,D]; and views to fill it.

        The views are [(B C L), r, h, D], in the order in which a kernel makes its values. What has
        to be sent cannot lie in the K/V cache, so `slots` is not used.
        """
        batch, chunks, local, heads, width = shape
        buffer = like.new_empty(self.size, batch, chunks, local, heads // self.size, count, width)
        views = rearrange(buffer, "r B C L h n D -> n (B C L) r h D").unbind(0)
        return SendBuffer((buffer,), views)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> PeerTensor:
        """Memory for keys and values of this rank."""
        return plain_zeros(shape, dtype, device)

    def to_heads(self, packed: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """All heads of local tokens, packed, to local heads of all tokens [B,C,S,h,D] each.

        One exchange for all of them.
        """
        (send,) = packed
        _, batch, chunks, local, heads, count, width = send.shape
        self._check_local(local)
        received = all_to_all(
            send.view(-1, heads * count * width),
            self._wire,
            send=self._rows((local,) * self.size, batch * chunks),
            receive=self._rows(self.splits.sizes, batch * chunks),
            name="qkv" if count == 3 else "kv",
        )
        in_order = self._in_token_order(received, batch, chunks)
        return in_order.unflatten(-1, (heads, count, width)).unbind(-2)

    def to_tokens(self, y: Tensor) -> Tensor:
        """Local heads of all tokens [B,C,S,h,D] back to all heads of local tokens [B,C,L,H,D]."""
        batch, chunks, _, _, width = y.shape
        local = self.splits.sizes[self.rank]
        received = all_to_all(
            self._by_rank(y.flatten(-2), batch * chunks),
            self._wire,
            send=self._rows(self.splits.sizes, batch * chunks),
            receive=self._rows((local,) * self.size, batch * chunks),
            name="out",
        )
        return rearrange(
            received,
            "(r B C L) (h D) -> B C L (r h) D",
            r=self.size, B=batch, C=chunks, L=local, D=width,
        )  # fmt: skip

    def gather(self, x: Tensor) -> Tensor:
        """Local tokens [B,C,L,N] to all tokens [B,C,S,N] everywhere; gradients sum over ranks."""
        batch, chunks, local, _ = x.shape
        self._check_local(local)
        sizes = self._rows(self.splits.sizes, batch * chunks)
        received = all_gather(x.flatten(0, 2), self._wire, sizes, "gather")
        return self._in_token_order(received, batch, chunks)

    def gather_strips(self, strip: Tensor, widths: tuple[int, ...]) -> Tensor:
        """Every rank's strip of pictures [B,T,height,width,N] side by side; no gradient.

        Strips of equal width take the uniform path whatever the tokens do, unless that is off.
        """
        sizes = tuple(strip.numel() // strip.shape[3] * width for width in widths)
        uniform = self._uniform is not False and len(set(sizes)) == 1
        wire = Wire(self._pictures, "uniform" if uniform else "variable", self.log)
        flat = wire.all_gather(strip.flatten(), None if uniform else sizes, "frames")
        parts = zip(flat.split(sizes), widths, strict=True)
        return torch.cat([part.view(*strip.shape[:3], width, -1) for part, width in parts], dim=3)

    def _rows(self, sizes: tuple[int, ...], chunks: int) -> Sizes:
        """Rows per rank of `chunks` chunks with `sizes` tokens each; None on the uniform path."""
        return None if self.path == "uniform" else tuple(size * chunks for size in sizes)

    def _in_token_order(self, rows: Tensor, batch: int, chunks: int) -> Tensor:
        """Rows received rank by rank [(r B C L), N] as [B,C,S,N]; a view for one chunk."""
        if batch * chunks == 1:
            return rows.view(1, 1, self.splits.total, -1)
        if self.splits.uniform:
            return rearrange(rows, "(r B C L) N -> B C (r L) N", r=self.size, B=batch, C=chunks)
        parts = rows.split([size * batch * chunks for size in self.splits.sizes])
        return torch.cat([part.view(batch, chunks, -1, part.shape[-1]) for part in parts], dim=2)

    def _by_rank(self, x: Tensor, chunks: int) -> Tensor:
        """[B,C,S,N] as rows to send rank by rank [(r B C L), N]; a view for one chunk."""
        if chunks == 1:
            return x.flatten(0, 2)
        if self.splits.uniform:
            return rearrange(x, "B C (r L) N -> (r B C L) N", r=self.size)
        return torch.cat(
            [rearrange(part, "B C L N -> (B C L) N") for part in x.split(self.splits.sizes, dim=2)]
        )

    def _check_local(self, local: int) -> None:
        expected = self.splits.sizes[self.rank]
        if local != expected:
            raise ValueError(
                f"got {local} local tokens, but rank {self.rank} of {self.size} holds {expected} "
                f"of the chunk's {self.splits.total}: pass what shard() returned"
            )
