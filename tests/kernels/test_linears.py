"""Linears in the place of others: what they compute, and what state dicts have of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from lingbot.kernels import KernelConfig, apply
from lingbot.kernels.fp8 import Fp8Linear
from lingbot.kernels.linears import PackedLinear, replace_linears
from lingbot.model import CausalLingBotTransformer, TransformerConfig
from lingbot.muon import Muon
from tests.kernels.driving import applied, chosen, drive
from tests.model.worlds import SMALL, small_transformer
from tests.support.adapters import LowRank

OPTIONS: dict[str, dict[str, Any]] = {
    "reference": {},
    "packed": {"pack_qkv": True},
    "fp8": {"linears": "fp8"},
    "packed fp8": {"pack_qkv": True, "linears": "fp8", "kv": "fp8"},
}


def adapted(*names: str) -> CausalLingBotTransformer:
    """A small transformer with adapters in all blocks."""
    transformer = small_transformer()
    torch.manual_seed(5)
    for block in transformer.blocks:
        assert replace_linears(block, LowRank, lambda name: name in names) == list(names)
    return transformer.requires_grad_(False)


@pytest.mark.parametrize("option", OPTIONS)
def test_state_dicts_have_the_published_names_and_weights_under_every_option(option: str) -> None:
    before, after = (
        small_transformer().state_dict(),
        applied(chosen(**OPTIONS[option])).state_dict(),
    )
    assert before.keys() == after.keys()
    for name, weight in before.items():
        assert after[name].dtype == weight.dtype
        if "fp8" not in option:
            assert torch.equal(after[name], weight)
        else:  # half of the last of three bits, of the largest of a row where that is more
            error = (after[name] - weight).abs()
            assert (error <= weight.abs() / 15 + weight.abs().amax() / 400).all(), name


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_saved_under_an_option_loads_under_every_other(option: str) -> None:
    other = small_transformer(seed=7)
    apply(other, chosen(**OPTIONS[option]))
    other.load_state_dict(small_transformer().state_dict())
    torch.testing.assert_close(
        drive(other), drive(applied(chosen(**OPTIONS[option]))), rtol=0, atol=1e-6
    )
    plain = small_transformer(seed=7)
    plain.load_state_dict(other.state_dict())
    near = 0.05 if "fp8" in option else 1e-6
    error = (drive(plain) - drive(small_transformer())).norm() / drive(plain).norm()
    assert error < near


def test_a_missing_weight_is_told_by_its_published_name() -> None:
    state = small_transformer().state_dict()
    del state["blocks.1.self_attn.k.weight"]
    for option in ("packed", "packed fp8"):
        found = applied(chosen(**OPTIONS[option])).load_state_dict(dict(state), strict=False)
        assert "blocks.1.self_attn.k.weight" in found.missing_keys
        assert not [name for name in found.missing_keys if "qkv" in name]


def test_packed_queries_keys_and_values_are_one_linear_and_nothing_beside_it() -> None:
    transformer = applied(KernelConfig(pack_qkv=True))
    torch.testing.assert_close(drive(transformer), drive(small_transformer()), rtol=0, atol=1e-6)
    attention = transformer.blocks[0].self_attn
    assert isinstance(attention.qkv, PackedLinear)
    assert {name for name, _ in attention.named_children()} == {"o", "norm_q", "norm_k", "qkv"}
    count = sum(p.numel() for p in small_transformer().parameters())
    assert sum(p.numel() for p in transformer.parameters()) == count
    views = attention.state_dict()
    storages = {views[f"{name}.weight"].untyped_storage().data_ptr() for name in "qkv"}
    assert storages == {attention.qkv.weight.untyped_storage().data_ptr()}


def test_the_last_outputs_of_a_packed_linear_are_those_of_all() -> None:
    torch.manual_seed(0)
    packed = PackedLinear([nn.Linear(64, 16) for _ in range(3)])
    x = torch.randn(5, 64)
    for layer in (packed, Fp8Linear(packed)):
        torch.testing.assert_close(layer(x, skip=16), layer(x)[:, 16:], rtol=0, atol=1e-6)


def test_muon_makes_packed_queries_keys_and_values_orthogonal_apart() -> None:
    torch.manual_seed(0)
    apart = [nn.Linear(24, 16) for _ in range(3)]
    packed = PackedLinear(apart)
    before = packed.weight.detach().clone()
    for name in ("weight", "bias"):
        for layer in apart:
            weight = getattr(layer, name)
            weight.grad = torch.randn(weight.shape)
        together = [getattr(layer, name).grad for layer in apart]
        getattr(packed, name).grad = torch.cat(together)
    Muon([p for layer in apart for p in layer.parameters()], lr=0.1).step()
    Muon(packed.parameters(), lr=0.1).step()
    for layer, weight, bias in zip(
        apart, packed.weight.chunk(3), packed.bias.chunk(3), strict=True
    ):
        torch.testing.assert_close(weight, layer.weight, rtol=0, atol=1e-4)
        torch.testing.assert_close(bias, layer.bias)
    for change in (packed.weight - before).detach().chunk(3):
        assert torch.linalg.svdvals(change).amin() > 0.03  # of each, and not of all three


def test_muon_counts_the_smallest_side_of_each_matrix_in_a_packed_one() -> None:
    packed = PackedLinear([nn.Linear(8, 4) for _ in range(3)])
    before = packed.weight.detach().clone()
    optimizer = Muon(packed.parameters(), lr=0.02, adam_ratio=0.1, smallest_side=5)
    packed(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close((packed.weight - before).abs(), torch.full((12, 8), 0.002))


def test_a_copy_of_a_packed_transformer_is_saved_and_moved_apart_too() -> None:
    transformer = applied(KernelConfig(pack_qkv=True))
    twin = copy.deepcopy(transformer)
    assert twin.state_dict().keys() == small_transformer().state_dict().keys()
    twin.load_state_dict(small_transformer(seed=3).state_dict())
    assert torch.equal(drive(transformer), drive(applied(KernelConfig(pack_qkv=True))))


@pytest.mark.parametrize("kernels", ["fp8", "packed fp8"])
def test_adapters_and_fp8_compose(kernels: str) -> None:
    """An adapter adds its update to a base in fp8; packed, it is merged first."""
    names = ("self_attn.q", "self_attn.o", "cross_attn.v", "ffn.0", "cam_scale_layer")
    exact, rough = adapted(*names), adapted(*names)
    apply(rough, chosen(**OPTIONS[kernels]))
    block = rough.blocks[0]
    for name in names[1:]:
        assert isinstance(block.get_submodule(name), LowRank)
        assert isinstance(block.get_submodule(f"{name}.base"), Fp8Linear)
        assert isinstance(block.get_submodule(f"{name}.down"), nn.Linear)
    plain = applied(chosen(**OPTIONS[kernels]))
    reference, flows = drive(exact), drive(rough)
    error = (flows - reference).norm() / reference.norm()
    assert 0 < error < 0.1
    assert (drive(plain) - reference).norm() > 3 * (flows - reference).norm()


def test_an_adapter_over_fp8_says_what_both_come_to() -> None:
    transformer = adapted("ffn.0")
    apply(transformer, KernelConfig(linears="fp8"))
    layer = transformer.blocks[0].ffn[0]
    x = torch.randn(3, SMALL.dim, generator=torch.Generator().manual_seed(0))
    merged = layer.merged_weights()
    error = layer(x) - nn.functional.linear(x, merged["weight"], merged["bias"])
    assert error.norm() / layer(x).norm() < 0.05  # the input's rounding


def test_in_fp8_no_linear_of_a_block_keeps_its_exact_weights() -> None:
    transformer = applied(KernelConfig(pack_qkv=True, linears="fp8"))
    for block in transformer.blocks:
        assert not [name for name, p in block.named_parameters() if name.endswith("weight")
                    and p.dim() == 2]  # fmt: skip
        assert block.dtype == torch.float32
        assert len([m for m in block.modules() if isinstance(m, Fp8Linear)]) == 12


def test_fp8_drives_stay_near_the_reference() -> None:
    config = TransformerConfig(
        dim=96, ffn_dim=128, num_heads=4, num_layers=2, text_dim=16, text_len=8, freq_dim=32
    )
    rough = applied(KernelConfig(pack_qkv=True, linears="fp8"), config)
    reference, flows = drive(small_transformer(config)), drive(rough)
    relative = (flows - reference).norm() / reference.norm()
    assert 0 < relative < 0.1
