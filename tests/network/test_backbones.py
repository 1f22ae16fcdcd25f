"""Every registered backbone as a multi-bit network: the same in floating point, all of it quantized."""

import pytest
import torch
from torch import nn

from ptmq.models.zoo import BACKBONES
from ptmq.network.layers import QuantizedLayer
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.quantization.activation_quantizer import ActivationQuantizer
from ptmq.suite.bench.networks import SHAPES
from ptmq.suite.mixed_precision import bit_operations
from tests.toys import W4, random_network, with_random_norms

# tests/e2e has these, and of two that differ in size or training alone, the one that takes longer
LARGE = [name for name in sorted(BACKBONES) if "_base_" in name or "_small_" in name]
LARGE += ["deit_tiny_patch16_224", "resnet50", "resnet56_1x1"]


@pytest.mark.parametrize("name", sorted(set(BACKBONES) - set(LARGE)))
def test_it_folds_to_itself_and_is_covered(name):
    check_coverage(name)


@torch.no_grad()
def check_coverage(name: str) -> None:
    """The network of a backbone is the same when it is folded, and all its layers are quantized and reached."""
    backbone = BACKBONES[name]
    network = with_random_norms(random_network(backbone.network))
    x = torch.randn(1, *SHAPES[backbone.dataset], generator=torch.Generator().manual_seed(0))
    expected = network(x)
    model = MultiBitModel(network, QuantizationSpec(backbone.blocks, [W4], quantize_softmax=True)).eval()
    assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in network.modules())
    assert len(list(model.layers)) == layers and len(model.units) > 2
    model.search_step_sizes(x, "minmax")
    reached, macs = [], []
    for module in model.modules():
        if isinstance(module, QuantizedLayer | ActivationQuantizer):
            module.register_forward_hook(lambda m, *_: reached.append(m))
        if isinstance(module, QuantizedLayer):
            module.register_forward_hook(lambda m, _, out: macs.append(out[0].numel() * m.weight[0].numel()))
    model.set_bits(4, 4)
    operations = bit_operations(model, x)
    assert len(set(reached)) == len(reached) == layers + len(list(model.quantizers))
    fixed = [layer for layer in model.layers if layer.quantizer.fixed]
    assert {layer.bits for layer in fixed} == {8} and len(fixed) == 2 + ("distilled" in name), "the edges alone"
    # what every layer and every product reads has a width of its own: pixels, or what a quantizer gave
    assert operations < 0.35 * sum(macs) * 8 * 8


@torch.no_grad()
def test_softmax_is_quantized_where_it_is_asked_for():
    backbone = BACKBONES["digits_vit"]
    network = random_network(backbone.network)
    x = torch.randn(4, *SHAPES["digits"], generator=torch.Generator().manual_seed(0))
    plain, more = (
        MultiBitModel(network, QuantizationSpec(backbone.blocks, [W4], quantize_softmax=asked)).eval()
        for asked in (False, True)
    )
    blocks = len(plain.units) - 2
    assert len(list(more.quantizers)) == len(list(plain.quantizers)) + blocks, "one in every block"
    torch.testing.assert_close(more(x), plain(x))
    for model in (plain, more):
        model.search_step_sizes(x, "minmax")
        model.set_bits(4, 4)
    assert not torch.equal(more(x), plain(x))
    name = next(n for n, m in more.units[1].graph.named_modules() if "softmax" in n and hasattr(m, "zero_point"))
    quantizer = more.units[1].graph.get_submodule(name)
    assert quantizer.zero_point.item() == 0, "probabilities have one side"
