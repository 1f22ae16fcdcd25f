"""The hooks of the standard passes."""

import pytest
import torch

from ptmq.reconstruction.losses import distance
from ptmq.reconstruction.passes import AdaptiveRoundingPass, Pass, StepSizePass
from ptmq.reconstruction.settings import AdaptiveRoundingSettings, ReconstructionSettings
from tests.toys import W3, W4, searched_model, toy_model

TOGETHER = ReconstructionSettings(keep=0.25)


def feature(seed: int) -> torch.Tensor:
    return torch.randn(4, 8, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_a_mix_takes_each_element_from_fp_or_from_its_own_width():
    fp, quantized = feature(0), [feature(1), feature(2)]
    mixed = Pass(TOGETHER, [W3, W4]).mix(fp, quantized, torch.Generator().manual_seed(0))
    kept = mixed[0] == quantized[0]
    assert abs(float(kept.float().mean()) - 0.25) < 0.05
    for one, feature_ in zip(mixed, quantized, strict=True):
        assert torch.equal(one, torch.where(kept, feature_, fp)), "one mask for all widths"


def test_without_dropping_the_quantized_feature_is_taken_whole():
    quantized = [feature(1)]
    assert Pass(ReconstructionSettings(keep=1.0), [W3]).mix(feature(0), quantized, torch.Generator()) is quantized


def test_the_error_is_summed_over_the_widths_with_the_power_of_the_pass():
    target, outputs = feature(0), [feature(1), feature(2)]
    for kind, power in ((Pass, 2.0), (StepSizePass, 2.4)):
        expected = sum(distance(output, target, power) for output in outputs)
        assert torch.equal(kind(TOGETHER, [W3, W4]).error(target, outputs), expected)


def test_the_regularizer_begins_after_the_warm_up(images):
    settings = AdaptiveRoundingSettings(iterations=10, warmup=0.5, regularizer=0.1)
    hooks = AdaptiveRoundingPass(settings, [W3])
    relaxations = [hooks.relax(layer) for layer in searched_model(images, [W3]).layers]
    assert hooks.regularizer(relaxations, 4) == 0
    expected = 0.1 * sum(float(r.regularizer(settings.beta_at(5)).detach()) for r in relaxations)
    assert float(hooks.regularizer(relaxations, 5).detach()) == pytest.approx(expected) and expected > 0


def test_a_unit_without_quantizers_has_no_step_size_to_learn():
    head = toy_model().units[-1]
    assert StepSizePass(TOGETHER, [W3]).parts(head) == [] and Pass(TOGETHER, [W3]).parts(head) == [head]


def test_the_soft_weight_starts_as_the_weight_inside_the_grid(images):
    layer = searched_model(images, [W3]).units[1].layers[0]
    soft = AdaptiveRoundingPass(AdaptiveRoundingSettings(), [W3]).relax(layer).soft([3])[3].detach()
    low, high = layer.weight_at(3).amin((1, 2, 3), True), layer.weight_at(3).amax((1, 2, 3), True)
    inside = (layer.weight > low) & (layer.weight < high)
    torch.testing.assert_close(soft[inside], layer.weight[inside], atol=1e-5, rtol=0)
    assert not torch.equal(soft, layer.weight_at(3))
