"""Matched corrections: moments agree with floating point, and the network is nearer to it than without."""

import pytest
import torch
from torch import Tensor, nn

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.reconstruction.features import propagate
from ptmq.reconstruction.matching import Moments, fp_moments, match, match_network, walk
from ptmq.reconstruction.settings import CorrectionSettings

W3, W8 = BitWidth(3, 3), BitWidth(8, 8)


class Separable(nn.Module):
    """Depthwise and pointwise convolution with a shortcut; some channels give nothing."""

    def __init__(self):
        super().__init__()
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.pointwise = nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.pointwise(torch.relu(self.depthwise(x))) + x)


class Tokens(nn.Module):
    """Two linear layers on tokens, as in a transformer; channels lie last."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.up(x).chunk(2, -1)
        return self.down(torch.cat([nn.functional.gelu(one), nn.functional.gelu(two)], -1)) + x


class Images(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.fc = nn.Conv2d(2, 8, 3), nn.Sequential(Separable(), Separable()), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))


class Sequences(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.blocks, self.fc = nn.Linear(2, 8), nn.Sequential(Tokens(), Tokens()), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x)).mean(1))


NETWORKS = {"images": (Images, (160, 2, 8, 8)), "sequences": (Sequences, (160, 9, 2))}


def model_of(kind: str, anchor: int = 4, dead: bool = True) -> tuple[MultiBitModel, Tensor]:
    """A model that is rounded to nearest, and calibration images: more than one batch of inference."""
    make, shape = NETWORKS[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network, x = make().eval(), torch.randn(shape)
    if dead:
        for layer in (m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)):
            layer.weight.data[:2] = 0
    spec = QuantizationSpec(["blocks.*"], [W3, W8], anchor=anchor, correction="gain")
    model = MultiBitModel(network, spec).eval()
    model.search_step_sizes(x[:64], "shrink")
    return model.requires_grad_(False), x


def at(model: MultiBitModel, x: Tensor, width: BitWidth) -> Tensor:
    """The logits at a width."""
    model.set_bits(width.weight, width.activation)
    return model(x)


@pytest.mark.parametrize("kind", sorted(NETWORKS))
class TestMatching:
    @torch.no_grad()
    def test_a_walk_gives_what_the_unit_gives(self, kind):
        model, x = model_of(kind)
        for width in (FULL_PRECISION, W3):
            for unit in model.units:
                unit.set_bits(width)
                out = torch.cat(walk(unit, x.split(50), lambda layer, outputs: outputs))
                torch.testing.assert_close(out, unit(x), atol=1e-6, rtol=1e-5)
                x = out
            x = model_of(kind)[1]

    @torch.no_grad()
    def test_moments_agree_with_floating_point_layer_by_layer(self, kind):
        model, x = model_of(kind)
        match_network(model, x, CorrectionSettings(correction="gain"))
        fp = x
        quantized = x
        for unit in model.units:
            wanted, _ = fp_moments(unit, [fp])
            unit.set_bits(W3)
            for layer in unit.layers:
                seen = []
                hook = layer.register_forward_hook(lambda layer, args, out, seen=seen: seen.append(out))
                unit(quantized)
                hook.remove()
                found = Moments.of(seen, -1 if layer.kind == "Linear" else 1)
                torch.testing.assert_close(found.mean, wanted[layer].mean, atol=1e-4, rtol=1e-4)
                gain = layer.correction.gain["W3A3"]
                free = (gain.abs() > 0) & (1 + gain < 1.499) & (1 + gain > 0.667)
                assert free.any(), "no channel whose gain is not at its bound"
                torch.testing.assert_close(found.deviation[free], wanted[layer].deviation[free], atol=1e-4, rtol=1e-3)
            fp, quantized = propagate(unit, fp, FULL_PRECISION), propagate(unit, quantized, W3)

    def test_channels_without_variance_have_no_gain(self, kind):
        model, x = model_of(kind)
        match_network(model, x, CorrectionSettings(correction="gain"))
        for layer in model.layers:
            for width in ("W3A3", "W8A8"):
                assert layer.correction.gain[width].isfinite().all() and layer.correction.shift[width].isfinite().all()
                assert torch.equal(layer.correction.gain[width][:2], torch.zeros(2))

    @pytest.mark.parametrize("way", ["shift", "gain"])
    def test_the_network_is_nearer_than_without_on_other_images(self, kind, way):
        model, x = model_of(kind)
        used, others = x[:120], x[120:]

        def errors() -> list[float]:
            expected = at(model, others, FULL_PRECISION)
            return [float((at(model, others, width) - expected).square().mean()) for width in (W3, W8)]

        without = errors()
        match_network(model, used, CorrectionSettings(correction=way))
        assert all(error < before for error, before in zip(errors(), without, strict=True))

    def test_shifts_alone_leave_gains_at_zero(self, kind):
        model, x = model_of(kind)
        match_network(model, x, CorrectionSettings(correction="shift"))
        corrections = [layer.correction for layer in model.layers]
        assert all(not gain.any() for correction in corrections for gain in correction.gain.values())
        assert any(shift.any() for correction in corrections for shift in correction.shift.values())

    def test_it_hands_on_what_the_corrected_unit_gives(self, kind):
        model, x = model_of(kind)
        unit = model.units[0]
        fp, quantized = match(unit, x, {W3: x}, CorrectionSettings(correction="gain"))
        torch.testing.assert_close(fp, propagate(unit, x, FULL_PRECISION), atol=1e-5, rtol=1e-5)
        off = (quantized[W3] - propagate(unit, x, W3)).abs() > 1e-4
        assert off.float().mean() < 0.01, "but for a value that rounds the other way"


def test_moments_do_not_depend_on_the_batches():
    y = torch.randn(100, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3 + 20
    whole, parts = Moments.of([y], 1), Moments.of(y.split(7), 1)
    torch.testing.assert_close(whole.mean, parts.mean)
    torch.testing.assert_close(whole.deviation, parts.deviation)
    torch.testing.assert_close(whole.deviation.float(), y.movedim(1, 0).flatten(1).std(1, correction=0))
