import math

import pytest
import torch

from lingbot.muon import Muon, orthogonalise


def test_orthogonalised_momentum_has_singular_values_near_one():
    for shape in ((16, 40), (40, 16)):
        singular = torch.linalg.svdvals(orthogonalise(torch.randn(shape)))
        assert singular.min() > 0.5
        assert singular.max() < 1.4


def test_muon_moves_matrices_by_its_rate_and_the_rest_like_adam():
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(8, 8, 3)
    before = [weight.detach().clone() for weight in (layer.weight, layer.bias)]
    optimizer = Muon(layer.parameters(), lr=0.02, adam_ratio=0.1)
    layer(torch.randn(1, 8, 3, 3, 3)).square().sum().backward()
    optimizer.step()
    change = (layer.weight - before[0]).detach().flatten(1)
    assert torch.linalg.matrix_norm(change, 2) == pytest.approx(0.02, rel=0.3)
    torch.testing.assert_close((layer.bias - before[1]).abs(), torch.full((8,), 0.002))


@pytest.mark.parametrize(
    "bad",
    [
        {"lr": 0}, {"lr": math.inf}, {"lr": math.nan}, {"momentum": 1.0}, {"momentum": math.nan},
        {"adam_ratio": math.nan}, {"adam_ratio": -1.0}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)},
        {"smallest_side": 0}, {"smallest_side": 1.5},
    ],
    ids=str,
)  # fmt: skip
def test_muon_refuses_rates_that_cannot_work(bad):
    with pytest.raises(ValueError, match=f"optimizer.{next(iter(bad))}="):
        Muon([torch.nn.Parameter(torch.zeros(1))], **bad)


def test_weights_under_the_smallest_side_take_adam_steps():
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    before = layer.weight.detach().clone()
    optimizer = Muon(layer.parameters(), lr=0.02, adam_ratio=0.1, smallest_side=9)
    layer(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close((layer.weight - before).abs(), torch.full((8, 8), 0.002))


def test_weights_that_move_together_move_as_each_would_alone():
    torch.manual_seed(0)
    shapes = [(24, 12), (24, 12), (12, 24), (16, 4, 2, 2), (12,), (3, 5), (24, 12)]
    together = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    alone = [torch.nn.Parameter(weight.detach().clone()) for weight in together]
    optimizers = [Muon(together, lr=0.1), *(Muon([weight], lr=0.1) for weight in alone)]
    for step in range(3):
        for one, other in zip(together, alone, strict=True):
            one.grad = torch.randn(one.shape)
            other.grad = one.grad.clone()
        if step == 1:  # one that has no gradient stays, and counts its own steps
            together[4].grad = alone[4].grad = None
        for optimizer in optimizers:
            optimizer.step()
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-3)  # bfloat16 sums differ in order


def test_what_muon_remembers_comes_back_from_a_checkpoint():
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    optimizer = Muon(layer.parameters())
    layer(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    again = Muon(layer.parameters())
    again.load_state_dict(optimizer.state_dict())
    assert again.state[layer.bias]["step"] == 1
    assert torch.equal(again.state[layer.weight]["mean"], optimizer.state[layer.weight]["mean"])
