"""How a chunk's tokens are shared out over the ranks of a sequence group, and what does not fit.

Pure arithmetic, checked before a process group or any weight exists. Tokens may split unevenly (by
at most one); attention heads may not, because each rank attends with whole heads
(DeepSpeed-Ulysses, arXiv:2309.14509).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Splits:
    """Tokens of one chunk held by each sequence rank, in token order."""

    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(
                f"sizes={self.sizes}: every rank needs at least one token; use fewer ranks"
            )

    @property
    def ranks(self) -> int:
        """How many ranks share the chunk."""
        return len(self.sizes)

    @property
    def total(self) -> int:
        """Tokens of the whole chunk."""
        return sum(self.sizes)

    @property
    def uniform(self) -> bool:
        """Whether every rank holds the same number of tokens."""
        return len(set(self.sizes)) == 1

    def start(self, rank: int) -> int:
        """Index in the chunk of the first token of `rank`."""
        return sum(self.sizes[:rank])


def even_splits(total: int, ranks: int) -> Splits:
    """Share `total` tokens over `ranks` so that sizes differ by at most one, larger ones first.

    Raises:
        ValueError: fewer tokens than ranks.
    """
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: a sequence group has at least one rank")
    if ranks > total:
        raise ValueError(
            f"{ranks} sequence ranks cannot share the {total} tokens of a chunk: each needs at "
            f"least one; use at most {total} ranks"
        )
    each, left = divmod(total, ranks)
    return Splits(tuple(each + (rank < left) for rank in range(ranks)))


def choose_path(splits: Splits, uniform: bool | None) -> str:
    """The path of an exchange, "uniform" or "variable": what `uniform` says, or the splits allow.

    Raises:
        ValueError: `uniform=True` with unequal splits.
    """
    if uniform and not splits.uniform:
        raise ValueError(
            f"uniform_fast_path=True needs equal splits, got {splits.sizes}: choose a number of "
            f"tokens that divides by {splits.ranks}, or leave it unset"
        )
    return "uniform" if uniform or (uniform is None and splits.uniform) else "variable"


def check_heads(heads: int, ranks: int) -> None:
    """Refuse attention heads that cannot be dealt out to `ranks`, naming the sizes that can."""
    if ranks < 1 or heads % ranks:
        raise ValueError(
            f"{heads} attention heads do not divide over {ranks} sequence ranks: each rank attends "
            f"with whole heads; sequence sizes that work: {', '.join(map(str, _divisors(heads)))}"
        )


def check_mesh(world: int, data: int | None, sequence: int | None) -> tuple[int, int]:
    """Sizes (data, sequence) of the mesh over `world` ranks.

    A size of None is what the other one leaves; with both open, all ranks are one sequence group.

    Raises:
        ValueError: data * sequence is not the world size.
    """
    for name, size in (("data_size", data), ("sequence_size", sequence)):
        if size is not None and size < 1:
            raise ValueError(f"{name}={size}: must be at least 1, or 'auto'")
    data_size = world // (sequence or world) if data is None else data
    sequence_size = world // data_size if sequence is None else sequence
    if data_size * sequence_size != world:
        pairs = ", ".join(f"{world // size} x {size}" for size in _divisors(world))
        raise ValueError(
            f"data_size={data or 'auto'} x sequence_size={sequence or 'auto'} does not fit a world "
            f"of {world} ranks: their product must be {world}; data x sequence sizes that work: "
            f"{pairs}"
        )
    return data_size, sequence_size


def _divisors(number: int) -> list[int]:
    return [size for size in range(1, number + 1) if number % size == 0]
