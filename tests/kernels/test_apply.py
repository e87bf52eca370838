"""Every choice of kernels computes what the reference forward does."""

from __future__ import annotations

import logging
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lingbot.diffusion import FlowMatching, FlowSchedule
from lingbot.model import (
    CausalLingBotTransformer,
    KVCache,
    KVCacheConfig,
    LocalExchange,
    TransformerConfig,
)
from lingbot.model.exchange import Exchange
from lingbot.model.fp8 import Fp8Linear, quantise_rows, scaled_matmul
from lingbot.model.fp8_attention import decode_values, encode, encode_keys_values
from lingbot.model.kernels import COMPILED, Kernels, compile_parts
from lingbot.parallel.exchange import SequenceExchange
from lingbot.parallel.splits import even_splits
from tests.distributed import run_ranks
from tests.model.worlds import SMALL, cached, chunk_inputs, small_transformer

WINDOW = KVCacheConfig(window=6, sink=2)


def drive(
    transformer: CausalLingBotTransformer, chunks: int = 3, exchange: Exchange | None = None
) -> Tensor:
    """Flows of two passes a chunk, with context updates between."""
    model = cached(transformer, WINDOW, exchange=exchange)
    latents, condition, controls = chunk_inputs(SMALL, chunks)
    flows = []
    with torch.no_grad():
        for frame in range(0, 3 * chunks, 3):
            part = slice(frame, frame + 3)
            model.begin_chunk(controls[:, :, part], condition[:, :, part], frame)
            flows += [model.predict(latents[:, :, part], t) for t in (999.0, 700.0)]
            model.update_context(latents[:, :, part])
    return torch.cat(flows)


def prepared(kernels: Kernels) -> CausalLingBotTransformer:
    transformer = small_transformer()
    kernels.prepare(transformer)
    return transformer


def test_packed_qkv_changes_nothing_and_keeps_the_public_names():
    transformer = prepared(Kernels("packed", pack_qkv=True))
    torch.testing.assert_close(drive(transformer), drive(small_transformer()), rtol=0, atol=1e-6)
    before, after = small_transformer().state_dict(), transformer.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    attention = transformer.blocks[0].self_attn
    storages = {layer.weight.untyped_storage().data_ptr() for layer in (attention.q, attention.v)}
    assert storages == {attention.packed.weight.untyped_storage().data_ptr()}


def test_compiled_parts_drive_as_the_reference_does():
    transformer = prepared(Kernels("fast", parts="compiled", pack_qkv=True))
    torch.testing.assert_close(drive(transformer), drive(small_transformer()), rtol=0, atol=2e-6)


def test_fused_parts_are_compiled_where_there_is_no_gpu_and_the_log_says_so(caplog):
    caplog.set_level(logging.INFO)
    transformer = prepared(Kernels("fast", parts="fused", pack_qkv=True))
    assert "Kernels fast: parts compiled, q, k, v packed" in caplog.text
    assert {name for name in COMPILED if name in vars(transformer.blocks[0])} == set(COMPILED)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("count", [3, 2])
