"""A network is converted alike whatever holds around it, and in whatever form it comes."""

import contextlib

import pytest
import torch
from torch import nn

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.methods.interface import create
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from tests.network.odd_networks import Net, ReluInPlace, Sizes, TwoNorms, pictures, random

W4 = BitWidth(4, 4)
SPEC = QuantizationSpec(None, [W4])


@pytest.mark.parametrize("around", [
    lambda: torch.inference_mode(),
    lambda: torch.device("meta"),
    lambda: torch.autocast("cpu", torch.bfloat16),
    lambda: torch.enable_grad(),
    lambda: contextlib.nullcontext(),
])  # fmt: skip
def test_what_holds_around_a_conversion_does_not_matter(around):
    network, x = random(ReluInPlace), pictures()
    with around():
        model = MultiBitModel(network, SPEC, x)
        found = MultiBitModel(network, SPEC)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found(x), network(x), atol=1e-5, rtol=1e-5)
    assert not any(tensor.is_inference() for tensor in model.state_dict().values())


class InferenceMode(ReluInPlace):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


class AnyArguments(nn.Module):
    """A wrapper that hands on what it is given."""

    def __init__(self):
        super().__init__()
        self.network = TwoNorms()

    def forward(self, *args, **kwargs):
        return self.network(*args, **kwargs)


class OptionalImages(TwoNorms):
    def forward(self, x=None, scale=1.0):
        return super().forward(x) * scale


class Named(TwoNorms):
    def forward(self, x):
        return {"features": x, "logits": super().forward(x)}


class Alone(TwoNorms):
    def forward(self, x):
        return super().forward(x), None


@pytest.mark.parametrize("build", [InferenceMode, AnyArguments, OptionalImages, Named, Alone])
@torch.no_grad()
def test_forward_may_come_in_many_forms(build):
    network, x = random(build), pictures()
    expected = network(x)
    expected = expected["logits"] if isinstance(expected, dict) else expected
    expected = expected[0] if isinstance(expected, tuple) else expected
    torch.testing.assert_close(MultiBitModel(network, SPEC, x)(x), expected, atol=1e-5, rtol=1e-5)


class Video(nn.Module):
    """(n, 3, 4, 8, 8) -> (n, 2)."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv3d(3, 4, 3, padding=1), nn.Conv3d(4, 4, 3, padding=1)
        self.norm, self.fc = nn.BatchNorm3d(4), nn.Linear(4, 2)

    def forward(self, x):
        x = torch.relu(self.one(x))
        return self.fc((self.norm(self.two(x)) + x).mean((2, 3, 4)))


@torch.no_grad()
def test_images_may_have_another_dimension():
    network, x = random(Video), torch.randn(4, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    model = MultiBitModel(network, SPEC, x)
    torch.testing.assert_close(model(x), network(x), atol=1e-5, rtol=1e-5)
    method = create("qdrop", {"iterations": 2, "batch_size": 2}, [W4])
    with torch.enable_grad():
        records = method.calibrate(model, x, seed=0)
    assert len(records) == len(model.units) and model.coverage().share == 1


@torch.no_grad()
def test_images_of_another_shape_are_taken_where_the_network_does_not_mind_and_said_where_it_does():
    larger = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    network = random(TwoNorms)
    model = MultiBitModel(network, SPEC, pictures())
    torch.testing.assert_close(model(larger), network(larger), atol=1e-5, rtol=1e-5)
    model = MultiBitModel(random(Sizes), SPEC, pictures())
    for other in (larger, larger[..., :6], larger[:, :2]):
        with pytest.raises(InputError, match="this model takes images of shape .3, 8, 8., those that the network was"):
            model(other)


def test_a_trained_model_has_a_coverage():
    class Positions(Net):
        def __init__(self):
            super().__init__()
            self.position, self.core = nn.Parameter(torch.randn(4, 8, 8)), nn.Parameter(torch.randn(4, 4))

        def body(self, x):
            x = self.norm(self.c(x)) + self.position
            return torch.einsum("nchw,cd->ndhw", x, self.core)

    method = create("adaptive_bn", {}, [W4])
    with pytest.raises(InputError, match="core .16 parameters, a weight of einsum, which is no layer"):
        method.build(random(Positions), None, pictures())
    rows = method.build(random(Positions), None, pictures(), keep_fp=["core"]).coverage()
    assert [(row.layer, row.kind) for row in rows][:3] == [
        ("first", "Conv2d"),
        ("c", "Conv2d"),
        ("norm", "BatchNorm2d"),
    ]
    assert {row.layer for row in rows if not row.is_quantized} >= {"position", "core", "norm"}
