"""The exchange against plain slicing on one rank: forward and backward, on both paths."""

from __future__ import annotations

import time

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from lingbot.model.exchange import LocalExchange
from lingbot.parallel.communication_log import CommunicationLog
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.splits import Splits, even_splits
from tests.distributed import run_ranks

HEADS, WIDTH = 12, 4


def _exchange(tokens: int, uniform: bool | None = None, **kwargs: object) -> SequenceExchange:
    splits = even_splits(tokens, dist.get_world_size())
    return SequenceExchange(dist.group.WORLD, splits, HEADS, uniform=uniform, **kwargs)


def _heads_of(x: Tensor, exchange: SequenceExchange) -> Tensor:
    return x.chunk(exchange.size, dim=3)[exchange.rank]


def _network(
    q: Tensor, k: Tensor, v: Tensor, weight: Tensor, exchange: SequenceExchange | LocalExchange
) -> Tensor:
    """A little of everything: weights before, between and after the exchanges, queries left out."""
    q, k, v = (exchange.shard(x * weight[0], dim=2) for x in (q, k, v))
    q_all, k_all, v_all = exchange.to_heads(exchange.pack(q * weight[1], k, v))
    k_again, v_again = exchange.to_heads(exchange.pack(k, v * weight[2]))
    scores = torch.einsum("bcqhd,bcshd->bchqs", q_all, k_all + 2 * k_again).softmax(-1)
    y = exchange.to_tokens(torch.einsum("bchqs,bcshd->bcqhd", scores, v_all * v_again))
    y = exchange.gather((y * weight[3]).flatten(-2))
    return y * weight[4].repeat(HEADS)


def _loss(y: Tensor) -> Tensor:
    positions = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    return ((y - positions) ** 2).mean()


def _inputs(batch: int, chunks: int, tokens: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    shape = (batch, chunks, tokens, HEADS, WIDTH)
    qkv = [torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3)]
    return [*qkv, torch.randn(5, WIDTH, generator=generator, dtype=torch.float64)]


def _check_forward(exchange: SequenceExchange, inputs: list[Tensor]) -> None:
    q, k, v, _ = inputs
    local = [exchange.shard(x, dim=2) for x in (q, k, v)]
    for out, whole in zip(exchange.to_heads(exchange.pack(*local)), (q, k, v), strict=True):
        assert torch.equal(out, _heads_of(whole, exchange))
    k_all, v_all = exchange.to_heads(exchange.pack(*local[1:]))
    assert torch.equal(k_all, _heads_of(k, exchange))
    assert torch.equal(v_all, _heads_of(v, exchange))
    # attention kernels hand out transposed memory as well
    for y in (k_all, k_all.transpose(2, 3).contiguous().transpose(2, 3)):
        assert torch.equal(exchange.to_tokens(y), local[1])
    assert torch.equal(exchange.gather(local[2].flatten(-2)), v.flatten(-2))


def _check_fp8(exchange: SequenceExchange, inputs: list[Tensor]) -> None:
    """In 8 bits tensors travel as they are."""
    q, k, v = (x.float().to(torch.float8_e4m3fn) for x in inputs[:3])
    local = [exchange.shard(x, dim=2) for x in (q, k, v)]
    received = exchange.to_heads(exchange.pack(*local))
    for out, whole in zip(received, (q, k, v), strict=True):
        assert out.dtype == torch.float8_e4m3fn
        assert torch.equal(out.float(), _heads_of(whole, exchange).float())
    assert torch.equal(exchange.to_tokens(received[2]).float(), local[2].float())


def _check_gradients(exchange: SequenceExchange, inputs: list[Tensor]) -> None:
    ours, theirs = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    loss = _loss(_network(*ours, exchange))
    reference = _loss(_network(*theirs, LocalExchange(HEADS)))
    torch.testing.assert_close(loss, reference)
    loss.backward()
    reference.backward()
    for mine, true in zip(ours, theirs, strict=True):
        dist.all_reduce(mine.grad)
        torch.testing.assert_close(mine.grad / exchange.size, true.grad)


def _check_bf16_gradients(exchange: SequenceExchange, inputs: list[Tensor]) -> None:
    whole = inputs[1].bfloat16().flatten(-2)
    local = exchange.shard(inputs[1].bfloat16(), dim=2).requires_grad_()
    keys, _ = exchange.to_heads(exchange.pack(local, local.detach()))
    y = exchange.gather(exchange.to_tokens(keys).flatten(-2))
    assert torch.equal(y, whole)
    gradient = torch.arange(whole.numel()).remainder(7).view_as(whole).bfloat16()
    y.backward(gradient)
    # small whole numbers: the sum over ranks is exact
    assert torch.equal(local.grad.flatten(-2), exchange.size * exchange.shard(gradient, dim=2))


def _check_one_chunk_is_views(exchange: SequenceExchange, inputs: list[Tensor]) -> None:
    buffers: list[Tensor] = []
    original = dist.all_to_all_single

    def spy(out: Tensor, x: Tensor, *args: object, **kwargs: object) -> None:
        buffers.extend((out, x))
        original(out, x, *args, **kwargs)

    dist.all_to_all_single = spy
    try:
        outs = exchange.to_heads(exchange.pack(*(exchange.shard(x, dim=2) for x in inputs[:3])))
        y = torch.randn_like(outs[0]).contiguous()
        exchange.to_tokens(y)
    finally:
        dist.all_to_all_single = original
    received, sent_back = buffers[0], buffers[3]
    assert all(out.untyped_storage().data_ptr() == received.data_ptr() for out in outs)
    assert received.numel() == sum(out.numel() for out in outs)
    assert sent_back.data_ptr() == y.data_ptr()


