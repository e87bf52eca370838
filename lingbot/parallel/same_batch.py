"""One batch for all ranks of a sequence group: its first rank reads and the others follow.

Content travels by `broadcast_batch`, for whatever a batch is made of. Sources that cannot be read
twice (a live drive, a stream) are wrapped in `FirstRankReads`: the first rank takes the items, the
others step along. Both use a host-side (gloo) group, which may wait for a person at the keys.
"""

import io
import pickle
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lingbot.parallel.failure import OtherRankFailed

_SMALL = 65_536  # bytes of a host tensor below which pickling beats a broadcast of its own

_END, _ITEM, _FAILED = 0, 1, 2


def broadcast_batch(batch: Any, group: dist.ProcessGroup) -> Any:
    """The batch of the group's first rank, on every rank of it.

    Any picklable batch: dicts, tuples, dataclasses, plain values. Large host tensors travel as they
    are, everything else pickled; tensors arrive on the host.
    """
    size = torch.zeros((), dtype=torch.int64)
    if group.rank() > 0:
        dist.broadcast(size, group=group, group_src=0)
        pickled = torch.empty(int(size), dtype=torch.uint8)
        dist.broadcast(pickled, group=group, group_src=0)
        return _Unpickler(pickled, group).load()
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(batch)
    pickled = torch.frombuffer(stream.getbuffer(), dtype=torch.uint8)
    for tensor in (size.fill_(len(pickled)), pickled, *map(_as_bytes, pickler.large)):
        dist.broadcast(tensor, group=group, group_src=0)
    return batch


class FirstRankReads:
    """Yields a source's items on the first rank of the group, and None as often on the others.

    `broadcast_batch` then brings the content. Where the source ends before its length says, all
    ranks end; where reading fails, all fail.
    """

    def __init__(self, source: Iterable[Any], group: dist.ProcessGroup) -> None:
        self.source = source
        self._group = group

    def __len__(self) -> int:
        return len(self.source)  # type: ignore[arg-type]  # a TypeError tells that it has none

    def __iter__(self) -> Iterator[Any]:
        return self._lead() if self._group.rank() == 0 else self._follow()

    def _lead(self) -> Iterator[Any]:
        items: Iterator[Any] | None = None
        while True:
            try:
                items = iter(self.source) if items is None else items
                item = next(items)
            except StopIteration:
                self._tell(_END)
                return
            except BaseException:
                self._tell(_FAILED)
                raise
            self._tell(_ITEM)
            yield item

    def _follow(self) -> Iterator[None]:
        if isinstance(self.source, DataLoader):
            # the first rank's loader draws one seed here; draw it too, to keep one random state
            torch.empty((), dtype=torch.int64).random_(generator=self.source.generator)
        while (signal := self._tell(_END)) == _ITEM:
            yield None
        if signal == _FAILED:
            raise OtherRankFailed(
                "the first rank of this sequence group could not read the next batch: see its error"
            )

    def _tell(self, signal: int) -> int:
        message = torch.tensor(signal)
        dist.broadcast(message, group=self._group, group_src=0)
        return int(message)


def reads_once(source: object) -> bool:
    """Whether one rank alone should read a source: any but a loader of a map-style dataset."""
    return not isinstance(source, DataLoader) or isinstance(source.dataset, IterableDataset)


class _Pickler(pickle.Pickler):
    """Pickles everything but large tensors, which it sets aside in the order they occur."""

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=5)
        self.large: list[Tensor] = []

    def persistent_id(self, value: object) -> tuple[torch.Size, torch.dtype] | None:
        if type(value) is not Tensor or value.layout is not torch.strided:
            return None
        # pickling a tensor takes its whole storage along
        if value.is_cpu and value.untyped_storage().nbytes() <= _SMALL:
            return None
        if value.numel():
            self.large.append(value.detach().cpu())
        return value.shape, value.dtype


class _Unpickler(pickle.Unpickler):
    """Rebuilds what `_Pickler` wrote, receiving each large tensor where it occurs."""

    def __init__(self, pickled: Tensor, group: dist.ProcessGroup) -> None:
        super().__init__(io.BytesIO(pickled.numpy().tobytes()))
        self._group = group

    def persistent_load(self, shape_and_dtype: tuple[torch.Size, torch.dtype]) -> Tensor:
        shape, dtype = shape_and_dtype
        tensor = torch.empty(shape, dtype=dtype)
        if tensor.numel():
            dist.broadcast(_as_bytes(tensor), group=self._group, group_src=0)
        return tensor


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().flatten().view(torch.uint8)
