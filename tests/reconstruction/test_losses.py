"""Reconstruction losses against BRECQ's numbers, and their gradients against autograd."""

import pytest
import torch

from ptmq.quantization import tiles
from ptmq.reconstruction.losses import distance, distances
from tests.toys import vectors

V = vectors("losses")


def features(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 5, 5, generator=generator) for _ in range(count)]


def test_distance_matches_brecq():
    x, target = torch.tensor(V["pred"]), torch.tensor(V["target"])
    assert float(distance(x, target)) == pytest.approx(V["loss"]["mse"], abs=1e-6)
    assert float(distance(x, target, power=2.4)) == pytest.approx(V["loss"]["mse_p2.4"], abs=1e-6)
    fisher = torch.tensor(V["stored_grad"]).square()
    assert float(distance(x, target, importance=fisher)) == pytest.approx(V["loss"]["fisher_diag"], abs=1e-6)


def test_distance_sums_over_channels_and_averages_over_the_rest():
    x, target = features(2)
    assert distance(x, target) == pytest.approx(float((x - target).square().sum(1).mean()))
    tokens, other = torch.randn(2, 7, 6), torch.zeros(2, 7, 6)
    assert distance(tokens, other) == pytest.approx(float(tokens.square().sum(-1).mean()))


@pytest.mark.parametrize("layouts", ["same", "channels last", "part of a tensor"])
def test_the_analytic_gradients_of_the_distance_equal_autograd(layouts, monkeypatch):
    monkeypatch.setattr(tiles, "PART", 16)
    generator = torch.Generator().manual_seed(0)
    whole, target = (torch.randn(2, 6, 4, 4, generator=generator) for _ in range(2))
    if layouts == "channels last":
        target = target.contiguous(memory_format=torch.channels_last)
    results = []
    for function in (distance, lambda x, t: (x - t).square().sum() / (x.numel() / x.shape[1])):
        leaf, teacher = whole.clone().requires_grad_(), target.clone().requires_grad_()
        x, t = (leaf[:, :, 1:3], teacher[:, :, 1:3]) if layouts == "part of a tensor" else (leaf, teacher)
        (3 * function(x, t)).backward()
        results.append((function(x, t).detach(), leaf.grad, teacher.grad))
    for ours, reference in zip(*results, strict=True):
        torch.testing.assert_close(ours, reference)


def test_features_of_different_shapes_are_refused():
    x = torch.zeros(32, 64, 8, 8)  # a whole part: slices of the longer one would fit
    with pytest.raises(ValueError, match=r"one shape. Got \(32, 64, 8, 8\), \(64, 64, 8, 8\)"):
        distance(x, torch.zeros(64, 64, 8, 8))


def test_several_distances_are_their_weighted_sum():
    x, y, target = features(3)
    x.requires_grad_()
    together = distances((0.5, x, target), (2.0, y, target), (1.0, x, y))
    apart = 0.5 * distance(x, target) + 2 * distance(y, target) + distance(x, y)
    torch.testing.assert_close(together, apart)
    torch.testing.assert_close(torch.autograd.grad(together, x), torch.autograd.grad(apart, x))
