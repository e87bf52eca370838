"""A token's result does not depend on how many tokens a rank has."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lingbot.model.linear import FEWEST_ROWS, Linear, linear

ROWS = 180
SIZES = [(48, 48), (64, 48), (384, 48), (288, 288), (288, 864), (768, 288), (288, 64), (1536, 256)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), SIZES)
def test_rows_are_the_same_among_any_others(inputs, outputs, dtype):
    generator = torch.Generator().manual_seed(inputs)
    x = torch.randn(ROWS, inputs, generator=generator).to(dtype)
    layer = Linear(inputs, outputs, dtype=dtype)
    with torch.inference_mode():
        whole = layer(x)
        for ranks in (2, 3, 4, 7, 9, 20, 60, 180):
            shares = [layer(share) for share in x.tensor_split(ranks)]
            assert torch.equal(torch.cat(shares), whole), ranks


def test_it_is_the_linear_of_torch_and_keeps_shapes():
    layer = Linear(5, 3)
    x = torch.randn(2, 1, 4, 5)
    with torch.no_grad():
        y = layer(x)
    assert y.shape == (2, 1, 4, 3)
    torch.testing.assert_close(y, F.linear(x, layer.weight, layer.bias))
    assert torch.equal(linear(x[:0], layer.weight.detach()), x.new_empty(0, 1, 4, 3))
    assert layer(x).requires_grad


def test_a_chunk_of_the_shipped_world_needs_no_padding(monkeypatch):
    monkeypatch.setattr(F, "pad", lambda *_: pytest.fail("padded"))
    with torch.inference_mode():
        Linear(8, 8)(torch.randn(ROWS, 8))
    assert ROWS >= FEWEST_ROWS
