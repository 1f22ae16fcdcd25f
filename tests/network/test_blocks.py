"""Blocks find themselves where a person would cut."""

import pytest
import torch
from torch import nn

from ptmq.common.bits import BitWidth
from ptmq.common.errors import InputError
from ptmq.network.cut import assign_units, to_units
from ptmq.network.graph.fold import fold_norms
from ptmq.network.place import Edge, QuantizationSpec
from ptmq.network.trace import trace

W4 = BitWidth(4, 4)


def units_of(network: nn.Module, example=None, blocks=None) -> dict[str, list[str]]:
    """The layers of every unit."""
    graph = fold_norms(trace(network.eval(), example))
    units: dict[str, list[str]] = {}
    for node, name in assign_units(graph, blocks).items():
        units.setdefault(name, []).extend([str(node.target)] if node.op == "call_module" else [])
    return {name: [layer for layer in layers if hasattr(graph.get_submodule(layer), "weight")]
            for name, layers in units.items()}  # fmt: skip


def named(build: str, **options) -> nn.Module:
    library, name = build.split("/")
    if library == "timm":
        import timm

        return timm.create_model(name, **options)
    import torchvision

    return torchvision.models.get_model(name, weights=None, **options)


# by name: size of images, units, and what is the third of them and the last but one
KNOWN = {
    "torchvision/resnet18": (32, 10, "layer1.1", "layer4.1"),
    "torchvision/mobilenet_v2": (32, 20, "features.2", "features.18"),
    "torchvision/mobilenet_v3_small": (32, 14, "features.2", "features.12"),
    "timm/tf_efficientnet_lite0": (32, 19, "blocks.1.0", "conv_head"),
    "timm/convnext_atto": (32, 17, "stages.0.blocks.1", "stages.3.blocks.1"),
    "timm/vit_tiny_patch16_224": (32, 14, "blocks.1", "blocks.11"),
    "timm/swin_tiny_patch4_window7_224": (56, 17, "layers.0.blocks.1", "layers.3.blocks.1"),
    "timm/mixer_s32_224": (64, 10, "blocks.1", "blocks.7"),
    "torchvision/squeezenet1_1": (32, 10, "features.4", "features.12"),
    "torchvision/densenet121": (32, 9, "features.transition1", "features.denseblock4"),
}
OPTIONS = {"vit": {"img_size": 32}, "mixer": {"img_size": 64}, "swin": {"img_size": 56, "embed_dim": 24}}


@pytest.mark.parametrize("build", KNOWN)
def test_known_networks_fall_into_stem_blocks_and_head(build):
    size, count, third, last = KNOWN[build]
    options = (own for name, own in OPTIONS.items() if name in build)
    network = named(build, **next(options, {}))
    units = units_of(network, torch.zeros(1, 3, size, size))
    names = list(units)
    assert len(names) == count
    assert (names[0], names[2], names[-2], names[-1]) == ("stem", third, last, "head")
    assert isinstance(names[0], Edge) and isinstance(names[-1], Edge) and not isinstance(names[1], Edge)
    assert all(units.values()), "every unit has a layer"


def layer(inputs=4, outputs=4):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU())


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(layer(), nn.Conv2d(4, 4, 1))

    def forward(self, x):
        return torch.relu(self.body(x) + x)


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1)

    def forward(self, x):
        return x * self.expand(self.reduce(x.mean((2, 3), keepdim=True))).sigmoid()


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = layer(4, 2), layer(4, 2)

    def forward(self, x):
        return torch.cat([self.a(x), self.b(x)], 1)


