"""Adapted layers leave merged under the published names, or the export is refused in words."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lingbot.checkpoints.merging import check_exportable, merged_state
from tests.model.worlds import SMALL, small_transformer
from tests.support.adapters import LowRank


class InPlace(nn.Module):
    """The same in the manner of the peft library: it merges into its base layer and back."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.Linear(base.in_features, 2, bias=False)
        self.lora_B = nn.Linear(2, base.out_features, bias=False)
        self.times = 0

    @property
    def merged(self) -> bool:
        return self.times > 0

    def get_base_layer(self) -> nn.Linear:
        return self.base_layer

    def merge(self, safe_merge: bool = False) -> None:
        self.times += 1
        self.base_layer.weight.data += self.lora_B.weight.data @ self.lora_A.weight.data

    def unmerge(self) -> None:
        self.times -= 1
        self.base_layer.weight.data -= self.lora_B.weight.data @ self.lora_A.weight.data

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.lora_B(self.lora_A(x))


class Wrapper(nn.Module):
    """What peft returns: the model below other names."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = model

    def get_base_model(self) -> nn.Module:
        return self.base_model


def adapted(kind):
    """A transformer with one adapted layer in every block."""
    transformer = small_transformer()
    for block in transformer.blocks:
        block.ffn[0] = kind(block.ffn[0])
    return transformer


@pytest.mark.parametrize("kind", [LowRank, InPlace])
@pytest.mark.parametrize("wrapped", [False, True])
@torch.no_grad()
def test_a_merged_layer_computes_what_the_adapted_one_did(kind, wrapped):
    transformer, plain = adapted(kind), small_transformer(seed=9)
    before = {name: value.clone() for name, value in transformer.state_dict().items()}
    whole = Wrapper(transformer) if wrapped else transformer
    check_exportable(whole, SMALL)
    plain.load_state_dict(merged_state(whole))
    x = torch.linspace(-1, 1, 3 * 48).view(3, 48)
    for ours, theirs in zip(plain.blocks, transformer.blocks, strict=True):
        base = theirs.ffn[0].get_submodule("base" if kind is LowRank else "base_layer")
        assert not torch.allclose(ours.ffn[0](x), base(x))
        torch.testing.assert_close(ours.ffn[0](x), theirs.ffn[0](x), atol=1e-5, rtol=1e-5)
    for name, value in transformer.state_dict().items():  # it trains on as it was
        torch.testing.assert_close(value, before[name], atol=1e-6, rtol=0)


def test_a_plain_transformer_is_exported_as_it_is():
    transformer = small_transformer()
    check_exportable(transformer, SMALL)
    state = merged_state(transformer)
    assert state.keys() == transformer.state_dict().keys()


def test_layers_that_do_not_say_what_they_come_to_are_refused_by_name():
    transformer = small_transformer()
    transformer.blocks[1].ffn[0] = nn.Sequential(transformer.blocks[1].ffn[0])
    with pytest.raises(
        ValueError,
        match=r"2 tensors that a world does not have \(blocks\.1\.ffn\.0\.0\.bias, .*2 tensors "
        r"missing \(blocks\.1\.ffn\.0\.bias.*merged_weights\(\).*export_dir=null",
    ):
        check_exportable(transformer, SMALL)
    transformer = small_transformer()
    transformer.blocks[0].ffn[0] = nn.Linear(48, 32)
    with pytest.raises(ValueError, match=r"2 tensors of another shape \(blocks\.0\.ffn\.0\.bias"):
        check_exportable(transformer, SMALL)
