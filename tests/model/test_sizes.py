"""Sizes that are told in advance are those of the real modules and caches."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial

import pytest
import torch

from lingbot.model import (
    CausalLingBotTransformer,
    ConditionerCache,
    KVCache,
    KVCacheConfig,
    LocalExchange,
    TransformerConfig,
)
from lingbot.model.ops import scale_shift
from lingbot.model.sizes import (
    conditioner_bytes,
    count_parameters,
    history_bytes,
    text_bytes,
    transformer_parameters,
)
from tests.model.worlds import SMALL, small_transformer

GRID = SMALL.grid(3, 4, 6)


@pytest.mark.parametrize(
    "config",
    [SMALL, replace(SMALL, control="act", num_layers=1), replace(SMALL, patch_size=(1, 1, 1))],
    ids=["cam", "act", "small patches"],
)
def test_the_parameters_of_a_transformer_are_counted_without_building_it(
    config: TransformerConfig,
) -> None:
    assert transformer_parameters(config) == count_parameters(CausalLingBotTransformer(config))


def test_any_number_of_layers_is_counted_at_once() -> None:
    began = time.process_time()
    counts = [transformer_parameters(replace(SMALL, num_layers=n)) for n in (1, 2, 10_000_000)]
    assert counts[2] == counts[0] + 9_999_999 * (counts[1] - counts[0])
    assert time.process_time() - began < 5


@pytest.mark.parametrize("cache", [KVCacheConfig(9, 3), KVCacheConfig(max_frames=12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_bytes_of_a_history_are_those_of_the_cache(cache, dtype) -> None:
    real = KVCache(
        cache, GRID, layers=SMALL.num_layers, batch=1, heads=SMALL.num_heads,
        head_dim=SMALL.head_dim, dtype=dtype, device=torch.device("cpu"),
    )  # fmt: skip
    assert history_bytes(SMALL, cache, GRID, dtype.itemsize) == real.bytes


def test_the_bytes_of_prompt_and_camera_are_those_that_blocks_keep() -> None:
    transformer = small_transformer()
    text = transformer.embed_text(torch.zeros(1, 3, SMALL.text_dim))
    assert text_bytes(SMALL, 4) == sum(value.nbytes for pair in text for value in pair)
    exchange, conditioner = LocalExchange(SMALL.num_heads), ConditionerCache("step")
    rays = transformer.embed_controls(torch.zeros(1, SMALL.control_channels, 3, 4, 6), exchange)
    for block in transformer.blocks:
        conditioner(block.layer, rays, partial(scale_shift, block), updating=False)
    assert conditioner_bytes(SMALL, GRID, 4) == conditioner.take_counts().bytes