class Shared(nn.Module):
    """One block, called twice, and a skip over all of it."""

    def __init__(self):
        super().__init__()
        self.first, self.block, self.fc = layer(3), Residual(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        return self.fc(self.block(self.block(x)).mean((2, 3)))


class Functions(nn.Module):
    """A residual that no module stands for."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b, self.fc = layer(3), layer(), layer(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x)
        x = self.b(self.a(x)) + x
        return self.fc(x.mean((2, 3)))


def head():
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("network, names, layers", [
    # a chain falls into its layers, a stage into its blocks
    (nn.Sequential(layer(3), layer(), nn.MaxPool2d(2), layer(), head()), ["stem", "1", "3", "head"], [1, 1, 1, 1]),
    (nn.Sequential(layer(3), nn.Sequential(Residual(), Residual()), head()), ["stem", "1.0", "1.1", "head"], [1, 2, 2, 1]),
    # one block in a stage; a gate does not make a block of its own, nor do short chains fall apart
    (nn.Sequential(layer(3), nn.Sequential(Residual()), Branches(), head()), ["stem", "1.0", "2", "head"], [1, 2, 2, 1]),
    (nn.Sequential(layer(3), nn.Sequential(layer(), Gate(), nn.Conv2d(4, 4, 1)), Residual(), head()),
     ["stem", "1", "2", "head"], [1, 4, 2, 1]),
    (nn.Sequential(layer(3), nn.Sequential(layer(), layer()), nn.Sequential(layer(), layer()), head()),
     ["stem", "1", "2", "head"], [1, 2, 2, 1]),
    # no stem, no head: a network may begin and end with a block
    (nn.Sequential(nn.ZeroPad2d((0, 0, 0, 0)), Residual(), Residual()), ["1", "2"], [2, 2]),
    (Shared(), ["stem", "block", "block_2", "head"], [1, 2, 2, 1]),
    (Functions(), ["stem", "a.0", "head"], [1, 2, 1]),
    (nn.Sequential(nn.Linear(4, 2)), ["0"], [1]),
])  # fmt: skip
def test_units_follow_the_modules(network, names, layers):
    inputs = (
        4 if isinstance(network[0] if isinstance(network, nn.Sequential) else None, nn.ZeroPad2d | nn.Linear) else 3
    )
    shape = (2, inputs) if isinstance(network, nn.Sequential) and len(network) == 1 else (2, inputs, 8, 8)
    units = units_of(network, torch.zeros(shape))
    assert list(units) == names
    assert list(map(len, units.values())) == layers


class Own(nn.Module):
    """Blocks that are called stem and head."""

    def __init__(self):
        super().__init__()
        self.first, self.stem, self.head, self.pool, self.fc = (
            layer(3),
            Residual(),
            Residual(),
            nn.MaxPool2d(2),
            nn.Linear(4, 2),
        )

    def forward(self, x):
        return self.fc(self.pool(self.head(self.stem(self.first(x)))).mean((2, 3)))


def test_blocks_may_be_called_stem_and_head():
    names = list(units_of(Own(), blocks=["stem", "head"]))
    assert names == ["stem_2", "stem", "head", "head_2"]
    assert [isinstance(name, Edge) for name in names] == [True, False, False, True]
    assert list(units_of(Own())) == names


def test_a_block_without_a_layer_joins_the_one_before_it():
    assert list(units_of(Own(), blocks=["stem", "head", "pool"])) == ["stem_2", "stem", "head", "head_2"]


def test_a_block_that_is_called_twice_is_two_units():
    assert list(units_of(Shared(), blocks=["block"])) == ["stem", "block", "block_2", "head"]


class Windows(nn.Module):
    """Its middle sees windows of an image as if they were images."""

    def __init__(self):
        super().__init__()
        self.first, self.middle, self.fc = nn.Conv2d(3, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(x).flatten(2).transpose(1, 2)  # (n, 64, 4)
        x = self.middle(x.reshape(-1, 4, 4)).reshape(-1, 64, 4)
        return self.fc(x.mean(1))


def test_a_unit_takes_and_gives_images():
    network, x = Windows().eval(), torch.randn(3, 3, 8, 8)
    assert list(units_of(network, x)) == ["stem", "middle", "head"]
    with torch.no_grad():
        y = x
        for _, unit in to_units(network, QuantizationSpec(None, [W4]), x):
            y = unit(y)
            assert len(y) == 3
        torch.testing.assert_close(y, network(x))
    with pytest.raises(InputError, match="unit 'middle' takes a tensor that does not have the images first"):
        to_units(network, QuantizationSpec(["middle"], [W4]), x)