def test_a_send_buffer_filled_through_its_view_is_what_pack_gives(ranks, count):
    generator = torch.Generator().manual_seed(0)
    shape = (2, 3, 6, 8, 4)  # B, C, L, H, D
    tensors = [torch.randn(shape, generator=generator) for _ in range(count)]
    exchange = LocalExchange(8)
    if ranks > 1:
        group = SimpleNamespace(size=lambda: ranks, rank=lambda: 0)
        exchange = SequenceExchange(group, even_splits(6 * ranks, ranks), 8)
    packed, views, _ = exchange.send_buffer(tensors[0], count, shape)
    for view, x in zip(views, tensors, strict=True):
        assert view.shape == (2 * 3 * 6, ranks, 8 // ranks, 4)
        view.copy_(x.view(view.shape))
    expected = exchange.pack(*tensors)
    assert all(torch.equal(*pair) for pair in zip(packed, expected, strict=True))


def _driven_by_a_rank(rank: int, kernels: dict[str, Any]) -> Tensor:
    splits = even_splits(18, dist.get_world_size())
    exchange = SequenceExchange(dist.group.WORLD, splits, SMALL.num_heads)
    return drive(prepared(Kernels("ranks", **kernels)), exchange=exchange)


@pytest.mark.processes
@pytest.mark.parametrize(
    "kernels", [{"pack_qkv": True}, {"pack_qkv": True, "linears": "fp8", "attention": "fp8"}]
)
def test_ranks_drive_as_one_does_in_every_precision(kernels):
    expected = drive(prepared(Kernels("alone", **kernels)))
    for made in run_ranks(_driven_by_a_rank, 2, kernels):
        torch.testing.assert_close(made, expected, rtol=0, atol=5e-6)


def test_parts_of_an_fp8_linear_share_its_weights():
    torch.manual_seed(0)
    layer, x = Fp8Linear(nn.Linear(64, 48)), torch.randn(5, 64)
    part = layer.part(slice(16, 48))
    torch.testing.assert_close(part(x), layer(x)[:, 16:], rtol=0, atol=1e-6)
    assert part.weight.untyped_storage().data_ptr() == layer.weight.untyped_storage().data_ptr()
    assert layer.weight.shape == (48, 64)


def test_in_fp8_a_block_keeps_its_queries_keys_and_values_once():
    transformer = prepared(Kernels("fp8", pack_qkv=True, linears="fp8"))
    attention = transformer.blocks[0].self_attn
    layers = (attention.packed, attention.packed_kv, attention.q, attention.k, attention.v)
    assert len({layer.weight.untyped_storage().data_ptr() for layer in layers}) == 1


def test_in_fp8_no_linear_of_a_block_keeps_its_exact_weights():
    transformer = prepared(Kernels("fp8", pack_qkv=True, linears="fp8"))
    for block in transformer.blocks:
        assert not [name for name, p in block.named_parameters() if name.endswith("weight")
                    and p.dim() == 2]  # fmt: skip
        assert block.dtype == torch.float32


def test_fp8_linears_take_rows_that_are_quantised_already():
    torch.manual_seed(0)
    layer, x = Fp8Linear(nn.Linear(64, 32)), torch.randn(5, 64)
    assert torch.equal(layer(quantise_rows(x)), layer(x))


def losses(transformer: CausalLingBotTransformer) -> Tensor:
    latents, condition, controls = chunk_inputs(SMALL, chunks=2)
    objective = FlowMatching(FlowSchedule(5.0), history_noise=0.2, resampled_history=1.0)
    return objective(
        transformer, latents, condition, controls, torch.linspace(-1, 1, 5 * 16).view(1, 5, 16),
        cache=WINDOW, exchange=LocalExchange(SMALL.num_heads),
        generator=torch.Generator().manual_seed(0), step=0,
    )["loss"]  # fmt: skip


def test_training_through_compiled_parts_has_the_same_loss_and_gradients():
    reference, compiled = (small_transformer().requires_grad_(True) for _ in range(2))
    torch._dynamo.reset()
    for block in compiled.blocks:
        compile_parts(block, partial(torch.compile, backend="aot_eager"))
    results = [losses(transformer) for transformer in (reference, compiled)]
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=1e-5)
    for result in results:
        result.backward()
    for (name, mine), (_, theirs) in zip(
        compiled.named_parameters(), reference.named_parameters(), strict=True
    ):
        assert mine.grad is not None, name
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_all_blocks_share_one_compilation_of_each_part():
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    transformer = small_transformer()
    for block in transformer.blocks:
        compile_parts(block, partial(torch.compile, backend=backend, fullgraph=True))
    drive(transformer)
    assert len(compilations) == len(COMPILED)


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


def test_fp8_drives_stay_near_the_reference():
    config = TransformerConfig(
        dim=96, ffn_dim=128, num_heads=4, num_layers=2, text_dim=16, text_len=8, freq_dim=32
    )
    exact, rough = (small_transformer(config) for _ in range(2))
    Kernels("fp8", pack_qkv=True, linears="fp8").prepare(rough)
    kinds = [type(layer) for name, layer in rough.blocks[0].named_modules() if "ffn." in name]
    assert kinds.count(Fp8Linear) == 2
    reference, flows = drive(exact), drive(rough)
    relative = (flows - reference).norm() / reference.norm()
    assert 0 < relative < 0.1


def test_attention_in_fp8_drives_near_the_reference_with_half_the_memory():
    exact, rough = small_transformer(), small_transformer()
    Kernels("attention", attention="fp8").prepare(rough)
    reference, flows = drive(exact), drive(rough)
    relative = (flows - reference).norm() / reference.norm()
    assert 0 < relative < 0.05
    halved = cached(rough.bfloat16(), WINDOW).memory.bytes / cached(exact, WINDOW).memory.bytes
    assert halved == 1 / 4  # of float32
    assert cached(exact.bfloat16(), WINDOW).memory.bytes == 2 * cached(rough, WINDOW).memory.bytes


