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


@pytest.mark.parametrize("bad", [{"lr": 0}, {"momentum": 1.0}], ids=str)
def test_muon_refuses_rates_that_cannot_work(bad):
    with pytest.raises(ValueError, match="must be"):
        Muon([torch.nn.Parameter(torch.zeros(1))], **bad)


def test_weights_under_the_smallest_side_take_adam_steps():
    torch.manual_seed(0)
    layer = torch.nn.Linear(8, 8)
    before = layer.weight.detach().clone()
    optimizer = Muon(layer.parameters(), lr=0.02, adam_ratio=0.1, smallest_side=9)
    layer(torch.randn(4, 8)).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close((layer.weight - before).abs(), torch.full((8, 8), 0.002))
