"""Reconstruction losses against BRECQ's numbers; properties of the GD-Loss and of the feature mixer."""

import pytest
import torch
from conftest import vectors

from ptmq.methods import mixer
from ptmq.quantization import tiles as blocked
from ptmq.reconstruction import losses
from ptmq.reconstruction.losses import distance

V = vectors("losses")


def features(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 5, 5, generator=generator) for _ in range(count)]


def test_distance_matches_brecq():
    x, target = torch.tensor(V["pred"]), torch.tensor(V["target"])
    assert float(losses.distance(x, target)) == pytest.approx(V["loss"]["mse"], abs=1e-6)
    assert float(losses.distance(x, target, power=2.4)) == pytest.approx(V["loss"]["mse_p2.4"], abs=1e-6)
    fisher = torch.tensor(V["stored_grad"]).square()
    assert float(losses.distance(x, target, importance=fisher)) == pytest.approx(V["loss"]["fisher_diag"], abs=1e-6)


def test_distance_sums_over_channels_and_averages_over_the_rest():
    x, target = features(2)
    assert losses.distance(x, target) == pytest.approx(float((x - target).square().sum(1).mean()))
    tokens, other = torch.randn(2, 7, 6), torch.zeros(2, 7, 6)
    assert losses.distance(tokens, other) == pytest.approx(float(tokens.square().sum(-1).mean()))


@pytest.mark.parametrize("loss", [losses.gd_figure1, losses.gd_later, losses.gd_none])
def test_gd_loss_of_equal_features_is_zero(loss):
    (x,) = features(1)
    assert float(loss(x, [x, x, x])) == pytest.approx(0, abs=1e-10)
    f, l, m, h = features(4)  # noqa: E741
    assert float(loss(f, [l, m, h])) > 0


def test_figure1_is_its_three_terms():
    f, l, m, h = features(4)  # noqa: E741
    d = losses.distance
    mix = 0.4 * l + 0.3 * m + 0.3 * h
    assert losses.gd_figure1(f, [l, m, h], gammas=(1, 0, 0)) == pytest.approx(float(d(mix, f)), rel=1e-5)
    assert losses.gd_figure1(f, [l, m, h], gammas=(0, 1, 0)) == pytest.approx(float(d(m, h)))
    assert losses.gd_figure1(f, [l, m, h], gammas=(0, 0, 2)) == pytest.approx(2 * float(d(l, h)))


@pytest.mark.parametrize("detach, moves", [(True, False), (False, True)])
def test_the_teacher_learns_only_where_it_is_not_detached(detach, moves):
    f, l, m, h = features(4)  # noqa: E741
    h.requires_grad_()
    losses.gd_figure1(f, [l.requires_grad_(), m, h], gammas=(0, 1, 1), detach=detach).backward()
    assert (h.grad is not None and bool(h.grad.abs().sum() > 0)) is moves
    assert l.grad.abs().sum() > 0


def test_case3_at_0_0_1_is_the_high_feature():
    f, l, m, h = features(4)  # noqa: E741
    nothing = torch.zeros_like(f)
    assert torch.equal(mixer.case3(nothing, f, [l, m, h], (0, 0, 1)), h)
    assert torch.equal(mixer.case3(nothing, f, [l, m, h], (1, 0, 0)), l)
    assert torch.equal(mixer.case3(torch.ones_like(f), f, [l, m, h]), f)


def test_cases_take_each_element_from_one_side():
    f, l, m, h = features(4)  # noqa: E741
    first = (torch.rand(f.shape, generator=torch.Generator().manual_seed(1)) < 0.5).float()
    for mixed, taken, rest in (
        (mixer.case1(first, f, m), f, m),
        (mixer.case2(first, [l, m, h]), l, (h + m) / 2),
        (mixer.case3(first, f, [l, m, h]), f, mixer.weighted([l, m, h])),
    ):
        assert torch.equal(mixed, torch.where(first > 0, taken, rest))


def test_equal_features_mix_to_themselves():
    (x,) = features(1)
    torch.testing.assert_close(mixer.weighted([x, x, x]), x)


def test_two_and_four_groups_mix_and_distil():
    f, *outputs = features(5)
    for count, lambdas in ((2, (0.5, 0.5)), (4, (0.25,) * 4)):
        some = outputs[:count]
        torch.testing.assert_close(mixer.weighted(some, lambdas), sum(some) / count)
        expected = losses.distance(sum(some) / count, f) + sum(losses.distance(x, some[-1]) for x in some[:-1])
        assert losses.gd_figure1(f, some, lambdas, (1,) * count) == pytest.approx(float(expected), rel=1e-5)
        assert losses.gd_none(f, some) == pytest.approx(float(sum(losses.distance(x, f) for x in some)), rel=1e-6)


@pytest.mark.parametrize("layouts", ["same", "channels last", "part of a tensor"])
def test_the_analytic_gradients_of_the_distance_equal_autograd(layouts, monkeypatch):
    monkeypatch.setattr(blocked, "PART", 16)
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
