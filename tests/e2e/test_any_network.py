"""Networks of torchvision and timm, as they are: converted by themselves, equal in floating point, learned."""

from fnmatch import fnmatch

import pytest
import torch
from torch import nn

from ptmq.common.bits import FULL_PRECISION, BitWidth
from ptmq.methods.interface import create
from ptmq.network.model import MultiBitModel
from ptmq.network.place import QuantizationSpec
from ptmq.reconstruction.engine import Learner, Random, learn, learning, silent
from ptmq.reconstruction.features import Features, propagate
from ptmq.reconstruction.settings import Execution

W4 = BitWidth(4, 4)
ITERATIONS = 20
SIDE = 96  # of images, in pixels, where a network takes them
# Networks that take one size, as an option of theirs, by the kind of their name: what is small and fits their windows.
SIZES = {
    "vit_b_16": {"image_size": 64}, "maxvit_t": {}, "deit3_small_*": {"img_size": 64}, "beit_base_*": {"img_size": 64},
    "mixer_s16_*": {"img_size": 64}, "swin_tiny_*": {"img_size": 112}, "swinv2_tiny_*": {"img_size": 128}, "levit_128s": {},
}  # fmt: skip
NETWORKS = [
    *(f"torchvision/{name}" for name in (
        "resnet18", "resnet50", "densenet121", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf",
        "squeezenet1_1", "vgg11_bn", "inception_v3", "googlenet", "shufflenet_v2_x1_0", "vit_b_16", "swin_t", "maxvit_t",
    )),
    *(f"timm/{name}" for name in (
        "mobilenetv3_small_100", "efficientnet_b0", "tf_efficientnet_lite0", "convnext_atto", "repvgg_a0",
        "deit3_small_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "mixer_s16_224",
        "levit_128s", "beit_base_patch16_224", "lcnet_050",
    )),
]  # fmt: skip
OTHERS = [  # other kinds of operation, at their own size
    f"timm/{name}" for name in (
        "resnetv2_50x1_bit", "nfnet_l0", "coat_tiny", "cait_xxs24_224", "xcit_nano_12_p8_224", "eva02_tiny_patch14_224",
        "ghostnet_050", "mobilenetv4_conv_small", "fastvit_t8", "sequencer2d_s", "hrnet_w18_small", "halonet26t",
    )
]  # fmt: skip
# what is left in floating point, beside what no network quantizes (biases, norms, and what acts element by element)
LEFT = {"sequencer2d_s": ["*.weight_ih_l0*", "*.weight_hh_l0*", "*.bias_ih_l0*", "*.bias_hh_l0*"]}


def named(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    """A network with random weights and norms that are worth folding, and the shape of its images."""
    library, kind = name.split("/")
    own_size: dict | None = {} if name in OTHERS else next((o for k, o in SIZES.items() if fnmatch(kind, k)), None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if library == "timm":
            import timm

            network = timm.create_model(kind, **(own_size or {})).eval()
            side = network.pretrained_cfg["input_size"][-1]
        else:
            import torchvision

            options = {"init_weights": False} if kind in ("inception_v3", "googlenet") else own_size or {}
            network = torchvision.models.get_model(kind, weights=None, **options).eval()
            side = 224
        side = SIDE if own_size is None else next(iter(own_size.values()), side)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.LayerNorm) and module.weight is not None:
                nn.init.uniform_(module.weight, 0.5, 1.5)
                if module.bias is not None:
                    nn.init.uniform_(module.bias, -0.2, 0.2)
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 1.5)
        for parameter in network.parameters():
            if parameter.dim() > 1 and not parameter.any():  # a head that starts from 0 would hide what is before it
                nn.init.normal_(parameter, std=0.02)
    return network, (3, side, side)


@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.large) for name in OTHERS)])
def test_it_is_converted_equal_and_learned(name):
    network, shape = named(name)
    x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    spec = QuantizationSpec(None, [W4], keep_fp=LEFT.get(name.split("/")[1], ()))
    model = MultiBitModel(network, spec, x[:2]).eval()
    with torch.no_grad():
        expected = network(x)
        assert float((model(x) - expected).abs().max()) <= 1e-4 * float(expected.abs().max())
    coverage = model.coverage()
    assert len(model.units) > 2
    fp = {row.layer for row in coverage if not row.is_quantized}
    assert coverage.share == 1 or fp >= {row.layer for row in coverage if spec.keeps(row.layer)} > set()
    used = sum(row.parameters for row in coverage if row.reason != "not used at inference")
    assert sum(row.parameters for row in coverage) >= sum(parameter.numel() for parameter in network.parameters())
    assert sum(row.parameters for row in coverage if row.is_quantized) > 0.95 * used or name.split("/")[1] in LEFT
    learns(model, x)


def learns(model: MultiBitModel, x: torch.Tensor) -> None:
    """The middle unit at W4A4 comes closer to floating point by QDrop, or stays as close as it was."""
    model.search_step_sizes(x, "minmax")
    middle = len(model.units) // 2
    for unit in model.units[:middle]:
        x = propagate(unit, x, FULL_PRECISION)
    unit = model.units[middle]
    features = Features(x, {W4: x}, propagate(unit, x, FULL_PRECISION))
    (hooks,) = create("qdrop", {"iterations": ITERATIONS, "batch_size": 2}, [W4]).passes()
    with learning(Learner(unit, hooks, features, Random(0, 0, x.device), Execution())) as learner:
        curve = learn(learner, silent)
    assert len(curve) == ITERATIONS and all(torch.tensor(curve).isfinite())
    unit.set_bits(W4)
    with torch.no_grad():
        assert unit(x[:2]).isfinite().all()


def test_a_compiled_network_is_seen_through():
    network, shape = named("torchvision/squeezenet1_1")
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    model = MultiBitModel(torch.compile(network), QuantizationSpec(None, [W4]), x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), network(x), atol=1e-5, rtol=1e-4)
