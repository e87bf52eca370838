"""Mailboxes against collectives: the same values, by memory that ranks write for each other.

GPUs are not needed: here the ranks' buffers are files that all of them have mapped.
"""

from __future__ import annotations

import ctypes
from itertools import product
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lingbot.parallel.choice import choose_exchange
from lingbot.parallel.communication_log import CommunicationLog
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.mailbox import UNIT, Mailbox, SharedMemory, can_push
from lingbot.parallel.pushed_exchange import PushedExchange
from lingbot.parallel.splits import even_splits
from lingbot.parallel.strategy import SequenceParallelStrategy
from tests.distributed import run_ranks

HEADS, WIDTH, TOKENS = 12, 16, 24
CPU = torch.device("cpu")


class Mapped(SharedMemory):
    """Memory of processes on one CPU: files in the folder that everybody has mapped."""

    folder = Path()
    made = 0

    def _allocate(
        self, group: dist.ProcessGroup, device: torch.device, bytes: int
    ) -> tuple[Tensor, list[int]]:
        names = [self.folder / f"{Mapped.made}_{rank}" for rank in range(self.ranks)]
        Mapped.made += 1
        self.uncounted = bytes
        self.buffers = [
            torch.from_file(str(name), shared=True, size=bytes, dtype=torch.uint8) for name in names
        ]
        dist.barrier()
        pointers = [buffer.data_ptr() for buffer in self.buffers]
        own = pointers[self.rank]
        return self.buffers[self.rank], [pointer - own for pointer in pointers]

    def wait(self) -> None:
        dist.barrier()


class MappedMailbox(Mapped, Mailbox):
    """A mailbox of such memory, filled without a kernel."""

    def at(self, rank: int, own: Tensor) -> Tensor:
        """In the memory of a rank, what `own` is a view of here."""
        there = self.buffers[rank].view(own.dtype)
        return there.as_strided(own.shape, own.stride(), own.storage_offset())

    def push(self, rows: Tensor, inbox: Tensor, start: int) -> None:
        for rank, part in enumerate(rows):
            flat = inbox.as_strided(
                (len(part), part[0].numel()), (inbox.stride(0), 1), inbox.storage_offset() + start
            )
            self.at(rank, flat).copy_(part.flatten(1))


def _exchange(folder: str, log: CommunicationLog | None = None) -> PushedExchange:
    Mapped.folder, Mapped.made = Path(folder), 0
    splits = even_splits(TOKENS, dist.get_world_size())
    assert dist.group.WORLD is not None
    return PushedExchange(
        dist.group.WORLD, splits, HEADS, CPU, log, memory=Mapped, mailbox=MappedMailbox
    )


def _qkv(seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (1, 1, TOKENS, HEADS, WIDTH)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(3)]


def _own(x: Tensor, exchange: SequenceExchange) -> Tensor:
    return x.chunk(exchange.size, dim=3)[exchange.rank]


def _check_values(rank: int, folder: str) -> None:
    exchange = _exchange(folder)
    for seed in range(4):
        whole = _qkv(seed)
        local = [exchange.shard(x, dim=2) for x in whole]
        q, k, v = exchange.to_heads(exchange.pack(*local))
        pairs = [(a, _own(b, exchange)) for a, b in zip((q, k, v), whole, strict=True)]
        pairs += [(exchange.to_tokens(k), local[1]), (exchange.gather(local[2].flatten(-2)),
                   whole[2].flatten(-2))]  # fmt: skip
        kv = exchange.to_heads(exchange.pack(*local[1:]))
        pairs += [(a, _own(b, exchange)) for a, b in zip(kv, whole[1:], strict=True)]
        # all is still there: only an exchange of the same kind may overwrite what another brought
        dist.barrier()
        for made, expected in pairs:
            assert torch.equal(made, expected)


