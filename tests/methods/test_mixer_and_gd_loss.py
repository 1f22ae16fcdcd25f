"""Properties of PTMQ's feature mixer and of its GD-Loss."""

import pytest
import torch

from ptmq.methods import gd_loss, mixer
from ptmq.reconstruction.losses import distance


def features(count: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 5, 5, generator=generator) for _ in range(count)]


@pytest.mark.parametrize("loss", [gd_loss.gd_figure1, gd_loss.gd_later, gd_loss.gd_none])
def test_gd_loss_of_equal_features_is_zero(loss):
    (x,) = features(1)
    assert float(loss(x, [x, x, x])) == pytest.approx(0, abs=1e-10)
    f, l, m, h = features(4)  # noqa: E741
    assert float(loss(f, [l, m, h])) > 0


def test_figure1_is_its_three_terms():
    f, l, m, h = features(4)  # noqa: E741
    d = distance
    mix = 0.4 * l + 0.3 * m + 0.3 * h
    assert gd_loss.gd_figure1(f, [l, m, h], gammas=(1, 0, 0)) == pytest.approx(float(d(mix, f)), rel=1e-5)
    assert gd_loss.gd_figure1(f, [l, m, h], gammas=(0, 1, 0)) == pytest.approx(float(d(m, h)))
    assert gd_loss.gd_figure1(f, [l, m, h], gammas=(0, 0, 2)) == pytest.approx(2 * float(d(l, h)))


@pytest.mark.parametrize("detach, moves", [(True, False), (False, True)])
def test_the_teacher_learns_only_where_it_is_not_detached(detach, moves):
    f, l, m, h = features(4)  # noqa: E741
    h.requires_grad_()
    gd_loss.gd_figure1(f, [l.requires_grad_(), m, h], gammas=(0, 1, 1), detach=detach).backward()
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
        expected = distance(sum(some) / count, f) + sum(distance(x, some[-1]) for x in some[:-1])
        assert gd_loss.gd_figure1(f, some, lambdas, (1,) * count) == pytest.approx(float(expected), rel=1e-5)
        assert gd_loss.gd_none(f, some) == pytest.approx(float(sum(distance(x, f) for x in some)), rel=1e-6)


def test_the_later_form_teaches_each_lower_group_by_both():
    f, l, m, h = features(4)  # noqa: E741
    expected = distance(h, f) + sum((distance(x, h) + distance(x, f)) / 2 for x in (l, m))
    assert gd_loss.gd_later(f, [l, m, h]) == pytest.approx(float(expected), rel=1e-6)
    h.requires_grad_()
    gd_loss.gd_later(f, [l, m, h]).backward()
    alone = h.detach().clone().requires_grad_()
    distance(alone, f).backward()
    torch.testing.assert_close(h.grad, alone.grad)  # the teacher learns from the FP block alone
