"""What sequence-parallel strategies share: sizes, mesh, exchange and data of their ranks.

Ranks form a mesh (data, sequence), sequence innermost: the ranks of a sequence group share every
sample and split its tokens, different groups see different samples. The model asks the strategy for
an exchange and knows nothing else of ranks. Parameter gradients are averaged over the whole world,
which is right for both dimensions (see `lingbot.parallel.exchange`).
"""

import logging
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.utilities.data import _auto_add_worker_init_fn
from lightning.pytorch.accelerators import CUDAAccelerator
from lightning.pytorch.strategies.parallel import ParallelStrategy
from torch.distributed.device_mesh import DeviceMesh

from lingbot.model.checks import check_number
from lingbot.model.exchange import Exchange, LocalExchange
from lingbot.parallel.choice import check_choices, check_exchange, choose_exchange
from lingbot.parallel.communication_log import CommunicationLog
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.pushed_exchange import PushedExchange
from lingbot.parallel.same_batch import FirstRankReads, broadcast_batch, reads_once
from lingbot.parallel.splits import check_mesh, even_splits

log = logging.getLogger(__name__)

Size = int | Literal["auto"]
LONGEST_TIMEOUT = 365 * 86_400.0  # seconds; collectives count them in milliseconds


class SequenceParallelMixin(ParallelStrategy):
    """Splits the tokens of every sample over groups of `sequence_size` ranks.

    Metrics: every rank of a sequence group sees the same samples, so means over ranks are right and
    sums (`reduce_fx="sum"`, counts, throughput times world size) count a sample `sequence_size`
    times. Random numbers that belong to a sample must be drawn alike in a group and differently
    between groups: from a generator seeded with `data_rank`, for all tokens, then sharded.

    Args:
        sequence_size: ranks that share a sample; "auto" takes what `data_size` leaves.
        data_size: groups that see different samples; "auto" takes what `sequence_size` leaves. With
            both "auto" all ranks form one sequence group.
        uniform_fast_path: None takes it wherever tokens split evenly, True insists, False measures
            the variable path.
        push: None lets GPUs of one host write each other's memory where tokens split evenly, see
            `lingbot.parallel.pushed_exchange`, False exchanges by collectives, True insists.
        timeout_s: how long ranks wait for each other in a collective.
        input_timeout_s: how long ranks wait for the first one to read a batch or a live control.

    Raises:
        ValueError: when the Trainer's world does not fit the sizes, before processes are launched.
    """

    def __init__(
        self,
        sequence_size: Size = "auto",
        data_size: Size = "auto",
        uniform_fast_path: bool | None = None,
        push: bool | None = None,
        timeout_s: float = 1800.0,
        input_timeout_s: float = 86_400.0,
        **kwargs: Any,
    ) -> None:
        check_choices(uniform_fast_path, push)
        self._timeouts = (
            _seconds("strategy.timeout_s", timeout_s),
            _seconds("strategy.input_timeout_s", input_timeout_s),
        )
        super().__init__(**{"timeout": self._timeouts[0], **kwargs})
        self._asked = _number("data_size", data_size), _number("sequence_size", sequence_size)
        self.uniform_fast_path, self.push = uniform_fast_path, push
        self.communication_log = CommunicationLog()
        self._sizes: tuple[int, int] | None = None
        self._device_mesh: DeviceMesh | None = None
        self._input_group: dist.ProcessGroup | None = None
        self._pictures_group: dist.ProcessGroup | None = None
        self._exchanges: dict[tuple[int, int], Exchange] = {}

    # ---- sizes and ranks ----------------------------------------------------------------------

    @property
    def data_size(self) -> int:
        """Sequence groups, which see different samples."""
        return self._mesh_sizes[0]

    @property
    def sequence_size(self) -> int:
        """Ranks of a sequence group, which share a sample."""
        return self._mesh_sizes[1]

    @property
    def data_rank(self) -> int:
        """Which sequence group this process belongs to."""
        return self.global_rank // self.sequence_size

    @property
    def sequence_rank(self) -> int:
        """This process's place in its sequence group."""
        return self.global_rank % self.sequence_size

    @property
    def device_mesh(self) -> DeviceMesh:
        """The mesh (data, sequence); also the module's `device_mesh`."""
        if self._device_mesh is None:
            raise RuntimeError("the mesh exists once the Trainer has set up its processes")
        return self._device_mesh

    @property
    def _mesh_sizes(self) -> tuple[int, int]:
        if self._sizes is None:
            raise RuntimeError("sizes are known once a Trainer has taken the strategy")
        return self._sizes

    # ---- the exchange -------------------------------------------------------------------------

    def check(self, tokens: int, heads: int) -> None:
        """Refuse a chunk of `tokens` or a model of `heads` that the sequence group cannot share.

        Needs no processes: a Trainer that has taken the strategy is enough.
        """
        splits = even_splits(tokens, self.sequence_size)
        on_gpus = isinstance(self.accelerator, CUDAAccelerator)
        check_exchange(splits, heads, self.uniform_fast_path, self.push, on_gpus)

    def exchange(self, tokens: int, heads: int) -> Exchange:
        """The exchange for chunks of `tokens` and a model of `heads`; the identity on one rank.

        Raises:
            ValueError: heads that do not divide, fewer tokens than ranks, with sizes that work.
        """
        if (tokens, heads) not in self._exchanges:
            self._exchanges[tokens, heads] = self._make_exchange(tokens, heads)
        return self._exchanges[tokens, heads]

    def _make_exchange(self, tokens: int, heads: int) -> Exchange:
        self.check(tokens, heads)
        if self.sequence_size == 1:
            return LocalExchange(heads)
        group = self.device_mesh.get_group("sequence")
        exchange = self.exchange_over(group, tokens, heads, self.root_device, self._pictures_group)
        splits = exchange.splits
        if self.is_global_zero:
            log.info(
                "Sequence parallelism over %d ranks: %d tokens as %s, %d heads each, %s path.",
                *(splits.ranks, splits.total, splits.sizes, exchange.local_heads),
                exchange.path + (", pushed" if isinstance(exchange, PushedExchange) else ""),
            )
        return exchange

    def exchange_over(
        self,
        group: dist.ProcessGroup,
        tokens: int,
        heads: int,
        device: torch.device,
        pictures: dist.ProcessGroup | None = None,
    ) -> SequenceExchange:
        """The same over a group of processes that no Trainer set up.

        Raises:
            ValueError: `push=True` where ranks do not reach each other's memory.
        """
        return choose_exchange(
            group, even_splits(tokens, group.size()), heads, device,
            log=self.communication_log, uniform=self.uniform_fast_path, push=self.push,
            pictures=pictures, timeout_s=self._timeouts[0].total_seconds(),
        )  # fmt: skip

    # ---- processes and mesh -------------------------------------------------------------------

    def _configure_launcher(self) -> None:
        self._sizes = check_mesh(self.world_size, *self._asked)
        super()._configure_launcher()

    def setup_environment(self) -> None:
        """Set up the processes, then the mesh, and hand it to the module."""
        self._setup_processes()
        if self._device_mesh is None:
            self._make_mesh()
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    def _setup_processes(self) -> None:
        raise NotImplementedError

    def _make_mesh(self) -> None:
        backend = dist.get_backend()
        ranks = torch.arange(self.world_size).view(self._mesh_sizes)  # [data, sequence]
        timeout, input_timeout = self._timeouts
        groups = [_own_group(same.tolist(), timeout, backend) for same in (ranks.T, ranks)]
        self._device_mesh = DeviceMesh.from_group(
            groups, self.root_device.type, ranks, mesh_dim_names=("data", "sequence")
        )
        on_host = "gloo" if "nccl" in backend else backend
        self._input_group = _own_group(ranks.tolist(), input_timeout, on_host)
        self._pictures_group = _own_group(ranks.tolist(), timeout, backend)

    # ---- data ---------------------------------------------------------------------------------

    @property
    def distributed_sampler_kwargs(self) -> dict[str, Any]:
        """Samplers are sharded over the data dimension only."""
        return {"num_replicas": self.data_size, "rank": self.data_rank}

    def process_dataloader(self, dataloader: Any) -> Any:
        """Seed workers by data rank; let only the group's first rank read streams and live sources.

        Map-style loaders are read by every rank, which keeps the ranks' random state alike. Streams
        are not sharded: with several data ranks a dataset has to do that itself, by `data_rank`.
        """
        _auto_add_worker_init_fn(dataloader, self.data_rank)
        dataloader = super().process_dataloader(dataloader)
        if self.sequence_size > 1 and reads_once(dataloader):
            assert self._input_group is not None
            return FirstRankReads(dataloader, self._input_group)
        return dataloader

    def batch_to_device(
        self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0
    ) -> Any:
        """The batch of the sequence group's first rank, on this rank's device."""
        if self.sequence_size > 1:
            assert self._input_group is not None
            batch = broadcast_batch(batch, self._input_group)
        return super().batch_to_device(batch, device, dataloader_idx)

    def __getstate__(self) -> dict[str, Any]:
        """Leave behind what belongs to running processes, so that workers can be spawned."""
        state = super().__getstate__()
        state.update(_device_mesh=None, _input_group=None, _pictures_group=None, _exchanges={})
        return state


def _own_group(ranks: list[list[int]], timeout: timedelta, backend: str) -> dist.ProcessGroup:
    group, _ = dist.new_subgroups_by_enumeration(ranks, timeout=timeout, backend=backend)
    assert isinstance(group, dist.ProcessGroup)
    return group


def _number(name: str, size: Size) -> int | None:
    if size == "auto":
        return None
    if isinstance(size, bool) or not isinstance(size, int):
        raise ValueError(f"{name}={size!r}: give a whole number or 'auto'")
    return size


def _seconds(name: str, value: float) -> timedelta:
    return timedelta(seconds=check_number(name, value, above=0, high=LONGEST_TIMEOUT))