def _check_written(rank: int, folder: str, dtype: torch.dtype) -> None:
    """What is written as far from the views as `peers` say has arrived, k and v in slots."""
    exchange = _exchange(folder)
    memory = exchange.zeros((2, 1, 2 * TOKENS, exchange.local_heads, WIDTH), dtype, CPU)
    own = memory.tensor.numel() * dtype.itemsize
    assert exchange.uncounted_bytes == own
    places = [None, memory._replace(tensor=memory.tensor[:, :, TOKENS:])]
    for seed, (count, slots) in enumerate(product((3, 2), places)):
        whole = _qkv(seed, dtype)[3 - count :]
        local = [exchange.shard(x, dim=2) for x in whole]
        buffer = exchange.send_buffer(local[0], count, local[0].shape, slots)
        assert buffer.peers is not None
        tables = [buffer.peers[0]] * (count - 2) + [buffer.peers[1]] * 2
        for view, x, peers in zip(buffer.views, local, tables, strict=True):
            assert view.shape == (TOKENS // exchange.size, exchange.size, *_heads(exchange))
            assert peers[rank] == 0
            parts = x.flatten(0, 2).unflatten(1, (exchange.size, -1)).unbind(1)
            for peer, part in enumerate(parts):
                _write(view[:, peer], UNIT * dtype.itemsize * int(peers[peer]), part)
        made = exchange.to_heads(buffer.packed)
        for a, b in zip(made, whole, strict=True):
            assert torch.equal(a.float(), _own(b, exchange).float())
        if slots is not None:
            assert [x.data_ptr() for x in made[-2:]] == [x.data_ptr() for x in slots.tensor]
            assert memory.tensor[:, :, :TOKENS].float().abs().sum() == 0
    assert exchange.uncounted_bytes > own  # and the mailboxes


def _write(view: Tensor, bytes: int, values: Tensor) -> None:
    """`values` to memory that lies so far from a view of rows."""
    for row, given in zip(view, values.contiguous(), strict=True):
        for head, numbers in zip(row, given, strict=True):
            size = numbers.numel() * numbers.element_size()
            ctypes.memmove(head.data_ptr() + bytes, numbers.data_ptr(), size)


def _heads(exchange: SequenceExchange) -> tuple[int, int]:
    return exchange.local_heads, WIDTH


def _check_log(rank: int, folder: str) -> None:
    log = CommunicationLog()
    exchange = _exchange(folder, log)
    local = [exchange.shard(x, dim=2) for x in _qkv(0)]
    exchange.to_tokens(exchange.to_heads(exchange.pack(*local))[0])
    assert log.collect() == []  # nobody has asked
    log.clear()
    exchange.to_tokens(exchange.to_heads(exchange.pack(*local))[0])
    exchange.to_heads(exchange.send_buffer(local[0], 2, local[0].shape).packed)
    sent = local[0].numel() * 4 * (exchange.size - 1) // exchange.size
    collectives = log.collect()
    assert [(c.name, c.path, c.bytes) for c in collectives] == [
        ("qkv", "pushed", 3 * sent), ("out", "pushed", sent), ("kv", "pushed", 2 * sent)
    ]  # fmt: skip
    assert all(c.elapsed_ms > 0 for c in collectives)


def _check_gradients(rank: int, folder: str) -> None:
    """Gradients, and several chunks at once, go by collectives."""
    log = CommunicationLog()
    exchange = _exchange(folder, log)
    log.clear()
    local = [exchange.shard(x, dim=2).clone().requires_grad_() for x in _qkv(0)]
    with torch.enable_grad():
        q, k, v = exchange.to_heads(exchange.pack(*local))
        exchange.to_tokens(q + k + v).sum().backward()
        assert exchange.send_buffer(local[0], 3, local[0].shape).peers is None
    assert torch.equal(local[1].grad, torch.ones_like(local[1]))
    two = [torch.cat([x, x], dim=1).detach() for x in local]
    made = exchange.to_heads(exchange.pack(*two))
    assert torch.equal(exchange.to_tokens(made[0]), two[0])
    assert {c.path for c in log.collect()} == {"uniform"}


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [2, 4])
def test_mailboxes_bring_what_collectives_would(ranks, tmp_path):
    run_ranks(_all_checks, ranks, str(tmp_path))


def _all_checks(rank: int, folder: str) -> None:
    names = iter(str(number) for number in range(9))

    def fresh() -> str:
        path = Path(folder) / next(names)
        path.mkdir(exist_ok=True)
        dist.barrier()
        return str(path)

    with torch.no_grad():
        _check_values(rank, fresh())
        for dtype in (torch.float32, torch.float8_e4m3fn):
            _check_written(rank, fresh(), dtype)
        _check_log(rank, fresh())
        _check_gradients(rank, fresh())


def _choices(rank: int) -> list[str]:
    group = dist.group.WORLD
    assert group is not None
    assert not can_push(group, CPU)
    made = []
    for push in (None, False, True):
        try:
            chosen = choose_exchange(
                group, even_splits(TOKENS, 2), HEADS, CPU,
                log=CommunicationLog(), uniform=None, push=push, pictures=None, timeout_s=9.0,
            )  # fmt: skip
            made.append(type(chosen).__name__)
        except ValueError as error:
            made.append(str(error))
    return made


@pytest.mark.processes
def test_only_gpus_push_and_to_insist_elsewhere_is_refused():
    for chosen, without, insisted in run_ranks(_choices, 2):
        assert chosen == without == "SequenceExchange"
        assert "push=true: " in insisted


@pytest.mark.parametrize("bad", [{"push": "often"}, {"push": True, "uniform_fast_path": False}])
def test_choices_that_contradict_are_refused(bad):
    with pytest.raises(ValueError, match="push="):
        SequenceParallelStrategy(**bad)


def test_pushing_needs_equal_splits():
    with pytest.raises(ValueError, match="equal splits"):
        PushedExchange(_Ranks(5), even_splits(TOKENS, 5), 10, CPU)


class _Ranks:
    """A group, as far as sizes go."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks

    def size(self) -> int:
        return self.ranks

    def rank(self) -> int:
        return 0