def _everything(rank: int, cases: list[tuple[int, int, int, bool | None]]) -> list[str]:
    paths = []
    for batch, chunks, tokens, uniform in cases:
        exchange = _exchange(tokens, uniform)
        assert exchange.local_heads * exchange.size == HEADS
        inputs = _inputs(batch, chunks, tokens)
        with torch.inference_mode():
            _check_forward(exchange, inputs)
            _check_forward(exchange, [x.bfloat16() for x in inputs])
            if batch * chunks == 1:
                _check_one_chunk_is_views(exchange, inputs)
        _check_gradients(exchange, inputs)
        _check_bf16_gradients(exchange, inputs)
        _check_fp8(exchange, inputs)
        paths.append(exchange.path)
    return paths


@pytest.mark.processes
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_both_paths_equal_one_rank_in_outputs_and_gradients(ranks: int):
    cases = [
        (1, 1, 24, None),
        (2, 3, 12, None),
        (1, 1, 24, False),
        (2, 3, 12, False),
        (1, 1, 4 * ranks + 1, None),
        (2, 3, 5 * ranks - 1, None),
    ]
    uneven = "uniform" if ranks == 1 else "variable"
    expected = ["uniform", "uniform", "variable", "variable", uneven, uneven]
    assert run_ranks(_everything, ranks, cases) == [expected] * ranks


def _logged(rank: int, tokens: int) -> list[tuple[str, str, int]]:
    log = CommunicationLog()
    exchange = _exchange(tokens, log=log)
    inputs = [x.float() for x in _inputs(1, 1, tokens)]
    exchange.to_heads(exchange.pack(*(exchange.shard(x, dim=2) for x in inputs[:3])))
    assert not log._pending, "nobody asked, so nothing is kept"
    log.clear()
    _loss(_network(*(x.requires_grad_() for x in inputs), exchange)).backward()
    collectives = log.collect()
    assert all(collective.elapsed_ms > 0 for collective in collectives)
    assert log.collect() == []
    return [(c.name, c.path, c.bytes) for c in collectives]


@pytest.mark.processes
def test_every_collective_reports_its_path_and_what_this_rank_sent():
    value = HEADS * WIDTH * 4  # bytes of one float32 token
    for tokens, path, sizes in [(8, "uniform", (4, 4)), (7, "variable", (4, 3))]:
        for local, logged in zip(sizes, run_ranks(_logged, 2, tokens), strict=True):
            other = tokens - local
            assert logged == [
                ("qkv", path, 3 * local * value // 2),
                ("kv", path, 2 * local * value // 2),
                ("out", path, other * value // 2),
                ("gather", path, local * value),
                ("gather.backward", path, other * value),
                ("out.backward", path, local * value // 2),
                ("kv.backward", path, 2 * other * value // 2),
                ("qkv.backward", path, 3 * other * value // 2),
            ]


def test_a_log_records_only_when_asked_and_only_so_much(caplog: pytest.LogCaptureFixture):
    log, cpu = CommunicationLog(limit=3), torch.device("cpu")
    with log.record("qkv", "uniform", 1, cpu):
        pass
    assert log.collect() == []
    for sent in range(5):
        with log.record("qkv", "uniform", sent, cpu):
            pass
    assert [collective.bytes for collective in log.collect()] == [2, 3, 4]
    assert "dropped 2" in caplog.text
    log.stop()
    with log.record("qkv", "uniform", 1, cpu):
        pass
    assert not log._pending


def _refusals(rank: int) -> None:
    group, splits = dist.group.WORLD, even_splits(9, 2)
    with pytest.raises(ValueError, match=r"equal splits, got \(5, 4\).*divides by 2"):
        SequenceExchange(group, splits, HEADS, uniform=True)
    with pytest.raises(ValueError, match=r"5 attention heads .* 2 sequence ranks.* 1, 5"):
        SequenceExchange(group, splits, 5)
    with pytest.raises(ValueError, match=r"splits for 3 ranks in a sequence group of 2"):
        SequenceExchange(group, Splits((3, 3, 3)), HEADS)
    exchange = SequenceExchange(group, splits, HEADS)
    with pytest.raises(ValueError, match=r"has 8 tokens, a chunk of this exchange 9"):
        exchange.shard(torch.zeros(1, 1, 8, 2), dim=2)
    with pytest.raises(ValueError, match=r"got 9 local tokens"):
        exchange.gather(torch.zeros(1, 1, 9, 2))


@pytest.mark.processes
def test_what_does_not_fit_the_group_is_refused_with_what_would():
    run_ranks(_refusals, 2)


def _fails(rank: int) -> None:
    if rank == 1:
        raise ArithmeticError("on purpose")
    dist.barrier()


@pytest.mark.processes
def test_run_ranks_reports_the_rank_that_failed_and_the_ranks_that_hang():
    with pytest.raises(RuntimeError, match=r"(?s)_fails failed on rank 1.*on purpose"):
        run_ranks(_fails, 2)
    with pytest.raises(RuntimeError, match=r"(?s)not done after 1.5 s.*_hangs"):
        run_ranks(_hangs, 2, timeout=1.5)


def _hangs(rank: int) -> None:
    if rank == 0:
        dist.barrier()
    else:
        time.sleep(20)
