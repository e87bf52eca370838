"""Runs a causal comparison sequence-parallel, over processes of this machine (gloo, CPU)."""

from __future__ import annotations

import tempfile
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lingbot.golden.causal import compare_causal, golden_config, golden_sampler
from lingbot.golden.compare import Comparison, GoldenFile, UnusableFile
from lingbot.golden.layout import check_causal
from lingbot.model import Exchange
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.splits import check_heads, even_splits

TIMEOUT = timedelta(minutes=5)


def on_ranks(path: Path, ranks: int, uniform: bool | None = None) -> list[Comparison]:
    """The comparisons of all ranks: of each tensor, the worst.

    Raises:
        UnusableFile: when the file's heads or tokens do not go on that many ranks.
    """
    golden = GoldenFile(path)
    config = golden_config(golden)
    check_causal(golden, config, len(golden_sampler(golden).levels))
    sizes = (golden.number(k) for k in ("frames_per_chunk", "latent_height", "latent_width"))
    try:
        check_heads(config.num_heads, ranks)
        splits = even_splits(config.grid(*sizes).tokens, ranks)
        if uniform and not splits.uniform:
            raise ValueError(f"{splits.total} tokens do not split evenly over {ranks} ranks")
    except ValueError as error:
        raise UnusableFile(str(error)) from error
    with tempfile.TemporaryDirectory() as folder:
        queue = mp.get_context("spawn").SimpleQueue()
        mp.spawn(_rank, (ranks, path, uniform, Path(folder) / "store", queue), nprocs=ranks)
        rows = [queue.get() for _ in range(ranks)]
    return [max(same, key=lambda row: row.max_error) for same in zip(*rows, strict=True)]


def _rank(
    rank: int,
    ranks: int,
    path: Path,
    uniform: bool | None,
    store: Path,
    queue: SimpleQueue[list[Comparison]],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=ranks, timeout=TIMEOUT
    )

    def make_exchange(tokens: int, heads: int) -> Exchange:
        group = dist.group.WORLD
        assert group is not None
        return SequenceExchange(group, even_splits(tokens, ranks), heads, uniform=uniform)

    queue.put(compare_causal(GoldenFile(path), make_exchange))
    dist.destroy_process_group()