def test_what_is_encoded_for_fp8_attention_comes_back_within_half_a_step():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    _, encoded = encode_keys_values(values, values)
    assert encoded.dtype == torch.float8_e4m3fn
    error = (decode_values(encoded) - values).abs()
    assert (error <= values.abs() / 16 + 2**-13).all()
    assert encode(torch.tensor([1e4, -1e4])).float().tolist() == [448.0, -448.0]


def test_a_memory_in_fp8_gives_back_what_it_was_given_decoded():
    grid = SMALL.grid(3, 4, 6)
    memory = KVCache(
        WINDOW, grid, layers=1, batch=1, heads=2, head_dim=12, dtype=torch.float8_e4m3fn,
        device=torch.device("cpu"),
    )  # fmt: skip
    k, v = torch.randn(2, 1, 1, grid.tokens, 2, 12, generator=torch.Generator().manual_seed(0))
    for first in (0, 3, 6):
        memory.begin_chunk(first)
        memory.store(0, *encode_keys_values(k, v))
    for rows in (memory.of_chunk(0), [x[:, -grid.tokens :] for x in memory.in_time_order(0)]):
        for kept, given in zip(rows, (k, v), strict=True):
            torch.testing.assert_close(kept, given[:, 0], rtol=0.07, atol=0.01)
    memory.pretend(6, torch.Generator().manual_seed(0))
    assert memory.visible(0)[0].float().std() == pytest.approx(1, abs=0.05)


def test_keys_and_values_written_at_home_need_not_be_stored():
    grid = SMALL.grid(3, 4, 6)
    memory = KVCache(
        WINDOW, grid, layers=1, batch=1, heads=4, head_dim=12, dtype=torch.float32,
        device=torch.device("cpu"),
    )  # fmt: skip
    memory.begin_chunk(0)
    shape = (1, 1, grid.tokens, 4, 12)
    packed, views, _ = LocalExchange(4).send_buffer(torch.empty(0), 3, shape, memory.home(0))
    for view in views:
        view.normal_()
    q, k, v = packed
    before = [x.clone() for x in memory.visible(0)]
    memory.store(0, k, v)
    assert all(torch.equal(*pair) for pair in zip(memory.visible(0), before, strict=True))
    assert torch.equal(memory.visible(0)[1], v[:, 0])
    assert q.shape == shape
    memory.begin_chunk(3)
    memory.begin_chunk(6)
    memory.begin_chunk(9)  # a ring of 4 frames: its chunk of 3 lies in two places
    assert memory.home(0) is None


def test_sides_that_fp8_cannot_take_are_refused():
    with pytest.raises(ValueError, match="72 x 64 cannot run in fp8"):
        Fp8Linear(nn.Linear(72, 64))


def test_unknown_choices_and_training_through_driving_kernels_are_refused():
    with pytest.raises(ValueError, match=r"kernels.parts='fast'"):
        Kernels(parts="fast")
    with pytest.raises(ValueError, match="choose one of"):
        Kernels(linears="int8")
    with pytest.raises(ValueError, match="set pack_qkv=true"):
        Kernels(parts="fused")
    with pytest.raises(ValueError, match="train with kernels=reference"):
        Kernels("fast", parts="fused", pack_qkv=True).check_training()
    with pytest.raises(ValueError, match="train with kernels=reference"):
        Kernels("fp8", linears="fp8").check_training()
    Kernels("compiled", parts="compiled").check_training()


def test_fp8_attention_on_a_gpu_without_its_library_is_refused_before_anything_is_built(
    monkeypatch,
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("lingbot.model.fp8_attention.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"lingbot\[fp8\].*kernels.attention=exact"):
        Kernels(attention="fp8")
    Kernels(linears="fp8")


def test_a_transformer_prepared_once_does_not_change_its_kernels():
    transformer = prepared(Kernels("packed", pack_qkv=True))
    Kernels("packed", pack_qkv=True).prepare(transformer)
    Kernels("the decode is the session's", pack_qkv=True, graph_decode=True).prepare(transformer)
    with pytest.raises(RuntimeError, match="build another"):
        Kernels().prepare(transformer)
