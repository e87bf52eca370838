"""8 bits: what they lose, and that they take half the memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lingbot.kernels.fp8 import Fp8Linear, quantise_rows, scaled_matmul
from lingbot.kernels.fp8_kv import Fp8KV, decode_values, encode, encode_keys_values
from lingbot.model import KVCache
from tests.kernels.driving import WINDOW, applied, chosen, drive
from tests.model.worlds import SMALL, cached, small_transformer


def test_fp8_linears_take_rows_that_are_quantised_already():
    torch.manual_seed(0)
    layer, x = Fp8Linear(nn.Linear(64, 32)), torch.randn(5, 64)
    assert torch.equal(layer(quantise_rows(x)), layer(x))


def test_rows_in_fp8_are_within_half_a_step_of_their_scale():
    x = torch.randn(64, 96) * torch.logspace(-3, 3, 64)[:, None]
    rows, scale = quantise_rows(x)
    assert rows.dtype == torch.float8_e4m3fn
    error = (rows.float() * scale - x).abs()
    assert (error <= x.abs() / 16 + scale / 512).all()  # 3 bits of mantissa


def test_an_fp8_linear_is_a_linear_up_to_its_rounding():
    torch.manual_seed(0)
    linear = nn.Linear(256, 128)
    x = torch.randn(2, 3, 256)
    exact, rough = linear(x), Fp8Linear(linear)(x)
    assert rough.shape == exact.shape
    relative = (rough - exact).norm() / exact.norm()
    assert 1e-3 < relative < 0.05
    rows, scale = quantise_rows(x.flatten(0, -2))
    weight, weight_scale = quantise_rows(linear.weight)
    again = scaled_matmul(rows, weight, scale, weight_scale.T) + linear.bias
    torch.testing.assert_close(rough.flatten(0, -2), again)


def test_sides_that_fp8_cannot_take_are_refused():
    with pytest.raises(ValueError, match="72 x 64 cannot run in fp8"):
        Fp8Linear(nn.Linear(72, 64))


def test_what_is_encoded_for_fp8_attention_comes_back_within_half_a_step():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    _, encoded = encode_keys_values(values, values)
    assert encoded.dtype == torch.float8_e4m3fn
    error = (decode_values(encoded) - values).abs()
    assert (error <= values.abs() / 16 + 2**-13).all()
    assert encode(torch.tensor([1e4, -1e4])).float().tolist() == [448.0, -448.0]


def test_keys_and_values_in_fp8_drive_near_the_reference_with_half_the_memory():
    exact, rough = small_transformer(), applied(chosen(kv="fp8"))
    reference, flows = drive(exact), drive(rough)
    relative = (flows - reference).norm() / reference.norm()
    assert 0 < relative < 0.05
    assert rough.kv_dtype == torch.float8_e4m3fn
    sizes = [cached(x, WINDOW).kv_cache.bytes for x in (rough.bfloat16(), exact)]
    assert sizes[0] / sizes[1] == 1 / 4  # of float32
    assert cached(exact.bfloat16(), WINDOW).kv_cache.bytes == 2 * sizes[0]


def test_a_cache_in_fp8_gives_back_what_it_was_given_decoded():
    grid = SMALL.grid(3, 4, 6)
    cache = KVCache(
        WINDOW, grid, layers=1, batch=1, heads=2, head_dim=12, dtype=torch.float32,
        device=torch.device("cpu"), format=Fp8KV(),
    )  # fmt: skip
    k, v = torch.randn(2, 1, 1, grid.tokens, 2, 12, generator=torch.Generator().manual_seed(0))
    for first in (0, 3, 6):
        cache.begin_chunk(first)
        cache.store(0, *encode_keys_values(k, v))
    for rows in (cache.of_chunk(0), [x[:, -grid.tokens :] for x in cache.in_time_order(0)]):
        for kept, given in zip(rows, (k, v), strict=True):
            torch.testing.assert_close(kept, given[:, 0], rtol=0.07, atol=0.01)
    cache.fill_random(6, torch.Generator().manual_seed(0))
    assert cache.visible(0)[0].float().std() == pytest.approx(1, abs=0.05)
