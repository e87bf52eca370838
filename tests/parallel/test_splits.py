"""Sharing out tokens: near-even splits, and what is refused with the sizes that would work."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lingbot.parallel.splits import Splits, check_heads, check_mesh, choose_path, even_splits


@given(st.integers(1, 64), st.integers(0, 5000))
def test_even_splits_cover_all_tokens_in_order_and_differ_by_at_most_one(ranks: int, more: int):
    splits = even_splits(ranks + more, ranks)
    assert splits.total == ranks + more
    assert splits.ranks == ranks
    assert max(splits.sizes) - min(splits.sizes) <= 1
    assert splits.uniform == ((ranks + more) % ranks == 0)
    starts = [splits.start(rank) for rank in range(ranks + 1)]
    assert starts == [sum(splits.sizes[:rank]) for rank in range(ranks + 1)]


def test_the_presets_of_the_published_model_split_as_designed():
    assert even_splits(4680, 4) == Splits((1170,) * 4)
    assert even_splits(4524, 8) == Splits((566,) * 4 + (565,) * 4)
    assert choose_path(even_splits(4680, 4), None) == "uniform"
    assert choose_path(even_splits(4680, 4), False) == "variable"
    assert choose_path(even_splits(4524, 8), None) == "variable"
    with pytest.raises(ValueError, match=r"equal splits.*divides by 8"):
        choose_path(even_splits(4524, 8), True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: even_splits(3, 4), "4 sequence ranks cannot share the 3 tokens.*at most 3 ranks"),
        (lambda: even_splits(3, 0), "ranks=0"),
        (lambda: Splits(()), "at least one token"),
        (lambda: Splits((3, 0)), "at least one token"),
        (lambda: check_heads(40, 3), "40 attention heads .* 1, 2, 4, 5, 8, 10, 20, 40"),
        (lambda: check_mesh(8, None, 3), "world of 8 ranks.*8 x 1, 4 x 2, 2 x 4, 1 x 8"),
        (lambda: check_mesh(8, 2, 2), "data_size=2 x sequence_size=2"),
        (lambda: check_mesh(2, None, 4), "sequence_size=4"),
        (lambda: check_mesh(2, 4, None), "data_size=4"),
        (lambda: check_mesh(2, None, 0), "sequence_size=0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_sizes_that_would(call, message: str):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("world", "data", "sequence", "sizes"),
    [
        (8, None, None, (1, 8)),
        (8, 2, None, (2, 4)),
        (8, None, 2, (4, 2)),
        (8, 8, 1, (8, 1)),
        (1, None, None, (1, 1)),
    ],
)
def test_an_open_mesh_size_is_what_the_other_leaves(world, data, sequence, sizes):
    assert check_mesh(world, data, sequence) == sizes
    check_heads(40, 8)
