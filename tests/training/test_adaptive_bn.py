"""The networks that keep their BatchNorms, and re-estimating these at a switch."""

import pytest
import torch
from torch import nn

from ptmq.common.errors import InputError
from ptmq.data.images import ImagesInMemory
from ptmq.methods.interface import create
from ptmq.models.zoo import BACKBONES
from ptmq.network.trace import NORMS
from ptmq.training.adaptive_bn import AdaptiveBNModel, recalibrate, recalibration_batches, recalibration_images
from tests.toys import CPU, W3, W4, W8, same_state, toy_network

WIDTHS = [W3, W4, W8]


@pytest.fixture
def model(images) -> AdaptiveBNModel:
    """MultiQuant's model of the toy, step sizes searched."""
    model = create("multiquant", {}, WIDTHS).build(toy_network(), ["blocks.*"]).eval()
    model.search_step_sizes(images, "minmax")
    return model


@pytest.mark.parametrize("name", ["adaptive_bn", "multiquant"])
def test_a_model_that_is_not_switched_is_the_network(images, name):
    network = toy_network()
    model = create(name, {}, WIDTHS).build(network, ["blocks.*"]).eval()
    torch.testing.assert_close(model(images), network(images), rtol=1e-5, atol=1e-5)
    model.search_step_sizes(images, "minmax")
    model.set_bits(3, 3)
    assert not torch.allclose(model(images), network(images), atol=1e-3)
    assert same_state(network, toy_network()), "the network itself is not changed"


def test_edges_have_8_bits_and_weights_lie_on_their_grid(model):
    model.set_bits(3, 3)
    counts = [len(layer.quantizer(layer.weight).unique()) for layer in model.layers]
    assert counts[0] > 8 and all(count <= 8 for count in counts[1:-1])
    assert [quantizer.bits for quantizer in model.quantizers] == [3, 3, 3, 3, 8]


def test_batchnorm_is_re_estimated_from_nothing_at_the_selected_width(model, images):
    model.set_bits(3, 3)
    batches = list(images.split(16))
    seen = []
    hook = model.graph.norm.register_forward_pre_hook(lambda norm, args: seen.append(args[0]))
    assert recalibrate(model, batches) == 48
    hook.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in seen])
    variances = torch.stack([x.var((0, 2, 3)) for x in seen])  # unbiased
    torch.testing.assert_close(model.graph.norm.running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.graph.norm.running_var, variances.mean(0), rtol=1e-4, atol=1e-5)
    once = {key: value.clone() for key, value in model.state_dict().items()}
    recalibrate(model, batches)
    assert all(torch.equal(value, once[key]) for key, value in model.state_dict().items())
    assert not any(module.training for module in model.modules() if isinstance(module, NORMS))


def test_statistics_of_one_width_do_not_fit_another(model, images):
    """What AdaptiveBN is for: at the width that they were estimated at, the norms' outputs are normalised."""
    at = {}
    for width in (W3, W8):
        model.set_bits(width.weight, width.activation)
        recalibrate(model, images.split(16))
        at[width] = model.graph.blocks.get_submodule("1").bn2.running_mean.clone()
    assert not torch.allclose(at[W3], at[W8], rtol=1e-3)


def test_images_are_augmented_alike_at_every_switch():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(96, 2, 6, 6, generator=generator)
    images = ImagesInMemory(x, torch.zeros(96, dtype=torch.int64), (0.5, 0.5), (0.5, 0.5))
    images.augmentation = {"shift": 1, "flip": True, "border": "black"}
    batches = recalibration_batches(len(images))
    one, two = (torch.cat(list(recalibration_images(images, batches, CPU))) for _ in range(2))
    plain = images.batch(torch.cat(list(batches)))[0]
    assert torch.equal(one, two) and one.shape == plain.shape and not torch.equal(one, plain)


@pytest.mark.parametrize("count, batches", [(50, [50]), (128, [128]), (1000, [128] * 7), (20_000, [128] * 100)])
def test_whole_batches_of_different_images_are_taken(count, batches):
    chosen = recalibration_batches(count)
    assert [len(batch) for batch in chosen] == batches
    index = torch.cat(list(chosen))
    assert len(index.unique()) == len(index) and 0 <= int(index.min()) <= int(index.max()) < count


def test_a_network_without_batchnorms_is_said():
    network = nn.Sequential(
        nn.Conv2d(1, 2, 1),
        nn.ReLU(),
        nn.Conv2d(2, 2, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2, 2),
    )
    with pytest.raises(InputError, match="Sequential has no BatchNorm to re-estimate"):
        create("multiquant", {}, WIDTHS).build(network, ["2"])


def test_batchnorms_that_are_no_module_of_torch_are_kept_apart_for_every_width(images):
    """timm's BatchNorm with an activation calls the function."""
    network = BACKBONES["regnetx_600mf"].network().eval()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    model = create("multiquant", {}, WIDTHS).build(network, BACKBONES["regnetx_600mf"].blocks)
    assert norms > 50 and sum(isinstance(module, NORMS) for module in model.modules()) == norms


def test_a_width_that_was_not_trained_is_said(model):
    with pytest.raises(InputError, match=r"width W5A5 was not calibrated. Weight bits: \[3, 4, 8, 32\]"):
        model.set_bits(5, 5)
