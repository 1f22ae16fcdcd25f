"""Norms are folded into the layers beside them, or stay as what they are at inference."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptmq.network.graph.fold import ChannelAffine, fold_norms
from ptmq.network.trace import NORMS, trace
from tests.toys import random_network, toy_network, vectors, with_random_norms


def test_batchnorm_folds_to_brecqs_numbers():
    v = vectors("bn_fold")
    conv, norm = nn.Conv2d(2, 2, 2, bias=False), nn.BatchNorm2d(2, eps=v["eps"])
    conv.weight.data = torch.tensor(v["weight"])
    for name, key in (("weight", "gamma"), ("bias", "beta"), ("running_mean", "mean"), ("running_var", "var")):
        getattr(norm, name).data = torch.tensor(v[key])
    folded = fold_norms(trace(nn.Sequential(conv, norm)))
    layer = folded.get_submodule("0")
    torch.testing.assert_close(layer.weight.data, torch.tensor(v["folded_weight"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(layer.bias.data, torch.tensor(v["folded_bias"]), atol=1e-6, rtol=0)
    torch.testing.assert_close(folded(torch.tensor(v["x"])).detach(), torch.tensor(v["y_after"]), atol=1e-6, rtol=0)


def test_the_folded_network_has_no_batchnorm_and_is_the_network(images):
    network = toy_network()
    folded = fold_norms(trace(network))
    assert not any(isinstance(module, NORMS) for module in folded.modules())
    torch.testing.assert_close(folded(images), network(images), atol=1e-5, rtol=1e-5)


class Tokens(nn.Module):
    """Two LayerNorms: linear layers alone read the first, a sum reads the second, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.LayerNorm(6), nn.LayerNorm(6)
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x = self.first(x)
        x = self.second(self.a(x) * self.b(x))
        return self.c(x) + x


def test_a_layer_norm_gives_its_scale_and_shift_to_linear_layers_that_alone_read_it():
    network = with_random_norms(random_network(Tokens))
    folded = fold_norms(trace(network))
    left = [name for name, module in folded.named_modules() if isinstance(module, nn.LayerNorm)]
    assert left == ["second"]
    x = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded(x), network(x), atol=1e-5, rtol=1e-5)


class Preactivation(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1)

    def forward(self, x):
        return self.conv(F.relu(self.norm(x)))


class SharedConvolution(nn.Module):
    """Its convolution is read without its norm, too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2)

    def forward(self, x):
        x = self.conv(x)
        return self.norm(x) + x


@pytest.mark.parametrize("build", [Preactivation, SharedConvolution])
def test_a_batchnorm_without_a_layer_of_its_own_stays_as_a_scale_and_a_shift(build):
    network = with_random_norms(random_network(build))
    folded = fold_norms(trace(network))
    (affine,) = (module for module in folded.modules() if isinstance(module, ChannelAffine))
    assert not any(isinstance(module, NORMS) for module in folded.modules()) and not list(affine.parameters())
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(folded(x), network(x), atol=1e-5, rtol=1e-5)
