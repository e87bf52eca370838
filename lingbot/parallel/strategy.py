"""Sequence parallelism as Lightning strategies: over DDP and over FSDP2."""

import inspect
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel

from lingbot.checkpoints.atomic import replace_folder
from lingbot.parallel.sequence_parallel import SequenceParallelMixin
from lingbot.parallel.sharding import check_sharded


class SequenceParallelStrategy(SequenceParallelMixin, DDPStrategy):
    """Sequence parallelism with replicated weights: driving, tests, notebooks, small models.

    Takes the arguments of `SequenceParallelMixin` and of `DDPStrategy`; `start_method="fork"` is
    the one for notebooks. Buffers are not broadcast in training unless DDP's argument for it is
    given.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        known = {
            name
            for made in (SequenceParallelMixin, DDPStrategy, DistributedDataParallel)
            for name in inspect.signature(made.__init__).parameters
        }
        if unknown := sorted(set(kwargs) - known):
            raise TypeError(f"{type(self).__name__} takes no option {unknown[0]!r}")
        if not {"broadcast_buffers", "forward_sync_buffers"} & set(kwargs):
            # a rank's buffers may hold its own slice of tokens or heads
            kwargs[_buffer_sync()] = False
        super().__init__(*args, **kwargs)

    def _setup_processes(self) -> None:
        DDPStrategy.setup_environment(self)


class ShardedSequenceParallelStrategy(SequenceParallelMixin, ModelParallelStrategy):
    """Sequence parallelism with FSDP2 weights: training at full size.

    The module's `configure_model` shards itself over the whole world, block by block:
    `fully_shard(block, mesh=self.device_mesh["data", "sequence"]._flatten("world"))`. Takes the
    arguments of `SequenceParallelMixin` and `save_distributed_checkpoint`, `process_group_backend`.

    Raises:
        TypeError: when training, parameters that are not sharded: their gradients would stay apart.
    """

    def _setup_processes(self) -> None:
        self._setup_distributed()

    def setup(self, trainer: Trainer) -> None:
        """Refuse un-sharded weights, which would silently diverge, then set up."""
        assert self.lightning_module is not None
        if trainer.state.fn == TrainerFn.FITTING and self.world_size > 1:
            check_sharded(self.lightning_module)
        super().setup(trainer)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None
    ) -> None:
        """Write the folder beside the one that is there, and let it take its place when whole.

        Raises:
            TypeError: for storage options, which folders of shards do not have.
        """
        path = Path(self.broadcast(filepath)).absolute()
        partial = path.with_name(f".{path.name}.partial")
        if self.is_global_zero:
            shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
        self.barrier("before a checkpoint")
        super().save_checkpoint(checkpoint, partial, storage_options)
        self.barrier("after a checkpoint")
        if self.is_global_zero:
            replace_folder(partial, path)
        self.barrier("checkpoint in place")

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Keep gradients local while they accumulate."""
        assert self.model is not None
        sharded = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for module in sharded:
            module.set_requires_gradient_sync(False, recurse=False)
        try:
            yield
        finally:
            for module in sharded:
                module.set_requires_gradient_sync(True, recurse=False)


def _buffer_sync() -> str:
    """DDP's argument that broadcasts buffers before every forward; torch 2.13 renames it."""
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    return "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"


StrategyRegistry.register(
    "sequence_parallel",
    SequenceParallelStrategy,
    description="Token sequence split over ranks (Ulysses), replicated weights",
    override=True,
)
