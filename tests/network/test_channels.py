"""Units know where the channels of what they give are, and the loss sums over them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ptmq.common.bits import FULL_PRECISION
from ptmq.methods.interface import create
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.reconstruction.engine import Learner, Random
from ptmq.reconstruction.features import Features, propagate
from ptmq.reconstruction.settings import Execution
from tests.toys import CPU, W4, random_network


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        return F.relu(self.two(F.relu(self.one(x))) + x)


class ChannelsLast(nn.Module):
    """Features lie as (n, h, w, c) in the first block, as (n, c, h, w) in the second, as tokens in the third."""

    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(4), nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x):
            return x + self.two(F.gelu(self.one(self.norm(x))))

    def __init__(self):
        super().__init__()
        self.embed, self.first, self.second, self.third = nn.Conv2d(3, 4, 2, 2), self.Mlp(), Residual(), self.Mlp()
        self.fc = nn.Linear(4, 2)

    def forward(self, x):
        x = self.first(self.embed(x).permute(0, 2, 3, 1))
        x = self.second(x.permute(0, 3, 1, 2))
        return self.fc(self.third(x.flatten(2).transpose(1, 2)).mean(1))


def test_units_know_where_their_channels_are():
    model = MultiBitModel(random_network(ChannelsLast), QuantizationSpec(None, [W4]), torch.randn(2, 3, 8, 6))
    assert {unit.name: unit.channel_axis for unit in model.units} == {
        "stem": 3, "first": 1, "second": 2, "third": 2, "head": 1,
    }  # fmt: skip
    named = ["first", "second", "third"]
    by_name = MultiBitModel(random_network(ChannelsLast), QuantizationSpec(named, [W4]), torch.randn(2, 3, 8, 6))
    assert [unit.channel_axis for unit in by_name.units] == [unit.channel_axis for unit in model.units]
    parts = [part.channel_axis for unit in model.units for part in unit.by_layer()]
    assert parts == [1, 3, 3, 1, 1, 2, 2, 1]


class Pointwise(nn.Module):
    """The same arithmetic on (n, h, w, c), or as convolutions on (n, c, h, w)."""

    class Block(nn.Module):
        def __init__(self, last):
            super().__init__()
            self.one, self.two = (nn.Linear(4, 4) if last else nn.Conv2d(4, 4, 1) for _ in range(2))

        def forward(self, x):
            return x + self.two(F.relu(self.one(x)))

    def __init__(self, last):
        super().__init__()
        self.last, self.embed, self.block, self.fc = last, nn.Conv2d(3, 4, 2, 2), self.Block(last), nn.Linear(4, 2)

    def forward(self, x):
        x = self.embed(x)
        if self.last:
            return self.fc(self.block(x.permute(0, 2, 3, 1)).mean((1, 2)))
        return self.fc(self.block(x).mean((2, 3)))


@pytest.mark.parametrize("method, settings", [("qdrop", {}), ("brecq", {"fisher": True})])
def test_the_loss_is_the_same_however_features_lie(method, settings):
    x = torch.randn(8, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    plain = random_network(lambda: Pointwise(False))
    last = Pointwise(True).eval()
    shapes = last.state_dict()
    last.load_state_dict({name: value.view(shapes[name].shape) for name, value in plain.state_dict().items()})
    losses = []
    for network in (plain, last):
        model = MultiBitModel(network, QuantizationSpec(None, [W4]), x)
        model.search_step_sizes(x, "minmax")
        stem, block, head = model.units
        fp = propagate(stem, x, FULL_PRECISION)
        hooks = create(method, {"iterations": 1, "batch_size": 4, "keep": 1.0, **settings}, [W4]).passes()[0]
        features = Features(fp, dict.fromkeys(hooks.widths, fp), propagate(block, fp, FULL_PRECISION))
        importance = hooks.importance(block, [head], features)
        learner = Learner(block, hooks, features, Random(0, 0, CPU), Execution(), importance)
        block.set_bits(W4)
        index = torch.arange(4)
        with torch.no_grad():
            losses.append(float(learner._loss(index, [block(fp[:4]).float() * 1.1])))
        learner.finish()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0] > 0
