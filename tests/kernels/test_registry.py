"""Every entry of the registry is held to the reference; one that is added is held to it, too."""

from __future__ import annotations

from dataclasses import fields
from functools import partial

import pytest
import torch

from lingbot.kernels import REGISTRY, KernelConfig
from lingbot.kernels.apply import set_ops
from lingbot.kernels.registry import compile_ops, reference_ops
from lingbot.model import TransformerConfig
from tests.kernels.driving import applied, drive, gradients, losses
from tests.model.worlds import small_transformer

# heads of a width that every kernel takes
SIZES = TransformerConfig(
    dim=64, ffn_dim=96, num_heads=2, num_layers=3, text_dim=16, text_len=8, freq_dim=32
)
NO_GPU = not torch.cuda.is_available()
WAYS = [
    pytest.param(
        name,
        packed,
        marks=[pytest.mark.gpu, pytest.mark.skipif(NO_GPU, reason="needs a CUDA device")]
        if way.elsewhere
        else [],
    )
    for name, way in REGISTRY.items()
    for packed in ([True] if way.packed_only else [False, True])
]
TRAINING = [way for way in WAYS if REGISTRY[str(way.values[0])].trains]


def device(name: str) -> str:
    return "cuda" if REGISTRY[name].elsewhere else "cpu"


@pytest.mark.parametrize(("name", "packed"), WAYS)
def test_an_entry_drives_as_the_reference_does(name: str, packed: bool) -> None:
    torch._dynamo.reset()
    transformer = applied(KernelConfig(name, pack_qkv=packed), SIZES, device=device(name))
    assert {block.ops.name for block in transformer.blocks} == {name}
    expected = drive(small_transformer(SIZES))
    torch.testing.assert_close(drive(transformer), expected, rtol=1e-5, atol=5e-6)


@pytest.mark.parametrize(("name", "packed"), TRAINING)
def test_an_entry_has_the_loss_and_the_gradients_of_the_reference(name: str, packed: bool) -> None:
    torch._dynamo.reset()
    reference = small_transformer(SIZES).requires_grad_(True)
    config = KernelConfig(name, pack_qkv=packed)
    other = applied(config, SIZES, trained=True, device=device(name))
    results = [losses(transformer) for transformer in (reference, other)]
    torch.testing.assert_close(results[1].cpu(), results[0], rtol=0, atol=1e-5)
    for result in results:
        result.backward()
    found, expected = gradients(other), gradients(reference)
    assert found.keys() == expected.keys()
    for key, mine in found.items():
        torch.testing.assert_close(mine.cpu(), expected[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("packed", [False, True])
def test_all_blocks_share_one_compilation_of_each_function(packed: bool) -> None:
    compilations = []

    def backend(graph, inputs):
        compilations.append(graph)
        return graph.forward

    torch._dynamo.reset()
    transformer = applied(KernelConfig(pack_qkv=packed))
    ops = compile_ops(
        reference_ops(packed), partial(torch.compile, backend=backend, fullgraph=True)
    )
    set_ops(transformer, ops)
    drive(transformer)
    twice = 1  # what self-attention and the prompt both do, with other shapes
    assert len(compilations) == len(fields(ops)) - 1 + twice
